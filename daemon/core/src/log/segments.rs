//! The table of segments: which slot holds which part of the log, which slots are ready, and which may be reused.
//!
//! A slot moves `prepared -> ready -> segment -> ready`; it is zeroed once, when it is prepared, and never again: stale frames
//! cannot verify, because the chain of the new segment does not contain them.

use std::collections::{BTreeSet, VecDeque};

use crate::event::Slot;
use crate::format::frame::FrameHeader;
use crate::format::segment::HEADER_BYTES;
use crate::types::{BLOCK, Boundary, Chain, GenId, Incarnation, Lsn, Nanos, Position};

/// A frame as the table remembers it: 72 bytes per frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRef {
    /// Last record.
    pub last: Lsn,
    /// Generation.
    pub generation: GenId,
    /// Incarnation.
    pub incarnation: Incarnation,
    /// Chain after it.
    pub chain: Chain,
    /// Block in the slot where its header begins.
    pub block: u32,
    /// Blocks of header and payload.
    pub blocks: u32,
}

impl FrameRef {
    /// What the table keeps of a frame whose header begins at `block`.
    pub fn of(header: &FrameHeader, block: u32) -> Self {
        Self {
            last: header.last(),
            generation: header.generation,
            incarnation: header.incarnation,
            chain: header.chain,
            block,
            blocks: (header.total_bytes() / BLOCK) as u32,
        }
    }

    /// The boundary after it.
    pub fn boundary(&self) -> Boundary {
        Boundary {
            position: Position { generation: self.generation, incarnation: self.incarnation, lsn: self.last },
            chain: self.chain,
        }
    }
}

/// A live segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Where it lies.
    pub slot: Slot,
    /// Order among the segments of this copy.
    pub sequence: u64,
    /// Boundary before its first frame.
    pub start: Boundary,
    /// Its frames.
    pub frames: Vec<FrameRef>,
    /// Blocks used, header included.
    pub used_blocks: u32,
    /// When its first frame was placed (for retention by time).
    pub opened_at: Nanos,
    /// Readers that need its slot unchanged.
    pub pins: u32,
}

impl Segment {
    /// The boundary after its last frame.
    pub fn end(&self) -> Boundary {
        self.frames.last().map_or(self.start, FrameRef::boundary)
    }
}

/// Where a frame was put.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    /// The slot.
    pub slot: Slot,
    /// Byte offset of the frame's header in the slot.
    pub offset: u64,
    /// Block number of its first payload block.
    pub payload_block: u32,
    /// The segment's own header has to be written with it.
    pub first_in_segment: bool,
}

/// The segments of one copy.
#[derive(Debug)]
pub struct Segments {
    slot_bytes: u64,
    live: VecDeque<Segment>,
    /// The last live segment takes frames. After a recovery or a cut it does not.
    is_open: bool,
    ready: VecDeque<Slot>,
    preparing: Option<Slot>,
    /// Slots that held records which are no longer part of the history: their files are removed and made anew, so that no
    /// stale frame of the same incarnation is ever found behind a torn tail.
    dropped: Vec<Slot>,
    /// The one of them whose file is being removed.
    removing: Option<Slot>,
    slots: BTreeSet<Slot>,
    unsynced: BTreeSet<Slot>,
    next_sequence: u64,
}

impl Segments {
    /// The table as recovery found it: live segments in order, all other existing slots ready. Nothing is open: after any
    /// recovery the log goes on in a fresh segment.
    pub fn new(slot_bytes: u64, live: Vec<Segment>, ready: Vec<Slot>, next_sequence: u64) -> Self {
        let slots = live.iter().map(|s| s.slot).chain(ready.iter().copied()).collect();
        let unsynced = BTreeSet::new();
        Self {
            slot_bytes,
            live: live.into(),
            is_open: false,
            ready: ready.into(),
            preparing: None,
            dropped: Vec::new(),
            removing: None,
            slots,
            unsynced,
            next_sequence,
        }
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Slots ready to become segments.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Slots that exist, whatever they hold.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The number that the next segment gets.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Live segments, oldest first.
    pub fn live(&self) -> impl DoubleEndedIterator<Item = &Segment> + '_ {
        self.live.iter()
    }

