//! The leader: K goes out to the other members, and what needs all of them is asked of all of them.

use super::{Purpose, Round, joint_round};
use crate::config::Config;
use crate::event::{ConnId, VerbId};
use crate::group::lease::Serves;
use crate::group::members::{Candidate, Hindrance, Joint, Members, Side, judged_on, may_open};
use crate::node::Node;
use crate::node::meta::AfterK;
use crate::node::verbs::Pending;
use crate::plan::Loss;
use crate::planted::{Planted, planted};
use crate::ship::{Message, Refusal};
use crate::site::{Lasts, Order, Readiness, Report, SiteMessage, SubLease};
use crate::status::{Role, SuspendReason};
use crate::types::{Nanos, SiteId};
use crate::verb::{PromotionClass, VerbError};

/// Members that are not ready by then keep nobody waiting.
const ROUND_MS: u64 = 5_000;
/// Between two attempts at an EXPAND that not all were ready for.
const REST_MS: u64 = 1_000;

impl Node {
    pub(super) fn on_report(&mut self, conn: ConnId, report: Box<Report>) {
        let Some(leader) = self.leader_mut() else { return };
        let Some(fellow) = leader.fellows.iter_mut().find(|f| f.conn == Some(conn)) else { return };
        fellow.holds = Some(report.k.id());
        fellow.report = Some(report);
    }

    /// Every member has persisted the K that is in force here.
    pub(in crate::node) fn all_hold_k(&self) -> bool {
        let Some(leader) = self.leader() else { return true };
        may_open(self.k.id(), leader.fellows.iter().skip(1).map(|f| f.holds.unwrap_or_default()))
    }

    /// Every other member is there and says so.
    fn every_fellow(&self, says: impl Fn(&Report) -> bool) -> bool {
        let Some(leader) = self.leader() else { return true };
        leader.fellows.iter().skip(1).all(|f| f.report.as_deref().is_some_and(&says))
    }

    fn any_fellow(&self, says: impl Fn(&Report) -> bool) -> bool {
        let Some(leader) = self.leader() else { return false };
        leader.fellows.iter().skip(1).any(|f| f.report.as_deref().is_some_and(&says))
    }

    /// Some member's peer is lost.
    pub(in crate::node) fn a_fellow_is_alone(&self) -> bool {
        self.any_fellow(|r| r.is_alone && r.k.id() == self.k.id())
    }

    /// Some member's peer has to be seeded first.
    pub(in crate::node) fn a_fellow_seeds(&self) -> bool {
        self.any_fellow(|r| r.seeds)
    }

    /// Who of the members stands against a promotion of the group.
    pub(in crate::node) fn hindrance(&self) -> Option<Hindrance> {
        let leader = self.leader()?;
        let fellows = leader.fellows.iter().skip(1).map(|f| f.report.as_deref());
        let mut all = vec![Some(Candidate { k: &self.k, is_sound: true })];
        all.extend(fellows.map(|report| report.map(|r| Candidate { k: &r.k, is_sound: r.is_sound })));
        judged_on(&all).err()
    }

    /// A member holds a K that is newer than the leader's: the leader's files went back in time, or it is not the leader.
    pub(in crate::node) fn is_behind_a_fellow(&self) -> bool {
        self.any_fellow(|r| r.k.epoch > self.k.epoch)
    }

    /// What the other members say to a promotion of the group that would lose this.
    pub(in crate::node) fn judge_members(&self, loss: &Loss) -> Result<(), VerbError> {
        if !self.has_members() {
            return Ok(());
        }
        let refuse = |state: String, hint: &str| Err(VerbError::CopyState { state, hint: hint.into() });
        if self.is_led() {
            let leader = self.leader_node();
            return refuse(
                "led by another agent".into(),
                &format!("ask node {leader}, which leads the group at this site"),
            );
        }
        if let Some(why) = self.hindrance() {
            let why = self.named(why);
            return refuse(format!("one of several of its group ({why})"), "bring that member back first");
        }
        match loss.class {
            PromotionClass::Lossless => Ok(()),
            _ => refuse(
                "one of several of its group, and no mark says where all of them stand together".into(),
                "promote the other site",
            ),
        }
    }

    /// Some member does not serve: what it has is not settled, and the group cannot be given away.
    pub(in crate::node) fn a_fellow_pauses(&self) -> bool {
        !self.every_fellow(|r| r.serves && r.k.id() == self.k.id())
    }

    // ---- rounds -------------------------------------------------------------------------------------------------------

