//! The system calls of this frontend that have no safe wrapper: the loop driver's ioctls.
//!
//! Nothing here decides anything. All `unsafe` of the frontend is in this file; every block passes either plain integers or
//! a pointer to a structure that lives until the call returns and has the layout that `<linux/loop.h>` fixes.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_SET_STATUS64: libc::c_ulong = 0x4C04;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const BLKFLSBUF: libc::c_ulong = 0x1261;

/// The device cannot be written to.
pub(super) const LO_FLAGS_READ_ONLY: u32 = 1;
/// The device goes away when its last user closes it.
pub(super) const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Requests reach the backing file without passing a page cache.
pub(super) const LO_FLAGS_DIRECT_IO: u32 = 16;

const NAME_BYTES: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub(super) flags: u32,
    file_name: [u8; NAME_BYTES],
    crypt_name: [u8; NAME_BYTES],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

impl LoopInfo {
    /// A description with these flags and this name (cut to what the kernel keeps, 63 bytes), all else zero.
    pub(super) fn new(flags: u32, name: &str) -> Self {
        let mut file_name = [0; NAME_BYTES];
        let kept = name.len().min(NAME_BYTES - 1);
        file_name[..kept].copy_from_slice(&name.as_bytes()[..kept]);
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name,
            crypt_name: [0; NAME_BYTES],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }

    /// The same with other flags.
    pub(super) fn with_flags(self, flags: u32) -> Self {
        Self { flags, ..self }
    }
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn plain(file: &File, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: only used for requests that take an integer or nothing; the descriptor is open for the length of the call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) })
}

/// The number of a loop device that was free a moment ago, from `/dev/loop-control`.
pub(super) fn free_number(control: &File) -> io::Result<u32> {
    plain(control, LOOP_CTL_GET_FREE, 0).map(|number| number as u32)
}

/// Binds the device to `backing` in one step.
pub(super) fn configure(device: &File, backing: &File, block_size: u32, info: LoopInfo) -> io::Result<()> {
    let config = LoopConfig { fd: backing.as_raw_fd() as u32, block_size, info, reserved: [0; 8] };
    // SAFETY: `config` has the layout of `struct loop_config`, checked by size above, and outlives the call, which only
    // reads it. Both descriptors are open for the length of the call.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) }).map(drop)
}

/// What the device is bound to; `ENXIO` when to nothing.
pub(super) fn status(device: &File) -> io::Result<LoopInfo> {
    let mut info = LoopInfo::new(0, "");
    // SAFETY: `info` has the layout of `struct loop_info64` and is valid for any content of these integers; the kernel
    // writes exactly that structure before the call returns.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) })?;
    Ok(info)
}

/// Changes the flags that may change while bound.
pub(super) fn set_status(device: &File, info: &LoopInfo) -> io::Result<()> {
    // SAFETY: `info` has the layout of `struct loop_info64` and outlives the call, which only reads it.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64 as _, std::ptr::from_ref(info)) }).map(drop)
}

/// Unbinds the device, or marks it to be unbound by its last close.
pub(super) fn clear(device: &File) -> io::Result<()> {
    plain(device, LOOP_CLR_FD, 0).map(drop)
}

/// Takes the device's size from its file again.
pub(super) fn set_capacity(device: &File) -> io::Result<()> {
    plain(device, LOOP_SET_CAPACITY, 0).map(drop)
}

/// Writes out and drops the device's page cache.
pub(super) fn flush_buffers(device: &File) -> io::Result<()> {
    plain(device, BLKFLSBUF, 0).map(drop)
}
