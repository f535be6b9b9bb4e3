//! Recovery: from the slots on disk back to a log.
//!
//! Facts become one decision per log:
//!
//! | fact | decision |
//! |---|---|
//! | every frame verifies up to an end, nothing proves that more was durable | clean or torn tail: cut there |
//! | a frame fails and a later one, or the superblock, says that its place was durable | damaged: refuse to serve, repair from the peer |
//! | the segment that follows the floor is missing | as a frame that fails: its successor's header may outlive it in a power cut |
//! | the segment that holds the floor does not contain it | damaged |
//! | a good frame of the log holds a record of a kind that is not known here and may not be skipped | refuse: a newer version wrote it |
//! | a later segment begins inside an earlier one | the earlier one is cut there (a sealed suffix) |
//! | the superblock names a cut | as if such a segment began there, also while there is none |
//!
//! A frame's own keyed hash tells a frame of this volume from anything else; its chain tells the successor of the last good
//! frame from a stale one in a reused slot.

use bytes::{Buf, Bytes};

use crate::config::Config;
use crate::event::{DiskDone, DiskOp, DiskResult, FileRef, Slot};
use crate::format::frame::{FIXED_BYTES, FrameHeader, FrameKind};
use crate::format::segment::{HEADER_BYTES, SegmentHeader};
use crate::format::superblock::Cut;
use crate::log::Placed;
use crate::log::frames::{change_in, opened_under};
use crate::log::segments::{FrameRef, Segment, Segments};
use crate::outbox::{Outbox, Route};
use crate::planted::{Planted, planted};
use crate::types::{BLOCK, Boundary, Epoch, GenId, Lsn, Nanos, Secret, SiteId, VolumeId};

/// Bytes read at a time.
const CHUNK: u64 = 4 << 20;

/// What recovery starts from: the superblock's word.
#[derive(Clone, Debug)]
pub struct Start {
    /// The volume.
    pub volume: VolumeId,
    /// Own site.
    pub site: SiteId,
    /// The generation that the own site writes: that of a K which has it as primary.
    pub writes: Option<GenId>,
    /// Its secret.
    pub secret: Secret,
    /// Bytes of a slot.
    pub slot_bytes: u64,
    /// What the base holds.
    pub floor: Boundary,
    /// Known durable.
    pub durable: Lsn,
    /// Ignore all segments: the copy is being seeded and starts over.
    pub discard: bool,
    /// Where the log was cut: what older segments hold beyond was sealed.
    pub cut: Option<Cut>,
}

/// A log as it was found.
#[derive(Debug)]
pub struct Recovered {
    /// The table of segments.
    pub segments: Segments,
    /// The end of the log.
    pub end: Boundary,
    /// Bytes behind the end that were cut.
    pub cut_bytes: u64,
    /// Records up to here were durable once; when it is above `end`, the log is damaged.
    pub required: Lsn,
    /// Records up to here stand in the slots, in reach or beyond damage; at least `required`.
    pub beyond: Lsn,
    /// What is damaged, for people.
    pub damage: Option<&'static str>,
    /// The newest K under which the own site began an incarnation in this log: it was in force here. One of the other site need not have
    /// been: what is written under a newer K is sent to whoever has not confirmed that yet.
    pub opened_under: Option<Config>,
}

