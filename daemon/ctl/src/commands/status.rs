//! `tidemark status`: one look, or one after the other.

use std::io::IsTerminal as _;

use jiff::Timestamp;
use tidemark_proto::admin as pb;

use super::volume;
use crate::cli::verbs::Status;
use crate::cli::volume::Named;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Format, Printer};
use crate::report::status::{SiteNames, StatusReport};

/// Moves to the upper left corner and clears the terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) async fn run(args: Status, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    if args.watch {
        return watch(args, client, printer).await;
    }
    let report = look(args.volumes, client, printer.format()).await?;
    printer.print(&report)
}

async fn look(names: Vec<String>, client: &mut Client, format: Format) -> Result<StatusReport, Failure> {
    let site_names = site_names(client, format).await?;
    let mut volumes = Vec::new();
    if names.is_empty() {
        volumes = volume::list(client).await?.volumes;
    }
    for volume in names {
        volumes.push(volume::show(Named { volume }, client).await?);
    }
    Ok(StatusReport { at_ms: Timestamp::now().as_millisecond(), volumes, site_names })
}

async fn watch(args: Status, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    let site_names = site_names(client, printer.format()).await?;
    let interval_ms = u32::try_from(args.interval.as_millis()).unwrap_or(u32::MAX);
    let request = pb::WatchStatusRequest { volumes: args.volumes, interval_ms };
    let mut looks = client.stream(request, async |admin, request| admin.watch_status(request).await).await?;
    while let Some(look) = looks.next().await? {
        let volumes = look.volumes.into_iter().map(Into::into).collect();
        let report = StatusReport { at_ms: look.at_ms, volumes, site_names: site_names.clone() };
        show(&report, printer)?;
    }
    Ok(())
}

fn show(report: &StatusReport, printer: &Printer) -> Result<(), Failure> {
    match printer.format() {
        Format::Table if std::io::stdout().is_terminal() => {
            printer.write(&format!("{CLEAR}{}", printer.render(report)?))
        }
        Format::Table => printer.write(&report.lines()),
        Format::Json | Format::Yaml => printer.print_streamed(report),
    }
}

/// What people call the sites: only tables need it, and they can do without when the agent refuses to tell. An agent that
/// does not answer ends the command here, within one timeout.
async fn site_names(client: &mut Client, format: Format) -> Result<SiteNames, Failure> {
    if format != Format::Table {
        return Ok(SiteNames::new());
    }
    let request = pb::GetAgentRequest {};
    let agent = match client.call(request, async |admin, request| admin.get_agent(request).await).await {
        Err(unanswered @ Failure::Unreachable { .. }) => return Err(unanswered),
        Err(_) => return Ok(SiteNames::new()),
        Ok(agent) => agent,
    };
    let peers = agent.peers.into_iter().map(|peer| (peer.site_id, peer.name));
    let all = peers.chain([(agent.site_id, agent.site_name)]);
    Ok(all.filter(|(id, name)| !id.is_empty() && !name.is_empty()).collect())
}
