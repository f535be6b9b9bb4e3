//! A loop device on a file: bound in one step, refused when buffered, released only when nobody uses it.
//!
//! Invariants: a device that this module returns does direct I/O, since a buffered one acknowledges writes from a page cache
//! that no flush of ours covers and that dies with the host; release is reported only after the kernel was seen to have let
//! go of the file, since `LOOP_CLR_FD` on a device in use succeeds and does nothing until the last close.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::ioctl::{self, LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LO_FLAGS_READ_ONLY, LoopInfo};

const CONTROL: &str = "/dev/loop-control";
const SECTOR_BYTES: u32 = 512;
/// Other programs take free loop devices too; losing the race this often means something else is wrong.
const CLAIM_ATTEMPTS: u32 = 16;
/// How long a device may stay bound after it was released: udev and others open new devices for a moment.
const RELEASE_POLLS: u32 = 100;
const RELEASE_POLL: Duration = Duration::from_millis(20);

/// Why a loop device could not be made or released.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// No free device, or the driver is missing.
    #[error("cannot get a loop device from {CONTROL}: {0}")]
    NoDevice(#[source] io::Error),
    /// Opening the device failed.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused to bind the file.
    #[error("cannot bind {} to the volume's file: {source}", path.display())]
    Configure {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel would put its page cache between the device and the volume.
    #[error(
        "the loop driver cannot do direct input/output on the volume's file; a buffered device would acknowledge writes that are not safe"
    )]
    Buffered,
    /// Somebody uses the device.
    #[error("{} is in use: mounted, or open in another process", path.display())]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// Writing out what the page cache above the device holds failed.
    #[error("cannot write out the cached data of {}: {source}", path.display())]
    Flush {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another call on the device failed.
    #[error("{operation} on {} failed: {source}", path.display())]
    Call {
        /// The name of the ioctl.
        operation: &'static str,
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A bound loop device. Dropping it releases nothing.
#[derive(Debug)]
pub(super) struct LoopDevice {
    path: PathBuf,
    /// Which binding of the device this is. `None` on a kernel that does not count them.
    sequence: Option<String>,
}

impl LoopDevice {
    /// Binds a free device to `backing` with direct I/O and 512-byte sectors; `name` is what the driver keeps as its name.
    pub(super) fn bind(backing: &File, name: &str, read_only: bool) -> Result<Self, LoopError> {
        let control = File::open(CONTROL).map_err(LoopError::NoDevice)?;
        for _ in 0..CLAIM_ATTEMPTS {
            let number = ioctl::free_number(&control).map_err(LoopError::NoDevice)?;
            if let Some(device) = Self::try_bind(path_of(number), backing, name, read_only)? {
                return Ok(device);
            }
        }
        Err(LoopError::NoDevice(io::ErrorKind::ResourceBusy.into()))
    }

    /// `None` when another process took the device first.
    fn try_bind(path: PathBuf, backing: &File, name: &str, read_only: bool) -> Result<Option<Self>, LoopError> {
        let device = open(&path, true, 0)?;
        let info = LoopInfo::new(LO_FLAGS_DIRECT_IO | if read_only { LO_FLAGS_READ_ONLY } else { 0 }, name);
        match ioctl::configure(&device, backing, SECTOR_BYTES, info) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(None),
            Err(source) => return Err(LoopError::Configure { path, source }),
        }
        let bound = ioctl::status(&device).map_err(call("LOOP_GET_STATUS64", &path))?;
        if bound.flags & LO_FLAGS_DIRECT_IO == 0 {
            ioctl::clear(&device).map_err(call("LOOP_CLR_FD", &path))?;
            return Err(LoopError::Buffered);
        }
        let sequence = sequence_of(&path);
        Ok(Some(Self { path, sequence }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes over the size of the backing file.
    pub(super) fn update_size(&self) -> Result<(), LoopError> {
        ioctl::set_capacity(&open(&self.path, false, 0)?).map_err(call("LOOP_SET_CAPACITY", &self.path))
    }

    /// Writes everything out and releases the device. [`LoopError::Busy`] leaves it as it was. Calling it again after
    /// success does nothing.
    pub(super) fn release(&self) -> Result<(), LoopError> {
        if !self.is_bound() {
            return Ok(());
        }
        // The exclusive open fails while a file system is mounted from the device, and keeps one from being mounted now.
        let exclusive = open(&self.path, false, libc::O_EXCL)?;
        let flushed = exclusive.sync_all().and_then(|()| ioctl::flush_buffers(&exclusive));
        flushed.map_err(|source| LoopError::Flush { path: self.path.clone(), source })?;
        ioctl::clear(&exclusive).map_err(call("LOOP_CLR_FD", &self.path))?;
        drop(exclusive);
        self.await_release()
    }

    fn await_release(&self) -> Result<(), LoopError> {
        for _ in 0..RELEASE_POLLS {
            if !self.is_bound() {
                return Ok(());
            }
            thread::sleep(RELEASE_POLL);
        }
        self.keep()
    }

    /// Takes back a release that waits for the last close, since somebody still works with the device.
    fn keep(&self) -> Result<(), LoopError> {
        let device = open(&self.path, false, 0)?;
        if !self.is_bound() {
            return Ok(());
        }
        let info = ioctl::status(&device).map_err(call("LOOP_GET_STATUS64", &self.path))?;
        let kept = info.with_flags(info.flags & !LO_FLAGS_AUTOCLEAR);
        ioctl::set_status(&device, &kept).map_err(call("LOOP_SET_STATUS64", &self.path))?;
        Err(LoopError::Busy { path: self.path.clone() })
    }

    /// Releases the device without writing anything out: now, or with its last close. Only after its file is dead.
    pub(super) fn abandon(&self) -> Result<(), LoopError> {
        if self.is_bound() { clear_by_path(&self.path) } else { Ok(()) }
    }

    /// True while the kernel holds the file that this device was bound to. The answer comes from sysfs: `LOOP_GET_STATUS64`
    /// asks the file, which fails once its server is dead.
    pub(super) fn is_bound(&self) -> bool {
        is_bound(&self.path) && sequence_of(&self.path) == self.sequence
    }
}

/// True while the device is bound to any file.
pub(super) fn is_bound(device: &Path) -> bool {
    backing_file(device).is_some()
}

/// The file that the device is bound to, as far as the kernel can still name it.
pub(super) fn backing_file(device: &Path) -> Option<PathBuf> {
    let path = fs::read_to_string(sysfs(device).join("loop/backing_file")).ok()?;
    Some(PathBuf::from(path.trim_end_matches('\n')))
}

/// The kernel counts every binding and release of a disk, over all disks.
fn sequence_of(device: &Path) -> Option<String> {
    fs::read_to_string(sysfs(device).join("diskseq")).ok()
}

fn sysfs(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}

/// Releases whatever the device is bound to: now, or with its last close.
pub(super) fn clear_by_path(path: &Path) -> Result<(), LoopError> {
    match ioctl::clear(&open(path, false, 0)?) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        result => result.map_err(call("LOOP_CLR_FD", path)),
    }
}

fn path_of(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// Opens a device; for writing only where the driver asks for it, since udev probes a device after each such close.
fn open(path: &Path, write: bool, flags: i32) -> Result<File, LoopError> {
    let opened = OpenOptions::new().read(true).write(write).custom_flags(flags | libc::O_CLOEXEC).open(path);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => LoopError::Busy { path: path.to_owned() },
        _ => LoopError::Open { path: path.to_owned(), source },
    })
}

fn call(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LoopError {
    let path = path.to_owned();
    move |source| LoopError::Call { operation, path, source }
}
