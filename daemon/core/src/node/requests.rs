//! Frontend requests: accepted, ordered, turned into records.

use bytes::{Bytes, BytesMut};

use crate::config::AckOn;
use crate::event::{Output, ReplyData, Request, RequestError, RequestId};
use crate::format::record::{Descriptor, Kind};
use crate::log::Record;
use crate::node::verbs::{Pending, PendingVerb};
use crate::node::volume_reads::{Purpose, trim};
use crate::node::{Node, Parked, Stage};
use crate::planted::{Planted, planted};
use crate::ship::Refusal;
use crate::status::{Role, SuspendReason};
use crate::types::{BLOCK, BlockRange, ByteRange, Lsn, Nanos, SECTOR};
use crate::volume::ack::Write;

/// A log without room for so long is reported as full.
pub const FULL_MS: u64 = 1000;
/// The longest single request in bytes; longer ZERO and DISCARD are fine.
pub const MAX_REQUEST_BYTES: u64 = 64 << 20;
/// Blocks of one ZERO or DISCARD record.
const ZERO_BLOCKS: u64 = 1 << 30;

impl Node {
    pub(super) fn on_request(&mut self, now: Nanos, id: RequestId, request: Request) {
        // Which volumes there are is known when the log is.
        if !is_well_formed(&request) || !(self.is_recovering() || self.is_inside(&request)) {
            return self.reply(id, Err(RequestError::Invalid));
        }
        match self.role {
            _ if matches!(self.stage, Stage::Closing(_)) => self.reply(id, Err(RequestError::NotServing)),
            Role::Primary => self.run(now, id, request),
            Role::Secondary if self.is_opening_primary() => self.held.push_back((id, request)),
            Role::Suspended(_) => self.held.push_back((id, request)),
            _ => self.reply(id, Err(RequestError::NotServing)),
        }
    }

    /// Recovery runs and K names this site: requests wait for the role that comes out of it.
    fn is_opening_primary(&self) -> bool {
        let recovers = matches!(self.stage, super::Stage::Recovering(_) | super::Stage::CheckingBase { .. });
        recovers && self.k.primary == Some(self.site) && self.sealing.is_none()
    }

    /// It asks for a part of one extent of the group, and of none that is being removed.
    fn is_inside(&self, request: &Request) -> bool {
        let (Request::Read { range } | Request::Write { range, .. } | Request::Zero { range, .. }) = request else {
            return true;
        };
        let stays = |verb: &PendingVerb| match &verb.kind {
            Pending::Resized { wanted, .. } => wanted.holds(*range),
            _ => true,
        };
        self.space.layout.holds(*range) && self.verbs.iter().all(stays)
    }

    pub(super) fn reply(&mut self, id: RequestId, result: Result<ReplyData, RequestError>) {
        self.out.push(Output::Reply(id, result));
    }

    /// Runs what was held while the volume was suspended.
    pub(super) fn release_held(&mut self, now: Nanos) {
        while self.role == Role::Primary {
            let Some((id, request)) = self.held.pop_front() else { return };
            match self.is_inside(&request) {
                true => self.run(now, id, request),
                false => self.reply(id, Err(RequestError::Invalid)),
            }
        }
    }

    /// Fails what was held and never began.
    pub(super) fn fail_held(&mut self) {
        for (id, _) in std::mem::take(&mut self.held) {
            self.reply(id, Err(RequestError::NotServing));
        }
    }

    /// Fails everything that waits: the volume does not serve here (any more).
    pub(super) fn fail_waiting(&mut self) {
        let held = std::mem::take(&mut self.held).into_iter().map(|h| h.0);
        let reads = std::mem::take(&mut self.waiting_reads).into_iter().map(|h| h.0);
        let parked = std::mem::take(&mut self.parked).into_keys();
        let mut ids: Vec<RequestId> = held.chain(reads).chain(parked).collect();
        ids.extend(self.acks.take_all());
        self.order.forget_all();
        self.fills.clear();
        for id in ids {
            self.reply(id, Err(RequestError::NotServing));
        }
    }

