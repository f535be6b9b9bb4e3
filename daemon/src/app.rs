//! The composition root: a configuration becomes a running agent, and a signal ends it in order.

use std::collections::BTreeSet;
use std::fs::File;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use tidemark_core::types::NodeId;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::agent::{
    AcceptStreams, Agent, AgentEngine, Arbiter, HandleControl, HandleSite, LeaseBoard, Parts, clear_stale, load_tls,
};
use crate::catalogue::{Catalogue, CatalogueError};
use crate::config::identity::{Identity, IdentityError};
use crate::config::{Config, Security, ShardsConfig};
use crate::control::{Control, ControlError, TlsSource};
use crate::crashsafe;
use crate::disk::RingOptions;
use crate::frontend::hardening::mark_io_flusher;
use crate::frontend::kernel_nbd::{self, DriverError};
use crate::frontend::nbd::TcpSecurity;
use crate::here;
use crate::peer::control::serve_control;
use crate::peer::site::SiteHandler;
use crate::peer::tls::certified;
use crate::peer::{OwnFiles, PeerIdentity, Refusals, Tls, TlsError, Transport, serve_data};
use crate::shard::{self, Shard, ShardHandle, ShardOptions, ShardThread};
use crate::telemetry::{Pages, Telemetry};
use crate::witness::{Memory, Witness, WitnessError};

