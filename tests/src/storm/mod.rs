//! Many crashes of real agents under the verifier: `kill -9`, or a cut of the volatile disk, at either site or both, again and
//! again on one volume.
//!
//! A round: load for a random time, the crash, a restart, the check of every sector where the primary was hit, both copies
//! equal again by `tidemark verify`. What each crash left is what the next one begins with.

mod round;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use crate::agents::{NewVolume, Plan, TwoSites};
use crate::dice::Dice;
use crate::verifier::{Counts, Target, Verifier};

use round::Round;

const VOLUME: &str = "storm";
const VOLUME_BYTES: u64 = 64 << 20;
const WORKERS: u32 = 8;

/// How a site crashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Crash {
    /// `kill -9` of the agent
    Kill,
    /// A cut of its volatile disk, then `kill -9`
    Cut,
}

/// Which site crashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Victim {
    /// The primary
    A,
    /// The secondary
    B,
    /// Both at once
    Both,
}

/// Crashes real agents under verify load, again and again.
#[derive(Clone, Debug, Parser)]
#[command(max_term_width = 110)]
pub struct Options {
    /// How often
    #[arg(long, default_value_t = 10)]
    pub rounds: u32,
    /// How
    #[arg(long, value_enum, default_value = "kill")]
    pub crash: Crash,
    /// Who; of several each round draws one
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["a", "b", "both"])]
    pub victim: Vec<Victim>,
    /// Replication mode of the volume
    #[arg(long, default_value = "sync")]
    pub mode: String,
    /// What an acknowledgement waits for
    #[arg(long, default_value = "flush")]
    pub ack_on: String,
    /// Size of the log: a small one is reused often
    #[arg(long, default_value = "64Mi")]
    pub log_size: String,
    /// Chooses requests, moments and victims; by default another one each time, printed at the start
    #[arg(long)]
    pub seed: Option<u64>,
    /// A request that takes longer is stuck, in seconds
    #[arg(long, default_value_t = 30)]
    pub limit: u64,
    /// Leave logs, configurations and volumes where they are
    #[arg(long)]
    pub keep: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Rounds that were brought to their end.
    pub rounds: u32,
    /// Crashes of site A.
    pub crashes_a: u32,
    /// Crashes of site B.
    pub crashes_b: u32,
    /// Requests.
    pub counts: Counts,
}

/// Runs every round.
///
/// # Errors
/// What a crash must not have done, or a round that does not come to its end.
pub fn run(options: &Options) -> Result<Summary> {
    let seed = options.seed.unwrap_or_else(Dice::fresh_seed);
    eprintln!("seed {seed}");
    let on_volatile_disks = options.crash == Crash::Cut;
    let mut sites = TwoSites::new(&Plan { name: "storm".to_owned(), on_volatile_disks, ..Plan::default() })?;
    if options.keep {
        sites.stage.keep();
    }
    let result = weather(options, &mut sites, Dice::new(seed));
    result.with_context(|| format!("--seed {seed}\n{}", sites.logs()))
}

fn weather(options: &Options, sites: &mut TwoSites, mut dice: Dice) -> Result<Summary> {
    sites.start()?;
    let size = VOLUME_BYTES.to_string();
    let wishes = vec!["--log-size", &options.log_size, "--ack-on", &options.ack_on];
    sites.create(&NewVolume { name: VOLUME, size: &size, mode: &options.mode, options: wishes })?;
    let socket = sites.a.cli().attach(VOLUME, "nbd")?.nbd_socket()?;
    let patience = Duration::from_secs(options.limit);
    let target = Target {
        socket,
        export: VOLUME.to_owned(),
        size: VOLUME_BYTES,
        workers: WORKERS,
        patience,
        seed: dice.number(),
    };
    let verifier = Verifier::start(target);
    let mut summary = Summary { rounds: 0, crashes_a: 0, crashes_b: 0, counts: Counts::default() };
    for number in 1..=options.rounds {
        let victim = options.victim[dice.below(options.victim.len() as u64) as usize];
        let round = Round { options, victim, dice: Dice::new(dice.number()) };
        round.play(sites, &verifier).with_context(|| format!("round {number}, {victim:?}"))?;
        summary.rounds += 1;
        summary.crashes_a += u32::from(victim != Victim::B);
        summary.crashes_b += u32::from(victim != Victim::A);
    }
    summary.counts = verifier.stop()?;
    Ok(summary)
}
