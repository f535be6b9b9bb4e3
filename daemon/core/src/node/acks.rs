//! The log's side of a node: frames, syncs, acknowledgement (R1, R2), and the floor.

use crate::config::Mode;
use crate::event::{DiskDone, DiskError, DiskResult, DiskToken, RequestId};
use crate::floor;
use crate::format::frame::{MAX_PEERS, PeerDurable};
use crate::format::record::Kind;
use crate::format::superblock::CopyFlag;
use crate::log::{FrameContext, LogFailure, MIN_SLOTS, Placed};
use crate::node::meta::AfterSuperblock;
use crate::node::{Node, Stage};
use crate::planted::{Planted, planted};
use crate::ship::sender::Source;
use crate::status::Role;
use crate::types::{Lsn, Nanos};

/// The floor advances by itself when the log or the index is this full, in percent.
const FLOOR_START_PERCENT: u64 = 60;
/// A floor that met a full base tries again after this time.
const FLOOR_RETRY_MS: u64 = 1000;
/// Samples of "when was it written" kept for the RPO.
const MAX_WRITTEN: usize = 4096;

impl Node {
    /// Slots, frames and syncs.
    pub(super) fn pump_log(&mut self, now: Nanos) {
        match self.log.failure() {
            Some(LogFailure::Sync) => return self.fail_for_good(now, "a sync of the log failed"),
            Some(LogFailure::Write) => return self.fail_copy("the log cannot be written"),
            None => {}
        }
        let limit = self.slot_limit();
        // The log of a copy that starts over is whole until the superblock says that it starts over.
        if !matches!(self.superblock.flag, CopyFlag::Seeding(_)) || self.superblock_file.is_idle() {
            self.log.poll_dropped(now, &mut self.out);
        }
        self.log.poll_slots(now, limit, &mut self.out);
        while let Some(placed) = self.build_frame(now) {
            self.on_placed(now, &placed);
        }
        if let Some(lsn) = self.acks.wanted() {
            self.log.want_durable(lsn);
        }
        self.log.poll_sync(now, &mut self.out);
        self.watch_full(now);
    }

    fn slot_limit(&self) -> usize {
        let slots = self.superblock.policy.log_bytes / self.superblock.slot_bytes;
        usize::try_from(slots).unwrap_or(usize::MAX).max(MIN_SLOTS)
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
        self.log.build(now, &context, &mut self.out)
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
        self.written_bytes += bytes;
        self.written_at.push_back((placed.header.last(), now, self.written_bytes));
        if self.written_at.len() > MAX_WRITTEN {
            // Keep every second of the older half: the RPO is then known a little less exactly, and memory is bounded.
            let kept = self.written_at.iter().copied().enumerate();
            let half = MAX_WRITTEN / 2;
            self.written_at = kept.filter(|(i, _)| *i >= half || i % 2 == 0).map(|(_, w)| w).collect();
        }
        self.counters.frames += 1;
        if placed.header.records.iter().any(|r| r.kind == Kind::Resize) && self.leads() {
            // A copy that is being seeded learns the new size from the greeting: it gets no record of it.
            self.greet();
        }
    }

