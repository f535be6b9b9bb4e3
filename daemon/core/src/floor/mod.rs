//! Advancing the floor: the newest version of each block at or below a target goes from the log into the base, in address
//! order, and only then does the floor move.
//!
//! Order: read the segments (checked), write the base, sync the base, read back what identifies it, save the superblock; the
//! node then prunes the index and frees segments. A crash anywhere before the superblock redoes the whole step: the index
//! still names the log for every block that the base may already hold.

mod pace;
mod samples;

use std::collections::VecDeque;

use bytes::Bytes;

pub use pace::{Pace, RELAXED_PERCENT};
pub use samples::{Head, blocks_of, heads, sample};

use crate::event::{DiskOp, FileRef, Slot};
use crate::floor::samples::{EXTENTS, HEAD_BYTES, SAMPLE_BYTES};
use crate::format::frame::FrameHeader;
use crate::format::superblock::Sample;
use crate::layout::Change;
use crate::log::frames::change_in;
use crate::log::segments::{FrameRef, Segments};
use crate::outbox::{Outbox, Route};
use crate::planted::{Planted, planted};
use crate::types::{BLOCK, BlockRange, Boundary, Lsn, Nanos, Secret};
use crate::volume::index::{Crcs, Index, Piece, Place};

/// Bytes of log that one advance takes at most (memory while it runs).
pub const BATCH_BYTES: u64 = 32 << 20;
/// Base writes under way at once: random blocks need a deep queue to keep a disk busy.
const WRITES_IN_FLIGHT: usize = 32;
/// Bytes of one base write.
const WRITE_BYTES: u64 = 1 << 20;
/// Bytes of one zeroing of the base, and how many are under way at once: a device that cannot zero by itself is written to, one
/// operation after the other, and each has to end in time.
const ZERO_BYTES: u64 = 64 << 20;
const ZEROS_IN_FLIGHT: usize = 2;
/// Bytes of one read of the log: what is checked at one go, while nobody else is served.
const READ_BYTES: u64 = 1 << 20;
#[derive(Debug)]
struct LogRead {
    slot: Slot,
    block: u32,
    blocks: u32,
    frames: Vec<FrameRef>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Phase {
    Idle,
    Reading,
    Writing,
    Syncing,
    Sampling,
    Saving,
}

/// What the node has to do next.
#[derive(Debug)]
pub enum Step {
    /// Nothing yet.
    Wait,
    /// The base holds everything up to the target and is synced: save the superblock.
    Save {
        /// The new floor.
        to: Boundary,
        /// Samples that identify the base now.
        samples: Vec<Sample>,
    },
    /// The log could not be read as it was written.
    Damaged,
    /// The base could not be written or synced.
    BaseFailed,
}

/// The machine.
#[derive(Debug)]
pub struct Floor {
    at: Boundary,
    phase: Phase,
    to: Boundary,
    reads: Vec<LogRead>,
    next_read: usize,
    buffers: Vec<Bytes>,
    batch: Index,
    /// What is written next; `None`: all was.
    next_write: Option<Piece>,
    in_flight: usize,
    failing: bool,
    pace: Pace,
    /// The last extents written behind the beginning, hashed only when the advance ends: most are followed by others.
    extents: VecDeque<(u64, Bytes)>,
    /// Samples of the volumes' beginnings that this advance leaves valid, and from where the rest is read of each.
    head: Vec<Sample>,
    head_reads: Vec<(Head, u64)>,
    heads_left: usize,
    change: Option<Change>,
    blocks: u64,
}

impl Floor {
    /// A floor that stands at `at`.
    pub fn new(at: Boundary) -> Self {
        Self {
            at,
            phase: Phase::Idle,
            to: at,
            reads: Vec::new(),
            next_read: 0,
            buffers: Vec::new(),
            batch: Index::default(),
            next_write: None,
            in_flight: 0,
            failing: false,
            pace: Pace::default(),
            extents: VecDeque::new(),
            head: Vec::new(),
            head_reads: Vec::new(),
            heads_left: 0,
            change: None,
            blocks: 0,
        }
    }

    /// Where it stands.
    pub fn at(&self) -> Boundary {
        self.at
    }

    /// True when no advance runs.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Blocks written to the base so far.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Stands at `at` from now on (a seeding ended, a copy was restarted).
    pub fn reset(&mut self, at: Boundary) {
        *self = Self { blocks: self.blocks, pace: self.pace.clone(), ..Self::new(at) };
    }