/// What a completed read led to.
#[derive(Debug)]
pub enum Step {
    /// Frames above the floor, in order; more to come.
    More(Vec<Placed>),
    /// The last frames, and the log.
    Done(Vec<Placed>, Box<Recovered>),
    /// The log cannot be used, and nothing may be concluded from it; why, for people.
    Failed(&'static str),
}

#[derive(Debug)]
enum Phase {
    Headers { next: usize },
    Segment { at: usize },
}

/// The machine.
#[derive(Debug)]
pub struct Recovery {
    start: Start,
    slots: Vec<(Slot, u64)>,
    found: Vec<(Slot, SegmentHeader)>,
    live: Vec<Segment>,
    phase: Phase,
    buf: Bytes,
    /// Offset in the slot of `buf[0]`.
    base: u64,
    end: Boundary,
    damage: Option<&'static str>,
    opened_under: Option<Config>,
    required: Lsn,
    beyond: Lsn,
    cut_bytes: u64,
    broken: bool,
    /// A frame of the log is not understood.
    is_foreign: bool,
    next_sequence: u64,
}

impl Recovery {
    /// Begins: reads the slots' headers.
    pub fn begin(now: Nanos, start: Start, slots: Vec<(Slot, u64)>, out: &mut Outbox) -> (Self, Option<Step>) {
        let (end, required) = (start.floor, start.durable);
        let mut recovery = Self {
            start,
            slots,
            found: Vec::new(),
            live: Vec::new(),
            phase: Phase::Headers { next: 0 },
            buf: Bytes::new(),
            base: 0,
            end,
            damage: None,
            opened_under: None,
            required,
            beyond: Lsn::ZERO,
            cut_bytes: 0,
            broken: false,
            is_foreign: false,
            next_sequence: 1,
        };
        let step = recovery.next_header(now, out);
        (recovery, step)
    }

    fn next_header(&mut self, now: Nanos, out: &mut Outbox) -> Option<Step> {
        let Phase::Headers { next } = &mut self.phase else { return None };
        while let Some((slot, len)) = self.slots.get(*next).copied() {
            *next += 1;
            if len == self.start.slot_bytes {
                read(now, slot, 0, HEADER_BYTES as u64, out);
                return None;
            }
        }
        self.choose();
        Some(self.open_segment(now, 0, out))
    }

    /// Picks the live segments: backwards by sequence, each beginning before its successor, until one holds the floor.
    fn choose(&mut self) {
        // No segment gets the number of one that was cut off, also when none of those is left.
        let cut = self.start.cut.map_or(1, |cut| cut.sequence);
        self.next_sequence = self.found.iter().map(|(_, h)| h.sequence + 1).fold(cut, u64::max);
        self.found.sort_by_key(|(_, h)| h.sequence);
        let mut limit = Lsn(u64::MAX);
        let mut chosen = Vec::new();
        let floor = self.start.floor.position.lsn;
        for (slot, header) in self.found.iter().rev() {
            if self.start.discard || limit <= floor {
                break;
            }
            if header.start.position.lsn < limit && !self.is_cut_off(header) {
                limit = header.start.position.lsn;
                chosen.push(Segment {
                    slot: *slot,
                    sequence: header.sequence,
                    start: header.start,
                    frames: Vec::new(),
                    used_blocks: (HEADER_BYTES / BLOCK) as u32,
                    opened_at: Nanos::default(),
                    pins: 0,
                });
            }
        }
        chosen.reverse();
        match chosen.first() {
            Some(first) if first.start.position.lsn > floor => {
                self.damage = Some("the segment that follows the floor is missing");
                self.broken = true;
            }
            Some(first) => self.end = first.start,
            None => {}
        }
        self.live = chosen;
    }

    fn open_segment(&mut self, now: Nanos, at: usize, out: &mut Outbox) -> Step {
        let Some(segment) = self.live.get(at) else { return self.finish(Vec::new()) };
        let (slot, start) = (segment.slot, segment.start);
        if !self.broken && at > 0 && start != self.end {
            self.on_broken("the log does not reach the next segment");
        }
        self.phase = Phase::Segment { at };
        self.buf.clear();
        self.base = HEADER_BYTES as u64;
        let len = CHUNK.min(self.start.slot_bytes - HEADER_BYTES as u64);
        read(now, slot, HEADER_BYTES as u64, len, out);
        Step::More(Vec::new())
    }

    fn on_broken(&mut self, why: &'static str) {
        self.broken = true;
        self.damage.get_or_insert(why);
    }

