//! Disk operations that no ring opcode covers whole, on one worker thread per ring.
//!
//! Rare and long ones: making a slot, zeroing, mapping, replacing a small file. One thread keeps them in order and off the
//! path of reads and writes. Results wait in a list; the worker raises the ring's eventfd for each.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::eventfd::EventFd;
use nix::unistd::{Whence, lseek64};
use tidemark_core::event::{DiskDone, DiskOp, DiskToken, FileRef, Slot};
use tidemark_core::types::ByteRange;

use super::bases::Piece;
use super::buffer::Pool;
use super::data_file::{DataFile, Mode};
use super::files::VolumeFiles;
use super::home::Home;
use super::identity::size_of;
use super::uring::{Completion, VolumeKey};
use super::{Error, room};
use crate::crashsafe;
use crate::lock::lock;

/// Jobs handed to the worker; more wait on the ring's side.
const QUEUE_MAX: usize = 64;
/// Zeros are written in steps of this.
const ZEROS_BYTES: usize = 1 << 20;
/// Ranges are given up in steps of this, so that closing does not wait for a whole device.
const ZERO_STEP_BYTES: u64 = 1 << 30;
/// The most ranges in a map; behind them all counts as data.
const MAP_RANGES_MAX: usize = 1 << 16;

/// What the worker is to do.
pub(super) enum Task {
    Prepare { home: Arc<Home>, bases: Vec<Arc<DataFile>>, slot: Slot, len: u64 },
    Remove { home: Arc<Home>, slot: Slot },
    Replace { _home: Arc<Home>, path: PathBuf, data: Vec<Bytes> },
    Zero { pieces: Vec<Piece>, deallocate: bool },
    Map { pieces: Vec<Piece> },
}

struct Job {
    volume: VolumeKey,
    token: DiskToken,
    task: Task,
}

/// What both sides share.
struct Shared {
    done: Mutex<Vec<Completion>>,
    /// `done` is not empty: changed under its lock, read without.
    ready: AtomicBool,
    /// Nobody waits for results any more: end at the next step.
    stop: AtomicBool,
    wake: Arc<EventFd>,
    pool: Pool,
}

/// The worker thread, seen from the ring.
pub(super) struct Worker {
    shared: Arc<Shared>,
    jobs: Option<SyncSender<Job>>,
    waiting: VecDeque<Job>,
    /// Volumes of the jobs without a result.
    open: Vec<VolumeKey>,
    ended: Receiver<()>,
}

impl Worker {
    /// Starts the thread.
    pub fn start(pool: Pool, wake: Arc<EventFd>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            done: Mutex::default(),
            ready: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            wake,
            pool,
        });
        let (jobs, inbox) = sync_channel(QUEUE_MAX);
        let (alive, ended) = sync_channel(0);
        let seen = Arc::clone(&shared);
        thread::Builder::new().name("disk-worker".into()).spawn(move || {
            let _alive = alive; // dropped with the thread: that is what `ended` waits for
            serve(&seen, &inbox);
        })?;
        Ok(Self { shared, jobs: Some(jobs), waiting: VecDeque::new(), open: Vec::new(), ended })
    }

    pub fn submit(&mut self, volume: VolumeKey, token: DiskToken, task: Task) {
        self.open.push(volume);
        self.waiting.push_back(Job { volume, token, task });
        self.feed();
    }

    /// Moves finished results to `out`.
    pub fn collect(&mut self, out: &mut Vec<Completion>) {
        if !self.shared.ready.load(Ordering::Acquire) {
            return;
        }
        let done = self.shared.take_done();
        for (volume, token, result) in done {
            self.open.iter().position(|open| *open == volume).map(|at| self.open.swap_remove(at));
            out.push((volume, token, result));
        }
        self.feed();
    }

    /// Jobs of a volume without a result.
    pub fn in_flight(&self, volume: VolumeKey) -> usize {
        self.open.iter().filter(|open| **open == volume).count()
    }

    /// Ends the thread at the next step of its job; false when it is still at it after `patience`.
    pub fn stop(&mut self, patience: Duration) -> bool {
        self.shared.stop.store(true, Ordering::Release);
        self.waiting.clear();
        self.jobs = None;
        self.ended.recv_timeout(patience) != Err(RecvTimeoutError::Timeout)
    }

    fn feed(&mut self) {
        let Some(jobs) = &self.jobs else { return };
        while let Some(job) = self.waiting.pop_front() {
            if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = jobs.try_send(job) {
                self.waiting.push_front(job);
                return;
            }
        }
    }
}

