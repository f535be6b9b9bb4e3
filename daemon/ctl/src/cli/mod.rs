//! What can be typed: the types that clap fills. No behaviour here.

pub mod branch;
pub mod group;
pub mod log;
pub mod pki;
pub mod policy;
pub mod verbs;
pub mod volume;

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
  3  refused: the state does not allow it, and the message says what would; with --plan: it would be refused
  4  there is no such volume, peer or file of that name
  5  the agent cannot be reached or did not answer within --timeout

Examples:
  tidemark status --watch
  tidemark volume create db --size 10Gi --mode sync --peer-site b --pool main
  tidemark promote db --assert-peer-fenced --reason 'site a is powered off'
  tidemark --agent https://node1:9760 --cert alice.crt --key alice.key --ca ca.crt volume list -o json";

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
    /// Make, show, attach, change and remove volumes
    #[command(subcommand, visible_alias = "vol")]
    Volume(volume::Volume),
    /// List and show groups: volumes that share one log and fail over together
    #[command(subcommand)]
    Group(group::Group),
    /// Show the state of volumes: role, copy, link, S, RPO, and whether they are protected
    ///
    /// Under the table stands, for everything that is not normal, the reason and what would lift it.
    #[command(
        after_long_help = "Examples:\n  tidemark status\n  tidemark status db --watch\n  tidemark status -o json"
    )]
    Status(verbs::Status),
    /// Explain why a volume is as it is here
    ///
    /// Role, S, who decides, what it waits for, and what each verb would do now: why it would be refused, and what would lift that. Of a
    /// volume of several in a group, or of the group: what is true of all of them.
    #[command(after_long_help = "Examples:\n  tidemark explain db\n  tidemark explain db -o yaml")]
    Explain(volume::Named),
    /// Make this site's copy of a volume's group primary, with all its volumes
    ///
    /// Refused when that could lose data or have two primaries; the message says what would allow it. When the other site
    /// cannot be reached nothing proves that it has stopped: make sure that it has, then say so with --assert-peer-fenced.
    /// The same lifts a suspension after a restart. Prints whether anything was lost and how much.
    ///
    /// Where the witness arbitrates (`arbiter witness` in `volume show`) nothing has to be said: the witness proves that the other
    /// site has stopped. That takes as long as the other site's lease, at the default of 10s up to 22s; with a longer lease raise
    /// --timeout. A promotion that was not awaited goes on, and the same command again waits for it.
    #[command(
        after_long_help = "Examples:\n  tidemark promote db --plan\n  tidemark promote db\n  tidemark promote db --assert-peer-fenced --reason 'site a is powered off'\n  tidemark promote logs --max-loss-seconds 60 --assert-peer-fenced --reason 'site a burnt down'"
    )]
    Promote(verbs::Promote),
    /// Stop serving the group of a volume here: drain, sync, become secondary
    ///
    /// Afterwards the other site can be promoted without any loss.
    Demote(verbs::Demote),
    /// Make the other site the primary of a volume's group, without any loss
    ///
    /// Asked at the primary: it stops serving, brings the other site up, and that site serves. Prints for how long nobody served. Where the other
    /// site does not follow closely, nothing is stopped; where it will not take over, this site serves again. Only where it stops
    /// answering in between no site is the primary: the message says so, and nothing is lost.
    #[command(
        after_long_help = "Examples:\n  tidemark switchover db --to munich --plan\n  tidemark switchover db --to munich --detach"
    )]
    Switchover(verbs::Switchover),
    /// Pause shipping, or the base image, of a volume's group here, over restarts
    ///
    /// What is paused stands in `volume show`. Shipping is refused while flushes wait for the other site (mode sync or receive).
    /// While the base is paused the log fills, and requests wait when it is full: `logFullInMs` says when that would be.
    #[command(after_long_help = "Examples:\n  tidemark pause logs --ship\n  tidemark pause db --floor --plan")]
    Pause(verbs::Pause),
    /// Go on with what was paused
    Resume(verbs::Resume),
    /// Go on without the peer: leave it out of S
    ///
    /// Flushes no longer wait for the peer; until it is back and equal, a loss of this site loses data. The decision is
    /// recorded for good.
    #[command(after_long_help = "Examples:\n  tidemark drop-peer db --reason 'site b is under water' --yes")]
    DropPeer(verbs::DropPeer),
    /// Fail all queued I/O of a volume, so that an unmount can finish
    AbortIo(volume::Confirmed),
    /// Give up this copy's diverged suffix and take the peer's content anew
    ///
    /// The suffix stays sealed in a branch (`tidemark volume branches`).
    Reseed(volume::Confirmed),
    /// Advance the base image as far as allowed, now
    ///
    /// Ends when the base holds it: raise --timeout for a long log.
    Drain(volume::Named),
    /// Compare both copies of a volume at one position, without stopping I/O
    ///
    /// Exits 1 when they differ and prints the ranges, at most 64 of them. --timeout is the longest silence, not the
    /// length of the whole comparison.
    #[command(after_long_help = "Examples:\n  tidemark verify db")]
    Verify(volume::Named),
    /// List, show and export what lost against a newer history and was kept
    #[command(subcommand)]
    Branch(branch::Branch),
    /// Make other sites known, list and forget them
    #[command(subcommand)]
    Peer(verbs::Peer),
    /// Ask for the witness, the arbiter between two sites
    #[command(subcommand)]
    Witness(verbs::Witness),
    /// Show the agent itself
    #[command(subcommand)]
    Agent(verbs::Agent),
    /// Make, renew and check the keys and certificates of a site
    #[command(subcommand)]
    Pki(pki::Pki),
    /// Read the log of a volume copy offline
    #[command(subcommand)]
    Log(log::Log),
    /// Print the completions of a shell
    #[command(
        after_long_help = "Examples:\n  tidemark completions bash > /etc/bash_completion.d/tidemark\n  tidemark completions zsh > \"${fpath[1]}/_tidemark\""
    )]
    Completions(Completions),
    /// Print the manual, or write all its pages
    #[command(after_long_help = "Examples:\n  tidemark man | man -l -\n  tidemark man --dir /usr/local/share/man/man1")]
    Man(Man),
}

/// `completions`.
#[derive(Args, Debug)]
pub struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// `man`.
#[derive(Args, Debug)]
pub struct Man {
    /// Write one page for each command to this directory
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests;
