//! What the witness decides for this copy: whether a primary may serve, when it goes on without its peer (R4), when it resumes (R17),
//! and when a follower takes over (R15, R16).
//!
//! Nothing here acknowledges anything: a change of K that the witness accepted is persisted like any other, and only then in force.

mod authority;
mod nobody;
mod word;

use std::collections::BTreeMap;

use crate::config::{Config, Mode, OnPeerLoss, Since};
use crate::event::{AskId, Grant, Output, Question, WitnessAnswer};
use crate::format::witness::{Cell, Lease};
use crate::group::arbitrated::{Proposer, Unfit, newest};
use crate::group::ballot::Ballot;
use crate::group::flapping::Flapping;
use crate::group::lease::{Answer, Ask, Serves, Terms, Watch};
use crate::node::meta::AfterK;
use crate::node::verbs::Pending;
use crate::node::{Node, Stage};
use crate::planted::{Planted, planted};
use crate::ship::sender::Source;
use crate::status::{Role, SuspendReason};
use crate::types::{Epoch, GenId, GroupId, Nanos};

/// Of an agent that has no witness (any more) although K relies on one: what the peer confirms is all that counts, and for as
/// short as a challenger can possibly wait.
fn without_witness() -> Terms {
    Terms::new(Terms::MIN_SPAN_NS)
}

/// How long a person's word waits for what the witness knows; and how old that may be.
pub(super) const WORD_MS: u64 = 3_000;
/// What the witness says against an aim is asked for again after this time at the latest.
const MAX_REST_NS: u64 = 60_000_000_000;

/// What this copy wants of the witness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Aim {
    /// To know what it holds, and no more.
    Learn,
    /// K is to rely on the grant that the agent holds now.
    Resume,
    /// The primary goes on without its peer.
    Shrink,
    /// The follower becomes the primary.
    TakeOver,
}

/// Which machine a question belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lane {
    Group,
    Lease,
}

/// What a copy knows of the witness, of its agent's lease and of the other site's.
#[derive(Debug)]
pub(super) struct Arbiter {
    terms: Option<Terms>,
    grant: Option<Grant>,
    pub ballot: Ballot,
    watch: Watch,
    asked: BTreeMap<AskId, Lane>,
    /// What the leader's lease is to become, while that is asked.
    revoking: Option<Lease>,
    next_ask: u64,
    /// The leader's lease is not read before.
    lease_next: Nanos,
    /// When the peer was last of use: it streamed, and nothing was refused.
    useful: Nanos,
    /// Since when the K in force is.
    k_since: Nanos,
    /// When the peer is asked next whether it holds the same K.
    confirm_next: Nanos,
    /// When the last such question was sent that it answered, under the K in force.
    confirmed: Option<Nanos>,
    /// Accepted by the witness, not yet persisted.
    won: Option<Config>,
    /// What stands against the present aim.
    unfit: Option<Unfit>,
    /// The primary of before may serve reads as long as it counts on what was last heard of this site.
    waits_to_open: bool,
    /// How long it rests when it is unfit.
    rest_ns: u64,
    /// Somebody's word waits for what the witness holds, until then.
    word_until: Option<Nanos>,
    /// Since it became a matter of waiting, that primary said that it does not serve.
    gave_way: bool,
    /// Since when the peer has said that it does not serve.
    idle_since: Option<Nanos>,
    /// The peer proposed a K and does not know what became of it: any other K at the witness would tell.
    peer_is_deciding: bool,
    /// Automatic changes of late.
    pub flapping: Flapping,
}

impl Arbiter {
    pub(super) fn new(agents: Option<Terms>, group: GroupId, now: Nanos) -> Self {
        let terms = agents.unwrap_or_else(without_witness);
        Self {
            terms: agents,
            grant: None,
            ballot: Ballot::new(group),
            watch: Watch::new(terms, now),
            asked: BTreeMap::new(),
            revoking: None,
            next_ask: 0,
            lease_next: Nanos::default(),
            useful: now,
            k_since: now,
            confirm_next: now,
            confirmed: None,
            won: None,
            unfit: None,
            waits_to_open: false,
            rest_ns: 0,
            word_until: None,
            gave_way: false,
            idle_since: None,
            peer_is_deciding: false,
            flapping: Flapping::new(terms.calm),
        }
    }

