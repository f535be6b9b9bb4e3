//! From plain values to answers on the wire. Total: every value has an answer.

use std::path::Path;

use tidemark_core::config::{AckOn, Config, Mode, OnPeerLoss, Paused};
use tidemark_core::layout::Extent;
use tidemark_core::site::Membership;
use tidemark_core::status::{CopyState, Counters, GroupMembers, MemberState, Status};
use tidemark_core::types::{Epoch, NodeId, Position};
use tidemark_core::verb::{Assertion, PromotionClass, VerbOk};
use tidemark_proto::admin as wire;

use super::branches::{BranchInfo, Branches, DroppedBranch};
use super::engine::{
    AgentInfo, Attachment, FrontendKind, PeerInfo, Place, PoolInfo, ShardInfo, Verified, VerifyProgress, VolumeInfo,
    WitnessInfo,
};
use super::state::{self, StateText};
use crate::witness::Probe;

pub(super) fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn moment(wall: tidemark_core::types::WallMs) -> i64 {
    i64::try_from(wall.0).unwrap_or(i64::MAX)
}

pub(super) fn state(state: StateText) -> Option<wire::State> {
    let StateText { code, text, reason, normal } = state;
    Some(wire::State { code: code.to_owned(), text, reason, normal })
}

pub(super) fn volume(info: VolumeInfo) -> wire::Volume {
    let policy = policy(&info);
    let (status, open_error) = match &info.status {
        Ok(status) => (Some(volume_status(status)), String::new()),
        Err(why) => (None, why.clone()),
    };
    wire::Volume {
        id: info.id.to_string(),
        name: info.name.to_string(),
        size_bytes: info.size,
        group_id: info.group.to_string(),
        pool: info.pool.to_string(),
        directory: path(&info.directory),
        base_path: path(&info.base),
        adopted: info.adopted,
        shard: info.shard.into(),
        created_ms: moment(info.created),
        peer_site_id: info.peer_site.map(|site| site.to_string()).unwrap_or_default(),
        peer_name: info.peer.map(|name| name.to_string()).unwrap_or_default(),
        policy: Some(policy),
        attachment: info.attachment.map(attachment),
        status,
        open_error,
        group_name: info.group_name.to_string(),
        group_volumes: info.group_volumes.iter().map(ToString::to_string).collect(),
    }
}

fn policy(info: &VolumeInfo) -> wire::Policy {
    let placement = wire::Policy {
        frontend: Some(frontend(info.frontend) as i32),
        pool: Some(info.pool.to_string()),
        peer_site: info.peer_site.map(|site| site.to_string()),
        ..Default::default()
    };
    let Some(policy) = info.policy() else { return placement };
    wire::Policy {
        mode: Some(mode(policy.mode) as i32),
        ack_on: Some(ack_on(policy.ack_on) as i32),
        on_peer_loss: Some(on_peer_loss(policy.on_peer_loss) as i32),
        rpo_target_ms: Some(policy.rpo_target_ms),
        rpo_guard: Some(wire::RpoGuard::Alarm as i32),
        retention_ms: Some(policy.retention_ms),
        log_size_bytes: Some(policy.log_bytes),
        bandwidth_bytes: Some(policy.bandwidth),
        compression: Some(wire::Compression::Off as i32),
        auto_failover: Some(policy.auto_failover),
        disk_timeout_ms: Some(policy.disk_timeout_ms),
        index_ranges: Some(policy.index_ranges),
        peer_loss_ms: Some(policy.peer_loss_ms),
        ..placement
    }
}

fn mode(mode: Mode) -> wire::Mode {
    match mode {
        Mode::Async => wire::Mode::Async,
        Mode::Receive => wire::Mode::Receive,
        Mode::Sync => wire::Mode::Sync,
    }
}

fn ack_on(ack_on: AckOn) -> wire::AckOn {
    match ack_on {
        AckOn::Flush => wire::AckOn::Flush,
        AckOn::Write => wire::AckOn::Write,
    }
}

