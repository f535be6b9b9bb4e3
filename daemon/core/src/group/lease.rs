//! Leases (R16): until when the site that is the primary may serve without asking, and from when on another may take over.
//!
//! ```text
//! holder      Unknown --read--> At(cell) --change--> held under a grant --renewed--> held ...
//!                ^                  ^                        |
//!                +---- no answer ---+------ another grant ---+  (revoked: taken anew, under a new grant)
//!
//! challenger  watching --quiet for the wait--> revoking --committed--> revoked: K may be changed
//!                ^                                 |
//!                +-- a sign of life, another K ----+
//! ```
//!
//! No two clocks are compared. The holder counts from when it *sent* what was answered, on its own clock, and the challenger
//! from the last sign of life, on its own; clocks whose rates differ by less than 2 % then agree on who may serve. What a lease
//! cannot do is to keep writes apart: that is K's work, also when every clock is wrong.
//!
//! Decides nothing about K. The owner passes answers in, and asks the witness what [`Holder::poll`] and [`Watch::revocation`]
//! return; a nonce that it passes must be a new one each time.

use crate::event::{CellChange, Question, WitnessAnswer};
use crate::format::witness::{Cell as CellId, Content, Lease};
use crate::group::flapping::Calm;
use crate::group::witness::{Found, Revision};
use crate::planted::{Planted, planted};
use crate::types::{Nanos, NodeId, Nonce};

/// Changes without an answer that are remembered. One that is forgotten extends no lease, which is safe.
const MAX_UNSURE: usize = 4;

/// The longest span that is believed: what a peer or a cell says beyond it would keep a site from ever taking over.
pub const MAX_SPAN_MS: u64 = 600_000;

/// The times of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Terms {
    /// D: how long a renewal lasts, counted by its holder from when it was sent. The same at both sites: see [`Watch`].
    pub span_ns: u64,
    /// When the group rests from changing (R20).
    pub calm: Calm,
}

impl Terms {
    /// The shortest span.
    pub const MIN_SPAN_NS: u64 = 1_000_000_000;
    /// Clocks may run apart by 2 %, and what was sent has to be received: added to what a challenger waits.
    const MARGIN_NS: u64 = 1_000_000_000;

    /// Terms of `span_ns`.
    ///
    /// # Panics
    /// Below [`Self::MIN_SPAN_NS`]: a configuration is checked before.
    pub fn new(span_ns: u64) -> Self {
        assert!(span_ns >= Self::MIN_SPAN_NS, "a lease of {span_ns} ns");
        Self { span_ns, calm: Calm::default() }
    }

    /// D in milliseconds, rounded up.
    pub fn span_ms(self) -> u64 {
        self.span_ns.div_ceil(1_000_000)
    }

    /// What a challenger waits after the last sign of life: D * 1.02 + 1 s.
    pub fn wait_ns(self) -> u64 {
        self.span_ns.saturating_add(self.span_ns / 50).saturating_add(Self::MARGIN_NS)
    }

    /// Between two renewals.
    fn renewal_ns(self) -> u64 {
        self.span_ns / 3
    }

    /// Before a witness that did not answer is asked again: a tenth of the span, and up to as much more, so that agents do not come
    /// all at once.
    pub fn retry_ns(self, nonce: Nonce) -> u64 {
        let tenth = self.span_ns / 10;
        tenth + tenth * u64::from(nonce.0[0]) / 256
    }

    /// Until when a renewal or a heartbeat that was sent at `sent` counts for its sender.
    pub fn ends(self, sent: Nanos) -> Nanos {
        Nanos(sent.0.saturating_add(self.span_ns))
    }
}

/// What to ask of the witness about a lease cell.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Ask {
    /// Read it.
    Read,
    /// Change it.
    Change {
        /// The revision that it was read at; `None`: it does not exist.
        expected: Option<Revision>,
        /// To this.
        lease: Lease,
    },
}

impl Ask {
    /// As it is put to the witness, about `cell`.
    pub fn about(self, cell: CellId) -> Question {
        let change = match self {
            Self::Read => None,
            Self::Change { expected, lease } => Some(CellChange { expected, content: Content::Lease(lease) }),
        };
        Question { cell, change }
    }
}

