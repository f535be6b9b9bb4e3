//! `hack/demo`: see [`tidemark_tests::demo`].

use std::process::ExitCode;

use clap::Parser as _;
use tidemark_tests::demo::{Options, Output, run, run_failover};
use tidemark_tests::stage;

fn main() -> ExitCode {
    let options = Options::parse();
    stage::sweep_on_panic();
    let printed = match options.failover {
        true => run_failover(&options).map(|report| match options.output {
            Output::Table => (report.held(), report.table()),
            Output::Json => (report.held(), format!("{:#}", report.json())),
        }),
        false => run(&options).map(|report| match options.output {
            Output::Table => (report.held(), report.table(options.brief)),
            Output::Json => (report.held(), format!("{:#}", report.json())),
        }),
    };
    match printed {
        Ok((held, text)) => {
            println!("{text}");
            if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::from(2)
        }
    }
}
