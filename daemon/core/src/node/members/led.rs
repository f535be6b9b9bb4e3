//! A member that does not lead: it takes K from its leader, becomes what it is asked to be, and serves on a sub-lease (3a).

use crate::config::Config;
use crate::event::ConnId;
use crate::group::lease::Serves;
use crate::node::meta::AfterK;
use crate::node::{Node, Stage};
use crate::planted::{Planted, planted};
use crate::site::{Lasts, Order, Readiness, SiteMessage, SubLease};
use crate::status::{Role, SuspendReason};
use crate::types::Nanos;
use crate::verb::{Verb, VerbError};

/// Answers that are kept: of the K in force, and of one that is being persisted.
const LEASES: usize = 2;
/// A leader that did not answer is asked again after this time.
const ASK_AGAIN_MS: u64 = 250;

impl Node {
    pub(super) fn on_order(&mut self, conn: ConnId, order: Box<Order>) {
        let Some(led) = self.led_mut().filter(|led| led.conn == Some(conn)) else { return };
        // Asked under the new K, it is answered by the time that is in force here.
        if led.order.as_ref().is_none_or(|old| old.k.id() != order.k.id()) {
            led.ask_next = Nanos::default();
        }
        led.order = Some(order);
    }

    pub(super) fn pump_led(&mut self, now: Nanos) {
        if let Some(order) = self.led().and_then(|led| led.order.clone()) {
            self.obey(now, &order);
        }
        self.ask_to_serve(now);
        let ready = self.led().and_then(|led| led.ready);
        let report = Box::new(self.report(now, ready));
        let Some(led) = self.led_mut() else { return };
        let Some(conn) = led.conn.filter(|_| led.reported.as_ref() != Some(&report)) else { return };
        led.reported = Some(report.clone());
        self.tell_site(conn, SiteMessage::Report(report));
    }

    fn obey(&mut self, now: Nanos, order: &Order) {
        if self.superblock.policy != order.policy {
            self.superblock.policy = order.policy;
            self.save_superblock(now);
        }
        if order.k.epoch > self.k.epoch {
            if self.may_take(&order.k) {
                self.persist_k(now, order.k.clone(), AfterK::Led);
            }
        } else if order.k.id() == self.k.id() && !self.is_persisting_k() {
            self.become_wanted(now, order);
        }
    }

    /// K may be persisted now. What was written here under a K that another site replaces is judged and sealed before, while this
    /// copy's own K still says who wrote it.
    fn may_take(&self, k: &Config) -> bool {
        if self.is_persisting_k() || self.sealing.is_some() || !matches!(self.stage, Stage::Running) || self.failed {
            return false;
        }
        if self.diverged.is_some() && !self.reseed_wanted {
            return false;
        }
        let is_own = self.members.as_deref().is_some_and(|site| site.membership.nodes.contains(&k.proposer));
        if is_own || k.primary == Some(self.site) || self.is_no_prefix() {
            return true;
        }
        // Who follows a primary seals under its K what that does not have.
        if !self.was_primary() && k.primary.is_some() {
            return true;
        }
        let hello = self.link.as_ref().and_then(|l| l.hello.as_deref()).filter(|h| h.config.epoch >= k.epoch);
        hello.is_some_and(|hello| {
            let is_within = k.primary.is_none() || self.log.end().position.lsn <= hello.tail.position.lsn;
            is_within && self.parted_at(hello).is_none()
        })
    }

    /// The K of this site's leader is in force here.
    pub(in crate::node) fn on_led(&mut self, now: Nanos) {
        if let Some(led) = self.led_mut() {
            (led.ready, led.drains) = (None, None);
        }
        match self.k.primary == Some(self.site) {
            true => self.named_primary(),
            false => {
                self.lead_no_more();
                self.step_down();
            }
        }
        self.link_refused = None;
        if let Some(link) = &mut self.link {
            link.told = None;
        }
        self.greet();
        self.match_peer(now);
    }

    // ---- readiness ----------------------------------------------------------------------------------------------------

    fn become_wanted(&mut self, now: Nanos, order: &Order) {
        let Some((id, wanted)) = order.wanted else { return self.not_wanted(now) };
        if let Readiness::Drained { force } = wanted {
            self.drain_as_wanted(force);
        }
        self.hasten(wanted);
        let is_ready = self.is_ready(wanted);
        if let Some(led) = self.led_mut() {
            led.ready = match wanted {
                // Who stopped answering alone does so until it is told otherwise.
                Readiness::Held if led.ready == Some(id) => Some(id),
                _ => is_ready.then_some(id),
            };
        }
    }

    /// It was asked to stop serving, and has.
    pub(in crate::node) fn drains_as_led(&self) -> bool {
        self.led().is_some_and(|led| led.drains.is_some())
    }

    fn drain_as_wanted(&mut self, force: bool) {
        if self.role.serves() && self.role != Role::Suspended(SuspendReason::User) {
            if force {
                self.stop_serving();
            }
            let served = self.served();
            self.opening = None;
            self.set_role(Role::Suspended(SuspendReason::User));
            if let Some(led) = self.led_mut() {
                led.drains = Some(served);
            }
        }
    }