    /// This copy serves no more: what waits fails, and records without a frame, of which nothing was completed, get none. A
    /// follower takes its peer's frames, which come in their place.
    pub(super) fn stop_serving(&mut self) {
        self.fail_waiting();
        self.log.forget_pending();
    }

    fn run(&mut self, now: Nanos, id: RequestId, request: Request) {
        match request {
            Request::Read { range } => self.run_read(now, id, range),
            Request::Flush => self.run_flush(id),
            Request::Write { range, .. } | Request::Zero { range, .. } => {
                if planted(Planted::LostSubBlockUpdate) || self.order.arrive(id, whole(range)) {
                    self.run_change(now, id, request);
                } else {
                    self.parked.insert(id, Parked { request });
                }
            }
        }
    }

    fn run_flush(&mut self, id: RequestId) {
        self.counters.flushes += 1;
        let lsn = self.acks.flush(id);
        self.log.want_durable(lsn);
    }

    fn run_read(&mut self, now: Nanos, id: RequestId, range: ByteRange) {
        let blocks = whole(range);
        if self.superblock.policy.ack_on == AckOn::Write && self.acks.is_unacknowledged(blocks) {
            self.waiting_reads.push_back((id, Request::Read { range }));
            return;
        }
        self.counters.reads += 1;
        self.counters.read_bytes += range.len;
        self.parked.insert(id, Parked { request: Request::Read { range } });
        self.read_blocks(now, vec![blocks], Purpose::Reply(id));
    }

    pub(super) fn on_reply_read(&mut self, id: RequestId, data: Option<Vec<Bytes>>) {
        let Some(Parked { request: Request::Read { range } }) = self.parked.remove(&id) else { return };
        let result = match data {
            Some(pieces) => Ok(trim(pieces, (range.offset % BLOCK as u64) as usize, range.len as usize)),
            None => Err(RequestError::Io),
        };
        self.reply(id, result);
    }

    /// Reads that waited for an acknowledgement try again.
    pub(super) fn release_reads(&mut self, now: Nanos) {
        for (id, request) in std::mem::take(&mut self.waiting_reads) {
            self.run(now, id, request);
        }
    }

    /// A changing request whose turn it is.
    fn run_change(&mut self, now: Nanos, id: RequestId, request: Request) {
        let edges = edges_to_fill(&request);
        if edges.is_empty() {
            return self.log_change(id, request, &[]);
        }
        if let Request::Write { range, .. } | Request::Zero { range, .. } = &request {
            self.order.hold(id, whole(*range));
        }
        self.parked.insert(id, Parked { request });
        self.fill(now, id, edges);
    }

    /// Reads edge blocks, or waits until what was numbered before is in a frame and so in the index.
    fn fill(&mut self, now: Nanos, id: RequestId, edges: Vec<BlockRange>) {
        if edges.iter().any(|e| self.log.has_pending(*e)) {
            self.fills.push((id, edges));
        } else {
            self.read_blocks(now, edges, Purpose::Fill(id));
        }
    }

    /// Starts fills whose blocks have no record without a frame any more. A suspended volume numbers nothing: its fills wait, and
    /// with them all that came later.
    pub(super) fn pump_fills(&mut self, now: Nanos) {
        if self.role != Role::Primary {
            return;
        }
        for (id, edges) in std::mem::take(&mut self.fills) {
            if self.parked.contains_key(&id) {
                self.fill(now, id, edges);
            }
        }
    }

    /// The edge blocks of a partial request were read.
    pub(super) fn on_filled(&mut self, now: Nanos, id: RequestId, data: Option<Vec<Bytes>>) {
        let Some(Parked { request }) = self.parked.remove(&id) else { return };
        match data {
            Some(pieces) if self.role == Role::Primary => self.log_change(id, request, &pieces.concat()),
            Some(_) => {
                self.fills.push((id, edges_to_fill(&request)));
                self.parked.insert(id, Parked { request });
                return;
            }
            None => self.reply(id, Err(RequestError::Io)),
        }
        self.order.release(id);
        while let Some(next) = self.order.next_ready() {
            if let Some(Parked { request }) = self.parked.remove(&next) {
                self.run_change(now, next, request);
            }
        }
    }

