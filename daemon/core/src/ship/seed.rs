//! Seeding: a copy's first content. The primary sends what its base and log hold now, pass by pass; blocks written during a
//! pass are marked and sent in the next; the last pass also lets live frames flow. The receiver writes seeded blocks to its
//! base, *under* its log, so a seeded block can never hide a newer record.
//!
//! The copy becomes visible at the highest position at which any block was read (`visible_at`): from there on, base and log
//! together are exactly the primary's content.

use std::collections::BTreeMap;

use crate::types::{BlockRange, Boundary, Lsn, Nanos, Nonce};

/// Bytes of one question to the base ("what may hold data here?").
pub const MAP_BYTES: u64 = 64 << 20;
/// Bytes read and sent at a time.
pub const CHUNK_BYTES: u64 = 256 * 1024;
/// Bytes that may be outstanding (sent and not processed by the receiver).
pub const WINDOW_BYTES: u64 = 16 << 20;
/// A pass over no more than this is the last one: it ends in about a second on a slow link.
pub const LAST_PASS_BYTES: u64 = 64 << 20;
/// After so many passes the next one is the last, whatever its size.
pub const MAX_PASSES: u32 = 4;

/// A set of blocks, as disjoint ranges. Bounded: beyond its limit ranges are merged over their gaps, so that it only ever
/// names too much.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSet {
    ranges: BTreeMap<u64, u64>,
}

const MAX_RANGES: usize = 1 << 20;
const MERGE_GAP: u64 = 64;

impl BlockSet {
    /// Adds `[start, end)`.
    pub fn insert(&mut self, start: u64, end: u64) {
        let gap = if self.ranges.len() >= MAX_RANGES { MERGE_GAP } else { 0 };
        let (mut start, mut end) = (start, end);
        while let Some((&s, &e)) = self.ranges.range(..=end.saturating_add(gap)).next_back() {
            if e.saturating_add(gap) < start {
                break;
            }
            start = start.min(s);
            end = end.max(e);
            self.ranges.remove(&s);
        }
        self.ranges.insert(start, end);
    }

    /// The parts of `[start, end)` that are not in the set, ascending.
    pub fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut at = start;
        let mut out = Vec::new();
        let before = self.ranges.range(..start).next_back().filter(|(_, e)| **e > start);
        for (&s, &e) in before.into_iter().chain(self.ranges.range(start..end)) {
            if s > at {
                out.push((at, s));
            }
            at = at.max(e);
        }
        if at < end {
            out.push((at, end));
        }
        out
    }

    /// Blocks in the set.
    pub fn blocks(&self) -> u64 {
        self.ranges.iter().map(|(s, e)| e - s).sum()
    }

    /// True when empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Takes up to `max` blocks from the front.
    pub fn take_front(&mut self, max: u64) -> Option<(u64, u64)> {
        let (start, end) = self.ranges.pop_first()?;
        let stop = end.min(start + max);
        if stop < end {
            self.ranges.insert(stop, end);
        }
        Some((start, stop))
    }
}

/// The sending side of a seeding.
#[derive(Debug)]
pub struct Seeder {
    /// Names it.
    pub resync: Nonce,
    /// Pass from 1.
    pub pass: u32,
    /// The last pass: live frames flow.
    pub is_last: bool,
    /// Blocks still to look at in this pass.
    pub todo: BlockSet,
    /// In the first pass the base is asked what may hold data; afterwards the set is exact.
    pub mapped_to: Option<u64>,
    /// A question to the base is under way.
    pub mapping: bool,
    /// What the log held when the first pass began: looked at whatever the base says.
    pub from_log: BlockSet,
    /// Written since this pass began.
    pub dirty: BlockSet,
    /// Bytes of this pass, as far as known.
    pub total_bytes: u64,
    /// Bytes handled in this pass (sent, or found to be zeros).
    pub done_bytes: u64,
    /// Bytes put on the wire in this pass.
    pub sent_bytes: u64,
    /// Bytes that the receiver processed in this pass.
    pub acked_bytes: u64,
    /// Reads of the volume under way.
    pub reading: u32,
    /// Highest position at which a block was read, in this pass.
    pub visible_at: Lsn,
    /// Blocks read and waiting until the sender is durable that far.
    pub ended: bool,
    /// Where live frames begin (last pass).
    pub live_from: Boundary,
}