    fn terms(&self) -> Terms {
        self.terms.unwrap_or_else(without_witness)
    }

    /// Another K is in force: what the peer confirmed was the one before. True when the group rests from now on.
    pub(super) fn on_new_k(&mut self, now: Nanos, is_automatic: bool) -> bool {
        (self.k_since, self.confirm_next, self.confirmed) = (now, now, None);
        (self.peer_is_deciding, self.idle_since) = (false, None);
        self.hurry();
        is_automatic && self.flapping.on_change(now)
    }

    /// Nothing stands against the present aim.
    fn now_fit(&mut self) {
        (self.unfit, self.rest_ns) = (None, 0);
    }

    /// Somebody asks: what was found before is looked at anew.
    pub(super) fn hurry(&mut self) {
        self.now_fit();
        self.ballot.hurry();
    }

    /// What the witness was last seen to hold against what this copy wants.
    pub(super) fn unfit(&self) -> Option<Unfit> {
        self.unfit
    }

    /// A K was accepted that is not in force here yet, or one may be accepted any moment.
    pub(super) fn is_deciding(&self) -> bool {
        self.ballot.is_open() || self.won.is_some()
    }

    /// What the witness held of late: recently enough for a person's word. As [`Ballot::cell`].
    fn held_of_late(&self, now: Nanos) -> Option<Option<&Config>> {
        self.ballot.cell(now, WORD_MS * 1_000_000)
    }

    /// What a verb that takes over may need at most, besides what every verb may: the lease of the other site.
    pub(super) fn wait_ms(&self) -> u64 {
        self.terms().wait_ns() / 1_000_000
    }
}

impl Node {
    pub(super) fn on_witness(&mut self, now: Nanos, id: AskId, answer: WitnessAnswer) {
        match self.arbiter.asked.remove(&id) {
            Some(Lane::Group) => {
                let retry = self.retry_ns();
                if let Some(won) = self.arbiter.ballot.on_answer(now, answer, retry) {
                    self.arbiter.won = Some(won);
                }
            }
            Some(Lane::Lease) => self.on_leaders_lease(now, answer),
            None => {}
        }
    }

    fn on_leaders_lease(&mut self, now: Nanos, answer: WitnessAnswer) {
        let (revoking, retry) = (self.arbiter.revoking, self.retry_ns());
        let arbiter = &mut self.arbiter;
        match (revoking, answer.into()) {
            (Some(lease), Answer::Committed(revision)) => arbiter.watch.on_revoked(lease, revision),
            // The answer to the revocation was lost.
            (Some(lease), Answer::Holds(Some((found, revision)))) if found == lease => {
                arbiter.watch.on_revoked(lease, revision);
            }
            (_, Answer::Holds(found)) => arbiter.watch.on_lease(now, found),
            (_, Answer::Committed(_) | Answer::Lost) => arbiter.lease_next = Nanos(now.0 + retry),
        }
    }

    fn retry_ns(&mut self) -> u64 {
        let nonce = self.new_nonce();
        self.arbiter.terms().retry_ns(nonce)
    }

    // ---- what is wanted -----------------------------------------------------------------------------------------------

    /// Looks at the lease and goes on with what the witness is to decide.
    pub(super) fn pump_arbiter(&mut self, now: Nanos) {
        self.watch_authority(now);
        self.pump_confirm(now);
        self.take_office(now);
        if !self.verbs.iter().any(|v| matches!(v.kind, Pending::Word(_))) {
            self.arbiter.word_until = None; // who waited for that has given up
        }
        match self.aim(now) {
            Some(aim) => self.pursue(now, aim),
            None => self.find_out(now),
        }
    }

    fn aim(&self, now: Nanos) -> Option<Aim> {
        self.arbiter.terms?;
        if self.is_led() {
            return None;
        }
        if self.arbiter.word_until.is_some() {
            return Some(Aim::Learn);
        }
        let busy = self.is_persisting_k() || self.sealing.is_some() || self.arbiter.won.is_some();
        let sound = self.is_sound() && self.damage.is_none() && matches!(self.stage, Stage::Running);
        let leads = self.k.primary == Some(self.site);
        // What was proposed has to be settled also where the policy does not ask for a witness any more.
        let wanted =
            self.superblock.policy.on_peer_loss == OnPeerLoss::Witness || leads && self.arbiter.ballot.is_open();
        if busy || !sound || !wanted {
            return None;
        }
        match leads {
            true => self.primarys_aim(now),
            false => self.followers_aim(now),
        }
    }