fn on_peer_loss(choice: OnPeerLoss) -> wire::OnPeerLoss {
    match choice {
        OnPeerLoss::Suspend => wire::OnPeerLoss::Suspend,
        OnPeerLoss::Witness => wire::OnPeerLoss::Witness,
    }
}

fn frontend(frontend: FrontendKind) -> wire::Frontend {
    match frontend {
        FrontendKind::Auto => wire::Frontend::Auto,
        FrontendKind::Nbd => wire::Frontend::Nbd,
        FrontendKind::Fuse => wire::Frontend::Fuse,
        FrontendKind::NbdDevice => wire::Frontend::NbdDevice,
    }
}

fn volume_status(status: &Status) -> wire::VolumeStatus {
    wire::VolumeStatus {
        role: state(state::role(&status.role)),
        copy: state(state::copy(&status.copy)),
        link: state(state::link(&status.link)),
        protection: state(state::protection(status)),
        config: Some(group_config(&status.config)),
        floor_lsn: status.floor.0,
        committed_lsn: status.committed.0,
        durable_lsn: status.durable.0,
        appended: Some(position(status.appended)),
        peer_durable_lsn: status.peer_durable.0,
        backlog_bytes: status.backlog_bytes,
        rpo_ms: status.rpo_ms,
        log_bytes: status.log_bytes,
        log_limit_bytes: status.log_limit_bytes,
        index_ranges: status.index_ranges,
        requests: status.requests,
        forced_history: status.forced_history.iter().map(assertion).collect(),
        branches: status.branches,
        oldest_disk_op_ms: status.oldest_disk_op_ms,
        counters: Some(counters(&status.counters)),
        seeding: seeding(&status.copy),
        promotable: Some(super::plan::promotable(&status.promotable)),
        paused: paused(status.paused),
        log_full_in_ms: status.log_full_in_ms,
        members: status.members.as_ref().map(group_members),
    }
}

fn group_members(group: &GroupMembers) -> wire::GroupMembers {
    let GroupMembers { membership, known, worst } = group;
    let state = |known: &MemberState| match known {
        MemberState::Unknown => "unknown",
        MemberState::Silent => "silent",
        MemberState::There { holds_k: false, .. } => "behind",
        MemberState::There { serves: true, .. } => "serving",
        MemberState::There { .. } => "ready",
    };
    let member = |(number, (node, known)): (usize, (&NodeId, &MemberState))| wire::GroupMember {
        node: node.to_string(),
        leads: number == Membership::LEADER,
        state: state(known).to_owned(),
    };
    wire::GroupMembers {
        here: membership.nodes.iter().zip(known).enumerate().map(member).collect(),
        peers: membership.peers.iter().map(ToString::to_string).collect(),
        me: membership.me as u32,
        worst: worst.clone().unwrap_or_default(),
    }
}

fn paused(paused: Paused) -> Vec<String> {
    let parts = [("ship", paused.ship), ("floor", paused.floor)];
    parts.iter().filter(|(_, is)| *is).map(|(name, _)| (*name).to_owned()).collect()
}

fn seeding(copy: &CopyState) -> Option<wire::Progress> {
    match copy {
        CopyState::Seeding { done, total, .. } => Some(wire::Progress { done_bytes: *done, total_bytes: *total }),
        _ => None,
    }
}

fn group_config(config: &Config) -> wire::GroupConfig {
    wire::GroupConfig {
        epoch: Some(epoch(config.epoch)),
        nonce: config.nonce.to_string(),
        proposer_node: config.proposer.to_string(),
        primary_site: config.primary.map(|site| site.to_string()).unwrap_or_default(),
        leader_node: config.leader.to_string(),
        sites: config.sites.iter().map(ToString::to_string).collect(),
        mode: mode(config.mode) as i32,
        generation: config.generation.to_string(),
        forced: config.forced,
        lease_gen: config.lease_gen,
    }
}

fn epoch(epoch: Epoch) -> wire::Epoch {
    wire::Epoch { major: epoch.major, minor: epoch.minor }
}

fn position(position: Position) -> wire::Position {
    wire::Position {
        generation: position.generation.to_string(),
        incarnation: position.incarnation.0,
        lsn: position.lsn.0,
    }
}

