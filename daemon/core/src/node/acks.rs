//! The log's side of a node: frames, syncs, acknowledgement (R1, R2).

use crate::config::Mode;
use crate::event::{DiskError, DiskToken, RequestId};
use crate::format::frame::{MAX_PEERS, PeerDurable};
use crate::format::superblock::CopyFlag;
use crate::log::{FrameContext, LogFailure, MIN_SLOTS, Placed, SLOTS_AHEAD};
use crate::node::Node;
use crate::planted::{Planted, planted};
use crate::ship::sender::Source;
use crate::types::{Lsn, Nanos};

impl Node {
    /// Slots, frames and syncs.
    pub(super) fn pump_log(&mut self, now: Nanos) {
        match self.log.failure() {
            Some(LogFailure::Sync) => return self.fail_for_good(now, "a sync of the log failed"),
            Some(LogFailure::Write) => return self.fail_copy("the log cannot be written"),
            None => {}
        }
        // What an opening fetches from its peer, and its FORK, find room also in a log that is full: without them nothing would be
        // committed that the floor could pass.
        self.log.use_spare(self.opening.is_some());
        let limit = match self.opening.is_some() || self.waits_to_begin() {
            // However often that was: each opening goes on in a slot of its own.
            true if self.log.segments.ready() == 0 => self.slot_limit().max(self.log.segments.slots()) + SLOTS_AHEAD,
            true => self.slot_limit() + SLOTS_AHEAD,
            false => self.slot_limit(),
        };
        // The log of a copy that starts over is whole until the superblock says that it starts over.
        if !matches!(self.superblock.flag, CopyFlag::Seeding(_)) || self.superblock_file.is_idle() {
            self.log.poll_dropped(now, &mut self.out);
        }
        if self.sealing.is_none() {
            self.log.poll_slots(now, limit, &mut self.out);
        }
        while let Some(placed) = self.build_frame(now) {
            self.on_placed(now, &placed);
        }
        if let Some(lsn) = self.acks.wanted() {
            self.log.want_durable(lsn);
        }
        self.log.poll_sync(now, &mut self.out);
        self.watch_full(now);
    }

    pub(super) fn slot_limit(&self) -> usize {
        let slots = self.superblock.policy.log_bytes / self.superblock.slot_bytes;
        usize::try_from(slots).unwrap_or(usize::MAX).max(MIN_SLOTS)
    }

    /// The slots that the log can have: what the policy allows or, where the disk had no room for one more, what there is. The
    /// floor then advances as if that were the limit.
    pub(super) fn slots_to_be_had(&self) -> usize {
        let limit = self.slot_limit();
        if self.log.no_space() { self.log.segments.slots().clamp(1, limit) } else { limit }
    }

    /// Nothing more is numbered into frames before the floor has advanced.
    pub(super) fn index_is_full(&self) -> bool {
        self.index.len() >= self.superblock.policy.index_ranges as usize
    }

    fn build_frame(&mut self, now: Nanos) -> Option<Placed> {
        if self.index_is_full() && self.opening.is_none() {
            return None;
        }
        let context = FrameContext {
            epoch: self.k.epoch,
            committed: self.committed,
            durable: self.log.durable(),
            peers: self.peers_durable(),
            wall_ms: self.wall_at(now).0,
        };
        let promised = self.acks.newest_promise() > Some(self.log.end().position.lsn);
        // A FLUSH that is to come would only ask the peer for the same once more: both make the frame durable at once.
        let expected = self.syncs_peer() && self.acks.expects_flush();
        let placed = self.log.build(now, &context, promised || expected, &mut self.out)?;
        self.acks.framed(placed.header.last(), expected);
        Some(placed)
    }

    /// A FLUSH waits until it is durable at the peer.
    pub(super) fn syncs_peer(&self) -> bool {
        self.k.mode == Mode::Sync && self.k.sites.len() > 1
    }

    fn peers_durable(&self) -> [PeerDurable; MAX_PEERS] {
        let mut peers = [PeerDurable::default(); MAX_PEERS];
        if let (Some(site), Some(link)) = (self.superblock.peer, &self.link) {
            peers[0] = PeerDurable { site, boot: link.sender.boot(), lsn: link.sender.durable() };
        }
        peers
    }

