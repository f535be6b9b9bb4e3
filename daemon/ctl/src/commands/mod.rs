//! The commands: each turns its arguments into calls and the answers into one report.

mod pki;

use crate::cli::{Cli, Command};
use crate::failure::Failure;
use crate::output::Printer;

/// Runs the command.
///
/// # Errors
/// Whatever the command can fail with; nothing has been printed on stdout then, except by streaming commands.
pub fn run(cli: Cli, printer: &Printer) -> Result<(), Failure> {
    match cli.command {
        Command::Pki(command) => pki::run(command, printer),
    }
}
