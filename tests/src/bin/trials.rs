//! Bad disks and bad links: see [`tidemark_tests::trials`].

use std::process::ExitCode;

use clap::Parser as _;
use tidemark_tests::stage;
use tidemark_tests::trials::{Options, run};

fn main() -> ExitCode {
    let options = Options::parse();
    stage::sweep_on_panic();
    stage::exit("trials", run(&options))
}
