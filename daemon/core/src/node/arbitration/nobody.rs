//! Taking over where nobody is the primary: the one that was demoted has recorded that before it told anybody, so that there is no
//! lease to wait for. What both sites agree on while they reach each other is no matter of the witness; it is asked where they do not.

use super::Node;
use crate::types::Nanos;

impl Node {
    /// The witness is to be asked without anybody's word, as soon as the time for that has come.
    pub(super) fn may_become_a_leader(&self, now: Nanos) -> bool {
        match self.k.primary {
            Some(_) => {
                let auto = self.superblock.policy.auto_failover && now >= self.leader_is_silent_at();
                auto || self.leader_is_idle(now)
            }
            None => self.superblock.policy.auto_failover && self.has_lost_who_hands_over(now),
        }
    }

    /// This site is to take over from one that was demoted for that, and is not there to ask for it.
    pub(super) fn has_lost_who_hands_over(&self, now: Nanos) -> bool {
        let is_heir = self.k.primary.is_none() && self.k.hands_over && self.k.proposer != self.node;
        is_heir && self.has_lost_its_fellow(now)
    }

    /// Nobody is the primary, and the other site, which could agree on one, has been away for as long as counts as lost, or its copy has failed.
    pub(in crate::node) fn has_lost_its_fellow(&self, now: Nanos) -> bool {
        let hello = self.link.as_ref().map(|link| link.hello.as_deref());
        match hello {
            None => now >= self.leader_is_lost_at(),
            // It is there, and can record nothing.
            Some(hello) => hello.is_some_and(|hello| hello.is_suspect),
        }
    }

    /// The peer is just being told that nobody is the primary: it hands over in a moment.
    pub(super) fn may_soon_be_handed_over(&self) -> bool {
        self.k.primary.is_none() && self.link.as_ref().is_some_and(|l| l.telling == Some(self.k.id()))
    }

    /// Who was demoted has recorded that before it said so: there is no lease on which anybody serves. Other members of that site may
    /// have been let serve before.
    pub(super) fn nobody_serves(&self) -> bool {
        self.k.primary.is_none() && (!self.has_members() || self.k.proposer == self.node)
    }
}
