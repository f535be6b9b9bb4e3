//! A volume as a device of the kernel's NBD client: see [`tidemark_tests::kernel`].

use std::process::ExitCode;

use clap::Parser;
use tidemark_tests::kernel::{Task, machine, scenario};
use tidemark_tests::stage;

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    task: Task,
}

fn main() -> ExitCode {
    stage::sweep_on_panic();
    let result = match Options::parse().task {
        Task::Boot(options) => machine::boot(&options),
        Task::Play => scenario::play(),
    };
    stage::exit("kernel", result)
}