fn assertion(assertion: &Assertion) -> wire::Assertion {
    let Assertion { who, why, at } = assertion.clone();
    wire::Assertion { who, why, at_ms: moment(at) }
}

fn counters(counters: &Counters) -> wire::Counters {
    wire::Counters {
        reads: counters.reads,
        read_bytes: counters.read_bytes,
        writes: counters.writes,
        write_bytes: counters.write_bytes,
        flushes: counters.flushes,
        frames: counters.frames,
        syncs: counters.syncs,
        shipped_bytes: counters.shipped_bytes,
        seeded_bytes: counters.seeded_bytes,
        floor_blocks: counters.floor_blocks,
        checksum_errors: counters.checksum_errors,
        refusals: counters.refusals,
    }
}

pub(super) fn attachment(attachment: Attachment) -> wire::Attachment {
    let connections = attachment.connections;
    let device = |frontend: wire::Frontend, device: &Path, link: &Path| wire::Attachment {
        frontend: frontend as i32,
        device_path: path(device),
        device_link: path(link),
        connections,
        ..Default::default()
    };
    match attachment.place {
        Place::Fuse { device: path, link } => device(wire::Frontend::Fuse, &path, &link),
        Place::NbdDevice { device: path, link } => device(wire::Frontend::NbdDevice, &path, &link),
        Place::Nbd { uri, tcp_uri } => wire::Attachment {
            frontend: wire::Frontend::Nbd as i32,
            nbd_uri: uri,
            nbd_tcp_uri: tcp_uri.unwrap_or_default(),
            connections,
            ..Default::default()
        },
    }
}

/// The class is `lossless` when the copy was Primary already: the verb changed nothing.
pub(super) fn promoted(outcome: VerbOk, volume: wire::Volume) -> wire::PromoteResponse {
    let volume = Some(volume);
    match outcome {
        VerbOk::Promoted { class, fork, lost_bytes, lost_ms } => wire::PromoteResponse {
            promotion_class: promotion_class(class) as i32,
            fork_lsn: fork.0,
            lost_bytes,
            lost_ms,
            volume,
        },
        VerbOk::Done(_) | VerbOk::Verified { .. } | VerbOk::SwitchedOver { .. } => wire::PromoteResponse {
            promotion_class: wire::PromotionClass::Lossless as i32,
            volume,
            ..Default::default()
        },
    }
}

pub(super) fn switched(outcome: &VerbOk, volume: wire::Volume) -> wire::SwitchoverResponse {
    let (site, pause_ms) = match outcome {
        VerbOk::SwitchedOver { site, pause_ms } => (site.to_string(), *pause_ms),
        _ => Default::default(),
    };
    wire::SwitchoverResponse { primary_site_id: site, pause_ms, volume: Some(volume) }
}

fn promotion_class(class: PromotionClass) -> wire::PromotionClass {
    match class {
        PromotionClass::Lossless => wire::PromotionClass::Lossless,
        PromotionClass::Lossy => wire::PromotionClass::Lossy,
        PromotionClass::Unproven => wire::PromotionClass::Unproven,
    }
}

pub(super) fn verify_progress(progress: VerifyProgress) -> wire::VerifyResponse {
    let progress = wire::VerifyProgress { blocks_done: progress.done, blocks_total: progress.total };
    wire::VerifyResponse { event: Some(wire::verify_response::Event::Progress(progress)) }
}

pub(super) fn verified(verified: Verified) -> wire::VerifyResponse {
    let bytes = |range: tidemark_core::types::BlockRange| wire::ByteRange {
        offset: range.start() * tidemark_core::types::BLOCK as u64,
        length: range.bytes(),
    };
    let result = wire::VerifyResult {
        equal: verified.differing.is_empty(),
        blocks: verified.blocks,
        lsn: verified.lsn.0,
        differing: verified.differing.into_iter().map(bytes).collect(),
    };
    wire::VerifyResponse { event: Some(wire::verify_response::Event::Result(result)) }
}

