//! The log of one copy: numbers records, packs them into frames, places frames in segments, and knows how far they are
//! written and synced. The same machine serves a primary (builds frames) and a replica (takes frames as they are).
//!
//! Invariants (`check`): durable <= appended <= end; frames in memory and in the segments are gap-free; a slot is in exactly
//! one of: a segment, ready, being prepared.

pub mod frames;
pub mod recovery;
pub mod segments;
pub mod tail;

use std::collections::VecDeque;

use bytes::Bytes;

use crate::event::{DiskError, DiskOp, DiskToken, FileRef, Slot};
use crate::format::frame::FrameHeader;
use crate::format::segment::{HEADER_BYTES, SegmentHeader};
use crate::layout::Change;
use crate::outbox::{Outbox, Route};
use crate::planted::{Planted, planted};
use crate::types::{BLOCK, BlockRange, Boundary, Lsn, Nanos, Secret, VolumeId};

pub use frames::{FrameContext, Record};
pub use segments::{Segment, Segments};
pub use tail::{Tail, TailFrame};

/// Frames on their way to the disk at once: one to overlap with the next one's building. More makes groups smaller.
pub const FRAMES_IN_FLIGHT: usize = 2;
/// Without a flush the log syncs itself after so many bytes ...
pub const SYNC_BYTES: u64 = 8 << 20;
/// ... or so many milliseconds.
pub const SYNC_MS: u64 = 100;
/// Syncs under way at once.
const SYNCS_IN_FLIGHT: usize = 2;
/// Slots kept ready ahead of the log.
pub const SLOTS_AHEAD: usize = 2;
/// Ready slots that nothing takes but the beginning of an incarnation, here or at the peer: whatever fills a log, an opening finds
/// room in it. None where there are fewer than [`MIN_SLOTS`].
pub const SPARE_SLOTS: usize = 1;
/// The fewest slots a log works with: one open, one sealed, two ahead.
pub const MIN_SLOTS: usize = 4;
/// A failed preparation (no space) is tried again after this time.
const PREPARE_RETRY_MS: u64 = 1000;

/// A frame that was placed: what the index, the sender and the footer need of it.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its header.
    pub header: FrameHeader,
    /// The slot it lies in.
    pub slot: Slot,
    /// Block number in the slot of its first payload block.
    pub payload_block: u32,
    /// What it makes of the layout.
    pub change: Option<Change>,
}

#[derive(Debug)]
struct InFlight {
    token: DiskToken,
    slot: Slot,
    last: Lsn,
    bytes: u64,
    /// Written so that it is durable when the write ends.
    durable: bool,
    done: bool,
}

#[derive(Debug)]
struct SyncInFlight {
    token: DiskToken,
    covers: Lsn,
}

/// What ended the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFailure {
    /// A frame could not be written.
    Write,
    /// A sync failed; it is never retried.
    Sync,
}

/// The log of one copy.
#[derive(Debug)]
pub struct Log {
    volume: VolumeId,
    secret: Secret,
    /// Live segments.
    pub segments: Segments,
    /// Recent frames in memory.
    pub tail: Tail,
    pending: VecDeque<Record>,
    pending_bytes: u64,
    end: Boundary,
    next: Lsn,
    in_flight: VecDeque<InFlight>,
    appended: Lsn,
    durable: Lsn,
    syncs: VecDeque<SyncInFlight>,
    wanted: Lsn,
    unsynced_bytes: u64,
    unsynced_since: Option<Nanos>,
    retry_prepare_at: Option<Nanos>,
    no_space: bool,
    /// What is appended now may take the spare slot.
    uses_spare: bool,
    failure: Option<LogFailure>,
    frames: u64,
    syncs_done: u64,
}

