//! The plans of the verbs: each from the judgement that its verb begins with.

use crate::config::{Mode, Policy};
use crate::format::superblock::CopyFlag;
use crate::layout::Layout;
use crate::node::oracle::Bounds;
use crate::node::switchover::hands_over;
use crate::node::verbs::{DEADLINE_MS, DRAIN_DEADLINE_MS, is_by_word};
use crate::node::{Node, Stage};
use crate::plan::Plan;
use crate::ship::sender::Source;
use crate::status::{Role, SuspendReason};
use crate::types::{Nanos, SiteId};
use crate::verb::{Verb, VerbError};

/// Nothing is left to ask.
pub(super) fn closed() -> VerbError {
    VerbError::Interrupted("the copy is closed".into())
}

/// Its log is still being read.
pub(super) fn opening() -> VerbError {
    VerbError::CopyState { state: "opening".into(), hint: "try again in a moment".into() }
}

/// Something else changes K, or seals.
pub(super) fn changing() -> VerbError {
    VerbError::CopyState { state: "changing".into(), hint: "try again in a moment".into() }
}

impl Node {
    /// What `verb` would do now. Changes nothing.
    ///
    /// # Errors
    /// What the verb itself would answer now.
    pub fn plan(&self, now: Nanos, verb: &Verb) -> Result<Plan, VerbError> {
        if matches!(self.stage, Stage::Closed) {
            return Err(closed());
        }
        match verb {
            Verb::Close => {}
            Verb::Promote { .. } if self.is_recovering() => {
                let steps = ["is judged when the log has been read"];
                return Ok(Plan::of(steps).waiting(Plan::RECOVERY, DEADLINE_MS));
            }
            _ if self.is_recovering() => return Err(opening()),
            _ => {}
        }
        if is_by_word(verb) && self.word_would_wait(now) {
            return Ok(self.plan_word(now, verb));
        }
        self.plan_now(now, verb)
    }

    /// A person's word is judged once the witness was asked: what it says then may differ.
    fn plan_word(&self, now: Nanos, verb: &Verb) -> Plan {
        let now = match self.plan_now(now, verb) {
            Err(why) => vec![format!("as things stand it is refused: {why}")],
            Ok(Plan { loss: Some(loss), steps, .. }) => {
                [format!("as things stand it is {}", loss.class)].into_iter().chain(steps).collect()
            }
            Ok(plan) => plan.steps,
        };
        let first = "the witness is asked first, as it may know of a newer configuration".into();
        let plan = Plan::of([first].into_iter().chain(now));
        plan.waiting("the witness", super::arbitration::WORD_MS).waiting("what follows from that", DEADLINE_MS)
    }

    fn plan_now(&self, now: Nanos, verb: &Verb) -> Result<Plan, VerbError> {
        if let Some(why) = self.is_leaders_verb(verb) {
            return Err(why);
        }
        match verb {
            Verb::Promote { assert_peer_fenced, max_loss_bytes, max_loss_seconds, allow_unproven } => {
                let (max_loss_bytes, max_loss_seconds) = (*max_loss_bytes, *max_loss_seconds);
                let bounds = Bounds { max_loss_bytes, max_loss_seconds, allow_unproven: *allow_unproven };
                self.plan_promotion(now, assert_peer_fenced.is_some(), &bounds)
            }
            Verb::Demote { force } => self.plan_demotion(*force),
            Verb::Switchover { to, force } => self.plan_switchover(*to, *force),
            Verb::SetPolicy(policy) => self.plan_policy(policy),
            Verb::Pause(parts) => self.plan_pause(*parts),
            Verb::Resume(parts) => Ok(self.plan_resume(*parts)),
            Verb::SetPeer(peer) => self.plan_peer(*peer),
            Verb::DropPeer(_) => self.plan_drop_peer(now),
            Verb::Resize { volume, size } => self.plan_layout(Some(self.judge_growth(*volume, *size)?)),
            Verb::AddVolume { volume, size } => self.plan_layout(self.judge_addition(*volume, *size)?),
            Verb::RemoveVolume { volume } => Ok(match self.judge_removal(*volume)? {
                Some(_) => Plan::of(["the volume leaves its group; its base comes to hold what it held"])
                    .waiting("the log", DEADLINE_MS),
                None => Plan::of(["nothing: the group does not have it"]),
            }),
            Verb::Verify => {
                self.judge_verify()?;
                Ok(Plan::of(["both copies are compared, block by block; nothing is changed"]))
            }
            Verb::Release => self.plan_release(),
            Verb::AbortIo => Ok(Plan::of([self.plan_abort()])),
            Verb::Reseed => self.plan_reseed(),
            Verb::Drain => {
                self.judge_draining()?;
                Ok(Plan::of(["the base takes over what the log holds, as far as it may"])
                    .waiting("the base, and where it may not pass them the members of S", DRAIN_DEADLINE_MS))
            }
            Verb::Close => Ok(Plan::of(["the log is synced and the copy is closed"])),
        }
    }

