//! The follower's side of a difference: a copy that was whole, fell behind its primary's log, and keeps what its base holds.
//!
//! Its base is brought up to the end of its own log first, with the copy whole all the while. Only then does the log go, and the copy is
//! "being seeded" until the last pass has ended, as with a first content. Where only the stream broke, all that changed
//! from where the difference began is sent again; a process that died meanwhile is sent the whole.

use crate::format::superblock::CopyFlag;
use crate::node::Node;
use crate::node::meta::AfterSuperblock;
use crate::planted::{Planted, planted};
use crate::ship::Difference;
use crate::timeline::Relation;
use crate::types::{Boundary, Nanos, Nonce};

impl Node {
    /// From where this copy can be brought up to date by what changed since.
    pub(super) fn takes_difference(&self) -> Option<Difference> {
        match self.flag() {
            _ if self.reseed_wanted => None,
            // What the base keeps nothing identifies while it is written: where it was out of hand the whole comes.
            CopyFlag::Seeding(resync) => (self.superblock.is_difference && self.seeding_began_here)
                .then_some(Difference { from: self.superblock.floor, resync }),
            CopyFlag::Complete if self.is_whole_prefix() => {
                Some(Difference { from: self.log.end(), resync: Nonce::NIL })
            }
            _ => None,
        }
    }

    /// Nothing is missing of what this copy ever had, and nothing speaks against it.
    fn is_whole_prefix(&self) -> bool {
        let end = self.log.end().position.lsn;
        !self.leads()
            && self.diverged.is_none()
            && self.damage.is_none()
            && self.log.failure().is_none()
            && end >= self.required
            && end >= self.superblock.visible_at
    }

    /// Just this is what the copy can take, and its own history is the primary's.
    pub(super) fn may_take_difference(&mut self, from: Boundary) -> bool {
        self.refresh_hello();
        let is_prefix = self.link.as_ref().and_then(|l| l.hello.as_ref()).is_some_and(|hello| {
            let has_more = matches!(self.relation(hello), Relation::Common { mine_has_more: false, .. });
            has_more || matches!(self.superblock.flag, CopyFlag::Seeding(_))
        });
        is_prefix && self.takes_difference().is_some_and(|difference| difference.from == from)
    }

    /// True when the base holds all that the log does; else it is brought to that. The primary has it below its own floor, so that
    /// nobody will take it back.
    pub(super) fn base_has_come_to(&mut self, now: Nanos, from: Boundary) -> bool {
        let is_begun = matches!(self.superblock.flag, CopyFlag::Seeding(_));
        if is_begun || self.floor.at() == from || planted(Planted::LogLostToDifference) {
            return true;
        }
        self.end_views("the copy fell behind, and is brought up to date by what changed");
        if self.superblock.branch_at.take().is_some() {
            let why = "the copy is brought up to date by what changed: sealed branches can be exported, and no longer be opened";
            self.alarm("branch_not_openable", why);
            self.after_superblock(now, AfterSuperblock::BranchAt(None));
        }
        self.log.want_durable(from.position.lsn);
        self.committed = self.committed.max(from.position.lsn.min(self.log.durable()));
        self.draining = Some(from.position.lsn);
        false
    }
}
