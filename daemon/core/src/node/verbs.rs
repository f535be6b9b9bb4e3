//! Verbs: what an operator asks. Each ends by its deadline at the latest, whatever the peer does.

use crate::config::{Config, Policy};
use crate::event::{Output, VerbId};
use crate::format::superblock::CopyFlag;
use crate::group;
use crate::layout::Layout;
use crate::node::meta::{AfterK, AfterSuperblock};
use crate::node::oracle::Bounds;
use crate::node::{Node, Stage, plan};
use crate::plan::Loss;
use crate::ship::Message;
use crate::ship::gate::Gate;
use crate::status::{Role, SuspendReason};
use crate::types::{Lsn, Nanos, SiteId};
use crate::verb::{Assertion, Verb, VerbError, VerbOk};

/// A verb that waits for the peer or the disk ends after this time.
pub const DEADLINE_MS: u64 = 10_000;
/// Draining the log into the base may take as long as a full log needs.
pub const DRAIN_DEADLINE_MS: u64 = 600_000;

/// A verb that waits.
#[derive(Debug)]
pub(super) struct PendingVerb {
    pub id: VerbId,
    pub deadline: Nanos,
    pub kind: Pending,
}

/// What it waits for.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    /// The promotion that was asked for waits until the copy is recovered.
    Recovered(Verb),
    /// A person's word waits for what the witness knows.
    Word(Verb),
    /// Waits to be Primary.
    Promote { loss: Loss, fork: Lsn },
    /// The peer was asked to let this copy take over.
    Handover { config: Config },
    /// Waits until the witness lets this copy take over.
    TakeOver,
    /// Waits until every member of the group is ready to be handed over.
    Rally,
    /// Waits until everything is everywhere, then persists "no primary"; then perhaps the peer is to take over.
    Demote { served: bool, hands_over: bool },
    /// Waits until the peer serves.
    HandOver,
    /// K is being persisted.
    Persisting,
    /// Waits for the floor.
    Drain,
    /// Waits for the floor, then gives the base back.
    Release,
    /// Waits for the peer's base to grow.
    Grow { wanted: Layout },
    /// Waits for the RESIZE record to be durable.
    Resized { lsn: Lsn, wanted: Layout },
    /// Waits until the superblock is saved.
    Saving,
    /// The same, and until the floor rests.
    Pause,
}

impl Node {
    pub(super) fn on_verb(&mut self, now: Nanos, id: VerbId, verb: Verb) {
        if self.is_recovering() {
            match verb {
                Verb::Close => {}
                // Who fails over has no time to try again.
                Verb::Promote { .. } => return self.wait(now, id, DEADLINE_MS, Pending::Recovered(verb)),
                _ => return self.end_verb(id, Err(plan::opening())),
            }
        }
        self.begin_verb(now, id, verb);
    }

    fn begin_verb(&mut self, now: Nanos, id: VerbId, verb: Verb) {
        if is_by_word(&verb) && self.word_waits(now) {
            return self.wait(now, id, DEADLINE_MS, Pending::Word(verb));
        }
        self.carry_out(now, id, verb);
    }

