//! What the admin API needs of the rest of the agent, as one trait and plain values.
//!
//! The API decides who may ask, what a request means and how an answer reads; an [`Engine`] does it. Nothing here knows
//! protobuf, and an engine never sees it.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use tidemark_core::config::Policy;
use tidemark_core::status::Status;
use tidemark_core::types::{BlockRange, BootId, GroupId, Lsn, NodeId, SiteId, VolumeId, WallMs};
use tidemark_core::verb::{Assertion, Verb, VerbError, VerbOk};
use tokio::sync::watch;

use super::branches::{BranchCounts, Branches, Seen};
use super::plan::{Explained, Foretold, Planned};
use super::policy::PolicyPatch;
use crate::config::{HostPort, Name};
use crate::witness::Probe;

/// The end of a call. It owns what it needs: the API runs it to its end even when the caller has gone, so that no volume is
/// left half made.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, EngineError>> + Send>>;

/// The agent behind the admin API. Every call is idempotent and ends without waiting for an unreachable party.
pub trait Engine: Send + Sync + 'static {
    /// Identities, shards, pools, peers.
    fn agent(&self) -> Answer<AgentInfo>;

    /// Makes a volume. The same request again answers with the same volume; another one of that name is
    /// [`EngineError::Exists`].
    fn create_volume(&self, volume: NewVolume) -> Answer<VolumeInfo>;
    /// Every volume, by name.
    fn volumes(&self) -> Answer<Vec<VolumeInfo>>;
    /// One volume.
    fn volume(&self, volume: VolumeKey) -> Answer<VolumeInfo>;
    /// Opens a frontend; `Auto` takes the volume's own, else the best of this host. Open already: answers with what is there.
    fn attach(&self, volume: VolumeKey, frontend: FrontendKind) -> Answer<Attachment>;
    /// Closes the frontend. Not open: success. In use: refused unless `force`.
    fn detach(&self, volume: VolumeKey, force: bool) -> Answer<()>;
    /// Grows base and volume to `size` bytes.
    fn resize(&self, volume: VolumeKey, size: u64) -> Answer<()>;
    /// Drains the volume, closes it and forgets it; answers with the base that mounts as it is.
    fn release(&self, volume: VolumeKey) -> Answer<PathBuf>;
    /// Removes this site's copy of the group of a volume, with all its volumes; or, where `scope` says so, one of several volumes from
    /// the group at both sites. Answers with the place of its files in the trash.
    fn delete(&self, volume: VolumeKey, scope: Scope, disposal: Disposal, force: bool) -> Answer<Option<PathBuf>>;
    /// Changes the named fields of the policy in one step.
    fn change_policy(&self, volume: VolumeKey, patch: PolicyPatch) -> Answer<()>;
    /// Names the peer of a local volume, or forgets it.
    fn set_peer(&self, volume: VolumeKey, peer: Option<PeerKey>) -> Answer<()>;
    /// A verb of the copy itself: promote, demote, drop the peer, abort I/O, reseed, drain.
    fn verb(&self, volume: VolumeKey, verb: Verb) -> Answer<VerbOk>;
    /// Hands the role of the primary over to another site.
    fn switchover(&self, volume: VolumeKey, switchover: Switchover) -> Answer<VerbOk>;
    /// Compares both copies; the newest progress is what `progress` holds.
    fn verify(&self, volume: VolumeKey, progress: watch::Sender<VerifyProgress>) -> Answer<Verified>;
    /// What a verb would do now; the outer error is of the question itself.
    fn plan(&self, volume: VolumeKey, verb: Planned) -> Answer<Foretold>;
    /// What forgetting a site would do now.
    fn plan_removal(&self, peer: PeerKey) -> Answer<Foretold>;
    /// Why a volume is as it is, and what each verb would do now.
    fn explain(&self, volume: VolumeKey) -> Answer<Explained>;
    /// Sealed suffixes, and what is open of a volume.
    fn branches(&self, volume: VolumeKey) -> Answer<Branches>;
    /// Opens a view of a volume, read-only. Open already: answers with what is there.
    fn open_view(&self, volume: VolumeKey, seen: Seen, frontend: FrontendKind) -> Answer<Attachment>;
    /// Closes a view. Not open: success. In use: refused unless `force`.
    fn close_view(&self, volume: VolumeKey, seen: Seen, force: bool) -> Answer<()>;
    /// Removes a branch for good. `acknowledged`: although records in it may have been acknowledged.
    fn drop_branch(&self, volume: VolumeKey, number: u32, word: Assertion, acknowledged: bool) -> Answer<()>;

    /// Makes a site known, or changes its address or authority.
    fn add_peer(&self, peer: NewPeer) -> Answer<PeerInfo>;
    /// Forgets a site; refused while a volume names it.
    fn remove_peer(&self, peer: PeerKey) -> Answer<()>;
    /// Every known site, by name.
    fn peers(&self) -> Answer<Vec<PeerInfo>>;

    /// Tries the witness.
    fn check_witness(&self) -> Answer<Probe>;
}

