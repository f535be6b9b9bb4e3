//! `tidemark branch`.

use std::path::Path;

use tidemark_core::layout::Layout;
use tidemark_core::types::VolumeId;
use tidemark_proto::admin as pb;

use super::{verbs, volume};
use crate::cli::branch::{Branch, Close, Drop, Export, Numbered, Open, Seen};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::offline::{branch, export};
use crate::output::Printer;
use crate::report::Done;
use crate::report::branch::BranchContent;
use crate::report::volume as report;

pub(super) async fn run(command: Branch, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Branch::List(named) => printer.print(&volume::branches(named, client).await?),
        Branch::Open(args) => printer.print(&open(args, client).await?),
        Branch::Close(args) => printer.print(&close(args, client).await?),
        Branch::Drop(args) => printer.print(&drop(args, client).await?),
        Branch::Show(numbered) => printer.print(&show(numbered, client).await?),
        Branch::Export(args) => printer.print(&exported(args, client).await?),
    }
}

async fn open(args: Open, client: &mut Client) -> Result<report::Attachment, Failure> {
    let Seen { named, number } = args.seen;
    let frontend = args.frontend.map_or(pb::Frontend::Unspecified, Into::into);
    let request = pb::OpenBranchRequest { volume: named.volume, number, frontend: frontend.into() };
    let response = client.call(request, async |admin, request| admin.open_branch(request).await).await?;
    Ok(response.attachment.unwrap_or_default().into())
}

async fn close(args: Close, client: &mut Client) -> Result<Done, Failure> {
    let Seen { named, number } = args.seen;
    let request = pb::CloseBranchRequest { volume: named.volume.clone(), number, force: args.force };
    client.call(request, async |admin, request| admin.close_branch(request).await).await?;
    let what = number.map_or_else(|| "the view".to_owned(), |number| format!("branch {number}"));
    Ok(Done { done: format!("{what} of {} is closed", named.volume) })
}

pub(super) fn dropping(args: Drop) -> pb::DropBranchRequest {
    let who = args.who.unwrap_or_else(verbs::caller);
    let assertion = pb::Assertion { who, why: args.reason, at_ms: 0 };
    let Numbered { named, number } = args.branch;
    let (volume, acknowledged) = (named.volume, args.acknowledge);
    pb::DropBranchRequest { volume, number, assertion: Some(assertion), acknowledged }
}

async fn drop(args: Drop, client: &mut Client) -> Result<Done, Failure> {
    let request = dropping(args);
    let done = format!("branch {} of {} is dropped", request.number, request.volume);
    client.call(request, async |admin, request| admin.drop_branch(request).await).await?;
    Ok(Done { done })
}

async fn show(numbered: Numbered, client: &mut Client) -> Result<BranchContent, Failure> {
    let Found { group, branch, .. } = find(&numbered, client).await?;
    let superblock = branch::superblock_of(Path::new(&group.directory))?;
    let content =
        export::extents(Path::new(&branch.path), &superblock.secret).map_err(|why| unreadable(&branch, why))?;
    Ok(BranchContent::new(branch, content, None))
}

async fn exported(args: Export, client: &mut Client) -> Result<BranchContent, Failure> {
    let Found { group, branch, space } = find(&args.branch, client).await?;
    let superblock = branch::superblock_of(Path::new(&group.directory))?;
    let volume = of_group(&group, args.of.as_ref().unwrap_or(&args.branch.named.volume), client).await?;
    let layout = layout_of(&space).unwrap_or(superblock.layout);
    let id = VolumeId::parse(&volume.id).unwrap_or(VolumeId::NIL);
    let content = export::export(Path::new(&branch.path), &superblock.secret, id, layout, &args.to);
    let content = content.map_err(|why| unreadable(&branch, why))?;
    Ok(BranchContent::new(branch, content, Some(args.to.display().to_string())))
}

/// The space of a group as its copy has it; none where that is not open.
fn layout_of(space: &[(String, u64)]) -> Option<Layout> {
    let run = |(id, bytes): &(String, u64)| (VolumeId::parse(id).unwrap_or(VolumeId::NIL), *bytes);
    Layout::new(space.iter().map(run)).ok().filter(|layout| layout.size() > 0)
}

/// The volume of a group that is meant by `name`, which may be the group's where that has only one.
async fn of_group(group: &pb::Volume, name: &str, client: &mut Client) -> Result<pb::Volume, Failure> {
    if [&group.name, &group.id].contains(&&name.to_owned()) {
        return Ok(group.clone());
    }
    let volume = get(name, client).await?;
    let is_named = [&volume.name, &volume.id].contains(&&name.to_owned()) || volume.group_volumes.len() == 1;
    match is_named && volume.group_id == group.group_id {
        true => Ok(volume),
        false => Err(Failure::usage(
            format!("{name} is no volume of group {}", group.group_name),
            format!("name one with --volume: {}", group.group_volumes.join(", ")),
        )),
    }
}

async fn get(name: &str, client: &mut Client) -> Result<pb::Volume, Failure> {
    let request = pb::GetVolumeRequest { volume: name.to_owned() };
    client.call(request, async |admin, request| admin.get_volume(request).await).await
}

/// A branch, the volume or group that was named, and the space that the group has.
struct Found {
    group: pb::Volume,
    branch: report::Branch,
    space: Vec<(String, u64)>,
}

async fn find(numbered: &Numbered, client: &mut Client) -> Result<Found, Failure> {
    let group = get(&numbered.named.volume, client).await?;
    let report::BranchList { branches, space, .. } = volume::branches(numbered.named.clone(), client).await?;
    let branch = branches.into_iter().find(|branch| branch.number == numbered.number);
    let branch = branch.ok_or_else(|| Failure::Unsatisfied {
        exit: Exit::NotFound,
        message: format!("volume {} has no branch {}", group.name, numbered.number),
        hint: Some(format!("`tidemark branch list {}` shows what there is", group.name)),
    })?;
    Ok(Found { group, branch, space })
}

fn unreadable(branch: &report::Branch, why: String) -> Failure {
    Failure::Unsatisfied {
        exit: Exit::Failed,
        message: format!("branch {} in {}: {why}", branch.number, branch.path),
        hint: Some("run it on the agent's host, as a user who may read the pool and write the new file".to_owned()),
    }
}
