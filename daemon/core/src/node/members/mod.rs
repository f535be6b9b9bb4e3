//! This copy as one member of a group of several a site: the leader's part, the part of those that it leads, and what both are asked to be.
//!
//! Everything about K that a copy does alone its leader does here too, with three differences: K goes to the other members as soon as it
//! is persisted ([`leader`]); what needs all of them is asked of all of them before ([`Round`]) and waits for all of them after
//! ([`Node::all_hold_k`]); and nobody opens before all have persisted K. A member that does not lead takes K from its leader alone,
//! and serves on what that lets it ([`led`]).

mod leader;
mod led;

use crate::config::{Config, Since};
use crate::event::{ConnId, Output, VerbId};
use crate::group::members::{self, Hindrance, Members};
use crate::node::Node;
use crate::site::{Membership, Order, Readiness, Report, SiteMessage, SubLease};
use crate::status::{GroupMembers, MemberState, Role, SuspendReason};
use crate::types::{Nanos, Nonce, SiteId};

/// What a leader has asked its members to be, and what for.
#[derive(Clone, Debug)]
pub(super) struct Round {
    id: Nonce,
    wanted: Readiness,
    purpose: Purpose,
    /// Given up then.
    until: Nanos,
}

/// What happens when every member is ready.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// K with a larger S is persisted (R5).
    Expand(Config),
    /// The other site's K is persisted, and answered.
    Accept { conn: ConnId, config: Config },
    /// The verb that demotes goes on.
    Demote,
    /// The peer is asked to hand over.
    Handover { id: VerbId, peer: SiteId, both: bool },
}

/// Another member, as its leader knows it.
#[derive(Debug, Default)]
struct Fellow {
    conn: Option<ConnId>,
    report: Option<Box<Report>>,
    /// What it was told last, on this stream.
    told: Option<Order>,
    /// It is known to have persisted this K, also when it is not there any more.
    holds: Option<Since>,
}

/// The part of a leader.
#[derive(Debug, Default)]
pub(super) struct Leader {
    /// By member; the own one stays empty.
    fellows: Vec<Fellow>,
    round: Option<Round>,
    /// No EXPAND begins before.
    rest_until: Nanos,
    /// Persisted here at the other site's request: answered when all members have.
    answering: Option<(ConnId, Config)>,
}

/// The part of another member.
#[derive(Debug, Default)]
pub(super) struct Led {
    conn: Option<ConnId>,
    order: Option<Box<Order>>,
    reported: Option<Box<Report>>,
    /// What it has become, as it was asked.
    ready: Option<Nonce>,
    /// It stopped for that; whether it served.
    drains: Option<bool>,
    /// Answers of the leader, the newest of each K.
    leases: Vec<SubLease>,
    /// When the leader is asked next.
    ask_next: Nanos,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Site {
    membership: Membership,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Leader(Box<Leader>),
    Led(Led),
}

impl Site {
    /// `None` for a group of one member a site.
    pub(super) fn new(membership: Option<Membership>) -> Option<Box<Self>> {
        let membership = membership.filter(|m| m.nodes.len() > 1)?;
        let fellows = || membership.nodes.iter().map(|_| Fellow::default()).collect();
        let part = match membership.me == Membership::LEADER {
            true => Part::Leader(Box::new(Leader { fellows: fellows(), ..Leader::default() })),
            false => Part::Led(Led::default()),
        };
        Some(Box::new(Self { membership, part }))
    }
}

impl Node {
    /// K comes from another member.
    pub(super) fn is_led(&self) -> bool {
        matches!(self.members.as_deref(), Some(Site { part: Part::Led(_), .. }))
    }

    /// The group has several members a site.
    pub(super) fn has_members(&self) -> bool {
        self.members.is_some()
    }

    fn leader(&self) -> Option<&Leader> {
        match &self.members.as_deref()?.part {
            Part::Leader(leader) => Some(leader),
            Part::Led(_) => None,
        }
    }

