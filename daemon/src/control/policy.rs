//! The vocabulary of policy fields: from a request to what the core keeps, refusing what does not act yet.
//!
//! A field or value that would change nothing is refused by its name. Silently keeping it would let somebody rely on a
//! guard that is not there.

use std::ops::RangeInclusive;

use tidemark_core::config::{AckOn, Mode, OnPeerLoss, Policy};
use tidemark_proto::admin as wire;

use super::engine::{FrontendKind, PeerKey};
use super::invalid::{Invalid, field};
use crate::bounds;
use crate::config::Name;

/// Fields of the policy that somebody named; the others stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PolicyPatch {
    /// `mode`.
    pub mode: Option<Mode>,
    /// `ackOn`.
    pub ack_on: Option<AckOn>,
    /// `rpoTarget` in milliseconds.
    pub rpo_target_ms: Option<u64>,
    /// `retention` in milliseconds.
    pub retention_ms: Option<u64>,
    /// `logSize` in bytes.
    pub log_bytes: Option<u64>,
    /// `bandwidth` in bytes per second; 0 is unlimited.
    pub bandwidth: Option<u64>,
    /// `diskTimeout` in milliseconds.
    pub disk_timeout_ms: Option<u64>,
    /// `indexRanges`.
    pub index_ranges: Option<u32>,
    /// `onPeerLoss`.
    pub on_peer_loss: Option<OnPeerLoss>,
    /// `autoFailover`.
    pub auto_failover: Option<bool>,
    /// `peerLoss` in milliseconds.
    pub peer_loss_ms: Option<u64>,
    /// `frontend`: not part of the core's policy, kept in the catalogue.
    pub frontend: Option<FrontendKind>,
}

impl PolicyPatch {
    /// `policy` with the named fields changed.
    pub fn applied_to(&self, policy: Policy) -> Policy {
        Policy {
            mode: self.mode.unwrap_or(policy.mode),
            ack_on: self.ack_on.unwrap_or(policy.ack_on),
            rpo_target_ms: self.rpo_target_ms.unwrap_or(policy.rpo_target_ms),
            retention_ms: self.retention_ms.unwrap_or(policy.retention_ms),
            log_bytes: self.log_bytes.unwrap_or(policy.log_bytes),
            disk_timeout_ms: self.disk_timeout_ms.unwrap_or(policy.disk_timeout_ms),
            bandwidth: self.bandwidth.unwrap_or(policy.bandwidth),
            index_ranges: self.index_ranges.unwrap_or(policy.index_ranges),
            on_peer_loss: self.on_peer_loss.unwrap_or(policy.on_peer_loss),
            auto_failover: self.auto_failover.unwrap_or(policy.auto_failover),
            peer_loss_ms: self.peer_loss_ms.unwrap_or(policy.peer_loss_ms),
        }
    }

    /// The named fields, but for the mode, that are not as in `policy` and `frontend`.
    pub fn differing(&self, policy: &Policy, frontend: FrontendKind) -> impl Iterator<Item = &'static str> {
        fn differs<T: PartialEq>(named: Option<T>, there: T) -> bool {
            named.is_some_and(|named| named != there)
        }
        let table = [
            ("ackOn", differs(self.ack_on, policy.ack_on)),
            ("rpoTarget", differs(self.rpo_target_ms, policy.rpo_target_ms)),
            ("retention", differs(self.retention_ms, policy.retention_ms)),
            ("logSize", differs(self.log_bytes, policy.log_bytes)),
            ("bandwidth", differs(self.bandwidth, policy.bandwidth)),
            ("diskTimeout", differs(self.disk_timeout_ms, policy.disk_timeout_ms)),
            ("indexRanges", differs(self.index_ranges, policy.index_ranges)),
            ("onPeerLoss", differs(self.on_peer_loss, policy.on_peer_loss)),
            ("autoFailover", differs(self.auto_failover, policy.auto_failover)),
            ("peerLoss", differs(self.peer_loss_ms, policy.peer_loss_ms)),
            ("frontend", differs(self.frontend, frontend)),
        ];
        table.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name)
    }

    /// True when a field was named that speaks of the witness.
    pub fn names_arbitration(&self) -> bool {
        self.on_peer_loss.is_some() || self.auto_failover.is_some()
    }

    /// True when a field of the core's policy was named.
    pub fn changes_policy(&self) -> bool {
        !Self { frontend: None, ..*self }.is_empty()
    }

    /// True when no field was named.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A policy as a request may name it at creation: with the placement.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Wishes {
    /// The fields that can change later, too.
    pub patch: PolicyPatch,
    /// `peerSite`.
    pub peer: Option<PeerKey>,
    /// `pool`.
    pub pool: Option<Name>,
}