/// What the witness answered.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// The change was made.
    Committed(Revision),
    /// The cell holds this: the answer to a read, or to a change that was refused.
    Holds(Option<(Lease, Revision)>),
    /// Nothing certain. The change may have been made or be made yet.
    Lost,
}

impl From<WitnessAnswer> for Answer {
    /// A cell of another kind is nothing certain.
    fn from(answer: WitnessAnswer) -> Self {
        match answer {
            WitnessAnswer::Committed(revision) => Self::Committed(revision),
            WitnessAnswer::Holds(None) => Self::Holds(None),
            WitnessAnswer::Holds(Some(Found { content: Content::Lease(lease), revision })) => {
                Self::Holds(Some((lease, revision)))
            }
            WitnessAnswer::Holds(Some(_)) | WitnessAnswer::Lost => Self::Lost,
        }
    }
}

/// What is known of the cell.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Cell {
    Unknown,
    At(Option<(Lease, Revision)>),
}

/// A change of this agent, and when it was sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Sent {
    at: Nanos,
    lease: Lease,
}

/// What was asked and is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Asked {
    Read,
    Change(Sent),
}

/// An agent's own lease.
///
/// Invariants: at most one question is open; a renewal counts from when it was sent, and only under the grant that it was made
/// under; after the agent learnt of a revocation nothing older counts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Holder {
    terms: Terms,
    cell: Cell,
    asked: Option<Asked>,
    unsure: Vec<Sent>,
    /// The grant that is held, and when its newest renewal was sent.
    held: Option<(u64, Nanos)>,
    /// Nothing is asked before.
    next: Nanos,
}

impl Holder {
    /// An agent that has just started: it holds nothing, whatever it held before.
    pub fn new(terms: Terms) -> Self {
        Self { terms, cell: Cell::Unknown, asked: None, unsure: Vec::new(), held: None, next: Nanos(0) }
    }

    /// The grant that is held; a K that is made now has to name it.
    pub fn grant(&self) -> Option<u64> {
        self.held.map(|(grant, _)| grant)
    }

    /// The same, and when its newest renewal was sent.
    pub fn held(&self) -> Option<(u64, Nanos)> {
        self.held
    }

    /// Until when the lease lets a group serve whose K names `lease_gen`; `None`: it does not.
    pub fn valid_until(&self, lease_gen: u64) -> Option<Nanos> {
        self.held.filter(|(grant, _)| *grant == lease_gen).map(|(_, sent)| self.terms.ends(sent))
    }

