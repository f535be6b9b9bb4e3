//! Seeding: a copy's first content. The primary sends what its base and log hold now, pass by pass; blocks written during a
//! pass are marked and sent in the next; the last pass also lets live frames flow. The receiver writes seeded blocks to its
//! base, *under* its log, so a seeded block can never hide a newer record.
//!
//! A *difference* is a seeding of a copy that was whole once and fell behind the log: the first pass sends the blocks that changed
//! since, zeros too, over a base that holds all of the copy's own log.
//!
//! The copy becomes visible at the highest position at which any block was read (`visible_at`): from there on, base and log
//! together are exactly the primary's content.

use crate::blocks::BlockSet;
use crate::ship::SeedBegin;
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

/// The sending side of a seeding.
#[derive(Debug)]
pub struct Seeder {
    /// Names it.
    pub resync: Nonce,
    /// A difference from here on.
    pub from: Option<Boundary>,
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
            from: None,
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

    /// Begins the first pass over what `changed` since `from`.
    pub fn difference(resync: Nonce, from: Boundary, changed: BlockSet) -> Self {
        let blocks = changed.blocks();
        let (from, mapped_to, from_log) = (Some(from), None, BlockSet::default());
        Self { from, mapped_to, from_log, todo: changed, ..Self::new(resync, blocks, BlockSet::default()) }
    }

    /// How this pass begins.
    pub fn begin(&self) -> SeedBegin {
        let Self { resync, pass, total_bytes, is_last: last, live_from, from, .. } = *self;
        SeedBegin { resync, pass, total_bytes, last, live_from, from }
    }

    /// The base may hold data in `[start, end)`: what is not looked at anyway has to be.
    pub fn on_mapped(&mut self, start: u64, end: u64) {
        for (start, end) in self.from_log.gaps(start, end) {
            self.todo.insert(start, end);
        }
    }

    /// True when another chunk may be read and sent.
    pub fn may_send(&self) -> bool {
        // A first content lies in long runs, what changed mostly in single blocks.
        let reads = if self.from.is_some() { 32 } else { 4 };
        !self.ended && self.sent_bytes.saturating_sub(self.acked_bytes) < WINDOW_BYTES && self.reading < reads
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
    /// Only what changed comes; the rest is in the base.
    pub is_difference: bool,
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
    pub fn new(begin: &SeedBegin) -> Self {
        let SeedBegin { resync, pass, total_bytes, last, .. } = *begin;
        Self {
            resync,
            is_difference: begin.from.is_some(),
            pass,
            is_last: last,
            total_bytes,
            done_bytes: 0,
            writing: Vec::new(),
            end: None,
            syncing: false,
            synced: false,
            ready: pass > 1 && !last,
            saving: false,
            full_since: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