    /// Asks every member to be ready.
    fn begin_round(&mut self, now: Nanos, wanted: Readiness, purpose: Purpose) {
        let id = self.new_nonce();
        if let Some(leader) = self.leader_mut() {
            leader.round = Some(Round { id, wanted, purpose, until: now.after_ms(ROUND_MS) });
        }
        self.pump_again = true;
    }

    /// The members are being asked something.
    pub(in crate::node) fn is_rallying(&self) -> bool {
        self.leader().is_some_and(|l| l.round.is_some())
    }

    /// EXPAND: every member's peer is close, and every member stops answering alone (R5). Else it waits.
    pub(in crate::node) fn rally_to_expand(&mut self, now: Nanos, config: Config) {
        let rests = self.leader().is_none_or(|l| now < l.rest_until);
        if !rests && self.all_hold_k() && self.every_fellow(|r| r.is_close) {
            self.begin_round(now, Readiness::Held, Purpose::Expand(config));
        }
    }

    /// The other site's K: every member verifies that it holds what its peer has.
    pub(in crate::node) fn rally_to_accept(&mut self, now: Nanos, conn: ConnId, config: Config, wanted: Readiness) {
        self.begin_round(now, wanted, Purpose::Accept { conn, config });
    }

    /// Every member stops serving.
    pub(in crate::node) fn rally_to_demote(&mut self, now: Nanos, force: bool) {
        if self.has_members() {
            self.begin_round(now, Readiness::Drained { force }, Purpose::Demote);
        }
    }

    /// Every member is quiet: the peer may be asked to hand over.
    pub(in crate::node) fn rally_to_take_over(&mut self, now: Nanos, id: VerbId, peer: SiteId, both: bool) {
        self.begin_round(now, Readiness::Settled, Purpose::Handover { id, peer, both });
    }

    /// Every member is ready for the demotion that is under way.
    pub(in crate::node) fn all_are_drained(&self) -> bool {
        let Some(leader) = self.leader() else { return true };
        leader.round.as_ref().is_some_and(|round| matches!(round.purpose, Purpose::Demote) && self.is_unanimous(round))
    }

    /// Those who are ready, this one included.
    fn ready_for(&self, round: &Round) -> Members {
        let Some(leader) = self.leader() else { return Members::default() };
        let is_ready = |f: &super::Fellow| f.report.as_deref().is_some_and(|r| r.ready == Some(round.id));
        let fellows = leader.fellows.iter().enumerate().skip(1).filter(|(_, f)| is_ready(f)).map(|(number, _)| number);
        // What the other site asks of the leader's own part was judged when it asked.
        let is_ready = matches!(round.purpose, Purpose::Accept { .. }) || self.is_ready(round.wanted);
        let own = is_ready.then_some(crate::site::Membership::LEADER);
        fellows.chain(own).collect()
    }

    fn is_unanimous(&self, round: &Round) -> bool {
        let Some(site) = self.members.as_deref() else { return true };
        let (all, ready) = (site.membership.all(), self.ready_for(round));
        let (joint, side) = match &round.purpose {
            Purpose::Expand(_) => (Joint::Expand, Side::Proposes),
            Purpose::Accept { .. } if planted(Planted::VerifyByOne) => {
                return ready.has(crate::site::Membership::LEADER);
            }
            Purpose::Accept { .. } => (Joint::Expand, Side::Accepts),
            Purpose::Demote => (Joint::Handover, Side::Proposes),
            Purpose::Handover { .. } => return ready.covers(all),
        };
        joint_round(joint, side, all, ready).may_persist()
    }

    fn end_round(&mut self, now: Nanos) -> Option<Purpose> {
        let leader = self.leader_mut()?;
        leader.rest_until = now.after_ms(REST_MS);
        leader.round.take().map(|round| round.purpose)
    }

    /// What an acceptor's round was about is off.
    pub(in crate::node) fn rally_lost(&mut self) {
        let Some(leader) = self.leader_mut() else { return };
        leader.answering = None;
        let is_over = |round: &Round| matches!(round.purpose, Purpose::Accept { .. } | Purpose::Expand(_));
        leader.round.take_if(|round| is_over(round));
    }

