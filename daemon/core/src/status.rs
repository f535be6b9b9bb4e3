//! A copy's state as values that status, metrics and the CLI show. Every non-normal state carries its reason.

use crate::config::{Config, Paused, Policy};
use crate::layout::Layout;
use crate::plan::Promotable;
use crate::site::Membership;
use crate::types::{Epoch, Lsn, Position, SiteId, VolumeId};
use crate::verb::Assertion;

/// Whether this copy may serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Follows.
    Secondary,
    /// Serves.
    Primary,
    /// Was Primary; all I/O is queued.
    Suspended(SuspendReason),
    /// A higher K names another primary: all I/O fails.
    Fenced(Epoch),
}

impl Role {
    /// Requests are served, or queued until they are; else they fail.
    pub fn serves(self) -> bool {
        matches!(self, Self::Primary | Self::Suspended(_))
    }
}

/// Why a primary queues all I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SuspendReason {
    /// A peer of S has to be brought to the recovered tail first (R7), and is not reachable.
    NoSyncPeer,
    /// The lease ended.
    LeaseLost,
    /// An operator asked.
    User,
    /// The log has no space.
    LogFull,
    /// Restarted, and nobody has confirmed that no other site took over.
    Restart,
    /// Being promoted or rolling forward; ends by itself.
    Opening,
    /// The local log failed.
    Failed,
}

/// How good this copy is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CopyState {
    /// Recovery runs.
    Opening,
    /// Receives its first content, or what changed while it was away.
    Seeding {
        /// Bytes sent so far in this pass.
        done: u64,
        /// Bytes of this pass.
        total: u64,
        /// Only what changed.
        by_difference: bool,
    },
    /// A prefix of the primary's log, behind.
    CatchingUp,
    /// A member of S in the newest K, or the primary itself, or an async copy that streams.
    Current,
    /// Was left out of S, or has no link.
    Stale,
    /// Has records that the newer history does not have; kept.
    Diverged {
        /// Why it was not sealed and rewound.
        reason: String,
    },
    /// Not to be trusted: wrong base, regressed, hash mismatch.
    Suspect {
        /// What was found.
        reason: String,
    },
    /// A device error ended it.
    Failed {
        /// What failed.
        reason: String,
    },
}

/// The stream to the peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkState {
    /// There is no peer to speak to (local volume).
    NoPeer,
    /// No stream.
    Disconnected,
    /// Comparing histories.
    Handshaking,
    /// The peer receives old records from segments.
    CatchingUp,
    /// The peer receives its first content.
    Seeding,
    /// The peer receives records as they come.
    Streaming,
    /// An operator paused it.
    Paused,
    /// The peer refused, or we did.
    Refused(String),
}

/// Everything about one copy of one volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The first volume, which names the group's log.
    pub volume: VolumeId,
    /// Own site.
    pub site: SiteId,
    /// Peer site, if any.
    pub peer: Option<SiteId>,
    /// Role.
    pub role: Role,
    /// Copy state.
    pub copy: CopyState,
    /// Link state.
    pub link: LinkState,
    /// K as persisted here.
    pub config: Config,
    /// Policy.
    pub policy: Policy,
    /// Bytes of the group's space; of one volume its size.
    pub size: u64,
    /// The volumes of the group.
    pub layout: Layout,
    /// What its base is composed of: also of what was removed, as long as the superblock names it.
    pub base_layout: Layout,
    /// What the base holds.
    pub floor: Lsn,
    /// Written at every site of S, synced.
    pub committed: Lsn,
    /// Synced here.
    pub durable: Lsn,
    /// Written here.
    pub appended: Position,
    /// The peer's durable position as last heard in this incarnation.
    pub peer_durable: Lsn,
    /// Bytes of log records that the peer does not have durable.
    pub backlog_bytes: u64,
    /// Age in milliseconds of the oldest record that the peer does not have durable; zero when it has all.
    pub rpo_ms: u64,
    /// Bytes of log slots on disk.
    pub log_bytes: u64,
    /// Bytes that the log may take.
    pub log_limit_bytes: u64,
    /// Ranges in the index.
    pub index_ranges: u64,
    /// Requests not yet answered.
    pub requests: u64,
    /// Every S member is in reach and equal as the mode promises: a loss of this site would lose no acknowledged flush.
    pub protected: bool,
    /// Why not, when `protected` is false.
    pub not_protected_because: String,
    /// Human decisions recorded in this copy's history.
    pub forced_history: Vec<Assertion>,
    /// What an operator has paused here.
    pub paused: Paused,
    /// While the floor is paused: in how many milliseconds the log is full, as it grew of late; `None`: it does not grow.
    pub log_full_in_ms: Option<u64>,
    /// Sealed suffixes.
    pub branches: u32,
    /// What a promotion of this copy would be now.
    pub promotable: Promotable,
    /// The other members of its group at this site, where there are several.
    pub members: Option<GroupMembers>,
    /// Longest-outstanding disk operation in milliseconds.
    pub oldest_disk_op_ms: u64,
    /// Counters since the node opened.
    pub counters: Counters,
}

/// A group of several members a site, as one of them sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupMembers {
    /// Who they are.
    pub membership: Membership,
    /// By member, this one included: what is known of each. One that does not lead knows of its leader alone.
    pub known: Vec<MemberState>,
    /// What stands against a promotion of the group, with the member that is worst; for a leader.
    pub worst: Option<String>,
}

/// What is known of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberState {
    /// Nothing: only its leader knows.
    Unknown,
    /// It is not there.
    Silent,
    /// It is there.
    There {
        /// It has persisted the K that is in force here.
        holds_k: bool,
        /// It serves.
        serves: bool,
    },
}

/// Counters since the node opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests completed, by kind.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes, zeroes and discards completed.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Frames written to the local log.
    pub frames: u64,
    /// Syncs of the local log.
    pub syncs: u64,
    /// Bytes shipped.
    pub shipped_bytes: u64,
    /// Bytes of seeding or resync sent.
    pub seeded_bytes: u64,
    /// Blocks that the floor wrote to the base.
    pub floor_blocks: u64,
    /// Blocks whose checksum was wrong when read.
    pub checksum_errors: u64,
    /// Refusals sent or received.
    pub refusals: u64,
}
