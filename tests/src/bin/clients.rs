//! Programs of others against real agents: see [`tidemark_tests::clients`].

use std::process::ExitCode;

use clap::Parser as _;
use tidemark_tests::clients::{Options, run};
use tidemark_tests::stage;

fn main() -> ExitCode {
    let options = Options::parse();
    stage::sweep_on_panic();
    stage::exit("clients", run(&options))
}
