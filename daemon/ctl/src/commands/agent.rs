//! `tidemark agent`, `tidemark peer` and `tidemark witness`.

use std::path::Path;

use tidemark_proto::admin as pb;

use crate::cli::verbs::{Agent, Peer, PeerAdd, Witness};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::Printer;
use crate::pki::certificate::Certificate;
use crate::pki::identity::Identity;
use crate::pki::{PkiError, store};
use crate::report::agent::PeerList;
use crate::report::{Done, agent};

pub(super) async fn agent(command: Agent, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    let Agent::Show = command;
    let agent = client.call(pb::GetAgentRequest {}, async |admin, request| admin.get_agent(request).await).await?;
    let version = client.call(pb::GetVersionRequest {}, async |admin, request| admin.get_version(request).await);
    printer.print(&agent::Agent::new(agent, version.await?))
}

pub(super) async fn witness(command: Witness, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Witness::Show => printer.print(&witness_state(client).await?),
        Witness::Check => {
            let asked =
                client.call(pb::CheckWitnessRequest {}, async |admin, request| admin.check_witness(request).await);
            printer.print(&agent::WitnessCheck::from(asked.await?))
        }
    }
}

async fn witness_state(client: &mut Client) -> Result<agent::Witness, Failure> {
    let agent = client.call(pb::GetAgentRequest {}, async |admin, request| admin.get_agent(request).await).await?;
    agent.witness.map(Into::into).ok_or_else(|| Failure::Unsatisfied {
        exit: Exit::Refused,
        message: "the agent has no witness".to_owned(),
        hint: Some("a section [witness] in its configuration names one".to_owned()),
    })
}

pub(super) async fn peer(command: Peer, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Peer::Add(args) => printer.print(&add(args, client).await?),
        Peer::List => printer.print(&list(client).await?),
        Peer::Show(named) => printer.print(&show(&named.peer, client).await?),
        Peer::Remove(named) => printer.print(&remove(named.named.peer, client).await?),
    }
}

async fn add(args: PeerAdd, client: &mut Client) -> Result<agent::Peer, Failure> {
    let (ca_pem, ca_site) = args.peer_ca.as_deref().map(ca_of_site).transpose()?.unwrap_or_default();
    let site_id = args.site_id.unwrap_or(ca_site);
    let request = pb::AddPeerRequest { name: args.name, site_id, address: args.address, ca_pem };
    Ok(client.call(request, async |admin, request| admin.add_peer(request).await).await?.into())
}

/// The CA's certificate and the site that it vouches for; no site for a CA that was not made by `tidemark pki`.
fn ca_of_site(path: &Path) -> Result<(String, String), PkiError> {
    let pem = store::read(path)?;
    let certificate = Certificate::parse(path, &pem)?;
    if !certificate.is_ca {
        let why = "it may not sign certificates: take the other site's ca.crt".to_owned();
        return Err(PkiError::Malformed { path: path.to_owned(), expected: "a CA", why });
    }
    let site = match certificate.identity {
        Some(Identity::Site(site)) => site.to_string(),
        _ => String::new(),
    };
    Ok((pem, site))
}

async fn list(client: &mut Client) -> Result<PeerList, Failure> {
    let response = client.call(pb::ListPeersRequest {}, async |admin, request| admin.list_peers(request).await);
    Ok(PeerList { peers: response.await?.peers.into_iter().map(Into::into).collect() })
}

async fn show(name: &str, client: &mut Client) -> Result<agent::Peer, Failure> {
    let peers = list(client).await?.peers;
    let found = peers.into_iter().find(|peer| peer.name == name || peer.site_id == name);
    found.ok_or_else(|| Failure::Unsatisfied {
        exit: Exit::NotFound,
        message: format!("no peer {name}"),
        hint: Some("`tidemark peer list` shows what there is".to_owned()),
    })
}

async fn remove(peer: String, client: &mut Client) -> Result<Done, Failure> {
    let done = format!("{peer} is forgotten");
    client.call(pb::RemovePeerRequest { peer }, async |admin, request| admin.remove_peer(request).await).await?;
    Ok(Done { done })
}