impl Log {
    /// A log that ends at `end`, with everything up to there durable, as recovery left it.
    pub fn new(volume: VolumeId, secret: Secret, segments: Segments, end: Boundary, tail_bytes: u64) -> Self {
        let lsn = end.position.lsn;
        Self {
            volume,
            secret,
            segments,
            tail: Tail::new(tail_bytes),
            pending: VecDeque::new(),
            pending_bytes: 0,
            end,
            next: lsn.next(),
            in_flight: VecDeque::new(),
            appended: lsn,
            durable: lsn,
            syncs: VecDeque::new(),
            wanted: Lsn::ZERO,
            unsynced_bytes: 0,
            unsynced_since: None,
            retry_prepare_at: None,
            no_space: false,
            uses_spare: false,
            failure: None,
            frames: 0,
            syncs_done: 0,
        }
    }

    /// What recovery read may only be in the page cache or in a device's cache: nothing is durable before a sync of every
    /// slot that holds a live segment.
    pub fn after_recovery(&mut self, now: Nanos) {
        self.durable = Lsn::ZERO;
        self.segments.mark_all_unsynced();
        self.unsynced_since = Some(now);
        self.wanted = self.appended;
        if self.segments.start().is_none() {
            self.durable = self.appended;
            self.unsynced_since = None;
        }
    }

    /// The volume's secret.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The boundary after the last frame placed (written or on its way).
    pub fn end(&self) -> Boundary {
        self.end
    }

    /// Written and gap-free.
    pub fn appended(&self) -> Lsn {
        self.appended
    }

    /// Synced and gap-free.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// The last number handed out.
    pub fn last_numbered(&self) -> Lsn {
        self.next.prev()
    }

    /// Frames written and syncs done since the log opened.
    pub fn counters(&self) -> (u64, u64) {
        (self.frames, self.syncs_done)
    }

    /// True when a record over one of these blocks has a number and no frame yet: the index does not know it.
    pub fn has_pending(&self, range: BlockRange) -> bool {
        self.pending.iter().any(|r| r.descriptor.range().is_some_and(|p| p.overlaps(range)))
    }

    /// True when records wait for a frame.
    pub fn has_pending_records(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Bytes of records that have no frame yet.
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// What ended the log, if anything did.
    pub fn failure(&self) -> Option<LogFailure> {
        self.failure
    }

    /// True when records wait for a slot and none can be had.
    pub fn is_full(&self) -> bool {
        !self.pending.is_empty() && self.is_short() && self.segments.room() < self.next_frame_bytes()
    }

    /// True when no slot is ready for what comes next.
    pub fn is_short(&self) -> bool {
        self.segments.ready() <= self.spare()
    }

    /// From now on what is appended may take the spare slot, or may not.
    pub fn use_spare(&mut self, uses: bool) {
        self.uses_spare = uses;
    }

    fn spare(&self) -> usize {
        if self.uses_spare || self.segments.slots() < MIN_SLOTS { 0 } else { SPARE_SLOTS }
    }

    /// True when the last preparation of a slot met a full disk.
    pub fn no_space(&self) -> bool {
        self.no_space
    }

    /// True when nothing is on its way to the disk.
    pub fn is_quiet(&self) -> bool {
        self.in_flight.is_empty() && self.pending.is_empty() && self.syncs.is_empty()
    }

    /// Forgets the records that have no frame yet (nothing of them was completed).
    pub fn forget_pending(&mut self) {
        self.pending.clear();
        self.pending_bytes = 0;
        self.next = self.end.position.lsn.next();
        self.wanted = self.wanted.min(self.end.position.lsn);
    }

    /// Numbers a record; it is in no frame yet.
    pub fn push(&mut self, record: Record) -> Lsn {
        let lsn = self.next;
        self.next = lsn.next();
        self.pending_bytes += record.payload.len() as u64;
        self.pending.push_back(record);
        lsn
    }

    /// The most blocks of one record: larger requests are split, so that frames fit their segments.
    pub fn record_blocks(&self) -> u32 {
        ((self.frame_limit() / BLOCK as u64) as u32).max(1)
    }

    fn frame_limit(&self) -> u64 {
        frames::frame_limit(self.segments.slot_bytes())
    }

    fn next_frame_bytes(&self) -> u64 {
        self.pending.front().map_or(0, |r| (r.payload.len() + 2 * BLOCK) as u64)
    }

    /// True when all there is is durable, or will be when the writes under way have ended: then one more durable write makes
    /// the whole log so, and spares a sync.
    fn is_durable_to_the_end(&self) -> bool {
        planted(Planted::DurableWriteCoversAll)
            || self.durable == self.appended && self.in_flight.iter().all(|f| f.durable)
    }

    /// Builds a frame out of what waits, when the disk is ready for one: places it and submits its write. `promised`: an
    /// answer waits until it is durable.
    pub fn build(&mut self, now: Nanos, context: &FrameContext, promised: bool, out: &mut Outbox) -> Option<Placed> {
        if self.pending.is_empty() || self.failure.is_some() || self.in_flight.len() >= FRAMES_IN_FLIGHT {
            return None;
        }
        if !self.has_room(self.next_frame_bytes()) || !self.make_room(self.next_frame_bytes()) {
            return None;
        }
        let room = self.segments.room().min(self.frame_limit() + 2 * BLOCK as u64);
        let (header, bytes, payload) =
            frames::build(&mut self.pending, room, self.end, self.volume, &self.secret, context)?;
        self.pending_bytes -= header.payload_bytes() as u64;
        Some(self.place(now, header, bytes, payload, promised, out))
    }

    /// True when a frame of so many bytes can be placed now.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.segments.room() >= bytes || !self.is_short()
    }

