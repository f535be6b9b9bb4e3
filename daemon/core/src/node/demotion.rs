//! Demotion: nothing is served any more, what was accepted is made durable where it has to be, and K names nobody from then on.

use crate::event::VerbId;
use crate::group;
use crate::node::Node;
use crate::node::meta::AfterK;
use crate::node::verbs::{DEADLINE_MS, Pending};
use crate::ship::sender::{Sender, Source};
use crate::status::{Role, SuspendReason};
use crate::types::{Epoch, Lsn, Nanos};
use crate::verb::VerbError;

impl Node {
    pub(super) fn demote(&mut self, now: Nanos, id: VerbId, force: bool) -> Result<(), VerbError> {
        match self.judge_demotion(force)? {
            true => self.begin_demotion(now, id, force, false),
            false => self.finish_verb(now, id),
        }
        Ok(())
    }

    /// It may be demoted: nothing is served any more.
    pub(super) fn begin_demotion(&mut self, now: Nanos, id: VerbId, force: bool, hands_over: bool) {
        if force {
            self.stop_serving();
        }
        let served = self.served();
        self.opening = None;
        self.set_role(Role::Suspended(SuspendReason::User));
        self.rally_to_demote(now, force);
        self.wait(now, id, DEADLINE_MS, Pending::Demote { served, hands_over });
    }

    /// Everything that was accepted is durable here, and at the peer when one is there or S needs it.
    pub(super) fn is_drained(&self) -> bool {
        let end = self.log.end().position.lsn;
        let here = self.log.is_quiet() && self.log.durable() == end && self.acks.is_empty() && self.parked.is_empty();
        let streams =
            self.link.as_ref().is_some_and(|l| l.sender.durable() >= end && l.sender.confirmed == self.k.epoch);
        let needs_peer = self.k.sites.len() > 1 || self.link.as_ref().is_some_and(|l| l.sender.source != Source::Probe);
        // A peer with a history of its own takes nothing; what it lacks is judged when one of the two is given up.
        here && (streams || !needs_peer || self.is_parted())
    }

    /// What a demotion waits for at the peer.
    pub(super) fn demotion_wants(&self) -> Option<Lsn> {
        let is_wanted =
            self.verbs.iter().any(|verb| matches!(verb.kind, Pending::Demote { .. })) || self.drains_as_led();
        is_wanted.then(|| self.log.end().position.lsn)
    }

    pub(super) fn is_parted(&self) -> bool {
        let hello = self.link.as_ref().and_then(|l| l.hello.as_ref());
        let split = hello.is_some_and(|h| group::contact(&self.k, h.site, &h.config) == group::Contact::SplitBrain);
        split || self.diverged.is_some()
    }

    pub(super) fn persist_demotion(&mut self, now: Nanos, id: VerbId) {
        let nonce = self.new_nonce();
        let config = group::joint(&self.k, self.node, nonce, None, self.k.sites.clone(), self.k.mode);
        self.persist_k(now, config, AfterK::Demoted(id));
    }

    pub(super) fn on_demoted(&mut self, now: Nanos, id: VerbId) {
        self.set_role(Role::Secondary);
        self.seeder = None;
        if let Some(link) = &mut self.link {
            // Should this site lead again over this stream, what the peer had then says nothing of what it has.
            link.sender = Sender::new(Epoch::default());
        }
        self.stop_serving();
        self.greet();
        self.match_peer(now);
        if self.verbs.iter().any(|v| v.id == id && !matches!(v.kind, Pending::HandOver)) {
            self.finish_verb(now, id);
        }
    }
}
