//! The tree with everything that is not about files: injected faults, open handles that die at a cut, space, statistics.
//!
//! Decides: which requests fail and with what. A handle belongs to the life between two cuts that it was opened in; in a later
//! one it fails with `EIO`, as the program that held it would not exist any more.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::Names;
use super::names::{Entry, Ino};
use super::tree::Tree;

/// Unsynced data in memory, in bytes; above this the disk writes back by itself.
pub const MAX_PENDING_BYTES: u64 = 512 << 20;

/// What goes wrong on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Writes fail with `EIO` and change nothing.
    pub failing_writes: bool,
    /// Syncs fail with `EIO`, and what they should have covered is never made durable by a later one.
    pub failing_syncs: bool,
    /// Syncs of files take so long, and cover only what had completed before.
    pub sync_delay: Duration,
    /// The size of the disk in bytes of allocated 4 KiB blocks; what does not fit is refused with `ENOSPC`.
    pub space: Option<u64>,
}

/// Counters since the mount, and sizes of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Reads served.
    pub reads: u64,
    /// Writes taken.
    pub writes: u64,
    /// Syncs of files that succeeded.
    pub syncs: u64,
    /// Syncs of directories that succeeded.
    pub dir_syncs: u64,
    /// Requests refused by an injected fault.
    pub injected: u64,
    /// Cuts.
    pub cuts: u64,
    /// Sectors whose newest version was lost in a cut.
    pub lost_sectors: u64,
    /// Sectors that held unsynced data at a cut.
    pub endangered_sectors: u64,
    /// Operations on names lost in a cut.
    pub lost_names: u64,
    /// Bytes of allocated blocks.
    pub used_bytes: u64,
    /// Bytes of unsynced data.
    pub pending_bytes: u64,
    /// Operations on files that no sync covered.
    pub pending_operations: u64,
    /// Operations on names that no sync covered.
    pub pending_names: u64,
    /// Requests that hang.
    pub held_requests: u64,
}

/// A handle of an open file or directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handle(pub u64);

/// The disk without its FUSE side.
#[derive(Debug)]
pub struct Disk {
    /// Files and directories.
    pub tree: Tree,
    faults: Faults,
    stats: Stats,
    /// Kept up to date with each change, since a sum over all files is too slow for every write.
    used_bytes: u64,
    pending_bytes: u64,
}

impl Disk {
    /// The disk on the medium `backing`, which is created when missing.
    ///
    /// # Errors
    /// When the medium cannot be read.
    pub fn open(backing: &Path, names: Names) -> io::Result<Self> {
        allow_many_files()?;
        std::fs::create_dir_all(backing)?;
        let tree = Tree::load(backing, names)?;
        let mut disk =
            Self { tree, faults: Faults::default(), stats: Stats::default(), used_bytes: 0, pending_bytes: 0 };
        disk.count_again();
        Ok(disk)
    }

    fn count_again(&mut self) {
        self.used_bytes = self.tree.used_bytes();
        self.pending_bytes = self.tree.files().map(|file| file.pending_bytes()).sum();
    }

    /// The injected faults.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The injected faults, to be changed.
    pub fn faults_mut(&mut self) -> &mut Faults {
        &mut self.faults
    }

    /// Counters and sizes.
    pub fn stats(&self) -> Stats {
        let pending_operations = self.tree.files().map(|file| file.pending_operations() as u64).sum();
        Stats {
            used_bytes: self.used_bytes,
            pending_bytes: self.pending_bytes,
            pending_operations,
            pending_names: self.tree.pending_names() as u64,
            ..self.stats
        }
    }

    /// Bytes of allocated blocks.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// The size of the disk, when it is limited.
    pub fn space(&self) -> Option<u64> {
        self.faults.space
    }

    /// The handle of a file that is opened now.
    ///
    /// # Errors
    /// `ESTALE`.
    pub fn opened(&mut self, ino: Ino) -> io::Result<Handle> {
        self.tree.opened(ino)?;
        Ok(Handle(self.stats.cuts))
    }

    /// Ends a handle; one from before a cut ended there.
    pub fn closed(&mut self, ino: Ino, handle: Handle) {
        if self.check(handle).is_ok() {
            self.tree.closed(ino);
            self.count_again();
        }
    }

    fn check(&self, handle: Handle) -> io::Result<()> {
        if handle.0 == self.stats.cuts { Ok(()) } else { Err(Errno::EIO.into()) }
    }

    /// Reads.
    ///
    /// # Errors
    /// `EIO`, `ESTALE`, `EISDIR`.
    pub fn read(&mut self, handle: Handle, ino: Ino, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.check(handle)?;
        self.stats.reads += 1;
        self.tree.file_mut(ino)?.read(offset, len)
    }

    /// Writes; with `durable` the write is on the medium when it completes.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC`, `ESTALE`, `EISDIR`.
    pub fn write(&mut self, handle: Handle, ino: Ino, offset: u64, data: Bytes, durable: bool) -> io::Result<()> {
        self.check(handle)?;
        self.fail_if(self.faults.failing_writes)?;
        self.make_room(ino, offset..offset + data.len() as u64)?;
        self.stats.writes += 1;
        self.change(ino, |file, sequence| file.write(sequence, offset, data))?;
        if durable { self.sync(handle, ino) } else { self.limit_pending() }
    }