    fn pump_round(&mut self, now: Nanos) {
        let Some(round) = self.leader().and_then(|l| l.round.clone()) else { return };
        self.hasten(round.wanted);
        if matches!(round.purpose, Purpose::Demote) {
            // The verb has the deadline.
            let is_waited_for = |kind: &Pending| matches!(kind, Pending::Demote { .. });
            if !self.verbs.iter().any(|v| is_waited_for(&v.kind)) && !self.is_persisting_k() {
                self.end_round(now);
            }
            return;
        }
        let is_late = now >= round.until;
        if !is_late && !self.is_unanimous(&round) || self.is_persisting_k() || self.sealing.is_some() {
            return;
        }
        let Some(purpose) = self.end_round(now) else { return };
        match (purpose, is_late) {
            (Purpose::Expand(_), true) | (Purpose::Demote, _) => {}
            (Purpose::Expand(config), false) => self.expand_with_all(now, config),
            (Purpose::Accept { conn, config }, _) => self.accept_with_all(now, conn, config, is_late),
            (Purpose::Handover { id, peer, both }, false) => {
                let both = both && self.every_fellow(|r| r.is_equal);
                self.ask_handover_of_all(now, id, peer, both);
            }
            (Purpose::Handover { id, .. }, true) => {
                let why = "a member of the group is not equal to its peer";
                self.verbs.retain(|v| v.id != id);
                self.end_verb(id, Err(VerbError::Interrupted(why.into())));
            }
        }
    }

    fn expand_with_all(&mut self, now: Nanos, config: Config) {
        let follows = config.epoch.major == self.k.epoch.major && config.epoch.minor == self.k.epoch.minor + 1;
        if self.change.is_none() && follows && self.role == Role::Primary && !self.arbiter.is_deciding() {
            self.begin_expand(now, config);
        }
    }

    fn accept_with_all(&mut self, now: Nanos, conn: ConnId, config: Config, is_late: bool) {
        if self.link.as_ref().is_none_or(|l| l.conn != conn) {
            return;
        }
        let busy = self.promotion_pending() || self.arbiter.is_deciding() || config.epoch <= self.k.epoch;
        if is_late || busy {
            let (epoch, nonce, result) = (config.epoch, config.nonce, Err(Refusal::Behind));
            return self.send(Message::ConfigAnswer { epoch, nonce, result });
        }
        self.persist_k(now, config.clone(), AfterK::Answer { conn, config, by_all: true });
    }

    /// Another K than was asked for is in force, and all members have it: the other site hears of it.
    pub(in crate::node) fn answer_for_all(&mut self, conn: ConnId, config: &Config) -> bool {
        if self.all_hold_k() || planted(Planted::AnswerBeforeAll) {
            return true;
        }
        if let Some(leader) = self.leader_mut() {
            leader.answering = Some((conn, config.clone()));
        }
        false
    }

    fn pump_answer(&mut self) {
        if !self.all_hold_k() {
            return;
        }
        let Some((conn, config)) = self.leader_mut().and_then(|l| l.answering.take()) else { return };
        if self.link.as_ref().is_some_and(|l| l.conn == conn) && config.id() == self.k.id() {
            let (epoch, nonce) = (config.epoch, config.nonce);
            self.send(Message::ConfigAnswer { epoch, nonce, result: Ok(()) });
        }
    }

    // ---- orders -------------------------------------------------------------------------------------------------------

    pub(super) fn pump_leader(&mut self, now: Nanos) {
        self.pump_round(now);
        self.pump_answer();
        let wanted = self.leader().and_then(|l| l.round.as_ref()).map(|round| (round.id, round.wanted));
        let order = Order { k: self.k.clone(), policy: self.superblock.policy, wanted };
        let Some(leader) = self.leader_mut() else { return };
        let mut news = Vec::new();
        for fellow in &mut leader.fellows {
            let Some(conn) = fellow.conn.filter(|_| fellow.told.as_ref() != Some(&order)) else { continue };
            fellow.told = Some(order.clone());
            news.push(conn);
        }
        for conn in news {
            self.tell_site(conn, SiteMessage::Order(Box::new(order.clone())));
        }
    }

    // ---- sub-leases ---------------------------------------------------------------------------------------------------

    /// A member may serve as long as its leader may (3a).
    pub(super) fn on_may_i_serve(&mut self, now: Nanos, conn: ConnId, stamp: u64) {
        let leads = self.k.primary == Some(self.site) && !self.is_persisting_k();
        let is_up = match self.role {
            Role::Primary | Role::Suspended(SuspendReason::LogFull | SuspendReason::NoSyncPeer) => true,
            Role::Suspended(SuspendReason::Opening) => self.opening.is_some(),
            _ => false,
        };
        let lasts = match self.serves_until() {
            Serves::Unbounded => Lasts::Always,
            Serves::Until(end) if now < end => Lasts::For(end.0 - now.0),
            Serves::Until(_) => return,
        };
        if leads && is_up && !self.is_behind_a_fellow() {
            let may_open = (self.all_hold_k() || planted(Planted::OpenBeforeAll)) && self.may_open(now);
            let lease = SubLease { stamp, k: self.k.id(), lasts, may_open };
            self.tell_site(conn, SiteMessage::Lease(lease));
        }
    }
}
