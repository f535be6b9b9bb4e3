//! Two sites with one agent each, and a witness.
//!
//! A is the primary and B its peer in S. Renewals travel, are carried out and answered in separate steps, any of which may come
//! late or never; so do heartbeats and echoes. Changes of K are carried out at once, and their answer may be lost.

use tidemark_core::config::{Config, Mode, Since};
use tidemark_core::format::witness::Lease;
use tidemark_core::group::arbitrated::{Proposer, newest};
use tidemark_core::group::lease::{Answer, Ask, Authority, Holder, Serves, Terms, Watch};
use tidemark_core::group::witness::Revision;
use tidemark_core::group::{genesis, joint};
use tidemark_core::types::{GenId, Nanos, NodeId, Nonce, SiteId};

use crate::witness::Witness;

const SECOND: u64 = 1_000_000_000;
const A: SiteId = SiteId([1; 16]);
const B: SiteId = SiteId([2; 16]);
const AGENT_A: NodeId = NodeId([1; 16]);
const AGENT_B: NodeId = NodeId([2; 16]);
/// Changes of K that the search follows.
const MAX_MAJOR: u32 = 3;
/// Grant and renewals of the lease together.
const MAX_LEASE: u64 = 4;

/// The rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    Kept,
    NoRevocation,
    ShortWait,
    RenewalFromAnswer,
    HeartbeatFromEcho,
    ResumeWithoutChange,
    NoOpeningWait,
    ShrinkAlone,
    JudgedOnCopy,
}

/// What of A and the network is played; leases and B always are. All of it at once is a search for hours.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Scope {
    /// Heartbeats and their echoes.
    pub beats: bool,
    /// A goes on without B.
    pub shrinks: bool,
    /// A's agent starts anew, once, and resumes; so does one that was revoked.
    pub resumes: bool,
}

/// The promise that is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// A read at one of them may be stale.
    BothServe,
    /// B was promoted without what A had acknowledged alone.
    AcknowledgedLost,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A second passes.
    Tick,
    /// A asks the witness for its lease.
    Send,
    /// The witness carries out what A asked.
    Execute,
    /// A gets the answer.
    Deliver,
    /// A gives up on the answer; what it asked may be carried out later.
    GiveUp,
    /// What A gave up on is carried out.
    ExecuteLate,
    /// A sends a heartbeat.
    Beat,
    /// B receives it, and echoes it when it is of its own K.
    Hear,
    /// A receives the echo.
    Echo,
    /// A looks at K: it adopts its own proposal, or learns that it was replaced.
    ALooks,
    /// A goes on without B. The flag: it learns that the change was made.
    Shrink(bool),
    /// A resumes under its lease.
    Resume(bool),
    /// A's agent starts anew.
    Restart,
    /// B gets A's newer K.
    Adopt,
    /// B reads K.
    BReadsConfig,
    /// B reads A's lease.
    BReadsLease,
    /// B takes A's lease.
    Revoke,
    /// B makes itself the primary.
    Promote,
    /// B serves.
    Open,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct SiteA {
    k: Config,
    holder: Holder,
    /// When the last renewal was answered: for the rule that is left out.
    answered: Nanos,
    echoed: Option<Nanos>,
    /// It did once.
    restarted: bool,
    /// Restarted and not resumed.
    suspended: bool,
    fenced: bool,
    /// A change of K whose answer it did not get.
    proposed: Option<Config>,
    /// It served with S = {A}.
    acknowledged_alone: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct SiteB {
    k: Config,
    watch: Watch,
    read: Option<(Config, u64)>,
    opened: bool,
}

/// What is under way.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Network {
    asked: Option<Ask>,
    answer: Option<Answer>,
    late: Option<Ask>,
    beat: Option<(Nanos, Since)>,
    echo: Option<Nanos>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    rule: Rule,
    scope: Scope,
    now: Nanos,
    witness: Witness,
    a: SiteA,
    b: SiteB,
    network: Network,
}

/// A lease of one second; where the wait is to be shorter, it has to last longer than the margin of a wait.
fn terms(rule: Rule) -> Terms {
    Terms::new(if rule == Rule::ShortWait { 2 * SECOND } else { SECOND })
}

fn nonce(of: u8, n: u64) -> Nonce {
    let mut bytes = [of; 16];
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    Nonce(bytes)
}

