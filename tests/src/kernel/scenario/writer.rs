//! A client of the file system on the device: makes files and syncs each, and knows which were.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::{PATIENCE, say};

/// Bytes of one file.
const FILE_BYTES: usize = 16 * 1024;
/// As many of one writer are sure to fit.
const MAX_FILES: u64 = 1200;
/// Files that have to come after an interruption.
const FILES_AFTER: u64 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Makes files in a directory of its own, until told to stop or until one fails.
pub(super) struct Writer {
    stop: Arc<AtomicBool>,
    synced: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
    name: &'static str,
}

/// What a writer was promised to find again.
pub(super) struct Written {
    name: &'static str,
    files: u64,
}

impl Writer {
    /// Writes to the directory `name`, a new one, of the file system at `mount`.
    pub fn start(mount: &Path, name: &'static str) -> Result<Self> {
        let (stop, synced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let dir = mount.join(name);
        fs::create_dir(&dir)?;
        let (stopped, count) = (stop.clone(), synced.clone());
        let thread = std::thread::spawn(move || {
            for number in 0..MAX_FILES {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let mut file = File::create(path_of(&dir, number))?;
                file.write_all(&content(number))?;
                file.sync_all()?;
                count.store(number + 1, Ordering::SeqCst);
                std::thread::sleep(PAUSE);
            }
            Ok(())
        });
        let writer = Self { stop, synced, thread, name };
        writer.goes_on()?;
        Ok(writer)
    }

    fn count(&self) -> u64 {
        self.synced.load(Ordering::SeqCst)
    }

    fn is_at_work(&self) -> Result<()> {
        ensure!(!self.thread.is_finished(), "the writer ended: an error, or the machine is too fast for this");
        Ok(())
    }

    /// More files are synced.
    pub fn goes_on(&self) -> Result<()> {
        let (begun, before) = (Instant::now(), self.count());
        while self.count() < before + FILES_AFTER {
            self.is_at_work()?;
            ensure!(begun.elapsed() < PATIENCE, "the writer is stuck");
            std::thread::sleep(PAUSE);
        }
        say(&format!("{FILES_AFTER} more files after {} ms", begun.elapsed().as_millis()));
        Ok(())
    }

    /// Nothing is synced in all of `span`, and nothing fails.
    pub fn waits(&self, span: Duration) -> Result<()> {
        let before = self.count();
        std::thread::sleep(span);
        self.is_at_work()?;
        ensure!(self.count() == before, "{} files were synced by nobody", self.count() - before);
        Ok(())
    }

    /// Its next file fails; after how long.
    pub fn fails(self) -> Result<(Written, Duration)> {
        let begun = Instant::now();
        while !self.thread.is_finished() {
            ensure!(begun.elapsed() < PATIENCE, "the writer waits instead of failing");
            std::thread::sleep(PAUSE);
        }
        let (name, files) = (self.name, self.count());
        match self.thread.join().ok().context("the writer panicked")? {
            Err(error) => say(&format!("the writer failed after {} ms: {error}", begun.elapsed().as_millis())),
            Ok(()) => bail!("the writer went on"),
        }
        Ok((Written { name, files }, begun.elapsed()))
    }

    /// Stops it.
    pub fn finish(self) -> Result<Written> {
        self.stop.store(true, Ordering::SeqCst);
        let files = self.synced.clone();
        self.thread.join().ok().context("the writer panicked")?.context("a write failed")?;
        Ok(Written { name: self.name, files: files.load(Ordering::SeqCst) })
    }
}

impl Written {
    /// Every synced file is in the file system at `mount` as it was written.
    pub fn is_in(&self, mount: &Path) -> Result<()> {
        let Self { name, files } = *self;
        for number in 0..files {
            let found = fs::read(path_of(&mount.join(name), number));
            ensure!(found? == content(number), "file {number} of {files} in {name} is not as written");
        }
        say(&format!("{files} files were synced, all of them are there"));
        Ok(())
    }
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("file-{number}"))
}

fn content(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(FILE_BYTES / 8)
}