    fn primarys_aim(&self, now: Nanos) -> Option<Aim> {
        let Grant { lease_gen: grant, sent } = self.arbiter.grant?;
        let with_peer = self.k.sites.len() > 1;
        // A K that names a lease which is over would stop a primary that the peer confirms.
        let leased = !with_peer || now < self.arbiter.terms().ends(sent);
        let restarted = self.role == Role::Suspended(SuspendReason::Restart);
        match self.role {
            Role::Secondary | Role::Fenced(_) => return None,
            Role::Suspended(SuspendReason::User | SuspendReason::Failed) => return None,
            // What nobody arbitrated is nobody's to resume: a person may have decided otherwise.
            Role::Suspended(SuspendReason::Restart) if self.k.lease_gen == 0 => return None,
            Role::Primary | Role::Suspended(_) => {}
        }
        let may_shrink = self.superblock.policy.on_peer_loss == OnPeerLoss::Witness;
        if may_shrink && with_peer && (self.peer_is_lost(now) || self.a_fellow_is_alone()) {
            return Some(Aim::Shrink);
        }
        let waits_for_peer = with_peer && restarted;
        let settled = self.role == Role::Primary || self.role == Role::Suspended(SuspendReason::LeaseLost) || restarted;
        let can = settled && leased && !waits_for_peer && self.change.is_none() && !self.promotion_pending();
        let names_it = self.k.lease_gen == grant && self.k.leader == self.node;
        // Where nobody knows what became of a proposal, another K at the witness tells.
        let is_unsure = self.arbiter.peer_is_deciding || self.arbiter.ballot.is_open();
        (can && (!names_it || is_unsure)).then_some(Aim::Resume)
    }

    pub(super) fn peer_is_lost(&self, now: Nanos) -> bool {
        let streams = self.link.as_ref().is_some_and(|l| l.hello.is_some() && l.sender.source != Source::Probe);
        // Without an arbitrated K a peer that has nothing to say says nothing.
        let is_silent = !streams || self.k.lease_gen != 0;
        is_silent && now >= self.peer_is_lost_at()
    }

    pub(super) fn peer_is_lost_at(&self) -> Nanos {
        Nanos(self.arbiter.useful.max(self.arbiter.k_since).0.saturating_add(self.peer_loss_ns()))
    }

    fn followers_aim(&self, now: Nanos) -> Option<Aim> {
        let follows = self.k.has(self.site) && self.role == Role::Secondary;
        let fit = follows && self.k.lease_gen != 0 && self.k.mode == Mode::Sync;
        let asked = self.takes_over_by_verb() && !self.may_soon_be_handed_over();
        // A primary that was replaced waits for its successor, which may not know of it.
        let all_fit = self.hindrance().is_none();
        (fit && all_fit && (asked || self.may_become_a_leader(now))).then_some(Aim::TakeOver)
    }

    fn leader_is_lost_at(&self) -> Nanos {
        Nanos(self.arbiter.watch.heard().0.saturating_add(self.peer_loss_ns()))
    }

    /// A leader whose stream broke, or that has missed to ask, is not lost, but its lease may have begun to run out: it is watched
    /// from then on.
    fn leader_is_silent_at(&self) -> Nanos {
        if self.link.is_none() {
            return self.arbiter.watch.heard();
        }
        Nanos(self.arbiter.watch.heard().0.saturating_add(self.confirm_every() * 3 / 2))
    }

    /// The leader is there and says that it does not serve: its copy failed, or it was replaced. It cannot begin to without this
    /// copy or the witness.
    fn leader_is_idle(&self, now: Nanos) -> bool {
        self.leader_is_idle_at().is_some_and(|at| now >= at)
    }

    fn leader_is_idle_at(&self) -> Option<Nanos> {
        // Another member of the primary's site may serve as long as its leader let it before.
        let ns = if self.has_members() { self.arbiter.terms().wait_ns() } else { self.peer_loss_ns() };
        self.arbiter.idle_since.map(|since| Nanos(since.0.saturating_add(ns)))
    }

