//! Switchover: the primary demotes itself and asks its peer to take over, in one verb. What the peer does then is a promotion of its
//! own, judged and carried out as one that an operator asks for there (see [`super::promotion`]).
//!
//! ```text
//! Primary --drained--> K without a primary --the peer has it--> HandOver --the peer serves--> HandedOver
//!    ^                                                             |
//!    '---------- the peer hands over in turn <------- it will not -'
//! ```
//!
//! Until K without a primary is persisted the verb is a demotion: where that cannot be carried out the volume serves again. From then
//! on nobody serves before the peer does, or before it has handed over in turn; whoever that is has everything. That the peer is to
//! take over is part of that K: what was begun goes on until some site is the primary, whether or not who asked still waits for it,
//! also when this copy was opened anew in between.

use crate::event::{ConnId, VerbId};
use crate::node::plan::changing;
use crate::node::verbs::{DEADLINE_MS, Pending};
use crate::node::{Node, Stage};
use crate::plan::Plan;
use crate::ship::sender::Source;
use crate::ship::{FEATURE_HANDOVER, Hello, MAX_REASON_BYTES, Message};
use crate::status::Role;
use crate::types::{Nanos, SiteId};
use crate::verb::{Verb, VerbError, VerbOk};

/// A peer that refuses may only be busy: it is asked again after this time.
const ASK_AGAIN_MS: u64 = 200;
/// Where nobody waits that time doubles this often.
const MAX_DOUBLINGS: u32 = 6;
/// A peer that still refuses after this time is asked to hand over in turn.
const TAKE_BACK_MS: u64 = 2_000;
/// A peer that is further behind than this is not waited for.
const MAX_LAG_BYTES: u64 = 64 << 20;

/// What a switchover begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Start {
    /// The site is the primary.
    Done,
    /// This site is the primary.
    Here,
    /// Nobody is: an earlier one, or a demotion, was not followed by a promotion.
    Nobody,
}

/// A switchover under way.
#[derive(Clone, Debug)]
pub(super) struct Handing {
    to: SiteId,
    /// When this site stopped serving.
    since: Nanos,
    /// The stream on which the peer was asked last.
    asked: Option<ConnId>,
    /// It refused: when it is asked again.
    again_at: Option<Nanos>,
    /// Why it refused.
    refused: Option<String>,
    /// It serves.
    taken: bool,
    /// It refused for too long, and is asked to hand over in turn.
    back: bool,
    /// How often it was in vain while nobody waited, up to a limit.
    tries: u32,
}

impl Handing {
    fn to(to: SiteId, now: Nanos) -> Self {
        Self { to, since: now, asked: None, again_at: None, refused: None, taken: false, back: false, tries: 0 }
    }
}

/// A verb that waits for a switchover.
pub(super) fn hands_over(kind: &Pending) -> bool {
    matches!(kind, Pending::HandOver | Pending::Demote { hands_over: true, .. })
}

impl Node {
    // ---- the site that hands over -------------------------------------------------------------------------------------

    pub(super) fn switchover(&mut self, now: Nanos, id: VerbId, to: SiteId, force: bool) -> Result<(), VerbError> {
        let start = self.judge_switchover(to, force)?;
        if start == Start::Done {
            self.end_verb(id, Ok(VerbOk::SwitchedOver { site: to, pause_ms: 0 }));
            return Ok(());
        }
        match &mut self.handing {
            // It goes on already; who asks now waits for it.
            Some(handing) => handing.since = now,
            None => self.handing = Some(Handing::to(to, now)),
        }
        match start {
            Start::Here => self.begin_demotion(now, id, force, true),
            Start::Nobody | Start::Done => self.wait(now, id, DEADLINE_MS, Pending::HandOver),
        }
        Ok(())
    }

    pub(super) fn plan_switchover(&self, to: SiteId, force: bool) -> Result<Plan, VerbError> {
        let start = self.judge_switchover(to, force)?;
        if start == Start::Done {
            return Ok(Plan::of([format!("nothing: site {to} is the primary")]));
        }
        let mut plan = Plan::of::<String>([]);
        if start == Start::Here {
            if force {
                plan.steps.push("queued requests fail".into());
            }
            plan.steps.push("no new request is served; what was accepted is made durable at both sites".into());
            plan = plan
                .waiting("the peer's disk; where it does not answer, the volume serves again as before", DEADLINE_MS);
        }
        plan.steps.push(format!("site {to} becomes the primary and serves, with everything; this site follows"));
        plan.steps.push("where that site will not, it hands over in turn, and this site serves again".into());
        Ok(plan.waiting("that site to serve", DEADLINE_MS))
    }