    /// A frame was built or taken: index, history, seeding and RPO learn of it.
    pub(super) fn on_placed(&mut self, now: Nanos, placed: &Placed) {
        self.learn_frame(placed);
        if let Some(seeder) = &mut self.seeder {
            for range in placed.header.records.iter().filter_map(|r| r.range()) {
                seeder.dirty.insert(range.start(), range.end());
            }
        }
        let bytes = (placed.header.padded_bytes() + placed.header.payload_bytes()) as u64;
        self.appended_bytes += bytes;
        self.growth.note(now, bytes);
        self.note_written(now, placed.header.last(), bytes);
        self.counters.frames += 1;
        if placed.change.is_some() && self.leads() {
            // A copy that is being seeded learns the new layout from the greeting: it gets no record of it.
            self.greet();
        }
    }

    pub(super) fn on_frame_written(&mut self, now: Nanos, token: DiskToken, failed: Option<DiskError>) {
        let ignored = planted(Planted::IgnoreFailedSync) && self.log.is_durable_write(token);
        if self.log.on_written(now, token, failed.filter(|_| !ignored)) {
            self.complete_appended();
        }
    }

    pub(super) fn on_log_synced(&mut self, token: DiskToken, ok: bool) {
        let ok = ok || planted(Planted::IgnoreFailedSync);
        self.counters.syncs += 1;
        self.log.on_synced(token, ok);
    }

    pub(super) fn complete_appended(&mut self) {
        let mut done = Vec::new();
        self.acks.on_appended(self.log.appended(), &mut done);
        self.complete(done);
    }

    fn complete(&mut self, done: Vec<RequestId>) {
        self.reads_may_go |= !done.is_empty();
        for id in done {
            self.reply(id, Ok(Vec::new()));
        }
    }

    /// Up to where every member of S has what K's mode asks for, by acknowledgements of just this K (R2).
    fn promised(&self) -> Lsn {
        if !self.role.serves() || self.is_persisting_k() || self.is_held() {
            return Lsn::ZERO;
        }
        let local = if planted(Planted::AckBeforeSyncAtPrimary) { self.log.appended() } else { self.log.durable() };
        let peers = self.k.sites.iter().filter(|s| **s != self.site);
        if planted(Planted::FlushIgnoresPeer) {
            return local;
        }
        peers.map(|site| self.promised_by(*site)).fold(local, Lsn::min)
    }

    fn promised_by(&self, site: crate::types::SiteId) -> Lsn {
        let Some(link) = self.link.as_ref().filter(|l| l.site == site) else { return Lsn::ZERO };
        if link.acked_epoch != self.k.epoch {
            return Lsn::ZERO;
        }
        match self.k.mode {
            Mode::Receive => link.sender.appended(),
            _ => link.sender.durable(),
        }
    }

    /// Up to where every member of S is durable: what the floor may never pass.
    fn update_committed(&mut self) {
        if self.k.primary != Some(self.site) {
            return;
        }
        let peers = self.k.sites.iter().filter(|s| **s != self.site);
        let durable = peers
            // Under whatever K it was acknowledged: the peer's history contains it, so nothing it ever becomes can lack it.
            .map(|site| match self.link.as_ref().filter(|l| l.site == *site && l.sender.source != Source::Probe) {
                Some(link) => link.sender.durable(),
                None => Lsn::ZERO,
            })
            .fold(self.log.durable(), Lsn::min);
        self.committed = self.committed.max(durable);
    }

    /// What is durable at the peer but not here after a crash counts as durable for the invariant.
    pub(super) fn committed_elsewhere(&self) -> Lsn {
        self.required.max(self.committed)
    }

    /// Completes what may be completed.
    pub(super) fn pump_acks(&mut self, now: Nanos) {
        self.update_committed();
        self.forget_written();
        if !self.role.serves() {
            return;
        }
        let mut done = Vec::new();
        self.acks.on_committed(self.promised(), &mut done);
        self.complete(done);
        if std::mem::take(&mut self.reads_may_go) {
            self.release_reads(now);
        }
    }
}