    pub(super) fn takes_over_by_verb(&self) -> bool {
        self.verbs.iter().any(|v| matches!(v.kind, Pending::TakeOver))
    }

    // ---- asking -------------------------------------------------------------------------------------------------------

    fn ask(&mut self, lane: Lane, question: Question) {
        self.arbiter.next_ask += 1;
        let id = AskId(self.arbiter.next_ask);
        self.arbiter.asked.insert(id, lane);
        self.out.push(Output::Ask(id, question));
    }

    /// What was proposed and is wanted no more: the cell tells what became of it.
    fn find_out(&mut self, now: Nanos) {
        if self.arbiter.terms.is_none() || !self.arbiter.ballot.is_open() || !self.arbiter.ballot.may_ask(now) {
            return;
        }
        let question = self.arbiter.ballot.read();
        let rest = self.retry_ns();
        self.arbiter.ballot.rest_until(Nanos(now.0 + rest));
        self.ask(Lane::Group, question);
    }

    fn pursue(&mut self, now: Nanos, aim: Aim) {
        if aim == Aim::TakeOver && !self.nobody_serves() {
            self.watch_leader(now);
        }
        if aim == Aim::Shrink && planted(Planted::ShrinkWithoutWitness) {
            self.arbiter.won = self.proposal(now, aim, &self.k.clone()).ok().flatten();
            return self.take_office(now);
        }
        if !self.arbiter.ballot.may_ask(now) {
            return;
        }
        let Some(cell) = self.arbiter.ballot.cell(now, self.arbiter.terms().span_ns / 3) else {
            let question = self.arbiter.ballot.read();
            return self.ask(Lane::Group, question);
        };
        if aim == Aim::Learn {
            return;
        }
        if self.arbiter.ballot.is_open() && !self.puts_in_place(aim) {
            if aim != Aim::TakeOver || self.may_take_over(now) {
                let question = self.arbiter.ballot.propose_again();
                self.ask(Lane::Group, question);
            }
            return;
        }
        let is_forgotten = cell.is_none() && self.k.lease_gen != 0;
        let at_witness = cell.filter(|_| !planted(Planted::PromoteWithoutWitness)).unwrap_or(&self.k).clone();
        if is_forgotten {
            return self.is_unfit(now, Unfit::Forgotten, &at_witness);
        }
        match self.proposal(now, aim, &at_witness) {
            Ok(Some(config)) => {
                let question = self.arbiter.ballot.propose(config);
                self.ask(Lane::Group, question);
            }
            Ok(None) => self.watch_leader(now),
            Err(why) => self.is_unfit(now, why, &at_witness),
        }
    }

    /// What was proposed is wanted no more, and something else is: a peer that came back is not left out for that.
    fn puts_in_place(&self, aim: Aim) -> bool {
        let ballot = &self.arbiter.ballot;
        let shrinks = ballot.newest_proposal().is_some_and(|k| k.sites.len() < self.k.sites.len());
        ballot.has_room() && matches!((aim, shrinks), (Aim::Resume, true) | (Aim::Shrink, false))
    }

    fn proposal(&mut self, now: Nanos, aim: Aim, at_witness: &Config) -> Result<Option<Config>, Unfit> {
        let lease_gen = self.arbiter.grant.map_or(0, |grant| grant.lease_gen);
        let proposer = Proposer { site: self.site, node: self.node, nonce: self.new_nonce(), lease_gen };
        let config = match aim {
            Aim::Learn => return Ok(None),
            // A person decided so when the witness could not be asked.
            Aim::Resume if self.is_by_word_alone() => {
                let epoch = self.k.epoch.max(at_witness.epoch);
                proposer.resume(&Config { epoch, ..self.k.clone() }, &self.k)?
            }
            Aim::Resume => proposer.resume(at_witness, &self.k)?,
            Aim::Shrink => proposer.shrink(at_witness, &self.k)?,
            Aim::TakeOver => {
                let at_witness = &self.without_own(at_witness);
                let star = newest(at_witness, &self.k);
                self.arbiter.watch.on_config(star.leader, star.lease_gen);
                let config = proposer.promote(at_witness, &self.k)?;
                self.arbiter.now_fit();
                if !self.may_take_over(now) {
                    return Ok(None);
                }
                Config { generation: GenId(self.rng.id()), ..config }
            }
        };
        Ok(Some(self.above_all(config)))
    }

