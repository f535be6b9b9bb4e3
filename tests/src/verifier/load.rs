//! Threads that keep a server busy and check what it says, until the server is gone; and the check of everything after it
//! came back.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::model::{Model, Violation};
use super::nbd::{Command, Nbd, NbdError};
use super::pattern::{Found, SECTOR, fill, recognize};
use crate::dice::Dice;

/// The longest request in sectors.
const MAX_SECTORS: u64 = 64;
/// Sectors of 4 KiB: the unit of discards, which may leave smaller edges as they are.
const BLOCK_SECTORS: u64 = 8;
/// Sectors that get a third of all requests, so that versions pile up.
const HOT_SECTORS: u64 = 2048;
/// Bytes of one read of the whole check.
const CHECK_BYTES: usize = 1 << 20;
/// Pause between two tries to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// What is verified, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// The server's socket.
    pub socket: PathBuf,
    /// The export's name.
    pub export: String,
    /// Bytes of the export, a multiple of 4096, all zeros at the beginning.
    pub size: u64,
    /// Connections, with one request each.
    pub workers: u32,
    /// A request that takes longer is stuck.
    pub patience: Duration,
    /// Chooses the requests.
    pub seed: u64,
}

/// What was done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Reads that were checked.
    pub reads: u64,
    /// Writes, zeros and discards that were answered.
    pub writes: u64,
    /// Flushes that were answered.
    pub flushes: u64,
    /// Requests without an answer, or with an error.
    pub unanswered: u64,
    /// Checks of everything.
    pub checks: u64,
    /// The request that took longest.
    pub slowest: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Run,
    Pause,
    Stop,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// Raised by each resumption: who lost its connection waits for the next.
    resumption: u64,
    idle: u32,
    counts: Counts,
    /// Why a connection was given up since the last resumption.
    broken: Option<String>,
    /// What the server must never do, or a stuck request.
    failure: Option<String>,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    model: Mutex<Model>,
    state: Mutex<State>,
    changed: Condvar,
}

/// Why a worker did not finish a request.
enum Trouble {
    Broken(NbdError),
    Wrong(Violation),
}

/// A running load. Dropping it ends the threads.
#[derive(Debug)]
pub struct Verifier {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Verifier {
    /// Starts the load.
    pub fn start(target: Target) -> Self {
        let state =
            State { order: Order::Run, resumption: 0, idle: 0, counts: Counts::default(), broken: None, failure: None };
        let model = Mutex::new(Model::new(target.size / SECTOR as u64));
        let shared = Arc::new(Shared { model, state: Mutex::new(state), changed: Condvar::new(), target });
        let mut dice = Dice::new(shared.target.seed);
        let threads = (0..shared.target.workers).map(|_| {
            let (shared, dice) = (Arc::clone(&shared), Dice::new(dice.number()));
            std::thread::spawn(move || Worker { shared, dice, connection: None, resumption: 0 }.work())
        });
        Self { threads: threads.collect(), shared }
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.shared.state().counts
    }

    /// That nothing went wrong, and no connection was lost since the last resumption.
    ///
    /// # Errors
    /// With what did.
    pub fn expect_unbroken(&self) -> Result<()> {
        self.expect_no_failure()?;
        let broken = self.shared.state().broken.clone();
        broken.map_or(Ok(()), |reason| bail!("a connection broke although its server was left alone: {reason}"))
    }

    fn expect_no_failure(&self) -> Result<()> {
        let failure = self.shared.state().failure.clone();
        failure.map_or(Ok(()), |failure| bail!(failure))
    }