    fn plan_demotion(&self, force: bool) -> Result<Plan, VerbError> {
        if !self.judge_demotion(force)? {
            return Ok(Plan::of(["nothing: this copy is not the primary"]));
        }
        let mut plan = Plan::of([
            "no new request is served; what was accepted is made durable here, and at every member of S",
            "the volume has no primary until one is promoted, which loses nothing then",
        ]);
        if force {
            plan.steps.insert(0, "queued requests fail".into());
        }
        let what = "the members of S; where they do not answer, the volume serves again as before";
        Ok(plan.waiting(what, DEADLINE_MS))
    }

    /// Whether there is anything to demote.
    pub(super) fn judge_demotion(&self, force: bool) -> Result<bool, VerbError> {
        match self.role {
            Role::Secondary if self.is_to_hand_over() => {
                return Err(self.role_error("its switchover goes on: promote here first, which takes the role back"));
            }
            Role::Secondary | Role::Fenced(_) => return Ok(false),
            _ if self.verbs.iter().any(|verb| hands_over(&verb.kind)) => return Err(changing()),
            Role::Primary => {}
            Role::Suspended(_) if force => {}
            Role::Suspended(_) => return Err(self.role_error("use --force to fail what is queued")),
        }
        if self.has_members() && (self.role != Role::Primary || self.a_fellow_pauses()) {
            return Err(self.role_error("not every member of the group serves: wait until they do"));
        }
        if self.change.is_some() || self.is_persisting_k() || self.arbiter.is_deciding() {
            return Err(changing());
        }
        if self.failed {
            let (state, hint) = ("failed".into(), "nothing can be recorded here: open the copy again first".into());
            return Err(VerbError::CopyState { state, hint });
        }
        if !self.ships() && self.link.as_ref().is_some_and(|l| l.sender.source != Source::Probe) {
            let (state, hint) =
                ("not shipped to its peer".into(), "resume that first (`tidemark resume --ship`)".into());
            return Err(VerbError::CopyState { state, hint });
        }
        Ok(true)
    }

    fn plan_policy(&self, policy: &Policy) -> Result<Plan, VerbError> {
        self.judge_policy(policy)?;
        let old = &self.superblock.policy;
        if old == policy {
            return Ok(Plan::of(["nothing: this is the policy"]));
        }
        let mut plan = Plan::of(["the policy is recorded here and sent to the peer"]);
        let is_weaker = policy.mode < old.mode;
        plan.steps.extend(
            match policy.mode {
                mode if mode == old.mode => None,
                Mode::Async => Some(
                    "flushes no longer wait for the peer, once that has agreed: from then on a loss of this \
                 site loses what the peer has not received",
                ),
                Mode::Receive if is_weaker => Some("flushes wait for what the peer received, no longer for its disk"),
                Mode::Receive => Some("flushes wait for what the peer received, as soon as it has caught up"),
                Mode::Sync => Some("flushes wait for the peer's disk, as soon as it has caught up"),
            }
            .map(String::from),
        );
        Ok(plan.waiting("the superblock", DEADLINE_MS))
    }

    pub(super) fn judge_policy(&self, policy: &Policy) -> Result<(), VerbError> {
        if self.k.primary != Some(self.site) {
            return Err(self.role_error("the policy is changed at the primary"));
        }
        if policy.mode != Mode::Async && self.superblock.peer.is_none() {
            return Err(VerbError::NoPeer(policy.mode));
        }
        Ok(())
    }

    fn plan_peer(&self, peer: Option<SiteId>) -> Result<Plan, VerbError> {
        if !self.judge_peer(peer)? {
            return Ok(Plan::of(["nothing: this is the peer"]));
        }
        let step = match peer {
            Some(site) => format!("site {site} receives a copy of its own and follows"),
            None => "the peer is forgotten: nothing is replicated any more, and its copy stays as it is".into(),
        };
        Ok(Plan::of([step]).waiting("the superblock", DEADLINE_MS))
    }

    /// Whether that is another peer than before.
    pub(super) fn judge_peer(&self, peer: Option<SiteId>) -> Result<bool, VerbError> {
        if peer == self.superblock.peer {
            return Ok(false);
        }
        if self.superblock.peer.is_some_and(|old| self.k.has(old)) {
            return Err(VerbError::Invalid("the present peer is in S: set mode async first".into()));
        }
        if peer == Some(self.site) {
            return Err(VerbError::Invalid("a site cannot be its own peer".into()));
        }
        Ok(true)
    }

