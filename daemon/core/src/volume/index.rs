//! The index: for every block that is newer than the base, where its newest content lies.
//!
//! Invariants: entries are disjoint; an entry's lsn is above the floor once the floor has passed and pruned it; a later
//! insert always has a higher lsn than what it covers (records are applied in log order).

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;

use crate::event::Slot;
use crate::types::{BlockRange, Lsn};

/// Where content lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In a segment, at this block of the slot's file.
    Log {
        /// The slot.
        slot: Slot,
        /// Block number within the slot.
        block: u32,
        /// Checksums of the record's blocks and where this entry's begin.
        crcs: Crcs,
    },
    /// Zeros.
    Zero,
}

/// Checksums of an entry's blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Crcs {
    /// Of its only block.
    One(u32),
    /// A window of a record's list, beginning at the index.
    Many(Arc<[u32]>, u32),
}

impl Crcs {
    /// Checksums of a record's blocks.
    pub fn of(list: &[u32]) -> Self {
        match list {
            [one] => Self::One(*one),
            many => Self::Many(Arc::from(many), 0),
        }
    }

    /// The checksum of block `i` of the entry.
    pub fn at(&self, i: u32) -> u32 {
        match self {
            Self::One(crc) => *crc,
            Self::Many(list, from) => list[(*from + i) as usize],
        }
    }

    fn skip(&self, blocks: u32) -> Self {
        match self {
            Self::One(crc) => Self::One(*crc),
            Self::Many(list, from) => Self::Many(list.clone(), from + blocks),
        }
    }
}

impl Place {
    fn skip(&self, blocks: u32) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Log { slot, block, crcs } => {
                Self::Log { slot: *slot, block: block + blocks, crcs: crcs.skip(blocks) }
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    count: u64,
    lsn: Lsn,
    place: Place,
}

/// A piece of a lookup, in ascending order and without gaps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub count: u32,
    /// Where, and which record; `None` is the base.
    pub found: Option<(Lsn, Place)>,
}

/// The index of one volume.
#[derive(Default, Debug)]
pub struct Index {
    map: BTreeMap<u64, Entry>,
}