    /// Nothing is asked of it any more: it goes on as before.
    pub(super) fn not_wanted(&mut self, now: Nanos) {
        let Some(led) = self.led_mut() else { return };
        led.ready = None;
        let drained = led.drains.take().filter(|_| self.role == Role::Suspended(SuspendReason::User));
        match drained {
            Some(true) => self.serve_again(now),
            // It opens when its leader says so once more.
            Some(false) => self.set_role(Role::Suspended(SuspendReason::Restart)),
            None => {}
        }
    }

    /// It answers no flush alone.
    pub(in crate::node) fn is_held(&self) -> bool {
        let wanted = self.led().and_then(|led| led.order.as_ref()).and_then(|order| order.wanted);
        let held = matches!(wanted, Some((_, Readiness::Held))) && self.led().is_some_and(|led| led.ready.is_some());
        held && self.k.sites.len() == 1
    }

    /// Why a verb about the whole group is not carried out here.
    pub(in crate::node) fn is_leaders_verb(&self, verb: &Verb) -> Option<VerbError> {
        let is_of_group = matches!(
            verb,
            Verb::Promote { .. }
                | Verb::Demote { .. }
                | Verb::Switchover { .. }
                | Verb::SetPolicy(_)
                | Verb::DropPeer(_)
                | Verb::Release
        );
        if self.has_members() && matches!(verb, Verb::SetPeer(_)) {
            let hint = "the members of both sites are named when the group is made".into();
            return Some(VerbError::Role { role: "one of several of its group".into(), hint });
        }
        let hint = || format!("ask node {}, which leads the group at this site", self.leader_node());
        (is_of_group && self.is_led()).then(|| VerbError::Role { role: "led by another agent".into(), hint: hint() })
    }

    // ---- sub-leases ---------------------------------------------------------------------------------------------------

    fn ask_to_serve(&mut self, now: Nanos) {
        let wants = self.order_names_this_site();
        let Some(led) = self.led_mut() else { return };
        let Some(conn) = led.conn.filter(|_| wants && now >= led.ask_next) else { return };
        led.ask_next = now.after_ms(ASK_AGAIN_MS);
        self.tell_site(conn, SiteMessage::MayIServe { stamp: now.0 });
    }

    /// The newest K that is known here makes this site the primary.
    fn order_names_this_site(&self) -> bool {
        let ordered = self.led().and_then(|led| led.order.as_ref()).map(|order| order.k.primary);
        self.k.primary == Some(self.site) || ordered == Some(Some(self.site))
    }

    pub(super) fn on_sub_lease(&mut self, now: Nanos, conn: ConnId, lease: SubLease) {
        let stamp = if planted(Planted::SubLeaseFromAnswer) { now.0 } else { lease.stamp };
        let Some(led) = self.led_mut().filter(|led| led.conn == Some(conn)) else { return };
        led.leases.retain(|old| old.k != lease.k);
        led.leases.push(SubLease { stamp, ..lease });
        let surplus = led.leases.len().saturating_sub(LEASES);
        led.leases.drain(..surplus);
        let may_begin = lease.k == self.k.id() && self.may_serve(now) && matches!(self.stage, Stage::Running);
        if may_begin && self.role == Role::Suspended(SuspendReason::Restart) && !self.is_persisting_k() && !self.failed
        {
            self.begin_opening();
            self.match_peer(now);
        }
    }

    pub(super) fn sub_lease(&self) -> Option<&SubLease> {
        self.led()?.leases.iter().find(|lease| lease.k == self.k.id())
    }

    /// Until when its leader lets it serve; `None`: it leads.
    pub(in crate::node) fn led_until(&self) -> Option<Serves> {
        self.led()?;
        if planted(Planted::ServeWithoutSubLease) {
            return Some(Serves::Unbounded);
        }
        Some(match self.sub_lease() {
            Some(SubLease { lasts: Lasts::Always, .. }) => Serves::Unbounded,
            Some(SubLease { lasts: Lasts::For(ns), stamp, .. }) => Serves::Until(Nanos(stamp.saturating_add(*ns))),
            None => Serves::Until(Nanos::default()),
        })
    }

    /// Every member has persisted K, and its leader says that it may open. A group of one member has only itself to ask.
    pub(in crate::node) fn members_may_open(&self, now: Nanos) -> bool {
        match self.is_led() {
            true => self.may_serve(now) && self.sub_lease().is_some_and(|lease| lease.may_open),
            false => self.all_hold_k() || planted(Planted::OpenBeforeAll),
        }
    }

    pub(super) fn led_timeout(&self) -> Option<Nanos> {
        let led = self.led()?;
        let asks = (led.conn.is_some() && self.order_names_this_site()).then_some(led.ask_next);
        let alone = (self.k.sites.len() > 1 && self.k.primary == Some(self.site)).then(|| self.peer_is_lost_at());
        [asks, alone].into_iter().flatten().filter(|at| *at > self.looked_at).min()
    }
}
