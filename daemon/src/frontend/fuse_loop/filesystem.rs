//! The FUSE file system of one volume: a directory with a single file, whose bytes are the volume.
//!
//! Decides: the attributes of that file, and that every open bypasses the page cache. Everything about data is a
//! [`Request`] to the volume; the answer goes to the kernel from wherever the volume completes it, in any order.
//!
//! Invariants: nothing is cached on either side (no write-back cache, no attribute time-to-live); `FSYNC` is always a
//! [`Request::Flush`] and never `ENOSYS`, which the kernel would take for "nothing to sync, now and forever"; a reply object
//! that is dropped answers `EIO`, so a volume that dies leaves no caller waiting. The one sync that is not a flush is that of a
//! file nobody could write to yet (see [`Shared::live`]).

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request as Caller, TimeOrNow, WriteFlags,
};
use tidemark_core::event::{Request, RequestError};
use tidemark_core::types::{BLOCK, SECTOR};

use super::{Remote, transfer};

const FILE: INodeNo = INodeNo(2);
/// Attributes are never cached: a resize must be seen at once, and the data path asks for none.
const TTL: Duration = Duration::ZERO;
/// Largest request; the loop driver's own limit is about the same.
const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Requests in flight before the kernel holds further ones back: twice the loop driver's queue. Also the bound on memory,
/// times [`MAX_WRITE_BYTES`].
const MAX_BACKGROUND: u16 = 256;

/// What the owner of the mount may change while it is served.
#[derive(Debug)]
pub(super) struct Shared {
    /// The size of the volume in bytes.
    pub(super) size: AtomicU64,
    /// False until the loop device is bound or something was written. The driver syncs its file while it binds, holding locks that every other user
    /// of loop devices waits for; nothing was written yet, so that sync is answered here and does not wait for a volume
    /// that may be suspended.
    pub(super) live: AtomicBool,
}

pub(super) struct VolumeFs {
    name: OsString,
    shared: Arc<Shared>,
    remote: Box<dyn Remote>,
    born: SystemTime,
}

impl VolumeFs {
    pub(super) fn new(name: &str, shared: Arc<Shared>, remote: Box<dyn Remote>) -> Self {
        Self { name: name.into(), shared, remote, born: SystemTime::now() }
    }

    fn size(&self) -> u64 {
        self.shared.size.load(Ordering::Acquire)
    }

    fn attributes(&self, ino: INodeNo) -> Option<FileAttr> {
        match ino {
            INodeNo::ROOT => Some(self.attribute(ino, FileType::Directory, 0o700, 0)),
            FILE => Some(self.attribute(ino, FileType::RegularFile, 0o600, self.size())),
            _ => None,
        }
    }

    fn attribute(&self, ino: INodeNo, kind: FileType, perm: u16, size: u64) -> FileAttr {
        FileAttr {
            ino,
            size,
            blocks: size / SECTOR as u64,
            atime: self.born,
            mtime: self.born,
            ctime: self.born,
            crtime: self.born,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        }
    }

    fn reply_attributes(&self, ino: INodeNo, reply: ReplyAttr) {
        match self.attributes(ino) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Runs requests that together answer one call; the first error wins, the answer waits for all.
    fn submit_all(&self, requests: Vec<Request>, reply: ReplyEmpty) {
        self.shared.live.store(true, Ordering::Release);
        let gather = Arc::new(Gather::new(requests.len(), reply));
        for request in requests {
            let gather = Arc::clone(&gather);
            self.remote.submit(request, Box::new(move |result| gather.one_done(result.map(drop))));
        }
    }
}

/// Several requests, one reply.
struct Gather(Mutex<Gathering>);

struct Gathering {
    outstanding: usize,
    result: Result<(), RequestError>,
    reply: Option<ReplyEmpty>,
}

impl Gather {
    fn new(outstanding: usize, reply: ReplyEmpty) -> Self {
        Self(Mutex::new(Gathering { outstanding, result: Ok(()), reply: Some(reply) }))
    }

