//! Crashes under verify load: see [`tidemark_tests::storm`].

use std::process::ExitCode;

use clap::Parser as _;
use tidemark_tests::stage;
use tidemark_tests::storm::{Options, run};

fn main() -> ExitCode {
    let options = Options::parse();
    stage::sweep_on_panic();
    let result = run(&options).map(|done| {
        let counts = done.counts;
        println!(
            "{} rounds, {} crashes of A, {} of B; {} writes, {} flushes, {} reads, {} checks of everything; slowest request {} ms; nothing lost",
            done.rounds,
            done.crashes_a,
            done.crashes_b,
            counts.writes,
            counts.flushes,
            counts.reads,
            counts.checks,
            counts.slowest.as_millis()
        );
    });
    stage::exit("storm", result)
}
