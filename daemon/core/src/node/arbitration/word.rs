//! What a verb asks of the witness's side: a person's word is judged on what the witness holds, and put above it (R19).

use super::{Epoch, Nanos, Node, OnPeerLoss, WORD_MS, newest};
use crate::group::arbitrated::replaces;
use crate::verb::VerbError;

impl Node {
    /// Why a takeover that somebody asked for comes to nothing.
    pub(in crate::node) fn cannot_take_over(&self) -> Option<VerbError> {
        let hello = self.link.as_ref().and_then(|l| l.hello.as_ref());
        if let Some(h) = hello.filter(|h| h.is_primary) {
            return Some(VerbError::PeerIsPrimary { site: h.site, epoch: h.config.epoch });
        }
        self.arbiter.unfit.map(VerbError::Unfit)
    }

    /// A witness arbitrates who is the primary, and this agent can ask it.
    pub(in crate::node) fn is_arbitrated(&self) -> bool {
        let wanted = self.superblock.policy.on_peer_loss == OnPeerLoss::Witness;
        wanted && self.k.lease_gen != 0 && self.arbiter.terms.is_some()
    }

    /// The epoch of a newer K that the witness was seen to hold and that names another primary.
    pub(in crate::node) fn replaced_by(&self, now: Nanos) -> Option<Epoch> {
        let held = self.arbiter.held_of_late(now).flatten()?;
        let was_mine = self.k.primary == Some(self.site) && !self.is_by_word_alone();
        (was_mine && replaces(held, self.site, &self.k)).then_some(held.epoch)
    }

    /// This primary's lease is over, its peer could take over, and the witness, which would know, was not heard.
    pub(in crate::node) fn may_be_replaced(&self, now: Nanos) -> bool {
        let could_be = self.k.lease_gen != 0 && self.k.sites.len() > 1 && !self.may_serve(now);
        could_be && self.arbiter.held_of_late(now).is_none()
    }

    /// Whether the primary went on without this copy, by the newest K; `None`: the witness would know, and was not heard.
    pub(in crate::node) fn is_left_out(&self, now: Nanos) -> Option<bool> {
        let arbitrated = self.k.lease_gen != 0 || self.superblock.policy.on_peer_loss == OnPeerLoss::Witness;
        match self.arbiter.held_of_late(now) {
            Some(Some(held)) => Some(newest(held, &self.k).since != self.k.since),
            Some(None) => (self.k.lease_gen == 0).then_some(false),
            None => (!arbitrated).then_some(false),
        }
    }

    /// The witness may hold a K that is newer than this copy's: a person's word would ask it first.
    pub(in crate::node) fn word_would_wait(&self, now: Nanos) -> bool {
        let arbiter = &self.arbiter;
        let is_known = arbiter.held_of_late(now).is_some() && !arbiter.ballot.is_open();
        arbiter.terms.is_some() && !is_known
    }

    /// Whether a person's word is to wait for what the witness holds.
    pub(in crate::node) fn word_waits(&mut self, now: Nanos) -> bool {
        let is_unknown = self.word_would_wait(now);
        let arbiter = &mut self.arbiter;
        if is_unknown && arbiter.word_until.is_none() {
            arbiter.word_until = Some(now.after_ms(WORD_MS));
            arbiter.hurry();
        }
        let waits = is_unknown && arbiter.word_until.is_some_and(|until| now < until);
        if !waits {
            arbiter.word_until = None;
        }
        waits
    }

    /// The epoch that a K has to be above that a person makes: what the witness holds, or what was proposed here, may be in force.
    pub(in crate::node) fn above_witness(&mut self, now: Nanos, epoch: Epoch) -> Epoch {
        let held = self.arbiter.held_of_late(now).flatten().map(|k| k.epoch).unwrap_or_default();
        let above = epoch.max(held).max(self.arbiter.ballot.highest());
        self.arbiter.ballot.abandon();
        above
    }

    /// The grant that a K names which both sites make jointly; 0 without one: then nobody arbitrates before the witness was asked.
    pub(in crate::node) fn grant_to_name(&self) -> u64 {
        match self.superblock.policy.on_peer_loss {
            OnPeerLoss::Witness => self.arbiter.grant.map_or(0, |grant| grant.lease_gen),
            OnPeerLoss::Suspend => 0,
        }
    }
}