    fn fail_if(&mut self, fault: bool) -> io::Result<()> {
        if !fault {
            return Ok(());
        }
        self.stats.injected += 1;
        Err(Errno::EIO.into())
    }

    fn make_room(&mut self, ino: Ino, range: Range<u64>) -> io::Result<()> {
        let growth = self.tree.file_mut(ino)?.growth(range);
        match self.faults.space {
            Some(space) if growth > 0 && self.used_bytes + growth > space => {
                self.stats.injected += 1;
                Err(Errno::ENOSPC.into())
            }
            _ => Ok(()),
        }
    }

    fn change(&mut self, ino: Ino, change: impl FnOnce(&mut super::file::FileData, u64)) -> io::Result<()> {
        let sequence = self.tree.new_sequence();
        let node = self.tree.node_mut(ino)?;
        node.modified = std::time::SystemTime::now();
        let file = self.tree.file_mut(ino)?;
        let before = (file.allocated_bytes(), file.pending_bytes());
        change(file, sequence);
        self.used_bytes = self.used_bytes - before.0 + file.allocated_bytes();
        self.pending_bytes = self.pending_bytes - before.1 + file.pending_bytes();
        Ok(())
    }

    fn limit_pending(&mut self) -> io::Result<()> {
        if self.pending_bytes > MAX_PENDING_BYTES {
            self.tree.write_back()?;
            self.count_again();
        }
        Ok(())
    }

    /// Changes the length of a file.
    ///
    /// # Errors
    /// `EIO`, `ESTALE`, `EISDIR`.
    pub fn set_len(&mut self, ino: Ino, len: u64) -> io::Result<()> {
        self.fail_if(self.faults.failing_writes)?;
        self.change(ino, |file, sequence| file.set_len(sequence, len))
    }

    /// Reserves, zeroes or frees a range, as `fallocate(2)`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for other modes, `ENOSPC`, `EIO`, `ESTALE`, `EISDIR`.
    pub fn fallocate(&mut self, handle: Handle, ino: Ino, range: Range<u64>, mode: i32) -> io::Result<()> {
        self.check(handle)?;
        self.fail_if(self.faults.failing_writes)?;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        let extends = !mode.contains(FallocateFlags::FALLOC_FL_KEEP_SIZE);
        let action = mode - FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if action == FallocateFlags::FALLOC_FL_PUNCH_HOLE {
            return self.change(ino, |file, sequence| file.zero(sequence, range, true));
        }
        let zeroes = action == FallocateFlags::FALLOC_FL_ZERO_RANGE;
        if !zeroes && !action.is_empty() {
            return Err(Errno::EOPNOTSUPP.into());
        }
        self.make_room(ino, range.clone())?;
        self.change(ino, |file, sequence| file.reserve(sequence, range.clone(), extends))?;
        if zeroes { self.change(ino, |file, sequence| file.zero(sequence, range, false)) } else { Ok(()) }
    }

    /// Makes a file's content durable.
    ///
    /// # Errors
    /// `EIO`, `ESTALE`, `EISDIR`.
    pub fn sync(&mut self, handle: Handle, ino: Ino) -> io::Result<()> {
        self.sync_before(handle, ino, u64::MAX)
    }

    /// Makes the operations on a file with lower sequence numbers durable.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn sync_before(&mut self, handle: Handle, ino: Ino, sequence: u64) -> io::Result<()> {
        self.check(handle)?;
        if self.faults.failing_syncs {
            self.tree.file_mut(ino)?.give_up();
        }
        self.fail_if(self.faults.failing_syncs)?;
        let file = self.tree.file_mut(ino)?;
        let before = file.pending_bytes();
        file.sync_before(sequence)?;
        self.pending_bytes = self.pending_bytes - before + file.pending_bytes();
        self.stats.syncs += 1;
        Ok(())
    }

    /// Removes the name of a file, or of an empty directory.
    ///
    /// # Errors
    /// Those of [`Tree::remove`].
    pub fn remove(&mut self, dir: Ino, name: &OsStr, is_dir: bool) -> io::Result<()> {
        self.tree.remove(dir, name, is_dir)?;
        self.count_again();
        Ok(())
    }

    /// Renames.
    ///
    /// # Errors
    /// Those of [`Tree::rename`].
    pub fn rename(&mut self, from: Entry, to: Entry, keeps_target: bool) -> io::Result<()> {
        self.tree.rename(from, to, keeps_target)?;
        self.count_again();
        Ok(())
    }

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// `EIO`, `ESTALE`, `ENOTDIR`.
    pub fn sync_dir(&mut self, handle: Handle, dir: Ino) -> io::Result<()> {
        self.check(handle)?;
        self.fail_if(self.faults.failing_syncs)?;
        self.tree.sync_dir(dir)?;
        self.count_again();
        self.stats.dir_syncs += 1;
        Ok(())
    }

    /// Makes everything durable and leaves only that on the medium.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn sync_all(&mut self) -> io::Result<()> {
        self.tree.sync_all()?;
        self.tree.tidy()
    }

    /// Loses power.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn cut(&mut self, seed: u64) -> io::Result<()> {
        let (losses, names) = self.tree.cut(seed)?;
        self.stats.cuts += 1;
        self.stats.lost_sectors += losses.lost;
        self.stats.endangered_sectors += losses.sectors;
        self.stats.lost_names += names as u64;
        self.count_again();
        Ok(())
    }
}

/// Each file of the disk is open all the time.
fn allow_many_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