    fn leader_mut(&mut self) -> Option<&mut Leader> {
        match &mut self.members.as_deref_mut()?.part {
            Part::Leader(leader) => Some(leader),
            Part::Led(_) => None,
        }
    }

    fn led(&self) -> Option<&Led> {
        match &self.members.as_deref()?.part {
            Part::Led(led) => Some(led),
            Part::Leader(_) => None,
        }
    }

    fn led_mut(&mut self) -> Option<&mut Led> {
        match &mut self.members.as_deref_mut()?.part {
            Part::Led(led) => Some(led),
            Part::Leader(_) => None,
        }
    }

    /// The members as this one sees them.
    pub(super) fn group_members(&self) -> Option<GroupMembers> {
        let site = self.members.as_deref()?;
        let own = MemberState::There { holds_k: true, serves: self.role == Role::Primary };
        let mut known: Vec<MemberState> = match &site.part {
            Part::Leader(leader) => leader.fellows.iter().map(|f| self.state_of(f)).collect(),
            Part::Led(led) => {
                let mut known = vec![MemberState::Unknown; site.membership.nodes.len()];
                let order = led.order.as_deref().filter(|_| led.conn.is_some());
                known[Membership::LEADER] = order.map_or(MemberState::Silent, |order| MemberState::There {
                    holds_k: order.k.id() == self.k.id(),
                    serves: self.sub_lease().is_some_and(|lease| lease.may_open),
                });
                known
            }
        };
        if let Some(me) = known.get_mut(site.membership.me) {
            *me = own;
        }
        let worst = self.hindrance().map(|why| self.named(why));
        Some(GroupMembers { membership: site.membership.clone(), known, worst })
    }

    /// A hindrance with the node that it is on.
    fn named(&self, why: Hindrance) -> String {
        let (Hindrance::Silent(number) | Hindrance::Unsound(number)) = why;
        let node = self.members.as_deref().and_then(|site| site.membership.nodes.get(number));
        node.map_or_else(|| why.to_string(), |node| format!("{why}: node {node}"))
    }

    /// The agent that leads at this site.
    fn leader_node(&self) -> String {
        self.members.as_deref().map_or_else(String::new, |site| site.membership.leader().to_string())
    }

    fn state_of(&self, fellow: &Fellow) -> MemberState {
        match fellow.report.as_deref() {
            Some(report) => MemberState::There { holds_k: report.k.id() == self.k.id(), serves: report.serves },
            None => MemberState::Silent,
        }
    }

    /// A stream to another member of this site is up; a newer one replaces it.
    pub(super) fn on_site_up(&mut self, conn: ConnId, member: usize) {
        let Some(site) = self.members.as_deref_mut() else { return };
        match &mut site.part {
            Part::Leader(leader) => {
                if let Some(fellow) = leader.fellows.get_mut(member) {
                    (fellow.conn, fellow.report, fellow.told) = (Some(conn), None, None);
                }
            }
            Part::Led(led) if member == Membership::LEADER => {
                (led.conn, led.reported, led.ask_next) = (Some(conn), None, Nanos::default());
            }
            Part::Led(_) => {}
        }
    }

    pub(super) fn on_site_down(&mut self, now: Nanos, conn: ConnId) {
        let Some(site) = self.members.as_deref_mut() else { return };
        match &mut site.part {
            Part::Leader(leader) => {
                for fellow in leader.fellows.iter_mut().filter(|f| f.conn == Some(conn)) {
                    (fellow.conn, fellow.report, fellow.told) = (None, None, None);
                }
            }
            Part::Led(led) if led.conn == Some(conn) => {
                (led.conn, led.order) = (None, None);
                self.not_wanted(now);
            }
            Part::Led(_) => {}
        }
    }

    pub(super) fn on_site_message(&mut self, now: Nanos, conn: ConnId, message: SiteMessage) {
        match message {
            SiteMessage::Report(report) => self.on_report(conn, report),
            SiteMessage::MayIServe { stamp } => self.on_may_i_serve(now, conn, stamp),
            SiteMessage::Order(order) => self.on_order(conn, order),
            SiteMessage::Lease(lease) => self.on_sub_lease(now, conn, lease),
        }
    }