    pub(super) fn carry_out(&mut self, now: Nanos, id: VerbId, verb: Verb) {
        if let Some(why) = self.is_leaders_verb(&verb) {
            return self.end_verb(id, Err(why));
        }
        let result = match verb {
            Verb::Promote { assert_peer_fenced, max_loss_bytes, max_loss_seconds, allow_unproven } => {
                let bounds = Bounds { max_loss_bytes, max_loss_seconds, allow_unproven };
                self.promote(now, id, assert_peer_fenced, bounds)
            }
            Verb::Demote { force } => self.demote(now, id, force),
            Verb::Switchover { to, force } => self.switchover(now, id, to, force),
            Verb::SetPolicy(policy) => self.set_policy(now, id, policy),
            Verb::Pause(parts) => self.begin_pause(now, id, parts),
            Verb::Resume(parts) => self.end_pause(now, id, parts),
            Verb::SetPeer(peer) => self.set_peer(now, id, peer),
            Verb::DropPeer(assertion) => self.drop_peer(now, id, assertion),
            Verb::Resize { volume, size } => self.resize(now, id, volume, size),
            Verb::AddVolume { volume, size } => self.add_volume(now, id, volume, size),
            Verb::RemoveVolume { volume } => self.remove_volume(now, id, volume),
            Verb::Verify => self.verify_verb(id),
            Verb::Release => self.release(now, id),
            Verb::AbortIo => {
                self.abort_io();
                self.finish_verb(now, id);
                Ok(())
            }
            Verb::Reseed => self.reseed(now, id),
            Verb::Drain => self.drain(now, id),
            Verb::Close => self.close(id),
        };
        if let Err(error) = result {
            self.end_verb(id, Err(error));
        }
    }

    pub(super) fn end_verb(&mut self, id: VerbId, result: Result<VerbOk, VerbError>) {
        if !self.ended_by_itself(id, &result) {
            self.out.push(Output::Verb(id, result));
        }
    }

    pub(super) fn finish_verb(&mut self, now: Nanos, id: VerbId) {
        let status = Box::new(self.status(now));
        self.verbs.retain(|v| v.id != id);
        self.end_verb(id, Ok(VerbOk::Done(status)));
    }

    /// Ends a verb that waits, unless its deadline ended it before.
    pub(super) fn finish_waiting(&mut self, now: Nanos, id: VerbId) {
        if self.verbs.iter().any(|v| v.id == id) {
            self.finish_verb(now, id);
        }
    }

    pub(super) fn wait(&mut self, now: Nanos, id: VerbId, ms: u64, kind: Pending) {
        self.verbs.push(PendingVerb { id, deadline: now.after_ms(ms), kind });
    }

    pub(super) fn role_error(&self, hint: &str) -> VerbError {
        VerbError::Role { role: self.role_name().into(), hint: hint.into() }
    }

    pub(super) fn need_primary(&self, hint: &str) -> Result<(), VerbError> {
        if self.role == Role::Primary { Ok(()) } else { Err(self.role_error(hint)) }
    }

    // ---- policy, peer -------------------------------------------------------------------------------------------------

    fn set_policy(&mut self, now: Nanos, id: VerbId, policy: Policy) -> Result<(), VerbError> {
        self.judge_policy(&policy)?;
        self.superblock.policy = policy;
        self.arbiter.flapping.clear();
        if let Some(link) = &mut self.link {
            // What an earlier limit left to wait for is forgotten.
            link.gate = Gate::default();
        }
        self.wait(now, id, DEADLINE_MS, Pending::Saving);
        self.after_superblock(now, AfterSuperblock::Policy(id));
        Ok(())
    }

    pub(super) fn on_policy_saved(&mut self, now: Nanos, id: VerbId) {
        let policy = self.superblock.policy;
        self.send(Message::Policy(policy));
        self.finish_waiting(now, id);
    }

    /// The primary's policy, on a follower.
    pub(super) fn on_peer_policy(&mut self, now: Nanos, policy: Policy) {
        if self.leads() {
            return;
        }
        if let Some(link) = &mut self.link {
            link.told = None;
        }
        if self.superblock.policy != policy {
            self.superblock.policy = policy;
            self.save_superblock(now);
        }
    }

    fn set_peer(&mut self, now: Nanos, id: VerbId, peer: Option<SiteId>) -> Result<(), VerbError> {
        if !self.judge_peer(peer)? {
            self.finish_verb(now, id);
            return Ok(());
        }
        if let Some(link) = self.link.take() {
            self.out.push(Output::Close(link.conn, crate::event::CloseReason::Closing));
            self.on_peer_down(link.conn);
        }
        self.seeder = None;
        self.arbiter.flapping.clear();
        self.superblock.paused.ship = false;
        self.superblock.peer = peer;
        self.wait(now, id, DEADLINE_MS, Pending::Saving);
        self.after_superblock(now, AfterSuperblock::Verb(id));
        Ok(())
    }

