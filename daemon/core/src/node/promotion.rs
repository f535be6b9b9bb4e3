//! Promotion: who may open a copy on what word, what that may lose, and the handover by a peer that was demoted. What follows
//! once K is persisted is the opening (see [`super::role`]).

use crate::config::{Config, Mode};
use crate::event::VerbId;
use crate::format::superblock::{CopyFlag, MAX_ASSERTIONS};
use crate::group;
use crate::group::arbitrated::Unfit;
use crate::node::Node;
use crate::node::meta::AfterK;
use crate::node::verbs::{DEADLINE_MS, Pending};
use crate::ship::{AdoptStep, Hello, Message, Refusal};
use crate::status::{Role, SuspendReason};
use crate::types::{Epoch, GenId, Lsn, Nanos, Nonce};
use crate::verb::{Assertion, PromotionClass, VerbError, VerbOk};

/// A primary is heard twice a second while it is connected: a bound in bytes alone says something for so long.
const HEARD_MS: u64 = 1_000;

impl Node {
    pub(super) fn promote(
        &mut self,
        now: Nanos,
        id: VerbId,
        word: Option<Assertion>,
        bounds: Bounds,
    ) -> Result<(), VerbError> {
        self.arbiter.flapping.clear();
        if self.role == Role::Primary {
            self.end_verb(id, Ok(Loss::NOTHING.promoted(self.log.end().position.lsn)));
            return Ok(());
        }
        self.may_be_promoted(word.is_some())?;
        if let Some(epoch) = self.replaced_by(now) {
            self.fence(now, epoch);
            return self.promote_fenced(now, id, word, bounds, epoch);
        }
        if self.k.primary == Some(self.site) {
            return match self.role {
                Role::Fenced(epoch) => self.promote_fenced(now, id, word, bounds, epoch),
                _ => self.resume(now, id, word, &bounds),
            };
        }
        let hello = self.link.as_ref().and_then(|l| l.hello.clone());
        match (hello, self.superblock.peer) {
            (Some(h), _) if h.is_primary => Err(VerbError::PeerIsPrimary { site: h.site, epoch: h.config.epoch }),
            (Some(h), _) if self.k.primary.is_none() && h.config.id() == self.k.id() => self.ask_handover(now, id, &h),
            (_, Some(peer)) => match word {
                Some(word) => self.promote_alone(now, id, word, bounds),
                None => self.take_over(now, id, peer),
            },
            (_, None) => {
                self.expect_opening(now, id, Loss::NOTHING);
                self.force_k(now, None, self.k.epoch);
                Ok(())
            }
        }
    }

