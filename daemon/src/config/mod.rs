//! The agent's configuration file: parsed once, checked once, then consumed as types.
//!
//! Decides: which keys exist, their defaults, their units and their allowed values. Does not decide what an agent does with
//! them, and touches no file but the one it reads (see [`identity`] for the ids that an agent makes for itself).
//!
//! Invariants of a [`Config`] that was returned: every path is absolute, every pool, peer and listener is distinct, nothing
//! listens without mutual TLS outside the host unless the file says `insecure = true`, and no key of the file was ignored.

mod check;
pub mod identity;
mod name;
mod nearest;
mod s3;
mod section;
pub mod units;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidemark_core::config::Policy;
use tidemark_core::group::flapping::Calm;
use tidemark_core::group::lease::Terms;
use tidemark_core::types::{NodeId, SiteId};

pub use name::{Name, NameError};
pub use s3::{S3Endpoint, S3Witness};
pub use section::Problem;
pub use value::HostPort;

use section::{Problems, Section};

/// A file larger than this is no configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where an agent looks when nobody names a file.
pub const DEFAULT_PATH: &str = "/etc/tidemark/agent.toml";

/// Everything that an agent is told by its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This site.
    pub site: SiteConfig,
    /// This host.
    pub node: NodeConfig,
    /// What must survive a reboot: identity, catalogue, peers.
    pub state_dir: PathBuf,
    /// What need not: sockets, mounts.
    pub run_dir: PathBuf,
    /// Places for volumes; at least one.
    pub pools: Vec<PoolConfig>,
    /// The listener for other sites; none: this agent has no peers.
    pub peer: Option<PeerListener>,
    /// Sites known from the file.
    pub peers: Vec<PeerConfig>,
    /// The arbiter between the sites; none: a person decides.
    pub witness: Option<WitnessConfig>,
    /// The admin API.
    pub admin: AdminConfig,
    /// NBD exports.
    pub nbd: NbdConfig,
    /// FUSE + loop devices.
    pub fuse: FuseConfig,
    /// Devices of the kernel's NBD client.
    pub nbd_device: NbdDeviceConfig,
    /// Where `/metrics`, `/healthz` and `/readyz` listen; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Serving threads.
    pub shards: ShardsConfig,
    /// What a new volume gets when its request is silent.
    pub defaults: Defaults,
    /// The agent's own log lines.
    pub log: LogConfig,
    /// Bounds.
    pub limits: Limits,
}

/// `[shards]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardsConfig {
    /// How many.
    pub count: u16,
    /// The most time that one looks for work before it sleeps.
    pub poll: Duration,
}

/// `[site]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteConfig {
    /// Its name, for people.
    pub name: Name,
    /// Its identity; the same on every node of the site. Without it a single-node site makes its own.
    pub id: Option<SiteId>,
    /// The other nodes of the site, for groups that lie on several.
    pub nodes: Vec<SiteNode>,
}

/// `[[site.nodes]]`: another node of this site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteNode {
    /// Its identity.
    pub id: NodeId,
    /// Its control address.
    pub address: HostPort,
}

/// `[node]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name, for people.
    pub name: Name,
    /// Its identity; made at the first start without it.
    pub id: Option<NodeId>,
}

/// `[[pool]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name.
    pub name: Name,
    /// Holds one directory per volume.
    pub path: PathBuf,
    /// Holds the logs of new volumes when they live on another device; it is there already.
    pub log_path: Option<PathBuf>,
}

/// The files of a TLS endpoint, PEM. Read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, leaf first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Authorities whose certificates are accepted.
    pub ca: PathBuf,
}

/// How an endpoint is secured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Mutual TLS.
    Mutual(TlsFiles),
    /// Plain text; only by the explicit key `insecure = true`.
    Insecure,
}

/// `[peer]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerListener {
    /// The control address. Shard `i` listens for frames at this port + 1 + i.
    pub listen: SocketAddr,
    /// How it is secured.
    pub security: Security,
}

/// `[[peers]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its name here.
    pub name: Name,
    /// The site that must answer there; without it the first one that does is kept for good.
    pub site_id: Option<SiteId>,
    /// Its control address.
    pub address: HostPort,
    /// Its authority when it is not `peer.tls.ca`.
    pub ca: Option<PathBuf>,
}

/// `[witness]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessConfig {
    /// Where it is.
    pub backend: WitnessBackend,
    /// The longest that one call may take.
    pub timeout: Duration,
    /// How long a renewal of this agent's lease lasts; at least [`MIN_LEASE_CALLS`](Self::MIN_LEASE_CALLS) times `timeout`.
    pub lease: Duration,
    /// When a group that changes too often rests.
    pub calm: Calm,
}

impl WitnessConfig {
    /// Calls to the witness that have to fit into a lease: it is renewed each third of it, and one renewal may be lost.
    pub const MIN_LEASE_CALLS: u32 = 3;

    /// What the agent's lease is held on.
    pub fn terms(&self) -> Terms {
        let span = u64::try_from(self.lease.as_nanos()).unwrap_or(u64::MAX);
        Terms { calm: self.calm, ..Terms::new(span) }
    }

