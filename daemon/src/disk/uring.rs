//! The io_uring of one shard: every read, write and sync of its volumes, and the worker for what has no opcode.
//!
//! ```text
//! queue() -> backlog -> submission ring -> kernel -> completion ring -> reap()
//!      \-> lull -^           ^ submit(): one io_uring_enter for all of it
//! ```
//!
//! Writes to a base image are nobody's answer: they wait for a `lull`. Everything else goes at once. Writes to a log that follow
//! each other and are queued in one go are one to the kernel: a replica takes what its primary gathered frame by frame, and each
//! write of its own would cost the device and both processors as much as all of them together.
//!
//! Invariants:
//! 1. `in_flight` counts the submissions whose completion was not seen; it never exceeds [`IN_FLIGHT_MAX`], which the
//!    completion ring can hold, so no completion is ever dropped.
//! 2. An operation stays in its cell, memory, descriptors and locks included, until the last of its submissions completed.
//! 3. Every queued operation comes out of [`Ring::reap`] exactly once, in no particular order.
//!
//! Cost: a write of aligned pieces allocates nothing here once the ring is warm; a read takes one pooled buffer and one small
//! allocation for its [`bytes::Bytes`].
#![allow(unsafe_code)] // submission entries carry raw pointers and descriptors

mod base;

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use io_uring::{IoUring, types};
use libc::iovec;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tidemark_core::event::{DiskDone, DiskOp, DiskResult, DiskToken, FileRef};
use tidemark_core::types::ByteRange;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Error;
use super::blocking::{Task, Worker};
use super::buffer::Pool;
use super::complaints::Complaints;
use super::data_file::DataFile;
use super::files::VolumeFiles;
use super::joint::Joints;
use super::lull::Lull;
use super::operation::{Cells, Op, Submission, SyncSet, Work, entry};
use super::transfer::{Step, Transfer};

/// Submissions that one `io_uring_enter` can carry.
pub const SUBMISSIONS_MAX: u32 = 512;
/// Submissions between queueing and completion in the kernel; more wait in the backlog, which is bounded by what the cores
/// have outstanding.
pub const IN_FLIGHT_MAX: u32 = 2048;
/// How long dropping a ring waits for the kernel. Afterwards the memory of what is in flight is leaked, not freed.
pub const DRAIN: Duration = Duration::from_secs(30);
/// Emptied vectors kept for the next transfers: as many as are usually in flight at once.
const SPARE_MAX: usize = 256;
/// Longer vectors are freed: few frames have that many pieces.
const SPARE_VECTORS_MAX: usize = 256;
/// How often a submission that the kernel has no room for is repeated when nothing in flight could make room.
const ENTER_RETRIES_MAX: u32 = 1000;

/// Names a volume within its shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VolumeKey(pub u32);

/// The end of an operation.
pub type Completion = (VolumeKey, DiskToken, DiskResult);

/// How the ring is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RingOptions {
    /// IORING_SETUP_DEFER_TASKRUN: completions are worked on only when the shard asks. Fewer interruptions, but the measured
    /// sequential throughput was better without. Ignored where the kernel does not know it (before 6.1).
    pub defer_taskrun: bool,
}

/// What [`DiskOp::Write`] says.
struct Write {
    file: FileRef,
    offset: u64,
    bufs: Vec<bytes::Bytes>,
    durable: bool,
}

/// The ring of a shard. Stays on the thread that made it.
pub struct Ring {
    ring: IoUring,
    wake: Arc<EventFd>,
    pool: Pool,
    worker: Worker,
    cells: Cells,
    joints: Joints,
    backlog: VecDeque<Submission>,
    /// Writes to base images, for the backlog when little else is under way.
    lull: Lull,
    in_flight: u32,
    /// The write to a log that was queued last and has not been submitted: one that continues it goes with it.
    joinable: Option<u32>,
    /// Ended without the kernel.
    ended: Vec<Completion>,
    /// Emptied vectors of past transfers.
    spare: Vec<Vec<iovec>>,
    /// The completions being worked on; kept for its memory.
    batch: Vec<(u64, i32)>,
    complaints: Complaints,
    pub(super) drain: Duration,
    /// SINGLE_ISSUER: only the creating thread may submit.
    _not_send: PhantomData<Rc<()>>,
}

/// Rings at every completion; independent of the [`Ring`]'s own borrow, so that a task can wait while others queue.
pub struct Bell {
    fd: AsyncFd<OwnedFd>,
}

impl Bell {
    /// Waits until something may have ended since the last call; reap afterwards. Cancel-safe.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn rung(&self) -> io::Result<()> {
        // The eventfd is polled by edge and each completion is one: its counter needs no reading.
        self.fd.readable().await.map(|mut guard| guard.clear_ready())
    }

    /// Forgets that it rang: for who reaps next anyway.
    pub fn hush(&self) {
        if let Poll::Ready(Ok(mut guard)) = self.fd.poll_read_ready(&mut Context::from_waker(Waker::noop())) {
            guard.clear_ready();
        }
    }
}