    pub(super) fn on_frame_written(&mut self, now: Nanos, token: DiskToken, ok: bool) {
        if self.log.on_written(now, token, ok) {
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
        if self.role != Role::Primary && !matches!(self.role, Role::Suspended(_)) || self.is_persisting_k() {
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
        if self.role != Role::Primary && !matches!(self.role, Role::Suspended(_)) {
            return;
        }
        let mut done = Vec::new();
        self.acks.on_committed(self.promised(), &mut done);
        self.complete(done);
        if std::mem::take(&mut self.reads_may_go) {
            self.release_reads(now);
        }
    }

    fn forget_written(&mut self) {
        let known = match &self.link {
            Some(link) if self.superblock.peer.is_some() => link.sender.durable(),
            _ if self.superblock.peer.is_some() => return,
            _ => self.log.durable(),
        };
        while self.written_at.front().is_some_and(|w| w.0 <= known) {
            self.written_at.pop_front();
        }
    }

    // ---- floor -------------------------------------------------------------------------------------------------------

    /// The position that the floor may not pass.
    fn floor_limit(&self) -> Lsn {
        if planted(Planted::FloorAboveCommitted) {
            return self.log.appended();
        }
        self.committed.min(self.log.durable())
    }

    fn wants_floor(&self, now: Nanos) -> bool {
        let index_limit = u64::from(self.superblock.policy.index_ranges) * FLOOR_START_PERCENT / 100;
        let slots_limit = self.slot_limit() as u64 * FLOOR_START_PERCENT / 100;
        self.draining.is_some()
            || self.index.len() as u64 >= index_limit
            || self.segments_above_floor() > slots_limit
            || self.retention_due().is_some_and(|at| at <= now)
    }

    /// Segments that an advance could free. Those below the floor are kept only as long as there is room, see
    /// [`Node::free_segments`]: counted here, a follower's floor would never rest.
    fn segments_above_floor(&self) -> u64 {
        let floor = self.floor.at().position.lsn;
        self.log.segments.live().rev().take_while(|s| s.end().position.lsn > floor).count() as u64
    }

    /// When the oldest record above the floor outlives the retention. It is as old as its segment, but no older than the last
    /// advance that left nothing behind: without that, a segment that fills slowly would be advanced over without end.
    pub(super) fn retention_due(&self) -> Option<Nanos> {
        let oldest = self.log.segments.live().find(|s| s.end().position.lsn > self.floor.at().position.lsn)?;
        if self.floor_retry_at.is_some() || oldest.end().position.lsn > self.floor_limit() {
            return None;
        }
        Some(oldest.opened_at.max(self.floor_took_all_at).after_ms(self.superblock.policy.retention_ms))
    }

    /// Starts an advance when something asks for one and frees segments that nobody needs.
    pub(super) fn pump_floor(&mut self, now: Nanos) {
        self.free_segments();
        if self.draining.is_some_and(|to| self.floor.at().position.lsn >= to) {
            self.draining = None;
        }
        if self.floor_retry_at.is_some_and(|at| now >= at) {
            self.floor_retry_at = None;
        }
        let sound = self.flag() == CopyFlag::Complete && self.log.appended() >= self.superblock.visible_at;
        let busy = !self.floor.is_idle() || self.sealing.is_some() || self.floor_retry_at.is_some();
        if !sound || busy || self.damage.is_some() || !matches!(self.stage, Stage::Running) || !self.wants_floor(now) {
            return;
        }
        // What a drain asks for may end inside a frame: the floor stops at frames, so it may go further.
        if let Some(to) = self.floor.reachable(&self.log.segments, self.floor_limit()) {
            self.floor_starts += 1;
            if self.log.segments.boundary_below(self.floor_limit()) == Some(to) {
                self.floor_took_all_at = now;
            }
            self.floor.begin(now, to, &self.log.segments, &mut self.out);
        }
    }

    /// Segments below the floor are kept while the peer may still ask for them: a member of S for as long as it takes (it may be
    /// listed and not have confirmed yet), any other while the log has room.
    fn free_segments(&mut self) {
        let saved = self.superblock.floor.position.lsn;
        let floor = if planted(Planted::TrimBeforeSuperblock) { self.floor_limit() } else { saved };
        let floor =
            floor.min(if planted(Planted::TrimBeforeSuperblock) { floor } else { self.floor.at().position.lsn });
        let live = self.log.segments.live().count();
        let short = self.log.segments.ready() == 0 || live * 100 > self.slot_limit() * 80;
        let needed = match (self.superblock.peer, &self.link) {
            (Some(_), Some(link)) if self.k.primary == Some(self.site) => link.sender.kept_from(),
            (Some(_), _) => Lsn::ZERO,
            _ => Lsn(u64::MAX),
        };
        let in_s = self.superblock.peer.is_some_and(|peer| self.k.has(peer)) && self.k.primary == Some(self.site);
        let upto = if short && !in_s { floor } else { floor.min(needed) };
        self.log.segments.free(upto);
    }

    pub(super) fn on_floor_read(&mut self, now: Nanos, result: DiskResult) {
        let data = match result {
            Ok(DiskDone::Read(data)) => Some(data),
            _ => None,
        };
        let secret = self.superblock.secret.clone();
        let step = self.floor.on_read(now, data, &secret, self.floor_size(), &mut self.out);
        self.on_floor_step(now, step);
    }

    /// The size that base writes are clamped to.
    fn floor_size(&self) -> u64 {
        self.base_size.min(self.size)
    }

    pub(super) fn on_floor_written(&mut self, now: Nanos, result: DiskResult) {
        if result == Err(DiskError::NoSpace) {
            self.floor_retry_at = Some(now.after_ms(FLOOR_RETRY_MS));
        }
        let step = self.floor.on_written(now, result.is_ok(), self.floor_size(), &mut self.out);
        self.on_floor_step(now, step);
    }

    pub(super) fn on_floor_synced(&mut self, now: Nanos, ok: bool) {
        let known = std::mem::take(&mut self.superblock.samples);
        let step = self.floor.on_synced(now, ok, self.base_size, &known, &mut self.out);
        self.superblock.samples = known;
        self.on_floor_step(now, step);
    }

    pub(super) fn on_floor_head(&mut self, now: Nanos, head: Option<bytes::Bytes>) {
        let step = self.floor.on_head(head);
        self.on_floor_step(now, step);
    }

    fn on_floor_step(&mut self, now: Nanos, step: floor::Step) {
        match step {
            floor::Step::Wait => {}
            floor::Step::Save { to, samples } => {
                self.superblock.floor = to;
                self.superblock.floor_target = to.position.lsn;
                self.superblock.samples = samples;
                if let Some(size) = self.floor.resized() {
                    self.superblock.size = size;
                }
                self.after_superblock(now, AfterSuperblock::Floor);
            }
            floor::Step::Damaged => {
                self.log_is_rotten("the floor stays");
            }
            floor::Step::BaseFailed if self.floor_retry_at.is_some() => {
                self.alarm("base_full", "no space under the base image; the floor stays and tries again");
            }
            floor::Step::BaseFailed => self.fail_copy("the base image cannot be written"),
        }
    }

    pub(super) fn on_floor_saved(&mut self) {
        if !self.floor.is_saving() {
            return;
        }
        let (at, ranges) = self.floor.on_saved();
        for range in ranges {
            self.index.prune(range, at.position.lsn);
        }
        self.counters.floor_blocks = self.floor.blocks();
        if self.draining.is_some_and(|to| at.position.lsn >= to) {
            self.draining = None;
        }
    }
}