    /// Without a word: the witness may say that the primary has stopped.
    fn take_over(&mut self, now: Nanos, id: VerbId, peer: crate::types::SiteId) -> Result<(), VerbError> {
        if !self.is_arbitrated() {
            return Err(VerbError::PeerUnproven { site: peer });
        }
        if self.k.mode != Mode::Sync {
            return Err(VerbError::Unfit(Unfit::NotSync));
        }
        if !self.k.has(self.site) {
            return Err(VerbError::Unfit(Unfit::LeftOut));
        }
        self.arbiter.hurry();
        self.wait(now, id, DEADLINE_MS + self.arbiter.wait_ms(), Pending::TakeOver);
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

    fn may_be_promoted(&self, by_word: bool) -> Result<(), VerbError> {
        let refuse = |state: &str, hint: &str| Err(VerbError::CopyState { state: state.into(), hint: hint.into() });
        if self.reseed_wanted && !by_word {
            return refuse(
                "given up",
                "it was to be seeded anew: promote the other site, or take that back by --assert-peer-fenced",
            );
        }
        if let Some(why) = self.diverged.as_ref().filter(|_| !by_word) {
            return refuse(
                &format!("diverged ({why})"),
                "the other site holds the newer history: see `tidemark reseed`, or, where that site is gone for good, \
                 --assert-peer-fenced with --allow-unproven",
            );
        }
        match self.flag() {
            CopyFlag::Seeding(_) => return refuse("being seeded", "wait until its first content is complete"),
            CopyFlag::Suspect => return refuse("suspect", "promote the other site, or restore the base image"),
            CopyFlag::Failed => return refuse("failed", "replace the disk and reseed"),
            CopyFlag::Released => return refuse("released", "adopt the base image as a new volume"),
            CopyFlag::Diverged | CopyFlag::Complete => {}
        }
        if self.log.end().position.lsn < self.superblock.visible_at.max(self.required) {
            return refuse("incomplete", "durable records are missing here; they can only come from the other site");
        }
        // Who asks for the takeover that is under way waits for it.
        let joins = !by_word && self.is_arbitrated() && self.k.primary != Some(self.site);
        // To a peer that was demoted nothing is disputed.
        let deciding = self.arbiter.is_deciding() && !by_word && !joins && self.k.primary.is_some();
        let pending = self.promotion_pending() && !(joins && self.takes_over_by_verb());
        if self.is_persisting_k() || self.sealing.is_some() || pending || deciding {
            return refuse("changing", "try again in a moment");
        }
        Ok(())
    }

    /// This copy was Primary before: it may open when its peer confirms, or by a human's word.
    fn resume(&mut self, now: Nanos, id: VerbId, word: Option<Assertion>, bounds: &Bounds) -> Result<(), VerbError> {
        let unknown = self.diverged.is_some() || (word.is_some() && self.may_be_replaced(now));
        let class = if unknown { PromotionClass::Unproven } else { PromotionClass::Lossless };
        let loss = Loss { class, ..Loss::NOTHING };
        bounds.accept(&loss)?;
        match (self.role, word, self.superblock.peer) {
            (Role::Suspended(SuspendReason::Restart), None, Some(site)) => {
                return Err(VerbError::PeerUnproven { site });
            }
            (Role::Suspended(SuspendReason::LeaseLost), None, _) => {
                let hint = "it serves again when the witness or the other site answers; where that site is known to be \
                            stopped, use --assert-peer-fenced --reason TEXT";
                return Err(VerbError::Role { role: self.role_name().into(), hint: hint.into() });
            }
            (Role::Suspended(_), Some(word), Some(_)) => self.force_k(now, Some(word), self.k.epoch),
            _ => self.begin_opening(),
        }
        self.expect_opening(now, id, loss);
        Ok(())
    }

    /// A newer K was seen to name the other site. Only a human who knows that site to be gone goes back to this history; what
    /// was written there is not here.
    fn promote_fenced(
        &mut self,
        now: Nanos,
        id: VerbId,
        word: Option<Assertion>,
        bounds: Bounds,
        epoch: Epoch,
    ) -> Result<(), VerbError> {
        let linked = self.link.as_ref().is_some_and(|l| l.hello.is_some());
        match (word, self.superblock.peer) {
            (Some(word), Some(_)) if !linked => {
                let loss = Loss { class: PromotionClass::Unproven, ..Loss::NOTHING };
                bounds.accept(&loss)?;
                self.expect_opening(now, id, loss);
                self.force_k(now, Some(word), epoch.max(self.k.epoch));
                Ok(())
            }
            (_, site) => Err(VerbError::PeerIsPrimary { site: site.unwrap_or(self.site), epoch }),
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

    fn promote_alone(&mut self, now: Nanos, id: VerbId, word: Assertion, bounds: Bounds) -> Result<(), VerbError> {
        let loss = self.loss(now);
        bounds.accept(&loss)?;
        self.hang_up_for_promotion();
        self.expect_opening(now, id, loss);
        self.force_k(now, Some(word), self.k.epoch);
        Ok(())
    }

    pub(super) fn hang_up_for_promotion(&mut self) {
        if let Some(link) = &mut self.link {
            link.backlog.clear();
        }
    }

    /// What opening this copy now would leave behind, as far as it can be known.
    fn loss(&self, now: Nanos) -> Loss {
        let end = self.log.end().position.lsn;
        if self.diverged.is_some() {
            // All of the newer history.
            return Loss { class: PromotionClass::Unproven, ..Loss::NOTHING };
        }
        let counted = self.k.has(self.site) && self.k.mode == Mode::Sync;
        match (self.is_left_out(now), self.primary_heard_at) {
            (Some(false), _) if counted => Loss::NOTHING,
            // The primary may have gone on alone, and nobody can tell.
            (None, _) => Loss { class: PromotionClass::Unproven, ..Loss::NOTHING },
            (Some(_), Some(at)) => Loss {
                class: PromotionClass::Lossy,
                bytes: if self.primary_appended_seen > end { self.primary_backlog_seen } else { 0 },
                ms: now.since(at) / 1_000_000,
            },
            (Some(_), None) => Loss { class: PromotionClass::Unproven, ..Loss::NOTHING },
        }
    }

    /// The peer is there and demoted, and has nothing that this copy lacks: it hands over. When it lacks something itself it
    /// agrees to leave S by that.
    fn ask_handover(&mut self, now: Nanos, id: VerbId, hello: &Hello) -> Result<(), VerbError> {
        let end = self.log.end();
        let refuse = |state: &str, hint: &str| Err(VerbError::CopyState { state: state.into(), hint: hint.into() });
        if self.log.durable() != end.position.lsn || !self.holds_all_of(hello) {
            return refuse("not equal to its peer", "demote again, or promote the other site");
        }
        let both = self.k.sites.len() > 1 && hello.tail == end && !hello.needs_seed && !hello.is_suspect;
        let sites = if both { vec![self.site, hello.site] } else { vec![self.site] };
        let nonce = self.new_nonce();
        let mut config = group::joint(&self.k, self.node, nonce, Some(self.site), sites, self.k.mode);
        config.generation = GenId(self.rng.id());
        config.lease_gen = self.grant_to_name();
        self.wait(now, id, DEADLINE_MS, Pending::Handover { config: config.clone() });
        let step = if both { AdoptStep::Handover } else { AdoptStep::Rejoin };
        self.send(Message::Adopt { config, step, tail: end });
        Ok(())
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
        let verb = self.verbs.remove(at);
        match (verb.kind, result) {
            (Pending::Handover { config }, Ok(())) => {
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

/// What the operator accepts to lose.
pub(super) struct Bounds {
    pub max_loss_bytes: Option<u64>,
    pub max_loss_seconds: Option<u64>,
    pub allow_unproven: bool,
}

/// What opening a copy leaves behind, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loss {
    class: PromotionClass,
    bytes: u64,
    ms: u64,
}

impl Loss {
    const NOTHING: Self = Self { class: PromotionClass::Lossless, bytes: 0, ms: 0 };

    fn promoted(self, fork: Lsn) -> VerbOk {
        VerbOk::Promoted { class: self.class, fork, lost_bytes: self.bytes, lost_ms: self.ms }
    }
}

impl Bounds {
    fn accept(&self, loss: &Loss) -> Result<(), VerbError> {
        match loss.class {
            PromotionClass::Lossless => Ok(()),
            _ if self.allow_unproven => Ok(()),
            PromotionClass::Unproven => Err(VerbError::Unproven),
            PromotionClass::Lossy => {
                // Of what the primary wrote since it was heard only the time is known.
                let is_fresh = loss.ms <= HEARD_MS || self.max_loss_seconds.is_some();
                let by_bytes = self.max_loss_bytes.map(|max| loss.bytes <= max && is_fresh);
                let by_time = self.max_loss_seconds.map(|max| loss.ms <= max.saturating_mul(1000));
                match (by_bytes, by_time) {
                    (Some(false), _) | (_, Some(false)) | (None, None) => {
                        Err(VerbError::LossTooLarge { bytes: loss.bytes, ms: loss.ms })
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}
