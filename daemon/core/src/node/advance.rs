//! When the floor advances, how far, how fast, and what becomes of segments that it has passed.

use crate::event::{DiskDone, DiskError, DiskResult};
use crate::floor;
use crate::format::superblock::{CopyFlag, Sample};
use crate::layout::{Extent, Layout};
use crate::node::meta::AfterSuperblock;
use crate::node::{Node, Stage};
use crate::planted::{Planted, planted};
use crate::types::{Boundary, Lsn, Nanos};

/// The floor advances by itself when the log or the index is this full, in percent.
const FLOOR_START_PERCENT: u64 = floor::RELAXED_PERCENT;
/// A floor that met a full base tries again after this time.
const FLOOR_RETRY_MS: u64 = 1000;

impl Node {
    /// The position that the floor may not pass.
    fn floor_limit(&self) -> Lsn {
        if planted(Planted::FloorAboveCommitted) {
            return self.log.appended();
        }
        let limit = self.floor_limit_without_branches();
        self.branch_at.map_or(limit, |kept| limit.min(kept))
    }

    /// The same, were there no sealed suffixes to be opened.
    pub(super) fn floor_limit_without_branches(&self) -> Lsn {
        self.committed.min(self.log.durable())
    }

    fn wants_floor(&self, now: Nanos, fill: u64) -> bool {
        self.draining.is_some() || fill >= FLOOR_START_PERCENT || self.retention_due().is_some_and(|at| at <= now)
    }

    /// Up to where the next advance may come, and comes. It ends first where the peer is known to be: what is kept of the changes
    /// after that is then no more than the peer lacks.
    fn next_floor(&self) -> (Lsn, Option<Boundary>) {
        let limit = self.floor_limit();
        let first = self.floor_stop(limit).map(|stop| (stop, self.floor.reachable(&self.log.segments, stop)));
        first.filter(|(_, to)| to.is_some()).unwrap_or_else(|| (limit, self.floor.reachable(&self.log.segments, limit)))
    }

    /// How much of its room what is above the floor takes, in percent: of the log or of the index, whichever is fuller.
    fn floor_fill(&self) -> u64 {
        let index = self.index.len() as u64 * 100 / u64::from(self.superblock.policy.index_ranges).max(1);
        index.max(self.segments_above_floor() * 100 / self.slots_to_be_had() as u64)
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

    /// Why this copy's base does not follow its log, whatever is asked: nobody has to wait for it.
    pub(super) fn floor_stands(&self) -> Option<&'static str> {
        match self.flag() {
            CopyFlag::Failed => Some("failed"),
            CopyFlag::Seeding(_) => Some("being seeded"),
            CopyFlag::Released => Some("released"),
            CopyFlag::Suspect => Some("suspect"),
            CopyFlag::Complete | CopyFlag::Diverged if self.reseed_wanted => Some("given up"),
            CopyFlag::Complete | CopyFlag::Diverged if self.damage.is_some() => Some("suspect"),
            CopyFlag::Diverged => Some("diverged"),
            CopyFlag::Complete => self.diverged.is_some().then_some("diverged"),
        }
    }

    /// Starts an advance when something asks for one and frees segments that nobody needs.
    pub(super) fn pump_floor(&mut self, now: Nanos) {
        let short = self.free_segments();
        let fill = self.floor_fill();
        self.watch_pauses(fill, short);
        self.pace_floor(now, fill);
        if self.draining.is_some_and(|to| self.floor.at().position.lsn >= to) {
            self.draining = None;
        }
        if self.floor_retry_at.is_some_and(|at| now >= at) {
            self.floor_retry_at = None;
        }
        let sound = self.flag() == CopyFlag::Complete && self.log.appended() >= self.superblock.visible_at;
        let busy = !self.floor.is_idle() || self.sealing.is_some() || self.floor_retry_at.is_some();
        if !sound
            || busy
            || self.superblock.paused.floor
            || self.damage.is_some()
            || !matches!(self.stage, Stage::Running)
            || !self.wants_floor(now, fill)
        {
            return;
        }
        // What a drain asks for may end inside a frame: the floor stops at frames, so it may go further.
        let (limit, to) = self.next_floor();
        if self.views_hold_floor(fill, to) {
            return;
        }
        let Some(to) = to else { return self.give_branches_up(now, fill) };
        self.floor_starts += 1;
        if self.log.segments.boundary_below(limit) == Some(to) {
            self.floor_took_all_at = now;
        }
        self.floor.begin(now, to, &self.log.segments, &mut self.out);
    }