    /// A read ended.
    pub fn on_read(&mut self, now: Nanos, result: DiskResult, out: &mut Outbox) -> Option<Step> {
        let bytes = match result {
            Ok(DiskDone::Read(bytes)) => bytes,
            Ok(_) | Err(_) => return Some(Step::Failed("the log cannot be read")),
        };
        match self.phase {
            Phase::Headers { next } => {
                let slot = self.slots[next - 1].0;
                let header = SegmentHeader::decode(&bytes, &self.start.secret);
                if let Ok(h) = header
                    && h.volume == self.start.volume
                    && h.slot_bytes == self.start.slot_bytes
                {
                    self.found.push((slot, h));
                }
                self.next_header(now, out)
            }
            Phase::Segment { at } => {
                self.take_in(bytes);
                let placed = self.parse(at);
                if self.is_foreign {
                    return Some(Step::Failed("the log holds a record of a kind that this version does not know"));
                }
                Some(self.go_on(now, at, placed, out))
            }
        }
    }

    /// Usually nothing is left of what was read before, and nothing is copied.
    fn take_in(&mut self, bytes: Bytes) {
        self.buf = if self.buf.is_empty() { bytes } else { [&self.buf[..], &bytes].concat().into() };
    }

    fn go_on(&mut self, now: Nanos, at: usize, placed: Vec<Placed>, out: &mut Outbox) -> Step {
        let read_to = self.base + self.buf.len() as u64;
        let ended = self.segment_ended(at);
        if read_to < self.start.slot_bytes && !ended {
            let len = CHUNK.min(self.start.slot_bytes - read_to);
            read(now, self.live[at].slot, read_to, len, out);
            return Step::More(placed);
        }
        if at + 1 < self.live.len() {
            let Step::More(mut rest) = self.open_segment(now, at + 1, out) else {
                unreachable!("there is a next segment")
            };
            let mut placed = placed;
            placed.append(&mut rest);
            return Step::More(placed);
        }
        self.finish(placed)
    }

    /// The next segment begins where this one got to, or it was cut there: nothing further in it belongs to the log.
    fn segment_ended(&self, at: usize) -> bool {
        if self.start.cut.is_some_and(|cut| self.live[at].sequence < cut.sequence && cut.at == self.end.position) {
            return true;
        }
        !self.broken && self.live.get(at + 1).is_some_and(|next| next.start == self.end)
    }

    /// Takes what is whole in the buffer.
    fn parse(&mut self, at: usize) -> Vec<Placed> {
        let mut placed = Vec::new();
        let mut used = 0;
        while !self.segment_ended(at) && !self.is_foreign {
            match self.parse_one(at, used, &mut placed) {
                Parsed::Frame(len) => used += len,
                Parsed::Skip => used += BLOCK,
                Parsed::NeedMore => break,
                Parsed::End => {
                    used = self.buf.len() / BLOCK * BLOCK;
                    break;
                }
            }
        }
        self.buf.advance(used);
        self.base += used as u64;
        placed
    }

    fn parse_one(&mut self, at: usize, used: usize, placed: &mut Vec<Placed>) -> Parsed {
        let rest = &self.buf[used..];
        let to_end = self.start.slot_bytes - self.base - used as u64;
        if rest.len() < BLOCK {
            return if to_end < BLOCK as u64 { Parsed::End } else { Parsed::NeedMore };
        }
        let Ok(header_bytes) = FrameHeader::peek_used(rest) else { return self.no_frame(used) };
        let need = (header_bytes.div_ceil(BLOCK) * BLOCK) as u64;
        if need > to_end {
            return self.no_frame(used);
        }
        if (rest.len() as u64) < need {
            return Parsed::NeedMore;
        }
        let header = match FrameHeader::decode(rest, &self.start.secret) {
            Ok(h) if h.volume == self.start.volume && h.kind == FrameKind::Log => h,
            _ => return self.no_frame(used),
        };
        let total = header.total_bytes();
        if total as u64 > to_end {
            return self.no_frame(used);
        }
        if rest.len() < total {
            return Parsed::NeedMore;
        }
        let payload = self.buf.slice(used + header.padded_bytes()..used + total);
        let good = header.matches([payload.as_ref()]);
        self.judge(at, used, header, payload, good, placed)
    }