impl Ring {
    /// Sets the ring up on the calling thread, which is the only one that may use it.
    ///
    /// # Errors
    /// [`Error::Ring`] when the kernel has no io_uring, forbids it, or has no room.
    pub fn new(pool: Pool, options: RingOptions) -> Result<Self, Error> {
        let ring = build(options).map_err(failed("set up"))?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake =
            EventFd::from_value_and_flags(0, flags).map_err(|errno| failed("make an eventfd for")(errno.into()))?;
        ring.submitter().register_eventfd(wake.as_fd().as_raw_fd()).map_err(failed("register an eventfd with"))?;
        let _ = ring.submitter().register_ring_fd(); // only saves a lookup per call; kernels before 5.18 cannot
        let wake = Arc::new(wake);
        let worker = Worker::start(pool.clone(), Arc::clone(&wake)).map_err(failed("start the worker of"))?;
        Ok(Self {
            ring,
            wake,
            pool,
            worker,
            cells: Cells::default(),
            joints: Joints::default(),
            backlog: VecDeque::new(),
            lull: Lull::default(),
            in_flight: 0,
            joinable: None,
            ended: Vec::new(),
            spare: Vec::new(),
            batch: Vec::new(),
            complaints: Complaints::default(),
            drain: DRAIN,
            _not_send: PhantomData,
        })
    }

    /// What tells that there may be something to reap. Called inside a tokio runtime with I/O enabled.
    pub fn bell(&self) -> Result<Bell, Error> {
        let fd = self.wake.as_fd().try_clone_to_owned().map_err(failed("duplicate the eventfd of"))?;
        // SAFETY: the descriptor is owned by the `AsyncFd`, which does not hand it out: it stays open and the same until then.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        fd.map(|fd| Bell { fd }).map_err(|error| failed("watch the eventfd of")(error.into()))
    }

    /// The memory that reads land in and unaligned writes are copied to.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Operations of a volume that have not come out of [`Self::reap`].
    pub fn in_flight(&self, volume: VolumeKey) -> usize {
        let in_cells = self.cells.count(volume);
        let ended = self.ended.iter().filter(|(ended, ..)| *ended == volume).count();
        in_cells + ended + self.worker.in_flight(volume)
    }

    /// Takes an operation of a volume. Nothing reaches the kernel before [`Self::submit`].
    pub fn queue(&mut self, volume: VolumeKey, token: DiskToken, op: DiskOp, files: &VolumeFiles) {
        let queued = match op {
            DiskOp::Write { file, offset, bufs, durable } => {
                self.queue_write(volume, token, files, Write { file, offset, bufs, durable })
            }
            DiskOp::Read { file, offset, len } => self.queue_read(volume, token, files, file, offset, len),
            DiskOp::Sync { files: set } => self.queue_sync(volume, token, files, &set),
            // Rare and short (a truncate and a sync for each base), and the bases in `files` belong to this thread.
            DiskOp::Grow { layout } => files.make_room(&layout).map(|_| self.end(volume, token, Ok(DiskDone::Done))),
            other => Task::new(other, files).map(|task| self.worker.submit(volume, token, task)),
        };
        if let Err(error) = queued {
            self.end(volume, token, Err(error.told(volume)));
        }
    }

    /// Hands everything queued to the kernel, in one system call unless there is more than [`SUBMISSIONS_MAX`]; without any
    /// when nothing is queued.
    ///
    /// # Errors
    /// [`Error::Ring`]: the ring is unusable.
    pub fn submit(&mut self) -> Result<(), Error> {
        self.joinable = None;
        let is_busy = !self.backlog.is_empty() || self.in_flight > self.lull.under_way();
        self.lull.release(is_busy, &mut self.backlog);
        loop {
            self.fill();
            if self.ring.submission().is_empty() {
                return Ok(());
            }
            if !self.enter()? {
                return Ok(());
            }
        }
    }

    /// Moves the results of what ended to `out`, and submits what became possible: the rest of short transfers, the backlog.
    ///
    /// # Errors
    /// [`Error::Ring`]: the ring is unusable.
    pub fn reap(&mut self, out: &mut Vec<Completion>) -> Result<(), Error> {
        if self.ring.submission().taskrun() {
            self.enter()?;
        }
        self.reap_completions(out);
        self.worker.collect(out);
        out.append(&mut self.ended);
        self.submit()
    }

