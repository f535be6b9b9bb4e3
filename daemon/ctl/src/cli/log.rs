//! `tidemark log`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Read the log of a volume copy offline.
#[derive(Subcommand, Debug)]
pub enum Log {
    /// Show what a copy holds: identity, floor, segments, records
    ///
    /// DIR is the volume's directory in the pool. Nothing is written; an agent that has the volume open is not disturbed: the
    /// command is refused then.
    #[command(after_long_help = "Examples:\n  tidemark log inspect /var/lib/tidemark/main/7b0e... --frames")]
    Inspect(Inspect),
    /// Check everything of a copy but its base
    ///
    /// Every frame with its checksums and the chain, every footer and branch, both versions of the superblock and of the
    /// configuration; says what an agent will find at its next start. Exits 1 when something is damaged. An unfinished tail
    /// is no damage.
    #[command(after_long_help = "Examples:\n  tidemark log verify /var/lib/tidemark/main/7b0e... -o json")]
    Verify(Directory),
}

/// `log inspect`.
#[derive(Args, Debug)]
pub struct Inspect {
    /// The copy.
    #[command(flatten)]
    pub directory: Directory,
    /// Every frame above the floor too
    #[arg(long)]
    pub frames: bool,
}

/// A volume's directory.
#[derive(Args, Debug)]
pub struct Directory {
    /// Directory of the volume in its pool
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}