    /// Everything that follows here.
    pub(super) fn pump_members(&mut self, now: Nanos) {
        if self.is_led() {
            self.pump_led(now);
        } else if self.has_members() {
            self.pump_leader(now);
        }
    }

    /// The next moment at which the clock alone changes something here.
    pub(super) fn members_timeout(&self) -> Option<Nanos> {
        match &self.members.as_deref()?.part {
            Part::Leader(leader) => {
                let rests = (leader.rest_until > self.looked_at).then_some(leader.rest_until);
                [leader.round.as_ref().map(|round| round.until), rests].into_iter().flatten().min()
            }
            Part::Led(_) => self.led_timeout(),
        }
    }

    fn tell_site(&mut self, conn: ConnId, message: SiteMessage) {
        self.out.push(Output::SendSite(conn, message));
    }

    /// How this copy is, as a leader hears of it.
    fn report(&self, now: Nanos, ready: Option<Nonce>) -> Report {
        let hello = self.link.as_ref().and_then(|l| l.hello.as_deref());
        Report {
            k: self.k.clone(),
            is_sound: self.is_sound() && self.damage.is_none() && !self.failed,
            is_close: self.peer_is_close(),
            is_alone: self.k.sites.len() > 1 && self.peer_is_lost(now),
            seeds: hello.is_some_and(|hello| hello.needs_seed),
            serves: self.role == Role::Primary,
            ready,
            is_equal: self.is_settled() && hello.is_some_and(|hello| hello.tail == self.log.end()),
        }
    }

    /// Whether this copy is what is wanted of all members.
    fn is_ready(&self, wanted: Readiness) -> bool {
        if self.is_persisting_k() || self.sealing.is_some() || self.failed {
            return false;
        }
        match wanted {
            Readiness::Held => self.peer_is_close(),
            Readiness::Verified(k) => self.has_verified(k),
            // Who never came to serve under this K has not settled its history: its peer may have more, and nobody could be handed both.
            Readiness::Drained { .. } => {
                let served = self.led().is_none_or(|led| led.drains == Some(true));
                served && self.role == Role::Suspended(SuspendReason::User) && self.is_drained()
            }
            Readiness::Settled => self.is_settled(),
        }
    }

    /// What has to be durable for that becomes so now.
    fn hasten(&mut self, wanted: Readiness) {
        if wanted != Readiness::Held {
            let end = self.log.end().position.lsn;
            self.log.want_durable(end);
        }
    }

    /// What the peer had when it greeted under `k` is durable here.
    fn has_verified(&self, k: Since) -> bool {
        let Some(hello) = self.link.as_ref().and_then(|l| l.hello.as_deref()) else { return false };
        // Under an older K the peer may since have answered alone what is not here.
        let is_named = hello.config.id() == k || crate::planted::planted(crate::planted::Planted::TailAtPrepare);
        is_named
            && self.is_sound()
            && self.damage.is_none()
            && !self.role.serves()
            && self.has_in_history(&hello.tail)
            && self.log.durable() >= hello.tail.position.lsn
    }

    /// Nobody serves this copy, here or at the peer, which has nothing that is not durable here.
    fn is_settled(&self) -> bool {
        let Some(hello) = self.link.as_ref().and_then(|l| l.hello.as_deref()) else { return false };
        let end = self.log.end().position.lsn;
        let idle = self.k.primary.is_none() && hello.config.id() == self.k.id();
        idle && self.is_sound() && self.log.is_quiet() && self.log.durable() == end && self.holds_all_of(hello)
    }
}

/// As [`members::Round`] asks.
fn joint_round(joint: members::Joint, side: members::Side, all: Members, prepared: Members) -> members::Round {
    members::Round { joint, side, all, prepared, persisted: Members::default(), other_has_it: false }
}
