//! The follower's side of the stream: frames judged, taken and acknowledged, in order.

use std::collections::VecDeque;

use crate::config::Mode;
use crate::event::Output;
use crate::format::frame::FrameHeader;
use crate::format::record::Kind;
use crate::format::superblock::CopyFlag;
use crate::node::Node;
use crate::planted::{Planted, planted};
use crate::ship::receiver::{Accepted, Against, judge};
use crate::ship::{Ack, Append, Message, Refusal, SeedBegin, seed, sender};
use crate::types::{Lsn, Nanos};

/// Where no answer waits for it, "written" is reported so many nanoseconds later, with all that came since: it only opens the
/// sender's window, which is far larger than what arrives in that time.
const TELL_NS: u64 = 4_000_000;

/// The most bytes that may wait to be processed: twice what a sender may have outstanding, of frames and of seeded blocks.
const MAX_WAITING_BYTES: u64 = 2 * (sender::WINDOW_BYTES + seed::WINDOW_BYTES);
/// What a message counts beside its payload.
const MESSAGE_BYTES: u64 = 128;

/// Messages that were received and not yet processed, in order.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    messages: VecDeque<Message>,
    bytes: u64,
}

impl Backlog {
    fn push(&mut self, message: Message) {
        self.bytes += weight(&message);
        self.messages.push_back(message);
    }

    fn put_back(&mut self, message: Message) {
        self.bytes += weight(&message);
        self.messages.push_front(message);
    }

    fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.bytes -= weight(&message);
        Some(message)
    }

    fn keep(&mut self, wanted: impl Fn(&Message) -> bool) {
        self.messages.retain(wanted);
        self.bytes = self.messages.iter().map(weight).sum();
    }

    /// The next one to be processed.
    pub fn front(&self) -> Option<&Message> {
        self.messages.front()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Forgets all that waits.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

fn weight(message: &Message) -> u64 {
    let payload = match message {
        Message::Append(append) => append.frame_bytes(),
        Message::Base(base) => base.data.len() as u64,
        _ => 0,
    };
    MESSAGE_BYTES + payload
}

impl Node {
    /// Stream messages are processed strictly in order; a frame that finds no slot waits, and all that follow with it.
    pub(super) fn enqueue(&mut self, now: Nanos, message: Message) {
        let starts_over = matches!(message, Message::SeedBegin(SeedBegin { pass: 1, .. })) && !self.leads();
        if let Some(link) = &mut self.link {
            if starts_over {
                // What came before leads nowhere any more, and might wait for room that only the frames after it would make.
                link.backlog.keep(|waits| matches!(waits, Message::VerifyRange { .. }));
            }
            link.backlog.push(message);
        }
        self.drain_backlog(now);
        // A sender that keeps to its windows never comes here.
        if self.link.as_ref().is_some_and(|l| l.backlog.bytes > MAX_WAITING_BYTES) {
            self.hang_up(Refusal::State);
        }
    }

    fn drain_backlog(&mut self, now: Nanos) {
        while let Some(message) = self.link.as_mut().and_then(|l| l.backlog.pop()) {
            if let Some(again) = self.on_stream(now, message) {
                if let Some(link) = &mut self.link {
                    link.backlog.put_back(again);
                }
                return;
            }
        }
    }

    /// Processes one message; gives it back when it has to wait.
    fn on_stream(&mut self, now: Nanos, message: Message) -> Option<Message> {
        match message {
            Message::Append(append) => return self.on_append(now, append).map(Message::Append),
            Message::Sync { epoch, lsn } => self.on_sync_asked(epoch, lsn),
            Message::TailEnd => self.on_tail_end(now),
            Message::VerifyRange { id, range, lsn, hash } => self.on_verify_range(now, id, range, lsn, hash),
            Message::SeedBegin(begin) => return self.on_seed_begin(now, begin),
            Message::Base(blocks) => return self.on_base_blocks(now, blocks).map(Message::Base),
            Message::SeedEnd { resync, pass, visible_at, history } => {
                self.on_seed_end(resync, pass, visible_at, history);
            }
            _ => {}
        }
        None
    }

    fn may_receive(&self) -> bool {
        let fetching = self.wants_tail() && self.link.as_ref().is_some_and(|l| l.fetching);
        (fetching || !self.leads()) && self.log.failure().is_none()
    }

    fn on_append(&mut self, now: Nanos, append: Append) -> Option<Append> {
        // Whatever takes the log apart or changes K ends by itself; then it is seen whether the frame still follows.
        let busy = self.sealing.is_some() || !matches!(self.stage, super::Stage::Running | super::Stage::Closing(_));
        if busy || self.is_persisting_k() || self.is_seed_beginning() {
            return Some(append);
        }
        if !self.may_receive() || (self.is_no_prefix() && !self.takes_live_frames()) {
            self.on_stray_append();
            return None;
        }
        // Asked before it is judged: a frame that waits is looked at often.
        if self.finds_no_room(&append) {
            return Some(append);
        }
        let (volume, secret) = (self.superblock.volume, self.superblock.secret.clone());
        let against = Against {
            volume,
            secret: &secret,
            // The answer to FetchTail carries the peer's own epoch: it is asked for, and judged by the chain.
            epoch: if self.leads() { append.epoch } else { self.k.epoch },
            end: self.log.end(),
            durable: self.log.durable(),
            layout: &self.space.layout,
            base_size: self.space.base_size(),
            frame_bytes: self.superblock.slot_bytes - crate::format::segment::HEADER_BYTES as u64,
        };
        let sync = append.sync;
        match judge(append, &against) {
            Ok(None) => self.on_append_taken(sync),
            Ok(Some(a)) if a.layout.as_ref().is_some_and(|layout| !self.space.has_room(layout)) => {
                return self.make_room_for(now, a, sync);
            }
            Ok(Some(a)) => {
                let placed = self.log.take(now, a.header, a.bytes, a.payload, sync, &mut self.out);
                self.on_placed(now, &placed);
                let end = self.log.end();
                if let Some(link) = &mut self.link {
                    // Newer than the greeting, whether that was looked at or not.
                    (link.taken, link.fresh, link.strayed) = (Some(end), false, false);
                }
                self.on_append_taken(sync);
            }
            Err(why) => self.on_bad_append(why),
        }
        None
    }

    /// The peer had room made before it wrote this; here it is gone since (a log that was cut takes the bases of what it named with
    /// it). The frame waits.
    fn make_room_for(&mut self, now: Nanos, a: Accepted, sync: bool) -> Option<Append> {
        if self.space.growing.is_none() {
            let wanted = a.layout.clone()?;
            self.make_room(now, wanted);
        }
        let epoch = self.k.epoch;
        Some(Append { epoch, header: a.bytes.slice(..a.header.used_bytes()), payload: a.payload, sync })
    }

    /// No room can be made for a frame that waits for it.
    pub(super) fn peer_needs_room(&mut self) {
        let next = self.link.as_ref().and_then(|l| l.backlog.front());
        if matches!(next, Some(Message::Append(_) | Message::SeedBegin(_) | Message::Base(_))) {
            self.seeded = None;
            self.alarm("no_base", "a base image of the group cannot be made as large as the primary's volume");
            self.hang_up(Refusal::Storage);
        }
    }

    /// The frame at the end of the log is the peer's; `sync`: it waits until that is durable.
    fn on_append_taken(&mut self, sync: bool) {
        if sync {
            self.note_sync_wanted(self.log.end().position.lsn);
        }
    }

    fn note_sync_wanted(&mut self, lsn: Lsn) {
        if let Some(link) = &mut self.link {
            link.sync_wanted = link.sync_wanted.max(lsn);
        }
    }

    fn on_bad_append(&mut self, why: Refusal) {
        if matches!(why, Refusal::OldEpoch) {
            let k = self.k.clone();
            self.send(Message::Fenced(k));
        }
        if matches!(why, Refusal::Rewrite | Refusal::Chain) {
            self.alarm("refused_rewrite", format!("the peer sent a frame that was refused: {why}"));
        }
        self.hang_up(why);
    }

    /// Frames that cannot continue what is here: their sender goes by what this copy was before it began to be seeded, say. It is
    /// told once what this copy is now.
    fn on_stray_append(&mut self) {
        if let Some(link) = self.link.as_mut().filter(|l| !l.strayed) {
            link.strayed = true;
            self.refuse(Refusal::State);
            self.greet();
        }
    }

    fn finds_no_room(&self, append: &Append) -> bool {
        let has_room = !self.needs_index_room() && self.log.has_room(append.frame_bytes());
        !(has_room || self.log.has_room_to_begin(append.frame_bytes()) && self.begins(append))
    }

    /// The frame begins an incarnation: without it no volume opens.
    fn begins(&self, append: &Append) -> bool {
        let header = FrameHeader::decode(&append.header, &self.superblock.secret);
        header.is_ok_and(|header| header.records.iter().any(|record| record.kind == Kind::Fork))
    }

    /// Such a frame of the peer waits for a slot.
    pub(super) fn waits_to_begin(&self) -> bool {
        let next = self.link.as_ref().and_then(|l| l.backlog.front()).filter(|_| self.log.segments.ready() == 0);
        matches!(next, Some(Message::Append(append)) if !self.log.has_room_to_begin(append.frame_bytes()) && self.begins(append))
    }

    /// A frame of the peer waits for room here.
    pub(super) fn finds_no_room_for_peer(&self) -> bool {
        let next = self.link.as_ref().and_then(|l| l.backlog.front());
        matches!(next, Some(Message::Append(append)) if self.finds_no_room(append))
    }

    /// The index is at its limit: frames wait until the floor has advanced.
    fn needs_index_room(&self) -> bool {
        self.index.len() >= self.superblock.policy.index_ranges as usize
            && self.log.appended() >= self.log.end().position.lsn
            && self.committed > self.floor.at().position.lsn
            && !self.needs_seed()
    }

    fn on_sync_asked(&mut self, epoch: crate::types::Epoch, lsn: Lsn) {
        if epoch != self.k.epoch {
            return self.refuse(if epoch < self.k.epoch { Refusal::OldEpoch } else { Refusal::NeedConfig });
        }
        self.note_sync_wanted(lsn);
        self.log.want_durable(lsn);
    }

    /// Processes what waited, and acknowledges what changed.
    pub(super) fn pump_receiver(&mut self, now: Nanos) {
        self.drain_backlog(now);
        if let Some(lsn) = self.link.as_ref().map(|l| l.sync_wanted) {
            self.log.want_durable(lsn);
        }
        self.log.poll_sync(now, &mut self.out);
        if !self.follows() || self.is_persisting_k() || !self.may_acknowledge() {
            return;
        }
        let appended = self.log.appended();
        let durable = if planted(Planted::AckBeforeSyncAtSecondary) { appended } else { self.log.durable() };
        let state = (self.k.epoch, appended, durable);
        let awaited = self.k.mode == Mode::Receive;
        let Some(link) = self.link.as_mut().filter(|l| l.hello.is_some() && l.told != Some(state)) else { return };
        let news = link.told.is_none_or(|(epoch, _, synced)| (epoch, synced) != (state.0, durable));
        if !news && !awaited && now < *link.tell_at.get_or_insert(Nanos(now.0 + TELL_NS)) {
            return;
        }
        (link.told, link.tell_at) = (Some(state), None);
        let conn = link.conn;
        let Some(position) = self.history.position(appended) else { return };
        let ack = Ack {
            epoch: self.k.epoch,
            generation: position.generation,
            incarnation: position.incarnation,
            appended,
            durable,
            floor: self.floor.at().position.lsn,
            boot: self.boot,
        };
        self.out.push(Output::Send(conn, Message::Ack(ack)));
    }

    /// There is a primary to report to: that of K, or a peer whose newer K this copy has yet to take. An acknowledgement names
    /// its K, so the latter proves nothing but that this copy has caught up.
    fn follows(&self) -> bool {
        let led = |l: &super::link::Link| {
            l.hello.as_ref().is_some_and(|h| h.config.primary == Some(l.site) && h.config.epoch > self.k.epoch)
        };
        match self.k.primary {
            Some(primary) => primary != self.site,
            None => self.link.as_ref().is_some_and(led),
        }
    }

    /// A copy that is being seeded, sealed or not trusted acknowledges nothing: what it has is no prefix.
    fn may_acknowledge(&self) -> bool {
        self.sealing.is_none()
            && self.diverged.is_none()
            && self.superblock.flag != CopyFlag::Failed
            && (!self.is_no_prefix() || self.takes_live_frames())
    }
}