impl Seeder {
    /// Begins the first pass over a volume of `blocks` blocks, of which the log holds `from_log`.
    pub fn new(resync: Nonce, blocks: u64, from_log: BlockSet) -> Self {
        Self {
            resync,
            pass: 1,
            is_last: false,
            todo: from_log.clone(),
            mapped_to: Some(0),
            mapping: false,
            from_log,
            dirty: BlockSet::default(),
            total_bytes: blocks * crate::types::BLOCK as u64,
            done_bytes: 0,
            sent_bytes: 0,
            acked_bytes: 0,
            reading: 0,
            visible_at: Lsn::ZERO,
            ended: false,
            live_from: Boundary::default(),
        }
    }

    /// The base may hold data in `[start, end)`: what is not looked at anyway has to be.
    pub fn on_mapped(&mut self, start: u64, end: u64) {
        for (start, end) in self.from_log.gaps(start, end) {
            self.todo.insert(start, end);
        }
    }

    /// True when another chunk may be read and sent.
    pub fn may_send(&self) -> bool {
        !self.ended && self.sent_bytes.saturating_sub(self.acked_bytes) < WINDOW_BYTES && self.reading < 4
    }

    /// True when the pass has nothing left to read.
    pub fn is_drained(&self) -> bool {
        self.todo.is_empty() && self.mapped_to.is_none() && !self.mapping && self.reading == 0
    }

    /// Begins the next pass over what was written during the last one.
    pub fn next_pass(&mut self, live_from: Boundary) {
        self.pass += 1;
        self.todo = std::mem::take(&mut self.dirty);
        self.total_bytes = self.todo.blocks() * crate::types::BLOCK as u64;
        self.is_last = self.total_bytes <= LAST_PASS_BYTES || self.pass >= MAX_PASSES;
        (self.done_bytes, self.sent_bytes, self.acked_bytes) = (0, 0, 0);
        self.visible_at = live_from.position.lsn;
        self.ended = false;
        self.live_from = live_from;
    }
}

/// The receiving side of a seeding.
#[derive(Clone, Debug)]
pub struct Seeded {
    /// Names it.
    pub resync: Nonce,
    /// Pass.
    pub pass: u32,
    /// The last pass.
    pub is_last: bool,
    /// Bytes announced.
    pub total_bytes: u64,
    /// Bytes processed.
    pub done_bytes: u64,
    /// Base writes under way; no two of them overlap, so that the block that came last is the one that stays.
    pub writing: Vec<BlockRange>,
    /// The end of the pass was announced: position at which the copy becomes visible.
    pub end: Option<Lsn>,
    /// The base is being synced after the last block.
    pub syncing: bool,
    /// The base was synced after the last block.
    pub synced: bool,
    /// The superblock says "being seeded" and the base may be written.
    pub ready: bool,
    /// The superblock is being saved with the copy complete.
    pub saving: bool,
    /// Since when a live frame has found no room in the log.
    pub full_since: Option<Nanos>,
}

impl Seeded {
    /// A pass that begins.
    pub fn new(resync: Nonce, pass: u32, is_last: bool, total_bytes: u64, ready: bool) -> Self {
        Self {
            resync,
            pass,
            is_last,
            total_bytes,
            done_bytes: 0,
            writing: Vec::new(),
            end: None,
            syncing: false,
            synced: false,
            ready,
            saving: false,
            full_since: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_set_merges_what_touches_and_is_taken_in_order() {
        let mut set = BlockSet::default();
        set.insert(10, 20);
        set.insert(30, 40);
        set.insert(20, 25);
        set.insert(5, 6);
        assert_eq!(set.blocks(), 26);
        set.insert(0, 31);
        assert_eq!(set.blocks(), 40);
        assert_eq!(set.take_front(16), Some((0, 16)));
        assert_eq!(set.take_front(100), Some((16, 40)));
        assert_eq!(set.take_front(1), None);
    }

    #[test]
    fn what_the_log_holds_is_looked_at_once_whatever_the_base_says() {
        let mut from_log = BlockSet::default();
        from_log.insert(10, 12);
        from_log.insert(20, 30);
        let mut seeder = Seeder::new(Nonce::NIL, 64, from_log);
        assert_eq!(seeder.todo.take_front(64), Some((10, 12)));
        seeder.on_mapped(11, 25);
        assert_eq!(seeder.todo.take_front(64), Some((12, 30)));
        seeder.on_mapped(0, 32);
        let rest: Vec<_> = std::iter::from_fn(|| seeder.todo.take_front(64)).collect();
        assert_eq!(rest, [(0, 10), (12, 20), (30, 32)]);
    }
}