impl World {
    /// A serves under its first lease, B is in S.
    pub fn new(rule: Rule, scope: Scope) -> Self {
        let terms = terms(rule);
        let lease = Lease { lease_gen: 1, counter: 1, writer: nonce(1, 0), span_ms: terms.span_ns / 1_000_000 };
        let mut holder = Holder::new(terms);
        let _ = holder.poll(Nanos(0), Nonce::NIL); // the read that finds nothing
        holder.on_answer(Nanos(0), Answer::Holds(None));
        let _ = holder.poll(Nanos(0), lease.writer); // the change that makes this lease
        holder.on_answer(Nanos(0), Answer::Committed(Revision::Counted(1)));
        let alone = genesis(A, AGENT_A, nonce(0, 1), GenId([1; 16]), Mode::Sync);
        let k = Config { lease_gen: 1, ..joint(&alone, AGENT_A, nonce(0, 2), Some(A), vec![A, B], Mode::Sync) };
        let watched = if rule == Rule::ShortWait { Terms { span_ns: 0, ..terms } } else { terms };
        Self {
            rule,
            scope,
            now: Nanos(0),
            witness: Witness { k: k.clone(), k_revision: 1, lease: Some(lease), lease_revision: 1 },
            a: SiteA {
                k: k.clone(),
                holder,
                answered: Nanos(0),
                echoed: None,
                restarted: false,
                suspended: false,
                fenced: false,
                proposed: None,
                acknowledged_alone: false,
            },
            b: SiteB { k, watch: Watch::new(watched, Nanos(0)), read: None, opened: false },
            network: Network::default(),
        }
    }

    /// What may happen next.
    pub fn steps(&self, seconds: u64) -> Vec<Step> {
        use Step::*;
        if self.b.opened {
            // B is the primary for good: what is left is what A does meanwhile.
            return [Tick, Deliver, Echo].into_iter().filter(|step| self.may(*step, seconds)).collect();
        }
        if self.a.fenced {
            return [Tick, Open].into_iter().filter(|step| self.may(*step, seconds)).collect();
        }
        let all = [
            Tick,
            Send,
            Execute,
            Deliver,
            GiveUp,
            ExecuteLate,
            Beat,
            Hear,
            Echo,
            ALooks,
            Shrink(true),
            Shrink(false),
            Resume(true),
            Resume(false),
            Restart,
            Adopt,
            BReadsConfig,
            BReadsLease,
            Revoke,
            Promote,
            Open,
        ];
        all.into_iter().filter(|step| self.may(*step, seconds)).collect()
    }

    fn may(&self, step: Step, seconds: u64) -> bool {
        let (a, b, network) = (&self.a, &self.b, &self.network);
        let k_has_room = self.witness.k.epoch.major < MAX_MAJOR;
        match step {
            Step::Tick => self.now.0 < seconds * SECOND,
            Step::Send => {
                a.holder.poll_timeout().is_some_and(|next| next <= self.now)
                    && self.witness.lease.is_none_or(|lease| lease.counter + lease.lease_gen < MAX_LEASE)
            }
            Step::Execute => network.asked.is_some(),
            Step::Deliver => network.answer.is_some(),
            Step::GiveUp => network.asked.is_some() || network.answer.is_some(),
            Step::ExecuteLate => network.late.is_some(),
            Step::Beat => self.scope.beats && !a.fenced && network.beat.is_none(),
            Step::Hear => network.beat.is_some(),
            Step::Echo => network.echo.is_some(),
            Step::ALooks => !a.fenced && self.witness.k.id() != a.k.id(),
            Step::Shrink(_) => {
                self.scope.shrinks
                    && !a.fenced
                    && !a.suspended
                    && a.proposed.is_none()
                    && a.k.sites.len() == 2
                    && k_has_room
            }
            Step::Resume(_) => {
                let names_another = a.holder.grant().is_some_and(|grant| grant != a.k.lease_gen);
                self.scope.resumes
                    && !a.fenced
                    && a.proposed.is_none()
                    && (a.suspended || names_another)
                    && k_has_room
                    && a.holder.grant().is_some()
            }
            Step::Restart => self.scope.resumes && !a.fenced && !a.restarted,
            Step::Adopt => b.k.primary == Some(A) && a.k.epoch > b.k.epoch && a.k.since == b.k.since,
            Step::BReadsConfig => {
                b.k.primary == Some(A) && b.read.as_ref().map(|read| read.1) != Some(self.witness.k_revision)
            }
            Step::BReadsLease => b.k.primary == Some(A) && b.read.is_some(),
            Step::Revoke => b.read.is_some() && b.watch.revocation(self.now, Nonce::NIL).is_some(),
            Step::Promote => b.k.primary == Some(A) && b.read.is_some() && self.b_may_take_over() && k_has_room,
            Step::Open => b.k.primary == Some(B) && (self.rule == Rule::NoOpeningWait || b.watch.may_open(self.now)),
        }
    }

    fn b_may_take_over(&self) -> bool {
        match self.rule {
            // As if it had been taken: the wait alone has to do.
            Rule::NoRevocation => self.b.watch.ends().is_some_and(|end| self.now >= end),
            _ => self.b.watch.may_take_over(self.now),
        }
    }

