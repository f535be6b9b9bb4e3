//! The configuration K, the policy and every enum of the wire.
//!
//! An enum value that is unspecified or unknown is malformed. K is checked for the shape that `tidemark_core::config::Config`
//! promises; whether it may be adopted is decided by the core. A policy is held to the bounds of the admin API: a peer is no
//! way round them.

use std::ops::RangeInclusive;

use tidemark_core::config::{AckOn, Config, Mode, OnPeerLoss, Policy, Since};
use tidemark_core::ship::{AdoptStep, Refusal, VerifyVerdict};
use tidemark_core::types::SiteId;
use tidemark_proto::peer as wire;

use super::Malformed;
use super::parts::{at_most, epoch_in, epoch_out, id, raw, required};
use crate::bounds;

/// K for the wire.
pub fn config_out(config: &Config) -> wire::Config {
    wire::Config {
        epoch: epoch_out(config.epoch),
        nonce: raw(&config.nonce.0),
        proposer: raw(&config.proposer.0),
        since: since_out(config.since),
        base: since_out(config.base),
        primary: config.primary.map(|site| raw(&site.0)),
        leader: raw(&config.leader.0),
        lease_gen: config.lease_gen,
        member_rev: config.member_rev,
        sites: config.sites.iter().map(|site| raw(&site.0)).collect(),
        mode: mode_out(config.mode),
        generation: raw(&config.generation.0),
        forced: config.forced,
        hands_over: config.hands_over,
    }
}

/// K from the wire.
pub fn config_in(config: Option<wire::Config>) -> Result<Config, Malformed> {
    let config = required(config, "config")?;
    at_most(config.sites.len(), Config::MAX_SITES, "sites")?;
    let sites = config.sites.iter().map(|site| id(site, "sites")).collect::<Result<Vec<SiteId>, _>>()?;
    let config = Config {
        epoch: epoch_in(config.epoch)?,
        nonce: id(&config.nonce, "nonce")?,
        proposer: id(&config.proposer, "proposer")?,
        since: since_in(config.since, "since")?,
        base: since_in(config.base, "base")?,
        primary: config.primary.as_ref().map(|site| id(site, "primary")).transpose()?,
        leader: id(&config.leader, "leader")?,
        lease_gen: config.lease_gen,
        member_rev: config.member_rev,
        sites,
        mode: mode_in(config.mode)?,
        generation: id(&config.generation, "generation")?,
        forced: config.forced,
        hands_over: config.hands_over,
    };
    check_config(&config)?;
    Ok(config)
}

/// The promises of K's type.
fn check_config(config: &Config) -> Result<(), Malformed> {
    let broken = |rule| Err(Malformed::Config { rule });
    if config.sites.is_empty() {
        return broken("S is empty");
    }
    if config.sites.iter().enumerate().any(|(i, site)| config.sites[..i].contains(site)) {
        return broken("S names a site twice");
    }
    if config.sites.iter().any(|site| site.is_nil()) {
        return broken("S names no site");
    }
    if config.primary.is_some_and(|primary| !config.has(primary)) {
        return broken("primary is not in S");
    }
    if config.since.epoch > config.epoch {
        return broken("since is newer than K");
    }
    Ok(())
}

pub(super) fn since_out(since: Since) -> Option<wire::Since> {
    Some(wire::Since { epoch: epoch_out(since.epoch), nonce: raw(&since.nonce.0) })
}

pub(super) fn since_in(since: Option<wire::Since>, field: &'static str) -> Result<Since, Malformed> {
    let since = required(since, field)?;
    Ok(Since { epoch: epoch_in(since.epoch)?, nonce: id(&since.nonce, "nonce")? })
}

/// A policy for the wire.
pub fn policy_out(policy: Policy) -> wire::Policy {
    wire::Policy {
        mode: mode_out(policy.mode),
        ack_on: match policy.ack_on {
            AckOn::Flush => wire::AckOn::Flush,
            AckOn::Write => wire::AckOn::Write,
        }
        .into(),
        rpo_target_ms: policy.rpo_target_ms,
        retention_ms: policy.retention_ms,
        log_bytes: policy.log_bytes,
        disk_timeout_ms: policy.disk_timeout_ms,
        bandwidth: policy.bandwidth,
        index_ranges: policy.index_ranges,
        on_peer_loss: match policy.on_peer_loss {
            OnPeerLoss::Suspend => wire::OnPeerLoss::Suspend,
            OnPeerLoss::Witness => wire::OnPeerLoss::Witness,
        }
        .into(),
        auto_failover: policy.auto_failover,
        peer_loss_ms: policy.peer_loss_ms,
    }
}

