//! Demotion: nothing is served any more, what was accepted is made durable where it has to be, and K names nobody from then on.

use crate::event::VerbId;
use crate::group;
use crate::node::Node;
use crate::node::meta::AfterK;
use crate::node::verbs::{DEADLINE_MS, Pending, PendingVerb};
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

    /// A demotion goes on; `None`: it has ended.
    pub(super) fn step_demotion(
        &mut self,
        now: Nanos,
        mut verb: PendingVerb,
        served: bool,
        hands_over: bool,
    ) -> Option<PendingVerb> {
        if self.is_persisting_k() {
            return Some(verb);
        }
        if self.k.primary != Some(self.site) {
            // The other site became primary meanwhile: there is nothing left to demote, and its K is not this site's to change.
            if !hands_over {
                self.finish_verb(now, verb.id);
                return None;
            }
            verb.kind = Pending::HandOver;
        } else if hands_over && self.has_lost_successor() {
            self.undo_demotion(now, served);
            self.end_verb(verb.id, Err(self.successor_is_lost()));
            return None;
        } else if self.is_drained() && self.all_are_drained() {
            verb.kind = if hands_over { Pending::HandOver } else { Pending::Persisting };
            verb.deadline = now.after_ms(DEADLINE_MS).max(verb.deadline);
            self.persist_demotion(now, verb.id, hands_over);
        } else {
            // Who waits for it is not to wait for the next sync that comes by itself.
            let end = self.log.end().position.lsn;
            self.log.want_durable(end);
            self.pump_again |= self.log.durable() < end;
        }
        Some(verb)
    }

    /// It is not carried out: the copy goes on. One that never served has its history still to settle.
    pub(super) fn undo_demotion(&mut self, now: Nanos, served: bool) {
        match served {
            true => self.serve_again(now),
            false => self.begin_opening(),
        }
    }

    /// Serves nothing any more, nor is about to.
    pub(super) fn step_down(&mut self) {
        self.opening = None;
        self.set_role(Role::Secondary);
        self.stop_serving();
    }

    /// Should this site lead again over the same stream, what the peer had then says nothing of what it has.
    pub(super) fn lead_no_more(&mut self) {
        self.seeder = None;
        if let Some(link) = &mut self.link {
            link.sender = Sender::new(Epoch::default());
        }
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
        split || self.diverged.is_some() || self.link.as_ref().is_some_and(|link| link.parted)
    }

    fn persist_demotion(&mut self, now: Nanos, id: VerbId, hands_over: bool) {
        let nonce = self.new_nonce();
        let config = group::demoted(&self.k, self.node, nonce, hands_over);
        self.persist_k(now, config, AfterK::Demoted(id));
    }

    pub(super) fn on_demoted(&mut self, now: Nanos, id: VerbId) {
        self.lead_no_more();
        self.step_down();
        self.greet();
        self.match_peer(now);
        if self.verbs.iter().any(|v| v.id == id && !matches!(v.kind, Pending::HandOver)) {
            self.finish_verb(now, id);
        }
    }
}