    /// The highest frame boundary `<= limit` that one advance may reach.
    pub fn reachable(&self, segments: &Segments, limit: Lsn) -> Option<Boundary> {
        let mut bytes = 0;
        let mut to = None;
        for frame in self.frames_above(segments, self.at.position.lsn).map(|(_, f)| f) {
            bytes += u64::from(frame.blocks) * BLOCK as u64;
            if frame.last > limit || (to.is_some() && bytes > BATCH_BYTES) {
                break;
            }
            to = Some(frame.boundary());
        }
        to
    }

    fn frames_above<'a>(
        &self,
        segments: &'a Segments,
        lsn: Lsn,
    ) -> impl Iterator<Item = (Slot, &'a FrameRef)> + use<'a> {
        segments
            .live()
            .filter(move |s| s.end().position.lsn > lsn)
            .flat_map(move |s| s.frames.iter().filter(move |f| f.last > lsn).map(move |f| (s.slot, f)))
    }

    /// Begins an advance to `to`, a boundary from [`Floor::reachable`].
    pub fn begin(&mut self, now: Nanos, to: Boundary, segments: &Segments, out: &mut Outbox) {
        assert!(self.is_idle() && to.position.lsn > self.at.position.lsn, "one advance at a time, forward only");
        let mut reads: Vec<LogRead> = Vec::new();
        for (slot, frame) in self.frames_above(segments, self.at.position.lsn) {
            if frame.last > to.position.lsn {
                break;
            }
            match reads.last_mut() {
                Some(r)
                    if r.slot == slot
                        && r.block + r.blocks == frame.block
                        && u64::from(r.blocks + frame.blocks) * BLOCK as u64 <= READ_BYTES =>
                {
                    r.blocks += frame.blocks;
                    r.frames.push(*frame);
                }
                _ => reads.push(LogRead { slot, block: frame.block, blocks: frame.blocks, frames: vec![*frame] }),
            }
        }
        (self.to, self.reads, self.next_read, self.phase) = (to, reads, 0, Phase::Reading);
        self.read_next(now, out);
    }

    fn read_next(&mut self, now: Nanos, out: &mut Outbox) {
        let r = &self.reads[self.next_read];
        let (file, offset) = (FileRef::Log(r.slot), u64::from(r.block) * BLOCK as u64);
        out.disk(now, Route::FloorRead, DiskOp::Read { file, offset, len: r.blocks * BLOCK as u32 });
    }

    /// A read of the log ended.
    pub fn on_read(&mut self, now: Nanos, data: Option<Bytes>, secret: &Secret, size: u64, out: &mut Outbox) -> Step {
        let Some(data) = data else { return self.stop(Step::Damaged) };
        if !self.take_frames(&data, secret) {
            return self.stop(Step::Damaged);
        }
        self.buffers.push(data);
        self.next_read += 1;
        if self.next_read < self.reads.len() {
            self.read_next(now, out);
            return Step::Wait;
        }
        self.phase = Phase::Writing;
        let size = self.size_with(size);
        self.seek(0, size);
        self.write_more(now, size, out);
        Step::Wait
    }

    fn take_frames(&mut self, data: &Bytes, secret: &Secret) -> bool {
        let buffer = Slot(self.buffers.len() as u32);
        let frames = std::mem::take(&mut self.reads[self.next_read].frames);
        let mut at = 0;
        for frame in &frames {
            let Ok(header) = FrameHeader::decode(&data[at..], secret) else { return false };
            let payload = at + header.padded_bytes();
            let end = payload + header.payload_bytes();
            if header.chain != frame.chain || end > data.len() {
                return false;
            }
            if !header.matches([&data[payload..end]]) {
                return false;
            }
            let Ok(change) = change_in(&header, &[data.slice(payload..end)]) else { return false };
            self.change = change.or(self.change.take());
            apply(&mut self.batch, &header, buffer, (payload / BLOCK) as u32);
            at = end;
        }
        true
    }

    /// What is written next is the first piece of the batch at or above block `from`, as far as the base reaches.
    fn seek(&mut self, from: u64, size: u64) {
        let blocks = size.div_ceil(BLOCK as u64);
        let piece = self.batch.next_from(from).filter(|piece| piece.lba < blocks);
        self.next_write = piece.map(|p| Piece { count: u64::from(p.count).min(blocks - p.lba) as u32, ..p });
    }

    /// Submits base writes up to the limit, as far as the pace admits them.
    fn write_more(&mut self, now: Nanos, size: u64, out: &mut Outbox) {
        while self.in_flight < self.most_in_flight()
            && self.pace.admits(now)
            && let Some(first) = self.next_write.take()
        {
            let op = self.next_op(first, size);
            if let DiskOp::Write { bufs, .. } = &op {
                self.pace.spend(bufs.iter().map(|b| b.len() as u64).sum());
            }
            self.in_flight += 1;
            out.disk(now, Route::FloorWrite, op);
        }
        if self.in_flight == 0 && self.next_write.is_none() {
            self.phase = Phase::Syncing;
            let files = if planted(Planted::FloorWithoutBaseSync) { Vec::new() } else { vec![FileRef::Base] };
            out.disk(now, Route::FloorSync, DiskOp::Sync { files });
        }
    }

    /// How many base writes may be under way for the next one to go.
    fn most_in_flight(&self) -> usize {
        let is_zero = |piece: &Piece| matches!(piece.found, Some((_, Place::Zero)));
        if self.next_write.as_ref().is_some_and(is_zero) { ZEROS_IN_FLIGHT } else { WRITES_IN_FLIGHT }
    }

    /// True when there are base writes that only the pace holds back.
    fn is_held_back(&self) -> bool {
        self.phase == Phase::Writing
            && !self.failing
            && self.next_write.is_some()
            && self.in_flight < self.most_in_flight()
    }

    /// Goes on with base writes that were held back.
    pub fn go_on(&mut self, now: Nanos, size: u64, out: &mut Outbox) {
        if self.is_held_back() {
            self.write_more(now, self.size_with(size), out);
        }
    }

    /// When base writes that are held back go on even if nothing else happens.
    pub fn timeout(&self) -> Option<Nanos> {
        self.is_held_back().then(|| self.pace.idle_at())
    }

    /// How fast it may write.
    pub fn pace(&mut self) -> &mut Pace {
        &mut self.pace
    }

    /// The run of adjacent blocks that begins with `first` as one operation.
    fn next_op(&mut self, first: Piece, size: u64) -> DiskOp {
        let offset = first.lba * BLOCK as u64;
        if let Some((_, Place::Zero)) = first.found {
            let count = first.count.min((ZERO_BYTES / BLOCK as u64) as u32);
            self.seek(first.lba + u64::from(count), size);
            self.blocks += u64::from(count);
            let len = (u64::from(count) * BLOCK as u64).min(size - offset);
            return DiskOp::Zero { file: FileRef::Base, offset, len, deallocate: true };
        }
        let (mut bufs, mut end) = (Vec::new(), first.lba);
        self.next_write = Some(first.clone());
        while let Some(piece) = &self.next_write {
            let Some((_, Place::Log { slot, block, .. })) = &piece.found else { break };
            let bytes = (piece.lba + u64::from(piece.count) - first.lba) * BLOCK as u64;
            if piece.lba != end || (end > first.lba && bytes > WRITE_BYTES) {
                break;
            }
            let (from, len) = (*block as usize * BLOCK, piece.count as usize * BLOCK);
            bufs.push(self.buffers[slot.0 as usize].slice(from..from + len));
            end = piece.lba + u64::from(piece.count);
            self.seek(end, size);
        }
        self.blocks += end - first.lba;
        clamp(&mut bufs, (end - first.lba) * BLOCK as u64, size - offset);
        self.remember_extent(offset, &bufs);
        DiskOp::Write { file: FileRef::Base, offset, bufs, durable: false }
    }

    fn remember_extent(&mut self, offset: u64, bufs: &[Bytes]) {
        let Some(first) = bufs.first().filter(|_| offset >= HEAD_BYTES) else { return };
        let len = first.len().min(SAMPLE_BYTES as usize);
        if self.extents.len() == EXTENTS {
            self.extents.pop_front();
        }
        self.extents.push_back((offset, first.slice(..len)));
    }

    /// A base write ended.
    pub fn on_written(&mut self, now: Nanos, ok: bool, size: u64, out: &mut Outbox) -> Step {
        self.in_flight -= 1;
        self.failing |= !ok;
        if self.failing {
            // The next attempt must not meet writes of this one: wait for all of them.
            return if self.in_flight == 0 { self.stop(Step::BaseFailed) } else { Step::Wait };
        }
        let size = self.size_with(size);
        self.write_more(now, size, out);
        Step::Wait
    }

    /// The base sync ended: reads back what this advance changed of the volumes' beginnings, for identification. `known` are the
    /// samples in force.
    pub fn on_synced(&mut self, now: Nanos, ok: bool, heads: &[Head], known: &[Sample], out: &mut Outbox) -> Step {
        if !ok {
            return self.stop(Step::BaseFailed);
        }
        let pieces: Vec<(u64, u64)> = heads.iter().flat_map(Head::pieces).collect();
        let holds = |s: &&Sample| pieces.contains(&(s.offset, u64::from(s.len))) && !self.batch.touches(blocks_of(s));
        self.head = known.iter().filter(holds).copied().collect();
        for head in heads {
            let mut stale = head.pieces().filter(|piece| !self.is_sampled(*piece));
            let Some((first, bytes)) = stale.next() else { continue };
            let end = stale.last().map_or(first + bytes, |(last, bytes)| last + bytes);
            let number = self.head_reads.len();
            let op = DiskOp::Read { file: FileRef::Base, offset: first, len: (end - first) as u32 };
            self.head_reads.push((*head, first));
            out.disk(now, Route::FloorHead { number }, op);
        }
        self.heads_left = self.head_reads.len();
        if self.heads_left == 0 {
            return self.save();
        }
        self.phase = Phase::Sampling;
        Step::Wait
    }

    /// The sample of a piece of the beginning is known to hold still.
    fn is_sampled(&self, (offset, bytes): (u64, u64)) -> bool {
        self.head.iter().any(|s| s.offset == offset && u64::from(s.len) == bytes)
    }

    /// What had to be read of one beginning was read (or could not be: then it is not sampled). What this advance did not touch
    /// keeps its sample: a base that somebody else wrote to meanwhile is to be noticed, not to be identified anew.
    pub fn on_head(&mut self, number: usize, data: Option<Bytes>) -> Step {
        let Some((head, from)) = self.head_reads.get(number).copied() else { return Step::Wait };
        let data = data.unwrap_or_default();
        let fresh = head.samples(from, &data, |piece| !self.is_sampled(piece));
        self.head.extend(fresh);
        self.heads_left -= 1;
        if self.heads_left > 0 {
            return Step::Wait;
        }
        self.head.sort_by_key(|s| s.offset);
        self.save()
    }

    fn save(&mut self) -> Step {
        self.phase = Phase::Saving;
        let mut samples = std::mem::take(&mut self.head);
        samples.extend(self.extents.iter().map(|(offset, data)| sample(*offset, data)));
        Step::Save { to: self.to, samples }
    }

    /// The superblock with the new floor is durable: gives the ranges that left the log.
    pub fn on_saved(&mut self) -> (Boundary, Vec<BlockRange>) {
        assert_eq!(self.phase, Phase::Saving, "saved what was asked to be saved");
        self.at = self.to;
        let ranges = self.batch.iter().map(|(lba, count, _)| BlockRange::new(lba, count as u32)).collect();
        self.clear();
        (self.at, ranges)
    }

    fn clear(&mut self) {
        self.phase = Phase::Idle;
        self.failing = false;
        self.reads.clear();
        self.buffers.clear();
        self.batch.clear();
        self.next_write = None;
        self.extents.clear();
        self.head.clear();
        self.head_reads.clear();
        self.change = None;
    }

    fn stop(&mut self, why: Step) -> Step {
        self.clear();
        why
    }

    /// True when the superblock with this advance is being saved.
    pub fn is_saving(&self) -> bool {
        self.phase == Phase::Saving
    }

    /// The blocks that the batch changes: first block, and how many.
    pub fn changed(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.batch.iter().map(|(lba, count, _)| (lba, count))
    }

    /// What the batch makes of the layout, when it says anything of it.
    pub fn change(&self) -> Option<&Change> {
        self.change.as_ref()
    }

    /// Bytes of the group's space with what the batch makes of it.
    fn size_with(&self, size: u64) -> u64 {
        match &self.change {
            Some(Change::Size(size)) => *size,
            Some(Change::Layout(layout)) => layout.size(),
            None => size,
        }
    }
}

/// Cuts the pieces to `limit` bytes in all, when they are `len` bytes.
fn clamp(bufs: &mut [Bytes], len: u64, limit: u64) {
    if len > limit
        && let Some(last) = bufs.last_mut()
    {
        last.truncate(last.len() - (len - limit) as usize);
    }
}

/// Puts a frame's records into an index whose places are `(slot, block)`. A frame that is not understood was refused where it
/// came in: what is skipped here changes no block.
pub fn apply(index: &mut Index, header: &FrameHeader, slot: Slot, payload_block: u32) {
    use crate::format::record::Kind;
    debug_assert!(header.is_understood(), "refused by the receiver and by recovery");
    let (mut block, mut crc) = (payload_block, 0usize);
    for (i, record) in header.records.iter().enumerate() {
        let lsn = header.first.advance(i as u64);
        let n = record.payload_blocks();
        match (record.kind, record.range()) {
            (Kind::Write, Some(range)) => {
                let crcs = Crcs::of(&header.crcs[crc..crc + n as usize]);
                index.insert(range, lsn, Place::Log { slot, block, crcs });
            }
            (Kind::Discard, Some(_)) if planted(Planted::DiscardNotIndexed) => {}
            (_, Some(range)) => index.insert(range, lsn, Place::Zero),
            _ => {}
        }
        block += n;
        crc += n as usize;
    }
}