pub(super) fn branches(branches: Branches) -> wire::ListBranchesResponse {
    wire::ListBranchesResponse {
        branches: branches.branches.into_iter().map(branch).collect(),
        present: branches.present.map(attachment),
        dropped: branches.dropped.into_iter().map(dropped).collect(),
        space: branches.space.iter().flat_map(|space| space.extents()).map(extent).collect(),
    }
}

fn extent(extent: &Extent) -> wire::Extent {
    let volume_id = if extent.is_hole() { String::new() } else { extent.volume.to_string() };
    wire::Extent { volume_id, length: extent.len }
}

fn dropped(branch: DroppedBranch) -> wire::DroppedBranch {
    let DroppedBranch { number, class, bytes, word } = branch;
    wire::DroppedBranch { number, branch_class: class, bytes, assertion: Some(assertion(&word)) }
}

fn branch(branch: BranchInfo) -> wire::Branch {
    wire::Branch {
        number: branch.number,
        branch_class: branch.class.as_str().to_owned(),
        fork: Some(position(branch.fork)),
        end: Some(position(branch.end)),
        bytes: branch.bytes,
        sealed_ms: moment(branch.sealed),
        path: path(&branch.path),
        closed: branch.closed.as_ref().map(super::plan::engine_refusal),
        attachment: branch.attachment.map(attachment),
    }
}

pub(super) fn peer(peer: PeerInfo) -> wire::Peer {
    wire::Peer {
        name: peer.name.to_string(),
        site_id: peer.site.map(|site| site.to_string()).unwrap_or_default(),
        address: peer.address.to_string(),
        source: if peer.from_config { "config" } else { "verb" }.to_owned(),
        health: state(state::health(&peer.health)),
        rtt_us: peer.rtt_us.unwrap_or(0),
        last_heard_ms: peer.last_heard_ms,
        version: peer.version.unwrap_or_default(),
        volumes: peer.volumes,
    }
}

pub(super) fn agent(agent: AgentInfo) -> wire::Agent {
    wire::Agent {
        site_id: agent.site.to_string(),
        site_name: agent.site_name.to_string(),
        node_id: agent.node.to_string(),
        node_name: agent.node_name.to_string(),
        boot_id: agent.boot.to_string(),
        started_ms: moment(agent.started),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        shards: agent.shards.into_iter().map(shard).collect(),
        pools: agent.pools.into_iter().map(pool).collect(),
        peers: agent.peers.into_iter().map(peer).collect(),
        frontends: agent.frontends.into_iter().map(support).collect(),
        witness: agent.witness.map(witness_state),
    }
}

fn shard(shard: ShardInfo) -> wire::Shard {
    wire::Shard {
        index: shard.index.into(),
        volumes: shard.volumes,
        data_address: shard.data_address.map(|address| address.to_string()).unwrap_or_default(),
    }
}

fn pool(pool: PoolInfo) -> wire::Pool {
    wire::Pool {
        name: pool.name.to_string(),
        path: path(&pool.path),
        log_path: pool.log_path.as_deref().map(path).unwrap_or_default(),
        total_bytes: pool.total_bytes,
        free_bytes: pool.free_bytes,
        volumes: pool.volumes,
    }
}

fn support((kind, works): (FrontendKind, Result<(), String>)) -> wire::FrontendSupport {
    wire::FrontendSupport {
        frontend: frontend(kind) as i32,
        available: works.is_ok(),
        reason: works.err().unwrap_or_default(),
    }
}

fn witness_state(info: WitnessInfo) -> wire::Witness {
    let millis = |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let (lease_gen, left) = info.lease.unwrap_or_default();
    wire::Witness {
        backend: info.backend.to_owned(),
        place: info.place,
        reachable: info.fault.is_none(),
        fault: info.fault.unwrap_or_default(),
        lease_span_ms: millis(info.lease_span),
        lease_gen,
        lease_left_ms: millis(left),
    }
}

pub(super) fn witness(probe: Probe) -> wire::WitnessCheck {
    let micros = |span: std::time::Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    wire::WitnessCheck {
        backend: probe.backend.to_owned(),
        place: probe.place,
        read_us: micros(probe.read),
        cas_us: micros(probe.cas),
        revision: probe.revision.to_string(),
    }
}
