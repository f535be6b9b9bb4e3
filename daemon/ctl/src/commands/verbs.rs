//! The verbs on one volume copy.

use std::time::Duration;

use tidemark_proto::admin as pb;

use crate::cli::Command;
use crate::cli::verbs::{Demote, DropPeer, Pause, Promote, Resume, Switchover};
use crate::cli::volume::Named;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Format, Printer};
use crate::report::outcome::{Promotion, SwitchedOver};
use crate::report::volume::Volume;

/// When somebody who promotes is told why it takes so long.
const PROMOTION_NOTICE: Duration = Duration::from_secs(3);

pub(super) async fn run(command: Command, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    let volume = match command {
        Command::Promote(args) => {
            let is_for_people = printer.format() == Format::Table;
            return printer.print(&promote(args, is_for_people, client).await?);
        }
        Command::Switchover(args) => {
            let request = switching(args);
            let done = client.call(request, async |admin, request| admin.switchover(request).await).await?;
            return printer.print(&SwitchedOver::from(done));
        }
        Command::Demote(args) => demote(args, client).await?,
        Command::Pause(args) => {
            let request = pausing(args);
            client.call(request, async |admin, request| admin.pause(request).await).await?
        }
        Command::Resume(args) => {
            let request = resuming(args);
            client.call(request, async |admin, request| admin.resume(request).await).await?
        }
        Command::DropPeer(args) => drop_peer(args, client).await?,
        Command::AbortIo(args) => abort_io(args.named, client).await?,
        Command::Reseed(args) => reseed(args.named, client).await?,
        Command::Drain(named) => drain(named, client).await?,
        other => unreachable!("the caller runs every other command: {other:?}"),
    };
    printer.print(&Volume::from(volume))
}

pub(super) fn promotion(args: Promote) -> pb::PromoteRequest {
    pb::PromoteRequest {
        volume: args.named.volume,
        assert_peer_fenced: args.assert_peer_fenced,
        reason: args.reason.unwrap_or_default(),
        who: args.who.unwrap_or_else(caller),
        max_loss_bytes: args.max_loss_bytes,
        max_loss_seconds: args.max_loss_seconds,
        allow_unproven: args.allow_unproven,
    }
}

async fn promote(args: Promote, is_for_people: bool, client: &mut Client) -> Result<Promotion, Failure> {
    let request = promotion(args);
    let notice = is_for_people.then(|| tokio::spawn(say_that_it_waits()));
    let promoted = client.call(request, async |admin, request| admin.promote(request).await).await;
    if let Some(notice) = notice {
        notice.abort();
    }
    Ok(promoted?.into())
}

/// A promotion that is not refused and not done at once waits.
async fn say_that_it_waits() {
    tokio::time::sleep(PROMOTION_NOTICE).await;
    eprintln!("promote: no answer yet; where the witness arbitrates, it waits until the other site's lease is over");
}

async fn demote(args: Demote, client: &mut Client) -> Result<pb::Volume, Failure> {
    let request = pb::DemoteRequest { volume: args.named.volume, force: args.force };
    client.call(request, async |admin, request| admin.demote(request).await).await
}

pub(super) fn pausing(args: Pause) -> pb::PauseRequest {
    pb::PauseRequest { volume: args.named.volume, ship: args.ship, floor: args.floor }
}

pub(super) fn resuming(args: Resume) -> pb::ResumeRequest {
    pb::ResumeRequest { volume: args.named.volume, ship: args.ship, floor: args.floor }
}

pub(super) fn switching(args: Switchover) -> pb::SwitchoverRequest {
    pb::SwitchoverRequest { volume: args.named.volume, to: args.to, detach: args.detach, force: args.force }
}

pub(super) fn parting(args: DropPeer) -> pb::DropPeerRequest {
    let who = args.who.unwrap_or_else(caller);
    let assertion = pb::Assertion { who, why: args.reason, at_ms: 0 };
    pb::DropPeerRequest { volume: args.named.volume, assertion: Some(assertion) }
}

async fn drop_peer(args: DropPeer, client: &mut Client) -> Result<pb::Volume, Failure> {
    let request = parting(args);
    client.call(request, async |admin, request| admin.drop_peer(request).await).await
}

async fn abort_io(Named { volume }: Named, client: &mut Client) -> Result<pb::Volume, Failure> {
    let request = pb::AbortIoRequest { volume };
    client.call(request, async |admin, request| admin.abort_io(request).await).await
}

async fn reseed(Named { volume }: Named, client: &mut Client) -> Result<pb::Volume, Failure> {
    let request = pb::ReseedRequest { volume };
    client.call(request, async |admin, request| admin.reseed(request).await).await
}

async fn drain(Named { volume }: Named, client: &mut Client) -> Result<pb::Volume, Failure> {
    let request = pb::DrainRequest { volume };
    client.call(request, async |admin, request| admin.drain(request).await).await
}

/// Who decides, when nobody says: the person behind sudo, else the user, at this host.
pub(super) fn caller() -> String {
    let names = ["SUDO_USER", "USER", "LOGNAME"];
    let user = names.iter().find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    let user = user.unwrap_or_else(|| "unknown".to_owned());
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(host) => format!("{user}@{}", host.trim()),
        Err(_) => user,
    }
}
