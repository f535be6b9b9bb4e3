//! Programs of others against real agents, unchanged: NBD clients on the export, file systems on the block device.

mod file_systems;
mod nbd_tools;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Runs programs of others against real agents.
#[derive(Clone, Debug, Parser)]
#[command(max_term_width = 110)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// nbdinfo, nbdcopy, qemu-img and fio on the NBD export
    Nbd,
    /// fio through a qemu-storage-daemon that reconnects, while the agents are killed again and again
    Reconnect {
        /// How often an agent is killed
        #[arg(long, default_value_t = 5)]
        kills: u32,
    },
    /// The exerciser `fsx` on ext4, XFS and btrfs over FUSE + loop
    Fsx(Exercise),
}

/// What `fsx` is to do.
#[derive(Clone, Debug, Args)]
struct Exercise {
    /// The program
    #[arg(long, value_name = "PATH")]
    program: PathBuf,
    /// Operations on each file system
    #[arg(long, default_value_t = 2_000)]
    operations: u64,
    /// Kill agent B and start it again every so many seconds
    #[arg(long, value_name = "SECONDS")]
    restart_b: Option<u64>,
    /// Chooses the operations; by default others each time, printed at the start
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs what was asked for.
///
/// # Errors
/// What did not work.
pub fn run(options: &Options) -> Result<()> {
    match &options.what {
        What::Nbd => nbd_tools::run(),
        What::Reconnect { kills } => nbd_tools::reconnect(*kills),
        What::Fsx(exercise) => file_systems::run(exercise),
    }
}
