//! The frontend `nbd-device` on a kernel of its own: a Debian kernel boots in a virtual machine with the built binaries in its
//! initial file system, and plays [`scenario`] there, or the demonstration. Needs no privileges and no network here.

mod archive;
mod guest;
pub mod machine;
pub mod scenario;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Task {
    /// Boot a virtual machine and play in it
    Boot(Boot),
    /// Play on this very host: as root, in a virtual machine
    Play,
}

/// What is played in the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Piece {
    /// A volume over the deaths of its agents
    Scenario,
    /// PostgreSQL on a volume whose site is killed, as on any host
    Demo,
}

/// Where the kernel is.
#[derive(Args, Debug)]
pub struct Boot {
    /// Directory of an unpacked kernel package, with boot/vmlinuz-VERSION and lib/modules/VERSION
    #[arg(long)]
    pub kernel: PathBuf,
    /// What is played
    #[arg(long, value_enum, default_value = "scenario")]
    pub play: Piece,
    /// Seconds after which it is stuck
    #[arg(long, default_value_t = 1200)]
    pub patience: u64,
}
