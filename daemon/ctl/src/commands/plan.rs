//! `--plan` of the verbs, and `tidemark explain`: what would happen, and nothing is changed.

use tidemark_proto::admin as pb;
use tidemark_proto::admin::plan_request::Verb;

use super::{branch, group, verbs, volume};
use crate::cli::Command;
use crate::cli::branch::Branch;
use crate::cli::group::Group;
use crate::cli::verbs::Peer;
use crate::cli::volume::{Named, Set, Volume};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::Printer;
use crate::report::plan::{Explanation, VerbPlan};

/// True when `command` is only to be foretold.
pub(super) fn is_wanted(command: &Command) -> bool {
    match command {
        Command::Promote(args) => args.foretell.plan,
        Command::Demote(args) => args.foretell.plan,
        Command::Switchover(args) => args.foretell.plan,
        Command::Pause(args) => args.foretell.plan,
        Command::Resume(args) => args.foretell.plan,
        Command::DropPeer(args) => args.foretell.plan,
        Command::AbortIo(args) | Command::Reseed(args) | Command::Volume(Volume::Release(args)) => args.foretell.plan,
        Command::Volume(Volume::Delete(args)) => args.foretell.plan,
        Command::Group(Group::Delete(args)) => args.foretell.plan,
        Command::Volume(Volume::Resize(args)) => args.foretell.plan,
        Command::Volume(Volume::Set(args)) => args.foretell.plan,
        Command::Peer(Peer::Remove(args)) => args.foretell.plan,
        Command::Branch(Branch::Drop(args)) => args.foretell.plan,
        _ => false,
    }
}

/// Prints the plan.
///
/// # Errors
/// [`Exit::Refused`] when the verb would be refused.
pub(super) async fn run(command: Command, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    let request = pb::PlanRequest { verb: Some(verb(command)?) };
    let plan = client.call(request, async |admin, request| admin.plan(request).await).await?;
    let plan = VerbPlan::from(plan);
    printer.print(&plan)?;
    match plan.refusal {
        None => Ok(()),
        Some(_) => Err(Failure::Unsatisfied {
            exit: Exit::Refused,
            message: format!("{} would be refused", plan.verb),
            hint: None,
        }),
    }
}

pub(super) async fn explain(Named { volume }: Named, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    let request = pb::ExplainRequest { volume };
    let explanation = client.call(request, async |admin, request| admin.explain(request).await).await?;
    printer.print(&Explanation::from(explanation))
}

fn verb(command: Command) -> Result<Verb, Failure> {
    Ok(match command {
        Command::Promote(args) => Verb::Promote(verbs::promotion(args)),
        Command::Demote(args) => Verb::Demote(pb::DemoteRequest { volume: args.named.volume, force: args.force }),
        Command::Pause(args) => Verb::Pause(verbs::pausing(args)),
        Command::Resume(args) => Verb::Resume(verbs::resuming(args)),
        Command::Switchover(args) => Verb::Switchover(verbs::switching(args)),
        Command::DropPeer(args) => Verb::DropPeer(verbs::parting(args)),
        Command::AbortIo(args) => Verb::AbortIo(pb::AbortIoRequest { volume: args.named.volume }),
        Command::Reseed(args) => Verb::Reseed(pb::ReseedRequest { volume: args.named.volume }),
        Command::Volume(Volume::Release(args)) => Verb::Release(pb::ReleaseVolumeRequest { volume: args.named.volume }),
        Command::Volume(Volume::Delete(args)) => Verb::Delete(volume::deletion(args)),
        Command::Group(Group::Delete(args)) => Verb::Delete(group::deletion(args)),
        Command::Volume(Volume::Resize(args)) => {
            Verb::Resize(pb::ResizeVolumeRequest { volume: args.named.volume, size_bytes: args.size })
        }
        Command::Volume(Volume::Set(args)) => setting(args)?,
        Command::Peer(Peer::Remove(args)) => Verb::RemovePeer(pb::RemovePeerRequest { peer: args.named.peer }),
        Command::Branch(Branch::Drop(args)) => Verb::DropBranch(branch::dropping(args)),
        other => unreachable!("only these have a plan: {other:?}"),
    })
}

fn setting(args: Set) -> Result<Verb, Failure> {
    let (volume, policy) = (args.named.volume, args.policy.to_message());
    let peer = args.peer_site.or_else(|| args.no_peer_site.then(String::new));
    match (peer, policy == pb::Policy::default()) {
        (None, true) => Err(Failure::usage("nothing to change", "name at least one field, for example --mode sync")),
        (None, false) => Ok(Verb::SetPolicy(pb::SetPolicyRequest { volume, policy: Some(policy) })),
        (Some(peer_site), true) => Ok(Verb::SetPeer(pb::SetPeerRequest { volume, peer_site })),
        (Some(_), false) => Err(Failure::usage(
            "the peer and the policy are changed one after the other",
            "plan one of them: the second one's plan depends on what the first has done",
        )),
    }
}