/// The fields of a creation.
pub(super) fn wishes(policy: &wire::Policy) -> Result<Wishes, Invalid> {
    let wishes = Wishes { patch: patch_fields(policy)?, peer: peer(policy)?, pool: pool(policy)? };
    let mode = wishes.patch.mode.unwrap_or_default();
    if mode != Mode::Async && wishes.peer.is_none() {
        return Err(field("mode", "sync and receive need a peer: name one in peerSite"));
    }
    Ok(wishes)
}

/// The fields of a later change.
pub(super) fn patch(policy: &wire::Policy) -> Result<PolicyPatch, Invalid> {
    if policy.peer_site.is_some() {
        return Err(field("peerSite", "is changed by SetPeer, not with the policy"));
    }
    if policy.pool.is_some() {
        return Err(field("pool", "is fixed at creation"));
    }
    let patch = patch_fields(policy)?;
    match patch.is_empty() && *policy == wire::Policy::default() {
        true => Err(field("policy", "names no field to change")),
        false => Ok(patch),
    }
}

fn patch_fields(policy: &wire::Policy) -> Result<PolicyPatch, Invalid> {
    not_yet_acting(policy)?;
    Ok(PolicyPatch {
        mode: policy.mode.map(mode).transpose()?,
        ack_on: policy.ack_on.map(ack_on).transpose()?,
        rpo_target_ms: within("rpoTarget", "milliseconds", policy.rpo_target_ms, bounds::RPO_TARGET_MS)?,
        retention_ms: within("retention", "milliseconds", policy.retention_ms, bounds::RETENTION_MS)?,
        log_bytes: within("logSize", "bytes", policy.log_size_bytes, bounds::LOG_BYTES)?,
        bandwidth: policy.bandwidth_bytes.map(bandwidth).transpose()?,
        disk_timeout_ms: within("diskTimeout", "milliseconds", policy.disk_timeout_ms, bounds::DISK_TIMEOUT_MS)?,
        index_ranges: within("indexRanges", "ranges", policy.index_ranges, bounds::INDEX_RANGES)?,
        on_peer_loss: policy.on_peer_loss.map(on_peer_loss).transpose()?,
        auto_failover: policy.auto_failover,
        peer_loss_ms: within("peerLoss", "milliseconds", policy.peer_loss_ms, bounds::PEER_LOSS_MS)?,
        frontend: policy.frontend.map(frontend).transpose()?,
    })
}

fn within<N: Copy + PartialOrd + std::fmt::Display>(
    name: &'static str,
    unit: &str,
    value: Option<N>,
    allowed: RangeInclusive<N>,
) -> Result<Option<N>, Invalid> {
    match value {
        Some(value) if !allowed.contains(&value) => {
            let (min, max) = allowed.into_inner();
            Err(field(name, format!("is {value}: allowed are {min} to {max} {unit}")))
        }
        value => Ok(value),
    }
}

