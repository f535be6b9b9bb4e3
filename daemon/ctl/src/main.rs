//! `tidemark`: the command line of Tidemark.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    tidemark_ctl::run(std::env::args_os())
}
