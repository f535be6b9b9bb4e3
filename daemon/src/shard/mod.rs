//! A shard: one thread with one current-thread runtime and one io_uring, which owns the cores of its volumes. Frontends' and
//! peers' sockets of these volumes are served on the same thread, so that no request crosses a thread.
//!
//! The driver is one task: it reaps the ring, hands every fact to the cores, carries out what they ask for, and submits to the
//! kernel once. Connections only hand requests in; the driver runs when they have handed in all that was ready, which is what
//! makes group commit. Where waits have been short it looks for the next fact a little before it sleeps (`patience`).

mod holds;
mod patience;
mod site;
mod slice;
mod target;
mod volume;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidemark_core::event::Grant;
use tidemark_core::types::Nanos;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Sleep;

use crate::disk::{Bell, Completion, Pool, Ring, RingOptions, VolumeKey};
use crate::here;
use patience::Patience;

pub use volume::{LayoutEvents, OpenVolume, Volume, VolumeEvents};

/// The agent's lease, as told to its shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// The grant.
    pub lease_gen: u64,
    /// When its newest renewal was sent.
    pub sent: Instant,
}

/// Something to do on the shard's thread.
type Command = Box<dyn FnOnce(&Rc<Shard>) + Send>;

/// The way to a shard from other threads.
#[derive(Clone)]
pub struct ShardHandle {
    commands: mpsc::UnboundedSender<Command>,
    index: u16,
}

/// The shard's thread is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard has stopped")]
pub struct Stopped;

impl ShardHandle {
    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Runs `f` on the shard's thread; false when the shard has stopped.
    pub fn send(&self, f: impl FnOnce(&Rc<Shard>) + Send + 'static) -> bool {
        self.commands.send(Box::new(f)).is_ok()
    }

    /// Runs `f` on the shard's thread and waits for what it gives.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Rc<Shard>, oneshot::Sender<T>) + Send + 'static,
    ) -> Result<T, Stopped> {
        let (answer, got) = oneshot::channel();
        if !self.send(move |shard| f(shard, answer)) {
            return Err(Stopped);
        }
        got.await.map_err(|_| Stopped)
    }
}

/// A running shard.
pub struct ShardThread {
    /// The way to it.
    pub handle: ShardHandle,
    thread: JoinHandle<()>,
}

impl ShardThread {
    /// Ends the thread after its commands so far. Volumes are closed before.
    pub fn join(self) {
        drop(self.handle);
        let _ = self.thread.join(); // a panic was logged by the hook
    }
}

/// The shard, on its own thread.
pub struct Shard {
    start: Instant,
    ring: RefCell<Ring>,
    /// Rings for a driver that sleeps.
    work: Notify,
    /// A core was handed something since the driver last ran.
    roused: Cell<bool>,
    /// The driver waits for `work` to ring.
    asleep: Cell<bool>,
    /// A message that somebody waits for was handed to a peer's stream since the last submission.
    hurry: Cell<bool>,
    volumes: RefCell<BTreeMap<u32, Rc<Volume>>>,
    /// The agent's lease, for volumes that are opened later.
    lease: Cell<Option<Held>>,
    next_key: Cell<u32>,
}

impl Shard {
    /// Now, on this shard's clock.
    pub fn now(&self) -> Nanos {
        self.at(Instant::now()).unwrap_or_default()
    }

    /// A moment on this shard's clock; `None` before the shard began.
    fn at(&self, moment: Instant) -> Option<Nanos> {
        moment.checked_duration_since(self.start).map(|since| Nanos(since.as_nanos() as u64 + 1))
    }

    /// The agent's lease was granted, renewed or (`None`) lost: every volume is told, and each that is opened later.
    pub fn hold_lease(&self, held: Option<Held>) {
        self.lease.set(held);
        for volume in self.volumes.borrow().values() {
            volume.told_lease(self.grant());
        }
    }

    /// The lease by this shard's clock.
    fn grant(&self) -> Option<Grant> {
        let held = self.lease.get()?;
        Some(Grant { lease_gen: held.lease_gen, sent: self.at(held.sent)? })
    }

    /// The memory of reads and of unaligned writes.
    pub fn pool(&self) -> Pool {
        self.ring.borrow().pool().clone()
    }

    fn rouse(&self) {
        self.roused.set(true);
        if self.asleep.get() {
            self.work.notify_one();
        }
    }

    fn new_key(&self) -> VolumeKey {
        let key = self.next_key.get();
        self.next_key.set(key + 1);
        VolumeKey(key)
    }

    /// Hands the results of finished operations to their volumes.
    fn reap(&self, done: &mut Vec<Completion>) -> Result<(), crate::disk::Error> {
        self.ring.borrow_mut().reap(done)?;
        let now = self.now();
        let volumes = self.volumes.borrow();
        for (key, token, result) in done.drain(..) {
            if let Some(volume) = volumes.get(&key.0) {
                volume.on_disk(now, token, result);
            }
        }
        Ok(())
    }

