//! Creations, renames and removals that no directory sync has covered, and which of them hang together.
//!
//! Decides which operations a sync of a directory makes durable, and which ones a cut keeps: an operation never survives
//! without those it depends on. It depends on the last earlier one that touched one of its names; the removal of a directory
//! depends on everything inside; moving a directory elsewhere depends on everything before it, so that no loop can arise.
//!
//! Pure: it does not know the backing directory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use super::fate::Fate;

/// Number of a file or directory; never used twice.
pub type Ino = u64;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// The directory.
    pub dir: Ino,
    /// The name.
    pub name: OsString,
}

/// An operation on names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameChange {
    /// A new file or directory gets its name.
    Link {
        /// Where.
        entry: Entry,
        /// What.
        ino: Ino,
    },
    /// A file or an empty directory loses its name.
    Unlink {
        /// Where.
        entry: Entry,
        /// What.
        ino: Ino,
        /// It is a directory.
        is_dir: bool,
    },
    /// A file or directory changes its name, in one step.
    Rename {
        /// The old name.
        from: Entry,
        /// The new name.
        to: Entry,
        /// What.
        ino: Ino,
        /// It is a directory.
        is_dir: bool,
        /// What had the new name before.
        replaced: Option<Ino>,
    },
}

impl NameChange {
    fn entries(&self) -> Vec<&Entry> {
        match self {
            Self::Link { entry, .. } | Self::Unlink { entry, .. } => vec![entry],
            Self::Rename { from, to, .. } => vec![from, to],
        }
    }

    fn touches(&self, dir: Ino) -> bool {
        self.entries().iter().any(|entry| entry.dir == dir)
    }

    /// A directory that has to be empty for this to happen.
    fn emptied(&self) -> Option<Ino> {
        match self {
            Self::Unlink { ino, is_dir: true, .. } => Some(*ino),
            Self::Rename { replaced, is_dir: true, .. } => *replaced,
            _ => None,
        }
    }

    fn moves_directory(&self) -> bool {
        matches!(self, Self::Rename { from, to, is_dir: true, .. } if from.dir != to.dir)
    }
}

#[derive(Debug)]
struct Pending {
    change: NameChange,
    needs: Vec<u64>,
}

/// The operations that are not durable, by their sequence numbers.
#[derive(Debug, Default)]
pub struct NameLog(BTreeMap<u64, Pending>);

impl NameLog {
    /// Adds an operation; `sequence` is larger than any before.
    pub fn push(&mut self, sequence: u64, change: NameChange) {
        let needs = self.needs(&change);
        self.0.insert(sequence, Pending { change, needs });
    }

    fn needs(&self, change: &NameChange) -> Vec<u64> {
        if change.moves_directory() {
            return self.0.keys().copied().collect();
        }
        let last_touch = |entry: &Entry| {
            let earlier = self.0.iter().rev().find(|(_, pending)| pending.change.entries().contains(&entry));
            earlier.map(|(sequence, _)| *sequence)
        };
        let mut needs: Vec<u64> = change.entries().into_iter().filter_map(last_touch).collect();
        if let Some(dir) = change.emptied() {
            needs.extend(
                self.0.iter().filter(|(_, pending)| pending.change.touches(dir)).map(|(sequence, _)| *sequence),
            );
        }
        needs
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when all names are durable.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sequence number of the first of them.
    pub fn first_pending(&self) -> Option<u64> {
        self.0.keys().next().copied()
    }

    /// Takes out what a sync of `dir` makes durable, in order: what touches it, and what that needs.
    pub fn take_synced(&mut self, dir: Ino) -> Vec<NameChange> {
        let mut wanted: BTreeSet<u64> = BTreeSet::new();
        for (sequence, pending) in self.0.iter().rev() {
            if pending.change.touches(dir) || wanted.contains(sequence) {
                wanted.insert(*sequence);
                wanted.extend(&pending.needs);
            }
        }
        // A need may already be durable.
        wanted.into_iter().filter_map(|sequence| Some(self.0.remove(&sequence)?.change)).collect()
    }

    /// Takes out everything, in order.
    pub fn take_all(&mut self) -> Vec<NameChange> {
        std::mem::take(&mut self.0).into_values().map(|pending| pending.change).collect()
    }

    /// Empties the log; what survives a cut is returned, in order.
    pub fn take_survivors(&mut self, fate: &mut Fate) -> Vec<NameChange> {
        let pending = std::mem::take(&mut self.0);
        let all: BTreeSet<u64> = pending.keys().copied().collect();
        let mut kept = BTreeSet::new();
        let mut survivors = Vec::new();
        for (sequence, pending) in pending {
            let is_possible = pending.needs.iter().all(|need| kept.contains(need) || !all.contains(need));
            if is_possible && fate.keeps(sequence) {
                kept.insert(sequence);
                survivors.push(pending.change);
            }
        }
        survivors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dir: Ino, name: &str) -> Entry {
        Entry { dir, name: name.into() }
    }

    fn create(dir: Ino, name: &str, ino: Ino) -> NameChange {
        NameChange::Link { entry: entry(dir, name), ino }
    }

    fn rename(from: Entry, to: Entry, ino: Ino, is_dir: bool) -> NameChange {
        NameChange::Rename { from, to, ino, is_dir, replaced: None }
    }

    fn log(changes: &[NameChange]) -> NameLog {
        let mut log = NameLog::default();
        changes.iter().enumerate().for_each(|(sequence, change)| log.push(sequence as u64, change.clone()));
        log
    }

    #[test]
    fn a_sync_of_a_directory_covers_its_names_only() {
        let changes = [create(1, "a", 10), create(2, "b", 11), create(1, "c", 12)];
        let mut log = log(&changes);
        assert_eq!(log.take_synced(1), [changes[0].clone(), changes[2].clone()]);
        assert_eq!(log.len(), 1);
    }

    #[test]
    fn a_sync_takes_along_what_its_names_came_from() {
        let changes = [create(2, "new", 10), rename(entry(2, "new"), entry(1, "final"), 10, false)];
        assert_eq!(log(&changes).take_synced(1), changes);
    }

    #[test]
    fn a_rename_never_survives_without_its_creation() {
        let changes = [create(1, "new", 10), rename(entry(1, "new"), entry(1, "final"), 10, false)];
        let mut lengths = BTreeSet::new();
        for seed in 0..200 {
            let survivors = log(&changes).take_survivors(&mut Fate::new(seed, 0, 2));
            assert_eq!(survivors, changes[..survivors.len()]);
            lengths.insert(survivors.len());
        }
        assert_eq!(lengths.len(), 3);
    }

    #[test]
    fn independent_names_survive_in_any_combination() {
        let changes = [create(1, "a", 10), create(1, "b", 11)];
        let survived = |seed| log(&changes).take_survivors(&mut Fate::new(seed, 0, 2));
        assert!((0..200).any(|seed| survived(seed) == changes[1..]));
    }

    #[test]
    fn removing_a_directory_needs_its_content_to_be_gone() {
        let inner = NameChange::Unlink { entry: entry(5, "f"), ino: 10, is_dir: false };
        let outer = NameChange::Unlink { entry: entry(1, "d"), ino: 5, is_dir: true };
        assert_eq!(log(&[inner.clone(), outer.clone()]).take_synced(1), [inner, outer]);
    }

    #[test]
    fn a_moved_directory_needs_everything_before_it() {
        let changes = [create(1, "a", 10), create(9, "b", 11), rename(entry(2, "d"), entry(3, "d"), 4, true)];
        assert_eq!(log(&changes).take_synced(3), changes);
    }
}