    /// Numbers the records of a changing request. `fill` is the present content of its partial edge blocks, in order.
    fn log_change(&mut self, id: RequestId, request: Request, fill: &[u8]) {
        let (range, fua) = match &request {
            Request::Write { range, fua, .. } | Request::Zero { range, fua, .. } => (*range, *fua),
            _ => return,
        };
        self.counters.writes += 1;
        self.counters.write_bytes += range.len;
        let last = match request {
            Request::Write { data, .. } if fill.is_empty() => self.push_write(range.first_block(), data),
            Request::Write { data, .. } => self.push_write(range.first_block(), merge(range, &data, fill)),
            Request::Zero { discard, .. } => self.push_zero(range, discard, fill),
            _ => self.log.last_numbered(),
        };
        let promise = fua || self.superblock.policy.ack_on == AckOn::Write;
        self.acks.wrote(Write { lsn: last, id: Some(id), promise, range: whole(range) });
        if last <= self.log.appended() {
            // A DISCARD that covers no whole block has no record to wait for.
            self.complete_appended();
        }
        if planted(Planted::AckWriteBeforeAppend) {
            let mut done = Vec::new();
            self.acks.on_appended(last, &mut done);
            done.into_iter().for_each(|id| self.reply(id, Ok(Vec::new())));
        }
    }

    fn push_write(&mut self, lba: u64, data: Bytes) -> Lsn {
        let max = self.log.record_blocks() as usize * BLOCK;
        let mut last = self.log.last_numbered();
        for at in (0..data.len()).step_by(max) {
            let piece = data.slice(at..(at + max).min(data.len()));
            let range = BlockRange::new(lba + (at / BLOCK) as u64, (piece.len() / BLOCK) as u32);
            last = self.log.push(Record::new(Descriptor::over(Kind::Write, range), piece));
        }
        last
    }

    fn push_zero(&mut self, range: ByteRange, discard: bool, fill: &[u8]) -> Lsn {
        let kind = if discard { Kind::Discard } else { Kind::Zero };
        let (mut first, mut end) = (range.offset.div_ceil(BLOCK as u64), range.end() / BLOCK as u64);
        let at_end = self.space.layout.ends_at(range.end());
        if at_end {
            // A short last block is wholly covered: nothing lies behind it.
            end = range.end_block();
        }
        let mut last = self.log.last_numbered();
        let mut fill = fill;
        if !discard && !fill.is_empty() {
            for edge in edges_of(range) {
                let (block, rest) = fill.split_at(BLOCK);
                fill = rest;
                last = self.push_write(edge.start(), zeroed(edge, range, block));
            }
            first = range.offset.div_ceil(BLOCK as u64);
            end = range.end() / BLOCK as u64;
        }
        self.push_zero_blocks(kind, first, end).unwrap_or(last)
    }

    /// Numbers range records over blocks `[first, end)`; gives the last number, if any.
    pub(super) fn push_zero_blocks(&mut self, kind: Kind, mut first: u64, end: u64) -> Option<Lsn> {
        let mut last = None;
        while first < end {
            let count = (end - first).min(ZERO_BLOCKS);
            let record = Descriptor::over(kind, BlockRange::new(first, count as u32));
            last = Some(self.log.push(Record::new(record, Bytes::new())));
            first += count;
        }
        last
    }

    /// Fails queued I/O on an operator's word.
    pub(super) fn abort_io(&mut self) {
        self.fail_waiting();
    }

    /// Watches a log (or an index, which counts as log space) without room: after a while the volume says so, also one that is
    /// only just opening, and a follower says so to its primary, whose flushes wait for it.
    pub(super) fn watch_full(&mut self, now: Nanos) {
        let waits = self.log.is_full() || self.index_is_full() && self.log.has_pending_records();
        if !waits && !self.finds_no_room_for_peer() {
            self.full_since = None;
            return self.leave_full(now);
        }
        let since = *self.full_since.get_or_insert(now);
        if now.since(since) < FULL_MS * 1_000_000 {
            return;
        }
        match self.role {
            Role::Primary | Role::Suspended(SuspendReason::Opening) => {
                self.alarm("log_full", self.full_because());
                self.set_role(Role::Suspended(SuspendReason::LogFull));
            }
            Role::Secondary | Role::Fenced(_) if !self.says_full && !self.is_no_prefix() => {
                self.says_full = true;
                self.alarm("log_full", self.full_because());
                self.refuse(Refusal::Storage);
            }
            _ => {}
        }
    }