fn bandwidth(value: u64) -> Result<u64, Invalid> {
    let min = bounds::MIN_BANDWIDTH;
    let text = || format!("is {value}: allowed are 0 (unlimited) and from {min} bytes per second");
    bounds::is_bandwidth(value).then_some(value).ok_or_else(|| field("bandwidth", text()))
}

fn mode(value: i32) -> Result<Mode, Invalid> {
    match wire::Mode::try_from(value) {
        Ok(wire::Mode::Async) => Ok(Mode::Async),
        Ok(wire::Mode::Receive) => Ok(Mode::Receive),
        Ok(wire::Mode::Sync) => Ok(Mode::Sync),
        _ => Err(field("mode", "allowed are sync, receive, async")),
    }
}

fn ack_on(value: i32) -> Result<AckOn, Invalid> {
    match wire::AckOn::try_from(value) {
        Ok(wire::AckOn::Flush) => Ok(AckOn::Flush),
        Ok(wire::AckOn::Write) => Ok(AckOn::Write),
        _ => Err(field("ackOn", "allowed are flush, write")),
    }
}

fn on_peer_loss(value: i32) -> Result<OnPeerLoss, Invalid> {
    match wire::OnPeerLoss::try_from(value) {
        Ok(wire::OnPeerLoss::Suspend) => Ok(OnPeerLoss::Suspend),
        Ok(wire::OnPeerLoss::Witness) => Ok(OnPeerLoss::Witness),
        Ok(wire::OnPeerLoss::Continue) => {
            Err(field("onPeerLoss", "continue does not act yet in this version: allowed are suspend, witness"))
        }
        _ => Err(field("onPeerLoss", "allowed are suspend, witness")),
    }
}

/// A frontend as a request names it; not named is `Auto`.
pub(super) fn frontend(value: i32) -> Result<FrontendKind, Invalid> {
    match wire::Frontend::try_from(value) {
        Ok(wire::Frontend::Unspecified | wire::Frontend::Auto) => Ok(FrontendKind::Auto),
        Ok(wire::Frontend::Nbd) => Ok(FrontendKind::Nbd),
        Ok(wire::Frontend::Fuse) => Ok(FrontendKind::Fuse),
        Ok(wire::Frontend::NbdDevice) => Ok(FrontendKind::NbdDevice),
        Err(_) => Err(field("frontend", "allowed are auto, nbd, nbd-device, fuse")),
    }
}

fn peer(policy: &wire::Policy) -> Result<Option<PeerKey>, Invalid> {
    let Some(text) = policy.peer_site.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
    PeerKey::parse(text).map(Some).ok_or_else(|| field("peerSite", "is neither a peer's name nor a site id"))
}

fn pool(policy: &wire::Policy) -> Result<Option<Name>, Invalid> {
    let Some(text) = policy.pool.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
    Name::parse(text).map(Some).map_err(|error| field("pool", error))
}

