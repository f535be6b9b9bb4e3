//! Real agents in bad conditions that are not crashes: disks that are full or hang, links that are slow or break.
//!
//! Each trial names the state that the agents must show. At its end both agents are killed and started again, every sector is
//! checked and both copies are compared; where A's disk failed, B is promoted instead and checked.

mod disks;
mod field;
mod links;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

/// One of the trials.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Trial {
    /// No space for another segment of A's log
    FullLog,
    /// No space for another block of A's base
    FullBase,
    /// No space at B
    FullPeer,
    /// A is killed while its disk is full
    FullRestart,
    /// A sync at A fails
    FailedSync,
    /// A's disk does not answer any more
    HungDisk,
    /// B's disk does not answer any more
    HungPeer,
    /// 20 ms each way, mode sync
    SlowSync,
    /// 20 ms each way, mode async
    SlowAsync,
    /// Connections break all the time, mode sync
    Breaking,
    /// No link at all for a while, then a black hole
    NoLink,
}

/// Runs real agents on bad disks and bad links.
#[derive(Clone, Debug, Parser)]
#[command(max_term_width = 110)]
pub struct Options {
    /// Which; all without any
    #[arg(value_enum)]
    pub trials: Vec<Trial>,
    /// How long the condition lasts, in seconds
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// Chooses requests and cuts; by default others each time, printed at the start
    #[arg(long)]
    pub seed: Option<u64>,
    /// Leave logs, configurations and volumes where they are
    #[arg(long)]
    pub keep: bool,
}

/// Runs the trials; one line each on stderr.
///
/// # Errors
/// What did not hold.
pub fn run(options: &Options) -> Result<()> {
    let seed = options.seed.unwrap_or_else(crate::dice::Dice::fresh_seed);
    eprintln!("seed {seed}");
    let all = Trial::value_variants();
    for trial in if options.trials.is_empty() { all } else { &options.trials } {
        let begun = Instant::now();
        let said = play(*trial, options, seed).with_context(|| format!("{trial:?} (--seed {seed})"))?;
        eprintln!("{trial:?}: {said} ({} ms)", begun.elapsed().as_millis());
    }
    Ok(())
}

fn play(trial: Trial, options: &Options, seed: u64) -> Result<String> {
    let condition = field::Condition { seed, span: Duration::from_secs(options.seconds), keep: options.keep };
    match trial {
        Trial::FullLog => disks::full_log(&condition),
        Trial::FullBase => disks::full_base(&condition),
        Trial::FullPeer => disks::full_peer(&condition),
        Trial::FullRestart => disks::full_restart(&condition),
        Trial::FailedSync => disks::failed_sync(&condition),
        Trial::HungDisk => disks::hung_disk(&condition),
        Trial::HungPeer => disks::hung_peer(&condition),
        Trial::SlowSync => links::slow_sync(&condition),
        Trial::SlowAsync => links::slow_async(&condition),
        Trial::Breaking => links::breaking(&condition),
        Trial::NoLink => links::no_link(&condition),
    }
}
