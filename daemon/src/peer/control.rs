//! Short calls between agents: make a copy of a volume, find the data listener of one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemark_core::config::{Config, Policy};
use tidemark_core::types::{GroupId, Secret, SiteId, VolumeId};
use tidemark_proto::peer as wire;
use tidemark_proto::peer::control_client::ControlClient;
use tidemark_proto::peer::control_server::{Control, ControlServer};
use tokio::net::TcpListener;
use tonic::{Code, Request, Response, Status, Streaming};

use super::client::{ConnectError, PeerAddress, dial, within_deadline};
use super::convert::{config_in, config_out, policy_in, policy_out};
use super::listener::{self, ServeError};
use super::server::authorised;
use super::transport::Transport;

/// How long a call may take, once connected.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest request or answer.
const MAX_CALL_BYTES: usize = 64 << 10;

/// A copy that the primary asks for.
#[derive(Clone, Debug)]
pub struct NewReplica {
    /// The volume.
    pub volume: VolumeId,
    /// Its group.
    pub group: GroupId,
    /// Its name.
    pub name: String,
    /// Its secret.
    pub secret: Secret,
    /// Bytes.
    pub size: u64,
    /// Bytes of a log slot.
    pub slot_bytes: u64,
    /// The primary's K.
    pub config: Config,
    /// Its policy.
    pub policy: Policy,
}

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The peer could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The peer said no.
    #[error("the peer refused: {0}")]
    Refused(String),
    /// The peer does not know the volume.
    #[error("the peer has no such volume")]
    NotFound,
}

/// The answer of a handler.
pub type ControlAnswer<T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send>>;

/// What the agent does with the calls of its peers.
pub trait ControlHandler: Send + Sync + 'static {
    /// The port of the data listener that serves the volume.
    fn locate(&self, volume: VolumeId) -> Option<u16>;
    /// Makes an empty copy for `site`; an equal one is a success.
    fn create_replica(&self, site: Option<SiteId>, replica: NewReplica) -> ControlAnswer<u16>;
}

/// Serves the calls of peers until `shutdown`.
///
/// # Errors
/// When serving fails as a whole.
pub async fn serve_control(
    listener: TcpListener,
    transport: Transport,
    handler: Arc<dyn ControlHandler>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let service = ControlServer::new(Service { transport: transport.clone(), handler })
        .max_decoding_message_size(MAX_CALL_BYTES)
        .max_encoding_message_size(MAX_CALL_BYTES);
    listener::serve(listener::http2().add_service(service), listener, transport, shutdown).await
}

struct Service {
    transport: Transport,
    handler: Arc<dyn ControlHandler>,
}

type Beats = Pin<Box<dyn futures_core::Stream<Item = Result<wire::Beat, Status>> + Send>>;

#[tonic::async_trait]
impl Control for Service {
    type HeartbeatStream = Beats;

    async fn heartbeat(&self, request: Request<Streaming<wire::Beat>>) -> Result<Response<Beats>, Status> {
        authorised(&request, &self.transport)?;
        // Each beat is answered by itself: the sender measures the round trip.
        Ok(Response::new(Box::pin(request.into_inner())))
    }

    async fn describe_peer(
        &self,
        request: Request<wire::DescribePeerRequest>,
    ) -> Result<Response<wire::DescribePeerResponse>, Status> {
        authorised(&request, &self.transport)?;
        Err(Status::unimplemented("a peer is described by its certificate"))
    }

    async fn locate(&self, request: Request<wire::LocateRequest>) -> Result<Response<wire::LocateResponse>, Status> {
        authorised(&request, &self.transport)?;
        let volume = VolumeId(fixed(&request.get_ref().volume, "volume")?);
        match self.handler.locate(volume) {
            Some(port) => Ok(Response::new(wire::LocateResponse { data_port: port.into() })),
            None => Err(Status::not_found("no copy of this volume is here")),
        }
    }

    async fn create_replica(
        &self,
        request: Request<wire::CreateReplicaRequest>,
    ) -> Result<Response<wire::CreateReplicaResponse>, Status> {
        let connection = authorised(&request, &self.transport)?;
        let replica = replica_in(request.into_inner())?;
        let site = connection.identity.map(|identity| identity.site);
        let port = self.handler.create_replica(site, replica).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(wire::CreateReplicaResponse { data_port: port.into(), created: true }))
    }

    async fn delete_replica(
        &self,
        request: Request<wire::DeleteReplicaRequest>,
    ) -> Result<Response<wire::DeleteReplicaResponse>, Status> {
        authorised(&request, &self.transport)?;
        Err(Status::failed_precondition("a copy is deleted at its own site"))
    }
}

fn fixed<const N: usize>(bytes: &[u8], field: &'static str) -> Result<[u8; N], Status> {
    bytes.try_into().map_err(|_| Status::invalid_argument(format!("{field}: {N} bytes are needed")))
}

fn replica_in(request: wire::CreateReplicaRequest) -> Result<NewReplica, Status> {
    let bad = |error: super::convert::Malformed| Status::invalid_argument(error.to_string());
    let policy = request.policy.ok_or_else(|| Status::invalid_argument("policy: missing"))?;
    Ok(NewReplica {
        volume: VolumeId(fixed(&request.volume, "volume")?),
        group: GroupId(fixed(&request.group, "group")?),
        name: request.name,
        secret: Secret(fixed(&request.secret, "secret")?),
        size: request.size,
        slot_bytes: request.slot_bytes,
        config: config_in(request.config).map_err(bad)?,
        policy: policy_in(policy).map_err(bad)?,
    })
}

async fn client(
    peer: &PeerAddress,
    transport: &Transport,
) -> Result<ControlClient<tonic::transport::Channel>, CallError> {
    let dialled = within_deadline(peer, peer.port, dial(peer, peer.port, transport)).await?;
    Ok(ControlClient::new(dialled.channel).max_decoding_message_size(MAX_CALL_BYTES))
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

fn refused(status: &Status) -> CallError {
    match status.code() {
        Code::NotFound => CallError::NotFound,
        _ => CallError::Refused(status.message().to_owned()),
    }
}

/// Asks where the peer serves a volume.
///
/// # Errors
/// [`CallError`].
pub async fn locate(peer: &PeerAddress, transport: &Transport, volume: VolumeId) -> Result<u16, CallError> {
    let message = wire::LocateRequest { volume: Bytes::copy_from_slice(&volume.0) };
    let answer = client(peer, transport).await?.locate(request(message)).await.map_err(|s| refused(&s))?;
    u16::try_from(answer.into_inner().data_port).map_err(|_| CallError::Refused("an impossible port".into()))
}

/// Asks the peer to make an empty copy.
///
/// # Errors
/// [`CallError`].
pub async fn create_replica(peer: &PeerAddress, transport: &Transport, replica: &NewReplica) -> Result<(), CallError> {
    let message = wire::CreateReplicaRequest {
        volume: Bytes::copy_from_slice(&replica.volume.0),
        group: Bytes::copy_from_slice(&replica.group.0),
        name: replica.name.clone(),
        secret: Bytes::copy_from_slice(&replica.secret.0),
        size: replica.size,
        slot_bytes: replica.slot_bytes,
        config: Some(config_out(&replica.config)),
        policy: Some(policy_out(replica.policy)),
        pool: String::new(),
    };
    client(peer, transport).await?.create_replica(request(message)).await.map_err(|s| refused(&s))?;
    Ok(())
}