    pub(super) fn judge_switchover(&self, to: SiteId, force: bool) -> Result<Start, VerbError> {
        if to == self.site {
            return match self.role {
                Role::Primary => Ok(Start::Done),
                _ => Err(self.role_error("ask for it at the primary, or promote this site where there is none")),
            };
        }
        if self.superblock.peer != Some(to) {
            return Err(VerbError::Invalid(format!("site {to} is not the peer of this volume")));
        }
        if self.verbs.iter().any(|verb| hands_over(&verb.kind)) || self.is_persisting_k() {
            return Err(changing());
        }
        let leads = self.link.as_ref().and_then(|l| l.hello.as_ref()).is_some_and(|hello| hello.is_primary);
        match (self.k.primary, self.role) {
            (Some(site), Role::Secondary) if site == to && leads => Ok(Start::Done),
            (Some(site), Role::Secondary) if site == to => {
                let why = "it is the primary, and has not said here that it serves".into();
                let hint = "see its status".into();
                Err(VerbError::PeerUnfit { site: to, why, hint })
            }
            (_, Role::Fenced(_)) if leads => Ok(Start::Done),
            (_, Role::Fenced(_)) => Err(self.role_error("another site became the primary: promote there")),
            (None, _) => self.judge_successor(to).map(|_| Start::Nobody),
            (Some(_), _) => {
                self.judge_demotion(force)?;
                self.judge_follower(self.judge_successor(to)?).map(|()| Start::Here)
            }
        }
    }

    /// The peer is there, and can come to serve.
    fn judge_successor(&self, to: SiteId) -> Result<&Hello, VerbError> {
        let unfit = |why: &str, hint: &str| VerbError::PeerUnfit { site: to, why: why.into(), hint: hint.into() };
        let hello = self.link.as_ref().and_then(|l| l.hello.as_deref());
        let Some(hello) = hello else {
            return Err(unfit("it is not connected", "restore the link, or promote there by --assert-peer-fenced"));
        };
        if hello.features & FEATURE_HANDOVER == 0 {
            return Err(unfit("its agent is too old for that", "demote here and promote there, or upgrade it"));
        }
        match () {
            () if hello.needs_seed => Err(unfit("its copy is not complete", "wait until it is seeded")),
            () if hello.is_suspect => Err(unfit("its copy is suspect", "reseed it first")),
            () if self.is_parted() => Err(unfit("it has a history of its own", "reseed one of the two first")),
            () => Ok(hello),
        }
    }

    /// The peer follows so closely that it is equal in a moment.
    fn judge_follower(&self, hello: &Hello) -> Result<(), VerbError> {
        let unfit = |why: String| {
            let hint = "wait until `tidemark status` shows its copy as current".into();
            Err(VerbError::PeerUnfit { site: hello.site, why, hint })
        };
        let Some(link) = &self.link else { return unfit("it is not connected".into()) };
        if link.sender.source != Source::Stream || link.sender.confirmed != self.k.epoch {
            return unfit("its copy is not yet brought up".into());
        }
        if link.regressed > link.sender.durable() {
            return unfit("its copy lacks records that were durable there once".into());
        }
        match link.sender.outstanding_bytes() {
            lag if lag > MAX_LAG_BYTES => unfit(format!("it is {lag} bytes behind")),
            _ => Ok(()),
        }
    }

    /// A switchover that nobody waits for goes on, until some site is the primary.
    pub(super) fn pump_handing(&mut self, now: Nanos) {
        if self.verbs.iter().any(|verb| hands_over(&verb.kind)) {
            return;
        }
        let peer = self.superblock.peer.filter(|_| self.is_to_hand_over());
        let kept = self.handing.take().filter(|handing| Some(handing.to) == peer);
        self.handing = peer.map(|to| kept.unwrap_or_else(|| Handing::to(to, now)));
        if self.handing.is_some() {
            self.step_hand_over(now);
        }
    }

