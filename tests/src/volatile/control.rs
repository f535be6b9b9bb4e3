//! Commands to a volatile disk over a unix socket: one command a line, one line of answer, `ok ...` or `error ...`.
//!
//! | command | does |
//! |---|---|
//! | `cut SEED` | loses power; what survives is chosen by the seed |
//! | `stats` | answers with [`Stats`](super::disk::Stats) as JSON |
//! | `eio on`, `eio write`, `eio sync`, `eio off` | writes, syncs or both fail |
//! | `enospc on`, `enospc on BYTES`, `enospc off` | the disk is as large as what it holds now, or as BYTES |
//! | `slow MS` | a sync of a file takes so many milliseconds; 0 ends it |
//! | `hang on`, `hang off` | reads, writes and syncs wait |
//! | `quit` | makes everything durable and ends the program; `cut SEED` before it keeps only that |

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Shared;

/// A command to a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Loses power.
    Cut {
        /// Chooses what survives.
        seed: u64,
    },
    /// Asks for counters and sizes.
    Stats,
    /// Injects errors.
    Eio {
        /// Into writes.
        writes: bool,
        /// Into syncs.
        syncs: bool,
    },
    /// Limits the space.
    Enospc(Space),
    /// Makes syncs of files take so many milliseconds.
    Slow(u64),
    /// Makes requests wait, or lets them go on.
    Hang(bool),
    /// Ends the program.
    Quit,
}

/// How large a disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Without a limit.
    Unlimited,
    /// As large as what it holds at the moment.
    Full,
    /// So many bytes.
    Bytes(u64),
}

/// A line that is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{line:?} is no command; there are: cut SEED, stats, eio on|write|sync|off, enospc on [BYTES]|off, slow MS, hang on|off, quit"
)]
pub struct UnknownCommand {
    line: String,
}

impl FromStr for Command {
    type Err = UnknownCommand;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        parse(line).ok_or_else(|| UnknownCommand { line: line.to_owned() })
    }
}

fn parse(line: &str) -> Option<Command> {
    let words: Vec<&str> = line.split_whitespace().collect();
    Some(match words[..] {
        ["cut", seed] => Command::Cut { seed: seed.parse().ok()? },
        ["stats"] => Command::Stats,
        ["eio", which @ ("on" | "write" | "sync" | "off")] => {
            Command::Eio { writes: matches!(which, "on" | "write"), syncs: matches!(which, "on" | "sync") }
        }
        ["enospc", "on"] => Command::Enospc(Space::Full),
        ["enospc", "on", bytes] => Command::Enospc(Space::Bytes(bytes.parse().ok()?)),
        ["enospc", "off"] => Command::Enospc(Space::Unlimited),
        ["slow", ms] => Command::Slow(ms.parse().ok()?),
        ["hang", which @ ("on" | "off")] => Command::Hang(which == "on"),
        ["quit"] => Command::Quit,
        _ => return None,
    })
}

/// Sends one command to the disk behind `socket` and waits for the answer, without its `ok`.
///
/// # Errors
/// When nobody answers, or with the disk's own words when it refuses.
pub fn request(socket: &Path, command: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "{command}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.trim_end().strip_prefix("ok") {
        Some(rest) => Ok(rest.trim_start().to_owned()),
        None => Err(io::Error::other(format!("{command}: {}", answer.trim_end()))),
    }
}

/// The listening socket. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    socket: PathBuf,
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    quits: Mutex<Receiver<()>>,
}

impl Server {
    /// Listens at `socket`, replacing a dead one.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(socket: PathBuf, disk: Arc<Shared>) -> io::Result<Self> {
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        let stops = Arc::new(AtomicBool::new(false));
        let (quit, quits) = channel();
        let stopped = Arc::clone(&stops);
        let thread = thread::Builder::new().name("volatile-control".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let (disk, quit) = (Arc::clone(&disk), quit.clone());
                // Each client on its own, so that one that says nothing stops nobody. Its end is the end of its connection.
                thread::spawn(move || drop(serve(stream, &disk, &quit)));
            }
        })?;
        Ok(Self { socket, stops, thread: Some(thread), quits: Mutex::new(quits) })
    }

    /// Waits for `quit`.
    pub fn wait_for_quit(&self) {
        let quits = self.quits.lock().unwrap_or_else(PoisonError::into_inner);
        // An error means that the server ended, which is a quit as well.
        let _ = quits.recv();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Release);
        // Wakes the thread up.
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn serve(stream: UnixStream, disk: &Shared, quit: &Sender<()>) -> io::Result<()> {
    let mut answers = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let command: Result<Command, UnknownCommand> = line?.parse();
        let answer = match command.clone().map_err(io::Error::other).and_then(|command| run(command, disk)) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) => format!("error {error}"),
        };
        writeln!(answers, "{}", answer.trim_end())?;
        if command == Ok(Command::Quit) {
            // The receiver is gone only when the program ends anyway.
            let _ = quit.send(());
        }
    }
    Ok(())
}

fn run(command: Command, disk: &Shared) -> io::Result<String> {
    match command {
        Command::Cut { seed } => disk.cut(seed)?,
        Command::Stats => return serde_json::to_string(&disk.stats()).map_err(io::Error::other),
        Command::Eio { writes, syncs } => disk.set_faults(|faults| {
            (faults.failing_writes, faults.failing_syncs) = (writes, syncs);
        }),
        Command::Enospc(space) => limit_space(disk, space),
        Command::Slow(ms) => disk.set_faults(|faults| faults.sync_delay = Duration::from_millis(ms)),
        Command::Hang(hangs) => disk.hang(hangs),
        Command::Quit => {}
    }
    Ok(String::new())
}

fn limit_space(disk: &Shared, space: Space) {
    let used = disk.stats().used_bytes;
    disk.set_faults(|faults| {
        faults.space = match space {
            Space::Unlimited => None,
            Space::Full => Some(used),
            Space::Bytes(bytes) => Some(bytes),
        };
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_nonsense_is_refused() {
        assert_eq!("cut 7".parse(), Ok(Command::Cut { seed: 7 }));
        assert_eq!("eio on".parse(), Ok(Command::Eio { writes: true, syncs: true }));
        assert_eq!("eio sync".parse(), Ok(Command::Eio { writes: false, syncs: true }));
        assert_eq!("enospc on 4096".parse(), Ok(Command::Enospc(Space::Bytes(4096))));
        assert_eq!("enospc on".parse(), Ok(Command::Enospc(Space::Full)));
        assert_eq!(" hang  off ".parse(), Ok(Command::Hang(false)));
        assert_eq!("slow 20".parse(), Ok(Command::Slow(20)));
        for line in ["", "slow", "slow -1", "cut", "cut x", "cut 1 2", "eio", "eio maybe", "hang 1", "quit now"] {
            assert!(line.parse::<Command>().is_err(), "{line:?}");
        }
    }
}
