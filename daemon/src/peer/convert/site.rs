//! What the members of a group at one site say to each other, both ways.

use tidemark_core::group::members::MAX_MEMBERS;
use tidemark_core::site::{Lasts, Membership, Order, Readiness, Report, SiteMessage, SubLease};
use tidemark_core::types::NodeId;
use tidemark_proto::peer as wire;
use wire::site_envelope::Body;

use super::config::{since_in, since_out};
use super::parts::required;
use super::{Malformed, at_most, config_in, config_out, id, policy_in, policy_out, raw};

/// A message of the core as the wire has it.
pub fn site_to_wire(message: SiteMessage) -> wire::SiteEnvelope {
    let body = match message {
        SiteMessage::Report(report) => Body::Report(report_out(&report)),
        SiteMessage::Order(order) => Body::Order(order_out(&order)),
        SiteMessage::MayIServe { stamp } => Body::MayIServe(wire::MayIServe { stamp }),
        SiteMessage::Lease(lease) => Body::SubLease(wire::SubLease {
            stamp: lease.stamp,
            k: since_out(lease.k),
            lasts_ns: match lease.lasts {
                Lasts::For(ns) => Some(ns),
                Lasts::Always => None,
            },
            may_open: lease.may_open,
        }),
    };
    wire::SiteEnvelope { body: Some(body) }
}

/// A message of the wire as the core has it. A greeting is none: it begins a stream, once.
///
/// # Errors
/// What is wrong with it.
pub fn site_from_wire(envelope: wire::SiteEnvelope) -> Result<SiteMessage, Malformed> {
    Ok(match envelope.body.ok_or(Malformed::UnknownKind)? {
        Body::Hello(_) => return Err(Malformed::UnknownKind),
        Body::Report(report) => SiteMessage::Report(Box::new(report_in(report)?)),
        Body::Order(order) => SiteMessage::Order(Box::new(order_in(order)?)),
        Body::MayIServe(m) => SiteMessage::MayIServe { stamp: m.stamp },
        Body::SubLease(m) => SiteMessage::Lease(SubLease {
            stamp: m.stamp,
            k: since_in(m.k, "k")?,
            lasts: m.lasts_ns.map_or(Lasts::Always, Lasts::For),
            may_open: m.may_open,
        }),
    })
}

pub(in crate::peer) fn membership_out(members: &Membership) -> wire::Membership {
    let list = |nodes: &[NodeId]| nodes.iter().map(|node| raw(&node.0)).collect();
    wire::Membership { me: members.me as u32, nodes: list(&members.nodes), peers: list(&members.peers) }
}

pub(in crate::peer) fn membership_in(members: Option<wire::Membership>) -> Result<Membership, Malformed> {
    let members = required(members, "members")?;
    at_most(members.nodes.len(), MAX_MEMBERS, "nodes")?;
    at_most(members.peers.len(), MAX_MEMBERS, "peers")?;
    let list = |nodes: &[bytes::Bytes]| nodes.iter().map(|node| id(node, "node")).collect::<Result<Vec<_>, _>>();
    let members = Membership { me: members.me as usize, nodes: list(&members.nodes)?, peers: list(&members.peers)? };
    match members.fault() {
        None => Ok(members),
        Some(rule) => Err(Malformed::Config { rule }),
    }
}

fn order_out(order: &Order) -> wire::Order {
    wire::Order {
        config: Some(config_out(&order.k)),
        policy: Some(policy_out(order.policy)),
        wanted: order.wanted.map(|(name, readiness)| {
            let (readiness, since, force) = match readiness {
                Readiness::Held => (wire::Readiness::Held, None, false),
                Readiness::Verified(since) => (wire::Readiness::Verified, since_out(since), false),
                Readiness::Drained { force } => (wire::Readiness::Drained, None, force),
                Readiness::Settled => (wire::Readiness::Settled, None, false),
            };
            wire::Wanted { id: raw(&name.0), readiness: readiness.into(), since, force }
        }),
    }
}

fn order_in(order: wire::Order) -> Result<Order, Malformed> {
    let wanted = |wanted: wire::Wanted| {
        let readiness = match wire::Readiness::try_from(wanted.readiness) {
            Ok(wire::Readiness::Held) => Readiness::Held,
            Ok(wire::Readiness::Verified) => Readiness::Verified(since_in(wanted.since, "since")?),
            Ok(wire::Readiness::Drained) => Readiness::Drained { force: wanted.force },
            Ok(wire::Readiness::Settled) => Readiness::Settled,
            _ => return Err(Malformed::Enum { field: "readiness", value: wanted.readiness }),
        };
        Ok((id(&wanted.id, "id")?, readiness))
    };
    Ok(Order {
        k: config_in(order.config)?,
        policy: policy_in(required(order.policy, "policy")?)?,
        wanted: order.wanted.map(wanted).transpose()?,
    })
}

fn report_out(report: &Report) -> wire::Report {
    wire::Report {
        config: Some(config_out(&report.k)),
        is_sound: report.is_sound,
        is_close: report.is_close,
        is_alone: report.is_alone,
        seeds: report.seeds,
        serves: report.serves,
        ready: report.ready.map(|name| raw(&name.0)),
        is_equal: report.is_equal,
    }
}

fn report_in(report: wire::Report) -> Result<Report, Malformed> {
    Ok(Report {
        k: config_in(report.config)?,
        is_sound: report.is_sound,
        is_close: report.is_close,
        is_alone: report.is_alone,
        seeds: report.seeds,
        serves: report.serves,
        ready: report.ready.map(|name| id(&name, "ready")).transpose()?,
        is_equal: report.is_equal,
    })
}