    /// The segment that takes frames.
    pub fn open(&self) -> Option<&Segment> {
        if self.is_open { self.live.back() } else { None }
    }

    /// Bytes left in the open segment.
    pub fn room(&self) -> u64 {
        self.open().map_or(0, |s| self.slot_bytes - u64::from(s.used_blocks) * BLOCK as u64)
    }

    /// Opens the next ready slot as the segment after `end`. False: none is ready.
    pub fn roll(&mut self, end: Boundary) -> bool {
        let Some(slot) = self.ready.pop_front() else { return false };
        self.live.push_back(Segment {
            slot,
            sequence: self.next_sequence,
            start: end,
            frames: Vec::new(),
            used_blocks: (HEADER_BYTES / BLOCK) as u32,
            opened_at: Nanos::default(),
            pins: 0,
        });
        self.next_sequence += 1;
        self.is_open = true;
        true
    }

    /// Puts a frame into the open segment.
    ///
    /// # Panics
    /// When none is open or the frame does not fit: the log makes room first.
    pub fn append(&mut self, now: Nanos, header: &FrameHeader) -> Spot {
        assert!(self.is_open, "a frame needs an open segment");
        let slot_blocks = (self.slot_bytes / BLOCK as u64) as u32;
        let segment = self.live.back_mut().expect("an open segment is the last live one");
        let frame = FrameRef::of(header, segment.used_blocks);
        assert!(segment.used_blocks + frame.blocks <= slot_blocks, "a frame never outgrows its segment");
        let first_in_segment = segment.frames.is_empty();
        if first_in_segment {
            segment.opened_at = now;
        }
        let payload_block = frame.block + (header.padded_bytes() / BLOCK) as u32;
        segment.used_blocks += frame.blocks;
        segment.frames.push(frame);
        Spot { slot: segment.slot, offset: u64::from(frame.block) * BLOCK as u64, payload_block, first_in_segment }
    }

    /// A write to the slot completed and no sync has covered it yet.
    pub fn mark_unsynced(&mut self, slot: Slot) {
        self.unsynced.insert(slot);
    }

    /// Every live segment needs a sync.
    pub fn mark_all_unsynced(&mut self) {
        self.unsynced = self.live.iter().map(|s| s.slot).collect();
    }

