//! What can be typed: the types that clap fills. No behaviour here.

pub mod pki;

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;
use crate::units;

/// Where an agent listens unless its configuration says otherwise.
pub const DEFAULT_AGENT: &str = "unix:///run/tidemark/admin.sock";

/// The version, with the commit when the build was given one in `TIDEMARK_GIT_HASH`.
static VERSION: LazyLock<String> = LazyLock::new(|| match option_env!("TIDEMARK_GIT_HASH") {
    Some(hash) => format!("{} ({hash})", env!("CARGO_PKG_VERSION")),
    None => env!("CARGO_PKG_VERSION").to_owned(),
});

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line is wrong
  3  refused: the state does not allow it, and the message says what would
  4  there is no such volume, peer or file of that name
  5  the agent cannot be reached or did not answer within --timeout

Examples:
  tidemark status --watch
  tidemark volume create db --size 10Gi --mode sync --peer-site b --pool main
  tidemark promote db --assert-peer-fenced --reason 'site a is powered off'
  tidemark --agent https://node1:7401 --cert alice.crt --key alice.key --ca ca.crt volume list -o json";

/// Operates a Tidemark agent: volumes that survive their site.
#[derive(Parser, Debug)]
#[command(name = "tidemark", version = VERSION.as_str(), after_long_help = EXIT_CODES, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What every command understands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// The agent: unix:///PATH, or https://HOST:PORT with --cert, --key and --ca
    #[arg(long, global = true, env = "TIDEMARK_AGENT", value_name = "URL", default_value = DEFAULT_AGENT)]
    #[arg(help_heading = "Agent")]
    pub agent: String,
    /// Certificate to show to the agent (https only)
    #[arg(long, global = true, env = "TIDEMARK_CERT", value_name = "FILE", help_heading = "Agent")]
    pub cert: Option<PathBuf>,
    /// Private key of --cert
    #[arg(long, global = true, env = "TIDEMARK_KEY", value_name = "FILE", help_heading = "Agent")]
    pub key: Option<PathBuf>,
    /// Certificate of the CA that vouches for the agent (https only)
    #[arg(long, global = true, env = "TIDEMARK_CA", value_name = "FILE", help_heading = "Agent")]
    pub ca: Option<PathBuf>,
    /// How long to wait for the agent, for example 500ms, 30s, 10m
    #[arg(long, global = true, value_name = "SPAN", default_value = "30s", value_parser = units::parse_span)]
    #[arg(help_heading = "Agent")]
    pub timeout: Duration,
    /// Format of the output; with json, errors on stderr are JSON too
    #[arg(long, short = 'o', global = true, value_name = "FORMAT", default_value = "table", help_heading = "Output")]
    pub output: Format,
    /// No colours, even on a terminal
    #[arg(long, global = true, env = "NO_COLOR", value_parser = clap::builder::FalseyValueParser::new())]
    #[arg(help_heading = "Output")]
    pub no_color: bool,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make, renew and check the keys and certificates of a site
    #[command(subcommand)]
    Pki(pki::Pki),
}

#[cfg(test)]
mod tests;
