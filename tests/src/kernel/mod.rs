//! The frontend `nbd-device` on a kernel of its own: a Debian kernel boots in a virtual machine with the built binaries in its
//! initial file system, and plays [`scenario`] there. Needs no privileges and no network here.

mod archive;
pub mod machine;
pub mod scenario;

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Task {
    /// Boot a virtual machine and play in it
    Boot(Boot),
    /// Play on this very host: as root, in a virtual machine
    Play,
}

/// Where the kernel is.
#[derive(Args, Debug)]
pub struct Boot {
    /// Directory of an unpacked kernel package, with boot/vmlinuz-VERSION and lib/modules/VERSION
    #[arg(long)]
    pub kernel: PathBuf,
    /// Seconds after which it is stuck
    #[arg(long, default_value_t = 600)]
    pub patience: u64,
}
