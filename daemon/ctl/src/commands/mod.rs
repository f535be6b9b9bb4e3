//! The commands: each turns its arguments into calls and the answers into one report.

mod agent;
mod branch;
mod confirm;
mod docs;
mod group;
mod log;
mod pki;
mod plan;
mod status;
mod verbs;
mod verify;
mod volume;

use crate::cli::{Cli, Command, Global};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Printer;

/// Runs the command.
///
/// # Errors
/// Whatever the command can fail with; nothing has been printed on stdout then, except by streaming commands.
pub fn run(cli: Cli, printer: &Printer) -> Result<(), Failure> {
    match cli.command {
        Command::Pki(command) => pki::run(command, printer),
        Command::Log(command) => log::run(command, printer),
        Command::Completions(args) => docs::completions(&args, printer),
        Command::Man(args) => docs::man(&args, printer),
        command => runtime()?.block_on(online(command, &cli.global, printer)),
    }
}

/// The commands that ask an agent.
async fn online(command: Command, global: &Global, printer: &Printer) -> Result<(), Failure> {
    if plan::is_wanted(&command) {
        return plan::run(command, &mut Client::connect(global).await?, printer).await;
    }
    if let Some(question) = confirm::question(&command) {
        confirm::ask(&question)?;
    }
    let client = &mut Client::connect(global).await?;
    match command {
        Command::Volume(command) => volume::run(command, client, printer).await,
        Command::Group(command) => group::run(command, client, printer).await,
        Command::Explain(args) => plan::explain(args, client, printer).await,
        Command::Status(args) => status::run(args, client, printer).await,
        Command::Verify(args) => verify::run(args, client, printer).await,
        Command::Branch(command) => branch::run(command, client, printer).await,
        Command::Peer(command) => agent::peer(command, client, printer).await,
        Command::Witness(command) => agent::witness(command, client, printer).await,
        Command::Agent(command) => agent::agent(command, client, printer).await,
        command => verbs::run(command, client, printer).await,
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|source| Failure::Local { verb: "start the runtime".to_owned(), source })
}
