//! What this agent has seen of its witness, kept over restarts (R6), so that a witness that went back in time is found out also by an
//! agent that was restarted since.
//!
//! One small file, replaced whole. What matters (K of a group, another grant, a cell that went back) is durable before the answer
//! that brought it is given, unless the disk is slower than a call may be, or fails, which is named; a mere renewal is written once a second at most. A file
//! that is damaged is named, and counts as none: what it held is known to the witness alone then.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tidemark_core::format::witness::{Cell, Content};
use tidemark_core::group::witness::{Found, Highest, Regression, Seen};

use super::memory_file as format;
use crate::crashsafe;
use crate::lock::lock;

/// Cells that are kept over a restart: each group's and each agent's of two full nodes. The one that changed longest ago goes first.
pub(super) const MAX_CELLS: usize = 4096;
/// Between two writes that nothing depends on.
const PAUSE: Duration = Duration::from_secs(1);

/// What is kept of one cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// The highest that was found.
    pub found: Found,
    /// How it went back since.
    pub suspect: Option<Regression>,
    /// Rises with every change of any cell.
    pub turn: u64,
}

/// The memory. Clones are one.
#[derive(Clone, Default)]
pub struct Memory {
    known: Arc<Mutex<Known>>,
    file: Option<Arc<Path>>,
    /// Held by who writes the file.
    writing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Known {
    seen: Seen,
    kept: BTreeMap<Cell, Kept>,
    turn: u64,
    /// Of the last change that something depends on.
    heavy_turn: u64,
    /// The file has every change up to this one.
    durable_turn: u64,
    /// What no write has taken along yet.
    unwritten: Option<Weight>,
    written: Option<Instant>,
}

/// How much depends on a change's being durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Weight {
    Light,
    Heavy,
}

impl Memory {
    /// What the file at `path` holds. Without one, or with one that is damaged, nothing was seen.
    pub fn load(path: PathBuf) -> Self {
        let kept = read(&path).unwrap_or_else(|error| {
            let (code, path) = ("witness_memory_damaged", path.display());
            tracing::error!(code, %path, %error, "alarm: what was seen of the witness is lost; a witness that went back is not found out");
            BTreeMap::new()
        });
        let mut known = Known::default();
        for (cell, kept) in kept {
            known.seen.raise(cell, &kept.found);
            if let Some(regression) = kept.suspect {
                known.seen.suspect(cell, regression);
            }
            known.turn = known.turn.max(kept.turn);
            known.durable_turn = known.turn;
            known.kept.insert(cell, kept);
        }
        Self { known: Arc::new(Mutex::new(known)), file: Some(path.into()), writing: Arc::default() }
    }

    /// The highest seen in `cell`: to be taken before a call.
    pub(super) fn highest(&self, cell: Cell) -> Option<Highest> {
        self.known().seen.highest(cell)
    }

    /// `cell` was found to hold this.
    pub(super) fn raise(&self, cell: Cell, found: &Found) {
        let mut known = self.known();
        let before = known.seen.highest(cell);
        known.seen.raise(cell, found);
        if known.seen.highest(cell) != before {
            let weight = known.weight(cell, found);
            known.keep(cell, Kept { found: found.clone(), suspect: None, turn: 0 }, weight);
        }
    }

    /// `cell` went back.
    pub(super) fn suspect(&self, cell: Cell, regression: Regression) {
        let mut known = self.known();
        known.seen.suspect(cell, regression);
        if let Some(kept) = known.kept.get(&cell).filter(|kept| kept.suspect.is_none()).cloned() {
            known.keep(cell, Kept { suspect: Some(regression), ..kept }, Weight::Heavy);
        }
    }

    /// Makes durable what matters, and waits for it for `patience`; the rest is written when it is due, and not waited for.
    pub(super) async fn settle(&self, patience: Duration) {
        let due = self.known().due();
        let (Some(weight), Some(_)) = (due, &self.file) else { return };
        let write = tokio::spawn(self.clone().write(weight));
        // Also for a write that another call began: this one's answer depends on it as well.
        if weight == Weight::Heavy && tokio::time::timeout(patience, write).await.is_err() {
            tracing::warn!("the disk of state_dir is slower than the witness: what was seen of it is not durable yet");
        }
    }

    /// Writes what the file does not have, one at a time; what is only due is left to who writes already.
    async fn write(self, weight: Weight) {
        let _alone = match weight {
            Weight::Heavy => self.writing.clone().lock_owned().await,
            Weight::Light => match self.writing.clone().try_lock_owned() {
                Ok(alone) => alone,
                Err(_) => return,
            },
        };
        let Some(path) = self.file.clone() else { return };
        let Some((content, turn)) = self.known().take_unwritten() else { return };
        let written = tokio::task::spawn_blocking(move || crashsafe::replace(&path, &[content])).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        let mut known = self.known();
        match written {
            Ok(()) => known.durable_turn = turn,
            Err(error) => {
                known.unwritten = known.unwritten.max(Some(Weight::Light)); // with the next change, or a second later
                tracing::error!(%error, "what was seen of the witness cannot be written to state_dir");
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

impl Known {
    /// Before `found` is kept.
    fn weight(&self, cell: Cell, found: &Found) -> Weight {
        let before = self.kept.get(&cell).map(|kept| &kept.found.content);
        match (before, &found.content) {
            (Some(Content::Lease(before)), Content::Lease(now)) if before.lease_gen == now.lease_gen => Weight::Light,
            (Some(before), now) if before == now => Weight::Light,
            _ => Weight::Heavy,
        }
    }

    fn keep(&mut self, cell: Cell, kept: Kept, weight: Weight) {
        if matches!(cell, Cell::Probe(_)) {
            return; // nothing is decided on it
        }
        self.turn += 1;
        self.kept.insert(cell, Kept { turn: self.turn, ..kept });
        self.unwritten = self.unwritten.max(Some(weight));
        if weight == Weight::Heavy {
            self.heavy_turn = self.turn;
        }
        if self.kept.len() > MAX_CELLS {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.turn).map(|(cell, _)| *cell);
            oldest.map(|oldest| self.kept.remove(&oldest));
        }
    }

    fn due(&self) -> Option<Weight> {
        if self.heavy_turn > self.durable_turn {
            return Some(Weight::Heavy);
        }
        let rested = self.written.is_none_or(|written| written.elapsed() >= PAUSE);
        self.unwritten.filter(|_| rested)
    }

    /// The file's new content, and the last change in it; `None` when somebody else has just written it.
    fn take_unwritten(&mut self) -> Option<(Vec<u8>, u64)> {
        self.unwritten.take()?;
        self.written = Some(Instant::now());
        Some((format::encode(&self.kept), self.turn))
    }
}

fn read(path: &Path) -> io::Result<BTreeMap<Cell, Kept>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other?,
    };
    let mut bytes = Vec::new();
    // One byte more than there may be: what is too long fails its checksum.
    file.take(format::MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    format::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests;
