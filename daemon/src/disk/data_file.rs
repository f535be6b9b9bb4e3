//! One open file of a volume: direct I/O, and a second, buffered descriptor for what direct I/O refuses.
//!
//! The bytes behind the last aligned one of a base image (its size is a multiple of 512, the device may want 4096) go through
//! the page cache. The kernel keeps both ways coherent: direct I/O writes back and drops the pages in its range first, and
//! an fdatasync through either descriptor covers both.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::Flock;
use nix::sys::statfs::{
    self, BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FUSE_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC,
};

use super::Error;
use super::buffer::{AlignedBuf, Alignment};
use super::home::{Access, Home, lock};

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// Direct I/O; the file exists.
    Direct,
    /// Direct I/O; the file is made, an old one of the name is emptied.
    Create,
    /// Page cache: small files that are replaced whole and read seldom.
    Buffered,
    /// A base image: direct, locked, with a buffered descriptor beside it; a device is claimed exclusively.
    Base {
        /// It is a block device.
        is_device: bool,
    },
}

/// An open file, shared by the operations on it.
#[derive(Debug)]
pub(super) struct DataFile {
    path: PathBuf,
    file: File,
    /// What `file` wants; [`Alignment::NONE`] when it is buffered.
    alignment: Alignment,
    is_direct: bool,
    /// A submission may wait in the kernel although it must not.
    waits_inline: bool,
    /// A write that asks to be durable is.
    keeps_dsync: bool,
    /// The page cache's way to the same file.
    buffered: Option<File>,
    _lock: Option<Flock<File>>,
    _home: Arc<Home>,
}

/// One way to a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Channel {
    /// Through the main descriptor.
    Main,
    /// Through the page cache.
    Buffered,
}

impl DataFile {
    pub fn open(home: &Arc<Home>, path: PathBuf, mode: Mode) -> Result<Self, Error> {
        let (file, alignment) = open_best(home, &path, mode)?;
        let is_base = matches!(mode, Mode::Base { .. });
        let lock = if is_base { Some(lock_again(home, &file, &path)?) } else { None };
        let buffered = if is_base && alignment.is_some() { Some(open_plain(home, &path, mode)?) } else { None };
        let on = file_system(&file);
        Ok(Self {
            path,
            // FUSE waits for the inode's lock, held by a sync that its server does not answer, also where it must not wait.
            waits_inline: on == Some(FUSE_SUPER_MAGIC),
            keeps_dsync: on.is_some_and(|on| KEEP_DSYNC.contains(&on)),
            file,
            alignment: alignment.unwrap_or(Alignment::NONE),
            is_direct: alignment.is_some(),
            buffered,
            _lock: lock,
            _home: Arc::clone(home),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True when what completes is on the device, not in the page cache.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// True when submitting an operation on it can block the caller: then the kernel has to be told to hand it to a worker at
    /// once, or one file whose server hangs stops every volume of the shard.
    pub fn waits_inline(&self) -> bool {
        self.waits_inline
    }

    /// True when `RWF_DSYNC` is as good as a sync afterwards.
    pub fn keeps_dsync(&self) -> bool {
        self.keeps_dsync
    }

    /// The way for a transfer of `len` bytes at `offset`.
    pub fn channel(&self, offset: u64, len: u64) -> Channel {
        if self.buffered.is_some() && !self.alignment.allows(offset, len) { Channel::Buffered } else { Channel::Main }
    }

    /// The way to try after the kernel refused a transfer on the main one, if there is another.
    pub fn fallback(&self) -> Option<Channel> {
        self.buffered.as_ref().map(|_| Channel::Buffered)
    }

    /// What a channel wants.
    pub fn alignment(&self, channel: Channel) -> Alignment {
        match channel {
            Channel::Main => self.alignment,
            Channel::Buffered => Alignment::NONE,
        }
    }

    /// The descriptor for the ring; valid as long as `self`.
    pub fn raw_fd(&self, channel: Channel) -> RawFd {
        self.handle(channel).as_raw_fd()
    }

    /// The descriptor for calls about the file as a whole.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes all of `data`, on the calling thread.
    pub fn write_all_at(&self, data: &AlignedBuf, offset: u64) -> Result<(), Error> {
        let channel = self.channel(offset, data.len() as u64);
        self.handle(channel).write_all_at(data, offset).map_err(Error::io("write to", &self.path))
    }

    /// Fills `buf` from `offset`, on the calling thread.
    pub fn read_exact_at(&self, buf: &mut AlignedBuf, offset: u64) -> Result<(), Error> {
        let end = offset.saturating_add(buf.len() as u64);
        let channel = self.channel(offset, buf.len() as u64);
        self.handle(channel).read_exact_at(buf, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::PastEnd { path: self.path.clone(), end },
            _ => Error::io("read", &self.path)(error),
        })
    }

    /// Makes everything written durable, size included.
    pub fn sync_all(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io("sync", &self.path))
    }

    fn handle(&self, channel: Channel) -> &File {
        match (channel, &self.buffered) {
            (Channel::Buffered, Some(buffered)) => buffered,
            _ => &self.file,
        }
    }
}

/// The file and what direct I/O on it wants; `None` when it is buffered.
fn open_best(home: &Home, path: &Path, mode: Mode) -> Result<(File, Option<Alignment>), Error> {
    if mode == Mode::Buffered {
        return Ok((open_plain(home, path, mode)?, None));
    }
    if let Some((file, alignment)) = open_direct(home, path, mode)? {
        return Ok((file, Some(alignment)));
    }
    if !home.allows_buffered() {
        return Err(Error::Buffered { path: path.to_owned() });
    }
    let flags = exclusive(home, mode);
    let file = options(home, mode).custom_flags(flags).open(path).map_err(opening(path))?;
    Ok((file, None))
}

/// `None` when direct I/O is refused here.
fn open_direct(home: &Home, path: &Path, mode: Mode) -> Result<Option<(File, Alignment)>, Error> {
    let file = match options(home, mode).custom_flags(libc::O_DIRECT | exclusive(home, mode)).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
        other => other.map_err(opening(path))?,
    };
    // tmpfs accepts O_DIRECT and ignores it. A device's node lies in one, too; what is behind it does not.
    let is_device = mode == (Mode::Base { is_device: true });
    let ignored = !is_device && file_system(&file) == Some(TMPFS_MAGIC);
    let alignment = if ignored { None } else { Alignment::of(&file) };
    Ok(alignment.map(|alignment| (file, alignment)))
}