    /// This copy was demoted for its peer to take over, and nobody is the primary yet.
    pub(super) fn is_to_hand_over(&self) -> bool {
        let is_own = self.k.primary.is_none() && self.k.hands_over && self.k.proposer == self.node;
        is_own && matches!(self.stage, Stage::Running) && !self.failed && !self.is_led()
    }

    /// What a switchover that waits for the peer has come to; `None`: it goes on.
    pub(super) fn step_hand_over(&mut self, now: Nanos) -> Option<Result<VerbOk, VerbError>> {
        let handing = self.handing.clone()?;
        // Where this site is promoted by itself again, the peer is not asked beside that.
        if self.is_persisting_k() || self.promotion_pending() && !handing.back {
            return None;
        }
        let Handing { to, since, refused, .. } = handing;
        // While a question is unanswered the peer may be taking over: two that propose refuse each other.
        let is_answered = handing.again_at.is_some_and(|at| now >= at);
        let is_late = now >= since.after_ms(TAKE_BACK_MS);
        let late = is_late && (refused.is_some() && is_answered || self.may_reclaim(now, handing.again_at));
        match (self.k.primary, handing.back) {
            (Some(site), _) if site == to && handing.taken => {
                return Some(Ok(VerbOk::SwitchedOver { site, pause_ms: now.since(since) / 1_000_000 }));
            }
            (Some(site), _) if site == self.site => {
                let why = refused.unwrap_or_else(|| "this site was promoted meanwhile".into());
                let serves = self.role == Role::Primary;
                return serves.then(|| Err(not_taken(to, &format!("{why}; this site serves again"))));
            }
            (_, true) => {}
            (None, false) if late => self.take_back(now),
            _ => self.ask_to_take_over(now),
        }
        None
    }

    /// Once on each stream, and again when it refused.
    fn ask_to_take_over(&mut self, now: Nanos) {
        let Some(link) = &self.link else { return };
        let k = self.k.id();
        if link.hello.as_ref().is_none_or(|hello| hello.config.id() != k) {
            return;
        }
        let conn = link.conn;
        let Some(handing) = &mut self.handing else { return };
        if handing.asked != Some(conn) || handing.again_at.is_some_and(|at| now >= at) {
            (handing.asked, handing.again_at) = (Some(conn), None);
            self.send(Message::HandOver { k });
        }
    }

    /// The peer cannot come to have everything: this site goes on. One that flushes wait for is waited for.
    pub(super) fn has_lost_successor(&self) -> bool {
        let follows = self.link.as_ref().is_some_and(|l| l.sender.source != Source::Probe);
        self.is_parted() || self.k.sites.len() == 1 && !follows
    }

    /// What a switchover says that ended because of that.
    pub(super) fn successor_is_lost(&self) -> VerbError {
        match &self.handing {
            Some(handing) => not_taken(handing.to, "its link was lost; this site serves again"),
            None => changing(),
        }
    }

    /// The peer is away and does not answer: the witness says whether it took over (R15 i).
    fn may_reclaim(&self, now: Nanos, again_at: Option<Nanos>) -> bool {
        let may_ask = self.is_arbitrated() && self.arbiter.unfit().is_none();
        may_ask && again_at.is_none_or(|at| now >= at) && self.has_lost_its_fellow(now)
    }

    fn take_back(&mut self, now: Nanos) {
        if let Some(handing) = &mut self.handing {
            handing.back = true;
        }
        self.carry_out(now, VerbId::BACK, promote());
    }

    pub(super) fn on_handed_over(&mut self, now: Nanos, conn: ConnId, result: Result<(), String>) {
        let Some(handing) = self.handing.as_mut().filter(|h| h.asked == Some(conn)) else { return };
        match result {
            Ok(()) => handing.taken = true,
            Err(why) => {
                handing.refused = Some(why);
                self.ask_again(now);
            }
        }
    }