    fn judge(
        &mut self,
        at: usize,
        used: usize,
        header: FrameHeader,
        payload: Bytes,
        good: bool,
        placed: &mut Vec<Placed>,
    ) -> Parsed {
        let total = header.total_bytes();
        if good && self.heals(&header) {
            self.end = self.start.floor;
            (self.broken, self.damage) = (false, None);
        }
        let follows = header.follows(&self.end) || planted(Planted::StaleFrameAccepted);
        if self.broken || !follows || !good {
            self.note_evidence(at, &header);
            return if self.broken || !follows { self.no_frame(used) } else { self.bad_payload(total) };
        }
        let is_new = header.first > self.start.floor.position.lsn;
        let payload = [payload];
        let opened = opened_under(&header, &payload, self.start.site);
        let change = if is_new { change_in(&header, &payload) } else { Ok(None) };
        self.is_foreign |= is_new && (!header.is_understood() || change.is_err());
        if self.is_foreign {
            return Parsed::End;
        }
        let block = ((self.base + used as u64) / BLOCK as u64) as u32;
        let frame = FrameRef::of(&header, block);
        let segment = &mut self.live[at];
        segment.used_blocks = frame.block + frame.blocks;
        segment.frames.push(frame);
        self.end = header.boundary();
        let newest = self.opened_under.as_ref().map_or(Epoch::default(), |k| k.epoch);
        self.opened_under = opened.filter(|k| k.epoch > newest).or(self.opened_under.take());
        if is_new {
            let payload_block = block + (header.padded_bytes() / BLOCK) as u32;
            placed.push(Placed { header, slot: segment.slot, payload_block, change: change.ok().flatten() });
        }
        Parsed::Frame(total)
    }

    /// Damage below the floor does not matter: the base holds that part. The frame that follows the floor takes up the chain.
    fn heals(&self, header: &FrameHeader) -> bool {
        let floor = &self.start.floor;
        self.broken && self.end.position.lsn < floor.position.lsn && header.follows(floor)
    }

    fn bad_payload(&mut self, total: usize) -> Parsed {
        self.on_broken("a frame's payload does not match its checksums");
        self.cut_bytes += total as u64;
        Parsed::Skip
    }

    /// There is no (further) frame of the log here; goes on looking for evidence of what once was durable.
    fn no_frame(&mut self, used: usize) -> Parsed {
        if !self.broken {
            self.on_broken("no frame continues the log");
        }
        if self.buf[used..used + BLOCK] != [0; BLOCK] {
            self.cut_bytes += BLOCK as u64;
        }
        Parsed::Skip
    }

    /// A frame of this volume stands beyond the end: what it says was durable here had to be there.
    fn note_evidence(&mut self, at: usize, header: &FrameHeader) {
        if self.is_of_this_log(at, header) {
            let wrote = self.start.writes == Some(header.generation);
            let upto = self.upto(self.live[at].sequence);
            self.required = self.required.max(header.durable_at(self.start.site, wrote).min(upto));
            self.beyond = self.beyond.max(header.boundary().position.lsn.min(upto));
        }
    }

    /// The last record of the log that a segment may hold: what comes after it was sealed when the log was cut.
    fn upto(&self, sequence: u64) -> Lsn {
        self.start.cut.filter(|cut| sequence < cut.sequence).map_or(Lsn(u64::MAX), |cut| cut.at.lsn)
    }

    /// All that the segment holds was sealed when the log was cut.
    fn is_cut_off(&self, header: &SegmentHeader) -> bool {
        header.start.position.lsn >= self.upto(header.sequence)
    }

