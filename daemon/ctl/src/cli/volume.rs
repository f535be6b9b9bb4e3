//! `tidemark volume`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::policy::{Frontend, Placement, Policy};
use crate::units;

/// Make, show, attach, change and remove volumes.
#[derive(Subcommand, Debug)]
pub enum Volume {
    /// Make a new, empty volume
    ///
    /// The agent makes a log and a base image in the pool and, with --peer-site, the other copy at the peer. This site is
    /// primary at once. The same command again finds the volume made, or waits for it, and succeeds; one that asks for
    /// another size, mode, peer, base, pool or group under the same name is refused.
    ///
    /// With --group the volume shares one log with the others of that group: what was written to them is found in the order in
    /// which it was written, at whatever moment a site is lost, and they fail over together. Policy, peer and pool are the
    /// group's: those of the volume that it was made with.
    ///
    /// With --members the group lies on several nodes of the site: the same command, with a volume of its own, is given on each of
    /// them, on the first one first. No volume of it is served before all of them are there.
    #[command(
        after_long_help = "Examples:\n  tidemark volume create db --size 10Gi --mode sync --peer-site b --pool main\n  tidemark volume create scratch --size 1Gi --pool main --log-size 2Gi --retention 1h\n  tidemark volume create data --group pg --size 10Gi --mode sync --peer-site b && tidemark volume create wal --group pg --size 2Gi"
    )]
    Create(Create),
    /// Put a volume in front of an existing device or file
    ///
    /// No data is moved and nothing is written to it before the first drain. It must not be mounted; from now on it is the
    /// state at the floor of the log. `volume release` gives it back.
    #[command(
        after_long_help = "Examples:\n  tidemark volume adopt db /dev/vg0/db --mode sync --peer-site b --pool main"
    )]
    Adopt(Adopt),
    /// List the volumes of this agent
    #[command(visible_alias = "ls")]
    List,
    /// Show everything about one volume
    Show(Named),
    /// Open a volume as a block device
    ///
    /// Works where the volume is primary. Prints the stable path of the device (a link, the same after every restart and
    /// attach) or the NBD address. Attached already: prints what is there.
    #[command(
        after_long_help = "Examples:\n  tidemark volume attach db\n  tidemark volume attach db --frontend nbd -o json"
    )]
    Attach(Attach),
    /// Close the block device of a volume
    ///
    /// Refused while it is in use, unless --force is given: open requests then fail.
    Detach(Detach),
    /// Grow a volume
    ///
    /// Both copies grow; a volume never shrinks. The file system on it is yours to grow.
    #[command(after_long_help = "Examples:\n  tidemark volume resize db --size 20Gi")]
    Resize(Resize),
    /// Give a base device or file back
    ///
    /// Drains the log into the base and stops serving for good. Afterwards the base mounts as it is. Needs a detached
    /// volume; may take as long as the log is large: raise --timeout.
    Release(Confirmed),
    /// Remove this site's copy of a volume
    ///
    /// The files go to the pool's trash, or are removed at once with --purge. An adopted base is never touched. The other
    /// site's copy stays: a primary that has one is refused, as nobody would serve it (demote here and promote there, or forget
    /// the peer), unless --force is given.
    ///
    /// One of several volumes of a group is removed from it at both sites, at the primary, and for good (--purge).
    #[command(after_long_help = "Examples:\n  tidemark volume delete scratch --yes")]
    Delete(Delete),
    /// Change the policy or the peer of a volume, online
    ///
    /// Only the named fields change. A mode that is not possible yet, because the peer is behind, becomes wanted and takes
    /// effect when the peer has caught up.
    #[command(
        after_long_help = "Examples:\n  tidemark volume set db --mode sync\n  tidemark volume set db --peer-site b --mode async\n  tidemark volume set db --no-peer-site"
    )]
    Set(Set),
    /// Compare both copies without stopping I/O; the same as `tidemark verify`
    Verify(Named),
    /// List the sealed branches of a volume: what lost against a newer history and was kept
    Branches(Named),
}

/// A volume by name or id.
#[derive(Args, Clone, Debug)]
pub struct Named {
    /// Name or id of the volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
}

/// A verb on one volume that asks first.
#[derive(Args, Clone, Debug)]
pub struct Confirmed {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// The answer.
    #[command(flatten)]
    pub yes: Yes,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}

/// Only the plan is wanted.
#[derive(Args, Clone, Copy, Debug)]
pub struct Foretell {
    /// Print what would happen, with what it would lose and wait for, and change nothing; exits 3 when it would be refused
    #[arg(long)]
    pub plan: bool,
}

/// The answer to the question that a destructive verb asks.
#[derive(Args, Clone, Copy, Debug)]
pub struct Yes {
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
}

/// `volume create`.
#[derive(Args, Debug)]
pub struct Create {
    /// Name: lower-case letters, digits, '-' and '.'
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Size, a multiple of 512 bytes, for example 10Gi
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub size: u64,
    /// Path for the base image instead of a file in the pool: a file that is not there yet, or a block device that reads as
    /// zeros, which is read through once
    #[arg(long, value_name = "PATH")]
    pub base: Option<PathBuf>,
    /// The group that it joins, or that is made with it; by default one of its own
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// The nodes of this site that the group lies on, by id, this one among them; the first one leads
    #[arg(long, value_name = "NODE", value_delimiter = ',', requires = "group")]
    pub members: Vec<String>,
    /// The nodes of the peer's site, in the same order
    #[arg(long, value_name = "NODE", value_delimiter = ',', requires = "members")]
    pub peer_members: Vec<String>,
    /// Where.
    #[command(flatten)]
    pub placement: Placement,
    /// How.
    #[command(flatten)]
    pub policy: Policy,
}

/// `volume adopt`.
#[derive(Args, Debug)]
pub struct Adopt {
    /// Name: lower-case letters, digits, '-' and '.'
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The block device or file
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// The name of the group that is made with it; by default its own
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Where.
    #[command(flatten)]
    pub placement: Placement,
    /// How.
    #[command(flatten)]
    pub policy: Policy,
}

/// `volume attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// Which kind of device; by default that of the volume's policy, else the best that the host offers
    #[arg(long, value_name = "FRONTEND")]
    pub frontend: Option<Frontend>,
}

/// `volume detach`.
#[derive(Args, Debug)]
pub struct Detach {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// Even while it is in use
    #[arg(long)]
    pub force: bool,
}

/// `volume resize`.
#[derive(Args, Debug)]
pub struct Resize {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// New size, a multiple of 512 bytes
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub size: u64,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}

/// `volume delete`.
#[derive(Args, Debug)]
pub struct Delete {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// Remove the files at once instead of moving them to the pool's trash
    #[arg(long)]
    pub purge: bool,
    /// Even when it is attached, or the peer would be left without a primary
    #[arg(long)]
    pub force: bool,
    /// The answer.
    #[command(flatten)]
    pub yes: Yes,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}

/// `volume set`.
#[derive(Args, Debug)]
pub struct Set {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// Name the peer site of a local volume: name or id
    #[arg(long, value_name = "SITE", conflicts_with = "no_peer_site")]
    pub peer_site: Option<String>,
    /// Forget the peer: the volume becomes local
    #[arg(long)]
    pub no_peer_site: bool,
    /// What changes.
    #[command(flatten)]
    pub policy: Policy,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}