    /// The base yields to the log as long as there is room and nobody waits for it.
    fn pace_floor(&mut self, now: Nanos, fill: u64) {
        let awaited = self.draining.is_some() || self.superblock.paused.floor || !matches!(self.stage, Stage::Running);
        let (appended, size) = (std::mem::take(&mut self.appended_bytes), self.floor_size());
        let pace = self.floor.pace();
        pace.set_fill(if awaited { 100 } else { fill });
        if appended > 0 {
            pace.earn(now, appended);
        }
        self.floor.go_on(now, size, &mut self.out);
    }

    /// Segments below the floor are kept while the peer may still ask for them: a member of S for as long as it takes (it may be
    /// listed and not have confirmed yet), any other while the log has room: true when it has none, and the peer needs more than stays.
    fn free_segments(&mut self) -> bool {
        let saved = self.superblock.floor.position.lsn;
        let floor = if planted(Planted::TrimBeforeSuperblock) { self.floor_limit() } else { saved };
        let floor =
            floor.min(if planted(Planted::TrimBeforeSuperblock) { floor } else { self.floor.at().position.lsn });
        let live = self.log.segments.live().count();
        let short = self.log.is_short() || live * 100 > self.slots_to_be_had() * 80;
        let needed = match (self.superblock.peer, &self.link) {
            (Some(_), Some(link)) if self.k.primary == Some(self.site) => link.sender.kept_from(),
            (Some(_), _) => Lsn::ZERO,
            _ => Lsn(u64::MAX),
        };
        let in_s = self.superblock.peer.is_some_and(|peer| self.k.has(peer)) && self.k.primary == Some(self.site);
        let upto = if short && !in_s { floor } else { floor.min(needed) };
        if upto > needed {
            self.note_tails();
        }
        self.log.segments.free(upto);
        upto > needed
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
        self.space.base_size().min(self.space.layout.size())
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
        let heads = floor::heads(&self.layout_after_advance(), self.space.base_size());
        let step = self.floor.on_synced(now, ok, &heads, &known, &mut self.out);
        self.superblock.samples = known;
        self.on_floor_step(now, step);
    }

    /// The layout that the superblock gets with this advance.
    fn layout_after_advance(&self) -> Layout {
        let present = &self.superblock.layout;
        self.floor.change().map_or_else(|| present.clone(), |change| change.on(present))
    }

    pub(super) fn on_floor_head(&mut self, now: Nanos, number: usize, head: DiskResult) {
        let head = match head {
            Ok(DiskDone::Read(data)) => Some(data),
            _ => None,
        };
        let step = self.floor.on_head(number, head);
        self.on_floor_step(now, step);
    }

    fn on_floor_step(&mut self, now: Nanos, step: floor::Step) {
        match step {
            floor::Step::Wait => {}
            floor::Step::Save { to, samples } => self.track(now, to, samples),
            floor::Step::Damaged => {
                self.log_is_rotten("the floor stays");
            }
            floor::Step::BaseFailed if self.floor_retry_at.is_some() => {
                self.alarm("base_full", "no space under the base image; the floor stays and tries again");
            }
            floor::Step::BaseFailed => self.fail_copy("the base image cannot be written"),
        }
    }

    /// The base holds all up to there, and what that changed is kept where the peer may have to be told.
    pub(super) fn save_floor(&mut self, now: Nanos, to: Boundary, samples: Vec<Sample>) {
        self.superblock.floor = to;
        self.superblock.floor_target = to.position.lsn;
        self.superblock.samples = samples;
        self.superblock.layout = self.layout_after_advance();
        self.after_superblock(now, AfterSuperblock::Floor);
    }

    pub(super) fn on_floor_saved(&mut self) {
        if !self.floor.is_saving() {
            return;
        }
        let changed = self.floor.change().is_some();
        let (at, ranges) = self.floor.on_saved();
        for range in ranges {
            self.index.prune(range, at.position.lsn);
        }
        if changed {
            for range in self.superblock.layout.holes().flat_map(Extent::ranges) {
                self.index.prune(range, at.position.lsn);
            }
        }
        self.counters.floor_blocks = self.floor.blocks();
        if self.draining.is_some_and(|to| at.position.lsn >= to) {
            self.draining = None;
        }
    }
}
