//! The configuration K of a group and the policy of a volume, as plain values.
//!
//! K is the only thing that says who may acknowledge what: a flush is judged against the K that the agent has persisted
//! (docs/guarantees.md, G1). Rules about how K may change live in [`crate::group`]; bytes live in [`crate::format::config`].

use crate::types::{Epoch, GenId, NodeId, Nonce, SiteId};

/// How a volume is replicated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Mode {
    /// The peer follows; a flush waits for the local disk alone.
    #[default]
    Async,
    /// A flush also waits until the peer has *received and written* (not synced) it.
    Receive,
    /// A flush waits until both disks are durable: zero RPO.
    Sync,
}

/// What an acknowledgement waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum AckOn {
    /// FLUSH and FUA wait for the peer; the device advertises a volatile cache.
    #[default]
    Flush,
    /// Every write waits for the peer; the device advertises write-through.
    Write,
}

/// The age of the last change of S, primary, mode or membership: compared for equality, the nonce included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Since {
    /// Epoch of that K.
    pub epoch: Epoch,
    /// Its nonce.
    pub nonce: Nonce,
}

/// The configuration K of a group.
///
/// Invariants: `sites` is not empty, has no duplicate, and holds `primary` when there is one; `mode` is `Async` exactly when
/// S may be `{primary}` for ever, while `Sync`/`Receive` with one site means "the peer is shrunk out or not yet in".
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Config {
    /// Age.
    pub epoch: Epoch,
    /// Tells two proposals of one epoch apart.
    pub nonce: Nonce,
    /// Who proposed it.
    pub proposer: NodeId,
    /// The K that last changed S, primary, mode or membership.
    pub since: Since,
    /// `since` of the K on which the last change of primary was judged.
    pub base: Since,
    /// The site that may serve, if any.
    pub primary: Option<SiteId>,
    /// The agent that leads at that site.
    pub leader: NodeId,
    /// Which grant of its lease K relies on; 0 while there is no witness.
    pub lease_gen: u64,
    /// Which list "volume -> agent" is in force.
    pub member_rev: u64,
    /// S: the sites whose durability a flush needs. At most [`Config::MAX_SITES`].
    pub sites: Vec<SiteId>,
    /// Replication mode.
    pub mode: Mode,
    /// The generation that writes.
    pub generation: GenId,
    /// A human's assertion replaced a vote at some point of this major (R19); kept for good in the history.
    pub forced: bool,
    /// Made by a switchover: nobody is the primary, and the site that did not propose this K is to become it.
    pub hands_over: bool,
}

impl Config {
    /// The most sites S can hold on disk and on the wire.
    pub const MAX_SITES: usize = 4;

    /// The generation that `site` writes under this K, if it is the primary.
    pub fn written_by(&self, site: SiteId) -> Option<GenId> {
        (self.primary == Some(site)).then_some(self.generation)
    }

    /// True when `site` is in S.
    pub fn has(&self, site: SiteId) -> bool {
        self.sites.contains(&site)
    }

    /// The age of this K as a value to compare with.
    pub fn id(&self) -> Since {
        Since { epoch: self.epoch, nonce: self.nonce }
    }
}

/// What a primary does when a peer that every flush waits for is lost.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum OnPeerLoss {
    /// Flushes wait until the peer is back, or until a person decides.
    #[default]
    Suspend,
    /// The witness decides which site goes on: the primary without its peer, or the peer once the primary's lease has ended.
    Witness,
}

/// What the operator wants of a volume; persisted beside K, changeable online.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Wanted mode; S follows when the copies are equal.
    pub mode: Mode,
    /// What an acknowledgement waits for.
    pub ack_on: AckOn,
    /// Wanted RPO in milliseconds, for status and alarms.
    pub rpo_target_ms: u64,
    /// How far the floor may stay behind, in milliseconds.
    pub retention_ms: u64,
    /// Bytes that the log may take.
    pub log_bytes: u64,
    /// An I/O outstanding longer counts as failed.
    pub disk_timeout_ms: u64,
    /// Bytes per second of shipping; 0 is unlimited.
    pub bandwidth: u64,
    /// Ranges that the in-memory index may hold.
    pub index_ranges: u32,
    /// What becomes of a volume whose peer is lost.
    pub on_peer_loss: OnPeerLoss,
    /// A follower that every flush waited for takes over by itself, as soon as the witness lets it.
    pub auto_failover: bool,
    /// A peer of which nothing was heard for so long is lost, in milliseconds.
    pub peer_loss_ms: u64,
}

/// What an operator has paused at one copy; recorded there and no part of the policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Paused {
    /// Nothing is sent to the peer that S does not need.
    pub ship: bool,
    /// The floor stands: nothing is written to the base.
    pub floor: bool,
}

impl Paused {
    /// Everything that can be.
    pub const ALL: Self = Self { ship: true, floor: true };

    /// Nothing is.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// These parts as well.
    #[must_use]
    pub fn with(self, parts: Self) -> Self {
        Self { ship: self.ship || parts.ship, floor: self.floor || parts.floor }
    }

    /// But for these parts.
    #[must_use]
    pub fn without(self, parts: Self) -> Self {
        Self { ship: self.ship && !parts.ship, floor: self.floor && !parts.floor }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: Mode::Async,
            ack_on: AckOn::Flush,
            rpo_target_ms: 30_000,
            retention_ms: 24 * 3600 * 1000,
            log_bytes: 10 << 30,
            disk_timeout_ms: 30_000,
            bandwidth: 0,
            index_ranges: 512 * 1024,
            on_peer_loss: OnPeerLoss::Suspend,
            auto_failover: false,
            peer_loss_ms: 5_000,
        }
    }
}