    /// A human says that the peer is stopped: it leaves S (R4 by R19).
    fn drop_peer(&mut self, now: Nanos, id: VerbId, word: Assertion) -> Result<(), VerbError> {
        let judged = self.judge_drop_peer(now);
        if let Some(epoch) = self.replaced_by(now).filter(|_| self.may_drop_peer().is_ok()) {
            self.fence(now, epoch);
        }
        judged?;
        self.record_assertion(word);
        self.change = None;
        let nonce = self.new_nonce();
        let above = Config { epoch: self.above_witness(now, self.k.epoch), ..self.k.clone() };
        let config = group::forced(&above, self.node, nonce, Some(self.site), vec![self.site]);
        self.wait(now, id, DEADLINE_MS, Pending::Persisting);
        self.persist_k(now, config, AfterK::Adopted);
        Ok(())
    }

    // ---- the others ---------------------------------------------------------------------------------------------------

    fn verify_verb(&mut self, id: VerbId) -> Result<(), VerbError> {
        self.judge_verify()?;
        self.begin_verify(id);
        Ok(())
    }

    fn reseed(&mut self, now: Nanos, id: VerbId) -> Result<(), VerbError> {
        self.judge_reseed()?;
        self.arbiter.flapping.clear();
        let sealable = self.has_own_suffix();
        self.reseed_wanted = true;
        if sealable {
            // The suffix is sealed first; where it can be, the copy goes back to the common point instead of starting over.
            self.diverged = None;
        }
        self.greet();
        self.match_peer(now);
        self.finish_verb(now, id);
        Ok(())
    }

    fn drain(&mut self, now: Nanos, id: VerbId) -> Result<(), VerbError> {
        let end = self.log.last_numbered();
        self.log.want_durable(end);
        self.draining = Some(self.draining.unwrap_or(end).max(end));
        self.wait(now, id, DRAIN_DEADLINE_MS, Pending::Drain);
        Ok(())
    }

    fn release(&mut self, now: Nanos, id: VerbId) -> Result<(), VerbError> {
        self.judge_release()?;
        self.set_role(Role::Suspended(SuspendReason::User));
        self.wait(now, id, DRAIN_DEADLINE_MS, Pending::Release);
        Ok(())
    }

    fn close(&mut self, id: VerbId) -> Result<(), VerbError> {
        if self.is_recovering() {
            self.fail_waiting();
            self.end_waiting_verbs();
            self.stage = Stage::Closed;
            let status = Box::new(self.status(self.opened_at));
            self.end_verb(id, Ok(VerbOk::Done(status)));
            return Ok(());
        }
        self.send(Message::Goodbye);
        self.stage = Stage::Closing(id);
        self.fail_held();
        Ok(())
    }

    /// A clean close: everything written is durable and the superblock says exactly where the log ends.
    pub(super) fn pump_closing(&mut self, now: Nanos) {
        if !matches!(self.stage, Stage::Closing(_)) || self.closing_saved {
            return;
        }
        if self.log.is_full() || self.index_is_full() {
            self.stop_serving();
        }
        let end = self.log.end().position.lsn;
        self.log.want_durable(end);
        self.log.poll_sync(now, &mut self.out);
        let failed = self.failed || self.log.failure().is_some() || self.superblock_file.has_failed();
        let quiet = self.log.is_quiet() && self.log.durable() == end && self.floor.is_idle();
        let quiet = quiet && !self.is_persisting_k() && self.sealing.is_none();
        if failed {
            return self.on_closed(now);
        }
        if quiet {
            self.closing_saved = true;
            self.after_superblock(now, AfterSuperblock::Closed);
        }
    }