    /// Carries out what the cores ask for until none asks for more, but for the submission; gives the next moment at which the
    /// clock matters.
    fn drive(&self) -> Option<Nanos> {
        let mut timeout: Option<Nanos> = None;
        let volumes: Vec<Rc<Volume>> = self.volumes.borrow().values().cloned().collect();
        let now = self.now();
        for volume in volumes {
            let next = volume.drive(now, self);
            timeout = timeout.into_iter().chain(next).min();
            if volume.is_gone() {
                self.volumes.borrow_mut().remove(&volume.key().0);
            }
        }
        timeout
    }

    /// True when somebody waits for what a volume does next. Where nobody does, looking only takes the processor from others.
    fn is_awaited(&self, now: Instant) -> bool {
        let now = self.at(now).unwrap_or_default();
        self.volumes.borrow().values().any(|volume| volume.is_awaited(now))
    }

    async fn run(self: Rc<Self>, bell: Bell, mut patience: Patience) -> Result<(), crate::disk::Error> {
        let mut done = Vec::new();
        let mut alarm = pin!(tokio::time::sleep(REST));
        loop {
            self.roused.set(false);
            bell.hush();
            self.reap(&mut done)?;
            let wait = self.drive().map_or(REST, |at| Duration::from_nanos(at.since(self.now())));
            let hurries = self.hurry.take();
            if hurries {
                // The way to the peer is the longer one: its message leaves before the local disk is asked.
                tokio::task::yield_now().await;
            }
            self.ring.borrow_mut().submit()?;
            wind(alarm.as_mut(), wait);
            let began = Instant::now();
            let limit = if self.is_awaited(began) { patience.limit() } else { Duration::ZERO };
            if !self.look(began, limit, hurries).await {
                self.asleep.set(true);
                tokio::select! {
                    biased;
                    rung = bell.rung() => if rung.is_err() { return Ok(()) },
                    () = self.work.notified() => {}
                    () = &mut alarm => {}
                }
                self.asleep.set(false);
            }
            patience.waited(began.elapsed());
        }
    }

    /// Lets the other tasks run until there is something for the driver, or for `limit`; false when there was nothing. They run
    /// at least once in each turn of the driver (`have_run`: they did): a disk that always has something ready would else keep
    /// the shard from its sockets.
    async fn look(&self, began: Instant, limit: Duration, mut have_run: bool) -> bool {
        let has_work = || self.roused.get() || self.ring.borrow_mut().has_completions();
        while !has_work() {
            if began.elapsed() >= limit {
                return false;
            }
            tokio::task::yield_now().await;
            have_run = true;
        }
        if !have_run {
            tokio::task::yield_now().await;
        }
        true
    }
}

/// How long the driver sleeps when no core wants to look at the clock.
const REST: Duration = Duration::from_secs(3600);

/// Sees to it that `alarm` goes off no later than in `wait`. One that goes off earlier is left so: the driver then only finds
/// nothing to do, while each turn of the clock forward costs the runtime a system call and a turn of its loop.
fn wind(alarm: Pin<&mut Sleep>, wait: Duration) {
    let at = tokio::time::Instant::now() + wait;
    if alarm.is_elapsed() || at < alarm.deadline() {
        alarm.reset(at);
    }
}

/// How a shard is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardOptions {
    /// Its io_uring.
    pub ring: RingOptions,
    /// The most time that it looks for work before it sleeps; zero: none.
    pub poll: Duration,
}

/// Starts shard `index`.
///
/// # Errors
/// The ring cannot be made, or the thread.
pub fn start(index: u16, options: ShardOptions) -> std::io::Result<ShardThread> {
    let (commands, inbox) = mpsc::unbounded_channel();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error))),
        };
        runtime.block_on(serve(index, options, inbox, ready));
    })?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(ShardThread { handle: ShardHandle { commands, index }, thread }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(std::io::Error::other("the shard's thread ended at once")),
    }
}

async fn serve(
    index: u16,
    options: ShardOptions,
    mut inbox: mpsc::UnboundedReceiver<Command>,
    ready: std::sync::mpsc::Sender<std::io::Result<()>>,
) {
    let made = Ring::new(Pool::new(), options.ring).and_then(|ring| ring.bell().map(|bell| (ring, bell)));
    let (ring, bell) = match made {
        Ok(made) => made,
        Err(error) => return drop(ready.send(Err(std::io::Error::other(error)))),
    };
    if !options.poll.is_zero()
        && let Err(error) = slice::lengthen()
    {
        tracing::debug!(index, %error, "a shard that looks for work cannot ask to be interrupted");
    }
    let shard = Rc::new(Shard {
        start: Instant::now(),
        ring: RefCell::new(ring),
        work: Notify::new(),
        roused: Cell::new(false),
        asleep: Cell::new(false),
        hurry: Cell::new(false),
        volumes: RefCell::default(),
        lease: Cell::new(None),
        next_key: Cell::new(1),
    });
    let _ = ready.send(Ok(()));
    let driving = shard.clone().run(bell, Patience::new(options.poll));
    let driver = here::spawn(async move {
        if let Err(error) = driving.await {
            // Its volumes can neither be served nor failed any more: whoever starts agents is to start a new one.
            tracing::error!(index, %error, "the ring of a shard is unusable: the agent ends");
            std::process::abort();
        }
    });
    while let Some(command) = inbox.recv().await {
        command(&shard);
        shard.rouse();
    }
    driver.abort();
    tracing::debug!(index, "shard ended");
}
