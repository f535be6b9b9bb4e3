//! Damage to the files of stopped agents: see [`tidemark_tests::corruption`].

use std::process::ExitCode;

use clap::Parser as _;
use tidemark_tests::corruption::trial::Outcome;
use tidemark_tests::corruption::{Options, run};
use tidemark_tests::stage;

fn main() -> ExitCode {
    let options = Options::parse();
    stage::sweep_on_panic();
    let result = run(&options).map(|outcomes| {
        let whole = outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Whole).count();
        println!("{} cases: {whole} whole, {} refused, nothing wrong served", outcomes.len(), outcomes.len() - whole);
    });
    stage::exit("corruption", result)
}
