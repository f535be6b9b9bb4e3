//! The demonstration: a database on a replicated volume, its site killed in full load, opened at the other site, compared.
//!
//! Decides: what a round is and whether it held. In sync mode nothing that was acknowledged may be lost; in async mode what is
//! lost may not be older than what the agent itself reported just before the end.

mod database;
mod failover;
mod failover_report;
mod host;
mod report;
mod round;
mod sampler;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};

use crate::agents::{Plan, TwoSites};
use crate::dice::Dice;
use crate::proxy::Weather;

pub use failover_report::FailoverReport;
use host::Host;
pub use report::{Outcome, Report};
use round::Round;

/// The replication modes that are shown, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Mode {
    /// Nothing may be lost.
    Sync,
    /// What is lost is bounded by the reported RPO.
    Async,
}

impl Mode {
    /// As the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Async => "async",
        }
    }
}

/// What happens at the kill, and where the volume is opened afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Disaster {
    /// Site A is gone, site B goes on: opened at B
    ALost,
    /// Power fails at both sites and only B comes back: opened at B
    BReturns,
    /// Power fails at both sites and only A comes back: opened at A
    AReturns,
}

impl Disaster {
    /// As the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ALost => "a-lost",
            Self::BReturns => "b-returns",
            Self::AReturns => "a-returns",
        }
    }
}

/// How the result is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Kills a site under a database in full load, opens its volume at the other site, and compares the database with a ledger
/// of everything that was acknowledged.
#[derive(Clone, Debug, Parser)]
#[command(name = "hack/demo", max_term_width = 110)]
pub struct Options {
    /// How often, in each mode, each time at another moment
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Only these modes
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["sync", "async"])]
    pub mode: Vec<Mode>,
    /// Shorter loads, and one line for each mode
    #[arg(long)]
    pub brief: bool,
    /// Chooses the moments; by default another one each time, printed at the start
    #[arg(long)]
    pub seed: Option<u64>,
    /// Concurrent database clients
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=48))]
    pub writers: u32,
    /// Size of the volume
    #[arg(long, default_value = "1Gi")]
    pub size: String,
    /// How the volume becomes a block device: auto, nbd-device, fuse
    #[arg(long, default_value = "auto")]
    pub frontend: String,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "table")]
    pub output: Output,
    /// One-way delay of the link in async mode, in milliseconds: without any, nothing is under way at the kill
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=2_000))]
    pub delay: u64,
    /// Both sites' pools are on disks that lose what was not synced, and the disk of a site that fails is cut
    #[arg(long)]
    pub on_volatile_disk: bool,
    /// What fails; of several each round draws one
    #[arg(long, value_enum, value_delimiter = ',', requires = "on_volatile_disk")]
    pub disaster: Vec<Disaster>,
    /// With a witness and automatic failover: kill A, wait for B to take over by itself, let A come back, and switch over to it
    #[arg(long, conflicts_with_all = ["mode", "on_volatile_disk", "delay"])]
    pub failover: bool,
    /// How long a lease at the witness lasts, in milliseconds; a peer counts as lost after half of it
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1_000..=60_000), requires = "failover")]
    pub lease: u64,
    /// The first round that does not hold ends it
    #[arg(long)]
    pub fail_fast: bool,
    /// Leave logs, configurations and volumes where they are
    #[arg(long)]
    pub keep: bool,
}

impl Options {
    /// The disasters that a round draws from.
    fn disasters(&self) -> &[Disaster] {
        match self.on_volatile_disk {
            true if self.disaster.is_empty() => &[Disaster::ALost, Disaster::BReturns, Disaster::AReturns],
            true => &self.disaster,
            // A disk that is never cut loses nothing: there is only the one to show.
            false => &[Disaster::ALost],
        }
    }

    /// The span in which the kill happens, after the load has begun.
    fn load(&self) -> (Duration, Duration) {
        let (min, max) = if self.brief { (500, 4_000) } else { (4_000, 12_000) };
        (Duration::from_millis(min), Duration::from_millis(max))
    }
}

/// Runs every round.
///
/// # Errors
/// When something is missing, or a round cannot be brought to its end; what did not hold is in the report instead.
pub fn run(options: &Options) -> Result<Report> {
    let (host, seed) = begin(options)?;
    let mut report = Report::new(seed);
    for number in 1..=options.rounds {
        for &mode in &options.mode {
            let dice = Dice::new(seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number) * 2 + mode as u64));
            let outcome = play(options, &host, mode, number, dice)
                .with_context(|| format!("round {number} in {} mode (--seed {seed})", mode.name()))?;
            eprintln!("round {number}: {outcome}");
            let held = outcome.verdict().is_ok();
            report.add(outcome);
            if options.fail_fast && !held {
                return Ok(report);
            }
        }
    }
    Ok(report)
}

/// Runs every round of `--failover`.
///
/// # Errors
/// As [`run`].
pub fn run_failover(options: &Options) -> Result<FailoverReport> {
    let (host, seed) = begin(options)?;
    let mut report = FailoverReport { seed, trips: Vec::new() };
    for number in 1..=options.rounds {
        let dice = Dice::new(seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number)));
        let trip = failover::play(options, &host, number, dice);
        let trip = trip.with_context(|| format!("round {number} (--failover --seed {seed})"))?;
        let held = trip.verdict().is_ok();
        report.trips.push(trip);
        if options.fail_fast && !held {
            break;
        }
    }
    Ok(report)
}

/// What the host has, and the seed of all rounds.
fn begin(options: &Options) -> Result<(Host, u64)> {
    let host = Host::check(&options.frontend)?;
    let seed = options.seed.unwrap_or_else(Dice::fresh_seed);
    eprintln!("seed {seed}");
    Ok((host, seed))
}

fn play(options: &Options, host: &Host, mode: Mode, number: u32, dice: Dice) -> Result<Outcome> {
    let delayed = mode == Mode::Async && options.delay > 0;
    let link_seed = delayed.then(|| dice.clone().number());
    let on_volatile_disks = options.on_volatile_disk;
    let mut sites = TwoSites::new(&Plan { name: "demo".to_owned(), link_seed, on_volatile_disks, ..Plan::default() })?;
    if delayed {
        sites.set_link(Weather::slow(Duration::from_millis(options.delay)));
    }
    if options.keep {
        sites.stage.keep();
    }
    let played = Round::new(options, host, mode, number, dice).play(&mut sites);
    played.with_context(|| sites.logs())
}

/// Space that a round takes: two bases and two logs.
fn ensure_space(dir: &PathBuf) -> Result<()> {
    const NEEDED_BYTES: u64 = 4 << 30;
    let stat = nix::sys::statvfs::statvfs(dir)?;
    let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    ensure!(
        free >= NEEDED_BYTES,
        "{} has {} MiB free and a round needs up to {}",
        dir.display(),
        free >> 20,
        NEEDED_BYTES >> 20
    );
    Ok(())
}
