//! The model check on the command line.

use std::process::ExitCode;

use tidemark_model::cases::{Case, DEEP, FAST, HUNTS, Hunt};
use tidemark_model::check::{End, Limits, Outcome};
use tidemark_model::mutation::Mutation;

const USAGE: &str = "usage: model [--deep] [--threads N] [--seconds N] [--only NAME]
       model --mutations
       model --trace MUTATION

Without an option: the fast runs. --deep: the large ones. --mutations: that each rule that is left out is found.
--trace: the shortest way to what leaving it out breaks. --seconds: what each run may take; it is looked at only with two threads or more.";

/// What was asked for.
struct Args {
    deep: bool,
    mutations: bool,
    trace: Option<String>,
    only: Option<String>,
    threads: usize,
    seconds: u64,
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Args> {
    let mut args = Args { deep: false, mutations: false, trace: None, only: None, threads: 1, seconds: 1_500 };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--deep" => args.deep = true,
            "--mutations" => args.mutations = true,
            "--trace" => args.trace = Some(words.next()?),
            "--only" => args.only = Some(words.next()?),
            "--threads" => args.threads = words.next()?.parse().ok()?,
            "--seconds" => args.seconds = words.next()?.parse().ok()?,
            _ => return None,
        }
    }
    Some(args)
}

fn main() -> ExitCode {
    let Some(args) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let limits = Limits { steps: usize::MAX, seconds: args.seconds, threads: args.threads };
    let holds = match (&args.trace, args.mutations) {
        (Some(name), _) => trace(name, limits),
        (None, true) => hunt_all(limits),
        (None, false) => run_all(&args, limits),
    };
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_all(args: &Args, limits: Limits) -> bool {
    let cases = if args.deep { DEEP } else { FAST };
    let wanted = |case: &&Case| args.only.as_ref().is_none_or(|only| only == case.name);
    println!("{:<14} {:>11} {:>6} {:>8}  {:<10} properties", "model", "states", "depth", "seconds", "end");
    // Each is run, also after one that does not hold.
    let held: Vec<_> = cases.iter().filter(wanted).map(|case| run(case, limits)).collect();
    !held.contains(&false)
}

fn run(case: &Case, limits: Limits) -> bool {
    let outcome = case.bounds.run(Mutation::Kept, limits);
    println!("{}  {} hold", line(case.name, &outcome), outcome.checked.len() - outcome.broken.len());
    println!("    {}: {}", case.about, case.bounds.describe());
    println!("    {}", outcome.checked.join("; "));
    for missing in &outcome.missing {
        println!("    it never happened: {missing}");
    }
    show_broken(&outcome);
    outcome.holds()
}

fn line(name: &str, outcome: &Outcome) -> String {
    let end = match outcome.end {
        End::Exhausted => "exhausted",
        End::Limit => "limit",
        End::Broken => "BROKEN",
    };
    let seconds = outcome.taken.as_secs_f64();
    format!("{name:<14} {:>11} {:>6} {seconds:>8.1}  {end:<10}", outcome.states, outcome.depth)
}

fn show_broken(outcome: &Outcome) {
    for broken in &outcome.broken {
        println!("    broken: {}\n      {}", broken.property, broken.steps.join("\n      "));
    }
}

fn hunt_all(limits: Limits) -> bool {
    let found: Vec<_> = HUNTS.iter().map(|hunt| hunt_one(hunt, limits)).collect();
    !found.contains(&false)
}

/// One that has to be found is; one that others cover is reported.
fn hunt_one(hunt: &Hunt, limits: Limits) -> bool {
    let outcome = hunt.bounds.run(hunt.mutation, limits);
    let name = format!("{:?}", hunt.mutation);
    match (outcome.broken.first(), hunt.covered) {
        (Some(broken), None) => println!("{name:<24} {:>3} steps: {}", broken.steps.len(), broken.property),
        (Some(broken), Some(_)) => {
            println!("{name:<24} {:>3} steps: {} (was not expected)", broken.steps.len(), broken.property)
        }
        (None, None) => println!("{name:<24} NOT FOUND in {} states", outcome.states),
        (None, Some(by)) => println!("{name:<24} not found in {} states, {:?}: {by}", outcome.states, outcome.end),
    }
    outcome.broken.is_empty() == hunt.covered.is_some()
}

fn trace(name: &str, limits: Limits) -> bool {
    let Some(hunt) = HUNTS.iter().find(|hunt| format!("{:?}", hunt.mutation) == name) else {
        let names: Vec<_> = HUNTS.iter().map(|hunt| format!("{:?}", hunt.mutation)).collect();
        eprintln!("no rule '{name}'; there are {}", names.join(", "));
        return false;
    };
    let outcome = hunt.bounds.run(hunt.mutation, limits);
    show_broken(&outcome);
    if let Some(broken) = outcome.broken.first() {
        println!("{}", broken.state);
    }
    !outcome.broken.is_empty()
}
