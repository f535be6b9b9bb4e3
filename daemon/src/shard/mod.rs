//! A shard: one thread with one current-thread runtime and one io_uring, which owns the cores of its volumes. Frontends' and
//! peers' sockets of these volumes are served on the same thread, so that no request crosses a thread.
//!
//! The driver is one task: it reaps the ring, hands every fact to the cores, carries out what they ask for, and submits to the
//! kernel once. Connections only hand requests in; the driver runs when they have handed in all that was ready, which is what
//! makes group commit.

mod volume;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidemark_core::types::Nanos;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::disk::{Bell, Completion, Pool, Ring, RingOptions, VolumeKey};
use crate::here;

pub use volume::{OpenVolume, Volume, VolumeEvents};

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
    /// Rings when a core was handed something outside the driver.
    work: Notify,
    volumes: RefCell<BTreeMap<u32, Rc<Volume>>>,
    next_key: Cell<u32>,
}

impl Shard {
    /// Now, on this shard's clock.
    pub fn now(&self) -> Nanos {
        Nanos(self.start.elapsed().as_nanos() as u64 + 1)
    }

    /// The memory of reads and of unaligned writes.
    pub fn pool(&self) -> Pool {
        self.ring.borrow().pool().clone()
    }

    fn rouse(&self) {
        self.work.notify_one();
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

    /// Carries out what the cores ask for until none asks for more; gives the next moment at which the clock matters.
    fn drive(&self) -> Result<Option<Nanos>, crate::disk::Error> {
        let mut timeout: Option<Nanos> = None;
        let volumes: Vec<Rc<Volume>> = self.volumes.borrow().values().cloned().collect();
        let now = self.now();
        for volume in volumes {
            let next = volume.drive(now, &self.ring);
            timeout = timeout.into_iter().chain(next).min();
            if volume.is_gone() {
                self.volumes.borrow_mut().remove(&volume.key().0);
            }
        }
        self.ring.borrow_mut().submit()?;
        Ok(timeout)
    }

    async fn run(self: Rc<Self>, bell: Bell) -> Result<(), crate::disk::Error> {
        let mut done = Vec::new();
        loop {
            self.reap(&mut done)?;
            let wait = match self.drive()? {
                Some(at) => Duration::from_nanos(at.since(self.now())),
                None => Duration::from_secs(3600),
            };
            tokio::select! {
                biased;
                rung = bell.rung() => if rung.is_err() { return Ok(()) },
                () = self.work.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// Starts shard `index`.
///
/// # Errors
/// The ring cannot be made, or the thread.
pub fn start(index: u16, options: RingOptions) -> std::io::Result<ShardThread> {
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
    options: RingOptions,
    mut inbox: mpsc::UnboundedReceiver<Command>,
    ready: std::sync::mpsc::Sender<std::io::Result<()>>,
) {
    let made = Ring::new(Pool::new(), options).and_then(|ring| ring.bell().map(|bell| (ring, bell)));
    let (ring, bell) = match made {
        Ok(made) => made,
        Err(error) => return drop(ready.send(Err(std::io::Error::other(error)))),
    };
    let shard = Rc::new(Shard {
        start: Instant::now(),
        ring: RefCell::new(ring),
        work: Notify::new(),
        volumes: RefCell::default(),
        next_key: Cell::new(1),
    });
    let _ = ready.send(Ok(()));
    let driver = here::spawn(shard.clone().run(bell));
    while let Some(command) = inbox.recv().await {
        command(&shard);
        shard.rouse();
    }
    driver.abort();
    tracing::debug!(index, "shard ended");
}
