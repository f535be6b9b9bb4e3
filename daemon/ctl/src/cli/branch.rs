//! `tidemark branch`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::volume::Named;

/// What lost against a newer history and was kept.
#[derive(Subcommand, Debug)]
pub enum Branch {
    /// List the sealed branches of a volume's group
    #[command(visible_alias = "ls")]
    List(Named),
    /// Show one branch: what it is, and which ranges it changed
    ///
    /// Reads the branch's file, with everything in it checked: run it on the agent's host, as a user who may read the pool. Ranges of a group
    /// of several volumes are of the group's space, in which its volumes lie end to end.
    Show(Numbered),
    /// Write what a branch changed to a new file
    ///
    /// The file is a sparse image of the volume's size. It holds the blocks that the branch changed, as it left them, and no
    /// other: what the branch did not change is a hole. The output lists the ranges that count; copied over an image of the
    /// volume as it was at the fork, they give the volume as of the branch's end. Run it on the agent's host. Refused for a group that has,
    /// or had, several volumes.
    #[command(after_long_help = "Examples:\n  tidemark branch export db 1 --to /var/tmp/db-branch.img -o json")]
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

/// `branch export`.
#[derive(Args, Debug)]
pub struct Export {
    /// The branch.
    #[command(flatten)]
    pub branch: Numbered,
    /// The file, which must not be there yet
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
}
