//! What has to hold between the sections of the file.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;

use tidemark_core::group::members::MAX_MEMBERS;

use super::section::Section;
use super::{Config, Security};
use crate::bounds;

pub(super) fn whole(config: &Config, root: &Section<'_>) {
    pools(config, root);
    defaults(config, root);
    peers(config, root);
    site_nodes(config, root);
    peer_ports(config, root);
    listeners(config, root);
    takeover(config, root);
}

/// A promotion that waits for another site's lease has to be answered.
fn takeover(config: &Config, root: &Section<'_>) {
    let Some(witness) = &config.witness else { return };
    let needed = witness.takeover();
    if config.limits.verb_timeout < needed {
        let why =
            format!("must be at least {} s: as long as a promotion at the witness may take", needed.as_secs() + 1);
        root.conflict("limits.verb_timeout", why);
    }
}

fn pools(config: &Config, root: &Section<'_>) {
    if config.pools.is_empty() {
        root.missing("pool", "at least one section [[pool]] with name and path");
    }
    distinct(root, "pool", "name", config.pools.iter().map(|pool| &pool.name));
    let places = config.pools.iter().flat_map(|pool| [Some(&pool.path), pool.log_path.as_ref()]).flatten();
    distinct(root, "pool", "path", places.map(|path| path.display().to_string()));
}

/// A volume that is made with the defaults alone has an allowed policy, which its peer takes.
fn defaults(config: &Config, root: &Section<'_>) {
    let policy = config.defaults.policy();
    let table = [
        ("log_size", "bytes", policy.log_bytes, bounds::LOG_BYTES),
        ("retention", "milliseconds", policy.retention_ms, bounds::RETENTION_MS),
        ("rpo_target", "milliseconds", policy.rpo_target_ms, bounds::RPO_TARGET_MS),
        ("disk_timeout", "milliseconds", policy.disk_timeout_ms, bounds::DISK_TIMEOUT_MS),
    ];
    for (key, unit, value, allowed) in table.into_iter().filter(|(_, _, value, allowed)| !allowed.contains(value)) {
        let (min, max) = allowed.into_inner();
        root.conflict(&format!("defaults.{key}"), format!("is {value}: allowed are {min} to {max} {unit}"));
    }
}

fn peers(config: &Config, root: &Section<'_>) {
    distinct(root, "peers", "name", config.peers.iter().map(|peer| &peer.name));
    distinct(root, "peers", "site_id", config.peers.iter().filter_map(|peer| peer.site_id));
    if config.peer.is_none() && !config.peers.is_empty() {
        root.missing("peer", "a section [peer] with listen and tls, because [[peers]] are named");
    }
    if config.peers.len() > config.limits.peers as usize {
        root.conflict("peers", format!("more than limits.peers = {}", config.limits.peers));
    }
    for (i, peer) in config.peers.iter().enumerate() {
        if peer.site_id.is_some() && peer.site_id == config.site.id {
            root.conflict(&format!("peers[{i}].site_id"), "is this site itself");
        }
        let plain = config.peer.as_ref().is_some_and(|listener| listener.security == Security::Insecure);
        if plain && peer.ca.is_some() {
            root.conflict(&format!("peers[{i}].ca"), "has no effect with peer.insecure = true");
        }
    }
}

/// A group has at most so many members at a site, and this node is one.
fn site_nodes(config: &Config, root: &Section<'_>) {
    let nodes = &config.site.nodes;
    distinct(root, "site.nodes", "id", nodes.iter().map(|node| node.id));
    if config.peer.is_none() && !nodes.is_empty() {
        root.missing("peer", "a section [peer] with listen and tls, because [[site.nodes]] are named");
    }
    if config.site.id.is_none() && !nodes.is_empty() {
        root.missing("site.id", "the same on every node of the site, because [[site.nodes]] are named");
    }
    if nodes.len() >= MAX_MEMBERS {
        root.conflict("site.nodes", format!("more than {}", MAX_MEMBERS - 1));
    }
    for (i, node) in nodes.iter().enumerate().filter(|(_, node)| Some(node.id) == config.node.id) {
        root.conflict(&format!("site.nodes[{i}].id"), format!("is this node itself, {}", node.id));
    }
}

/// Shards listen at the control port + 1 + their index.
fn peer_ports(config: &Config, root: &Section<'_>) {
    let Some(listener) = &config.peer else { return };
    let port = u32::from(listener.listen.port());
    if port == 0 || port + u32::from(config.shards.count) > u32::from(u16::MAX) {
        let max = u16::MAX - config.shards.count;
        root.conflict("peer.listen", format!("allowed is a port from 1 to {max}: each shard listens on one above it"));
    }
}

fn listeners(config: &Config, root: &Section<'_>) {
    let mut seen: BTreeMap<SocketAddr, &str> = BTreeMap::new();
    let ports = config.peer.iter().flat_map(|peer| {
        let data = (1..=config.shards.count).map(|i| (peer.listen.port().saturating_add(i), "peer.listen of a shard"));
        std::iter::once((peer.listen.port(), "peer.listen"))
            .chain(data)
            .map(|(port, key)| (SocketAddr::new(peer.listen.ip(), port), key))
    });
    let others = [
        (config.admin.tcp.as_ref().map(|tcp| tcp.listen), "admin.listen"),
        (config.nbd.tcp.as_ref().map(|tcp| tcp.listen), "nbd.listen"),
        (config.metrics, "metrics.listen"),
    ];
    let others = others.into_iter().filter_map(|(address, key)| address.map(|address| (address, key)));
    for (address, key) in ports.chain(others).filter(|(address, _)| address.port() != 0) {
        if let Some(other) = seen.insert(address, key) {
            root.conflict(key, format!("{address} is taken by {other}"));
        }
    }
}

fn distinct<T: Display>(root: &Section<'_>, list: &str, key: &str, values: impl Iterator<Item = T>) {
    let mut seen = std::collections::BTreeSet::new();
    for value in values.map(|value| value.to_string()) {
        if !seen.insert(value.clone()) {
            root.conflict(&format!("{list}.{key}"), format!("{value:?} is used twice"));
        }
    }
}
