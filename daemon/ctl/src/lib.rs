//! The command line of Tidemark: what people type, turned into calls of the admin API or into PKI files, and the answers
//! turned into tables, JSON or YAML.
//!
//! Decides nothing about volumes: every rule is the agent's, and its refusals are shown as they come. A library so that
//! tests and the harness can use the PKI without a process.
#![forbid(unsafe_code)]

pub mod cli;
pub mod client;
pub mod commands;
pub mod failure;
pub mod offline;
pub mod output;
pub mod pki;
pub mod report;
pub mod units;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output::{Format, Printer};

/// Runs one command line and says how it ended.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // Two TLS providers in one process panic at first use: choose ours before anything else can.
    rustls::crypto::ring::default_provider().install_default().ok();
    match Cli::try_parse_from(&args) {
        Ok(cli) => {
            let printer = Printer::new(cli.global.output, !cli.global.no_color && std::io::stdout().is_terminal());
            finish(printer.format(), commands::run(cli, &printer))
        }
        Err(error) => refused_by_clap(&error, &args),
    }
}

fn finish(format: Format, outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has gone, as in `tidemark status | head`: not our failure to report.
        Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Err(failure) => {
            failure::report(&failure, format);
            failure.exit().into()
        }
    }
}

fn refused_by_clap(error: &clap::Error, args: &[OsString]) -> ExitCode {
    if error.use_stderr() && output::wants_json(args) {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        return finish(Format::Json, Err(Failure::Usage { message: line, hint: None }));
    }
    error.print().ok();
    if error.use_stderr() { failure::Exit::Usage.into() } else { ExitCode::SUCCESS }
}