    fn one_done(&self, result: Result<(), RequestError>) {
        // A poisoned lock means that a completion panicked; the reply is then dropped, which answers EIO.
        let Ok(mut gathering) = self.0.lock() else { return };
        gathering.outstanding -= 1;
        gathering.result = gathering.result.and(result);
        if gathering.outstanding > 0 {
            return;
        }
        if let Some(reply) = gathering.reply.take() {
            answer(reply, gathering.result);
        }
    }
}

fn answer(reply: ReplyEmpty, result: Result<(), RequestError>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(transfer::errno(error)),
    }
}

impl Filesystem for VolumeFs {
    fn init(&mut self, _: &Caller, config: &mut KernelConfig) -> io::Result<()> {
        let limits =
            [config.set_max_write(MAX_WRITE_BYTES).err().is_some(), config.set_max_background(MAX_BACKGROUND).is_err()];
        if limits.contains(&true) {
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        // Without these the kernel would send one request at a time or 128 KiB at most: slower, not wrong.
        for wanted in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS] {
            if config.add_capabilities(wanted).is_err() {
                tracing::debug!(?wanted, "the kernel's FUSE lacks a capability");
            }
        }
        Ok(())
    }

    fn lookup(&self, _: &Caller, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE).filter(|_| parent == INodeNo::ROOT && name == self.name) {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Caller, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.reply_attributes(ino, reply);
    }

    fn setattr(
        &self,
        _: &Caller,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match size {
            Some(_) => reply.error(Errno::EPERM),
            None => self.reply_attributes(ino, reply),
        }
    }

    fn open(&self, _: &Caller, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if ino != FILE {
            return reply.error(Errno::EISDIR);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    fn read(
        &self,
        _: &Caller,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let range = match transfer::read_range(offset, u64::from(size), self.size()) {
            Ok(Some(range)) => range,
            Ok(None) => return reply.data(&[]),
            Err(errno) => return reply.error(errno),
        };
        let done = move |result| match result {
            Ok(pieces) => reply.data(&transfer::joined(pieces)),
            Err(error) => reply.error(transfer::errno(error)),
        };
        self.remote.submit(Request::Read { range }, Box::new(done));
    }

    fn write(
        &self,
        _: &Caller,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let range = match transfer::write_range(offset, data.len() as u64, self.size()) {
            Ok(range) => range,
            Err(errno) => return reply.error(errno),
        };
        let done = move |result| match result {
            Ok(_) => reply.written(range.len as u32),
            Err(error) => reply.error(transfer::errno(error)),
        };
        self.shared.live.store(true, Ordering::Release);
        let data = transfer::aligned_copy(data);
        self.remote.submit(Request::Write { range, data, fua: false }, Box::new(done));
    }

    fn flush(&self, _: &Caller, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A close, not a flush: nothing is held here that a close could lose.
        reply.ok();
    }

    fn fsync(&self, _: &Caller, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if !self.shared.live.load(Ordering::Acquire) {
            return reply.ok();
        }
        self.remote.submit(Request::Flush, Box::new(move |result| answer(reply, result.map(drop))));
    }

    fn fsyncdir(&self, _: &Caller, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(&self, _: &Caller, _: INodeNo, _: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        match transfer::fallocate(mode, offset, length, self.size()) {
            Ok(requests) => self.submit_all(requests, reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Caller, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, OsStr::new(".")),
            (INodeNo::ROOT, FileType::Directory, OsStr::new("..")),
            (FILE, FileType::RegularFile, self.name.as_os_str()),
        ];
        for (index, (ino, kind, name)) in
            entries.into_iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            if reply.add(ino, index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Caller, _: INodeNo, reply: ReplyStatfs) {
        // The loop driver takes its discard granularity from the block size.
        let blocks = self.size().div_ceil(BLOCK as u64);
        reply.statfs(blocks, 0, 0, 1, 0, BLOCK as u32, 255, BLOCK as u32);
    }

    fn getxattr(&self, _: &Caller, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        // "Not implemented" makes the kernel stop asking, which it would do before every write.
        reply.error(Errno::ENOSYS);
    }
}