    /// The slots that the next sync must cover.
    pub fn take_unsynced(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.unsynced).into_iter().collect()
    }

    /// A slot to prepare, when fewer than wanted are ready and the limit allows one more.
    pub fn want_slot(&mut self, limit: usize) -> Option<Slot> {
        let enough = self.ready.len() >= super::SLOTS_AHEAD || self.preparing.is_some();
        if enough || self.slots.len() >= limit {
            return None;
        }
        let slot = (1..).map(Slot).find(|s| !self.slots.contains(s))?;
        self.preparing = Some(slot);
        self.slots.insert(slot);
        Some(slot)
    }

    /// True while a slot is being prepared: its file is about to appear, in place of whatever has its name by then.
    pub fn is_preparing(&self) -> bool {
        self.preparing.is_some()
    }

    /// The preparation of `slot` ended.
    pub fn on_prepared(&mut self, slot: Slot, ok: bool) {
        if self.preparing.take_if(|preparing| *preparing == slot).is_some() {
            if ok {
                self.ready.push_back(slot);
            } else {
                self.slots.remove(&slot);
            }
        }
    }

    /// The first record that the segments still hold comes after this boundary; `None` when there is no segment.
    pub fn start(&self) -> Option<Boundary> {
        self.live.front().map(|s| s.start)
    }

    /// Which segment and frame hold record `lsn`.
    pub fn locate(&self, lsn: Lsn) -> Option<(&Segment, usize)> {
        let at = self.live.partition_point(|s| s.end().position.lsn < lsn);
        let segment = self.live.get(at).filter(|s| s.start.position.lsn < lsn)?;
        let frame = segment.frames.partition_point(|f| f.last < lsn);
        (frame < segment.frames.len()).then_some((segment, frame))
    }

    /// The boundary exactly at `lsn`, if it is a frame's end (or the start of the oldest segment).
    pub fn boundary_at(&self, lsn: Lsn) -> Option<Boundary> {
        if let Some(start) = self.start().filter(|s| s.position.lsn == lsn) {
            return Some(start);
        }
        let (segment, frame) = self.locate(lsn)?;
        Some(segment.frames[frame].boundary()).filter(|b| b.position.lsn == lsn)
    }

    /// The highest boundary at or below `lsn`.
    pub fn boundary_below(&self, lsn: Lsn) -> Option<Boundary> {
        self.live.iter().rev().find_map(|s| {
            let at = s.frames.partition_point(|f| f.last <= lsn);
            match at {
                0 => (s.start.position.lsn <= lsn).then_some(s.start),
                n => Some(s.frames[n - 1].boundary()),
            }
        })
    }

    /// Pins or unpins the segment in `slot`.
    pub fn pin(&mut self, slot: Slot, delta: i32) {
        if let Some(s) = self.live.iter_mut().find(|s| s.slot == slot) {
            s.pins = s.pins.checked_add_signed(delta).expect("pins are given back once");
        }
    }

    /// Frees segments from the oldest on while their last record is `<= upto` and nobody reads them: their slots are ready
    /// again. The open segment stays.
    pub fn free(&mut self, upto: Lsn) -> usize {
        let mut freed = 0;
        while let Some(first) = self.live.front() {
            let is_open = self.is_open && self.live.len() == 1;
            if is_open || first.pins > 0 || first.end().position.lsn > upto {
                break;
            }
            if let Some(s) = self.live.pop_front() {
                self.unsynced.remove(&s.slot);
                self.ready.push_back(s.slot);
                freed += 1;
            }
        }
        freed
    }

    /// Forgets all segments and slots.
    pub fn clear(&mut self) {
        self.is_open = false;
        self.unsynced.clear();
        self.dropped.extend(self.live.drain(..).map(|s| s.slot));
        self.dropped.extend(self.ready.drain(..));
    }

    /// These ready slots hold sealed records: they are made anew.
    pub fn drop_slots(&mut self, slots: &[Slot]) {
        self.ready.retain(|s| !slots.contains(s));
        self.unsynced.retain(|s| !slots.contains(s));
        self.dropped.extend_from_slice(slots);
    }

    /// Slots whose files exist and stay.
    pub fn all_slots(&self) -> Vec<Slot> {
        self.live.iter().map(|s| s.slot).chain(self.ready.iter().copied()).collect()
    }

    /// The next slot whose file has to be removed: one after the other, from the newest on. What a process that dies leaves of
    /// them then follows the log without a gap, as if none had been removed; a gap would read as damage.
    pub fn next_dropped(&mut self) -> Option<Slot> {
        if self.removing.is_none() {
            self.removing = self.dropped.pop();
            return self.removing;
        }
        None
    }

    /// True while files are there whose records are no longer part of the history.
    pub fn is_clearing(&self) -> bool {
        self.removing.is_some() || !self.dropped.is_empty()
    }

    /// The slot's file is gone: its number may be used again.
    pub fn on_removed(&mut self, slot: Slot) {
        self.removing.take_if(|removing| *removing == slot);
        self.slots.remove(&slot);
    }

    /// Invariants: sequences ascend, frames ascend, each slot is in one place, the last live frame ends at `end`.
    pub fn check(&self, end: Lsn) {
        let (mut sequence, mut last) = (0, Lsn::ZERO);
        for s in &self.live {
            assert!(s.sequence > sequence, "segment sequences ascend");
            sequence = s.sequence;
            assert!(s.start.position.lsn >= last, "a segment starts before the end of its predecessor");
            last = s.start.position.lsn;
            for f in &s.frames {
                assert!(f.last > last, "frames ascend");
                last = f.last;
            }
        }
        if !self.live.is_empty() {
            assert_eq!(last, end, "the last live frame is the end of the log");
        }
        let live = self.live.iter().map(|s| s.slot);
        let mut seen: Vec<Slot> = live.chain(self.ready.iter().copied()).chain(self.preparing).collect();
        seen.sort_unstable();
        assert!(seen.is_sorted_by(|a, b| a < b), "a slot is in two places: {seen:?}");
        assert!(seen.iter().all(|slot| self.slots.contains(slot)), "every slot is known");
    }
}
