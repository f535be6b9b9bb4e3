//! Who may serve: by the lease, by what the peer confirms, and after a takeover (R16).

use super::{Grant, Node, Planted, planted};
use crate::config::Since;
use crate::event::Output;
use crate::group::lease::{Authority, Serves};
use crate::ship::Message;
use crate::ship::sender::Source;
use crate::status::{Role, SuspendReason};
use crate::types::Nanos;

impl Node {
    pub(in crate::node) fn on_lease(&mut self, grant: Option<Grant>) {
        self.arbiter.grant = grant;
    }

    /// Anything came from the peer.
    pub(in crate::node) fn heard_peer(&mut self, now: Nanos) {
        self.arbiter.watch.on_heard(now);
        let streams = self.link.as_ref().is_some_and(|l| l.sender.source != Source::Probe);
        if streams && self.link_refused.is_none() {
            self.arbiter.useful = now;
        }
    }

    /// The primary asks whether this copy holds its K: only then it cannot have been replaced by it.
    pub(in crate::node) fn on_confirm(&mut self, k: Since, stamp: u64, span_ms: u64) {
        self.arbiter.watch.on_span(span_ms);
        self.arbiter.idle_since = None; // who asks leads
        if k == self.k.id() && !self.is_persisting_k() {
            let undecided = self.arbiter.is_deciding();
            self.send(Message::Confirmed { stamp, undecided });
        }
    }

    pub(in crate::node) fn on_confirmed(&mut self, now: Nanos, stamp: u64, undecided: bool) {
        let arbiter = &mut self.arbiter;
        arbiter.peer_is_deciding = undecided;
        let sent = Nanos(stamp);
        if (arbiter.k_since..=now).contains(&sent) {
            let counted = if planted(Planted::ConfirmedFromAnswer) { now } else { sent };
            arbiter.confirmed = arbiter.confirmed.max(Some(counted));
        }
    }

    pub(in crate::node) fn serves_until(&self) -> Serves {
        if let Some(serves) = self.led_until() {
            return serves;
        }
        if self.k.lease_gen == 0 || planted(Planted::ServeWithoutLease) {
            return Serves::Unbounded;
        }
        let arbiter = &self.arbiter;
        let is_named = |grant: &Grant| grant.lease_gen == self.k.lease_gen && self.k.leader == self.node;
        let counts = |grant: &Grant| is_named(grant) || planted(Planted::AnyGrantServes);
        let grant = arbiter.grant.filter(counts);
        let leased_until = grant.map(|grant| arbiter.terms().ends(grant.sent));
        let authority = Authority { leased_until, echoed: arbiter.confirmed };
        authority.serves(arbiter.terms(), self.k.sites.len() > 1, false)
    }

    /// Nobody can have taken over from this primary unnoticed.
    pub(in crate::node) fn may_serve(&self, now: Nanos) -> bool {
        match self.serves_until() {
            Serves::Unbounded => true,
            Serves::Until(end) => now < end,
        }
    }

    /// A primary whose lease is over stops at once; it goes on when it is not.
    pub(in crate::node) fn watch_authority(&mut self, now: Nanos) {
        let serves = self.may_serve(now);
        match self.role {
            Role::Primary if !serves => {
                self.alarm("lease_lost", "neither the witness nor the peer has answered for as long as a lease lasts");
                self.set_role(Role::Suspended(SuspendReason::LeaseLost));
            }
            Role::Suspended(SuspendReason::LeaseLost) if serves => self.serve_again(now),
            _ => {}
        }
    }

    /// A site that took over serves when the old primary can have nothing left to serve on: what it counts on is over, or it says
    /// that it does not serve.
    pub(in crate::node) fn may_open(&self, now: Nanos) -> bool {
        !self.arbiter.waits_to_open || self.arbiter.gave_way || self.arbiter.watch.may_open(now)
    }

    /// The peer greets and says whether it serves.
    pub(in crate::node) fn heard_whether_it_serves(&mut self, now: Nanos, is_primary: bool) {
        // That its leader does not serve says nothing of the other members of that site.
        self.arbiter.gave_way = self.arbiter.waits_to_open && !is_primary && !self.has_members();
        self.arbiter.idle_since = if is_primary { None } else { self.arbiter.idle_since.or(Some(now)) };
    }

    /// Nobody says any more whether the peer serves.
    pub(in crate::node) fn lost_peer(&mut self) {
        self.arbiter.idle_since = None;
    }

    pub(in crate::node) fn opened(&mut self) {
        self.arbiter.waits_to_open = false;
    }

    pub(super) fn pump_confirm(&mut self, now: Nanos) {
        let Some(link) = self.link.as_ref().filter(|l| l.hello.is_some() && self.k.has(l.site)) else { return };
        let conn = link.conn;
        if self.k.lease_gen == 0 || !self.leads() || now < self.arbiter.confirm_next {
            return;
        }
        let message = Message::Confirm { k: self.k.id(), stamp: now.0, span_ms: self.arbiter.terms().span_ms() };
        self.out.push(Output::Send(conn, message));
        self.arbiter.confirm_next = Nanos(now.0 + self.confirm_every());
    }

    /// Often enough that neither a lease nor a peer is thought lost for one answer that came late.
    pub(super) fn confirm_every(&self) -> u64 {
        (self.arbiter.terms().span_ns / 4).min(self.peer_loss_ns() / 4)
    }

    pub(super) fn peer_loss_ns(&self) -> u64 {
        self.superblock.policy.peer_loss_ms.saturating_mul(1_000_000)
    }
}
