//! Advancing the floor: the newest version of each block at or below a target goes from the log into the base, in address
//! order, and only then does the floor move.
//!
//! Order: read the segments (checked), write the base, sync the base, read back what identifies it, save the superblock; the
//! node then prunes the index and frees segments. A crash anywhere before the superblock redoes the whole step: the index
//! still names the log for every block that the base may already hold.

mod pace;

use std::collections::VecDeque;

use bytes::Bytes;

pub use pace::{Pace, RELAXED_PERCENT};

use crate::event::{DiskOp, FileRef, Slot};
use crate::format::block_crcs;
use crate::format::frame::FrameHeader;
use crate::format::superblock::{MAX_SAMPLES, Sample};
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
/// How much of the base's beginning identifies it.
pub const HEAD_BYTES: u64 = 1 << 20;
/// Bytes of a sample.
pub const SAMPLE_BYTES: u64 = 64 * 1024;
/// So much of the head is sampled block by block. A sample is not compared while the log has newer content of any part of it,
/// and the first blocks of a file system change all the time: one that covered many would hardly ever count.
const FINE_BYTES: u64 = 64 * 1024;
/// Samples of the head.
const HEAD_SAMPLES: usize = FINE_BYTES as usize / BLOCK + ((HEAD_BYTES - FINE_BYTES) / SAMPLE_BYTES) as usize;
/// Extents sampled after an advance: the rest.
const EXTENTS: usize = MAX_SAMPLES - HEAD_SAMPLES;

/// Hash of a sample.
pub fn sample(offset: u64, data: &[u8]) -> Sample {
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(data).as_bytes()[..16]);
    Sample { offset, len: data.len() as u32, hash }
}

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
    /// Samples of the base's beginning that this advance leaves valid, and where the rest is read from.
    head: Vec<Sample>,
    head_from: u64,
    resized: Option<u64>,
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
            head_from: 0,
            resized: None,
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
        let size = self.resized.unwrap_or(size);
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
            if !block_crcs(&data[payload..end]).eq(header.crcs.iter().copied()) {
                return false;
            }
            self.resized = apply(&mut self.batch, &header, buffer, (payload / BLOCK) as u32).or(self.resized);
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
            self.write_more(now, self.resized.unwrap_or(size), out);
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
        let size = self.resized.unwrap_or(size);
        self.write_more(now, size, out);
        Step::Wait
    }

    /// The base sync ended: reads back what this advance changed of the beginning, for identification. `known` are the samples
    /// in force.
    pub fn on_synced(&mut self, now: Nanos, ok: bool, base_bytes: u64, known: &[Sample], out: &mut Outbox) -> Step {
        if !ok {
            return self.stop(Step::BaseFailed);
        }
        let len = HEAD_BYTES.min(base_bytes);
        let holds = |s: &&Sample| {
            head_pieces(len).any(|piece| piece == (s.offset, u64::from(s.len))) && !self.batch.touches(blocks_of(s))
        };
        self.head = known.iter().filter(holds).copied().collect();
        let mut stale = head_pieces(len).filter(|piece| !self.is_sampled(*piece));
        let Some((first, bytes)) = stale.next() else { return self.save() };
        let end = stale.last().map_or(first + bytes, |(last, bytes)| last + bytes);
        self.head_from = first;
        self.phase = Phase::Sampling;
        let op = DiskOp::Read { file: FileRef::Base, offset: first, len: (end - first) as u32 };
        out.disk(now, Route::Sample { at: usize::MAX }, op);
        Step::Wait
    }

    /// The sample of a piece of the beginning is known to hold still.
    fn is_sampled(&self, (offset, bytes): (u64, u64)) -> bool {
        self.head.iter().any(|s| s.offset == offset && u64::from(s.len) == bytes)
    }

    /// What had to be read of the beginning was read (or could not be: then it is not sampled). What this advance did not touch
    /// keeps its sample: a base that somebody else wrote to meanwhile is to be noticed, not to be identified anew.
    pub fn on_head(&mut self, data: Option<Bytes>) -> Step {
        let data = data.unwrap_or_default();
        let fresh = head_samples(self.head_from, &data, |piece| !self.is_sampled(piece));
        self.head.extend(fresh);
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
        self.resized = None;
    }

    fn stop(&mut self, why: Step) -> Step {
        self.clear();
        why
    }

    /// True when the head of the base is being read back.
    pub fn is_sampling(&self) -> bool {
        self.phase == Phase::Sampling
    }

    /// True when the superblock with this advance is being saved.
    pub fn is_saving(&self) -> bool {
        self.phase == Phase::Saving
    }

    /// The size in bytes that the batch sets, when it holds a RESIZE.
    pub fn resized(&self) -> Option<u64> {
        self.resized
    }
}

/// How the first `len` bytes of a base are cut into samples, back to back: offset and bytes of each.
fn head_pieces(len: u64) -> impl Iterator<Item = (u64, u64)> {
    let fine = FINE_BYTES.min(len);
    let small = (0..fine).step_by(BLOCK).map(move |at| (at, (BLOCK as u64).min(fine - at)));
    let large = (fine..len).step_by(SAMPLE_BYTES as usize).map(move |at| (at, SAMPLE_BYTES.min(len - at)));
    small.chain(large)
}

/// Samples of the wanted pieces of a part of the first MiB that begins with one at `from`.
pub fn head_samples(from: u64, data: &[u8], wanted: impl Fn((u64, u64)) -> bool) -> Vec<Sample> {
    let pieces = head_pieces(from + data.len() as u64).filter(|piece| piece.0 >= from && wanted(*piece));
    pieces.map(|(at, bytes)| sample(at, &data[(at - from) as usize..(at - from + bytes) as usize])).collect()
}

/// The blocks that a sample touches.
pub fn blocks_of(s: &Sample) -> BlockRange {
    let first = s.offset / BLOCK as u64;
    let end = (s.offset + u64::from(s.len)).div_ceil(BLOCK as u64);
    BlockRange::new(first, (end - first) as u32)
}

/// Cuts the pieces to `limit` bytes in all, when they are `len` bytes.
fn clamp(bufs: &mut [Bytes], len: u64, limit: u64) {
    if len > limit
        && let Some(last) = bufs.last_mut()
    {
        last.truncate(last.len() - (len - limit) as usize);
    }
}

/// Puts a frame's records into an index whose places are `(slot, block)`; gives the size that a RESIZE sets. A frame that is not
/// understood was refused where it came in: what is skipped here changes no block.
pub fn apply(index: &mut Index, header: &FrameHeader, slot: Slot, payload_block: u32) -> Option<u64> {
    use crate::format::record::Kind;
    debug_assert!(header.is_understood(), "refused by the receiver and by recovery");
    let (mut block, mut crc, mut size) = (payload_block, 0usize, None);
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
            (Kind::Resize, None) => size = Some(record.lba),
            _ => {}
        }
        block += n;
        crc += n as usize;
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_cover_the_head_once_and_its_first_blocks_one_by_one() {
        for len in [512, BLOCK, FINE_BYTES as usize, HEAD_BYTES as usize - 512, HEAD_BYTES as usize] {
            let samples = head_samples(0, &vec![7; len], |_| true);
            assert!(samples.len() <= HEAD_SAMPLES);
            let ends = samples.iter().map(|s| s.offset + u64::from(s.len));
            let starts = samples.iter().skip(1).map(|s| s.offset).chain([len as u64]);
            assert!(ends.eq(starts), "{len} bytes");
            assert!(samples.iter().take(FINE_BYTES as usize / BLOCK).all(|s| s.len as usize <= BLOCK));
        }
    }
}
