//! The FUSE side of the volatile disk: each call becomes one on [`Disk`], under one lock.
//!
//! Every file bypasses the page cache and no attribute is cached, so that a cut leaves nothing of the old life in the kernel.
//! Reads, writes and syncs go through the gate, where they hang when the disk does.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::Shared;
use super::disk::{Disk, Handle};
use super::file::SECTOR;
use super::names::{Entry, Ino};
use super::tree::{Body, Tree};

const TTL: Duration = Duration::ZERO;
const MAX_WRITE_BYTES: u32 = 1 << 20;
const MAX_BACKGROUND: u16 = 256;
const BLOCK: u64 = 4096;
/// What an unlimited disk says it has, in bytes.
const PLENTY: u64 = 1 << 42;

pub(super) struct VolatileFs {
    shared: Arc<Shared>,
}

impl VolatileFs {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Runs `request` on the disk, now or when it no longer hangs.
    fn pass(&self, request: impl FnOnce(&mut Disk) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.shared.gate.pass(Box::new(move || request(&mut shared.disk())));
    }

    /// Runs `request` after the time that a sync takes, with the sequence number of the first operation that comes too late.
    fn pass_sync(&self, request: impl FnOnce(&mut Disk, u64) + Send + 'static) {
        let (sequence, delay) = {
            let mut disk = self.shared.disk();
            (disk.tree.new_sequence(), disk.faults().sync_delay)
        };
        let request = move |disk: &mut Disk| request(disk, sequence);
        if delay.is_zero() {
            return self.pass(request);
        }
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            Self { shared }.pass(request);
        });
    }

    fn attributes(&self, ino: Ino) -> io::Result<FileAttr> {
        attributes(&self.shared.disk().tree, ino)
    }

    fn new_entry(&self, make: impl FnOnce(&mut Tree) -> io::Result<Ino>) -> io::Result<FileAttr> {
        let mut disk = self.shared.disk();
        let ino = make(&mut disk.tree)?;
        attributes(&disk.tree, ino)
    }

    fn reply_entry(reply: ReplyEntry, result: io::Result<FileAttr>) {
        match result {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn reply_attributes(reply: ReplyAttr, result: io::Result<FileAttr>) {
        match result {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn reply_open(reply: ReplyOpen, result: io::Result<Handle>, flags: FopenFlags) {
        match result {
            Ok(Handle(handle)) => reply.opened(FileHandle(handle), flags),
            Err(error) => reply.error(error.into()),
        }
    }
}

fn reply_empty(reply: ReplyEmpty, result: io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

fn file_flags() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
}

fn entry(dir: INodeNo, name: &OsStr) -> Entry {
    Entry { dir: dir.0, name: name.to_owned() }
}

fn permissions(mode: u32, umask: u32) -> u16 {
    (mode & !umask & 0o7777) as u16
}

fn attributes(tree: &Tree, ino: Ino) -> io::Result<FileAttr> {
    let node = tree.node(ino)?;
    let (kind, size, blocks, nlink) = match &node.body {
        Body::Dir(_) => (FileType::Directory, BLOCK, 8, 2),
        Body::File(file) => (FileType::RegularFile, file.len(), file.allocated_bytes() / SECTOR, 1),
        Body::Link(target) => (FileType::Symlink, target.as_os_str().len() as u64, 0, 1),
    };
    Ok(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks,
        atime: node.modified,
        mtime: node.modified,
        ctime: node.modified,
        crtime: node.modified,
        kind,
        perm: node.perm,
        nlink,
        uid: node.uid,
        gid: node.gid,
        rdev: 0,
        blksize: BLOCK as u32,
        flags: 0,
    })
}

impl Filesystem for VolatileFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let limits = config.set_max_write(MAX_WRITE_BYTES).is_ok() && config.set_max_background(MAX_BACKGROUND).is_ok();
        if !limits {
            return Err(nix::errno::Errno::EPROTO.into());
        }
        // Only speed depends on it.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        Self::reply_entry(reply, self.new_entry(|tree| tree.lookup(parent.0, name)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        Self::reply_attributes(reply, self.attributes(ino.0));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
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
        let mut disk = self.shared.disk();
        let resized = size.map_or(Ok(()), |size| disk.set_len(ino.0, size));
        let changed = resized.and_then(|()| {
            let node = disk.tree.node_mut(ino.0)?;
            node.perm = mode.map_or(node.perm, |mode| permissions(mode, 0));
            (node.uid, node.gid) = (uid.unwrap_or(node.uid), gid.unwrap_or(node.gid));
            attributes(&disk.tree, ino.0)
        });
        Self::reply_attributes(reply, changed);
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: u32, reply: ReplyEntry) {
        if mode & libc::S_IFMT != libc::S_IFREG {
            return reply.error(Errno::EPERM);
        }
        Self::reply_entry(reply, self.new_entry(|tree| tree.create_file(parent.0, name, permissions(mode, umask))));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        Self::reply_entry(reply, self.new_entry(|tree| tree.create_dir(parent.0, name, permissions(mode, umask))));
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        Self::reply_entry(reply, self.new_entry(|tree| tree.create_link(parent.0, name, target)));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.shared.disk().tree.node(ino.0).map(|node| &node.body) {
            Ok(Body::Link(target)) => reply.data(target.as_os_str().as_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error.into()),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.shared.disk().remove(parent.0, name, false));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.shared.disk().remove(parent.0, name, true));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let keeps_target = flags == RenameFlags::RENAME_NOREPLACE;
        if !keeps_target && !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = (entry(parent, name), entry(new_parent, new_name));
        reply_empty(reply, self.shared.disk().rename(from, to, keeps_target));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        let mut disk = self.shared.disk();
        let created = disk.tree.create_file(parent.0, name, permissions(mode, umask)).and_then(|ino| {
            let handle = disk.opened(ino)?;
            Ok((handle, attributes(&disk.tree, ino)?))
        });
        match created {
            Ok((Handle(handle), attributes)) => {
                reply.created(&TTL, &attributes, Generation(0), FileHandle(handle), file_flags());
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        Self::reply_open(reply, self.shared.disk().opened(ino.0), file_flags());
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.disk().closed(ino.0, Handle(handle.0));
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.pass(move |disk| match disk.read(Handle(handle.0), ino.0, offset, size as usize) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error.into()),
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = data.len() as u32;
        let data = Bytes::copy_from_slice(data);
        let durable = flags.0 & (libc::O_DSYNC | libc::O_SYNC) != 0;
        self.pass(move |disk| match disk.write(Handle(handle.0), ino.0, offset, data, durable) {
            Ok(()) => reply.written(len),
            Err(error) => reply.error(error.into()),
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.pass_sync(move |disk, before| reply_empty(reply, disk.sync_before(Handle(handle.0), ino.0, before)));
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let range = offset..offset.saturating_add(length);
        self.pass(move |disk| reply_empty(reply, disk.fallocate(Handle(handle.0), ino.0, range, mode)));
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let mut disk = self.shared.disk();
        match disk.tree.file_mut(ino.0).map(|file| file.seek(offset as u64, hole)) {
            Ok(Some(at)) => reply.offset(at as i64),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(error.into()),
        }
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        Self::reply_open(reply, self.shared.disk().opened(ino.0), FopenFlags::empty());
    }

    fn releasedir(&self, _: &Request, ino: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.shared.disk().closed(ino.0, Handle(handle.0));
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.pass(move |disk| reply_empty(reply, disk.sync_dir(Handle(handle.0), ino.0)));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let disk = self.shared.disk();
        let listing = disk.tree.node(ino.0).and_then(|node| Ok((node.parent, disk.tree.children(ino.0)?)));
        let (parent, children) = match listing {
            Ok(listing) => listing,
            Err(error) => return reply.error(error.into()),
        };
        let dots = [(OsStr::new("."), ino.0), (OsStr::new(".."), parent)];
        let all = dots.into_iter().chain(children.iter().map(|(name, ino)| (name.as_os_str(), *ino)));
        for (index, (name, ino)) in all.enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let kind = attributes(&disk.tree, ino).map_or(FileType::RegularFile, |attributes| attributes.kind);
            if reply.add(INodeNo(ino), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let disk = self.shared.disk();
        let size = disk.space().unwrap_or(PLENTY);
        let free = size.saturating_sub(disk.used_bytes()) / BLOCK;
        reply.statfs(size / BLOCK, free, free, 1 << 20, 1 << 20, BLOCK as u32, 255, BLOCK as u32);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        // Makes the kernel stop asking, which it would do before every write.
        reply.error(Errno::ENOSYS);
    }
}
