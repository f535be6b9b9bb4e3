//! Promotion: who opens a copy once it was judged that it may (see [`super::oracle`]), and the handover by a peer that was
//! demoted. What follows once K is persisted is the opening (see [`super::role`]).

use crate::config::Config;
use crate::event::VerbId;
use crate::format::superblock::MAX_ASSERTIONS;
use crate::group;
use crate::node::Node;
use crate::node::meta::AfterK;
use crate::node::oracle::{Bounds, Judgement, Way};
use crate::node::verbs::{DEADLINE_MS, Pending};
use crate::plan::Loss;
use crate::ship::{AdoptStep, Message, Refusal};
use crate::types::{Epoch, GenId, Nanos, Nonce, SiteId};
use crate::verb::{Assertion, VerbError};

impl Node {
    pub(super) fn promote(
        &mut self,
        now: Nanos,
        id: VerbId,
        word: Option<Assertion>,
        bounds: Bounds,
    ) -> Result<(), VerbError> {
        let judged = self.judge_promotion(now, word.is_some());
        if let Some(epoch) = self.replaced_by_now(now, word.is_some()) {
            self.fence(now, epoch);
        }
        let Judgement { way, loss, .. } = judged?;
        bounds.accept(&loss)?;
        // A peer's word is no person's.
        if ![VerbId::PEER, VerbId::BACK].contains(&id) {
            self.arbiter.flapping.clear();
        }
        match way {
            Way::Serves => self.end_verb(id, Ok(loss.promoted(self.log.end().position.lsn))),
            Way::HandOver { to_stay, both } if self.has_members() => {
                self.wait(now, id, DEADLINE_MS, Pending::Rally);
                self.rally_to_take_over(now, id, to_stay, both);
            }
            Way::HandOver { to_stay, both } => self.ask_handover(now, id, to_stay, both),
            Way::TakeOver => {
                self.arbiter.hurry();
                self.wait(now, id, self.deadline_ms(way), Pending::TakeOver);
            }
            Way::Resume { forces: false } => {
                self.begin_opening();
                self.expect_opening(now, id, loss);
            }
            Way::Resume { forces: true } => {
                self.force_k(now, word, self.k.epoch);
                self.expect_opening(now, id, loss);
            }
            Way::GoBack { above } => {
                self.expect_opening(now, id, loss);
                self.force_k(now, word, above);
            }
            Way::Alone => {
                self.hang_up_for_promotion();
                self.expect_opening(now, id, loss);
                self.force_k(now, word, self.k.epoch);
            }
            Way::Local => {
                self.expect_opening(now, id, loss);
                self.force_k(now, None, self.k.epoch);
            }
        }
        Ok(())
    }

    /// The witness made this copy the primary: who asked for that waits until it serves.
    pub(super) fn takeover_decided(&mut self) {
        self.now_wait_to_serve(|kind| matches!(kind, Pending::TakeOver));
    }

    /// What those verbs waited for is decided, without a loss: they end when the volume serves.
    fn now_wait_to_serve(&mut self, those: impl Fn(&Pending) -> bool) {
        let serving = self.until_serving(Loss::NOTHING);
        for verb in self.verbs.iter_mut().filter(|verb| those(&verb.kind)) {
            verb.kind = serving.clone();
        }
    }

    /// A recorded human decision: this site alone, by a K above `above`. What another site wrote under its own primary is not
    /// this site's history: then a generation of its own begins.
    fn force_k(&mut self, now: Nanos, word: Option<Assertion>, above: Epoch) {
        if let Some(word) = word {
            self.record_assertion(word);
        }
        let above = self.above_witness(now, above);
        let parts = self.k.primary != Some(self.site) || above > self.k.epoch;
        let nonce = self.new_nonce();
        let above = Config { epoch: above, ..self.k.clone() };
        let mut k = group::forced(&above, self.node, nonce, Some(self.site), vec![self.site]);
        if parts {
            k.generation = GenId(self.rng.id());
        }
        self.persist_k(now, k, AfterK::Open);
    }

    /// The verb ends when the volume serves. Who opens a copy takes back that it was given up: its history, which another site's
    /// had parted from, is the volume's again.
    fn expect_opening(&mut self, now: Nanos, id: VerbId, loss: Loss) {
        self.reseed_wanted = false;
        self.no_longer_diverged(now);
        self.wait(now, id, DEADLINE_MS, self.until_serving(loss));
    }