/// Why an engine did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// No such volume.
    #[error("there is no volume {0} here")]
    NoVolume(String),
    /// No such peer.
    #[error("there is no peer {0} here")]
    NoPeer(String),
    /// No such pool.
    #[error("there is no pool {0} here")]
    NoPool(String),
    /// No such branch.
    #[error("there is no branch {number} of it here")]
    NoBranch {
        /// Its number.
        number: u32,
    },
    /// The name or the place is taken by something else.
    #[error("{0}")]
    Exists(String),
    /// The state of things forbids it.
    #[error("{text}")]
    Refused {
        /// Stable, kebab-case.
        reason: &'static str,
        /// What forbids it, and what would lift that.
        text: String,
    },
    /// An argument is wrong in a way that only the engine can see.
    #[error("{field}: {text}")]
    Invalid {
        /// The field, in the vocabulary of the API.
        field: &'static str,
        /// What is allowed.
        text: String,
    },
    /// The copy refused the verb.
    #[error(transparent)]
    Verb(#[from] VerbError),
    /// A limit of the configuration was reached.
    #[error("no more than {limit} {what} (limits.{what} in the configuration)")]
    Limit {
        /// What there are too many of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The agent stops.
    #[error("the agent is stopping")]
    Stopping,
    /// A file or device failed.
    #[error("{0}")]
    Failed(String),
}

/// How a request names a volume, or a group where a verb acts on one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeKey {
    /// By its name.
    Name(Name),
    /// By its identity.
    Id(VolumeId),
}

impl VolumeKey {
    /// A UUID is an id, everything else a name.
    pub fn parse(text: &str) -> Option<Self> {
        VolumeId::parse(text).map(Self::Id).or_else(|| Name::parse(text).ok().map(Self::Name))
    }
}

impl std::fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Id(id) => id.fmt(f),
        }
    }
}

/// How a request names a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerKey {
    /// By its name here.
    Name(Name),
    /// By its site.
    Site(SiteId),
}

impl PeerKey {
    /// A UUID is a site id, everything else a name.
    pub fn parse(text: &str) -> Option<Self> {
        SiteId::parse(text).map(Self::Site).or_else(|| Name::parse(text).ok().map(Self::Name))
    }
}

impl std::fmt::Display for PeerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Site(site) => site.fmt(f),
        }
    }
}

/// How a volume becomes a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FrontendKind {
    /// The best that the host offers.
    #[default]
    Auto,
    /// A Network Block Device export.
    Nbd,
    /// A FUSE file with a loop device.
    Fuse,
    /// A device of the kernel's NBD client.
    NbdDevice,
}

/// A volume to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name; never the text of an id.
    pub name: Name,
    /// The group that it joins, or that is made with it; none: one of its own, of its name.
    pub group: Option<Name>,
    /// Where its content comes from.
    pub origin: Origin,
    /// Fields of the policy that the request named.
    pub policy: PolicyPatch,
    /// Its peer; none: a local volume.
    pub peer: Option<PeerKey>,
    /// Its pool; none: the only one, else refused.
    pub pool: Option<Name>,
    /// The nodes that its group has members on; none: this one alone.
    pub members: Option<MemberNodes>,
}

/// The nodes of a group's members, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberNodes {
    /// At this site; the first one leads.
    pub here: Vec<NodeId>,
    /// At the peer's.
    pub peers: Vec<NodeId>,
}

/// Where a volume's content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A new base of `size` bytes that reads as zeros.
    Empty {
        /// A multiple of 512.
        size: u64,
        /// The base, when it is not a file in the pool: absolute; a device, or a file that does not exist.
        base: Option<PathBuf>,
    },
    /// What a device or file holds already.
    Adopt {
        /// Absolute.
        path: PathBuf,
    },
}

/// To which site, and what becomes of what is attached here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switchover {
    /// The site that is to be the primary: the peer, or this one.
    pub to: PeerKey,
    /// The group's volumes are detached first, unless one is in use.
    pub detach: bool,
    /// Queued I/O fails, and devices end.
    pub force: bool,
}

/// How much is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The volume: where it is the only one of its group, this site's copy.
    Volume,
    /// This site's copy of the group, with all its volumes.
    Group,
}

/// What becomes of a deleted copy's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposal {
    /// Moved to the pool's trash.
    Trash,
    /// Removed.
    Purge,
}

/// A volume as this agent has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Identity.
    pub id: VolumeId,
    /// Name.
    pub name: Name,
    /// Group.
    pub group: GroupId,
    /// The group's name here.
    pub group_name: Name,
    /// The group's volumes by name, this one among them.
    pub group_volumes: Vec<Name>,
    /// Size in bytes.
    pub size: u64,
    /// Pool.
    pub pool: Name,
    /// Its directory in the pool.
    pub directory: PathBuf,
    /// The base image.
    pub base: PathBuf,
    /// The base was there before the volume.
    pub adopted: bool,
    /// Serving thread.
    pub shard: u16,
    /// Moment of creation.
    pub created: WallMs,
    /// Name of the peer, if it is known here.
    pub peer: Option<Name>,
    /// Site of the peer.
    pub peer_site: Option<SiteId>,
    /// What `Auto` means for it.
    pub frontend: FrontendKind,
    /// The open frontend.
    pub attachment: Option<Attachment>,
    /// Sealed branches that are kept.
    pub branches: BranchCounts,
    /// The status of the group's copy, or why it is not open.
    pub status: Result<Box<Status>, String>,
}

