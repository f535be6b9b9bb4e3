//! `tidemark volume`.

use std::path::Path;

use tidemark_proto::admin as pb;

use super::verify;
use crate::cli::volume::{Adopt, Attach, Create, Delete, Detach, Named, Resize, Set, Volume};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Printer;
use crate::report::volume::{Attachment, BranchList, Deleted, Released, VolumeList};
use crate::report::{Done, volume};

pub(super) async fn run(command: Volume, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Volume::Create(args) => printer.print(&create(args, client).await?),
        Volume::Adopt(args) => printer.print(&adopt(args, client).await?),
        Volume::List => printer.print(&list(client).await?),
        Volume::Show(args) => printer.print(&show(args, client).await?),
        Volume::Attach(args) => printer.print(&attach(args, client).await?),
        Volume::Detach(args) => printer.print(&detach(args, client).await?),
        Volume::Resize(args) => printer.print(&resize(args, client).await?),
        Volume::Release(args) => printer.print(&release(args.named, client).await?),
        Volume::Delete(args) => printer.print(&delete(deletion(args), client).await?),
        Volume::Set(args) => printer.print(&set(args, client).await?),
        Volume::Verify(args) => verify::run(args, client, printer).await,
        Volume::Branches(args) => printer.print(&branches(args, client).await?),
    }
}

async fn create(args: Create, client: &mut Client) -> Result<volume::Volume, Failure> {
    let request = pb::CreateVolumeRequest {
        size_bytes: args.size,
        policy: Some(args.policy.to_placed(&args.placement)),
        base_path: args.base.as_deref().map(absolute).transpose()?,
        name: args.name,
        group: args.group.unwrap_or_default(),
        members: args.members,
        peer_members: args.peer_members,
    };
    Ok(client.call(request, async |admin, request| admin.create_volume(request).await).await?.into())
}

async fn adopt(args: Adopt, client: &mut Client) -> Result<volume::Volume, Failure> {
    let policy = Some(args.policy.to_placed(&args.placement));
    let request = pb::AdoptVolumeRequest {
        path: absolute(&args.path)?,
        name: args.name,
        policy,
        group: args.group.unwrap_or_default(),
    };
    Ok(client.call(request, async |admin, request| admin.adopt_volume(request).await).await?.into())
}

pub(super) async fn list(client: &mut Client) -> Result<VolumeList, Failure> {
    let request = pb::ListVolumesRequest {};
    let response = client.call(request, async |admin, request| admin.list_volumes(request).await).await?;
    Ok(VolumeList { volumes: response.volumes.into_iter().map(Into::into).collect() })
}

pub(super) async fn show(Named { volume }: Named, client: &mut Client) -> Result<volume::Volume, Failure> {
    let request = pb::GetVolumeRequest { volume };
    Ok(client.call(request, async |admin, request| admin.get_volume(request).await).await?.into())
}

async fn attach(args: Attach, client: &mut Client) -> Result<Attachment, Failure> {
    let frontend = args.frontend.map_or(pb::Frontend::Unspecified, Into::into);
    let request = pb::AttachVolumeRequest { volume: args.named.volume, frontend: frontend.into() };
    let response = client.call(request, async |admin, request| admin.attach_volume(request).await).await?;
    Ok(response.attachment.unwrap_or_default().into())
}

async fn detach(args: Detach, client: &mut Client) -> Result<Done, Failure> {
    let request = pb::DetachVolumeRequest { volume: args.named.volume, force: args.force };
    let volume = client.call(request, async |admin, request| admin.detach_volume(request).await).await?;
    Ok(Done { done: format!("{} is detached", volume.name) })
}

async fn resize(args: Resize, client: &mut Client) -> Result<volume::Volume, Failure> {
    let request = pb::ResizeVolumeRequest { volume: args.named.volume, size_bytes: args.size };
    Ok(client.call(request, async |admin, request| admin.resize_volume(request).await).await?.into())
}

async fn release(Named { volume }: Named, client: &mut Client) -> Result<Released, Failure> {
    let request = pb::ReleaseVolumeRequest { volume };
    Ok(client.call(request, async |admin, request| admin.release_volume(request).await).await?.into())
}

pub(super) fn deletion(args: Delete) -> pb::DeleteVolumeRequest {
    let disposal = if args.purge { pb::Disposal::Purge } else { pb::Disposal::Trash };
    pb::DeleteVolumeRequest {
        volume: args.named.volume,
        disposal: disposal.into(),
        force: args.force,
        whole_group: false,
    }
}

/// Of a volume, or of a whole group.
pub(super) async fn delete(request: pb::DeleteVolumeRequest, client: &mut Client) -> Result<Deleted, Failure> {
    Ok(client.call(request, async |admin, request| admin.delete_volume(request).await).await?.into())
}

/// The peer is named before a mode that needs one, and forgotten after the mode that needed it.
async fn set(args: Set, client: &mut Client) -> Result<volume::Volume, Failure> {
    let volume = args.named.volume;
    let policy = args.policy.to_message();
    let changes_policy = policy != pb::Policy::default();
    if !changes_policy && args.peer_site.is_none() && !args.no_peer_site {
        return Err(Failure::usage("nothing to change", "name at least one field, for example --mode sync"));
    }
    let mut after = None;
    if let Some(peer_site) = args.peer_site {
        after = Some(set_peer(volume.clone(), peer_site, client).await?);
    }
    if changes_policy {
        let request = pb::SetPolicyRequest { volume: volume.clone(), policy: Some(policy) };
        after = Some(client.call(request, async |admin, request| admin.set_policy(request).await).await?);
    }
    if args.no_peer_site {
        after = Some(set_peer(volume, String::new(), client).await?);
    }
    Ok(after.unwrap_or_default().into())
}

async fn set_peer(volume: String, peer_site: String, client: &mut Client) -> Result<pb::Volume, Failure> {
    let request = pb::SetPeerRequest { volume, peer_site };
    client.call(request, async |admin, request| admin.set_peer(request).await).await
}

pub(super) async fn branches(Named { volume }: Named, client: &mut Client) -> Result<BranchList, Failure> {
    let request = pb::ListBranchesRequest { volume };
    let response = client.call(request, async |admin, request| admin.list_branches(request).await).await?;
    let present = response.present.map(Into::into);
    let dropped = response.dropped.into_iter().map(Into::into).collect();
    let space = response.space.into_iter().map(|extent| (extent.volume_id, extent.length)).collect();
    Ok(BranchList { branches: response.branches.into_iter().map(Into::into).collect(), space, dropped, present })
}

/// The path as the agent has to see it: it does not know our working directory.
fn absolute(path: &Path) -> Result<String, Failure> {
    let verb = || format!("use the path {}", path.display());
    let whole = std::path::absolute(path).map_err(|source| Failure::Local { verb: verb(), source })?;
    let text = whole.into_os_string().into_string();
    text.map_err(|_| Failure::usage(format!("the path {} is not UTF-8", path.display()), "rename it"))
}
