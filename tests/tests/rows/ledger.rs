//! A client that writes numbers, one after the other, each durable when it is answered, wherever the volume is served; and what was
//! answered has to be there at the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tidemark_tests::agents::Cli;
use tidemark_tests::verifier::Nbd;
use tidemark_tests::verifier::nbd::Command;

use super::{NAME, PATIENCE};

/// Bytes of a number, with what fills its block.
pub const BLOCK: usize = 4096;
/// Numbers go round.
const BLOCKS: u64 = 1024;
/// A request that waits longer is given up, and the volume looked for anew.
const STUCK: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);
/// Between two writes: a load that leaves the machine to the agents.
const PACE: Duration = Duration::from_millis(2);

/// The client. It ends when the value is dropped.
pub struct Ledger {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// It is to have no connection, and has none.
    rest: AtomicBool,
    rests: AtomicBool,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    /// The newest answered number of each block.
    answered: BTreeMap<u64, u64>,
    /// The newest that was asked for.
    asked: u64,
    count: u64,
    last: Option<Instant>,
    /// The longest time between two answers.
    pause: Duration,
}

impl Ledger {
    /// Begins to write where one of these agents serves.
    pub fn start(agents: [Cli; 2]) -> Self {
        let shared = Arc::<Shared>::default();
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || shared.run(&agents)
        });
        Self { shared, thread: Some(thread) }
    }

    fn book<T>(&self, look: impl FnOnce(&mut Book) -> T) -> T {
        look(&mut self.shared.book.lock().expect("no panic"))
    }

    /// Lets go of the volume while `work` is done, as whoever mounts it does for a switchover.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn away<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.shared.rest.store(true, Ordering::SeqCst);
        while !self.shared.rests.load(Ordering::SeqCst) {
            std::thread::sleep(PAUSE);
        }
        let done = work();
        self.shared.rest.store(false, Ordering::SeqCst);
        done
    }

    /// Numbers answered so far.
    pub fn count(&self) -> u64 {
        self.book(|book| book.count)
    }

    /// The longest time without an answer since this was asked last.
    pub fn take_pause(&self) -> Duration {
        self.book(|book| std::mem::take(&mut book.pause))
    }

    /// Waits for some more answers.
    ///
    /// # Errors
    /// When they do not come.
    pub fn goes_on(&self) -> Result<()> {
        let (before, deadline) = (self.count(), Instant::now() + PATIENCE);
        while self.count() < before + 20 {
            ensure!(Instant::now() < deadline, "no flush is answered");
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Watches for some time that nothing is answered.
    ///
    /// # Errors
    /// When something is.
    pub fn stands_still(&self, time: Duration) -> Result<()> {
        let before = self.count();
        std::thread::sleep(time);
        ensure!(self.count() == before, "{} flushes were answered", self.count() - before);
        Ok(())
    }

    /// Ends it, and looks for all that was answered at the agent of `cli`.
    ///
    /// # Errors
    /// When something is missing.
    pub fn audit(mut self, cli: &Cli) -> Result<()> {
        self.end();
        let mut nbd = connect(cli, PATIENCE)?;
        self.book(|book| {
            for (&block, &number) in &book.answered {
                let mut found = [0; BLOCK];
                nbd.read(block * BLOCK as u64, &mut found)?;
                let found = u64::from_le_bytes(found[..8].try_into()?);
                let is_there = (number..=book.asked).contains(&found) && found % BLOCKS == block;
                ensure!(is_there, "number {number} was answered, and block {block} holds {found}");
            }
            ensure!(book.count > 0, "nothing was ever answered");
            Ok(())
        })
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic of it has shown itself
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn run(&self, agents: &[Cli; 2]) {
        let mut connection = None;
        while !self.stop.load(Ordering::SeqCst) {
            let rests = self.rest.load(Ordering::SeqCst);
            if rests {
                connection = None;
            }
            self.rests.store(rests, Ordering::SeqCst);
            if rests {
                std::thread::sleep(PAUSE);
                continue;
            }
            match connection.take().map_or_else(|| serving(agents), Ok) {
                Ok(mut nbd) => {
                    if self.write_next(&mut nbd).is_ok() {
                        connection = Some(nbd);
                    }
                    std::thread::sleep(PACE);
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn write_next(&self, nbd: &mut Nbd) -> Result<()> {
        let number = {
            let mut book = self.book.lock().expect("no panic");
            book.asked += 1;
            book.asked
        };
        let block = number % BLOCKS;
        let mut content = [0; BLOCK];
        content[..8].copy_from_slice(&number.to_le_bytes());
        nbd.write(block * BLOCK as u64, &content, true)?;
        let mut book = self.book.lock().expect("no panic");
        let now = Instant::now();
        let pause = book.last.map_or(Duration::ZERO, |last| now - last);
        book.pause = book.pause.max(pause);
        book.last = Some(now);
        book.count += 1;
        book.answered.insert(block, number);
        Ok(())
    }
}

/// A connection to whichever agent is the primary.
fn serving(agents: &[Cli; 2]) -> Result<Nbd> {
    for cli in agents {
        if cli.show(NAME).is_ok_and(|view| view.role() == "primary") {
            return connect(cli, STUCK);
        }
    }
    bail!("nobody serves")
}

/// Fills much of the rest of the volume, so that a copy of all of it would show.
///
/// # Errors
/// When a write fails.
pub fn fill(cli: &Cli, bytes: u64) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    let mut nbd = connect(cli, PATIENCE)?;
    let begin = BLOCKS * BLOCK as u64;
    for offset in (begin..begin + bytes).step_by(PIECE as usize) {
        nbd.write(offset, &vec![(offset / PIECE) as u8 | 1; PIECE as usize], false)?;
    }
    Ok(nbd.plain(Command::Flush, 0, 0)?)
}

fn connect(cli: &Cli, patience: Duration) -> Result<Nbd> {
    let socket = cli.attach(NAME, "nbd")?.nbd_socket()?;
    Nbd::connect(&socket, NAME, patience).context("no connection")
}
