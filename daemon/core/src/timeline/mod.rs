//! Histories: which incarnations a log went through, and where two logs part (R11).

use crate::ship::ChainEntry;
use crate::types::{GenId, Incarnation, Lsn, Position};

/// Incarnations remembered. They outlive the records: a peer that was away for long is recognised by them.
pub const MAX_ENTRIES: usize = crate::format::superblock::MAX_HISTORY;

/// The incarnations of a log, oldest first. Entry i holds the records in `(fork_i, fork_{i+1}]`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct History {
    entries: Vec<ChainEntry>,
}

/// How two logs relate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// No common incarnation.
    Unrelated,
    /// Equal up to `common` (the last common record as far as the histories tell; the chain must be compared there).
    Common {
        /// The last common record.
        common: Position,
        /// The first log has records after it.
        mine_has_more: bool,
        /// The second log has records after it.
        theirs_has_more: bool,
    },
}

impl History {
    /// A history as it was saved or sent.
    pub fn new(entries: Vec<ChainEntry>) -> Self {
        Self { entries }
    }

    /// Its entries.
    pub fn entries(&self) -> &[ChainEntry] {
        &self.entries
    }

    /// The running incarnation.
    pub fn last(&self) -> Option<ChainEntry> {
        self.entries.last().copied()
    }

    /// A new incarnation begins after `entry.fork`. An incarnation that has no record at all loses its entry.
    pub fn fork(&mut self, entry: ChainEntry) {
        self.cut_after(entry.fork);
        self.entries.push(entry);
        let surplus = self.entries.len().saturating_sub(MAX_ENTRIES);
        self.entries.drain(..surplus);
    }

    /// The log ends at `tail` (found so, or cut): incarnations whose FORK record lies beyond never happened.
    pub fn cut_after(&mut self, tail: Lsn) {
        let keep = self.entries.iter().take_while(|e| e.fork < tail).count();
        self.entries.truncate(keep);
    }

    /// The incarnation that wrote `lsn`.
    pub fn position(&self, lsn: Lsn) -> Option<Position> {
        let entry = self.entries.iter().rev().find(|e| e.fork < lsn)?;
        Some(Position { generation: entry.generation, incarnation: entry.incarnation, lsn })
    }

    fn end_of(&self, at: usize, tail: Lsn) -> Lsn {
        self.entries.get(at + 1).map_or(tail, |next| next.fork)
    }

    /// Compares with the log of another copy. Total, deterministic, and symmetric up to the exchange of the two.
    pub fn compare(&self, tail: Lsn, theirs: &History, their_tail: Lsn) -> Relation {
        if tail == Lsn::ZERO || their_tail == Lsn::ZERO {
            return Self::with_empty(tail, their_tail);
        }
        let key = |e: &ChainEntry| (e.generation, e.incarnation);
        let pairs = self
            .entries
            .iter()
            .enumerate()
            .rev()
            .find_map(|(i, e)| theirs.entries.iter().rposition(|t| key(t) == key(e)).map(|j| (i, j)));
        let Some((i, j)) = pairs else { return Relation::Unrelated };
        let lsn = self.end_of(i, tail).min(theirs.end_of(j, their_tail));
        let entry = self.entries[i];
        let common = Position { generation: entry.generation, incarnation: entry.incarnation, lsn };
        Relation::Common { common, mine_has_more: tail > lsn, theirs_has_more: their_tail > lsn }
    }

    fn with_empty(tail: Lsn, their_tail: Lsn) -> Relation {
        let common = Position { generation: GenId::NIL, incarnation: Incarnation(0), lsn: Lsn::ZERO };
        Relation::Common { common, mine_has_more: tail > Lsn::ZERO, theirs_has_more: their_tail > Lsn::ZERO }
    }

    /// Invariants: forks ascend strictly, incarnations ascend strictly.
    pub fn check(&self) {
        for pair in self.entries.windows(2) {
            assert!(pair[0].fork < pair[1].fork, "forks ascend: {:?}", self.entries);
            assert!(pair[0].incarnation < pair[1].incarnation, "incarnations ascend: {:?}", self.entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(generation: u8, incarnation: u32, fork: u64) -> ChainEntry {
        ChainEntry { generation: GenId([generation; 16]), incarnation: Incarnation(incarnation), fork: Lsn(fork) }
    }

    fn relation(mine: (&[ChainEntry], u64), theirs: (&[ChainEntry], u64)) -> (Option<u64>, bool, bool) {
        let (a, b) = (History::new(mine.0.to_vec()), History::new(theirs.0.to_vec()));
        let there = a.compare(Lsn(mine.1), &b, Lsn(theirs.1));
        let back = b.compare(Lsn(theirs.1), &a, Lsn(mine.1));
        match (there, back) {
            (
                Relation::Common { common, mine_has_more, theirs_has_more },
                Relation::Common { common: c, mine_has_more: m, theirs_has_more: t },
            ) => {
                assert_eq!((common, mine_has_more, theirs_has_more), (c, t, m), "symmetric");
                (Some(common.lsn.0), mine_has_more, theirs_has_more)
            }
            (Relation::Unrelated, Relation::Unrelated) => (None, false, false),
            other => panic!("not symmetric: {other:?}"),
        }
    }

    #[test]
    fn two_logs_part_where_their_common_incarnation_ends() {
        let a = [entry(1, 1, 0), entry(1, 2, 50)];
        assert_eq!(relation((&a, 80), (&a, 80)), (Some(80), false, false));
        assert_eq!(relation((&a, 80), (&a, 60)), (Some(60), true, false));
        assert_eq!(relation((&a, 80), (&a[..1], 70)), (Some(50), true, true), "each has its own records after 50");
        assert_eq!(relation((&a, 80), (&a[..1], 50)), (Some(50), true, false));
        let b = [entry(1, 1, 0), entry(2, 3, 40)];
        assert_eq!(relation((&a, 80), (&b, 90)), (Some(40), true, true));
        assert_eq!(relation((&a, 80), (&[entry(9, 9, 0)], 90)), (None, false, false));
        assert_eq!(relation((&a, 80), (&[], 0)), (Some(0), true, false));
    }

    #[test]
    fn an_empty_incarnation_loses_its_entry() {
        let mut h = History::new(vec![entry(1, 1, 0), entry(1, 2, 50)]);
        h.fork(entry(1, 3, 50));
        assert_eq!(h.entries(), [entry(1, 1, 0), entry(1, 3, 50)]);
        h.check();
    }

    #[test]
    fn the_oldest_incarnations_are_forgotten_at_the_limit() {
        let mut h = History::default();
        for i in 1..=MAX_ENTRIES as u32 + 3 {
            h.fork(entry(1, i, u64::from(i) * 10));
        }
        assert_eq!(h.entries().len(), MAX_ENTRIES);
        assert_eq!(h.entries()[0].incarnation, Incarnation(4));
        h.check();
    }
}