    /// The same for a frame that begins an incarnation.
    pub fn has_room_to_begin(&self, bytes: u64) -> bool {
        self.segments.room() >= bytes || self.segments.ready() > 0
    }

    /// Takes a frame from the peer, already checked against [`Log::end`]: places it as it is.
    /// `promised`: the peer waits until it is durable.
    ///
    /// # Panics
    /// When there is no room: [`Log::has_room`] is asked first, or [`Log::has_room_to_begin`].
    pub fn take(
        &mut self,
        now: Nanos,
        header: FrameHeader,
        bytes: Bytes,
        payload: Vec<Bytes>,
        promised: bool,
        out: &mut Outbox,
    ) -> Placed {
        assert!(self.pending.is_empty(), "a replica numbers no records of its own");
        assert!(header.follows(&self.end), "the receiver checks the chain first");
        let has_room = self.make_room(header.total_bytes() as u64);
        assert!(has_room, "the receiver asks for room first");
        self.next = header.last().next();
        self.place(now, header, bytes, payload, promised, out)
    }

    fn make_room(&mut self, bytes: u64) -> bool {
        self.segments.room() >= bytes || self.segments.roll(self.end)
    }

    fn place(
        &mut self,
        now: Nanos,
        header: FrameHeader,
        bytes: Bytes,
        payload: Vec<Bytes>,
        promised: bool,
        out: &mut Outbox,
    ) -> Placed {
        // Who acknowledges before the sync does not sync with the write either: else there would be little left to lose.
        let betrays = planted(Planted::AckBeforeSyncAtPrimary) || planted(Planted::AckBeforeSyncAtSecondary);
        let durable = promised && self.is_durable_to_the_end() && !betrays;
        let spot = self.segments.append(now, &header);
        let mut bufs = Vec::with_capacity(payload.len() + 2);
        let mut offset = spot.offset;
        if spot.first_in_segment {
            bufs.push(self.segment_header());
            offset -= HEADER_BYTES as u64;
        }
        bufs.push(bytes.clone());
        bufs.extend(payload.iter().cloned());
        let len = bufs.iter().map(|b| b.len() as u64).sum();
        let token = out.disk(now, Route::Frame, DiskOp::Write { file: FileRef::Log(spot.slot), offset, bufs, durable });
        self.in_flight.push_back(InFlight {
            token,
            slot: spot.slot,
            last: header.last(),
            bytes: len,
            durable,
            done: false,
        });
        self.end = header.boundary();
        // Built here or judged by the receiver: it can be read.
        let change = frames::change_in(&header, &payload).ok().flatten();
        self.tail.push(TailFrame::new(&header, spot.slot, spot.payload_block, bytes, payload));
        Placed { header, slot: spot.slot, payload_block: spot.payload_block, change }
    }