    /// Stops the load; returns when no request is under way.
    ///
    /// # Errors
    /// When something went wrong before.
    pub fn pause(&self) -> Result<()> {
        let mut state = self.shared.state();
        state.order = Order::Pause;
        self.shared.changed.notify_all();
        while state.idle < self.shared.target.workers {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.expect_no_failure()
    }

    /// Goes on after [`Self::pause`].
    pub fn resume(&self) {
        let mut state = self.shared.state();
        state.order = Order::Run;
        state.resumption += 1;
        state.broken = None;
        self.shared.changed.notify_all();
    }

    /// After a crash of the server, and paused: reads everything and holds it against what is known. Waits for the server to
    /// come back, at most as long as for a request.
    ///
    /// # Errors
    /// What the crash must not have done.
    pub fn check(&self) -> Result<()> {
        self.check_at(&self.shared.target.socket)
    }

    /// The same of another server that has taken over.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_at(&self, socket: &Path) -> Result<()> {
        let mut connection = self.shared.connect(socket).context("the server does not come back")?;
        let found = read_all(&mut connection, self.shared.target.size)?;
        self.shared.state().counts.checks += 1;
        Ok(self.shared.model().after_crash(&found)?)
    }

    /// Ends the load.
    ///
    /// # Errors
    /// When something went wrong.
    pub fn stop(self) -> Result<Counts> {
        self.pause()?;
        Ok(self.counts())
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.shared.state().order = Order::Stop;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in there was printed; a second one here would hide it.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, socket: &Path) -> Result<Nbd, NbdError> {
        let deadline = Instant::now() + self.target.patience;
        loop {
            match Nbd::connect(socket, &self.target.export, self.target.patience) {
                Err(NbdError::Ended(_) | NbdError::Refused(_)) if Instant::now() < deadline => {
                    std::thread::sleep(CONNECT_PAUSE);
                }
                other => return other,
            }
        }
    }

    /// Waits while there is nothing to do for a worker; false at the end.
    fn wait_for_turn(&self, may_go: impl Fn(&State) -> bool) -> bool {
        let mut state = self.state();
        state.idle += 1;
        self.changed.notify_all();
        while state.order != Order::Stop && !may_go(&state) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle -= 1;
        state.order != Order::Stop
    }
}

/// What every sector holds.
///
/// # Errors
/// When it cannot be read.
pub fn read_all(connection: &mut Nbd, size: u64) -> Result<Vec<Found>, NbdError> {
    let mut found = Vec::with_capacity(size as usize / SECTOR);
    let mut data = vec![0; CHECK_BYTES];
    for offset in (0..size).step_by(CHECK_BYTES) {
        data.truncate((size - offset) as usize);
        connection.read(offset, &mut data)?;
        let sectors = (offset / SECTOR as u64..).zip(data.chunks_exact(SECTOR));
        found.extend(sectors.map(|(sector, bytes)| recognize(bytes, sector)));
    }
    Ok(found)
}

struct Worker {
    shared: Arc<Shared>,
    dice: Dice,
    connection: Option<Nbd>,
    /// The resumption that this worker goes on in; none without a connection it may use.
    resumption: u64,
}

impl Worker {
    fn work(mut self) {
        loop {
            let (own, connected) = (self.resumption, self.connection.is_some());
            let may_go = move |state: &State| {
                state.order == Order::Run && state.failure.is_none() && (connected || state.resumption >= own)
            };
            if !self.shared.wait_for_turn(may_go) {
                return;
            }
            if let Err(trouble) = self.step() {
                self.give_up(trouble);
            }
        }
    }

    fn give_up(&mut self, trouble: Trouble) {
        self.connection = None;
        let mut state = self.shared.state();
        self.resumption = state.resumption + 1;
        match trouble {
            Trouble::Broken(NbdError::Stuck(patience)) => {
                state.failure.get_or_insert(format!("a request was stuck for {patience:?}"));
            }
            Trouble::Broken(error) => {
                state.counts.unanswered += 1;
                state.broken.get_or_insert(error.to_string());
            }
            Trouble::Wrong(violation) => {
                state.failure.get_or_insert(violation.to_string());
            }
        }
    }