/// Why the agent does not start. What failed below is the source, and not in the text too: both are printed.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A directory cannot be made.
    #[error("cannot make {path}")]
    Directory {
        /// The directory.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Another agent uses the run directory.
    #[error("{path} is locked: another agent uses this run directory")]
    RunDirectoryInUse {
        /// The lock.
        path: String,
    },
    /// Site and node have no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What is known cannot be had.
    #[error("catalogue")]
    Catalogue(#[from] CatalogueError),
    /// The certificates of the peer listener cannot be used.
    #[error("peer.tls")]
    Tls(#[from] TlsError),
    /// The certificates of the NBD listener cannot be used.
    #[error("nbd.tls")]
    NbdTls(#[source] crate::control::TlsError),
    /// The files of the witness cannot be used.
    #[error("witness: {0}")]
    Witness(#[from] WitnessError),
    /// A shard cannot be started.
    #[error("shard {index}")]
    Shard {
        /// Which.
        index: u16,
        /// Why.
        source: std::io::Error,
    },
    /// A listener cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The admin API cannot be served.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A device that an agent left stays.
    #[error(transparent)]
    Device(#[from] DriverError),
}

fn make_directories(config: &Config) -> Result<(), AppError> {
    let failed = |dir: &Path| {
        let path = dir.display().to_string();
        move |source| AppError::Directory { path, source }
    };
    // A volume is no more durable than the names of the directories above it.
    for dir in config.pools.iter().map(|p| &p.path).chain([&config.state_dir]) {
        crashsafe::create_dir(dir).map_err(failed(dir))?;
    }
    std::fs::create_dir_all(&config.run_dir).map_err(failed(&config.run_dir))
}

/// Makes the run directory this agent's alone: what else is found there is a dead one's. Held as long as the agent lives.
async fn lock_run_dir(config: &Config) -> Result<Flock<File>, AppError> {
    let path = config.run_dir.join("lock");
    let lock = async || {
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
    };
    let is_held = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    patiently(lock, is_held).await.map_err(|source| {
        let path = path.display().to_string();
        if is_held(&source) { AppError::RunDirectoryInUse { path } } else { AppError::Directory { path, source } }
    })
}

fn start_shards(config: &ShardsConfig) -> Result<Vec<ShardThread>, AppError> {
    let options = ShardOptions { ring: RingOptions::default(), poll: config.poll };
    (0..config.count.max(1))
        .map(|index| shard::start(index, options).map_err(|source| AppError::Shard { index, source }))
        .collect()
}

/// The transport of the peer network and its material.
fn transport(
    config: &Config,
    identity: PeerIdentity,
    refusals: Arc<Refusals>,
) -> Result<(Transport, Option<Arc<Tls>>), AppError> {
    match config.peer.as_ref().map(|p| &p.security) {
        Some(Security::Mutual(files)) => {
            let tls = load_tls(identity, files, &config.peers, &config.site.nodes)?;
            Ok((Transport::mutual(tls.clone(), refusals), Some(tls)))
        }
        _ => Ok((Transport::insecure(refusals), None)),
    }
}

/// The witness of the configuration, not asked yet: an agent starts without it.
fn arbiter(config: &Config, node: NodeId, telemetry: &Telemetry) -> Result<Option<Arbiter>, WitnessError> {
    let Some(witness) = &config.witness else { return Ok(None) };
    let terms = witness.terms();
    let memory = Memory::load(config.state_dir.join("witness-seen"));
    let witness = Arc::new(Witness::new(witness, node, memory, telemetry.witness.clone())?);
    Ok(Some(Arbiter { witness, lease: LeaseBoard::new(terms) }))
}

/// Who this agent is. At its first start it takes the ids that the file does not name from its certificate: made up, they would
/// never fit it.
fn identity(config: &Config) -> Result<Identity, AppError> {
    if let Some(known) = Identity::load(config)? {
        return Ok(known);
    }
    let mut named = config.clone();
    if let Some(Security::Mutual(files)) = config.peer.as_ref().map(|p| &p.security) {
        let own = certified(&OwnFiles { cert: files.cert.clone(), key: files.key.clone() })?;
        named.site.id.get_or_insert(own.site);
        named.node.id.get_or_insert(own.node);
    }
    Ok(Identity::load_or_create(&named)?)
}

/// How often something is tried that a predecessor may hold.
const PREDECESSOR_TRIES: u32 = 50;
/// Pause between two tries.
const PREDECESSOR_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Tries again while something `is_held`: a killed predecessor's sockets and locks live until the kernel has ended its last disk
/// operation, which is worth a short wait.
async fn patiently<T, E>(attempt: impl AsyncFn() -> Result<T, E>, is_held: impl Fn(&E) -> bool) -> Result<T, E> {
    for _ in 0..PREDECESSOR_TRIES {
        match attempt().await {
            Err(error) if is_held(&error) => tokio::time::sleep(PREDECESSOR_PAUSE).await,
            other => return other,
        }
    }
    attempt().await
}

async fn bind(address: SocketAddr) -> Result<TcpListener, AppError> {
    let is_held = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    let bound = patiently(async || TcpListener::bind(address).await, is_held).await;
    bound.map_err(|source| AppError::Listen { address, source })
}

async fn open_catalogue(config: &Config, telemetry: &Telemetry) -> Result<Catalogue, CatalogueError> {
    let open = async || Catalogue::open(&config.state_dir, &config.pools, telemetry.catalogue.clone());
    patiently(open, |error| matches!(error, CatalogueError::InUse { .. })).await
}

/// What the agent listens on besides its admin API; bound before anything is opened.
struct Listeners {
    /// Control calls and heartbeats of peers.
    peer: Option<TcpListener>,
    /// Streams of volumes, one for each shard.
    data: Vec<TcpListener>,
    /// NBD over TCP, with its certificates unless it is insecure.
    nbd: Option<(TcpListener, Option<TlsSource>)>,
    /// Metrics and health.
    pages: Option<Pages>,
}

impl Listeners {
    async fn bind(config: &Config, shards: usize) -> Result<Self, AppError> {
        let (mut peer, mut data) = (None, Vec::new());
        if let Some(config) = &config.peer {
            peer = Some(bind(config.listen).await?);
            for index in 0..shards as u16 {
                data.push(bind(SocketAddr::new(config.listen.ip(), config.listen.port() + 1 + index)).await?);
            }
        }
        let nbd = match &config.nbd.tcp {
            Some(tcp) => Some((bind(tcp.listen).await?, nbd_security(&tcp.security)?)),
            None => None,
        };
        let pages = match config.metrics {
            Some(address) => Some(Pages::new(bind(address).await?)),
            None => None,
        };
        Ok(Self { peer, data, nbd, pages })
    }

    fn data_ports(&self) -> Vec<u16> {
        self.data.iter().filter_map(|l| l.local_addr().ok()).map(|a| a.port()).collect()
    }

    fn nbd_address(&self) -> Option<SocketAddr> {
        self.nbd.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }
}

/// Resolves when the agent is to stop.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|s| *s).await; // the sender is gone: stop as well
}

/// Serves peers and NBD clients until `stopping`: streams on the shards' threads, the rest on this runtime.
fn serve_network(
    listeners: Listeners,
    agent: &Arc<Agent>,
    transport: &Transport,
    shards: &[ShardHandle],
    stopping: &watch::Receiver<bool>,
) {
    let Listeners { peer, data, nbd, .. } = listeners;
    for (listener, shard) in data.into_iter().zip(shards) {
        let (transport, agent, stop) = (transport.clone(), agent.clone(), stopped(stopping.clone()));
        shard.send(move |_| {
            here::spawn(serve_streams(listener, transport, agent, stop));
        });
    }
    if let (Some((listener, certificates)), Some(shard)) = (nbd, shards.first()) {
        let (agent, stop) = (agent.clone(), stopped(stopping.clone()));
        shard.send(move |shard| {
            here::spawn(serve_nbd(shard.clone(), listener, certificates, agent, stop));
        });
    }
    if let Some(listener) = peer {
        let handler = Arc::new(HandleControl { agent: agent.clone() });
        let site: Arc<dyn SiteHandler> = Arc::new(HandleSite { agent: agent.clone() });
        tokio::spawn(serve_control(listener, transport.clone(), handler, Some(site), stopped(stopping.clone())));
    }
}

/// To be called on a thread that runs volumes: it must not wait for the disk that it serves.
fn mark_server_thread() {
    if let Err(error) = mark_io_flusher() {
        tracing::debug!(%error, "the kernel does not know that this thread serves a disk");
    }
}

/// Prepares this host for the volumes of this agent, whose run directory is locked.
async fn prepare_host(config: &Config, shards: &[ShardHandle]) {
    let (run_dir, dev_dir) = (config.run_dir.clone(), config.fuse.dir.clone());
    let _ = tokio::task::spawn_blocking(move || clear_stale(&run_dir, &dev_dir)).await; // a panic was logged by the hook
    for shard in shards {
        shard.send(|_| mark_server_thread());
    }
}

/// Ends the block devices that an agent of this node left in the kernel, whoever uses them: what waits on them fails. The volumes
/// stay as they are; the next agent serves them as new devices. Gives the devices of the kernel's NBD client that were there.
///
/// # Errors
/// [`AppError`]; in particular while an agent runs, whose volumes are to be detached instead.
pub async fn end_devices(config: &Config) -> Result<Vec<PathBuf>, AppError> {
    let Some(identity) = Identity::load(config)? else { return Ok(Vec::new()) };
    let made = std::fs::create_dir_all(&config.run_dir);
    made.map_err(|source| AppError::Directory { path: config.run_dir.display().to_string(), source })?;
    let _alone = lock_run_dir(config).await?;
    clear_stale(&config.run_dir, &config.fuse.dir);
    Ok(kernel_nbd::end_leftovers(identity.node, &BTreeSet::new(), &config.fuse.dir)?)
}

/// Runs the agent until `stop` resolves, then closes every volume in order.
///
/// # Errors
/// [`AppError`]; nothing is left running then.
pub async fn run(config: Config, stop: impl Future<Output = ()> + Send) -> Result<(), AppError> {
    make_directories(&config)?;
    let _alone = lock_run_dir(&config).await?;
    let identity = identity(&config)?;
    let control = Control::bind(&config.admin, identity.site).await?;
    let telemetry = Arc::new(Telemetry::new());
    let own = PeerIdentity { site: identity.site, node: identity.node };
    let (transport, tls) = transport(&config, own, Arc::new(telemetry.peers.refusals()))?;
    let arbiter = arbiter(&config, identity.node, &telemetry)?;
    let shards = start_shards(&config.shards)?;
    let handles: Vec<_> = shards.iter().map(|s| s.handle.clone()).collect();
    let mut listeners = Listeners::bind(&config, handles.len()).await?;
    let catalogue = open_catalogue(&config, &telemetry).await?;
    prepare_host(&config, &handles).await;
    let verb_timeout = config.limits.verb_timeout;
    let agent = Agent::new(Parts {
        config,
        catalogue,
        site: identity.site,
        node: identity.node,
        shards: handles.clone(),
        data_ports: listeners.data_ports(),
        transport: transport.clone(),
        tls: tls.clone(),
        nbd_tcp: listeners.nbd_address(),
        nbd: telemetry.nbd.clone(),
        disk: telemetry.disk.clone(),
        arbiter: arbiter.clone(),
        runtime: tokio::runtime::Handle::current(),
    });
    let (stop_now, stopping) = watch::channel(false);
    if let Some(tls) = tls {
        tokio::spawn(tls.watch_files());
    }
    if let Some(Arbiter { witness, .. }) = arbiter {
        tokio::spawn(witness.pulse());
        tokio::spawn(agent.keep_lease());
    }
    let pages = listeners.pages.take();
    serve_network(listeners, &agent, &transport, &handles, &stopping);
    let engine = Arc::new(AgentEngine(agent.clone()));
    let (is_ready, ready) = watch::channel(false);
    if let Some(pages) = pages {
        tokio::spawn(pages.serve(telemetry.clone(), engine.clone(), ready, stopped(stopping)));
    }
    agent.open_all().await;
    tokio::spawn(agent.clone().keep_branches());
    is_ready.send_replace(true);
    tracing::info!(site = %identity.site, node = %identity.node, "agent ready");
    let released = {
        let agent = agent.clone();
        async move {
            stop.await;
            is_ready.send_replace(false);
            tracing::info!("agent stopping");
            agent.release_devices().await;
        }
    };
    // Verbs are answered until then: an operator may force what keeps the agent.
    let served = control.serve(engine, verb_timeout, telemetry.admin.clone(), released).await;
    agent.close_all().await;
    stop_now.send_replace(true);
    drop(handles);
    Ok(served?)
}

/// The certificates of the NBD listener; `None` is plain text, which the configuration has asked for explicitly.
fn nbd_security(security: &Security) -> Result<Option<TlsSource>, AppError> {
    match security {
        Security::Mutual(files) => TlsSource::load(files, &[]).map(Some).map_err(AppError::NbdTls),
        Security::Insecure => Ok(None),
    }
}

async fn serve_nbd(
    shard: Rc<Shard>,
    listener: TcpListener,
    certificates: Option<TlsSource>,
    agent: Arc<Agent>,
    stop: impl Future<Output = ()>,
) {
    let Some(listener) = on_this_runtime(listener) else { return };
    let security = match certificates {
        Some(source) => TcpSecurity::Tls(Rc::new(move || source.config())),
        None => TcpSecurity::Insecure,
    };
    tokio::select! {
        () = agent.serve_nbd_tcp(shard, listener, security) => {}
        () = stop => {}
    }
}

/// A listener that was bound on the control runtime, made known to this one.
fn on_this_runtime(listener: TcpListener) -> Option<TcpListener> {
    let moved = listener.into_std().and_then(TcpListener::from_std);
    moved.inspect_err(|error| tracing::error!(%error, "a listener cannot be moved to its shard")).ok()
}

async fn serve_streams(listener: TcpListener, transport: Transport, agent: Arc<Agent>, stop: impl Future<Output = ()>) {
    let Some(listener) = on_this_runtime(listener) else { return };
    let acceptor = Arc::new(AcceptStreams { agent });
    if let Err(error) = serve_data(listener, transport, acceptor, stop).await {
        tracing::error!(%error, "the data listener ended");
    }
}
