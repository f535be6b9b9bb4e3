//! The agent and the sites that it knows.

use serde::Serialize;
use tidemark_proto::admin as pb;

use super::{State, explained, frontend, mirror, moment, yes_no};
use crate::output::{self, Paint, Report, Table, Tone};
use crate::units;

mirror! {
    /// What a check of the witness measured.
    WitnessCheck of WitnessCheck { backend: String, place: String, read_us: u64, cas_us: u64, revision: String }
}

impl Report for WitnessCheck {
    fn table(&self, _: Paint) -> String {
        let ms = |us: u64| format!("{:.2}ms", us as f64 / 1e3);
        output::fields(&[
            ("witness", format!("{} at {}", self.backend, self.place)),
            ("read", ms(self.read_us)),
            ("change", ms(self.cas_us)),
            ("condition", "kept: a change of an old value was refused".to_owned()),
            ("revision", self.revision.clone()),
        ])
    }
}

mirror! {
    /// The agent's witness and its lease there.
    Witness of Witness {
        backend: String, place: String, reachable: bool, fault: String, lease_span_ms: u64, lease_gen: u64,
        lease_left_ms: u64,
    }
}

impl Witness {
    fn state(&self) -> String {
        if self.reachable { "answers".to_owned() } else { format!("does not answer: {}", self.fault) }
    }

    fn lease(&self) -> String {
        let span = units::span_ms(self.lease_span_ms);
        match (self.lease_gen, self.lease_left_ms) {
            (0, _) => "not held".to_owned(),
            (grant, 0) => format!("grant {grant}, run out: {span} since the last renewal"),
            (grant, left) => format!("grant {grant}, held for {} of {span}", units::span_ms(left)),
        }
    }
}

impl Report for Witness {
    fn table(&self, _: Paint) -> String {
        output::fields(&[
            ("witness", format!("{} at {}", self.backend, self.place)),
            ("state", self.state()),
            ("lease", self.lease()),
        ])
    }
}

/// Another site.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Peer {
    pub name: String,
    pub site_id: String,
    pub address: String,
    pub source: String,
    pub health: State,
    pub rtt_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heard_ms: Option<u64>,
    pub version: String,
    pub volumes: u32,
}

impl From<pb::Peer> for Peer {
    fn from(peer: pb::Peer) -> Self {
        Self {
            name: peer.name,
            site_id: peer.site_id,
            address: peer.address,
            source: peer.source,
            health: peer.health.unwrap_or_default().into(),
            rtt_us: peer.rtt_us,
            last_heard_ms: peer.last_heard_ms,
            version: peer.version,
            volumes: peer.volumes,
        }
    }
}

impl Peer {
    fn rtt(&self) -> String {
        match self.rtt_us {
            0 => "-".to_owned(),
            us => format!("{:.2}ms", us as f64 / 1e3),
        }
    }

    fn heard(&self) -> String {
        self.last_heard_ms.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", units::span_ms(ms)))
    }

    fn tone(&self) -> Tone {
        if self.health.normal { Tone::Plain } else { Tone::Warning }
    }
}

impl Report for Peer {
    fn table(&self, _: Paint) -> String {
        output::fields(&[
            ("peer", self.name.clone()),
            ("site id", self.site_id.clone()),
            ("address", self.address.clone()),
            ("source", self.source.clone()),
            ("health", explained(&self.health)),
            ("round trip", self.rtt()),
            ("last heard", self.heard()),
            ("version", self.version.clone()),
            ("volumes", self.volumes.to_string()),
        ])
    }
}

/// The known sites.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerList {
    /// By name.
    pub peers: Vec<Peer>,
}

impl Report for PeerList {
    fn table(&self, paint: Paint) -> String {
        let mut table = Table::new(&["NAME", "SITE", "ADDRESS", "HEALTH", "RTT", "HEARD", "VOLUMES"]);
        for peer in &self.peers {
            let site = if peer.site_id.is_empty() { "not heard of yet" } else { &peer.site_id };
            let health = explained(&peer.health);
            let cells = [peer.name.clone(), site.to_owned(), peer.address.clone(), health, peer.rtt(), peer.heard()];
            table.row(peer.tone(), cells.into_iter().chain([peer.volumes.to_string()]));
        }
        table.render(paint)
    }
}