    /// Who is waited for asks often; what goes on by itself more and more seldom, and gives way to who is waited for.
    fn ask_again(&mut self, now: Nanos) {
        let is_waited_for = self.verbs.iter().any(|verb| hands_over(&verb.kind));
        let Some(handing) = &mut self.handing else { return };
        handing.tries = if is_waited_for { 0 } else { (handing.tries + 1).min(MAX_DOUBLINGS) };
        handing.again_at = Some(now.after_ms(ASK_AGAIN_MS << handing.tries));
    }

    /// When a switchover looks at the clock next, besides its deadline.
    pub(super) fn handing_timeout(&self) -> Option<Nanos> {
        let handing = self.handing.as_ref().filter(|_| !self.is_persisting_k())?;
        let at = handing.again_at?;
        let hello = self.link.as_ref().and_then(|l| l.hello.as_ref());
        match hello.is_some_and(|hello| hello.config.id() == self.k.id()) {
            true => Some(at),
            // Nobody can be asked; a new stream wakes this copy by itself.
            false => handing.refused.is_some().then(|| at.max(handing.since.after_ms(TAKE_BACK_MS))),
        }
    }

    /// Its time is over, and the peer did not say that it serves.
    pub(super) fn handing_is_late(&self) -> VerbError {
        let Some(Handing { to, refused, .. }) = &self.handing else { return changing() };
        let why = refused.clone().unwrap_or_else(|| "it has not said so in time".into());
        match self.k.primary {
            _ if self.is_persisting_k() => not_taken(*to, "this disk has not recorded yet that this site gives way"),
            Some(site) if site == *to => VerbError::Interrupted(format!(
                "site {to} is the primary and opens the volume, but has not said yet that it serves: see its status"
            )),
            Some(_) => not_taken(*to, &format!("{why}; this site is the primary again and opens the volume")),
            None if self.is_to_hand_over() => not_taken(*to, &format!("{why}. {GOES_ON}")),
            None => not_taken(*to, &format!("{why}. {NOBODY}")),
        }
    }

    // ---- the site that takes over -------------------------------------------------------------------------------------

    /// The peer was demoted, and asks this copy to become the primary.
    pub(super) fn on_hand_over(&mut self, now: Nanos, k: crate::config::Since) {
        if self.is_recovering() {
            return self.send(Message::HandedOver { result: Err("its log is being read".into()) });
        }
        if let Some(verb) = self.verbs.iter().find(|verb| verb.id == VerbId::PEER) {
            // Asked again on another stream: what was proposed on the one before may be lost.
            if let Pending::Handover { config } = verb.kind.clone() {
                self.propose_handover(config);
            }
            return;
        }
        let is_free = self.k.primary.is_none_or(|site| site == self.site);
        if k == self.k.id() && is_free {
            return self.carry_out(now, VerbId::PEER, promote());
        }
        let why = "it has another configuration by now";
        self.send(Message::HandedOver { result: Err(why.into()) });
    }

    /// The end of a verb that no shell asked for; true when it was one.
    pub(super) fn ended_by_itself(&mut self, id: VerbId, result: &Result<VerbOk, VerbError>) -> bool {
        match id {
            VerbId::PEER => {
                let result = result.as_ref().map(drop).map_err(|error| bounded(error.to_string()));
                self.send(Message::HandedOver { result });
            }
            VerbId::BACK => {
                // This site did not come to serve again either: the peer is asked again, then this site, until the deadline.
                if let (Some(handing), Err(error)) = (&mut self.handing, result) {
                    tracing::debug!(%error, "the role given up was not taken back");
                    (handing.back, handing.refused) = (false, None);
                    self.ask_again(self.looked_at);
                }
            }
            _ => return false,
        }
        true
    }
}

/// What helps when no site is the primary.
const GOES_ON: &str = "No site is the primary now and nothing is lost: this goes on by itself when the sites reach each other; \
                       `tidemark promote` at either one ends it at once";
const NOBODY: &str =
    "No site is the primary now and nothing is lost: `tidemark promote` at either one opens the volume";

fn not_taken(to: SiteId, why: &str) -> VerbError {
    VerbError::Interrupted(format!("site {to} did not take over: {why}"))
}

/// A promotion that loses nothing and relies on nobody's word.
pub(super) fn promote() -> Verb {
    Verb::Promote { assert_peer_fenced: None, max_loss_bytes: None, max_loss_seconds: None, allow_unproven: false }
}

fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_REASON_BYTES));
    text
}