    fn segment_header(&self) -> Bytes {
        let open = self.segments.open().expect("a segment was opened for this frame");
        SegmentHeader {
            volume: self.volume,
            sequence: open.sequence,
            slot_bytes: self.segments.slot_bytes(),
            start: open.start,
        }
        .encode(&self.secret)
    }

    /// True when the frame that is being written ends durable.
    pub fn is_durable_write(&self, token: DiskToken) -> bool {
        self.in_flight.iter().any(|f| f.token == token && f.durable)
    }

    /// A frame's write ended. True: `appended` moved.
    pub fn on_written(&mut self, now: Nanos, token: DiskToken, failed: Option<DiskError>) -> bool {
        if let Some(error) = failed {
            // Of a durable write that the device failed nobody knows which half it was; without space there was no sync.
            let is_sync = error == DiskError::Io && self.is_durable_write(token);
            self.failure.get_or_insert(if is_sync { LogFailure::Sync } else { LogFailure::Write });
            return false;
        }
        if let Some(f) = self.in_flight.iter_mut().find(|f| f.token == token) {
            f.done = true;
        }
        let before = self.appended;
        if planted(Planted::AppendedOverGap)
            && let Some(at) = self.in_flight.iter().position(|f| f.token == token)
        {
            self.in_flight.iter_mut().take(at).for_each(|f| f.done = true);
        }
        while self.in_flight.front().is_some_and(|f| f.done) && self.failure.is_none() {
            if let Some(f) = self.in_flight.pop_front() {
                let is_whole = self.durable == self.appended || planted(Planted::DurableWriteCoversAll);
                let extends = f.durable && is_whole;
                self.appended = f.last;
                self.frames += 1;
                if extends {
                    self.durable = f.last;
                    continue;
                }
                self.segments.mark_unsynced(f.slot);
                self.unsynced_bytes += f.bytes;
                self.unsynced_since.get_or_insert(now);
            }
        }
        self.tail.trim(self.appended);
        self.appended > before
    }

    /// Somebody needs everything up to `lsn` durable.
    pub fn want_durable(&mut self, lsn: Lsn) {
        self.wanted = self.wanted.max(lsn.min(self.last_numbered()));
    }

    /// Submits a sync when one is wanted or due.
    pub fn poll_sync(&mut self, now: Nanos, out: &mut Outbox) {
        let covered = self.syncs.back().map_or(self.durable, |s| s.covers);
        let wanted = self.wanted > covered && self.appended > covered;
        let due = self.appended > covered
            && (self.unsynced_bytes >= SYNC_BYTES || self.sync_due().is_some_and(|at| at <= now));
        // A sync that could not cover what is wanted yet would only delay the one that can.
        let useful = self.wanted <= self.appended || self.syncs.is_empty();
        if self.failure.is_some() || !((wanted && useful) || due) || self.syncs.len() >= SYNCS_IN_FLIGHT {
            return;
        }
        let files: Vec<FileRef> = self.segments.take_unsynced().into_iter().map(FileRef::Log).collect();
        let token = out.disk(now, Route::LogSync, DiskOp::Sync { files });
        self.syncs.push_back(SyncInFlight { token, covers: self.appended });
        self.unsynced_bytes = 0;
        self.unsynced_since = None;
    }