mirror! {
    /// One serving thread.
    Shard of Shard { index: u32, volumes: u32, data_address: String }
}
mirror! {
    /// A place for volumes.
    Pool of Pool { name: String, path: String, log_path: String, total_bytes: u64, free_bytes: u64, volumes: u32 }
}

/// Whether a frontend works on the agent's host.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct FrontendSupport {
    pub frontend: String,
    pub available: bool,
    pub reason: String,
}

/// The agent.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Agent {
    pub site_id: String,
    pub site_name: String,
    pub node_id: String,
    pub node_name: String,
    pub boot_id: String,
    pub started_ms: i64,
    pub version: String,
    pub api_version: String,
    pub wire_version: u32,
    pub format_version: u32,
    pub shards: Vec<Shard>,
    pub pools: Vec<Pool>,
    pub peers: Vec<Peer>,
    pub frontends: Vec<FrontendSupport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub witness: Option<Witness>,
}

impl Agent {
    /// Both answers of the agent in one.
    pub fn new(agent: pb::Agent, version: pb::Version) -> Self {
        let support = |support: pb::FrontendSupport| FrontendSupport {
            frontend: frontend(support.frontend),
            available: support.available,
            reason: support.reason,
        };
        Self {
            site_id: agent.site_id,
            site_name: agent.site_name,
            node_id: agent.node_id,
            node_name: agent.node_name,
            boot_id: agent.boot_id,
            started_ms: agent.started_ms,
            version: agent.version,
            api_version: version.api,
            wire_version: version.wire,
            format_version: version.format,
            shards: agent.shards.into_iter().map(Into::into).collect(),
            pools: agent.pools.into_iter().map(Into::into).collect(),
            peers: agent.peers.into_iter().map(Into::into).collect(),
            frontends: agent.frontends.into_iter().map(support).collect(),
            witness: agent.witness.map(Into::into),
        }
    }

    fn fields(&self) -> String {
        output::fields(&[
            ("site", format!("{} {}", self.site_name, self.site_id)),
            ("node", format!("{} {}", self.node_name, self.node_id)),
            ("version", self.version.clone()),
            ("speaks", format!("api {}, wire {}, format {}", self.api_version, self.wire_version, self.format_version)),
            ("started", moment(self.started_ms)),
        ])
    }

    fn pools(&self, paint: Paint) -> String {
        let mut table = Table::new(&["POOL", "PATH", "LOGS", "FREE", "OF", "VOLUMES"]);
        for pool in &self.pools {
            let log = if pool.log_path.is_empty() { &pool.path } else { &pool.log_path };
            let (free, total) = (units::bytes(pool.free_bytes), units::bytes(pool.total_bytes));
            let volumes = pool.volumes.to_string();
            table.row(Tone::Plain, [pool.name.clone(), pool.path.clone(), log.clone(), free, total, volumes]);
        }
        table.render(paint)
    }

    fn shards(&self, paint: Paint) -> String {
        let mut table = Table::new(&["SHARD", "VOLUMES", "DATA ADDRESS"]);
        for shard in &self.shards {
            let cells = [shard.index.to_string(), shard.volumes.to_string(), shard.data_address.clone()];
            table.row(Tone::Plain, cells);
        }
        table.render(paint)
    }

    fn frontends(&self, paint: Paint) -> String {
        let mut table = Table::new(&["FRONTEND", "WORKS", "WHY NOT"]);
        for support in &self.frontends {
            let cells = [support.frontend.clone(), yes_no(support.available), support.reason.clone()];
            table.row(Tone::Plain, cells);
        }
        table.render(paint)
    }
}

impl Report for Agent {
    fn table(&self, paint: Paint) -> String {
        let peers = PeerList { peers: self.peers.clone() }.table(paint);
        let parts = [self.fields(), self.pools(paint), self.shards(paint), self.frontends(paint), peers];
        let witness = self.witness.as_ref().map(|witness| witness.table(paint));
        parts.into_iter().chain(witness).collect::<Vec<_>>().join("\n\n")
    }
}