impl VolumeInfo {
    /// The policy in force here; none while the volume is not open.
    pub fn policy(&self) -> Option<Policy> {
        self.status.as_ref().ok().map(|status| status.policy)
    }
}

/// An open frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Where it is.
    pub place: Place,
    /// Clients connected now.
    pub connections: u32,
}

/// Where an open frontend is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A loop device of this host.
    Fuse {
        /// `/dev/loopN`.
        device: PathBuf,
        /// The name that stays.
        link: PathBuf,
    },
    /// A device of this host's NBD client.
    NbdDevice {
        /// `/dev/nbdN`.
        device: PathBuf,
        /// The name that stays.
        link: PathBuf,
    },
    /// An NBD export.
    Nbd {
        /// `nbd+unix:///NAME?socket=PATH`.
        uri: String,
        /// `nbds://ADDRESS/NAME` or `nbd://ADDRESS/NAME`, when TCP is configured.
        tcp_uri: Option<String>,
    },
}

/// Where a comparison stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VerifyProgress {
    /// Blocks compared.
    pub done: u64,
    /// Blocks of the volume.
    pub total: u64,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Blocks compared.
    pub blocks: u64,
    /// At which position.
    pub lsn: Lsn,
    /// What differs, at most 64 ranges.
    pub differing: Vec<BlockRange>,
}

/// A site to be made known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPeer {
    /// Its name here.
    pub name: Name,
    /// The site that must answer; none: the first that does.
    pub site: Option<SiteId>,
    /// Its control address.
    pub address: HostPort,
    /// Its authority in PEM; none: that of this agent.
    pub ca_pem: Option<String>,
}

/// Another site as this agent knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its name here.
    pub name: Name,
    /// Its identity, once known.
    pub site: Option<SiteId>,
    /// Its control address.
    pub address: HostPort,
    /// Defined by the configuration file, not by a verb.
    pub from_config: bool,
    /// Whether it answers.
    pub health: PeerHealth,
    /// Last round trip in microseconds.
    pub rtt_us: Option<u64>,
    /// Age of the last message in milliseconds.
    pub last_heard_ms: Option<u64>,
    /// Version of its agent.
    pub version: Option<String>,
    /// Volumes here that name it.
    pub volumes: u32,
}

/// Whether a peer answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerHealth {
    /// It does.
    Up,
    /// It did, or never did; why.
    Down(String),
    /// Nobody has tried yet.
    Unknown,
    /// It answers, and one of the two refuses the other; why.
    Refused(String),
}

/// The agent itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentInfo {
    /// Its site.
    pub site: SiteId,
    /// Name of the site.
    pub site_name: Name,
    /// Its node.
    pub node: NodeId,
    /// Name of the node.
    pub node_name: Name,
    /// Boot of the kernel.
    pub boot: BootId,
    /// Start of the agent.
    pub started: WallMs,
    /// Serving threads by index.
    pub shards: Vec<ShardInfo>,
    /// Pools by name.
    pub pools: Vec<PoolInfo>,
    /// Peers by name.
    pub peers: Vec<PeerInfo>,
    /// Which frontends work here: `Err` holds the reason why not.
    pub frontends: Vec<(FrontendKind, Result<(), String>)>,
    /// The arbiter between the sites; none: a person decides.
    pub witness: Option<WitnessInfo>,
}

/// The agent's witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessInfo {
    /// What kind it is: a word.
    pub backend: &'static str,
    /// Where it is.
    pub place: String,
    /// Why the last call was in vain; none: it was answered, and the answer believed.
    pub fault: Option<String>,
    /// How long a renewal of the lease lasts.
    pub lease_span: Duration,
    /// The grant that is held, and how much longer its last renewal lasts.
    pub lease: Option<(u64, Duration)>,
}

/// A serving thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// Its number.
    pub index: u16,
    /// Volumes on it.
    pub volumes: u32,
    /// Where peers send frames to.
    pub data_address: Option<std::net::SocketAddr>,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its name.
    pub name: Name,
    /// Its directory.
    pub path: PathBuf,
    /// The logs' directory when it is another.
    pub log_path: Option<PathBuf>,
    /// Bytes of its file system.
    pub total_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
    /// Volumes in it.
    pub volumes: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_an_id_when_it_reads_as_one() {
        let id = VolumeId([7; 16]);
        assert_eq!(VolumeKey::parse(&id.to_string()), Some(VolumeKey::Id(id)));
        assert_eq!(VolumeKey::parse("pg"), Name::parse("pg").ok().map(VolumeKey::Name));
        assert_eq!(VolumeKey::parse("../pg"), None);
        assert_eq!(PeerKey::parse(""), None);
    }
}