    /// What the witness holds, but for a K of this site's own that is not in force here: its agent ended before it knew of it, or it
    /// arrived late. Nothing was acknowledged under it, and what was agreed on since is judged instead; only its epoch is taken.
    fn without_own(&self, at_witness: &Config) -> Config {
        match self.is_own(at_witness) {
            true => Config { epoch: at_witness.epoch, ..self.k.clone() },
            false => at_witness.clone(),
        }
    }

    /// A takeover by this site that the witness accepted and that is not in force here.
    fn is_own(&self, at_witness: &Config) -> bool {
        at_witness.primary == Some(self.site) && at_witness.epoch > self.k.epoch
    }

    /// K was made by a person while the witness could not be asked, and no witness has heard of it.
    fn is_by_word_alone(&self) -> bool {
        self.k.forced && self.k.lease_gen == 0
    }

    /// What this copy waits for may be taken: a person or the policy says so, or it was decided already.
    fn may_push(&self, now: Nanos) -> bool {
        let lost = match self.k.primary {
            Some(_) => now >= self.leader_is_lost_at() || self.leader_is_idle(now),
            None => self.has_lost_who_hands_over(now),
        };
        let auto = self.superblock.policy.auto_failover && lost && !self.rests(now);
        let held = self.arbiter.ballot.cell(now, u64::MAX).flatten();
        let is_decided = held.is_some_and(|held| self.is_own(held));
        self.arbiter.grant.is_some() && (auto || self.takes_over_by_verb() || is_decided)
    }

    /// K changed too often by itself: joining S and taking over wait for a person, or for a while without a change (R20).
    pub(super) fn rests(&self, now: Nanos) -> bool {
        self.arbiter.flapping.rests(now)
    }

    fn may_take_over(&self, now: Nanos) -> bool {
        let watch = &self.arbiter.watch;
        let is_over = planted(Planted::TakeOverWithoutRevoking) && watch.ends().is_some_and(|end| now >= end);
        let is_free = self.nobody_serves()
            || watch.may_take_over(now)
            || self.leader_is_idle(now)
            || is_over
            || planted(Planted::TakeOverAtOnce);
        is_free && self.may_push(now)
    }

    /// An epoch that was never proposed here for another K.
    fn above_all(&self, k: Config) -> Config {
        let old = k.epoch;
        let highest = self.arbiter.ballot.highest();
        if old > highest {
            return k;
        }
        let epoch = Epoch { major: highest.major + 1, minor: 0 };
        let raised = |s: Since| if s.epoch == old && s.nonce == k.nonce { Since { epoch, ..s } } else { s };
        Config { epoch, since: raised(k.since), base: raised(k.base), ..k }
    }

    /// What the witness holds forbids it.
    fn is_unfit(&mut self, now: Nanos, why: Unfit, at_witness: &Config) {
        let (least, most) = (self.arbiter.terms().span_ns / 3, MAX_REST_NS);
        self.arbiter.rest_ns = (self.arbiter.rest_ns * 2).clamp(least, most);
        self.arbiter.ballot.rest_until(Nanos(now.0 + self.arbiter.rest_ns));
        let is_news = self.arbiter.unfit.replace(why) != Some(why);
        if why == Unfit::NotPrimary && at_witness.epoch >= self.k.epoch {
            self.alarm("replaced", "the witness names another primary");
            self.fence(now, at_witness.epoch);
        } else if is_news {
            self.alarm("unfit", why.to_string());
        }
    }

