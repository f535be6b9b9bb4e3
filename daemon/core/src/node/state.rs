//! The status of a copy: derived, never stored.

use crate::config::{AckOn, Config, Mode};
use crate::format::superblock::CopyFlag;
use crate::node::{Node, Stage};
use crate::ship::sender::Source;
use crate::status::{CopyState, Counters, LinkState, Role, Status, SuspendReason};
use crate::types::{Lsn, Nanos, Position};

/// A member of S that has not made durable for so long what it was sent is no protection, whatever holds it up: without a flush
/// it syncs ten times a second.
const SILENT_MS: u64 = 5_000;

impl Node {
    /// Everything that there is to say about this copy now.
    pub fn status(&self, now: Nanos) -> Status {
        let why = self.not_protected_because(now);
        let oldest = self.out.oldest().map_or(0, |at| now.since(at) / 1_000_000);
        let (backlog_bytes, rpo_ms) = self.backlog(now);
        let (_, syncs) = self.log.counters();
        Status {
            volume: self.superblock.volume,
            site: self.site,
            peer: self.superblock.peer,
            role: self.role,
            copy: self.copy_state(),
            link: self.link_state(),
            config: self.k.clone(),
            policy: self.superblock.policy,
            size: self.space.layout.size(),
            layout: self.space.layout.clone(),
            base_layout: self.space.base(),
            floor: self.floor.at().position.lsn,
            committed: self.committed,
            durable: self.log.durable(),
            appended: self.appended(),
            peer_durable: self.link.as_ref().map_or(Lsn::ZERO, |l| l.sender.durable()),
            backlog_bytes,
            rpo_ms,
            log_bytes: self.log.segments.slots() as u64 * self.superblock.slot_bytes,
            log_limit_bytes: self.superblock.policy.log_bytes,
            index_ranges: self.index.len() as u64,
            requests: self.waiting_requests(),
            protected: why.is_empty(),
            not_protected_because: why,
            forced_history: self.superblock.forced.clone(),
            paused: self.superblock.paused,
            log_full_in_ms: self.log_full_in_ms(now),
            branches: self.superblock.branches,
            promotable: self.promotable(now),
            members: self.group_members(),
            oldest_disk_op_ms: oldest,
            counters: Counters { syncs, ..self.counters },
        }
    }

    /// Requests that were not answered yet.
    pub(super) fn waiting_requests(&self) -> u64 {
        (self.acks.len() + self.parked.len() + self.held.len() + self.waiting_reads.len()) as u64
    }

    /// Its role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Bytes of the group's space now; asked by frontends at every wakeup, unlike the whole [`Status`].
    pub fn size(&self) -> u64 {
        self.space.layout.size()
    }

    /// What an acknowledgement waits for; as [`Node::size`].
    pub fn ack_on(&self) -> AckOn {
        self.superblock.policy.ack_on
    }

    /// K as this copy holds it; as [`Node::size`].
    pub fn config(&self) -> &Config {
        &self.k
    }

    /// The end of what is written without a gap; as [`Node::size`].
    pub fn appended(&self) -> Position {
        self.history.position(self.log.appended()).unwrap_or_default()
    }

    /// What is durable here without a gap; as [`Node::size`].
    pub fn durable(&self) -> Lsn {
        self.log.durable()
    }

    /// What the log knows of the blocks of a range, in order: `(first, count, Some(true))` zeros, `Some(false)` data, `None`
    /// whatever the base holds.
    pub fn block_states(&self, range: crate::types::ByteRange) -> Vec<(u64, u64, Option<bool>)> {
        let place = |p: crate::volume::index::Piece| {
            let known = p.found.map(|(_, place)| place == crate::volume::index::Place::Zero);
            (p.lba, u64::from(p.count), known)
        };
        self.index.lookup(super::requests::whole(range)).into_iter().map(place).collect()
    }

    /// Progress of a comparison under way: blocks compared, blocks in all.
    pub fn verify_status(&self) -> Option<(u64, u64)> {
        self.verify_progress()
    }

    /// True when nothing is served any more and the shell may let go of the files.
    pub fn is_closed(&self) -> bool {
        matches!(self.stage, Stage::Closed)
    }