/// A policy from the wire.
pub fn policy_in(policy: wire::Policy) -> Result<Policy, Malformed> {
    Ok(Policy {
        mode: mode_in(policy.mode)?,
        ack_on: match wire::AckOn::try_from(policy.ack_on) {
            Ok(wire::AckOn::Flush) => AckOn::Flush,
            Ok(wire::AckOn::Write) => AckOn::Write,
            _ => return Err(Malformed::Enum { field: "ack_on", value: policy.ack_on }),
        },
        rpo_target_ms: within(policy.rpo_target_ms, bounds::RPO_TARGET_MS, "rpo_target_ms")?,
        retention_ms: within(policy.retention_ms, bounds::RETENTION_MS, "retention_ms")?,
        log_bytes: within(policy.log_bytes, bounds::LOG_BYTES, "log_bytes")?,
        disk_timeout_ms: within(policy.disk_timeout_ms, bounds::DISK_TIMEOUT_MS, "disk_timeout_ms")?,
        bandwidth: match policy.bandwidth {
            bytes if bounds::is_bandwidth(bytes) => bytes,
            bytes => return Err(Malformed::Bounds { field: "bandwidth", value: bytes }),
        },
        index_ranges: within(policy.index_ranges, bounds::INDEX_RANGES, "index_ranges")?,
        on_peer_loss: match wire::OnPeerLoss::try_from(policy.on_peer_loss) {
            // Unspecified: an agent of before there was a choice.
            Ok(wire::OnPeerLoss::Unspecified | wire::OnPeerLoss::Suspend) => OnPeerLoss::Suspend,
            Ok(wire::OnPeerLoss::Witness) => OnPeerLoss::Witness,
            _ => return Err(Malformed::Enum { field: "on_peer_loss", value: policy.on_peer_loss }),
        },
        auto_failover: policy.auto_failover,
        peer_loss_ms: match policy.peer_loss_ms {
            0 => Policy::default().peer_loss_ms,
            ms => within(ms, bounds::PEER_LOSS_MS, "peer_loss_ms")?,
        },
    })
}

fn within<N: Copy + PartialOrd + Into<u64>>(
    value: N,
    allowed: RangeInclusive<N>,
    field: &'static str,
) -> Result<N, Malformed> {
    allowed.contains(&value).then_some(value).ok_or(Malformed::Bounds { field, value: value.into() })
}

fn mode_out(mode: Mode) -> i32 {
    match mode {
        Mode::Async => wire::Mode::Async,
        Mode::Receive => wire::Mode::Receive,
        Mode::Sync => wire::Mode::Sync,
    }
    .into()
}

fn mode_in(value: i32) -> Result<Mode, Malformed> {
    match wire::Mode::try_from(value) {
        Ok(wire::Mode::Async) => Ok(Mode::Async),
        Ok(wire::Mode::Receive) => Ok(Mode::Receive),
        Ok(wire::Mode::Sync) => Ok(Mode::Sync),
        _ => Err(Malformed::Enum { field: "mode", value }),
    }
}

pub(super) fn step_out(step: AdoptStep) -> i32 {
    match step {
        AdoptStep::Rejoin => wire::AdoptStep::Rejoin,
        AdoptStep::Release => wire::AdoptStep::Release,
        AdoptStep::Handover => wire::AdoptStep::Handover,
        AdoptStep::Same => wire::AdoptStep::Same,
    }
    .into()
}

pub(super) fn step_in(value: i32) -> Result<AdoptStep, Malformed> {
    match wire::AdoptStep::try_from(value) {
        Ok(wire::AdoptStep::Rejoin) => Ok(AdoptStep::Rejoin),
        Ok(wire::AdoptStep::Release) => Ok(AdoptStep::Release),
        Ok(wire::AdoptStep::Handover) => Ok(AdoptStep::Handover),
        Ok(wire::AdoptStep::Same) => Ok(AdoptStep::Same),
        _ => Err(Malformed::Enum { field: "step", value }),
    }
}

pub(super) fn verdict_out(verdict: VerifyVerdict) -> i32 {
    match verdict {
        VerifyVerdict::Equal => wire::VerifyVerdict::Equal,
        VerifyVerdict::Different => wire::VerifyVerdict::Different,
        VerifyVerdict::Busy => wire::VerifyVerdict::Busy,
    }
    .into()
}

pub(super) fn verdict_in(value: i32) -> Result<VerifyVerdict, Malformed> {
    match wire::VerifyVerdict::try_from(value) {
        Ok(wire::VerifyVerdict::Equal) => Ok(VerifyVerdict::Equal),
        Ok(wire::VerifyVerdict::Different) => Ok(VerifyVerdict::Different),
        Ok(wire::VerifyVerdict::Busy) => Ok(VerifyVerdict::Busy),
        _ => Err(Malformed::Enum { field: "verdict", value }),
    }
}

/// Both directions from one table: a refusal that is added to the core without a number here does not compile.
macro_rules! refusals {
    ($($name:ident),* $(,)?) => {
        pub(super) fn refusal_out(refusal: Refusal) -> i32 {
            match refusal {
                $(Refusal::$name => wire::Refusal::$name,)*
            }
            .into()
        }

        pub(super) fn refusal_in(value: i32) -> Result<Refusal, Malformed> {
            match wire::Refusal::try_from(value) {
                $(Ok(wire::Refusal::$name) => Ok(Refusal::$name),)*
                _ => Err(Malformed::Enum { field: "refusal", value }),
            }
        }
    };
}

refusals!(
    Header, Version, Identity, OldEpoch, NeedConfig, Gap, Rewrite, Payload, Chain, Unrelated, Diverged, Suspect,
    Behind, State, Size, Storage, SplitBrain,
);

/// The result of a configuration step: no refusal means persisted.
pub(super) fn answer_out(result: Result<(), Refusal>) -> i32 {
    result.map_or_else(refusal_out, |()| wire::Refusal::Unspecified.into())
}

pub(super) fn answer_in(value: i32) -> Result<Result<(), Refusal>, Malformed> {
    if value == i32::from(wire::Refusal::Unspecified) { Ok(Ok(())) } else { refusal_in(value).map(Err) }
}
