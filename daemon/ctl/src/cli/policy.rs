//! The policy fields as flags: one vocabulary for creation, adoption and change.

use clap::{Args, ValueEnum};
use tidemark_proto::admin as pb;

use crate::units;

/// How a volume is replicated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// Zero RPO: a flush waits until both sites' disks have it
    Sync,
    /// A flush waits until the peer has received and written it, not synced
    Receive,
    /// The peer follows
    Async,
}

/// What an acknowledgement waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum AckOn {
    /// FLUSH and FUA wait for the peer
    Flush,
    /// Every write waits for the peer
    Write,
}

/// What a primary does without its peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum OnPeerLoss {
    /// Queue what needs the peer, until it is back or a person decides
    Suspend,
    /// Ask the witness which site goes on
    Witness,
    /// Go on alone at the preferred site
    Continue,
}

/// How a volume becomes a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Frontend {
    /// The best that the host offers: nbd-device, else fuse, else nbd
    Auto,
    /// An NBD export, for NBD clients
    Nbd,
    /// A FUSE file with a loop device on it: works everywhere, slow
    Fuse,
    /// A device of the kernel's NBD client, /dev/nbdN: waits for an agent that restarts
    NbdDevice,
}

impl From<Mode> for pb::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Sync => Self::Sync,
            Mode::Receive => Self::Receive,
            Mode::Async => Self::Async,
        }
    }
}

impl From<AckOn> for pb::AckOn {
    fn from(ack: AckOn) -> Self {
        match ack {
            AckOn::Flush => Self::Flush,
            AckOn::Write => Self::Write,
        }
    }
}

impl From<OnPeerLoss> for pb::OnPeerLoss {
    fn from(choice: OnPeerLoss) -> Self {
        match choice {
            OnPeerLoss::Suspend => Self::Suspend,
            OnPeerLoss::Witness => Self::Witness,
            OnPeerLoss::Continue => Self::Continue,
        }
    }
}

impl From<Frontend> for pb::Frontend {
    fn from(frontend: Frontend) -> Self {
        match frontend {
            Frontend::Auto => Self::Auto,
            Frontend::Nbd => Self::Nbd,
            Frontend::Fuse => Self::Fuse,
            Frontend::NbdDevice => Self::NbdDevice,
        }
    }
}

/// The fields that can change at any time.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Policy")]
pub struct Policy {
    /// How the volume is replicated [default of a new volume: async]
    #[arg(long, value_name = "MODE")]
    pub mode: Option<Mode>,
    /// What an acknowledgement waits for [default of a new volume: flush]
    #[arg(long, value_name = "WHAT")]
    pub ack_on: Option<AckOn>,
    /// What a primary does when its peer is lost
    #[arg(long, value_name = "WHAT")]
    pub on_peer_loss: Option<OnPeerLoss>,
    /// A peer of which nothing was heard for so long is lost, for example 5s; acts with --on-peer-loss witness
    #[arg(long, value_name = "SPAN", value_parser = milliseconds)]
    pub peer_loss: Option<u64>,
    /// Let the other copy take over by itself when the site of the primary is lost, in mode sync; true needs --on-peer-loss
    /// witness
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub auto_failover: Option<bool>,
    /// RPO over which status and metrics raise an alarm, for example 30s
    #[arg(long, value_name = "SPAN", value_parser = milliseconds)]
    pub rpo_target: Option<u64>,
    /// How far back the log reaches, for example 24h
    #[arg(long, value_name = "SPAN", value_parser = milliseconds)]
    pub retention: Option<u64>,
    /// Space that the log may take, for example 10Gi
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub log_size: Option<u64>,
    /// Bytes per second for the peer, for example 100M (at least 128Ki); 0 is unlimited
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub bandwidth: Option<u64>,
    /// An I/O that is outstanding for longer counts as failed, for example 30s
    #[arg(long, value_name = "SPAN", value_parser = milliseconds)]
    pub disk_timeout: Option<u64>,
    /// Ranges that the index in memory may hold
    #[arg(long, value_name = "N")]
    pub index_ranges: Option<u32>,
    /// Frontend that an attach takes unless it names one
    #[arg(long, value_name = "FRONTEND")]
    pub frontend: Option<Frontend>,
}

/// Where a new volume lies and who holds its other copy.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Placement")]
pub struct Placement {
    /// Peer site that holds the other copy: name or id; without it the volume is local
    #[arg(long, value_name = "SITE")]
    pub peer_site: Option<String>,
    /// Pool for the log and the base image
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
}

impl Policy {
    /// The message with the named fields and no other.
    pub fn to_message(&self) -> pb::Policy {
        pb::Policy {
            mode: self.mode.map(|mode| pb::Mode::from(mode).into()),
            ack_on: self.ack_on.map(|ack| pb::AckOn::from(ack).into()),
            on_peer_loss: self.on_peer_loss.map(|choice| pb::OnPeerLoss::from(choice).into()),
            peer_loss_ms: self.peer_loss,
            auto_failover: self.auto_failover,
            rpo_target_ms: self.rpo_target,
            retention_ms: self.retention,
            log_size_bytes: self.log_size,
            bandwidth_bytes: self.bandwidth,
            disk_timeout_ms: self.disk_timeout,
            index_ranges: self.index_ranges,
            frontend: self.frontend.map(|frontend| pb::Frontend::from(frontend).into()),
            ..pb::Policy::default()
        }
    }

    /// The same with the placement of a new volume.
    pub fn to_placed(&self, placement: &Placement) -> pb::Policy {
        pb::Policy { peer_site: placement.peer_site.clone(), pool: placement.pool.clone(), ..self.to_message() }
    }
}

fn milliseconds(text: &str) -> Result<u64, String> {
    let span = units::parse_span(text)?;
    u64::try_from(span.as_millis()).map_err(|_| "is too long".to_owned())
}
