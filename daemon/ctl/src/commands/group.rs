//! `tidemark group`.

use tidemark_proto::admin as pb;

use super::volume;
use crate::cli::group::{Delete, Group, Named};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Printer;
use crate::report::group::{self, GroupList};

pub(super) async fn run(command: Group, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Group::List => printer.print(&list(client).await?),
        Group::Show(args) => printer.print(&show(args, client).await?),
        Group::Delete(args) => printer.print(&volume::delete(deletion(args), client).await?),
    }
}

async fn list(client: &mut Client) -> Result<GroupList, Failure> {
    Ok(GroupList::of(volume::list(client).await?.volumes))
}

/// The agent knows what the name means; the group is then the one of that volume.
async fn show(Named { group }: Named, client: &mut Client) -> Result<group::Group, Failure> {
    let one = volume::show(crate::cli::volume::Named { volume: group }, client).await?;
    let all = volume::list(client).await?.volumes;
    let others = all.into_iter().filter(|other| other.id != one.id && other.group_name == one.group_name);
    Ok(group::Group::of(others.chain([one.clone()]).collect()))
}

pub(super) fn deletion(args: Delete) -> pb::DeleteVolumeRequest {
    let disposal = if args.purge { pb::Disposal::Purge } else { pb::Disposal::Trash };
    pb::DeleteVolumeRequest {
        volume: args.named.group,
        disposal: disposal.into(),
        force: args.force,
        whole_group: true,
    }
}