    pub(super) fn on_closed(&mut self, now: Nanos) {
        let Stage::Closing(id) = self.stage else { return };
        self.fail_waiting();
        self.end_waiting_verbs();
        let status = Box::new(self.status(now));
        self.stage = Stage::Closed;
        self.end_verb(id, Ok(VerbOk::Done(status)));
    }

    fn end_waiting_verbs(&mut self) {
        self.end_views("the copy is closed");
        for verb in std::mem::take(&mut self.verbs) {
            self.end_verb(verb.id, Err(plan::closed()));
        }
    }

    /// Ends promotions that have waited for the recovery as long as they may.
    pub(super) fn expire_waiting_for_recovery(&mut self, now: Nanos) {
        let is_over = |v: &mut PendingVerb| matches!(v.kind, Pending::Recovered(_)) && now >= v.deadline;
        for verb in self.verbs.extract_if(.., is_over).collect::<Vec<_>>() {
            self.expire(now, verb);
        }
    }

    /// The copy is recovered: what waited for that begins, and the time that it waited counts.
    fn begin_late(&mut self, now: Nanos, id: VerbId, verb: Verb, deadline: Nanos) {
        self.begin_verb(now, id, verb);
        if let Some(waiting) = self.verbs.iter_mut().find(|v| v.id == id && !matches!(v.kind, Pending::TakeOver)) {
            waiting.deadline = waiting.deadline.min(deadline);
        }
    }

    /// Moves waiting verbs on, and ends those whose time is over.
    pub(super) fn pump_verbs(&mut self, now: Nanos) {
        for verb in std::mem::take(&mut self.verbs) {
            if let Some(verb) = self.step_verb(now, verb) {
                self.verbs.push(verb);
            }
        }
        self.pump_handing(now);
    }

    fn step_verb(&mut self, now: Nanos, mut verb: PendingVerb) -> Option<PendingVerb> {
        match &verb.kind {
            Pending::Recovered(promotion) if !self.failed => {
                self.begin_late(now, verb.id, promotion.clone(), verb.deadline);
                return None;
            }
            Pending::Word(word) if !self.word_waits(now) => {
                self.carry_out(now, verb.id, word.clone());
                return None;
            }
            Pending::Demote { served, hands_over } => {
                let (served, hands_over) = (*served, *hands_over);
                verb = self.step_demotion(now, verb, served, hands_over)?;
            }
            Pending::HandOver if let Some(end) = self.step_hand_over(now) => {
                self.end_verb(verb.id, end);
                return None;
            }
            Pending::Persisting if !self.is_persisting_k() && self.change.is_none() => {
                self.finish_verb(now, verb.id);
                return None;
            }
            // Both are there, and nobody is the primary: they agree on it.
            Pending::TakeOver if self.may_be_handed_over() => {
                match verb.id {
                    VerbId::BACK => self.end_verb(verb.id, Err(plan::changing())),
                    id => self.carry_out(now, id, super::switchover::promote()),
                }
                return None;
            }
            Pending::TakeOver if let Some(error) = self.cannot_take_over() => {
                self.end_verb(verb.id, Err(error));
                return None;
            }
            Pending::Drain if let Err(why) = self.judge_draining() => {
                self.draining = None;
                self.end_verb(verb.id, Err(why));
                return None;
            }
            Pending::Drain if self.draining.is_none() => {
                self.finish_verb(now, verb.id);
                return None;
            }
            Pending::Pause if self.is_pause_settled() => {
                self.finish_verb(now, verb.id);
                return None;
            }
            Pending::Release => return self.step_release(now, verb),
            // Its number may come to be that of another record.
            Pending::Resized { lsn, .. } if matches!(self.role, Role::Fenced(_)) || *lsn > self.log.last_numbered() => {
                let why = "the volume serves here no more: whether it was resized shows where it does";
                self.end_verb(verb.id, Err(VerbError::Interrupted(why.into())));
                return None;
            }
            Pending::Resized { lsn, .. } if self.log.durable() >= *lsn => {
                self.acks.answered(*lsn);
                self.finish_verb(now, verb.id);
                return None;
            }
            _ => {}
        }
        if self.failed {
            self.end_verb(verb.id, Err(VerbError::Interrupted("the copy has failed".into())));
            return None;
        }
        if now >= verb.deadline {
            self.expire(now, verb);
            return None;
        }
        Some(verb)
    }