    fn step(&mut self) -> Result<(), Trouble> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.shared.connect(&self.shared.target.socket).map_err(Trouble::Broken)?,
        };
        let begun = Instant::now();
        self.request(&mut connection)?;
        self.connection = Some(connection);
        let mut state = self.shared.state();
        state.counts.slowest = state.counts.slowest.max(begun.elapsed());
        Ok(())
    }

    fn request(&mut self, connection: &mut Nbd) -> Result<(), Trouble> {
        match self.dice.below(100) {
            0..50 => self.write(connection, false),
            50..53 => self.write(connection, true),
            53..56 => self.zero(connection, Command::WriteZeroes),
            56..58 => self.zero(connection, Command::Trim),
            58..88 => self.read(connection),
            _ => self.flush(connection),
        }
    }

    fn write(&mut self, connection: &mut Nbd, fua: bool) -> Result<(), Trouble> {
        let unit = if self.dice.happens(0.7) { BLOCK_SECTORS } else { 1 };
        let Some((sectors, number)) = self.begin_write(unit, false) else { return Ok(()) };
        let mut data = vec![0; (sectors.end - sectors.start) as usize * SECTOR];
        fill(&mut data, sectors.start, number);
        let result = connection.write(sectors.start * SECTOR as u64, &data, fua);
        self.end_write(number, fua, result)
    }

    fn zero(&mut self, connection: &mut Nbd, command: Command) -> Result<(), Trouble> {
        let Some((sectors, number)) = self.begin_write(BLOCK_SECTORS, true) else { return Ok(()) };
        let len = (sectors.end - sectors.start) * SECTOR as u64;
        let result = connection.plain(command, sectors.start * SECTOR as u64, len);
        self.end_write(number, false, result)
    }

    fn begin_write(&mut self, unit: u64, is_zero: bool) -> Option<(Range<u64>, u64)> {
        let sectors = self.range(unit);
        let mut model = self.shared.model();
        model.is_free(&sectors, true).then(|| (sectors.clone(), model.begin_write(sectors, is_zero)))
    }

    fn end_write(&self, number: u64, fua: bool, result: Result<(), NbdError>) -> Result<(), Trouble> {
        match &result {
            Ok(()) => self.shared.model().end_write(number, fua),
            Err(_) => self.shared.model().lose_write(number),
        }
        result.map_err(Trouble::Broken)?;
        self.shared.state().counts.writes += 1;
        Ok(())
    }

    fn read(&mut self, connection: &mut Nbd) -> Result<(), Trouble> {
        let sectors = self.range(1);
        {
            let mut model = self.shared.model();
            if !model.is_free(&sectors, false) {
                return Ok(());
            }
            model.begin_read(sectors.clone());
        }
        let mut data = vec![0; (sectors.end - sectors.start) as usize * SECTOR];
        let result = connection.read(sectors.start * SECTOR as u64, &mut data);
        let data = result.is_ok().then_some(&data[..]);
        self.shared.model().end_read(sectors, data).map_err(Trouble::Wrong)?;
        result.map_err(Trouble::Broken)?;
        self.shared.state().counts.reads += 1;
        Ok(())
    }

    fn flush(&mut self, connection: &mut Nbd) -> Result<(), Trouble> {
        let flush = self.shared.model().begin_flush();
        connection.plain(Command::Flush, 0, 0).map_err(Trouble::Broken)?;
        self.shared.model().end_flush(flush);
        self.shared.state().counts.flushes += 1;
        Ok(())
    }

    /// A range of whole units.
    fn range(&mut self, unit: u64) -> Range<u64> {
        let all = self.shared.target.size / SECTOR as u64;
        let space = if self.dice.happens(0.33) { HOT_SECTORS.min(all) } else { all };
        let first = self.dice.below(space / unit) * unit;
        let len = (self.dice.below(MAX_SECTORS / unit) + 1) * unit;
        first..(first + len).min(all)
    }
}
