//! `hack/demo`: see [`tidemark_tests::demo`].

use std::process::ExitCode;

use clap::Parser as _;
use tidemark_tests::demo::{Options, Output, run};
use tidemark_tests::stage;

fn main() -> ExitCode {
    let options = Options::parse();
    stage::sweep_on_panic();
    match run(&options) {
        Ok(report) => {
            match options.output {
                Output::Table => println!("{}", report.table(options.brief)),
                Output::Json => println!("{:#}", report.json()),
            }
            if report.held() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::from(2)
        }
    }
}