    /// Waits for the leader's lease to end, and takes it then.
    fn watch_leader(&mut self, now: Nanos) {
        let asked = self.arbiter.asked.values().any(|lane| *lane == Lane::Lease);
        let due = !asked && self.arbiter.unfit.is_none() && now >= self.arbiter.lease_next;
        let Some(leader) = self.arbiter.watch.target().filter(|_| due) else { return };
        let nonce = self.new_nonce();
        let may_revoke = self.may_push(now) && !planted(Planted::TakeOverWithoutRevoking);
        let revocation = self.arbiter.watch.revocation(now, nonce).filter(|_| may_revoke);
        if let Some(Ask::Change { lease, .. }) = &revocation {
            self.arbiter.revoking = Some(*lease);
        }
        self.arbiter.lease_next = Nanos(now.0 + self.arbiter.terms().span_ns / 10);
        self.ask(Lane::Lease, revocation.unwrap_or(Ask::Read).about(Cell::Lease(leader)));
    }

    // ---- what was decided ---------------------------------------------------------------------------------------------

    /// The witness accepted a K of this site's: it is persisted, unless something newer is in force.
    fn take_office(&mut self, now: Nanos) {
        if self.is_persisting_k() || self.sealing.is_some() || !matches!(self.stage, Stage::Running) {
            return;
        }
        let Some(config) = self.arbiter.won.take() else { return };
        let outdone = matches!(self.role, Role::Fenced(epoch) if epoch >= config.epoch);
        // A takeover that was judged on what both sites have changed since is none (R15 v).
        let is_stale = config.primary != self.k.primary && config.base != self.k.since;
        if outdone || is_stale || config.epoch <= self.k.epoch {
            return;
        }
        if config.primary != self.k.primary {
            self.hang_up_for_promotion();
            self.takeover_decided();
        }
        self.change_lost();
        self.pause(false);
        self.persist_k(now, config, AfterK::Arbitrated);
    }

    /// A K that the witness accepted is in force.
    pub(super) fn on_arbitrated(&mut self, now: Nanos) {
        if matches!(self.role, Role::Secondary | Role::Suspended(SuspendReason::Restart)) {
            self.arbiter.waits_to_open = !self.has_written();
            self.arbiter.gave_way = false;
            self.begin_opening();
        }
        self.greet();
        self.match_peer(now);
        // What is sent before the peer has persisted this K would be refused for the older one.
        let tells = self.link.as_ref().is_some_and(|l| l.telling == Some(self.k.id()));
        self.pause(tells);
    }

    /// The generation of K holds more than the beginnings of its incarnations: it served.
    fn has_written(&self) -> bool {
        let mut own = self.history.entries().iter().filter(|e| e.generation == self.k.generation);
        let Some(first) = own.next() else { return false };
        self.log.end().position.lsn.since(first.fork) > 1 + own.count() as u64
    }

    /// The next moment at which the clock alone changes something here.
    pub(super) fn arbiter_timeout(&self) -> Option<Nanos> {
        let arbiter = &self.arbiter;
        if arbiter.terms.is_none() && self.k.lease_gen == 0 {
            return None;
        }
        let primary = self.k.primary == Some(self.site);
        let ends = match (self.role, self.serves_until()) {
            (Role::Primary, Serves::Until(end)) => Some(end),
            _ => None,
        };
        let confirms = (self.k.lease_gen != 0 && primary && self.link.is_some()).then_some(arbiter.confirm_next);
        let opens = (self.opening.is_some() && arbiter.waits_to_open).then(|| arbiter.watch.opens());
        let lost = match primary {
            true => self.peer_is_lost_at(),
            false if self.leader_is_silent_at() > self.looked_at => self.leader_is_silent_at(),
            false => self.leader_is_lost_at(),
        };
        let is_witnessed = arbiter.terms.is_some() && self.superblock.policy.on_peer_loss == OnPeerLoss::Witness;
        let lost = is_witnessed.then_some(lost);
        let asks = is_witnessed.then(|| arbiter.ballot.poll_timeout()).flatten();
        let lease = is_witnessed.then_some(arbiter.lease_next);
        let over = is_witnessed.then(|| arbiter.watch.ends()).flatten();
        let idle = self.leader_is_idle_at().filter(|_| is_witnessed && !primary);
        let word = arbiter.word_until;
        let rested = arbiter.flapping.rests_until();
        let rereads = is_witnessed.then(|| arbiter.ballot.stale_at(arbiter.terms().span_ns / 3)).flatten();
        [ends, confirms, opens, lost, asks, lease, over, idle, word, rested, rereads]
            .into_iter()
            .flatten()
            .filter(|at| *at > self.looked_at)
            .min()
    }
}