    fn until_serving(&self, loss: Loss) -> Pending {
        Pending::Promote { loss, fork: self.log.end().position.lsn }
    }

    pub(super) fn record_assertion(&mut self, word: Assertion) {
        self.superblock.forced.push(word);
        let surplus = self.superblock.forced.len().saturating_sub(MAX_ASSERTIONS);
        self.superblock.forced.drain(..surplus);
    }

    pub(super) fn hang_up_for_promotion(&mut self) {
        if let Some(link) = &mut self.link {
            link.backlog.clear();
        }
    }

    /// The peer is there and demoted: it is asked to take this copy for the primary.
    fn ask_handover(&mut self, now: Nanos, id: VerbId, peer: SiteId, both: bool) {
        let sites = if both { vec![self.site, peer] } else { vec![self.site] };
        let nonce = self.new_nonce();
        let mut config = group::joint(&self.k, self.node, nonce, Some(self.site), sites, self.k.mode);
        config.generation = GenId(self.rng.id());
        config.lease_gen = self.grant_to_name();
        self.wait(now, id, DEADLINE_MS, Pending::Handover { config: config.clone() });
        self.propose_handover(config);
    }

    /// Sends the peer the K by which this copy takes over.
    pub(super) fn propose_handover(&mut self, config: Config) {
        let step = if config.sites.len() > 1 { AdoptStep::Handover } else { AdoptStep::Rejoin };
        self.send(Message::Adopt { config, step, tail: self.log.end() });
    }

    /// The same, when every member of the group is ready for it and whoever asked still waits.
    pub(super) fn ask_handover_of_all(&mut self, now: Nanos, id: VerbId, peer: SiteId, both: bool) {
        let waits = |v: &super::verbs::PendingVerb| v.id == id && matches!(v.kind, Pending::Rally);
        if self.verbs.iter().any(waits) && self.k.primary.is_none() {
            self.verbs.retain(|v| v.id != id);
            self.ask_handover(now, id, peer, both);
        }
    }

    /// True while this copy has asked to take over.
    pub(super) fn promotion_pending(&self) -> bool {
        self.verbs.iter().any(|v| matches!(v.kind, Pending::Handover { .. } | Pending::TakeOver))
    }

    /// The peer's answer to a handover; true when it was one.
    pub(super) fn promotion_answered(
        &mut self,
        now: Nanos,
        epoch: Epoch,
        nonce: Nonce,
        result: &Result<(), Refusal>,
    ) -> bool {
        let at = self.verbs.iter().position(
            |v| matches!(&v.kind, Pending::Handover { config } if config.epoch == epoch && config.nonce == nonce),
        );
        let Some(at) = at else { return false };
        if result.is_ok() && self.is_persisting_k() {
            // A greeting said so before: this K, or a newer one, is on its way to the disk (see `handover_found`).
            return true;
        }
        let verb = self.verbs.remove(at);
        match (verb.kind, result) {
            (Pending::Handover { config }, Ok(())) => {
                // It has this K already: nothing goes to it under the one before.
                if let Some(hello) = self.link.as_mut().and_then(|link| link.hello.as_mut()) {
                    hello.config = config.clone();
                }
                self.expect_opening(now, verb.id, Loss::NOTHING);
                self.persist_k(now, config, AfterK::Open);
            }
            (_, Err(why)) => {
                let (state, hint) = (format!("refused by the peer: {why}"), "see the status of the peer".into());
                self.end_verb(verb.id, Err(VerbError::CopyState { state, hint }));
            }
            _ => {}
        }
        true
    }

    /// The peer turned out to hold the K that a handover proposed: its answer was lost.
    pub(super) fn handover_found(&mut self) {
        let k = self.k.id();
        self.now_wait_to_serve(|kind| matches!(kind, Pending::Handover { config } if config.id() == k));
    }

    /// The volume serves: promotions end.
    pub(super) fn promotion_done(&mut self) {
        let (done, rest) = std::mem::take(&mut self.verbs)
            .into_iter()
            .partition::<Vec<_>, _>(|v| matches!(v.kind, Pending::Promote { .. }));
        self.verbs = rest;
        for verb in done {
            if let Pending::Promote { loss, fork } = verb.kind {
                self.end_verb(verb.id, Ok(loss.promoted(fork)));
            }
        }
    }
}
