//! `tidemark branch`.

use std::path::Path;

use tidemark_proto::admin as pb;

use super::volume;
use crate::cli::branch::{Branch, Close, Export, Numbered, Open, Seen};
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

async fn show(numbered: Numbered, client: &mut Client) -> Result<BranchContent, Failure> {
    let (volume, branch) = find(&numbered, client).await?;
    let superblock = branch::superblock_of(Path::new(&volume.directory))?;
    let content =
        export::extents(Path::new(&branch.path), &superblock.secret).map_err(|why| unreadable(&branch, why))?;
    Ok(BranchContent::new(branch, content, None))
}

async fn exported(args: Export, client: &mut Client) -> Result<BranchContent, Failure> {
    let (volume, branch) = find(&args.branch, client).await?;
    let superblock = branch::superblock_of(Path::new(&volume.directory))?;
    if volume.group_volumes.len() > 1 || !superblock.layout.is_one(superblock.volume) {
        return Err(of_several(&volume));
    }
    let content = export::export(Path::new(&branch.path), &superblock.secret, volume.size_bytes, &args.to);
    let content = content.map_err(|why| unreadable(&branch, why))?;
    Ok(BranchContent::new(branch, content, Some(args.to.display().to_string())))
}

/// A branch and its volume.
async fn find(numbered: &Numbered, client: &mut Client) -> Result<(pb::Volume, report::Branch), Failure> {
    let volume = numbered.named.volume.clone();
    let request = pb::GetVolumeRequest { volume };
    let volume = client.call(request, async |admin, request| admin.get_volume(request).await).await?;
    let branches = volume::branches(numbered.named.clone(), client).await?.branches;
    let found = branches.into_iter().find(|branch| branch.number == numbered.number);
    let found = found.ok_or_else(|| Failure::Unsatisfied {
        exit: Exit::NotFound,
        message: format!("volume {} has no branch {}", volume.name, numbered.number),
        hint: Some(format!("`tidemark branch list {}` shows what there is", volume.name)),
    })?;
    Ok((volume, found))
}

/// Its ranges are of the space that the volumes of the group lie in end to end, not of one volume.
fn of_several(volume: &pb::Volume) -> Failure {
    Failure::Unsatisfied {
        exit: Exit::Refused,
        message: format!(
            "a branch of group {} is of several volumes: no image of one volume can hold it",
            volume.group_name
        ),
        hint: Some("`tidemark branch show` lists what it changed, in the group's space; its file stays".to_owned()),
    }
}

fn unreadable(branch: &report::Branch, why: String) -> Failure {
    Failure::Unsatisfied {
        exit: Exit::Failed,
        message: format!("branch {} in {}: {why}", branch.number, branch.path),
        hint: Some("run it on the agent's host, as a user who may read the pool and write the new file".to_owned()),
    }
}
