//! The agent: volumes, peers and shards together. What the admin API and the peers ask is done here, on the control runtime;
//! the data path never passes through.

mod acquaintance;
mod arbiter;
mod attach;
mod branches;
mod creation;
mod empty_base;
mod engine;
mod find;
#[cfg(feature = "fuse")]
mod fuse;
#[cfg(not(feature = "fuse"))]
#[path = "no_fuse.rs"]
mod fuse;
mod groups;
mod lease;
mod members;
mod nbd;
mod nbd_device;
mod open;
mod peers;
mod plans;
mod retention;
mod stop;
mod switchover;
mod views;
mod volumes;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Instant;

use tidemark_core::site::Membership;
use tidemark_core::types::{BootId, GroupId, NodeId, SiteId, VolumeId, WallMs};
use tokio::task::AbortHandle;

use crate::catalogue::{Bases, Catalogue, CatalogueError};
use crate::config::{Config, HostPort, Name};
use crate::control::{EngineError, FrontendKind, Seen};
use crate::frontend::nbd::NbdMetrics;
use crate::lock::lock;
use crate::peer::{Heartbeats, PeerIdentity, Pulse, Refusals, Tls, Transport};
use crate::shard::ShardHandle;
use crate::telemetry::DiskMetrics;
pub(crate) use fuse::clear_stale;
use lease::Keeper;
use open::{Door, Open};
use views::OpenView;

pub use arbiter::Arbiter;
pub use engine::AgentEngine;
pub use lease::LeaseBoard;
pub use members::HandleSite;
pub use peers::{AcceptStreams, HandleControl, load_tls};

/// This agent's copy of a group.
pub struct GroupCopy {
    /// The group's name.
    name: Name,
    /// What its log is named after: the first volume that there was.
    id: VolumeId,
    /// Known once it was open.
    group: Option<GroupId>,
    pool: Name,
    dir: PathBuf,
    /// The base held data before; known once it was open.
    adopted: bool,
    shard: u16,
    peer_site: Option<SiteId>,
    /// Which member of its group it is, where there are several a site; known once it was open.
    members: Option<Membership>,
    /// Why it is not open.
    closed: Option<String>,
    /// Held by who changes the policy or the volumes.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// Held by who opens or closes views of it.
    viewing: Arc<views::Viewing>,
}

/// A volume as the agent knows it.
pub struct Entry {
    name: Name,
    id: VolumeId,
    /// The copy that it is part of.
    copy: VolumeId,
    created: WallMs,
    frontend: FrontendKind,
    /// It is not in its group yet.
    pending: bool,
    /// It is in its group no more, and its base is still needed.
    leaving: bool,
    open: Option<Arc<Open>>,
    /// Held by who opens a frontend.
    attaching: Arc<tokio::sync::Mutex<()>>,
}

/// A volume and where it is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct At {
    volume: VolumeId,
    copy: VolumeId,
    shard: u16,
}

/// Another site.
#[derive(Clone, Debug)]
pub struct Peer {
    name: Name,
    site: Option<SiteId>,
    address: HostPort,
    ca: Option<PathBuf>,
    from_config: bool,
    /// Why the last contact failed; `None`: it did not, or there was none.
    fault: Option<String>,
    heard: Option<std::time::Instant>,
}

/// What is known and changes.
#[derive(Default)]
struct State {
    copies: BTreeMap<VolumeId, GroupCopy>,
    volumes: BTreeMap<VolumeId, Entry>,
    peers: BTreeMap<Name, Peer>,
    /// Held by who makes a volume in the group of that name; gone with the last of them.
    creating: BTreeMap<Name, Weak<tokio::sync::Mutex<()>>>,
    /// The task that beats with each peer.
    beating: BTreeMap<Name, AbortHandle>,
    /// Open views, by the volume and what they show of it.
    views: BTreeMap<(VolumeId, Seen), OpenView>,
    stopping: bool,
}

