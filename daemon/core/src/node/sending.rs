//! Shipping frames: from memory while they are recent, from segments when the peer is behind.

use bytes::Bytes;

use crate::config::Mode;
use crate::event::{ConnId, DiskDone, DiskOp, DiskResult, FileRef, Slot};
use crate::format::frame::FrameHeader;
use crate::log::segments::FrameRef;
use crate::node::Node;
use crate::outbox::Route;
use crate::ship::gate::GATHER_BYTES;
use crate::ship::sender::Source;
use crate::ship::{Append, Message};
use crate::status::Role;
use crate::types::{BLOCK, Boundary, Lsn, Nanos};

/// Bytes of old frames read at a time ...
const READ_BYTES: u64 = 2 << 20;
/// ... and under a bandwidth limit no more than this part of a second's worth, as they leave in one go.
const READ_PART: u64 = 8;

/// A read of old frames. It outlives its stream, so that the segment's pin is always given back.
#[derive(Debug)]
pub(super) struct CatchUp {
    conn: ConnId,
    slot: Slot,
    frames: Vec<FrameRef>,
    first: Lsn,
    /// In answer to the peer's [`Message::FetchTail`].
    fetch: bool,
}

impl Node {
    /// Sends what may be sent, asks for syncs, tells an idle peer what is committed.
    pub(super) fn pump_sender(&mut self, now: Nanos) {
        let leads = self.k.primary == Some(self.site) && self.role.serves();
        if !leads || self.seeding_blocks_stream() {
            return;
        }
        if self.ships() {
            while self.send_next(now) {}
            self.ask_peer_sync();
        }
        self.pump_idle(now);
    }

    fn send_next(&mut self, now: Nanos) -> bool {
        let end = self.log.end().position.lsn;
        let Some(link) = self.link.as_mut().filter(|l| l.sender.may_send()) else { return false };
        if self.catch_up.is_some() {
            return false;
        }
        let next = link.sender.next;
        if next > end {
            link.sender.source = Source::Stream;
            link.gate.nothing_waits();
            return false;
        }
        if self.is_held_fork(next) || !self.may_leave(now) {
            return false;
        }
        match self.log.tail.holding(next) {
            Some(frame) => {
                let header = frame.header.slice(..frame.used);
                let (payload, last, bytes) = (frame.payload.clone(), frame.end.position.lsn, frame.bytes);
                let sync = self.syncs_peer() && self.acks.is_promised(next, last);
                self.send_frame(now, Append { epoch: self.k.epoch, header, payload, sync }, last, bytes);
                true
            }
            None => {
                self.read_old(now);
                false
            }
        }
    }

    /// Frames for which nobody waits gather (see [`crate::ship::gate`]); nothing exceeds the bandwidth of the policy.
    /// An incarnation begins here before it begins anywhere else: a primary that lost its FORK in a crash would begin another of
    /// the same number.
    fn is_held_fork(&self, next: Lsn) -> bool {
        let fork = self.history.last().map(|entry| entry.fork.next());
        fork == Some(next) && self.log.durable() < next
    }

    fn may_leave(&mut self, now: Nanos) -> bool {
        if self.link.as_ref().is_some_and(|l| l.gate.is_open(now)) {
            return true;
        }
        let awaited = self.is_peer_awaited();
        let Some(link) = &mut self.link else { return false };
        let unsent = self.log.tail.bytes_from(link.sender.next, GATHER_BYTES);
        link.gate.opens(now, unsent, awaited)
    }

    /// Something waits for the peer to have the frames that were not sent yet, or they are old ones.
    fn is_peer_awaited(&self) -> bool {
        let Some(link) = &self.link else { return false };
        let by_answer = self.k.sites.len() > 1 && self.acks.newest_promise() >= Some(link.sender.next);
        by_answer
            || self.role != Role::Primary
            || link.sender.source == Source::CatchUp
            || self.opening_wants().is_some()
            || self.change_wants().is_some()
    }

    /// Sends a frame of the stream, under the K that the peer confirmed.
    fn send_frame(&mut self, now: Nanos, append: Append, last: Lsn, bytes: u64) {
        let Some(link) = &mut self.link else { return };
        link.sender.on_sent(last, bytes);
        link.gate.on_sent(now, bytes, self.superblock.policy.bandwidth);
        if append.sync {
            link.sender.sync_asked_with(last);
        }
        let epoch = link.sender.confirmed;
        self.counters.shipped_bytes += bytes;
        self.send(Message::Append(Append { epoch, ..append }));
    }

    /// Reads the next run of frames that left the memory.
    fn read_old(&mut self, now: Nanos) {
        let Some(next) = self.link.as_ref().map(|l| l.sender.next) else { return };
        if next > self.log.appended() {
            return;
        }
        if self.read_frames(now, next, false) {
            if let Some(link) = &mut self.link {
                link.sender.source = Source::CatchUp;
            }
        } else {
            // The log no longer reaches back to the peer: it has to be seeded again.
            self.peer_out_of_reach(now);
        }
    }