    pub fn play(&mut self, step: Step) {
        match step {
            Step::Tick => self.now.0 += SECOND,
            Step::Send => {
                // Another name than that of the change which may come yet.
                let is_again = u64::from(self.network.late.is_some());
                let writer = nonce(1, self.witness.lease_revision * 2 + is_again);
                self.network.asked = self.a.holder.poll(self.now, writer);
                if self.network.asked == Some(Ask::Read) {
                    // What a slow read would tell is told by the change after it.
                    self.network.asked = None;
                    self.a.holder.on_answer(self.now, Answer::Holds(self.witness.holds()));
                }
            }
            Step::Execute => self.network.answer = self.network.asked.take().map(|ask| self.witness.ask(&ask)),
            Step::Deliver => self.deliver(),
            Step::GiveUp => {
                self.network.late = self.network.asked.take();
                self.network.answer = None;
                self.a.holder.on_answer(self.now, Answer::Lost);
            }
            Step::ExecuteLate => drop(self.network.late.take().map(|ask| self.witness.ask(&ask))),
            Step::Beat => self.network.beat = Some((self.now, self.a.k.id())),
            Step::Hear => self.hear(),
            Step::Echo => self.echo(),
            Step::ALooks => self.a_looks(),
            Step::Shrink(learns) => self.shrink(learns),
            Step::Resume(learns) => self.resume(learns),
            Step::Restart => self.restart(),
            Step::Adopt => self.b.k = self.a.k.clone(),
            Step::BReadsConfig => self.b_reads_config(),
            Step::BReadsLease => {
                let mut found = self.witness.holds();
                if let (Rule::ShortWait, Some((lease, _))) = (self.rule, &mut found) {
                    lease.span_ms = 0; // as if the cell did not say how long its holder counts on it
                }
                self.b.watch.on_lease(self.now, found);
            }
            Step::Revoke => self.revoke(),
            Step::Promote => self.promote(),
            Step::Open => self.b.opened = true,
        }
        self.a.acknowledged_alone |= self.a_serves() && self.a.k.sites == [A];
        self.forget_what_is_void();
    }

    /// What makes no difference any more, so that equal futures are one state.
    fn forget_what_is_void(&mut self) {
        let revision = self.witness.holds().map(|(_, revision)| revision);
        let is_void = |ask: &Ask| matches!(ask, Ask::Change { expected, .. } if *expected != revision);
        self.network.late = self.network.late.take().filter(|ask| !is_void(ask));
        self.network.echo = self.network.echo.filter(|sent| Some(*sent) > self.a.echoed);
        self.network.beat = self.network.beat.filter(|(sent, _)| Some(*sent) > self.a.echoed);
        if self.rule != Rule::HeartbeatFromEcho {
            let lasts = |sent: &Nanos| sent.0 + terms(self.rule).span_ns > self.now.0;
            self.a.echoed = self.a.echoed.filter(lasts);
        }
        if self.rule != Rule::RenewalFromAnswer {
            self.a.answered = Nanos(0);
        }
    }

    fn deliver(&mut self) {
        let Some(answer) = self.network.answer.take() else { return };
        if matches!(answer, Answer::Committed(_)) {
            self.a.answered = self.now;
        }
        self.a.holder.on_answer(self.now, answer);
    }

    fn hear(&mut self) {
        let Some((sent, of)) = self.network.beat.take() else { return };
        self.b.watch.on_heard(self.now);
        if of == self.b.k.id() {
            self.network.echo = Some(sent);
        }
    }

    fn echo(&mut self) {
        let Some(sent) = self.network.echo.take() else { return };
        let counts = if self.rule == Rule::HeartbeatFromEcho { self.now } else { sent };
        self.a.echoed = self.a.echoed.max(Some(counts));
        self.a.suspended = false; // the peer has the same K, and is not the primary
    }

    fn proposer(&self, site: SiteId) -> Proposer {
        let (node, of) = if site == A { (AGENT_A, 3) } else { (AGENT_B, 4) };
        let lease_gen = if site == A { self.a.holder.grant().unwrap_or_default() } else { 0 };
        Proposer { site, node, nonce: nonce(of, self.witness.k_revision), lease_gen }
    }

    /// A's change of K at the witness, which it expects as it is now.
    fn a_changes(&mut self, k: Config, learns: bool) {
        self.witness.change(k.clone());
        if learns {
            self.a_adopts(k);
        } else {
            self.a.proposed = Some(k);
        }
    }

    fn a_adopts(&mut self, k: Config) {
        self.a.proposed = None;
        self.a.suspended = false;
        self.a.echoed = None; // of another K
        self.network.echo = None;
        self.a.k = k;
    }