    fn full_because(&self) -> &'static str {
        match self.index_is_full() {
            _ if self.log.no_space() => "no space under the log",
            true => "the index has reached its limit",
            false => "the log has reached its limit",
        }
    }

    /// There is room again: back to what was going on.
    fn leave_full(&mut self, now: Nanos) {
        if std::mem::take(&mut self.says_full) {
            self.link_refused = None;
        }
        if self.role != Role::Suspended(SuspendReason::LogFull) {
            return;
        }
        if self.opening.is_some() {
            return self.set_role(Role::Suspended(SuspendReason::Opening));
        }
        self.serve_again(now);
    }

    /// Serves after a pause, unless its lease ended meanwhile: what waited goes on, and what a peer that came meanwhile could not be
    /// given.
    pub(super) fn serve_again(&mut self, now: Nanos) {
        if !self.may_serve(now) {
            return self.set_role(Role::Suspended(SuspendReason::LeaseLost));
        }
        self.set_role(Role::Primary);
        self.release_held(now);
        self.match_peer(now);
    }
}

/// Whole sectors, not too many, and as many as there is data for.
fn is_well_formed(request: &Request) -> bool {
    let fits = |range: &ByteRange, max: u64| {
        range.len > 0
            && range.len <= max
            && range.offset.is_multiple_of(SECTOR as u64)
            && range.len.is_multiple_of(SECTOR as u64)
            && range.offset.checked_add(range.len).is_some()
    };
    match request {
        Request::Read { range } => fits(range, MAX_REQUEST_BYTES),
        Request::Write { range, data, .. } => fits(range, MAX_REQUEST_BYTES) && data.len() as u64 == range.len,
        Request::Zero { range, .. } => fits(range, u64::MAX),
        Request::Flush => true,
    }
}

/// The blocks that a range touches. A DISCARD or ZERO may be longer than a [`BlockRange`] can say: it is then cut, which is
/// only used to order requests, and such a range is never partial.
pub(super) fn whole(range: ByteRange) -> BlockRange {
    let (first, end) = (range.first_block(), range.end_block());
    BlockRange::new(first, u32::try_from(end - first).unwrap_or(u32::MAX))
}

/// The edge blocks of a range that it covers only in part.
fn edges_of(range: ByteRange) -> Vec<BlockRange> {
    let mut edges = Vec::with_capacity(2);
    let (first, last) = (range.first_block(), range.end_block() - 1);
    if !range.offset.is_multiple_of(BLOCK as u64) {
        edges.push(BlockRange::new(first, 1));
    }
    if !range.end().is_multiple_of(BLOCK as u64) && edges.last().is_none_or(|e| e.start() != last) {
        edges.push(BlockRange::new(last, 1));
    }
    edges
}

fn edges_to_fill(request: &Request) -> Vec<BlockRange> {
    match request {
        Request::Write { range, .. } | Request::Zero { range, discard: false, .. } => edges_of(*range),
        _ => Vec::new(),
    }
}

/// The whole blocks of a partial write: `data` between the beginning of the first edge and the end of the last one, which are
/// one block where the range lies in one.
fn merge(range: ByteRange, data: &[u8], fill: &[u8]) -> Bytes {
    let before = (range.offset - range.first_block() * BLOCK as u64) as usize;
    let after = (range.end_block() * BLOCK as u64 - range.end()) as usize;
    [&fill[..before], data, &fill[fill.len() - after..]].concat().into()
}

/// An edge block with the part that the range covers set to zeros.
fn zeroed(edge: BlockRange, range: ByteRange, block: &[u8]) -> Bytes {
    let start = edge.start() * BLOCK as u64;
    let mut out = BytesMut::from(block);
    let from = range.offset.saturating_sub(start) as usize;
    let to = (range.end() - start).min(BLOCK as u64) as usize;
    out[from..to].fill(0);
    out.freeze()
}