fn serve(shared: &Shared, inbox: &Receiver<Job>) {
    while let Ok(Job { volume, token, task }) = inbox.recv() {
        let result = task.run(shared).map_err(|error| error.told(volume));
        shared.put_done((volume, token, result));
        let _ = shared.wake.write(1); // fails only when the counter is full, and then it is raised
    }
}

impl Shared {
    fn put_done(&self, completion: Completion) {
        let mut done = lock(&self.done);
        done.push(completion);
        self.ready.store(true, Ordering::Release);
    }

    fn take_done(&self) -> Vec<Completion> {
        let mut done = lock(&self.done);
        self.ready.store(false, Ordering::Release);
        std::mem::take(&mut done)
    }

    fn check(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Acquire) { Err(Error::Closing) } else { Ok(()) }
    }
}

impl Task {
    /// The task for an operation of a volume.
    ///
    /// # Panics
    /// For reads, writes, syncs and growth, which the ring does itself.
    pub fn new(op: DiskOp, files: &VolumeFiles) -> Result<Self, Error> {
        let home = Arc::clone(files.home());
        Ok(match op {
            DiskOp::Prepare { slot, len } => {
                files.forget_slot(slot);
                Self::Prepare { home, bases: files.base_files()?, slot, len }
            }
            DiskOp::Remove { slot } => {
                files.forget_slot(slot);
                Self::Remove { home, slot }
            }
            DiskOp::Replace { file, data } => Self::Replace { path: home.path(file), _home: home, data },
            DiskOp::Zero { file, offset, len, deallocate } => {
                let range = ByteRange::new(offset, len);
                let pieces = match file {
                    FileRef::Base => files.base_pieces(range)?,
                    other => vec![Piece { from: offset, len, place: Some((files.file(other)?, offset)) }],
                };
                Self::Zero { pieces, deallocate }
            }
            DiskOp::Map { range } => Self::Map { pieces: files.base_pieces(range)? },
            DiskOp::Read { .. } | DiskOp::Write { .. } | DiskOp::Sync { .. } | DiskOp::Grow { .. } => {
                unreachable!("done by the ring")
            }
        })
    }

    fn run(self, shared: &Shared) -> Result<DiskDone, Error> {
        shared.check()?;
        match self {
            Self::Prepare { home, bases, slot, len } => {
                leave_for_bases(&home, &bases, slot, len)?;
                prepare(&home, slot, len, shared).map(|()| DiskDone::Done)
            }
            Self::Remove { home, slot } => remove(&home, slot).map(|()| DiskDone::Done),
            Self::Replace { path, data, .. } => replace(&path, &data).map(|()| DiskDone::Done),
            Self::Zero { pieces, deallocate } => zero_pieces(&pieces, deallocate, shared).map(|()| DiskDone::Done),
            Self::Map { pieces } => map_pieces(&pieces).map(DiskDone::Mapped),
        }
    }
}

fn replace(path: &Path, data: &[Bytes]) -> Result<(), Error> {
    crashsafe::replace(path, data).map_err(Error::io("write", path))
}

/// Slots are numbered from one on without gaps, but for those that are being made anew.
fn leave_for_bases(home: &Home, bases: &[Arc<DataFile>], slot: Slot, len: u64) -> Result<(), Error> {
    let dir = home.log_dir();
    let bases = bases.iter().map(|base| base.file());
    let leaves = fs::File::open(&dir).and_then(|opened| room::leave_for_bases(bases, &opened, slot.0.into(), len));
    leaves.map_err(Error::io("leave the base room on the file system of", &dir))
}

/// The slot appears under its name when every block of it is allocated, written and durable: a later sync of it is a pure
/// device flush.
fn prepare(home: &Arc<Home>, slot: Slot, len: u64, shared: &Shared) -> Result<(), Error> {
    let path = home.path(FileRef::Log(slot));
    let new = crashsafe::unfinished(&path);
    let made = fill_new(home, &new, len, shared)
        .and_then(|()| crashsafe::publish(&new, &path).map_err(Error::io("rename a new file to", &path)));
    if made.is_err() {
        let _ = fs::remove_file(&new); // the first error is the one to report; the sweep finds what stays
    }
    made
}

