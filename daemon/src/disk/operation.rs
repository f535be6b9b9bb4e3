//! The operations that the ring has under way, and their submission entries.
//!
//! Invariant: an operation stays in its cell unchanged from the submission of an entry made of it until that entry completed.

use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use tidemark_core::event::{DiskDone, DiskResult, DiskToken};

use super::data_file::{Channel, DataFile};
use super::disk_error;
use super::joint::Share;
use super::transfer::{Direction, Transfer};
use super::uring::VolumeKey;

/// One entry for the submission ring: an operation and, for a sync, which of its files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Submission {
    pub cell: u32,
    pub part: u32,
}

pub(super) struct Op {
    pub volume: VolumeKey,
    pub token: DiskToken,
    /// Of the writes that continue this one and go with it.
    pub joined: Vec<DiskToken>,
    pub work: Work,
    /// Bytes of a write to a base image, which is counted while it is in the kernel (see [`super::uring`]); else zero.
    pub base_bytes: u64,
    /// The operation that it is a piece of, if it is.
    pub share: Option<Share>,
}

pub(super) enum Work {
    Transfer(Transfer),
    Sync(SyncSet),
}

/// A sync of several files: done when all are, failed when one is.
pub(super) struct SyncSet {
    files: Vec<Arc<DataFile>>,
    left: usize,
    errno: i32,
}

/// Operations by index; the index is what the kernel carries around.
#[derive(Default)]
pub(super) struct Cells {
    ops: Vec<Option<Op>>,
    free: Vec<u32>,
}

impl Op {
    pub fn new(volume: VolumeKey, token: DiskToken, work: Work, base_bytes: u64) -> Self {
        Self { volume, token, joined: Vec::new(), work, base_bytes, share: None }
    }

    /// The same as a piece of an operation.
    pub fn piece_of(self, share: Share) -> Self {
        Self { share: Some(share), ..self }
    }

    /// What each of the operations in it gives.
    pub fn ends(&self, result: &DiskResult) -> impl Iterator<Item = (VolumeKey, DiskToken, DiskResult)> {
        std::iter::once(&self.token).chain(&self.joined).map(move |token| (self.volume, *token, result.clone()))
    }
}

impl Cells {
    pub fn insert(&mut self, op: Op) -> u32 {
        if let Some(cell) = self.free.pop() {
            self.ops[cell as usize] = Some(op);
            return cell;
        }
        self.ops.push(Some(op));
        (self.ops.len() - 1) as u32
    }

    pub fn at(&mut self, cell: u32) -> &mut Op {
        self.ops[cell as usize].as_mut().expect("a cell is emptied only after its last completion")
    }

    pub fn remove(&mut self, cell: u32) -> Op {
        self.free.push(cell);
        self.ops[cell as usize].take().expect("an operation ends once")
    }

    /// Operations of a volume.
    pub fn count(&self, volume: VolumeKey) -> usize {
        self.ops.iter().flatten().filter(|op| op.volume == volume).count()
    }
}

impl SyncSet {
    pub fn new(files: Vec<Arc<DataFile>>) -> Self {
        Self { left: files.len(), files, errno: 0 }
    }

    /// The error number of a failure, 0 where there is none.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// The result, when this was the last file.
    pub fn on_result(&mut self, result: i32) -> Option<DiskResult> {
        if result < 0 {
            self.errno = -result;
        }
        self.left -= 1;
        let failed = (self.errno != 0).then(|| disk_error(self.errno));
        (self.left == 0).then(|| failed.map_or(Ok(DiskDone::Done), Err))
    }
}

impl Work {
    /// What is left of a durable write when it has ended: the sync that the file system would not have done with it.
    pub fn sync_after(&self) -> Option<Self> {
        match self {
            Self::Transfer(transfer) if transfer.sync_after() => {
                Some(Self::Sync(SyncSet::new(vec![Arc::clone(transfer.file())])))
            }
            _ => None,
        }
    }

    /// What it is, on which file, where: for the log.
    pub fn describe(&self) -> (&'static str, &DataFile, u64) {
        match self {
            Self::Transfer(transfer) if transfer.direction() == Direction::Read => {
                ("read", transfer.file(), transfer.offset())
            }
            Self::Transfer(transfer) => ("write", transfer.file(), transfer.offset()),
            Self::Sync(sync) => ("sync", &sync.files[0], 0),
        }
    }
}

/// The submission entry of an operation, or of one file of a sync.
pub(super) fn entry(work: &Work, submission: Submission) -> squeue::Entry {
    let (file, entry) = match work {
        Work::Transfer(transfer) => (transfer.file(), transfer_entry(transfer)),
        Work::Sync(sync) => {
            let file = &sync.files[submission.part as usize];
            let fd = types::Fd(file.raw_fd(Channel::Main));
            (file, opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build())
        }
    };
    let flags = if file.waits_inline() { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
    entry.flags(flags).user_data(u64::from(submission.cell))
}

fn transfer_entry(transfer: &Transfer) -> squeue::Entry {
    let fd = types::Fd(transfer.file().raw_fd(transfer.channel()));
    let (vectors, offset) = (transfer.vectors(), transfer.offset());
    let rw_flags = if transfer.with_dsync() { libc::RWF_DSYNC } else { 0 };
    match (transfer.direction(), vectors) {
        (Direction::Read, [one]) => {
            opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32).offset(offset).build()
        }
        (Direction::Write, [one]) => {
            opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32).offset(offset).rw_flags(rw_flags).build()
        }
        (Direction::Read, many) => opcode::Readv::new(fd, many.as_ptr(), many.len() as u32).offset(offset).build(),
        (Direction::Write, many) => {
            opcode::Writev::new(fd, many.as_ptr(), many.len() as u32).offset(offset).rw_flags(rw_flags).build()
        }
    }
}