    /// A reused slot may have older frames left over, and a slot that was cut newer ones that were sealed: a frame counts where
    /// its segment can have it, and in no older incarnation than the end and the segment's own beginning.
    fn is_of_this_log(&self, at: usize, header: &FrameHeader) -> bool {
        let start = self.live[at].start.position;
        let limit = self.live.get(at + 1).map_or(Lsn(u64::MAX), |next| next.start.position.lsn);
        let newest = if start.incarnation > self.end.position.incarnation { start } else { self.end.position };
        let continues = header.incarnation > newest.incarnation
            || header.incarnation == newest.incarnation && header.generation == newest.generation;
        continues && header.first > self.end.position.lsn.max(start.lsn) && header.first <= limit
    }

    fn finish(&mut self, placed: Vec<Placed>) -> Step {
        let floor = self.start.floor;
        if !self.start.discard && self.end.position.lsn < floor.position.lsn {
            self.on_broken("the log ends below the floor");
        }
        self.check_floor();
        if self.live.is_empty() || self.end.position.lsn < floor.position.lsn {
            self.end = floor;
            self.live.clear();
        }
        let end = self.end;
        while self.live.last().is_some_and(|s| s.frames.is_empty()) {
            self.live.pop();
        }
        let live = std::mem::take(&mut self.live);
        let ready: Vec<Slot> = self
            .slots
            .iter()
            .filter(|(slot, len)| *len == self.start.slot_bytes && !live.iter().any(|s| s.slot == *slot))
            .map(|(slot, _)| *slot)
            .collect();
        let damaged = self.required > end.position.lsn;
        let sealed: Vec<Slot> = self.beyond_cut(&ready);
        let mut segments = Segments::new(self.start.slot_bytes, live, ready, self.next_sequence);
        segments.drop_slots(&sealed);
        Step::Done(
            placed,
            Box::new(Recovered {
                segments,
                end,
                cut_bytes: self.cut_bytes,
                required: self.required,
                beyond: self.beyond.max(self.required),
                damage: if damaged { self.damage.or(Some("durable records are missing")) } else { None },
                opened_under: self.opened_under.take(),
            }),
        )
    }

    /// Slots that hold nothing but what was sealed.
    fn beyond_cut(&self, ready: &[Slot]) -> Vec<Slot> {
        let beyond = self.found.iter().filter(|(_, h)| self.is_cut_off(h));
        beyond.map(|(slot, _)| *slot).filter(|slot| ready.contains(slot)).collect()
    }

    /// The floor must be a boundary of the log that was found, or its end.
    fn check_floor(&mut self) {
        let floor = self.start.floor;
        let boundaries =
            self.live.iter().flat_map(|s| std::iter::once(s.start).chain(s.frames.iter().map(FrameRef::boundary)));
        let mut boundaries = boundaries.filter(|b| b.position.lsn == floor.position.lsn);
        let begins = self.live.first().is_some_and(|s| s.start.position.lsn <= floor.position.lsn);
        let in_reach = begins && self.end.position.lsn >= floor.position.lsn;
        if in_reach && !boundaries.any(|b| b == floor) {
            self.damage = Some("the floor is not a boundary of the log");
            self.required = self.required.max(self.end.position.lsn.next());
        }
    }
}

enum Parsed {
    Frame(usize),
    Skip,
    NeedMore,
    End,
}

fn read(now: Nanos, slot: Slot, offset: u64, len: u64, out: &mut Outbox) {
    out.disk(now, Route::Recovery, DiskOp::Read { file: FileRef::Log(slot), offset, len: len as u32 });
}

/// The smallest slot that recovery and the log can work with.
pub const MIN_SLOT_BYTES: u64 = 64 * 1024;

const _: () = assert!(FIXED_BYTES < BLOCK);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::event::Output;
    use crate::format::record::{Descriptor, FLAG_IGNORABLE, Kind};
    use crate::log::frames::{FrameContext, Record, build};
    use crate::types::{BlockRange, Incarnation};

    const SLOT_BYTES: u64 = 64 * 1024;
    const VOLUME: VolumeId = VolumeId([1; 16]);
    const SITE: SiteId = SiteId([2; 16]);
    const WRITTEN: GenId = GenId([3; 16]);

