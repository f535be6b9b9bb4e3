//! Becoming Primary: authority, the peer's surplus (R7a), roll-forward (R7), a new incarnation, and only then service.
//!
//! ```text
//! Suspended(Restart) --peer confirms / async / forced--> Opening: [FetchTail] -> [RollForward] -> Fork -> Primary
//! Secondary --promote--> K persisted ------------------> Opening ...
//! ```

use crate::config::Mode;
use crate::format::config::Fork;
use crate::format::record::{Descriptor, Kind};
use crate::log::Record;
use crate::node::Node;
use crate::planted::{Planted, planted};
use crate::status::{Role, SuspendReason};
use crate::timeline::Relation;
use crate::types::{GenId, Incarnation, Lsn, Nanos};

/// The stages of an opening.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Own log durable, the peer's surplus fetched where a peer is there.
    Tail,
    /// Everything recovered is being made durable on S.
    RollForward,
    /// The FORK record is being made durable on S.
    Fork(Lsn),
}

/// An opening under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    pub stage: Stage,
    /// The peer was asked, or is not needed.
    pub tail_done: bool,
}

impl Node {
    /// Authority is established: this copy will serve once its history is settled.
    pub(super) fn begin_opening(&mut self) {
        if self.opening.is_none() && self.role != Role::Primary {
            self.set_role(Role::Suspended(SuspendReason::Opening));
            self.tracking.take_back();
            self.opening = Some(Opening { stage: Stage::Tail, tail_done: false });
        }
    }

    /// True while the peer's surplus may still be fetched.
    pub(super) fn wants_tail(&self) -> bool {
        matches!(self.opening, Some(Opening { stage: Stage::Tail, tail_done: false }))
    }

    pub(super) fn on_tail_end(&mut self, now: Nanos) {
        if let Some(link) = &mut self.link {
            link.fetching = false;
        }
        if let Some(opening) = &mut self.opening {
            opening.tail_done = true;
        }
        self.match_peer(now);
    }

    /// The peer does not give what it has. Where S needs it, nothing is settled.
    pub(super) fn fetch_refused(&mut self) {
        let Some(link) = self.link.as_mut().filter(|l| l.fetching) else { return };
        link.fetching = false;
        let site = link.site;
        if self.k.has(site) {
            let end = self.log.end().position.lsn;
            if self.required > end {
                self.alarm(
                    "tail_missing",
                    format!("records up to {} were durable here once; {end} found", self.required),
                );
            }
        } else if let Some(opening) = &mut self.opening {
            opening.tail_done = true;
        }
    }

    pub(super) fn opening_lost_link(&mut self) {
        if let Some(opening) = self.opening.as_mut().filter(|o| o.stage == Stage::Tail) {
            opening.tail_done = false;
        }
    }

    /// What an opening waits for at the peer.
    pub(super) fn opening_wants(&self) -> Option<Lsn> {
        match self.opening?.stage {
            Stage::Tail => None,
            Stage::RollForward => Some(self.log.end().position.lsn),
            Stage::Fork(lsn) => Some(lsn),
        }
    }

    /// Drives the opening.
    pub(super) fn pump_opening(&mut self, now: Nanos) {
        let Some(opening) = self.opening else { return };
        if self.is_persisting_k() || self.log.failure().is_some() {
            return;
        }
        let end = self.log.end().position.lsn;
        self.log.want_durable(end);
        match opening.stage {
            Stage::Tail => self.settle_tail(opening),
            Stage::RollForward if self.is_everywhere(end) => self.fork(now),
            Stage::RollForward => {}
            Stage::Fork(lsn) if self.is_everywhere(lsn) && self.may_open(now) && self.members_may_open(now) => {
                self.serve(now);
            }
            Stage::Fork(_) => {}
        }
    }

    /// The tail is settled when the log here is durable, complete, and the peer (where S needs it, or where it is there) has
    /// nothing that this copy lacks.
    fn settle_tail(&mut self, opening: Opening) {
        let quiet = self.log.durable() == self.log.end().position.lsn && self.log.is_quiet();
        let needs_peer = self.k.sites.iter().any(|s| *s != self.site);
        let greeted = self.link.as_ref().is_some_and(|l| l.hello.is_some());
        let fetching = self.link.as_ref().is_some_and(|l| l.fetching);
        let peer_settled = opening.tail_done || (greeted && !fetching && !self.peer_may_have_more());
        let settled = peer_settled || (!needs_peer && !greeted);
        if quiet && settled && self.is_complete() {
            let stage = Stage::RollForward;
            self.opening = Some(Opening { stage, tail_done: true });
            self.pump_again = true;
        }
    }

    fn peer_may_have_more(&self) -> bool {
        let Some(hello) = self.link.as_ref().and_then(|l| l.hello.as_ref()) else { return false };
        !hello.needs_seed
            && !hello.is_suspect
            && hello.tail.position.lsn > self.log.end().position.lsn
            && !self.diverges_below(hello)
    }

    /// The peer's surplus belongs to another line: it is not fetched.
    fn diverges_below(&self, hello: &crate::ship::Hello) -> bool {
        match self.relation(hello) {
            Relation::Common { common, .. } => common.lsn < self.log.end().position.lsn,
            Relation::Unrelated => true,
        }
    }

    /// The log holds everything that it was known to hold durably.
    fn is_complete(&self) -> bool {
        let end = self.log.end().position.lsn;
        end >= self.required && end >= self.superblock.visible_at && self.damage_healed()
    }

    fn damage_healed(&self) -> bool {
        self.flag() == crate::format::superblock::CopyFlag::Complete && self.diverged.is_none()
    }

    /// Durable here and, as K's mode asks, at every other member of S under this K.
    fn is_everywhere(&self, lsn: Lsn) -> bool {
        if self.log.durable() < lsn {
            return false;
        }
        if planted(Planted::ServeBeforeRollForward) || self.k.mode == Mode::Async {
            return true;
        }
        self.k.sites.iter().filter(|s| **s != self.site).all(|site| {
            self.link
                .as_ref()
                .is_some_and(|l| l.site == *site && l.acked_epoch == self.k.epoch && l.sender.durable() >= lsn)
        })
    }

    /// A new incarnation begins at the common tail.
    fn fork(&mut self, now: Nanos) {
        let end = self.log.end().position;
        if planted(Planted::SkipForkRecord) && end.lsn > Lsn::ZERO {
            return self.serve(now);
        }
        let incarnation =
            Incarnation(self.history.last().map_or(0, |e| e.incarnation.0) + 1).max(end.incarnation.next());
        let keep = planted(Planted::PromoteWithoutFork) && !end.generation.is_nil();
        let generation: GenId = if keep { end.generation } else { self.k.generation };
        let fork = Fork { incarnation, fork: end.lsn, parent: end.generation, site: self.site, config: self.k.clone() };
        let descriptor = Descriptor { kind: Kind::Fork, flags: 0, blocks: 1, lba: 0 };
        let record = Record { descriptor, payload: fork.encode(), fork: Some((generation, incarnation)) };
        let lsn = self.log.push(record);
        self.opening = Some(Opening { stage: Stage::Fork(lsn), tail_done: true });
    }

    /// The volume serves.
    fn serve(&mut self, now: Nanos) {
        self.opening = None;
        self.acks.opened_with(self.log.end().position.lsn);
        self.required = Lsn::ZERO;
        self.damage = None;
        self.set_role(Role::Primary);
        self.opened();
        self.watch_authority(now);
        self.save_superblock(now);
        self.greet();
        self.release_held(now);
        self.promotion_done();
        self.match_peer(now);
    }
}