    fn read_frames(&mut self, now: Nanos, next: Lsn, fetch: bool) -> bool {
        let Some(conn) = self.link.as_ref().map(|l| l.conn) else { return false };
        let Some((slot, frames)) = self.frames_from(next).filter(|(_, f)| !f.is_empty()) else { return false };
        let blocks: u32 = frames.iter().map(|f| f.blocks).sum();
        self.log.segments.pin(slot, 1);
        let (file, offset) = (FileRef::Log(slot), u64::from(frames[0].block) * BLOCK as u64);
        self.out.disk(now, Route::CatchUp, DiskOp::Read { file, offset, len: blocks * BLOCK as u32 });
        self.catch_up = Some(CatchUp { conn, slot, frames, first: next, fetch });
        true
    }

    fn frames_from(&self, next: Lsn) -> Option<(Slot, Vec<FrameRef>)> {
        let (segment, at) = self.log.segments.locate(next)?;
        let limit = match self.superblock.policy.bandwidth {
            0 => READ_BYTES,
            rate => READ_BYTES.min(rate / READ_PART),
        };
        let (mut bytes, mut frames) = (0, Vec::new());
        for frame in &segment.frames[at..] {
            bytes += u64::from(frame.blocks) * BLOCK as u64;
            let stop = frame.last > self.log.appended() || (!frames.is_empty() && bytes > limit);
            if stop {
                break;
            }
            frames.push(*frame);
        }
        Some((segment.slot, frames))
    }

    pub(super) fn on_catch_up_read(&mut self, now: Nanos, result: DiskResult) {
        let Some(read) = self.catch_up.take() else { return };
        self.log.segments.pin(read.slot, -1);
        let Ok(DiskDone::Read(data)) = result else {
            return self.fail_copy("old frames of the log cannot be read");
        };
        let next = self.link.as_ref().filter(|l| l.conn == read.conn).map(|l| l.sender.next);
        if read.fetch && next.is_some() {
            self.send_old(now, &data, &read.frames, true);
            let next = read.frames.last().map_or(read.first, |f| f.last.next());
            return self.answer_tail(now, next);
        }
        if next == Some(read.first) {
            self.send_old(now, &data, &read.frames, false);
        }
        self.answer_late(now);
    }

    fn send_old(&mut self, now: Nanos, data: &Bytes, frames: &[FrameRef], fetch: bool) {
        let mut at = 0;
        for frame in frames {
            let len = frame.blocks as usize * BLOCK;
            let bytes = data.slice(at..at + len);
            at += len;
            let Ok(header) = FrameHeader::decode(&bytes, &self.superblock.secret) else { return self.rot() };
            let payload = bytes.slice(header.padded_bytes()..);
            if header.chain != frame.chain || !header.matches([payload.as_ref()]) {
                return self.rot();
            }
            let used = header.used_bytes();
            let append =
                Append { epoch: self.k.epoch, header: bytes.slice(..used), payload: vec![payload], sync: false };
            if fetch {
                self.send(Message::Append(append));
            } else {
                self.send_frame(now, append, frame.last, len as u64);
            }
        }
    }

    fn rot(&mut self) {
        self.counters.checksum_errors += 1;
        self.log_is_rotten("it is not shipped");
    }

    /// What waits for the peer's sync is asked for as soon as it was sent.
    fn ask_peer_sync(&mut self) {
        // In mode receive an answer waits only for "written" there; the peer syncs in its own time.
        let by_answer = self.acks.wanted().filter(|_| self.k.mode != Mode::Receive);
        let wanted =
            [by_answer, self.opening_wants(), self.change_wants(), self.demotion_wants()].into_iter().flatten().max();
        let Some(lsn) = wanted else { return };
        let Some(link) = &mut self.link else { return };
        let lsn = lsn.min(link.sender.next.prev());
        if link.sender.ask_sync(lsn) {
            let epoch = link.sender.confirmed;
            self.send(Message::Sync { epoch, lsn });
        }
    }

    /// The peer opens as Primary and asks for what this copy has beyond its tail (R7a).
    pub(super) fn on_fetch_tail(&mut self, now: Nanos, from: Boundary) {
        if self.leads() || self.k.primary == Some(self.site) {
            return self.refuse(crate::ship::Refusal::State);
        }
        if self.boundary_at(from.position.lsn) != Some(from) {
            return self.refuse(crate::ship::Refusal::Chain);
        }
        match (&self.catch_up, &mut self.link) {
            // What was asked before is being answered.
            (Some(read), Some(link)) if read.fetch && read.conn == link.conn => {}
            // A read for an earlier stream, or of the time when this copy led, is under way: the answer follows it.
            (Some(_), Some(link)) => link.tail_asked = Some(from),
            _ => self.answer_tail(now, from.position.lsn.next()),
        }
    }

    /// Answers who asked for the tail while an older read was under way.
    fn answer_late(&mut self, now: Nanos) {
        if let Some(from) = self.link.as_mut().and_then(|l| l.tail_asked.take()) {
            self.on_fetch_tail(now, from);
        }
    }

    /// Sends the frames from `next` on, from memory or from segments, and then the end.
    fn answer_tail(&mut self, now: Nanos, mut next: Lsn) {
        let epoch = self.k.epoch;
        while let Some(frame) = self.log.tail.holding(next).filter(|f| f.end.position.lsn <= self.log.appended()) {
            let header = frame.header.slice(..frame.used);
            let (payload, last) = (frame.payload.clone(), frame.end.position.lsn);
            next = last.next();
            self.send(Message::Append(Append { epoch, header, payload, sync: false }));
        }
        if next > self.log.appended() || !self.read_frames(now, next, true) {
            self.send(Message::TailEnd);
        }
    }
}