    /// Slots with one segment each, in order.
    struct Disks {
        secret: Secret,
        end: Boundary,
        slots: Vec<Vec<u8>>,
        cut: Option<Cut>,
    }

    impl Disks {
        fn new() -> Self {
            let mut end = Boundary::default();
            end.position.generation = WRITTEN;
            end.position.incarnation = Incarnation(1);
            Self { secret: Secret([4; 32]), end, slots: Vec::new(), cut: None }
        }

        /// A segment with one record a frame; each says how far the writer was durable.
        fn segment(&mut self, durable: &[u64]) {
            self.segment_of(Descriptor::over(Kind::Write, BlockRange::new(1, 1)), durable);
        }

        fn segment_of(&mut self, descriptor: Descriptor, durable: &[u64]) {
            let sequence = self.slots.len() as u64 + 1;
            let header = SegmentHeader { volume: VOLUME, sequence, slot_bytes: SLOT_BYTES, start: self.end };
            let mut slot = header.encode(&self.secret).to_vec();
            for durable in durable {
                let mut pending: VecDeque<_> = [Record::new(descriptor, Bytes::from(vec![7; BLOCK]))].into();
                let context = FrameContext {
                    epoch: Default::default(),
                    committed: Lsn::ZERO,
                    durable: Lsn(*durable),
                    peers: Default::default(),
                    wall_ms: 0,
                };
                let (header, bytes, payload) =
                    build(&mut pending, SLOT_BYTES, self.end, VOLUME, &self.secret, &context).unwrap();
                self.end = header.boundary();
                slot.extend_from_slice(&bytes);
                payload.iter().for_each(|p| slot.extend_from_slice(p));
            }
            slot.resize(SLOT_BYTES as usize, 0);
            self.slots.push(slot);
        }

        fn lose(&mut self, at: usize) {
            self.slots[at].fill(0);
        }

        fn recover(&self, writes: Option<GenId>) -> Recovered {
            self.try_recover(writes).unwrap()
        }

