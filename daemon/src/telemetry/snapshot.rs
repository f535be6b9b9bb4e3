//! The state of volumes, pools and peers as metrics: made anew for each scrape from what the engine says then. A volume that
//! is gone leaves nothing behind.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tidemark_core::config::{AckOn, Mode};
use tidemark_core::status::{CopyState, Status};

use crate::control::state::{self, COPY_CODES, LINK_CODES, ROLE_CODES};
use crate::control::{AgentInfo, PeerHealth, PeerInfo, PoolInfo, VolumeInfo, WitnessInfo};

type Number = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabel {
    volume: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    volume: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeInfoLabels {
    volume: String,
    id: String,
    pool: String,
    peer: String,
    mode: &'static str,
    ack_on: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

/// Name without prefix and unit, help, unit, value.
type Gauged<T> = (&'static str, &'static str, Option<Unit>, fn(&T) -> f64);
/// Name without prefix and `_total`, help, value.
type Counted = (&'static str, &'static str, fn(&Status) -> u64);
/// Name without prefix, help, every code, the code now.
type Stated = (&'static str, &'static str, &'static [&'static str], fn(&Status) -> &'static str);

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

const VOLUME_GAUGES: [Gauged<Status>; 31] = [
    ("arbitrated", "1 when the witness decides who serves", None, |s| f64::from(u8::from(s.config.lease_gen != 0))),
    ("floor_lsn", "Position that the base image holds", None, |s| s.floor.0 as f64),
    ("committed_lsn", "Position durable at every site that counts", None, |s| s.committed.0 as f64),
    ("durable_lsn", "Position synced here", None, |s| s.durable.0 as f64),
    ("appended_lsn", "Position written here", None, |s| s.appended.lsn.0 as f64),
    ("peer_durable_lsn", "Position that the peer said is durable there", None, |s| s.peer_durable.0 as f64),
    ("backlog", "Log records that the peer does not have durable", Some(Unit::Bytes), |s| s.backlog_bytes as f64),
    ("rpo", "Age of the oldest record that the peer does not have durable", Some(Unit::Seconds), |s| seconds(s.rpo_ms)),
    ("rpo_target", "Wanted RPO", Some(Unit::Seconds), |s| seconds(s.policy.rpo_target_ms)),
    ("log", "Log slots on disk", Some(Unit::Bytes), |s| s.log_bytes as f64),
    ("log_limit", "What the log may take", Some(Unit::Bytes), |s| s.log_limit_bytes as f64),
    ("index_ranges", "Ranges in the in-memory index", None, |s| s.index_ranges as f64),
    ("index_limit_ranges", "Ranges that the index may hold", None, |s| f64::from(s.policy.index_ranges)),
    ("requests", "Requests not yet answered", None, |s| s.requests as f64),
    ("branches", "Sealed suffixes", None, |s| f64::from(s.branches)),
    ("forced_decisions", "Human decisions in this copy's history", None, |s| s.forced_history.len() as f64),
    ("oldest_disk_op", "Age of the oldest disk operation", Some(Unit::Seconds), |s| seconds(s.oldest_disk_op_ms)),
    ("promotable", "1 when this copy could be made primary, perhaps by a person's word and with a loss", None, |s| {
        f64::from(u8::from(s.promotable.loss.is_some()))
    }),
    ("promotable_lossless", "1 when making this copy primary would lose no acknowledged flush", None, |s| {
        f64::from(u8::from(s.promotable.class() == "lossless"))
    }),
    ("promotable_loss", "Of a lossy promotion: what is known to be missing here", Some(Unit::Bytes), |s| {
        s.promotable.loss.map_or(0.0, |loss| loss.bytes as f64)
    }),
    ("promotable_age", "Of a lossy promotion: how far this copy is known to lie behind", Some(Unit::Seconds), |s| {
        s.promotable.loss.map_or(0.0, |loss| seconds(loss.ms))
    }),
    ("promotable_needs_word", "1 when making this copy primary takes a person's word", None, |s| {
        f64::from(u8::from(s.promotable.needs_word))
    }),
    ("shipping_paused", "1 when an operator paused shipping to the peer", None, |s| f64::from(u8::from(s.paused.ship))),
    ("floor_paused", "1 when an operator paused the floor", None, |s| f64::from(u8::from(s.paused.floor))),
    ("log_full_in", "Floor paused: when the log is full, as it grew of late", Some(Unit::Seconds), |s| {
        s.log_full_in_ms.map_or(f64::INFINITY, seconds)
    }),
    ("protected", "1 when a loss of this site would lose no acknowledged flush", None, |s| {
        f64::from(u8::from(s.protected))
    }),
    ("epoch_major", "Major of the configuration's epoch", None, |s| f64::from(s.config.epoch.major)),
    ("epoch_minor", "Minor of the configuration's epoch", None, |s| f64::from(s.config.epoch.minor)),
    ("sync_sites", "Sites whose durability a flush needs", None, |s| s.config.sites.len() as f64),
    ("seeding_done", "First copy: done in this pass", Some(Unit::Bytes), |s| seeding(s).0 as f64),
    ("seeding", "First copy: all of this pass; 0 when there is none", Some(Unit::Bytes), |s| seeding(s).1 as f64),
];

const VOLUME_COUNTERS: [Counted; 12] = [
    ("reads", "Reads completed", |s| s.counters.reads),
    ("read_bytes", "Bytes read", |s| s.counters.read_bytes),
    ("writes", "Writes, zeroes and discards completed", |s| s.counters.writes),
    ("write_bytes", "Bytes written", |s| s.counters.write_bytes),
    ("flushes", "Flushes completed", |s| s.counters.flushes),
    ("frames", "Frames written to the log", |s| s.counters.frames),
    ("syncs", "Syncs of the log", |s| s.counters.syncs),
    ("shipped_bytes", "Bytes shipped to the peer", |s| s.counters.shipped_bytes),
    ("seeded_bytes", "Bytes of first copy or resync sent", |s| s.counters.seeded_bytes),
    ("floor_blocks", "Blocks that the floor wrote to the base image", |s| s.counters.floor_blocks),
    ("checksum_errors", "Blocks whose checksum was wrong when read", |s| s.counters.checksum_errors),
    ("refusals", "Refusals between the copies, sent or received", |s| s.counters.refusals),
];

const VOLUME_STATES: [Stated; 3] = [
    ("role", "1 for the copy's role", &ROLE_CODES, |s| state::role(&s.role).code),
    ("copy", "1 for the copy's state", &COPY_CODES, |s| state::copy(&s.copy).code),
    ("link", "1 for the state of the link to the peer", &LINK_CODES, |s| state::link(&s.link).code),
];

const POOL_GAUGES: [Gauged<PoolInfo>; 3] = [
    ("size", "Size of the pool's file system", Some(Unit::Bytes), |pool| pool.total_bytes as f64),
    ("free", "Free there", Some(Unit::Bytes), |pool| pool.free_bytes as f64),
    ("volumes", "Volumes in the pool", None, |pool| f64::from(pool.volumes)),
];

fn seeding(status: &Status) -> (u64, u64) {
    match status.copy {
        CopyState::Seeding { done, total, .. } => (done, total),
        _ => (0, 0),
    }
}

/// Everything that the engine knows, below `prefix`.
pub(super) fn registry(prefix: &str, agent: &AgentInfo, volumes: &[VolumeInfo]) -> Registry {
    let mut registry = Registry::with_prefix(prefix);
    about_agent(&mut registry, agent);
    about_volumes(registry.sub_registry_with_prefix("volume"), volumes);
    about_pools(registry.sub_registry_with_prefix("pool"), &agent.pools);
    about_peers(registry.sub_registry_with_prefix("peer"), &agent.peers);
    if let Some(witness) = &agent.witness {
        about_lease(registry.sub_registry_with_prefix("witness"), witness);
    }
    registry
}

fn about_agent(registry: &mut Registry, agent: &AgentInfo) {
    let labels = vec![
        ("site", agent.site_name.to_string()),
        ("site_id", agent.site.to_string()),
        ("node", agent.node_name.to_string()),
        ("node_id", agent.node.to_string()),
    ];
    registry.register("agent", "Who this agent is", Info::new(labels));
    let shards: Gauge = Gauge::default();
    shards.set(agent.shards.len() as i64);
    registry.register("shards", "Serving threads", shards);
}

fn about_volumes(registry: &mut Registry, volumes: &[VolumeInfo]) {
    let open: Vec<(&VolumeInfo, &Status)> =
        volumes.iter().filter_map(|volume| Some((volume, &**volume.status.as_ref().ok()?))).collect();
    let name = |volume: &VolumeInfo| VolumeLabel { volume: volume.name.to_string() };
    let yes_no = |yes: bool| f64::from(u8::from(yes));

    gauge(
        registry,
        "open",
        "1 when the copy is open",
        None,
        volumes.iter().map(|v| (name(v), yes_no(v.status.is_ok()))),
    );
    let attached = volumes.iter().map(|v| (name(v), yes_no(v.attachment.is_some())));
    gauge(registry, "attached", "1 when a frontend is open", None, attached);
    let connections =
        volumes.iter().map(|v| (name(v), v.attachment.as_ref().map_or(0.0, |open| f64::from(open.connections))));
    gauge(registry, "connections", "Clients of the open frontend", None, connections);
    gauge(
        registry,
        "info",
        "What the volume is",
        None,
        open.iter().map(|(volume, status)| (about(volume, status), 1.0)),
    );
    let sizes = open.iter().map(|(volume, _)| (name(volume), volume.size as f64));
    gauge(registry, "size", "Size of the volume", Some(Unit::Bytes), sizes);
    let kept = open.iter().map(|(volume, _)| (name(volume), f64::from(volume.branches.unacked)));
    gauge(registry, "branches_unacked", "Sealed branches that are kept of which nothing was acknowledged", None, kept);
    let kept = open.iter().map(|(volume, _)| (name(volume), f64::from(volume.branches.unacknowledged)));
    let help = "Sealed branches that hold what may have been acknowledged and wait for a person";
    gauge(registry, "rescue_branches_unacknowledged", help, None, kept);
    for (metric, help, unit, value) in VOLUME_GAUGES {
        gauge(registry, metric, help, unit, open.iter().map(|(volume, status)| (name(volume), value(status))));
    }
    for (metric, help, value) in VOLUME_COUNTERS {
        let family = Family::<VolumeLabel, Counter>::default();
        for (volume, status) in &open {
            family.get_or_create(&name(volume)).inc_by(value(status));
        }
        registry.register(metric, help, family);
    }
    for (metric, help, codes, now) in VOLUME_STATES {
        let each = open.iter().flat_map(|(volume, status)| {
            let labels = |state| StateLabels { volume: volume.name.to_string(), state };
            codes.iter().map(move |code| (labels(*code), yes_no(*code == now(status))))
        });
        gauge(registry, metric, help, None, each);
    }
}

fn about(volume: &VolumeInfo, status: &Status) -> VolumeInfoLabels {
    let mode = match status.policy.mode {
        Mode::Async => "async",
        Mode::Receive => "receive",
        Mode::Sync => "sync",
    };
    let ack_on = match status.policy.ack_on {
        AckOn::Flush => "flush",
        AckOn::Write => "write",
    };
    VolumeInfoLabels {
        volume: volume.name.to_string(),
        id: volume.id.to_string(),
        pool: volume.pool.to_string(),
        peer: volume.peer.as_ref().map(ToString::to_string).unwrap_or_default(),
        mode,
        ack_on,
    }
}

fn about_pools(registry: &mut Registry, pools: &[PoolInfo]) {
    for (metric, help, unit, value) in POOL_GAUGES {
        let each = pools.iter().map(|pool| (PoolLabel { pool: pool.name.to_string() }, value(pool)));
        gauge(registry, metric, help, unit, each);
    }
}

fn about_peers(registry: &mut Registry, peers: &[PeerInfo]) {
    let name = |peer: &PeerInfo| PeerLabel { peer: peer.name.to_string() };
    let up = peers.iter().map(|peer| (name(peer), f64::from(u8::from(peer.health == PeerHealth::Up))));
    gauge(registry, "up", "1 when the peer answers", None, up);
    let rtt = peers.iter().filter_map(|peer| Some((name(peer), peer.rtt_us? as f64 / 1e6)));
    gauge(registry, "rtt", "Last round trip to the peer", Some(Unit::Seconds), rtt);
    let heard = peers.iter().filter_map(|peer| Some((name(peer), seconds(peer.last_heard_ms?))));
    gauge(registry, "last_heard", "Age of the peer's last message", Some(Unit::Seconds), heard);
    let volumes = peers.iter().map(|peer| (name(peer), f64::from(peer.volumes)));
    gauge(registry, "volumes", "Volumes that name the peer", None, volumes);
}

fn about_lease(registry: &mut Registry, witness: &WitnessInfo) {
    let (lease_gen, left) = witness.lease.unwrap_or_default();
    let (held, grant): (Number, Number) = Default::default();
    held.set(left.as_secs_f64());
    grant.set(lease_gen as f64);
    let help = "How much longer the last renewal of this agent's lease lasts; 0 without a lease";
    registry.register_with_unit("lease_left", help, Unit::Seconds, held);
    registry.register("lease_grant", "Which grant of its lease this agent holds; 0: none", grant);
}

fn gauge<L>(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>, values: impl Iterator<Item = (L, f64)>)
where
    L: EncodeLabelSet + std::hash::Hash + Eq + Clone + std::fmt::Debug + Send + Sync + 'static,
{
    let family = Family::<L, Number>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value);
    }
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family),
        None => registry.register(name, help, family),
    }
}
