//! `hack/bench`: see the library.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use tidemark_benches::bed::Bed;
use tidemark_benches::job::Job;
use tidemark_benches::replication::Replication;
use tidemark_benches::report::Report;
use tidemark_benches::run::{Scale, interleaved};
use tidemark_benches::stream;
use tidemark_benches::target::{Name, Target};
use tidemark_tests::stage;

/// How the result is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Compares Tidemark with a raw file, nbdkit and qemu on this machine, in one interleaved run.
///
/// Read ratios, not figures. The exit code is 1 when a bar is missed. Without built agents only the peers are measured.
#[derive(Debug, Parser)]
#[command(name = "hack/bench", max_term_width = 110)]
struct Options {
    /// Repeats of every job on every target
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    runtime: u64,
    /// MiB of each device
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(64..=1_048_576))]
    size: u64,
    /// Only these jobs
    #[arg(long, value_enum, value_delimiter = ',')]
    jobs: Vec<Job>,
    /// Only these targets
    #[arg(long, value_enum, value_delimiter = ',')]
    targets: Vec<Name>,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

fn main() -> ExitCode {
    let options = Options::parse();
    stage::sweep_on_panic();
    match run(&options) {
        Ok(report) => {
            match options.output {
                Output::Table => println!("{}", report.tables()),
                Output::Json => println!("{:#}", report.json()),
            }
            if report.passes() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<Report> {
    let scale = Scale { repeats: options.repeats, seconds: options.runtime, size: options.size << 20 };
    let jobs = if options.jobs.is_empty() { Job::ALL.to_vec() } else { options.jobs.clone() };
    let mut bed = Bed::new(scale.size)?;
    let targets = start(&mut bed, options)?;
    let stream = stream::table()?;
    let samples = interleaved(&targets, &jobs, scale, |next| eprintln!("{next}"))?;
    let replication = Replication::measure(&mut bed, &targets, &samples, scale)?;
    Ok(Report::new(scale, samples, &targets, stream, replication))
}

/// Starts the wanted targets. Without a choice, Tidemark's are left out when there is no agent.
fn start(bed: &mut Bed, options: &Options) -> Result<Vec<Target>> {
    let chosen = !options.targets.is_empty();
    let names = if chosen { options.targets.as_slice() } else { Name::value_variants() };
    let built = tidemark_tests::agents::Programs::find();
    if let (Err(error), false) = (&built, chosen) {
        eprintln!("only the peers are measured: {error:#}");
    }
    let wanted = names.iter().filter(|name| chosen || built.is_ok() || !name.is_tidemark());
    let targets = wanted.map(|&name| {
        eprintln!("starting {}", name.title());
        bed.start(name).with_context(|| format!("cannot start {}", name.title()))
    });
    let targets: Vec<Target> = targets.collect::<Result<_>>()?;
    ensure!(!targets.is_empty(), "no target");
    Ok(targets)
}