    fn shrink(&mut self, learns: bool) {
        let proposer = self.proposer(A);
        if let Ok(k) = proposer.shrink(&self.witness.k, &self.a.k) {
            match self.rule {
                Rule::ShrinkAlone => self.a_adopts(k),
                _ => self.a_changes(k, learns),
            }
        }
    }

    fn resume(&mut self, learns: bool) {
        let proposer = self.proposer(A);
        match proposer.resume(&self.witness.k, &self.a.k) {
            Ok(_) if self.rule == Rule::ResumeWithoutChange => self.a.suspended = false,
            Ok(k) => self.a_changes(k, learns),
            Err(_) => self.a.fenced = true,
        }
    }

    fn a_looks(&mut self) {
        let k = self.witness.k.clone();
        if k.primary != Some(A) {
            self.a.fenced = true;
        } else if self.a.proposed.as_ref().map(Config::id) == Some(k.id()) {
            self.a_adopts(k);
        }
    }

    fn restart(&mut self) {
        self.a.holder = Holder::new(terms(self.rule));
        (self.a.echoed, self.a.proposed) = (None, None);
        (self.a.restarted, self.a.suspended) = (true, true);
        self.a.answered = Nanos(0);
        let late = self.network.asked.take();
        self.network = Network { late: late.or(self.network.late.take()), ..Network::default() };
    }

    fn b_reads_config(&mut self) {
        let star = newest(&self.witness.k, &self.b.k);
        self.b.watch.on_config(star.leader, star.lease_gen);
        self.b.read = Some((self.witness.k.clone(), self.witness.k_revision));
    }

    fn revoke(&mut self) {
        let Some(ask) = self.b.watch.revocation(self.now, nonce(2, self.witness.lease_revision)) else { return };
        let answer = self.witness.ask(&ask);
        match (ask, answer) {
            (Ask::Change { lease, .. }, Answer::Committed(revision)) => self.b.watch.on_revoked(lease, revision),
            (_, Answer::Holds(found)) => self.b.watch.on_lease(self.now, found),
            _ => {}
        }
    }

    fn promote(&mut self) {
        let Some((read, revision)) = self.b.read.clone() else { return };
        let judged_on = if self.rule == Rule::JudgedOnCopy { self.b.k.clone() } else { read };
        let proposed = self.proposer(B).promote(&judged_on, &self.b.k);
        let expected = if self.rule == Rule::JudgedOnCopy { self.witness.k_revision } else { revision };
        match proposed {
            Ok(k) if expected == self.witness.k_revision => {
                self.witness.change(k.clone());
                self.b.k = k;
            }
            _ => self.b.read = None, // it reads again
        }
    }

    /// Whether A answers reads and acknowledges flushes now.
    fn a_serves(&self) -> bool {
        if self.a.fenced || self.a.suspended {
            return false;
        }
        let holder = &self.a.holder;
        let named = match self.rule {
            Rule::ResumeWithoutChange => holder.grant().unwrap_or_default(),
            _ => self.a.k.lease_gen,
        };
        let mut leased_until = holder.valid_until(named);
        if self.rule == Rule::RenewalFromAnswer && leased_until.is_some() {
            leased_until = Some(Nanos(self.a.answered.0 + terms(self.rule).span_ns));
        }
        let authority = Authority { leased_until, echoed: self.a.echoed };
        authority.serves(terms(self.rule), self.a.k.has(B), false) > Serves::Until(self.now)
    }

    /// The first promise that this state breaks.
    pub fn broken(&self) -> Option<Broken> {
        match self.b.opened {
            true if self.a.acknowledged_alone => Some(Broken::AcknowledgedLost),
            true if self.a_serves() => Some(Broken::BothServe),
            _ => None,
        }
    }
}

/// What has to have happened for a search to show anything.
#[derive(Clone, Copy, Default)]
pub struct Seen {
    opened: bool,
    frozen: bool,
    shrunk: bool,
    resumed: bool,
    fenced: bool,
}

impl Seen {
    pub fn note(&mut self, world: &World) {
        self.opened |= world.b.opened;
        self.frozen |= !world.a_serves() && !world.a.suspended && !world.a.fenced;
        self.shrunk |= world.a_serves() && !world.a.k.has(B);
        self.resumed |= world.a_serves() && world.a.k.has(B) && world.a.k.epoch.major > 1;
        self.fenced |= world.a.fenced;
    }

    pub fn named(self) -> [(&'static str, bool); 5] {
        [
            ("a promotion", self.opened),
            ("a freeze", self.frozen),
            ("a shrink", self.shrunk),
            ("a resume", self.resumed),
            ("a fence", self.fenced),
        ]
    }
}