        fn try_recover(&self, writes: Option<GenId>) -> Result<Recovered, &'static str> {
            let start = Start {
                volume: VOLUME,
                site: SITE,
                writes,
                secret: self.secret.clone(),
                slot_bytes: SLOT_BYTES,
                floor: Disks::new().end,
                durable: Lsn::ZERO,
                discard: false,
                cut: self.cut,
            };
            let (now, mut out) = (Nanos::default(), Outbox::default());
            let slots = (1..=self.slots.len() as u64).map(|n| (Slot(n as _), SLOT_BYTES)).collect();
            let (mut recovery, mut step) = Recovery::begin(now, start, slots, &mut out);
            loop {
                match step {
                    Some(Step::Done(_, found)) => return Ok(*found),
                    Some(Step::Failed(why)) => return Err(why),
                    Some(Step::More(_)) | None => {}
                }
                let Some(Output::Disk(_, DiskOp::Read { file: FileRef::Log(slot), offset, len })) = out.pop() else {
                    panic!("recovery reads or ends");
                };
                let (slot, at) = (&self.slots[slot.0 as usize - 1], offset as usize);
                let data = Bytes::copy_from_slice(&slot[at..at + len as usize]);
                step = recovery.on_read(now, Ok(DiskDone::Read(data)), &mut out);
            }
        }
    }

    #[test]
    fn a_whole_log_is_found() {
        let mut disks = Disks::new();
        disks.segment(&[0, 0, 1]);
        disks.segment(&[2]);
        let found = disks.recover(Some(WRITTEN));
        assert_eq!((found.end, found.damage), (disks.end, None));
    }

    #[test]
    fn a_first_segment_that_was_never_synced_is_not_missed() {
        let mut disks = Disks::new();
        disks.segment(&[0, 0]);
        disks.segment(&[0]);
        disks.lose(0);
        let found = disks.recover(Some(WRITTEN));
        assert_eq!((found.end.position.lsn, found.damage), (Lsn::ZERO, None));
        assert_eq!(found.segments.live().count(), 0);
    }

    #[test]
    fn a_segment_is_missed_when_a_frame_after_it_says_that_it_was_durable() {
        for lost in [0, 1] {
            let mut disks = Disks::new();
            disks.segment(&[0, 0]);
            disks.segment(&[1]);
            disks.segment(&[1, 3]);
            disks.lose(lost);
            let found = disks.recover(Some(WRITTEN));
            assert!(found.damage.is_some() && found.required == Lsn(3), "{found:?}");
        }
    }

    #[test]
    fn a_frame_of_a_later_incarnation_is_evidence_too() {
        let mut disks = Disks::new();
        disks.segment(&[0, 0]);
        disks.end.position.incarnation = Incarnation(2);
        disks.segment(&[2]);
        disks.lose(0);
        let found = disks.recover(Some(WRITTEN));
        assert!(found.damage.is_some() && found.required == Lsn(2), "{found:?}");
    }

    /// Two segments, of which all beyond the first record is cut off.
    fn cut_after_the_first(durable: u64) -> (Disks, Boundary) {
        let mut disks = Disks::new();
        disks.segment(&[0]);
        let at = disks.end;
        (disks.end, disks.slots) = (Disks::new().end, Vec::new());
        disks.segment(&[0, durable, durable]);
        disks.segment(&[durable]);
        disks.cut = Some(Cut { at: at.position, sequence: 3 });
        (disks, at)
    }

    #[test]
    fn what_was_cut_is_neither_found_nor_missed_and_its_slots_are_made_anew() {
        let (mut disks, at) = cut_after_the_first(1);
        let found = disks.recover(Some(WRITTEN));
        assert_eq!((found.end, found.damage, found.segments.live().count()), (at, None, 1));
        assert_eq!((found.segments.ready(), found.segments.is_clearing()), (0, true));
        disks.slots.pop();
        assert_eq!(disks.recover(Some(WRITTEN)).segments.next_sequence(), 3, "a number is not used twice");
    }

    #[test]
    fn a_log_goes_on_behind_its_cut() {
        let (mut disks, at) = cut_after_the_first(1);
        disks.end = at;
        disks.segment(&[0, 1]);
        let found = disks.recover(Some(WRITTEN));
        assert_eq!((found.end, found.damage), (disks.end, None));
        assert_eq!(found.segments.live().count(), 2);
    }

    #[test]
    fn what_was_cut_proves_that_what_came_before_it_was_durable_and_nothing_of_itself() {
        for (durable, required) in [(0, 0), (1, 1), (3, 1)] {
            let (mut disks, _) = cut_after_the_first(durable);
            disks.slots[0][HEADER_BYTES] ^= 1;
            let found = disks.recover(Some(WRITTEN));
            assert_eq!((found.end.position.lsn, found.required), (Lsn::ZERO, Lsn(required)), "{durable}");
            assert_eq!(found.damage.is_some(), required > 0);
        }
    }

    #[test]
    fn a_frame_that_another_site_wrote_says_nothing_of_this_one() {
        let mut disks = Disks::new();
        disks.segment(&[0, 0]);
        disks.segment(&[1]);
        disks.segment(&[1, 3]);
        disks.lose(1);
        for writes in [None, Some(GenId([9; 16]))] {
            let found = disks.recover(writes);
            assert_eq!((found.end.position.lsn, found.damage), (Lsn(2), None));
        }
    }

    #[test]
    fn a_record_of_an_unknown_kind_is_refused_unless_it_may_be_skipped() {
        for (flags, understood) in [(0, false), (FLAG_IGNORABLE, true), (0xfe, false)] {
            let mut disks = Disks::new();
            disks.segment(&[0]);
            disks.segment_of(Descriptor { kind: Kind::Unknown(77), flags, blocks: 1, lba: 5 }, &[0]);
            disks.segment(&[0]);
            let found = disks.try_recover(None).map(|found| found.end.position.lsn);
            assert_eq!(found.ok(), understood.then_some(Lsn(3)), "flags {flags:#x}");
        }
    }
}