impl State {
    /// The volumes of a copy, in the order of their names. One that is only being added counts where nobody knows better: the copy
    /// is not open.
    fn volumes_of(&self, copy: VolumeId) -> Vec<&Entry> {
        let closed = self.copies.get(&copy).is_some_and(|copy| copy.closed.is_some());
        let mut found: Vec<_> = self
            .volumes
            .values()
            .filter(|entry| entry.copy == copy && !entry.leaving && (closed || !entry.pending))
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    fn at(&self, entry: &Entry) -> Option<At> {
        Some(At { volume: entry.id, copy: entry.copy, shard: self.copies.get(&entry.copy)?.shard })
    }
}

/// The agent.
pub struct Agent {
    config: Config,
    site: SiteId,
    node: NodeId,
    boot: BootId,
    started: WallMs,
    shards: Vec<ShardHandle>,
    data_ports: Vec<u16>,
    transport: Transport,
    tls: Option<Arc<Tls>>,
    heartbeats: Heartbeats,
    nbd_tcp: Option<SocketAddr>,
    nbd: NbdMetrics,
    disk: DiskMetrics,
    arbiter: Option<Arbiter>,
    catalogue: Arc<Mutex<Catalogue>>,
    bases: Bases,
    state: Mutex<State>,
    runtime: tokio::runtime::Handle,
}

/// What an agent is made of.
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// What is known of volumes and peers.
    pub catalogue: Catalogue,
    /// Own site.
    pub site: SiteId,
    /// Own node.
    pub node: NodeId,
    /// Running shards, in order.
    pub shards: Vec<ShardHandle>,
    /// Port of each shard's data listener; empty without a peer listener.
    pub data_ports: Vec<u16>,
    /// How connections to peers are secured.
    pub transport: Transport,
    /// The material, when they are.
    pub tls: Option<Arc<Tls>>,
    /// Where NBD is served over TCP.
    pub nbd_tcp: Option<SocketAddr>,
    /// What the NBD servers count.
    pub nbd: NbdMetrics,
    /// The times of disk operations.
    pub disk: DiskMetrics,
    /// The arbiter, when there is one.
    pub arbiter: Option<Arbiter>,
    /// The control runtime.
    pub runtime: tokio::runtime::Handle,
}

fn refused(error: CatalogueError) -> EngineError {
    match error {
        CatalogueError::NameTaken(_) | CatalogueError::Known(_) => EngineError::Exists(error.to_string()),
        CatalogueError::NoVolume(id) => EngineError::NoVolume(id.to_string()),
        CatalogueError::TooMany { limit } => EngineError::Limit { what: "volumes", limit: limit.into() },
        _ => volumes::failed(error),
    }
}

/// Milliseconds since 1970.
pub fn wall_now() -> WallMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    WallMs(since.map_or(0, |d| d.as_millis() as u64))
}

/// This boot of the kernel.
pub fn boot_id() -> BootId {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    BootId::parse(text.trim()).unwrap_or_default()
}

impl Agent {
    /// Puts an agent together. Nothing runs yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { config, catalogue, site, node, shards, data_ports, transport, tls, .. } = parts;
        let Parts { nbd_tcp, nbd, disk, arbiter, runtime, .. } = parts;
        let boot = boot_id();
        let pulse = Pulse { identity: PeerIdentity { site, node }, boot, started: Instant::now() };
        let agent = Arc::new(Self {
            site,
            node,
            boot,
            started: wall_now(),
            shards,
            data_ports,
            transport,
            tls,
            nbd_tcp,
            nbd,
            disk,
            arbiter,
            catalogue: Arc::new(Mutex::new(catalogue)),
            bases: Bases::below(&config.run_dir),
            heartbeats: Heartbeats { pulse, board: Arc::default() },
            state: Mutex::default(),
            runtime,
            config,
        });
        // Peers whose site was learnt are trusted as that site alone before anything listens.
        agent.load_peers();
        agent
    }

    /// Keeps this agent's lease at its witness. Never ends; at once without a witness.
    pub fn keep_lease(&self) -> impl Future<Output = ()> + Send + 'static {
        let keeper = self
            .arbiter
            .clone()
            .map(|Arbiter { witness, lease }| Keeper::new(witness, self.node, lease, self.shards.clone()));
        async move {
            if let Some(keeper) = keeper {
                keeper.keep().await;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Works on the catalogue where blocking is allowed.
    async fn keep<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Catalogue) -> Result<T, CatalogueError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let catalogue = Arc::clone(&self.catalogue);
        let done = tokio::task::spawn_blocking(move || work(&mut lock(&catalogue))).await;
        done.map_err(volumes::failed)?.map_err(refused)
    }

    fn shard(&self, index: u16) -> &ShardHandle {
        &self.shards[usize::from(index) % self.shards.len()]
    }

    /// Counts of refused peers.
    pub fn refusals(&self) -> &Arc<Refusals> {
        self.transport.refusals()
    }
}