    /// True when a submission has ended that was not reaped.
    pub fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    fn reap_completions(&mut self, out: &mut Vec<Completion>) {
        let mut batch = std::mem::take(&mut self.batch);
        batch.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (cell, result) in batch.drain(..) {
            self.in_flight -= 1;
            self.on_completion(cell as u32, result, out);
        }
        self.batch = batch;
    }

    fn queue_write(
        &mut self,
        volume: VolumeKey,
        token: DiskToken,
        files: &VolumeFiles,
        write: Write,
    ) -> Result<(), Error> {
        let Write { file, offset, bufs, durable } = write;
        let is_log = matches!(file, FileRef::Log(_));
        if bufs.iter().all(|piece| piece.is_empty()) {
            self.end(volume, token, Ok(DiskDone::Done));
            return Ok(());
        }
        if file == FileRef::Base {
            return self.queue_base_write(volume, token, files, Write { file, offset, bufs, durable });
        }
        let file = files.file(file)?;
        let len: u64 = bufs.iter().map(|piece| piece.len() as u64).sum();
        check_range(files, offset, len)?;
        if let Some(op) = self.joinable.map(|cell| self.cells.at(cell)).filter(|op| op.volume == volume)
            && let Work::Transfer(transfer) = &mut op.work
            && transfer.is_continued_by(&file, offset, len, durable)
        {
            transfer.join(bufs, &self.pool);
            op.joined.push(token);
            return Ok(());
        }
        let work = self.write_to(file, offset, bufs, durable);
        self.joinable = Some(self.start(Op::new(volume, token, work, 0), 1)).filter(|_| is_log);
        Ok(())
    }

    fn write_to(&mut self, file: Arc<DataFile>, offset: u64, bufs: Vec<bytes::Bytes>, durable: bool) -> Work {
        let vectors = self.spare.pop().unwrap_or_default();
        Work::Transfer(Transfer::write(file, offset, bufs, &self.pool, vectors).durable(durable))
    }

    fn queue_read(
        &mut self,
        volume: VolumeKey,
        token: DiskToken,
        files: &VolumeFiles,
        file: FileRef,
        offset: u64,
        len: u32,
    ) -> Result<(), Error> {
        if len == 0 {
            self.end(volume, token, Ok(DiskDone::Read(bytes::Bytes::new())));
            return Ok(());
        }
        check_range(files, offset, u64::from(len))?;
        let range = ByteRange::new(offset, len.into());
        let place = match file {
            FileRef::Base => files.base_at(range),
            other => Some((files.file(other)?, offset)),
        };
        match place {
            Some((file, at)) => {
                let work = self.read_from(file, at, len);
                self.start(Op::new(volume, token, work, 0), 1);
                Ok(())
            }
            None => self.queue_base_read(volume, token, files, range),
        }
    }

    fn read_from(&mut self, file: Arc<DataFile>, offset: u64, len: u32) -> Work {
        let vectors = self.spare.pop().unwrap_or_default();
        Work::Transfer(Transfer::read(file, offset, len, &self.pool, vectors))
    }

    fn queue_sync(
        &mut self,
        volume: VolumeKey,
        token: DiskToken,
        files: &VolumeFiles,
        set: &[FileRef],
    ) -> Result<(), Error> {
        let mut synced = Vec::with_capacity(set.len());
        for file in set {
            match file {
                FileRef::Base => synced.extend(files.base_files()?),
                other => synced.push(files.file(*other)?),
            }
        }
        let files = synced;
        if files.is_empty() {
            self.end(volume, token, Ok(DiskDone::Done));
            return Ok(());
        }
        let parts = files.len() as u32;
        self.start(Op::new(volume, token, Work::Sync(SyncSet::new(files)), 0), parts);
        Ok(())
    }

    fn keep_spare(&mut self, vectors: Vec<iovec>) {
        if self.spare.len() < SPARE_MAX && vectors.capacity() <= SPARE_VECTORS_MAX {
            self.spare.push(vectors);
        }
    }

    fn start(&mut self, op: Op, parts: u32) -> u32 {
        let cell = self.cells.insert(op);
        self.backlog.extend((0..parts).map(|part| Submission { cell, part }));
        cell
    }

    /// Ends an operation without the kernel.
    fn end(&mut self, volume: VolumeKey, token: DiskToken, result: DiskResult) {
        self.ended.push((volume, token, result));
        let _ = self.wake.write(1); // fails only when the counter is full, and then it is raised
    }

    /// Moves the backlog into the submission ring as far as there is room.
    fn fill(&mut self) {
        while self.in_flight < IN_FLIGHT_MAX
            && let Some(submission) = self.backlog.front().copied()
        {
            let entry = entry(&self.cells.at(submission.cell).work, submission);
            // SAFETY: the entry points into memory and names descriptors that the operation in its cell owns, and the
            // operation stays there unchanged until the entry's completion (invariant 2).
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
            self.in_flight += 1;
        }
    }