    /// The longest that a promotion without a word takes: the wait for another lease of this length, and what every verb may.
    pub fn takeover(&self) -> Duration {
        Duration::from_nanos(self.terms().wait_ns()) + Duration::from_secs(10)
    }
}

/// The kinds of witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WitnessBackend {
    /// A directory of this host: for demonstrations and tests.
    File {
        /// The directory.
        path: PathBuf,
    },
    /// etcd.
    Etcd(EtcdWitness),
    /// An object store.
    S3(S3Witness),
}

/// A witness in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdWitness {
    /// Members of the cluster, asked in turn; at least one.
    pub endpoints: Vec<HostPort>,
    /// Begins the name of every key.
    pub prefix: String,
    /// How connections are secured.
    pub security: Security,
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// The unix socket.
    pub socket: PathBuf,
    /// Its mode bits.
    pub socket_mode: u32,
    /// Users beside root and the agent's own that may speak on it.
    pub allow_uids: Vec<u32>,
    /// A TCP listener, always with mutual TLS.
    pub tcp: Option<AdminTcp>,
}

/// The admin API over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminTcp {
    /// Address.
    pub listen: SocketAddr,
    /// Its certificate and whose it accepts.
    pub tls: TlsFiles,
    /// SAN URIs of the clients that may speak; empty: every admin certificate of this site.
    pub allow: Vec<String>,
}

/// `[nbd]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdConfig {
    /// Directory of the unix sockets, one per attached volume.
    pub unix_dir: PathBuf,
    /// A TCP listener for all exports.
    pub tcp: Option<NbdTcp>,
}

/// NBD over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdTcp {
    /// Address.
    pub listen: SocketAddr,
    /// How it is secured.
    pub security: Security,
}

/// `[fuse]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FuseConfig {
    /// Directory of the links to the devices, one per attached volume, by its name; also those of the kernel's NBD client.
    pub dir: PathBuf,
    /// How long a graceful stop waits for devices that are mounted or open.
    pub unmount_wait: Duration,
}

/// `[nbd_device]`; whole seconds, as the kernel counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdDeviceConfig {
    /// How long input and output waits for an agent that is gone, before it fails.
    pub dead_timeout: Duration,
    /// A request that a dead agent had not answered is sent to the next one when it is so old.
    pub resend_after: Duration,
}

/// `[defaults]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// `logSize` in bytes.
    pub log_bytes: u64,
    /// `retention`.
    pub retention: Duration,
    /// `rpoTarget`.
    pub rpo_target: Duration,
    /// `diskTimeout`.
    pub disk_timeout: Duration,
}

impl Defaults {
    /// As a policy; what the file cannot change is the core's default.
    pub fn policy(&self) -> Policy {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Policy {
            log_bytes: self.log_bytes,
            retention_ms: ms(self.retention),
            rpo_target_ms: ms(self.rpo_target),
            disk_timeout_ms: ms(self.disk_timeout),
            ..Policy::default()
        }
    }
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Shape of a line.
    pub format: LogFormat,
    /// `error` to `trace`, or a filter such as `info,tidemark_agent::peer=debug`.
    pub level: String,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Volumes of this agent.
    pub volumes: u32,
    /// Known peers.
    pub peers: u32,
    /// NBD connections of this agent.
    pub nbd_connections: u32,
    /// A graceful stop that takes longer is ended.
    pub stop_timeout: Duration,
    /// The longest that a verb may take when its caller names no deadline.
    pub verb_timeout: Duration,
    /// How long a sealed branch stays of which nothing was acknowledged.
    pub branch_retention: Duration,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: std::io::Error,
    },
    /// The file is no configuration.
    #[error("{}: larger than {MAX_FILE_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is no TOML.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected there.
        message: String,
    },
    /// Keys or values are wrong; all of them are listed.
    #[error("{}", lines(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Every problem found, in the file's order of sections.
        problems: Vec<Problem>,
    },
}

fn lines(path: &Path, problems: &[Problem]) -> String {
    let each = problems.iter().map(|problem| format!("{}: {problem}", path.display()));
    each.collect::<Vec<_>>().join("\n")
}

/// What the host says where the file is silent.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its name, for `node.name`.
    pub hostname: String,
    /// Processors, for the bound of `shards.count`.
    pub cpus: usize,
}

impl Host {
    /// This host.
    pub fn probe() -> Self {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { hostname: hostname.trim().to_owned(), cpus: std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE_BYTES {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        Self::parse(path, &std::fs::read_to_string(path).map_err(read)?, &Host::probe())
    }

    /// Checks `text`; `path` is only for the messages.
    pub fn parse(path: &Path, text: &str, host: &Host) -> Result<Self, ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let problems = Problems::default();
        let config = read::root(Section::root(table, &problems), host);
        match (config, problems.into_inner()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigError::Invalid { path: path.to_owned(), problems }),
        }
    }
}

mod read;

#[cfg(test)]
mod tests;