    /// What keeps the base from holding all of the log.
    pub(super) fn drain_waits_for(&self) -> String {
        let (floor, end) = (self.floor.at().position.lsn, self.log.end().position.lsn);
        let silent = self.superblock.peer.filter(|site| {
            let durable = self.link.as_ref().map_or(Lsn::ZERO, |link| link.sender.durable());
            self.k.primary == Some(self.site) && self.k.has(*site) && durable < end
        });
        let why = match silent {
            Some(site) => format!("site {site}, which flushes wait for, has not made durable what is newer"),
            None if self.committed < end => "what is newer is not known to be durable where flushes wait for it".into(),
            None => "the base takes longer".into(),
        };
        format!("the base holds what was written up to lsn {floor} of {end}: {why}")
    }

    fn step_release(&mut self, now: Nanos, mut verb: PendingVerb) -> Option<PendingVerb> {
        let end = self.log.end().position.lsn;
        let quiet = self.log.is_quiet() && self.acks.is_empty() && self.parked.is_empty();
        if quiet && self.floor.at().position.lsn == end {
            self.superblock.flag = CopyFlag::Released;
            self.set_role(Role::Secondary);
            self.fail_waiting();
            verb.kind = Pending::Saving;
            self.after_superblock(now, AfterSuperblock::Verb(verb.id));
        } else if quiet {
            self.log.want_durable(end);
            self.pump_again |= self.draining != Some(end);
            self.draining = Some(end);
        }
        Some(verb)
    }

    fn expire(&mut self, now: Nanos, verb: PendingVerb) {
        if self.role == Role::Suspended(SuspendReason::User) {
            match verb.kind {
                Pending::Demote { served, .. } => self.undo_demotion(now, served),
                Pending::Release => self.serve_again(now),
                _ => {}
            }
        }
        if matches!(verb.kind, Pending::Drain | Pending::Release) {
            self.draining = None;
        }
        if matches!(verb.kind, Pending::HandOver) {
            return self.end_verb(verb.id, Err(self.handing_is_late()));
        }
        if matches!(verb.kind, Pending::Drain | Pending::Release) {
            return self.end_verb(verb.id, Err(VerbError::Interrupted(self.drain_waits_for())));
        }
        let why = match verb.kind {
            Pending::Demote { served: true, .. } => {
                "not everything could be made durable at the peer in time; the volume serves again"
            }
            Pending::Demote { served: false, .. } => "not everything could be made durable at the peer in time",
            Pending::Recovered(_) => "the copy is still being recovered",
            Pending::Promote { .. } => "the promotion is recorded and goes on; the peer of S is not reachable yet",
            Pending::TakeOver if self.arbiter.is_deciding() => {
                "the witness was asked to make this copy the primary, and what it decided is not known yet"
            }
            Pending::TakeOver if self.k.primary.is_none() => "the witness did not answer: no site is the primary",
            Pending::TakeOver => {
                "the witness did not answer, or the lease of the primary has not ended: it may be alive"
            }
            Pending::Pause => {
                "it is recorded and in force as soon as the superblock is written, and the base's advance has ended"
            }
            Pending::Handover { .. } => "the peer did not answer; it is asked again at the next contact",
            _ => "the deadline is over",
        };
        self.end_verb(verb.id, Err(VerbError::Interrupted(why.into())));
    }
}

/// A verb that a person's assertion about the other site goes with.
pub(super) fn is_by_word(verb: &Verb) -> bool {
    matches!(verb, Verb::Promote { assert_peer_fenced: Some(_), .. } | Verb::DropPeer(_))
}