    /// One `io_uring_enter`; false when the kernel had no room and something in flight will make some.
    fn enter(&mut self) -> Result<bool, Error> {
        let offered = self.ring.submission().len();
        for _ in 0..ENTER_RETRIES_MAX {
            match self.ring.submitter().submit() {
                Ok(taken) if taken > 0 || offered == 0 => return Ok(true),
                Err(error) if !is_temporary(&error) => return Err(failed("enter")(error)),
                _ if self.in_kernel() > 0 => return Ok(false),
                _ => std::thread::yield_now(),
            }
        }
        Err(failed("enter")(io::Error::from_raw_os_error(libc::EAGAIN)))
    }

    /// Submissions that the kernel has taken and not completed.
    fn in_kernel(&mut self) -> u32 {
        self.in_flight - self.ring.submission().len() as u32
    }

    fn on_completion(&mut self, cell: u32, result: i32, out: &mut Vec<Completion>) {
        let op = self.cells.at(cell);
        let (ended, errno) = match &mut op.work {
            Work::Transfer(transfer) => match transfer.on_result(result) {
                Step::Again => {
                    return self.backlog.push_back(Submission { cell, part: 0 });
                }
                Step::Ended(ended, errno) => (ended, errno),
            },
            Work::Sync(sync) => match sync.on_result(result) {
                Some(ended) => (ended, sync.errno()),
                None => return,
            },
        };
        if ended.is_ok()
            && let Some(sync) = op.work.sync_after()
        {
            op.work = sync;
            return self.backlog.push_back(Submission { cell, part: 0 });
        }
        let op = self.cells.remove(cell);
        if op.base_bytes > 0 {
            self.lull.ended(op.base_bytes);
        }
        match op.share {
            Some(share) => out.extend(self.joints.on_ended(share, ended.clone())),
            None => out.extend(op.ends(&ended)),
        }
        if let Err(error) = ended {
            self.complaints.raise(&op, error, errno);
        }
        if let Work::Transfer(transfer) = op.work {
            self.keep_spare(transfer.into_vectors());
        }
    }
}

impl Drop for Ring {
    /// Waits for the kernel and the worker, [`DRAIN`] at most. What was not yet submitted is dropped.
    fn drop(&mut self) {
        let deadline = Instant::now() + self.drain;
        self.backlog.clear();
        self.lull.clear();
        let drained = self.drain_until(deadline);
        let stopped = self.worker.stop(deadline.saturating_duration_since(Instant::now()));
        if !drained {
            // The kernel may still write to this memory: it must never be used for anything else.
            std::mem::forget(std::mem::take(&mut self.cells));
        }
        if !drained || !stopped {
            tracing::error!(in_flight = self.in_flight, "the disk did not answer before the ring was closed");
        }
        let _ = self.ring.submitter().unregister_ring_fd(); // was perhaps never registered
    }
}

impl Ring {
    /// True when nothing is in flight any more.
    fn drain_until(&mut self, deadline: Instant) -> bool {
        let mut unwanted = Vec::new();
        while self.in_flight > 0 {
            let patience = deadline.saturating_duration_since(Instant::now());
            if patience.is_zero() || !self.wait(patience) {
                return false;
            }
            self.reap_completions(&mut unwanted);
            self.backlog.clear(); // short transfers are not continued
            unwanted.clear();
        }
        true
    }

    /// Waits for a completion; false when the ring does not work.
    fn wait(&mut self, patience: Duration) -> bool {
        let timeout = types::Timespec::from(patience);
        let args = types::SubmitArgs::new().timespec(&timeout);
        match self.ring.submitter().submit_with_args(1, &args) {
            Ok(_) => true,
            Err(error) => is_temporary(&error) || error.raw_os_error() == Some(libc::ETIME),
        }
    }
}

/// The best ring that this kernel gives.
fn build(options: RingOptions) -> io::Result<IoUring> {
    let attempts = [(true, options.defer_taskrun), (true, false), (false, false)];
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for (modern, defer) in attempts {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(IN_FLIGHT_MAX).setup_clamp().dontfork();
        if modern {
            builder.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        if defer {
            builder.setup_defer_taskrun();
        }
        match builder.build(SUBMISSIONS_MAX) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            other => return other,
        }
    }
    Err(refused)
}

/// File offsets are signed for the kernel, and -1 means "wherever the descriptor stands".
fn check_range(files: &VolumeFiles, offset: u64, len: u64) -> Result<(), Error> {
    let end = offset.saturating_add(len);
    if end > i64::MAX as u64 { Err(Error::PastEnd { path: files.dir().to_owned(), end }) } else { Ok(()) }
}

/// The kernel was interrupted or has no room now.
fn is_temporary(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

fn failed(attempt: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Ring { attempt, source }
}