fn fill_new(home: &Arc<Home>, path: &Path, len: u64, shared: &Shared) -> Result<(), Error> {
    let file = DataFile::open(home, path.to_owned(), Mode::Create)?;
    match fallocate(file.file(), FallocateFlags::empty(), 0, len as i64) {
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {} // the zeros allocate it as well
        Err(errno) => return Err(Error::io("allocate", path)(errno)),
    }
    write_zeros(&file, ByteRange::new(0, len), shared)?;
    file.sync_all()
}

fn write_zeros(file: &DataFile, range: ByteRange, shared: &Shared) -> Result<(), Error> {
    let mut zeros = shared.pool.take_zeroed(ZEROS_BYTES);
    let mut at = range.offset;
    while at < range.end() {
        shared.check()?;
        zeros.resize((range.end() - at).min(ZEROS_BYTES as u64) as usize);
        file.write_all_at(&zeros, at)?;
        at += zeros.len() as u64;
    }
    Ok(())
}

fn remove(home: &Home, slot: Slot) -> Result<(), Error> {
    let path = home.path(FileRef::Log(slot));
    crashsafe::unlink(&path).map_err(Error::io("remove", &path))?;
    let dir = home.log_dir();
    crashsafe::sync_dir(&dir).map_err(Error::io("sync the directory", &dir))
}

fn zero_pieces(pieces: &[Piece], deallocate: bool, shared: &Shared) -> Result<(), Error> {
    let mut in_files = pieces.iter().filter_map(Piece::in_file);
    in_files.try_for_each(|(file, range)| zero(file, range, deallocate, shared))
}

/// Data in the pieces, as ranges of the space.
pub(super) fn map_pieces(pieces: &[Piece]) -> Result<Vec<ByteRange>, Error> {
    let mut found: Vec<ByteRange> = Vec::new();
    for piece in pieces {
        let Some((file, range)) = piece.in_file() else { continue };
        for data in map(file, range)? {
            found.push(ByteRange::new(data.offset - range.offset + piece.from, data.len));
        }
    }
    Ok(found)
}

fn zero(file: &DataFile, range: ByteRange, deallocate: bool, shared: &Shared) -> Result<(), Error> {
    if range.end() > size_of(file.file(), file.path())? {
        return Err(Error::PastEnd { path: file.path().to_owned(), end: range.end() });
    }
    let mut at = range.offset;
    while at < range.end() {
        shared.check()?;
        let step = ByteRange::new(at, (range.end() - at).min(ZERO_STEP_BYTES));
        if !give_up(file, step, deallocate)? {
            write_zeros(file, step, shared)?;
        }
        at = step.end();
    }
    Ok(())
}

/// Lets the file system or device make zeros; false when it cannot. Both ways also exist for block devices, where the kernel
/// guarantees zeros (a plain discard would not).
fn give_up(file: &DataFile, range: ByteRange, deallocate: bool) -> Result<bool, Error> {
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let punch = deallocate.then_some(FallocateFlags::FALLOC_FL_PUNCH_HOLE);
    for way in punch.into_iter().chain([FallocateFlags::FALLOC_FL_ZERO_RANGE]) {
        match fallocate(file.file(), way | keep, range.offset as i64, range.len as i64) {
            Ok(()) => return Ok(true),
            // EINVAL: a device whose blocks are larger than the range's alignment.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV) => {}
            Err(errno) => return Err(Error::io("zero a range of", file.path())(errno)),
        }
    }
    Ok(false)
}

fn map(file: &DataFile, range: ByteRange) -> Result<Vec<ByteRange>, Error> {
    let end = range.end().min(size_of(file.file(), file.path())?);
    let mut found = Vec::new();
    let mut at = range.offset;
    while at < end {
        let Some(mut data) = next_data(file, at, end)? else { break };
        if found.len() + 1 == MAP_RANGES_MAX {
            data.len = end - data.offset;
        }
        at = data.end();
        found.push(data);
    }
    Ok(found)
}

/// The first run of data in `[at, end)`. A file system that cannot say has data only.
fn next_data(file: &DataFile, at: u64, end: u64) -> Result<Option<ByteRange>, Error> {
    let start = match lseek64(file.file(), at as i64, Whence::SeekData) {
        Ok(start) => start.unsigned_abs().max(at),
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => at,
        Err(errno) => return Err(Error::io("map", file.path())(errno)),
    };
    if start >= end {
        return Ok(None);
    }
    let stop = match lseek64(file.file(), start as i64, Whence::SeekHole) {
        Ok(stop) if stop.unsigned_abs() > start => stop.unsigned_abs().min(end),
        _ => end, // no hole known behind it
    };
    Ok(Some(ByteRange::new(start, stop - start)))
}