/// Refuses everything that would not act.
fn not_yet_acting(policy: &wire::Policy) -> Result<(), Invalid> {
    let is = |value: Option<i32>, acting: i32| value.is_none_or(|value| value == acting);
    let checks = [
        (is(policy.rpo_guard, wire::RpoGuard::Alarm as i32), "rpoGuard", "alarm"),
        (is(policy.compression, wire::Compression::Off as i32), "compression", "off"),
        (policy.mark_interval_ms.is_none(), "markInterval", "leaving it out"),
        (policy.iops_limit.unwrap_or(0) == 0, "iopsLimit", "0 (none)"),
        (policy.auto_accept_loss_ms.unwrap_or(0) == 0, "autoAcceptLoss", "0 (none)"),
    ];
    match checks.into_iter().find(|(fine, ..)| !fine) {
        Some((_, name, allowed)) => Err(field(name, format!("does not act yet in this version: allowed is {allowed}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(policy: wire::Policy) -> Invalid {
        patch(&policy).unwrap_err()
    }

    #[test]
    fn only_named_fields_change() {
        let request =
            wire::Policy { mode: Some(wire::Mode::Sync as i32), log_size_bytes: Some(1 << 30), ..Default::default() };
        let before = Policy { retention_ms: 5, ..Policy::default() };
        let after = patch(&request).unwrap().applied_to(before);
        assert_eq!(after, Policy { mode: Mode::Sync, log_bytes: 1 << 30, ..before });
    }

    #[test]
    fn what_does_not_act_yet_is_refused_by_its_name() {
        let none = wire::Policy::default;
        let table = [
            (wire::Policy { on_peer_loss: Some(wire::OnPeerLoss::Continue as i32), ..none() }, "onPeerLoss"),
            (wire::Policy { rpo_guard: Some(wire::RpoGuard::Degrade as i32), ..none() }, "rpoGuard"),
            (wire::Policy { compression: Some(wire::Compression::Auto as i32), ..none() }, "compression"),
            (wire::Policy { mark_interval_ms: Some(1000), ..none() }, "markInterval"),
            (wire::Policy { iops_limit: Some(100), ..none() }, "iopsLimit"),
            (wire::Policy { auto_accept_loss_ms: Some(1), ..none() }, "autoAcceptLoss"),
        ];
        for (policy, name) in table {
            let error = refused(policy);
            assert_eq!(error.field, name);
            assert!(error.text.contains("does not act yet"), "{error}");
        }
    }

    #[test]
    fn values_outside_their_bounds_name_the_field_and_what_is_allowed() {
        let none = wire::Policy::default;
        let table = [
            (wire::Policy { mode: Some(99), ..none() }, "mode", "sync, receive, async"),
            (wire::Policy { mode: Some(0), ..none() }, "mode", "sync, receive, async"),
            (wire::Policy { ack_on: Some(7), ..none() }, "ackOn", "flush, write"),
            (wire::Policy { log_size_bytes: Some(5), ..none() }, "logSize", "allowed are 1048576 to"),
            (wire::Policy { on_peer_loss: Some(7), ..none() }, "onPeerLoss", "suspend, witness"),
            (wire::Policy { peer_loss_ms: Some(499), ..none() }, "peerLoss", "allowed are 500 to 600000"),
            (wire::Policy { disk_timeout_ms: Some(1), ..none() }, "diskTimeout", "allowed are 1000 to"),
            (wire::Policy { bandwidth_bytes: Some(100), ..none() }, "bandwidth", "allowed are 0 (unlimited) and from"),
            (wire::Policy { index_ranges: Some(1), ..none() }, "indexRanges", "allowed are 1024 to"),
            (wire::Policy { frontend: Some(9), ..none() }, "frontend", "auto, nbd, nbd-device, fuse"),
            (wire::Policy { pool: Some("x".to_owned()), ..none() }, "pool", "fixed at creation"),
            (wire::Policy { peer_site: Some("x".to_owned()), ..none() }, "peerSite", "SetPeer"),
            (none(), "policy", "names no field"),
        ];
        for (policy, name, words) in table {
            let error = refused(policy);
            assert_eq!(error.field, name);
            assert!(error.text.contains(words), "{error}");
        }
    }

    #[test]
    fn a_volume_that_waits_for_a_peer_needs_one() {
        let request = wire::Policy { mode: Some(wire::Mode::Sync as i32), ..Default::default() };
        assert_eq!(wishes(&request).unwrap_err().field, "mode");
        let request = wire::Policy { peer_site: Some("b".to_owned()), ..request };
        assert_eq!(wishes(&request).unwrap().patch.mode, Some(Mode::Sync));
    }

    #[test]
    fn acting_values_of_other_fields_may_be_named() {
        let request = wire::Policy {
            rpo_guard: Some(wire::RpoGuard::Alarm as i32),
            compression: Some(wire::Compression::Off as i32),
            ..Default::default()
        };
        assert!(patch(&request).unwrap().is_empty());
    }
}
