//! The stream between a group's leader at a site and another member of it, and how a member joins.
//!
//! Served on the control listener: what is said is small, and said when something changed. Who is at the other end is another
//! node of this site that the configuration names, by its certificate; whether it is the member that it says is the agent's to
//! judge, by the list in its own superblock ([`SiteHandler`]).

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tidemark_core::config::{Config, Policy};
use tidemark_core::site::{Membership, SiteMessage};
use tidemark_core::types::{GroupId, NodeId, Secret, SiteId};
use tidemark_proto::peer as wire;
use tidemark_proto::peer::members_client::MembersClient;
use tidemark_proto::peer::members_server::{Members, MembersServer};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::client::{ConnectError, PeerAddress, dial, within_deadline};
use super::control::{CallError, MAX_VOLUME_NAME, bad, bounded, failed, request};
use super::convert::{
    at_most, config_in, config_out, fixed, id, membership_in, membership_out, policy_in, policy_out, raw,
    site_from_wire, site_to_wire,
};
use super::server::authorised_mate;
use super::stream::{HELLO_TIMEOUT, StreamEnd, end_of_status};
use super::transport::Transport;

/// The largest message, encoded.
const MAX_SITE_BYTES: usize = 64 << 10;
/// Messages that wait in one direction; more end the stream, which is made anew.
pub const SITE_QUEUE: usize = 64;
/// How long the taking of a stream may last.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which member of which group opens a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SiteHello {
    /// The group.
    pub group: GroupId,
    /// The member.
    pub members: Membership,
}

/// A stream between two members: what comes in, and where to say something.
#[derive(Debug)]
pub struct SiteStream {
    /// Ends when the stream does.
    pub inbound: mpsc::Receiver<SiteMessage>,
    /// Dropped, it ends the stream.
    pub outbound: mpsc::Sender<SiteMessage>,
}

/// What a member that joins begins with.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The group.
    pub group: GroupId,
    /// Its secret.
    pub secret: Secret,
    /// The leader's K.
    pub config: Config,
    /// The group's policy.
    pub policy: Policy,
    /// The peer site.
    pub peer: Option<SiteId>,
}

/// Why an agent does not do what another one of its site asks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SiteRefusal {
    /// The group is not here.
    #[error("the group is not here")]
    NoGroup,
    /// Something else is in the way.
    #[error("{0}")]
    Refused(String),
}

impl From<SiteRefusal> for Status {
    fn from(refusal: SiteRefusal) -> Self {
        match refusal {
            SiteRefusal::NoGroup => Status::not_found(refusal.to_string()),
            SiteRefusal::Refused(why) => Status::failed_precondition(why),
        }
    }
}

/// The answer of a handler.
pub type SiteAnswer<'a, T> = Pin<Box<dyn Future<Output = Result<T, SiteRefusal>> + Send + 'a>>;

/// What the agent does with the calls of other agents of its site.
pub trait SiteHandler: Send + Sync + 'static {
    /// Whether that member may open a stream to the leader here; `node`: what its certificate proves. Asked before
    /// [`Self::accept`].
    fn admit(&self, node: Option<NodeId>, hello: &SiteHello) -> SiteAnswer<'_, ()>;
    /// Takes the stream of a member that was admitted.
    fn accept(&self, hello: SiteHello, stream: SiteStream);
    /// What a new member begins with, when it was never there.
    fn join(&self, node: Option<NodeId>, group: String, members: Membership) -> SiteAnswer<'_, Joined>;
}

/// The service for the control listener.
pub(super) fn service(transport: Transport, handler: Arc<dyn SiteHandler>) -> MembersServer<SiteService> {
    MembersServer::new(SiteService { transport, handler })
        .max_decoding_message_size(MAX_SITE_BYTES)
        .max_encoding_message_size(MAX_SITE_BYTES)
}

/// Serves the calls of the other agents of this site.
pub(super) struct SiteService {
    transport: Transport,
    handler: Arc<dyn SiteHandler>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<wire::SiteEnvelope, Status>> + Send>>;

#[tonic::async_trait]
impl Members for SiteService {
    type StreamStream = Answers;

    async fn stream(&self, request: Request<Streaming<wire::SiteEnvelope>>) -> Result<Response<Answers>, Status> {
        let connection = authorised_mate(&request, &self.transport)?;
        let mut streaming = request.into_inner();
        let hello = await_hello(&mut streaming).await?;
        let node = connection.identity.map(|identity| identity.node);
        let late = |_| Status::unavailable("the group did not answer in time");
        timeout(ADMIT_TIMEOUT, self.handler.admit(node, &hello)).await.map_err(late)??;
        let (outbound, queue) = mpsc::channel(SITE_QUEUE);
        let (sender, inbound) = mpsc::channel(SITE_QUEUE);
        let pump = receive(streaming, sender, connection.remote);
        tokio::spawn(async move { drop(pump.await) }); // how it ended is logged there
        self.handler.accept(hello, SiteStream { inbound, outbound });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue).map(|message| Ok(site_to_wire(message))))))
    }

    async fn join_group(
        &self,
        request: Request<wire::JoinGroupRequest>,
    ) -> Result<Response<wire::JoinGroupResponse>, Status> {
        let connection = authorised_mate(&request, &self.transport)?;
        let message = request.into_inner();
        at_most(message.group_name.len(), MAX_VOLUME_NAME, "group_name").map_err(bad)?;
        let members = membership_in(message.members).map_err(bad)?;
        let node = connection.identity.map(|identity| identity.node);
        let joined = self.handler.join(node, message.group_name, members).await?;
        Ok(Response::new(wire::JoinGroupResponse {
            group: raw(&joined.group.0),
            secret: raw(&joined.secret.0),
            config: Some(config_out(&joined.config)),
            policy: Some(policy_out(joined.policy)),
            peer: joined.peer.map(|peer| raw(&peer.0)),
        }))
    }
}