    pub(super) fn role_name(&self) -> &'static str {
        match self.role {
            Role::Secondary => "secondary",
            Role::Primary => "primary",
            Role::Suspended(SuspendReason::Restart) => "suspended (restart: waits for its peer)",
            Role::Suspended(SuspendReason::Opening) => "suspended (opening)",
            Role::Suspended(SuspendReason::LeaseLost) => "suspended (its lease is over)",
            Role::Suspended(_) => "suspended",
            Role::Fenced(_) => "fenced",
        }
    }

    fn copy_state(&self) -> CopyState {
        // What ails the copy itself comes first: such a copy cannot be named the winner.
        if let Some(reason) = self.diverged.as_ref().filter(|_| self.damage.is_none()) {
            return CopyState::Diverged { reason: reason.clone() };
        }
        let before = "found at an earlier opening; only a new seeding mends it";
        let damage = self.damage.clone().unwrap_or_else(|| before.into());
        match self.flag() {
            CopyFlag::Failed => return CopyState::Failed { reason: damage },
            CopyFlag::Suspect => return CopyState::Suspect { reason: damage },
            CopyFlag::Seeding(_) => return self.seeding_state(),
            CopyFlag::Released => return CopyState::Stale,
            CopyFlag::Diverged | CopyFlag::Complete if self.reseed_wanted => return self.seeding_state(),
            CopyFlag::Diverged | CopyFlag::Complete => {}
        }
        if self.is_recovering() {
            return CopyState::Opening;
        }
        if self.damage.is_some() {
            return CopyState::Suspect { reason: damage };
        }
        if self.log.end().position.lsn < self.required {
            let why =
                self.lost_tail.as_ref().map_or("the peer holds records that were durable here once", |lost| lost.why);
            return CopyState::Suspect { reason: format!("durable records are missing: {why}") };
        }
        let leads = self.k.primary == Some(self.site);
        let follows_live = self.link.as_ref().is_some_and(|l| l.hello.is_some());
        let waits = self.link.as_ref().is_some_and(|l| !l.backlog.is_empty());
        let in_step = self.log.appended() >= self.primary_appended_seen && !waits;
        match (leads || self.k.has(self.site), follows_live, in_step) {
            (true, _, _) => CopyState::Current,
            (false, true, true) => CopyState::Current,
            (false, true, false) => CopyState::CatchingUp,
            (false, false, _) => CopyState::Stale,
        }
    }

    fn seeding_state(&self) -> CopyState {
        let (done, total) = self.seeded.as_ref().map_or((0, 0), |s| (s.done_bytes, s.total_bytes));
        CopyState::Seeding { done, total, by_difference: self.superblock.is_difference }
    }

    fn link_state(&self) -> LinkState {
        if self.superblock.peer.is_none() {
            return LinkState::NoPeer;
        }
        if let Some(why) = &self.link_refused {
            return LinkState::Refused(why.clone());
        }
        let Some(link) = &self.link else { return LinkState::Disconnected };
        if self.k.primary == Some(self.site) && !self.ships() {
            return LinkState::Paused;
        }
        if self.seeder.is_some() || self.seeded.is_some() {
            return LinkState::Seeding;
        }
        if link.hello.is_none() {
            return LinkState::Handshaking;
        }
        match link.sender.source {
            _ if self.k.primary != Some(self.site) => LinkState::Streaming,
            Source::Probe => LinkState::Handshaking,
            Source::CatchUp => LinkState::CatchingUp,
            Source::Stream => LinkState::Streaming,
        }
    }

    /// Progress of seeding the peer: bytes looked at in this pass, bytes of the pass, pass.
    pub fn seeding_peer(&self) -> Option<(u64, u64, u32)> {
        self.seeder.as_ref().map(|s| (s.done_bytes.min(s.total_bytes), s.total_bytes, s.pass))
    }

    /// Empty when a loss of the primary's site would lose no acknowledged flush (sync), or no more than the target (async).
    fn not_protected_because(&self, now: Nanos) -> String {
        if self.superblock.peer.is_none() {
            return "the volume is local: it has no peer site".into();
        }
        if self.k.primary != Some(self.site) {
            return self.follower_not_protected();
        }
        if self.role != Role::Primary {
            return format!("the volume is {}", self.role_name());
        }
        let Some(link) = &self.link else { return "the peer site is not connected".into() };
        if !self.ships() {
            return "shipping is paused by an operator: `tidemark resume --ship`".into();
        }
        match self.seeder.as_ref().map(|seeder| seeder.from.is_some()) {
            Some(false) => return "the peer's copy is being seeded".into(),
            Some(true) => return "the peer's copy is being brought up to date by what changed".into(),
            None => {}
        }
        if let Some(why) = &self.link_refused {
            return why.clone();
        }
        if link.sender.source == Source::Probe {
            return "the peer's copy is being compared".into();
        }
        if link.regressed > link.sender.durable() {
            return "the peer's copy lacks records that were durable there once".into();
        }
        match self.superblock.policy.mode {
            Mode::Async => {
                let (_, ms) = self.backlog(now);
                let over = ms > self.superblock.policy.rpo_target_ms;
                if over { format!("the peer is {ms} ms behind") } else { String::new() }
            }
            mode if self.k.mode != mode || self.k.sites.len() < 2 => self.not_in_s_because(now).into(),
            _ if link.acked_epoch != self.k.epoch => "the peer has not yet confirmed the configuration".into(),
            _ => {
                let (_, ms) = self.backlog(now);
                if ms > SILENT_MS { format!("the peer has made nothing durable for {ms} ms") } else { String::new() }
            }
        }
    }

    fn not_in_s_because(&self, now: Nanos) -> &'static str {
        match self.rests(now) {
            true => "the configuration changed too often of late: the peer joins S after a while without a change",
            false => "the peer is not yet a member of S",
        }
    }

    fn follower_not_protected(&self) -> String {
        if !self.is_sound() {
            return "this copy is not complete".into();
        }
        if self.link.is_none() {
            return "the primary site is not connected".into();
        }
        if self.says_full {
            return "this copy has no room for what the primary sends".into();
        }
        let wants_s = self.superblock.policy.mode != Mode::Async;
        if wants_s && !self.k.has(self.site) { "this copy is not a member of S".into() } else { String::new() }
    }
}