/// A buffered descriptor, without a claim of its own.
fn open_plain(home: &Home, path: &Path, mode: Mode) -> Result<File, Error> {
    options(home, mode).open(path).map_err(opening(path))
}

fn options(home: &Home, mode: Mode) -> OpenOptions {
    let serves = home.access() == Access::Serve;
    let creates = mode == Mode::Create;
    let mut options = OpenOptions::new();
    options.read(true).write(serves).create(creates).truncate(creates).mode(0o600);
    options
}

/// O_EXCL without O_CREAT claims a block device: refused while it is mounted or claimed. Who only looks claims nothing.
fn exclusive(home: &Home, mode: Mode) -> i32 {
    let claims = mode == (Mode::Base { is_device: true }) && home.access() == Access::Serve;
    if claims { libc::O_EXCL } else { 0 }
}

fn opening(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| match error.raw_os_error() {
        Some(libc::EBUSY) => Error::InUse { path: path.to_owned() },
        _ => Error::io("open", path)(error),
    }
}

/// The file system that holds a file; `None` when it does not say.
fn file_system(file: &File) -> Option<FsType> {
    statfs::fstatfs(file).ok().map(|fs| fs.filesystem_type())
}

/// The file systems that are known to make an asynchronous direct write with `RWF_DSYNC` durable before it completes. Others may
/// not: FUSE, for one, only hands the flag to its server.
const KEEP_DSYNC: [FsType; 3] = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC];

/// Locks the base image through a duplicate, which shares the lock with `file`.
fn lock_again(home: &Home, file: &File, path: &Path) -> Result<Flock<File>, Error> {
    let twin = file.try_clone().map_err(Error::io("duplicate", path))?;
    lock(twin, home.access(), path)
}