async fn await_hello(streaming: &mut Streaming<wire::SiteEnvelope>) -> Result<SiteHello, Status> {
    let late = |_| Status::invalid_argument("no greeting in time");
    let first = timeout(HELLO_TIMEOUT, streaming.message()).await.map_err(late)??;
    match first.and_then(|envelope| envelope.body) {
        Some(wire::site_envelope::Body::Hello(hello)) => {
            let group = id(&hello.group, "group").map_err(bad)?;
            Ok(SiteHello { group, members: membership_in(hello.members).map_err(bad)? })
        }
        _ => Err(Status::invalid_argument("the first message is no greeting")),
    }
}

/// Hands on what comes in until either end is done with it. What cannot be understood ends the stream.
async fn receive(
    mut streaming: Streaming<wire::SiteEnvelope>,
    into: mpsc::Sender<SiteMessage>,
    remote: SocketAddr,
) -> Result<(), StreamEnd> {
    loop {
        let received = tokio::select! {
            received = streaming.message() => received,
            () = into.closed() => return Ok(()),
        };
        let end = match received {
            Ok(Some(envelope)) => match site_from_wire(envelope) {
                // Slow here means that the other end waits: there is no queue but this one.
                Ok(message) => match into.send(message).await {
                    Ok(()) => continue,
                    Err(_) => return Ok(()),
                },
                Err(malformed) => StreamEnd::Malformed(malformed),
            },
            Ok(None) => StreamEnd::Closed,
            Err(status) => end_of_status(&status, &Default::default()),
        };
        tracing::info!(%remote, %end, "stream to a member of a group ended");
        return Err(end);
    }
}

/// Opens the stream of a member to its leader, whose node is `leader`, and gives it when the leader has taken it.
///
/// # Errors
/// [`CallError`].
pub async fn connect_site(
    address: &PeerAddress,
    leader: NodeId,
    transport: &Transport,
    hello: &SiteHello,
) -> Result<SiteStream, CallError> {
    let dialled = within_deadline(address, address.port, dial(address, address.port, transport)).await?;
    check_node(&dialled, leader)?;
    let mut client = MembersClient::new(dialled.channel.clone())
        .max_decoding_message_size(MAX_SITE_BYTES)
        .max_encoding_message_size(MAX_SITE_BYTES);
    let (outbound, queue) = mpsc::channel(SITE_QUEUE);
    let members = Some(membership_out(&hello.members));
    let first = wire::site_envelope::Body::Hello(wire::SiteHello { group: raw(&hello.group.0), members });
    let first = tokio_stream::once(wire::SiteEnvelope { body: Some(first) });
    let requests = first.chain(ReceiverStream::new(queue).map(site_to_wire));
    let late = |_| ConnectError::Timeout { host: address.host.clone(), port: address.port };
    let answer = timeout(HELLO_TIMEOUT + ADMIT_TIMEOUT, client.stream(requests)).await.map_err(late)?;
    let streaming = answer.map_err(|status| failed(&dialled, &status))?.into_inner();
    let (sender, inbound) = mpsc::channel(SITE_QUEUE);
    tokio::spawn(async move {
        let _ = receive(streaming, sender, dialled.connection.remote).await; // is logged there
        drop(dialled); // the connection stands as long as its stream
    });
    Ok(SiteStream { inbound, outbound })
}

/// Asks the leader of a group at this site what a new member begins with.
///
/// # Errors
/// [`CallError`].
pub async fn join_group(
    address: &PeerAddress,
    leader: NodeId,
    transport: &Transport,
    (group, members): (&str, &Membership),
) -> Result<Joined, CallError> {
    let dialled = within_deadline(address, address.port, dial(address, address.port, transport)).await?;
    check_node(&dialled, leader)?;
    let mut client = MembersClient::new(dialled.channel.clone()).max_decoding_message_size(MAX_SITE_BYTES);
    let message = wire::JoinGroupRequest { group_name: group.to_owned(), members: Some(membership_out(members)) };
    let answer = bounded(client.join_group(request(message))).await.map_err(|status| failed(&dialled, &status))?;
    let joined = || {
        Ok(Joined {
            group: id(&answer.group, "group")?,
            secret: Secret(fixed(&answer.secret, "secret")?),
            config: config_in(answer.config)?,
            policy: policy_in(answer.policy.ok_or(super::convert::Malformed::Missing { field: "policy" })?)?,
            peer: answer.peer.as_ref().map(|peer| id(peer, "peer")).transpose()?,
        })
    };
    joined().map_err(|error: super::convert::Malformed| CallError::Refused(error.to_string()))
}

/// The one at the other end is the node that the list names.
fn check_node(dialled: &super::client::Dialled, wanted: NodeId) -> Result<(), CallError> {
    match dialled.connection.identity {
        Some(identity) if identity.node != wanted => {
            Err(CallError::Refused(format!("node {} answers there, not node {wanted}", identity.node)))
        }
        _ => Ok(()),
    }
}
