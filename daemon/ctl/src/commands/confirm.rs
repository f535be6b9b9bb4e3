//! The question before a verb that cannot be undone.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::cli::Command;
use crate::cli::branch::{Branch, Numbered};
use crate::cli::group::Group;
use crate::cli::volume::Volume;
use crate::failure::Failure;

/// The question that `command` has to ask; `None` when it is harmless or answered on the command line.
pub(super) fn question(command: &Command) -> Option<String> {
    let (yes, question) = match command {
        Command::Volume(Volume::Delete(args)) => {
            let how = if args.purge { "Remove at once" } else { "Delete" };
            (args.yes, format!("{how} this site's copy of volume {}?", args.named.volume))
        }
        Command::Group(Group::Delete(args)) => {
            let how = if args.purge { "Remove at once" } else { "Delete" };
            (args.yes, format!("{how} this site's copy of all volumes of group {}?", args.named.group))
        }
        Command::Volume(Volume::Release(args)) => {
            (args.yes, format!("Stop serving volume {} for good and give its base back?", args.named.volume))
        }
        Command::DropPeer(args) => (args.yes, format!("Go on without the peer of volume {}?", args.named.volume)),
        Command::AbortIo(args) => (args.yes, format!("Fail all queued I/O of volume {}?", args.named.volume)),
        Command::Reseed(args) => {
            (args.yes, format!("Replace this site's copy of volume {} by the peer's content?", args.named.volume))
        }
        Command::Branch(Branch::Drop(args)) => {
            let Numbered { named, number } = &args.branch;
            (args.yes, format!("Remove branch {number} of volume {} for good?", named.volume))
        }
        _ => return None,
    };
    (!yes.yes).then_some(question)
}

/// Asks on the terminal.
///
/// # Errors
/// [`Failure::NotConfirmed`] when the answer is not yes, or there is no terminal to ask on.
pub(super) fn ask(question: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::NotConfirmed("there is no terminal to ask on"));
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::NotConfirmed("the answer was not yes")),
    }
}