    fn plan_drop_peer(&self, now: Nanos) -> Result<Plan, VerbError> {
        self.judge_drop_peer(now)?;
        let mut plan = Plan::of([
            "the assertion is recorded for good",
            "flushes wait for this site alone, at a new epoch: a loss of this site loses data until a peer has joined again",
        ]);
        if self.k.mode != Mode::Async && self.k.sites.len() > 1 {
            plan.steps.push("what waits for the peer now is answered".into());
        }
        Ok(plan.waiting("the new configuration on this disk", DEADLINE_MS))
    }

    pub(super) fn judge_drop_peer(&self, now: Nanos) -> Result<(), VerbError> {
        self.may_drop_peer()?;
        match self.replaced_by(now) {
            Some(_) => Err(VerbError::Role {
                role: "fenced".into(),
                hint: "the witness names another primary: this site was replaced".into(),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn may_drop_peer(&self) -> Result<(), VerbError> {
        if self.k.primary != Some(self.site) || !self.role.serves() {
            return Err(self.role_error("only the primary can leave its peer out of S"));
        }
        if self.is_persisting_k() { Err(changing()) } else { Ok(()) }
    }

    fn plan_layout(&self, wanted: Option<Layout>) -> Result<Plan, VerbError> {
        let Some(wanted) = wanted.filter(|wanted| *wanted != self.space.layout) else {
            return Ok(Plan::of(["nothing: it is there, and has this size"]));
        };
        self.judge_layout(&wanted)?;
        let step = format!("both copies have {} bytes in all from then on; what is new reads as zeros", wanted.size());
        Ok(Plan::of([step]).waiting("the peer's base, then the log", 2 * DEADLINE_MS))
    }

    /// Asked again while a drain waits.
    pub(super) fn judge_draining(&self) -> Result<(), VerbError> {
        if self.superblock.paused.floor {
            let hint = "its floor is paused: resume it first (`tidemark resume --floor`)".into();
            return Err(VerbError::CopyState { state: "not to be written to its base".into(), hint });
        }
        match self.floor_stands() {
            Some(state) => {
                let hint = "its base cannot be brought up to its log".into();
                Err(VerbError::CopyState { state: state.into(), hint })
            }
            None => Ok(()),
        }
    }

    fn plan_release(&self) -> Result<Plan, VerbError> {
        self.judge_release()?;
        let steps = ["requests fail from now on", "the log is drained into the base, which mounts as it is afterwards"];
        Ok(Plan::of(steps).waiting("the base", DRAIN_DEADLINE_MS))
    }

    pub(super) fn judge_release(&self) -> Result<(), VerbError> {
        self.need_primary("a volume is released at its primary")?;
        self.judge_draining()?;
        if self.k.sites.len() > 1 || self.superblock.peer.is_some() {
            return Err(VerbError::Invalid(
                "the volume still has a peer: set mode async and forget the peer first".into(),
            ));
        }
        Ok(())
    }

    fn plan_abort(&self) -> String {
        match self.waiting_requests() {
            0 => "nothing: no request is queued".into(),
            waiting => format!("{waiting} requests fail that were not answered yet"),
        }
    }

    fn plan_reseed(&self) -> Result<Plan, VerbError> {
        self.judge_reseed()?;
        let keeps = match self.has_own_suffix() {
            true => "the records of this copy that the peer's history lacks are sealed in a rescue branch first",
            false => "no record is known that only this copy has",
        };
        Ok(Plan::of([keeps, "the copy goes back to where both histories part, or takes the peer's content anew"]))
    }

    pub(super) fn has_own_suffix(&self) -> bool {
        self.superblock.flag == CopyFlag::Diverged || self.diverged.is_some()
    }

    pub(super) fn judge_reseed(&self) -> Result<(), VerbError> {
        let gave_way = self.diverged.is_some() || matches!(self.role, Role::Fenced(_));
        if self.leads() || (self.k.primary == Some(self.site) && !gave_way) {
            return Err(self.role_error("only a copy that does not serve can be given up"));
        }
        // Where nobody leads and the two parted, no flush waits: a person names the loser.
        let is_named_loser = self.k.primary.is_none() && self.is_parted();
        if self.k.sites.len() > 1 && self.k.has(self.site) && self.is_sound() && !is_named_loser {
            return Err(VerbError::CopyState {
                state: "a member of S".into(),
                hint: "every flush waits for it: leave it out of S first (at the primary: mode async, or drop-peer)"
                    .into(),
            });
        }
        if self.is_persisting_k() { Err(changing()) } else { Ok(()) }
    }

    /// A role that a demotion ends although nothing was served in it for a person to notice.
    pub(super) fn served(&self) -> bool {
        matches!(self.role, Role::Primary | Role::Suspended(SuspendReason::LeaseLost))
    }
}
