//! `tidemark branch`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::policy::Frontend;
use super::volume::{Foretell, Named, Yes};

/// What lost against a newer history and was kept.
#[derive(Subcommand, Debug)]
pub enum Branch {
    /// List the sealed branches of a volume's group
    #[command(visible_alias = "ls")]
    List(Named),
    /// Open a branch, or what this copy holds now, read-only
    ///
    /// The volume as the branch left it: what this copy held where the histories part, and all of the branch above. Without a number,
    /// what the copy holds at this moment, whatever its role: of a copy that diverged, what it would lose. The copy goes on
    /// meanwhile. Prints the stable path of a device, or an NBD address.
    ///
    /// Refused where it cannot be shown whole: the base was brought beyond the point where the branch begins (the log ran short, or was
    /// drained), or was replaced (`reseed` where that took the copy anew). `branch export` still gives what the branch changed. An open
    /// view ends, and reads fail, when the log needs its room or the copy is drained or seeded.
    ///
    /// A file system in it was not unmounted: mount it without replaying its journal (ext4: -o ro,noload; XFS: -o ro,norecovery).
    #[command(
        after_long_help = "Examples:\n  tidemark branch open db 1\n  tidemark branch open db --frontend nbd -o json"
    )]
    Open(Open),
    /// Close what `branch open` opened
    ///
    /// Refused while it is in use, unless --force is given: open requests then fail.
    Close(Close),
    /// Remove a branch for good
    ///
    /// Who, why and when are recorded, and shown by `branch list`. A branch of class unacked is removed by the agent itself when its
    /// time is over (`limits.branch_retention`); every other stays until somebody states here that nobody needs what it holds.
    #[command(
        after_long_help = "Examples:\n  tidemark branch drop db 1 --reason \"copied by hand\" --acknowledge --yes\n  tidemark branch drop db 1 --reason \"not needed\" --plan"
    )]
    Drop(Drop),
    /// Show one branch: what it is, and which ranges it changed
    ///
    /// Reads the branch's file, with everything in it checked: run it on the agent's host, as a user who may read the pool. Ranges of a group
    /// of several volumes are of the group's space, in which its volumes lie end to end.
    Show(Numbered),
    /// Write what a branch changed to a new file
    ///
    /// The file is a sparse image of the volume's size. It holds the blocks that the branch changed, as it left them, and no
    /// other: what the branch did not change is a hole. The output lists the ranges that count; copied over an image of the
    /// volume as it was at the fork, they give the volume as of the branch's end. Run it on the agent's host.
    ///
    /// Of a group of several volumes the image is that of the volume that is named, and the ranges are its own.
    #[command(
        after_long_help = "Examples:\n  tidemark branch export db 1 --to /var/tmp/db-branch.img -o json\n  tidemark branch export pg 1 --volume wal --to /var/tmp/wal-branch.img"
    )]
    Export(Export),
}

/// A branch of a volume.
#[derive(Args, Clone, Debug)]
pub struct Numbered {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// Number of the branch
    #[arg(value_name = "N")]
    pub number: u32,
}

/// What a view shows.
#[derive(Args, Clone, Debug)]
pub struct Seen {
    /// The volume.
    #[command(flatten)]
    pub named: Named,
    /// Number of the branch; without it, what the copy holds now
    #[arg(value_name = "N")]
    pub number: Option<u32>,
}

/// `branch open`.
#[derive(Args, Debug)]
pub struct Open {
    /// What.
    #[command(flatten)]
    pub seen: Seen,
    /// nbd or fuse; by default fuse where the host has it
    #[arg(long, value_name = "FRONTEND")]
    pub frontend: Option<Frontend>,
}

/// `branch close`.
#[derive(Args, Debug)]
pub struct Close {
    /// What.
    #[command(flatten)]
    pub seen: Seen,
    /// Even while it is in use
    #[arg(long)]
    pub force: bool,
}

/// `branch drop`.
#[derive(Args, Debug)]
pub struct Drop {
    /// The branch.
    #[command(flatten)]
    pub branch: Numbered,
    /// Why; recorded for good
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Who decides; recorded for good [default: the user and the host]
    #[arg(long, value_name = "TEXT")]
    pub who: Option<String>,
    /// Nobody needs what may have been acknowledged in it (class acked or unknown)
    #[arg(long)]
    pub acknowledge: bool,
    /// The answer.
    #[command(flatten)]
    pub yes: Yes,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}

/// `branch export`.
#[derive(Args, Debug)]
pub struct Export {
    /// The branch.
    #[command(flatten)]
    pub branch: Numbered,
    /// Which volume of the group; by default the one that is named
    #[arg(long = "volume", value_name = "NAME")]
    pub of: Option<String>,
    /// The file, which must not be there yet
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
}