    /// When to poll next; `None` while an answer is awaited.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        self.asked.is_none().then_some(self.next)
    }

    /// What to ask now, to be answered by [`Self::on_answer`] whatever comes of it.
    pub fn poll(&mut self, now: Nanos, nonce: Nonce) -> Option<Ask> {
        if self.asked.is_some() || now < self.next {
            return None;
        }
        let Cell::At(found) = &self.cell else {
            self.asked = Some(Asked::Read);
            return Some(Ask::Read);
        };
        let old = found.as_ref().map(|(lease, _)| *lease).unwrap_or_default();
        let old = Lease { span_ms: self.terms.span_ms(), ..old };
        let lease = match self.grant() {
            Some(grant) if grant == old.lease_gen => old.renewed(nonce),
            _ => old.renewed(nonce).revoked(nonce),
        };
        let expected = found.as_ref().map(|(_, revision)| revision.clone());
        self.asked = Some(Asked::Change(Sent { at: now, lease }));
        Some(Ask::Change { expected, lease })
    }

    /// The answer to what was asked.
    pub fn on_answer(&mut self, now: Nanos, answer: Answer) {
        let asked = self.asked.take();
        let sent = match asked {
            Some(Asked::Change(sent)) => Some(sent),
            Some(Asked::Read) | None => None,
        };
        match answer {
            Answer::Committed(revision) => match sent {
                Some(sent) => {
                    let at = if planted(Planted::RenewedFromAnswer) { now } else { sent.at };
                    self.found(Some((sent.lease, revision)), Some(Sent { at, ..sent }));
                }
                None => self.lost(now, None), // not what was asked
            },
            Answer::Holds(found) => {
                let own = found.as_ref().and_then(|(lease, _)| self.own(*lease, sent));
                self.next = now;
                self.found(found, own);
            }
            Answer::Lost => self.lost(now, sent),
        }
    }

    /// The change of this agent that made `lease`, if one did.
    fn own(&self, lease: Lease, asked: Option<Sent>) -> Option<Sent> {
        self.unsure.iter().copied().chain(asked).find(|sent| sent.lease == lease)
    }

    /// The cell holds this, by a change of this agent's `own` or of another's.
    fn found(&mut self, found: Option<(Lease, Revision)>, own: Option<Sent>) {
        let grant = found.as_ref().map(|(lease, _)| lease.lease_gen);
        if self.grant() != grant {
            self.held = None; // revoked, or forgotten by the witness
        }
        if let (Some(grant), Some(own)) = (grant, own) {
            let newest = self.held.map_or(own.at, |(_, before)| before.max(own.at));
            self.held = Some((grant, newest));
            self.next = Nanos(own.at.0.saturating_add(self.terms.renewal_ns()));
        }
        // What is not ahead of the cell expects a revision that is gone: it cannot come any more.
        let counter = found.as_ref().map_or(0, |(lease, _)| lease.counter);
        self.unsure.retain(|sent| sent.lease.counter > counter);
        self.cell = Cell::At(found);
    }

    fn lost(&mut self, now: Nanos, sent: Option<Sent>) {
        if self.unsure.len() == MAX_UNSURE {
            self.unsure.remove(0);
        }
        self.unsure.extend(sent);
        self.cell = Cell::Unknown;
        let nonce = sent.map_or(Nonce::NIL, |sent| sent.lease.writer);
        self.next = Nanos(now.0.saturating_add(self.terms.retry_ns(nonce)));
    }
}

/// What lets a primary serve, by its own clock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Authority {
    /// Until when its lease does, under the grant that K names.
    pub leased_until: Option<Nanos>,
    /// When the last heartbeat was *sent* that the peer echoed, at this K.
    pub echoed: Option<Nanos>,
}

/// How long a primary may serve on what it knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Serves {
    /// Until then, exclusively; then every request waits.
    Until(Nanos),
    /// As long as it lives.
    Unbounded,
}

impl Authority {
    /// With `with_peer` the peer is in S, so that it could be promoted: either sign of life will do. Without it nobody replaces this
    /// site unasked, unless `solo_lease` says that its lease is to end it.
    pub fn serves(&self, terms: Terms, with_peer: bool, solo_lease: bool) -> Serves {
        let leased = self.leased_until.unwrap_or_default();
        let heard = self.echoed.map(|sent| terms.ends(sent)).unwrap_or_default();
        match (with_peer, solo_lease) {
            (false, false) => Serves::Unbounded,
            (_, true) => Serves::Until(leased),
            (true, false) => Serves::Until(leased.max(heard)),
        }
    }
}

/// The wait for another agent's lease to have ended.
///
/// Invariant: a revocation is asked for only after a full wait in which the named leader gave no sign of life.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Watch {
    terms: Terms,
    /// Whose lease, by the newest K that is known.
    target: Option<(NodeId, u64)>,
    /// The cell when it was read last.
    seen: Option<(Lease, Revision)>,
    /// Since when the cell has not changed; `None`: it was not read for this target.
    still_since: Option<Nanos>,
    /// When anything was received from the other site; the own start if nothing was.
    heard: Nanos,
    /// The grant that the target names cannot be renewed any more.
    revoked: bool,
    /// The longest that the other site said it counts on an answer, in milliseconds.
    span_ms: u64,
}

impl Watch {
    /// An agent that starts now: what it may have echoed before it does not know.
    pub fn new(terms: Terms, now: Nanos) -> Self {
        Self { terms, target: None, seen: None, still_since: None, heard: now, revoked: false, span_ms: 0 }
    }

