//! Concurrent writers that commit as fast as they can and remember what was acknowledged, and when.
//!
//! Writer `w` commits transactions 1, 2, 3, ...: each inserts one entry whose payload follows from (w, number) and sets w's
//! account to that number. So what must be found later needs no more memory than one moment per transaction.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::postgres::connect;
use super::wire::{Connection, SqlError};

/// More writers than this only wait for each other, and the server takes no more connections.
const MAX_WRITERS: u32 = 48;

/// SQL for the payload of an entry: 32 bytes to about 1 KiB, different for each.
pub(super) const PAYLOAD: &str = "repeat(md5(writer || ':' || number), (1 + number % 30)::int)";

/// Makes the tables for `writers` writers.
///
/// # Errors
/// What the server says.
pub fn prepare(connection: &mut Connection, writers: u32) -> Result<()> {
    ensure!((1..=MAX_WRITERS).contains(&writers), "allowed are 1 to {MAX_WRITERS} writers");
    connection.query(&format!(
        "CREATE TABLE entry (writer int, number bigint, payload text NOT NULL, PRIMARY KEY (writer, number));
         CREATE TABLE account (writer int PRIMARY KEY, total bigint NOT NULL) WITH (fillfactor = 20);
         INSERT INTO account SELECT w, 0 FROM generate_series(1, {writers}) AS w"
    ))?;
    Ok(())
}

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    start: Instant,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Vec<Duration>>>,
}

/// What was acknowledged: for each writer the moments, transaction 1 first, as spans since `start`.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Start of the load.
    pub start: Instant,
    /// One list per writer; writer 1 first.
    pub acknowledged: Vec<Vec<Duration>>,
}

impl Load {
    /// Starts `writers` writers on the server behind the socket in `directory`.
    ///
    /// # Errors
    /// When the server does not take them.
    pub fn start(directory: &Path, writers: u32) -> Result<Self> {
        let connections: Vec<Connection> = (0..writers)
            .map(|_| connect(directory))
            .collect::<Result<_, SqlError>>()
            .context("a writer cannot connect")?;
        let (start, stop, committed) = (Instant::now(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let spawn = |(connection, number): (Connection, u32)| {
            let writer =
                Writer { number, connection, start, stop: Arc::clone(&stop), committed: Arc::clone(&committed) };
            std::thread::spawn(move || writer.run())
        };
        let writers = connections.into_iter().zip(1..).map(spawn).collect();
        Ok(Self { start, stop, committed, writers })
    }

    /// Transactions acknowledged so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Waits until `count` transactions were acknowledged.
    ///
    /// # Errors
    /// When all writers ended or `patience` is over before.
    pub fn wait_for(&self, count: u64, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.committed() < count {
            ensure!(self.writers.iter().any(|writer| !writer.is_finished()), "every writer lost its connection");
            ensure!(Instant::now() < deadline, "only {} of {count} commits in {patience:?}", self.committed());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Ends the writers (at a server that was killed they have ended already) and returns the ledger.
    ///
    /// # Errors
    /// When a writer panicked.
    pub fn finish(self) -> Result<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.writers.into_iter().map(|writer| writer.join().map_err(|_| anyhow!("a writer panicked")));
        Ok(Ledger { start: self.start, acknowledged: joined.collect::<Result<_>>()? })
    }
}

impl Ledger {
    /// Transactions acknowledged by all writers.
    pub fn committed(&self) -> u64 {
        self.acknowledged.iter().map(|list| list.len() as u64).sum()
    }
}

struct Writer {
    number: u32,
    connection: Connection,
    start: Instant,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self) -> Vec<Duration> {
        let mut acknowledged = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let sql = transaction(self.number, acknowledged.len() as u64 + 1);
            // A failed commit is no commit as far as the client knows; the connection is gone, and so is this writer.
            if self.connection.query(&sql).is_err() {
                break;
            }
            acknowledged.push(self.start.elapsed());
            self.committed.fetch_add(1, Ordering::Relaxed);
        }
        acknowledged
    }
}

fn transaction(writer: u32, number: u64) -> String {
    format!(
        "INSERT INTO entry SELECT writer, number, {PAYLOAD} FROM (SELECT {writer} AS writer, {number}::bigint AS number) AS t;
         UPDATE account SET total = {number} WHERE writer = {writer}"
    )
}

/// The ledger as lines `WRITER NUMBER MICROSECONDS`, for keeping it in a file.
impl std::fmt::Display for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (list, writer) in self.acknowledged.iter().zip(1..) {
            for (moment, number) in list.iter().zip(1..) {
                writeln!(f, "{writer} {number} {}", moment.as_micros())?;
            }
        }
        Ok(())
    }
}

impl Ledger {
    /// Reads what [`Ledger`]'s `Display` wrote.
    ///
    /// # Errors
    /// When the file cannot be read or a line is none of a ledger's.
    pub fn read(path: &PathBuf) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut ledger = Self { start: Instant::now(), acknowledged: Vec::new() };
        for line in text.lines() {
            ledger.take_line(line).with_context(|| format!("{}: no line of a ledger: {line:?}", path.display()))?;
        }
        Ok(ledger)
    }

    fn take_line(&mut self, line: &str) -> Option<()> {
        let mut numbers = line.split(' ').map(|word| word.parse::<u64>().ok());
        let (writer, number, micros) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let index = usize::try_from(writer.checked_sub(1)?).ok().filter(|index| *index < MAX_WRITERS as usize)?;
        if self.acknowledged.len() <= index {
            self.acknowledged.resize(index + 1, Vec::new());
        }
        let list = &mut self.acknowledged[index];
        (number == list.len() as u64 + 1).then(|| list.push(Duration::from_micros(micros)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_that_was_written_reads_back() {
        let micros = |list: &[u64]| list.iter().map(|&n| Duration::from_micros(n)).collect::<Vec<_>>();
        let ledger = Ledger { start: Instant::now(), acknowledged: vec![micros(&[5, 9]), micros(&[7])] };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ledger.to_string()).unwrap();
        let read = Ledger::read(&file.path().to_owned()).unwrap();
        assert_eq!((read.committed(), read.acknowledged), (3, ledger.acknowledged));
    }

    #[test]
    fn a_ledger_with_a_gap_is_refused() {
        let mut ledger = Ledger { start: Instant::now(), acknowledged: Vec::new() };
        assert!(ledger.take_line("1 1 10").is_some() && ledger.take_line("1 3 12").is_none());
    }
}
