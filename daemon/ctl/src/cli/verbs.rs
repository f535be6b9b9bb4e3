//! The verbs on one volume copy, and what shows its state.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::volume::{Foretell, Named, Yes};
use crate::units;

/// `promote`.
#[derive(Args, Debug)]
pub struct Promote {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// State that the other site is stopped and will not serve before it has been in contact again; recorded for good
    #[arg(long, requires = "reason")]
    pub assert_peer_fenced: bool,
    /// Why; recorded for good
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Who decides; recorded for good [default: the user and the host]
    #[arg(long, value_name = "TEXT")]
    pub who: Option<String>,
    /// Accept the loss of at most so many bytes of log, for example 64Mi
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub max_loss_bytes: Option<u64>,
    /// Accept a state that is at most so many seconds old
    #[arg(long, value_name = "SECONDS")]
    pub max_loss_seconds: Option<u64>,
    /// Accept that nothing can be proven about the loss
    #[arg(long)]
    pub allow_unproven: bool,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}

/// `demote`.
#[derive(Args, Debug)]
pub struct Demote {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// Fail queued I/O instead of refusing while devices are attached
    #[arg(long)]
    pub force: bool,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}

/// `switchover`.
#[derive(Args, Debug)]
pub struct Switchover {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// The site that is to be the primary: its name or id
    #[arg(long, value_name = "SITE")]
    pub to: String,
    /// Detach the volume, or all of its group, first; refused while one is in use
    #[arg(long, conflicts_with = "force")]
    pub detach: bool,
    /// Fail queued I/O and end what is attached, instead of refusing
    #[arg(long)]
    pub force: bool,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}

/// `pause`.
#[derive(Args, Debug)]
#[group(id = "parts", required = true, multiple = true, args = ["ship", "floor"])]
pub struct Pause {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// Send nothing more to the other site; at the primary, while flushes do not wait for that site
    #[arg(long)]
    pub ship: bool,
    /// Write nothing more to the base image here
    #[arg(long)]
    pub floor: bool,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}

/// `resume`.
#[derive(Args, Debug)]
pub struct Resume {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// Shipping; with neither of the two, whatever is paused
    #[arg(long)]
    pub ship: bool,
    /// The base image
    #[arg(long)]
    pub floor: bool,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}

/// `drop-peer`.
#[derive(Args, Debug)]
pub struct DropPeer {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// Why; recorded for good
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Who decides; recorded for good [default: the user and the host]
    #[arg(long, value_name = "TEXT")]
    pub who: Option<String>,
    /// The answer.
    #[command(flatten)]
    pub yes: Yes,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}

/// `status`.
#[derive(Args, Debug)]
pub struct Status {
    /// Names or ids of volumes; without any, all
    #[arg(value_name = "VOLUME")]
    pub volumes: Vec<String>,
    /// Show it again and again: refreshed on a terminal, else a line for each volume and moment
    #[arg(long, short)]
    pub watch: bool,
    /// Time between two looks
    #[arg(long, value_name = "SPAN", default_value = "1s", value_parser = interval, requires = "watch")]
    pub interval: Duration,
}

/// `peer`.
#[derive(Subcommand, Debug)]
pub enum Peer {
    /// Make another site known to this agent
    ///
    /// The same command again changes the address or the CA. The site's id is taken from its CA's certificate when that is
    /// given, else learnt at first contact and kept.
    #[command(
        after_long_help = "Examples:\n  tidemark peer add munich --address n1.munich.example.org:9740 --peer-ca munich-ca.crt"
    )]
    Add(PeerAdd),
    /// List the known sites
    #[command(visible_alias = "ls")]
    List,
    /// Show one site
    Show(PeerNamed),
    /// Forget a site; refused while a volume names it
    #[command(visible_alias = "rm")]
    Remove(PeerRemove),
}

/// `peer add`.
#[derive(Args, Debug)]
pub struct PeerAdd {
    /// Name of the site here
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Control address of the site's agent
    #[arg(long, value_name = "HOST:PORT")]
    pub address: String,
    /// Certificate of the site's CA; by default the agent's own CA vouches for the site too
    #[arg(long, value_name = "FILE")]
    pub peer_ca: Option<PathBuf>,
    /// Id of the site; any other site is refused under this name
    #[arg(long, value_name = "UUID")]
    pub site_id: Option<String>,
}

/// A peer by name or id.
#[derive(Args, Clone, Debug)]
pub struct PeerNamed {
    /// Name or site id of the peer
    #[arg(value_name = "PEER")]
    pub peer: String,
}

/// `peer remove`.
#[derive(Args, Clone, Debug)]
pub struct PeerRemove {
    /// The peer.
    #[command(flatten)]
    pub named: PeerNamed,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}

/// `witness`.
#[derive(Subcommand, Debug)]
pub enum Witness {
    /// Show the agent's witness: whether it answers, and how long the agent's lease there still lasts
    ///
    /// Exits 3 when the agent has no witness.
    #[command(after_long_help = "Examples:\n  tidemark witness show\n  tidemark witness show -o json")]
    Show,
    /// Try the agent's witness: read and change a cell that nobody needs, and print how long that takes
    ///
    /// Also shows that a change of an old value is refused, without which it would be no arbiter. Exits 3 when the agent has no
    /// witness, or one that does not answer or cannot be relied on; the message says why.
    #[command(after_long_help = "Examples:\n  tidemark witness check\n  tidemark witness check -o json")]
    Check,
}

/// `agent`.
#[derive(Subcommand, Debug)]
pub enum Agent {
    /// Show the agent: identities, versions, pools, shards, peers and frontends
    Show,
}

fn interval(text: &str) -> Result<Duration, String> {
    let span = units::parse_span(text)?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(3600);
    if allowed.contains(&span) { Ok(span) } else { Err("must be between 100ms and 1h".to_owned()) }
}
