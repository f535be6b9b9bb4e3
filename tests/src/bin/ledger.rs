//! The ledger by hand: load a PostgreSQL and keep what it acknowledged, or compare a recovered one with that.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tidemark_tests::ledger::{Ledger, Load, audit, connect, prepare};

/// Loads a PostgreSQL and remembers every acknowledged transaction; compares later.
#[derive(Parser)]
struct Options {
    /// Directory of the server's unix socket
    #[arg(long, value_name = "DIR", default_value = "/var/run/postgresql")]
    socket: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make the tables
    Prepare {
        /// Concurrent writers
        #[arg(long, default_value_t = 8)]
        writers: u32,
    },
    /// Commit until the time is over or the server is gone
    Run {
        /// Concurrent writers, as for prepare
        #[arg(long, default_value_t = 8)]
        writers: u32,
        /// How long, in seconds
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Where the ledger goes: not on the volume
        #[arg(long, value_name = "FILE")]
        record: PathBuf,
    },
    /// Compare a database with a ledger; fails when a transaction is lost
    Check {
        /// A file that run wrote
        #[arg(long, value_name = "FILE")]
        record: PathBuf,
    },
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    match &options.verb {
        Verb::Prepare { writers } => {
            prepare(&mut connect(&options.socket)?, *writers)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Run { writers, seconds, record } => run(&options, *writers, Duration::from_secs(*seconds), record),
        Verb::Check { record } => check(&options, record),
    }
}

fn run(options: &Options, writers: u32, span: Duration, record: &PathBuf) -> Result<ExitCode> {
    let load = Load::start(&options.socket, writers)?;
    // Out of writers or out of time: either is the end that was asked for.
    let _ = load.wait_for(u64::MAX, span);
    let ledger = load.finish()?;
    std::fs::write(record, ledger.to_string()).with_context(|| format!("cannot write {}", record.display()))?;
    println!("{} acknowledged, kept in {}", ledger.committed(), record.display());
    Ok(ExitCode::SUCCESS)
}

fn check(options: &Options, record: &PathBuf) -> Result<ExitCode> {
    let found = audit(&mut connect(&options.socket)?, &Ledger::read(record)?)?;
    println!(
        "committed {}, found {}, lost {}, unacknowledged {}",
        found.committed, found.found, found.lost, found.unacknowledged
    );
    Ok(if found.lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
