//! The simulator on the command line: `sim --seeds 0..1000`, `sim --seed 7 --trace`, `sim --planted NAME`.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tidemark_tests::sim::{Fault, Options, Summary, Witnessed, run, run_many, run_seed};

/// Runs real copies of a volume in a simulated world and checks every answer.
#[derive(Parser)]
struct Args {
    /// Seeds to run, FROM..TO.
    #[arg(long, default_value = "0..1000", value_parser = parse_range)]
    seeds: std::ops::Range<u64>,
    /// Run this one seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Print everything that happens (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Lines of the trace shown after a violation.
    #[arg(long, default_value_t = 40)]
    tail: usize,
    /// Client requests per seed.
    #[arg(long, default_value_t = 1_000)]
    steps: u64,
    /// Threads; 0 means one per core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Stop after so many violations.
    #[arg(long, default_value_t = 5)]
    max_violations: usize,
    /// Plant this bug (needs a build with the feature `__planted`): succeeds when the seeds find it.
    #[arg(long)]
    planted: Option<String>,
    /// Which seeds have a witness: some (a third, by the seed), all, none.
    #[arg(long, default_value = "some", value_parser = parse_witnessed)]
    witnessed: Witnessed,
    /// Two agents a site for one group, in a world of their own.
    #[arg(long)]
    members: bool,
    /// Do not fail when a kind of fault never fired.
    #[arg(long)]
    allow_silent: bool,
}

fn parse_range(text: &str) -> Result<std::ops::Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("expected FROM..TO")?;
    let number = |t: &str| t.parse::<u64>().map_err(|e| format!("{t}: {e}"));
    Ok(number(from)?..number(to)?)
}

fn parse_witnessed(text: &str) -> Result<Witnessed, String> {
    match text {
        "some" => Ok(Witnessed::Some),
        "all" => Ok(Witnessed::All),
        "none" => Ok(Witnessed::None),
        _ => Err("expected some, all or none".into()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.trace {
        run::quiet_panics();
    }
    match (&args.planted, args.seed) {
        (Some(name), _) => planted(name, &args),
        (None, Some(seed)) => one(seed, &args),
        (None, None) => many(&args),
    }
}

fn options(args: &Args) -> Options {
    Options { requests: args.steps, witnessed: args.witnessed, members: args.members, ..Options::default() }
}

fn threads(args: &Args) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    if args.threads == 0 { cores } else { args.threads }
}

fn one(seed: u64, args: &Args) -> ExitCode {
    let outcome = run_seed(seed, Options { print: args.trace, keep_lines: args.tail, ..options(args) });
    if !args.trace && outcome.violation.is_some() {
        outcome.tail.iter().for_each(|line| println!("{line}"));
    }
    println!(
        "seed {seed}: {} requests, {} events, trace {:016x}{}",
        outcome.requests,
        outcome.steps,
        outcome.hash,
        if outcome.hopeless { ", ended early: no copy was left" } else { "" }
    );
    match outcome.violation {
        Some(what) => {
            println!("VIOLATION {what}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn many(args: &Args) -> ExitCode {
    let begun = Instant::now();
    let summary = run_many(args.seeds.clone(), options(args), threads(args), args.max_violations);
    let seconds = begun.elapsed().as_secs_f64();
    report(&summary, seconds);
    for (seed, what) in &summary.violations {
        println!("VIOLATION seed {seed}: {what}");
    }
    if let Some((seed, _)) = summary.violations.first() {
        println!("\nthe end of seed {seed} (replay: hack/seed {seed}):");
        let replay = run_seed(*seed, Options { keep_lines: args.tail, ..options(args) });
        replay.tail.iter().for_each(|line| println!("{line}"));
        return ExitCode::FAILURE;
    }
    let mut silent = summary.fired.silent();
    silent.retain(|fault| args.witnessed != Witnessed::None || !fault.needs_witness());
    if args.members {
        silent.retain(|fault| Fault::OF_MEMBERS.contains(fault));
    }
    if !silent.is_empty() && !args.allow_silent {
        println!("FAILED: never fired: {silent:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn report(summary: &Summary, seconds: f64) {
    println!("{:<22} {:>12}", "fault", "fired");
    for fault in Fault::ALL {
        println!("{:<22} {:>12}", format!("{fault:?}"), summary.fired.count(*fault));
    }
    println!(
        "{} seeds ({} ended early without a copy), {} requests, {} events in {seconds:.1} s: {:.1} seeds/s, {} violations",
        summary.seeds,
        summary.hopeless,
        summary.requests,
        summary.steps,
        summary.seeds as f64 / seconds.max(1e-9),
        summary.violations.len()
    );
}

/// A planted bug counts as found only by a seed that is clean without it: a seed that fails anyway proves nothing.
#[cfg(feature = "__planted")]
fn planted(name: &str, args: &Args) -> ExitCode {
    use tidemark_core::planted::{Planted, plant};
    let Some(bug) = Planted::parse(name) else {
        println!("no such planted bug; there are {:?}", Planted::ALL);
        return ExitCode::FAILURE;
    };
    let begun = Instant::now();
    // What only a witness brings about is looked for where there is one, the rest where nothing else is going on.
    let witnessed = if bug.needs_witness() { Witnessed::All } else { Witnessed::None };
    let members = args.members || bug.needs_members();
    let witnessed = if bug.needs_members() { Witnessed::Some } else { witnessed };
    let options = Options { witnessed, members, groups: bug.needs_groups(), ..options(args) };
    let (mut from, mut unproven) = (args.seeds.start, 0);
    while from < args.seeds.end {
        plant(Some(bug));
        let summary = run_many(from..args.seeds.end, options, threads(args), 1);
        let Some((seed, what)) = summary.violations.into_iter().min_by_key(|(seed, _)| *seed) else { break };
        plant(None);
        if run_seed(seed, options).violation.is_none() {
            let seconds = begun.elapsed().as_secs_f64();
            let what: String = what.chars().take(120).collect();
            println!("{bug:?}: found by seed {seed}, {seconds:.1} s, {unproven} seeds fail without it: {what}");
            return ExitCode::SUCCESS;
        }
        unproven += 1;
        from = seed + 1;
    }
    println!("{bug:?}: NOT FOUND in {:?} ({unproven} seeds fail without it)", args.seeds);
    ExitCode::FAILURE
}

#[cfg(not(feature = "__planted"))]
fn planted(_name: &str, _args: &Args) -> ExitCode {
    println!("this build has no planted bugs: build with --features __planted");
    ExitCode::FAILURE
}