impl Index {
    /// Entries, the measure of its memory (about 100 bytes each).
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// True when every block is in the base.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.map.clear();
    }

    /// The newest content of `range` is now at `place`.
    pub fn insert(&mut self, range: BlockRange, lsn: Lsn, place: Place) {
        self.carve(range.start(), range.end());
        self.map.insert(range.start(), Entry { count: u64::from(range.count.0), lsn, place });
    }

    /// True when no entry has a block in `[start, end)`. Entries are disjoint: the last one that begins before the end reaches
    /// farthest.
    fn is_clear(&self, start: u64, end: u64) -> bool {
        self.map.range(..end).next_back().is_none_or(|(lba, entry)| lba + entry.count <= start)
    }

    /// Removes what lies in `[start, end)`, splitting entries that reach over an edge.
    fn carve(&mut self, start: u64, end: u64) {
        if self.is_clear(start, end) {
            return;
        }
        if let Some((&lba, entry)) = self.map.range(..start).next_back() {
            let entry_end = lba + entry.count;
            if entry_end > start {
                let entry = entry.clone();
                self.keep_head(lba, start);
                if entry_end > end {
                    self.put_tail(lba, &entry, end, entry_end);
                }
            }
        }
        while let Some(lba) = self.map.range(start..end).next().map(|(lba, _)| *lba) {
            let Some(entry) = self.map.remove(&lba) else { return };
            let entry_end = lba + entry.count;
            if entry_end > end {
                self.put_tail(lba, &entry, end, entry_end);
            }
        }
    }

    fn keep_head(&mut self, lba: u64, end: u64) {
        if let Some(entry) = self.map.get_mut(&lba) {
            entry.count = end - lba;
        }
    }

    fn put_tail(&mut self, lba: u64, entry: &Entry, from: u64, end: u64) {
        let place = entry.place.skip((from - lba) as u32);
        self.map.insert(from, Entry { count: end - from, lsn: entry.lsn, place });
    }

    /// Where the content of `range` lies: pieces that cover it exactly.
    pub fn lookup(&self, range: BlockRange) -> Vec<Piece> {
        let (mut at, end) = (range.start(), range.end());
        if at < end && self.is_clear(at, end) {
            return vec![Piece { lba: at, count: range.count.0, found: None }];
        }
        let mut out = Vec::new();
        let first = self.map.range(..=at).next_back().filter(|(lba, e)| **lba + e.count > at).map(|(lba, _)| *lba);
        for (&lba, entry) in self.map.range(first.unwrap_or(at)..end) {
            if lba > at {
                out.push(Piece { lba: at, count: (lba - at) as u32, found: None });
                at = lba;
            }
            let stop = (lba + entry.count).min(end);
            let place = entry.place.skip((at - lba) as u32);
            out.push(Piece { lba: at, count: (stop - at) as u32, found: Some((entry.lsn, place)) });
            at = stop;
        }
        if at < end {
            out.push(Piece { lba: at, count: (end - at) as u32, found: None });
        }
        out
    }

    /// The first piece at or above block `from` that is newer than the base.
    pub fn next_from(&self, from: u64) -> Option<Piece> {
        let around = self.map.range(..=from).next_back().filter(|(lba, e)| *lba + e.count > from);
        let (&lba, entry) = around.or_else(|| self.map.range(from..).next())?;
        let start = lba.max(from);
        let place = entry.place.skip((start - lba) as u32);
        Some(Piece { lba: start, count: (lba + entry.count - start) as u32, found: Some((entry.lsn, place)) })
    }

    /// True when any block of the range is newer than the base.
    pub fn touches(&self, range: BlockRange) -> bool {
        let before = self.map.range(..range.start()).next_back();
        before.is_some_and(|(lba, e)| lba + e.count > range.start())
            || self.map.range(range.start()..range.end()).next().is_some()
    }

    /// The highest lsn of any block of the range; zero when all are in the base.
    pub fn newest(&self, range: BlockRange) -> Lsn {
        let pieces = self.lookup(range);
        pieces.iter().filter_map(|p| p.found.as_ref().map(|(lsn, _)| *lsn)).max().unwrap_or(Lsn::ZERO)
    }

    /// The floor passed `upto`: entries of `range` that are not newer live in the base now.
    pub fn prune(&mut self, range: BlockRange, upto: Lsn) {
        // Mostly one entry is all there is of the range.
        if let btree_map::Entry::Occupied(entry) = self.map.entry(range.start())
            && entry.get().count == u64::from(range.count.0)
        {
            if entry.get().lsn <= upto {
                entry.remove();
            }
            return;
        }
        let stale: Vec<(u64, u64)> = self
            .lookup(range)
            .into_iter()
            .filter(|p| p.found.as_ref().is_some_and(|(lsn, _)| *lsn <= upto))
            .map(|p| (p.lba, p.lba + u64::from(p.count)))
            .collect();
        for (start, end) in stale {
            self.carve(start, end);
        }
    }

    /// Every entry in order: range, lsn.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, Lsn)> + '_ {
        self.map.iter().map(|(lba, e)| (*lba, e.count, e.lsn))
    }

    /// Invariants: disjoint, not empty.
    pub fn check(&self) {
        let mut end = 0;
        for (&lba, entry) in &self.map {
            assert!(lba >= end && entry.count > 0, "index entries overlap or are empty at block {lba}");
            end = lba + entry.count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log(slot: u32, block: u32, n: u32) -> Place {
        let crcs: Vec<u32> = (0..n).map(|i| block + i).collect();
        Place::Log { slot: Slot(slot), block, crcs: Crcs::of(&crcs) }
    }

    #[test]
    fn a_write_in_the_middle_splits_an_entry_and_keeps_its_checksums() {
        let mut index = Index::default();
        index.insert(BlockRange::new(10, 10), Lsn(1), log(1, 100, 10));
        index.insert(BlockRange::new(13, 2), Lsn(2), log(1, 200, 2));
        let pieces = index.lookup(BlockRange::new(8, 14));
        let shape: Vec<_> = pieces.iter().map(|p| (p.lba, p.count, p.found.as_ref().map(|f| f.0.0))).collect();
        assert_eq!(shape, [(8, 2, None), (10, 3, Some(1)), (13, 2, Some(2)), (15, 5, Some(1)), (20, 2, None)]);
        let Some((_, Place::Log { block, crcs, .. })) = &pieces[3].found else { panic!("in the log") };
        assert_eq!((*block, crcs.at(0)), (105, 105));
        index.check();
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_array(ops in proptest::collection::vec((0u64..60, 1u32..12, 0u8..4), 1..80)) {
            let mut index = Index::default();
            let mut naive: Vec<Option<(u64, Option<u32>)>> = vec![None; 80];
            for (n, (lba, count, what)) in ops.into_iter().enumerate() {
                let lsn = Lsn(n as u64 + 1);
                let range = BlockRange::new(lba, count);
                match what {
                    0 => {
                        index.insert(range, lsn, Place::Zero);
                        for b in lba..range.end() { naive[b as usize] = Some((lsn.0, None)); }
                    }
                    1 => {
                        let upto = lsn.0 / 2;
                        index.prune(range, Lsn(upto));
                        for b in lba..range.end() {
                            if naive[b as usize].is_some_and(|(l, _)| l <= upto) { naive[b as usize] = None; }
                        }
                    }
                    _ => {
                        let block = 1000 * n as u32;
                        index.insert(range, lsn, log(0, block, count));
                        for b in lba..range.end() { naive[b as usize] = Some((lsn.0, Some(block + (b - lba) as u32))); }
                    }
                }
                index.check();
            }
            let newer: Vec<_> = index.lookup(BlockRange::new(0, 80)).into_iter().filter(|p| p.found.is_some()).collect();
            let end = |piece: &Piece| piece.lba + u64::from(piece.count);
            let walked = std::iter::successors(index.next_from(0), |piece| index.next_from(end(piece)));
            prop_assert!(walked.eq(newer), "a walk meets the same pieces");
            for piece in index.lookup(BlockRange::new(0, 80)) {
                for i in 0..piece.count {
                    let got = piece.found.as_ref().map(|(lsn, place)| match place {
                        Place::Zero => (lsn.0, None),
                        Place::Log { block, crcs, .. } => {
                            assert_eq!(crcs.at(i), block + i);
                            (lsn.0, Some(block + i))
                        }
                    });
                    prop_assert_eq!(got, naive[(piece.lba + u64::from(i)) as usize]);
                }
            }
        }
    }
}