    /// The newest K names this leader and grant. Another one than before: the wait begins anew.
    pub fn on_config(&mut self, leader: NodeId, lease_gen: u64) {
        if self.target != Some((leader, lease_gen)) {
            let (heard, span_ms) = (self.heard, self.span_ms);
            *self = Self { target: Some((leader, lease_gen)), span_ms, ..Self::new(self.terms, heard) };
        }
    }

    /// Anything was received from the other site's leader.
    pub fn on_heard(&mut self, now: Nanos) {
        self.heard = self.heard.max(now);
    }

    /// Whose lease is waited for; `None`: no K was told.
    pub fn target(&self) -> Option<NodeId> {
        self.target.map(|(leader, _)| leader)
    }

    /// When anything was last received from the other site.
    pub fn heard(&self) -> Nanos {
        self.heard
    }

    /// The leader's cell was read; `now` is not before the answer.
    pub fn on_lease(&mut self, now: Nanos, found: Option<(Lease, Revision)>) {
        if self.still_since.is_none() || self.seen != found {
            (self.seen, self.still_since) = (found, Some(now));
        }
    }

    /// When the lease has ended, unless something is heard or seen before; `None`: the cell was not read yet.
    pub fn ends(&self) -> Option<Nanos> {
        let quiet = self.still_since?.max(self.heard);
        Some(Nanos(quiet.0.saturating_add(self.wait_ns())))
    }

    /// The other site says how long it counts on what it is answered.
    pub fn on_span(&mut self, span_ms: u64) {
        self.span_ms = self.span_ms.max(span_ms.min(MAX_SPAN_MS));
    }

    /// What the holder counts on, where that is longer than what is the rule here. An agent that starts anew knows only what the
    /// lease cell says of it.
    fn wait_ns(&self) -> u64 {
        let told = self.seen.as_ref().map_or(0, |(lease, _)| lease.span_ms.min(MAX_SPAN_MS)).max(self.span_ms);
        Terms { span_ns: self.terms.span_ns.max(told * 1_000_000), ..self.terms }.wait_ns()
    }

    fn has_ended(&self, now: Nanos) -> bool {
        self.ends().is_some_and(|end| now >= end)
    }

    /// The change that takes the lease from its holder, once it has ended; a renewal in between makes it fail. `None` too when
    /// there is nothing to take: [`Self::may_take_over`] says whether that is because nothing holds it back.
    pub fn revocation(&self, now: Nanos, nonce: Nonce) -> Option<Ask> {
        let (lease, revision) = self.seen.as_ref()?;
        let (_, grant) = self.target?;
        let is_due = self.has_ended(now) && !self.revoked && grant != 0 && lease.lease_gen == grant;
        is_due.then(|| Ask::Change { expected: Some(revision.clone()), lease: lease.revoked(nonce) })
    }

    /// The revocation was committed.
    pub fn on_revoked(&mut self, lease: Lease, revision: Revision) {
        self.revoked = self.target.is_some_and(|(_, grant)| lease.lease_gen > grant);
        self.seen = Some((lease, revision));
    }

    /// Whether K may be changed, expecting the very K that this watch knows. A grant of 0 was never in the cell: what is heard
    /// alone kept it alive.
    pub fn may_take_over(&self, now: Nanos) -> bool {
        let Some((_, grant)) = self.target else { return false };
        let is_gone = self.seen.as_ref().is_some_and(|(lease, _)| lease.lease_gen > grant);
        self.revoked || (self.has_ended(now) && (grant == 0 || is_gone))
    }

    /// Whether a site that became the primary by a change at the witness may serve: nothing was received, and so nothing echoed,
    /// for a full wait.
    pub fn may_open(&self, now: Nanos) -> bool {
        now >= self.opens()
    }

    /// From when on, if nothing is received any more.
    pub fn opens(&self) -> Nanos {
        Nanos(self.heard.0.saturating_add(self.wait_ns()))
    }
}

#[cfg(test)]
mod tests;