    fn sync_due(&self) -> Option<Nanos> {
        self.unsynced_since.map(|at| at.after_ms(SYNC_MS))
    }

    /// A sync ended. True: `durable` moved.
    pub fn on_synced(&mut self, token: DiskToken, ok: bool) -> bool {
        if !ok {
            self.failure.get_or_insert(LogFailure::Sync);
            return false;
        }
        let Some(at) = self.syncs.iter().position(|s| s.token == token) else { return false };
        let Some(sync) = self.syncs.remove(at) else { return false };
        self.syncs_done += 1;
        // Two syncs may end in any order: the later one covers only files written since the earlier was submitted, so it
        // says nothing while the earlier is under way.
        let covers = if at == 0 { sync.covers } else { self.defer(at, sync) };
        let covers = if planted(Planted::DurableAtSyncEnd) { self.appended } else { covers };
        let moved = covers > self.durable && self.failure.is_none();
        if moved {
            self.durable = covers;
        }
        moved
    }

    fn defer(&mut self, at: usize, sync: SyncInFlight) -> Lsn {
        if let Some(earlier) = self.syncs.get_mut(at - 1) {
            earlier.covers = earlier.covers.max(sync.covers);
        }
        Lsn::ZERO
    }

    /// Keeps slots ready: asks for a preparation when too few are.
    pub fn poll_slots(&mut self, now: Nanos, limit: usize, out: &mut Outbox) {
        if self.retry_prepare_at.is_some_and(|at| now < at) || self.failure.is_some() {
            return;
        }
        if let Some(slot) = self.segments.want_slot(limit.max(MIN_SLOTS)) {
            self.retry_prepare_at = None;
            let len = self.segments.slot_bytes();
            out.disk(now, Route::Prepare { slot }, DiskOp::Prepare { slot, len });
        }
    }

    /// Removes the files of dropped slots.
    pub fn poll_dropped(&mut self, now: Nanos, out: &mut Outbox) {
        if let Some(slot) = self.segments.next_dropped() {
            out.disk(now, Route::Remove { slot }, DiskOp::Remove { slot });
        }
    }

    /// A preparation ended.
    pub fn on_prepared(&mut self, now: Nanos, slot: Slot, ok: bool) {
        self.no_space = !ok;
        self.segments.on_prepared(slot, ok);
        if !ok {
            self.retry_prepare_at = Some(now.after_ms(PREPARE_RETRY_MS));
        }
    }

    /// What lies above `lsn` was sealed: it is not to be missed after a crash.
    pub fn forget_durable_above(&mut self, lsn: Lsn) {
        self.durable = self.durable.min(lsn);
    }

    /// Starts over at `at` with no frame at all (a seeding): slots become ready.
    pub fn restart(&mut self, at: Boundary) {
        assert!(self.is_quiet(), "a log is restarted only when nothing is on its way to the disk");
        self.tail.clear();
        self.segments.clear();
        self.end = at;
        self.next = at.position.lsn.next();
        self.appended = at.position.lsn;
        self.durable = at.position.lsn;
        self.wanted = Lsn::ZERO;
        self.unsynced_bytes = 0;
        self.unsynced_since = None;
    }

    /// When the log wants to be looked at again.
    pub fn timeout(&self) -> Option<Nanos> {
        let sync = if self.syncs.is_empty() { self.sync_due() } else { None };
        [sync, self.retry_prepare_at].into_iter().flatten().min()
    }

    /// Invariants.
    pub fn check(&self) {
        assert!(self.durable <= self.appended, "durable {} above appended {}", self.durable, self.appended);
        assert!(self.appended <= self.end.position.lsn, "appended beyond the last frame");
        assert_eq!(
            self.next.0,
            self.end.position.lsn.0 + 1 + self.pending.len() as u64,
            "numbers handed out are the frames' plus the waiting records'"
        );
        self.segments.check(self.end.position.lsn);
    }
}
