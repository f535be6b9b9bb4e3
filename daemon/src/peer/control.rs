//! Short calls between agents: make a copy of a volume, find the data listener of one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tidemark_core::config::{Config, Policy};
use tidemark_core::layout::{Layout, MAX_VOLUMES};
use tidemark_core::ship::Features;
use tidemark_core::site::Membership;
use tidemark_core::types::{BootId, GroupId, Secret, SiteId, VolumeId};
use tidemark_proto::peer as wire;
use tidemark_proto::peer::control_client::ControlClient;
use tidemark_proto::peer::control_server::{Control, ControlServer};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, Streaming};

use super::client::{ConnectError, Dialled, PeerAddress, dial, within_deadline};
use super::convert::{
    Malformed, at_most, config_in, config_out, fixed, id, layout_in, layout_out, membership_in, membership_out,
    policy_in, policy_out, raw,
};
use super::heartbeat::{Beats, Heartbeats};
use super::listener::{self, ServeError};
use super::server::authorised;
use super::site::SiteHandler;
use super::stream::{StreamEnd, end_of_status};
use super::tls::PeerIdentity;
use super::transport::Transport;

/// How long a call may take, once connected.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest request or answer.
const MAX_CALL_BYTES: usize = 64 << 10;
/// The longest name of a site, in bytes.
pub const MAX_SITE_NAME: usize = 63;
/// The longest name of a volume, in bytes.
pub const MAX_VOLUME_NAME: usize = 253;
/// The most addresses of an agent.
pub const MAX_ADDRESSES: usize = 16;

/// A copy that the primary asks for.
#[derive(Clone, Debug)]
pub struct NewReplica {
    /// What the group's log is named after: its first volume.
    pub volume: VolumeId,
    /// Its group.
    pub group: GroupId,
    /// The group's name.
    pub name: String,
    /// The names of its volumes; one without goes by its identity.
    pub names: Vec<(VolumeId, String)>,
    /// Its secret.
    pub secret: Secret,
    /// Its volumes and their sizes.
    pub layout: Layout,
    /// Bytes of a log slot.
    pub slot_bytes: u64,
    /// The primary's K.
    pub config: Config,
    /// Its policy.
    pub policy: Policy,
    /// Which member of the group it is to be; `None`: the only one of its site.
    pub members: Option<Membership>,
}

/// A volume that is about to join a group at its primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoiningVolume {
    /// What the group's log is named after.
    pub copy: VolumeId,
    /// The volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
}

/// An agent as its peer should know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerDescription {
    /// Site and node.
    pub identity: PeerIdentity,
    /// The site's name for people, at most [`MAX_SITE_NAME`] bytes.
    pub site_name: String,
    /// The boot of its kernel.
    pub boot: BootId,
    /// Version of the product.
    pub product_version: String,
    /// Wire version, from 1.
    pub version: u32,
    /// Feature bits offered.
    pub features: Features,
    /// `host:port` of the control listener, best first, at most [`MAX_ADDRESSES`].
    pub addresses: Vec<String>,
    /// Number of shards.
    pub shards: u32,
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
    /// Keeps the name of a volume that is about to join a group of `site`; the same again is a success.
    fn add_volume(&self, site: Option<SiteId>, joining: JoiningVolume) -> ControlAnswer<()> {
        let _ = (site, joining);
        Box::pin(async { Err("groups of several volumes are not known here".to_owned()) })
    }
    /// This agent's part in heartbeats; `None`: they are not answered.
    fn heartbeats(&self) -> Option<Heartbeats> {
        None
    }
    /// This agent as its peers should know it; `None`: it does not say.
    fn describe(&self) -> Option<PeerDescription> {
        None
    }
}

/// Serves the calls of peers, and with `site` those of the other agents of this site, until `shutdown`.
///
/// # Errors
/// When serving fails as a whole.
pub async fn serve_control(
    listener: TcpListener,
    transport: Transport,
    handler: Arc<dyn ControlHandler>,
    site: Option<Arc<dyn SiteHandler>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let members = site.map(|site| super::site::service(transport.clone(), site));
    let service = ControlServer::new(Service { transport: transport.clone(), handler })
        .max_decoding_message_size(MAX_CALL_BYTES)
        .max_encoding_message_size(MAX_CALL_BYTES);
    let router = listener::http2().add_service(service).add_optional_service(members);
    listener::serve(router, listener, transport, shutdown).await
}

struct Service {
    transport: Transport,
    handler: Arc<dyn ControlHandler>,
}

#[tonic::async_trait]
impl Control for Service {
    type HeartbeatStream = Beats;

    async fn heartbeat(&self, request: Request<Streaming<wire::Beat>>) -> Result<Response<Beats>, Status> {
        let connection = authorised(&request, &self.transport)?;
        let heartbeats = self.handler.heartbeats().ok_or_else(|| Status::unimplemented("no heartbeats here"))?;
        Ok(Response::new(heartbeats.answer(request.into_inner(), connection, self.transport.clone())))
    }

    async fn describe_peer(
        &self,
        request: Request<wire::DescribePeerRequest>,
    ) -> Result<Response<wire::DescribePeerResponse>, Status> {
        authorised(&request, &self.transport)?;
        let agent = self.handler.describe().ok_or_else(|| Status::unimplemented("no description here"))?;
        Ok(Response::new(wire::DescribePeerResponse { agent: Some(description_out(&agent)) }))
    }

    async fn locate(&self, request: Request<wire::LocateRequest>) -> Result<Response<wire::LocateResponse>, Status> {
        authorised(&request, &self.transport)?;
        let volume = id(&request.get_ref().volume, "volume").map_err(bad)?;
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
        let replica = replica_in(request.into_inner()).map_err(bad)?;
        let site = connection.identity.map(|identity| identity.site);
        let port = self.handler.create_replica(site, replica).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(wire::CreateReplicaResponse { data_port: port.into(), created: true }))
    }

    async fn create_member(
        &self,
        request: Request<wire::CreateMemberRequest>,
    ) -> Result<Response<wire::CreateReplicaResponse>, Status> {
        let connection = authorised(&request, &self.transport)?;
        let request = request.into_inner();
        let members = Some(membership_in(request.members).map_err(bad)?);
        let replica = request.replica.ok_or_else(|| bad(Malformed::Missing { field: "replica" }))?;
        let replica = NewReplica { members, ..replica_in(replica).map_err(bad)? };
        let site = connection.identity.map(|identity| identity.site);
        let port = self.handler.create_replica(site, replica).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(wire::CreateReplicaResponse { data_port: port.into(), created: true }))
    }

    async fn add_volume(
        &self,
        request: Request<wire::AddVolumeRequest>,
    ) -> Result<Response<wire::AddVolumeResponse>, Status> {
        let connection = authorised(&request, &self.transport)?;
        let joining = joining_in(request.into_inner()).map_err(bad)?;
        let site = connection.identity.map(|identity| identity.site);
        self.handler.add_volume(site, joining).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(wire::AddVolumeResponse {}))
    }

    async fn delete_replica(
        &self,
        request: Request<wire::DeleteReplicaRequest>,
    ) -> Result<Response<wire::DeleteReplicaResponse>, Status> {
        authorised(&request, &self.transport)?;
        Err(Status::failed_precondition("a copy is deleted at its own site"))
    }
}

pub(super) fn bad(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

fn replica_in(request: wire::CreateReplicaRequest) -> Result<NewReplica, Malformed> {
    at_most(request.name.len(), MAX_VOLUME_NAME, "name")?;
    at_most(request.group_name.len(), MAX_VOLUME_NAME, "group_name")?;
    at_most(request.names.len(), MAX_VOLUMES, "names")?;
    let volume = id(&request.volume, "volume")?;
    let layout = match layout_in(request.layout)? {
        Some(layout) => layout,
        None => Layout::new([(volume, request.size)])?,
    };
    let mut names = request.names.into_iter().map(name_in).collect::<Result<Vec<_>, _>>()?;
    if names.is_empty() {
        names.push((volume, request.name.clone()));
    }
    Ok(NewReplica {
        volume,
        group: id(&request.group, "group")?,
        name: if request.group_name.is_empty() { request.name } else { request.group_name },
        names,
        secret: Secret(fixed(&request.secret, "secret")?),
        layout,
        slot_bytes: request.slot_bytes,
        config: config_in(request.config)?,
        policy: policy_in(request.policy.ok_or(Malformed::Missing { field: "policy" })?)?,
        members: None,
    })
}

/// An agent that knows no groups reads the volume, its name and its size, which is all there is of a group of one.
fn replica_out(replica: &NewReplica) -> wire::CreateReplicaRequest {
    let own = replica.names.iter().find(|(volume, _)| *volume == replica.volume);
    wire::CreateReplicaRequest {
        volume: raw(&replica.volume.0),
        group: raw(&replica.group.0),
        name: own.map_or_else(|| replica.name.clone(), |(_, name)| name.clone()),
        secret: raw(&replica.secret.0),
        size: replica.layout.size(),
        slot_bytes: replica.slot_bytes,
        config: Some(config_out(&replica.config)),
        policy: Some(policy_out(replica.policy)),
        pool: String::new(),
        layout: (!replica.layout.is_one(replica.volume)).then(|| layout_out(&replica.layout)),
        names: replica.names.iter().map(|(volume, name)| name_out(*volume, name)).collect(),
        group_name: replica.name.clone(),
    }
}

fn name_in(named: wire::VolumeName) -> Result<(VolumeId, String), Malformed> {
    at_most(named.name.len(), MAX_VOLUME_NAME, "name")?;
    Ok((id(&named.volume, "volume")?, named.name))
}

fn name_out(volume: VolumeId, name: &str) -> wire::VolumeName {
    wire::VolumeName { volume: raw(&volume.0), name: name.to_owned() }
}

fn joining_in(request: wire::AddVolumeRequest) -> Result<JoiningVolume, Malformed> {
    let (volume, name) = name_in(request.volume.ok_or(Malformed::Missing { field: "volume" })?)?;
    Ok(JoiningVolume { copy: id(&request.copy, "copy")?, volume, name })
}

fn description_out(agent: &PeerDescription) -> wire::PeerDescription {
    wire::PeerDescription {
        site: raw(&agent.identity.site.0),
        site_name: agent.site_name.clone(),
        node: raw(&agent.identity.node.0),
        boot: raw(&agent.boot.0),
        product_version: agent.product_version.clone(),
        version: agent.version,
        features: agent.features,
        addresses: agent.addresses.clone(),
        shards: agent.shards,
    }
}

fn description_in(agent: Option<wire::PeerDescription>) -> Result<PeerDescription, Malformed> {
    let agent = agent.ok_or(Malformed::Missing { field: "agent" })?;
    at_most(agent.site_name.len(), MAX_SITE_NAME, "site_name")?;
    at_most(agent.addresses.len(), MAX_ADDRESSES, "addresses")?;
    Ok(PeerDescription {
        identity: PeerIdentity { site: id(&agent.site, "site")?, node: id(&agent.node, "node")? },
        site_name: agent.site_name,
        boot: id(&agent.boot, "boot")?,
        product_version: agent.product_version,
        version: agent.version,
        features: agent.features,
        addresses: agent.addresses,
        shards: agent.shards,
    })
}

// ---- calling --------------------------------------------------------------------------------------------------------

/// A connection for one call.
struct Caller {
    client: ControlClient<tonic::transport::Channel>,
    dialled: Dialled,
}

impl Caller {
    async fn connect(peer: &PeerAddress, transport: &Transport) -> Result<Self, CallError> {
        let dialled = within_deadline(peer, peer.port, dial(peer, peer.port, transport)).await?;
        let client = ControlClient::new(dialled.channel.clone()).max_decoding_message_size(MAX_CALL_BYTES);
        Ok(Self { client, dialled })
    }

    fn failed(&self, status: &Status) -> CallError {
        failed(&self.dialled, status)
    }
}

/// What a failed call means: the peer's own words, or that the connection was refused or broke.
pub(super) fn failed(dialled: &Dialled, status: &Status) -> CallError {
    let remote = dialled.connection.remote;
    match (status.code(), end_of_status(status, &dialled.fault)) {
        (_, end @ (StreamEnd::RefusedUs(_) | StreamEnd::Closed)) => ConnectError::Stream { remote, end }.into(),
        (Code::Unavailable | Code::Cancelled | Code::Unknown, end) => ConnectError::Stream { remote, end }.into(),
        (Code::NotFound, _) => CallError::NotFound,
        (Code::Unimplemented, _) => CallError::Refused("its version knows no groups of several members".to_owned()),
        _ => CallError::Refused(status.message().to_owned()),
    }
}

pub(super) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Bounds a call at this end too: a peer that is stuck does not look at the deadline it was told.
pub(super) async fn bounded<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    let late = |_| Status::unavailable(format!("no answer within {CALL_TIMEOUT:?}"));
    Ok(timeout(CALL_TIMEOUT, call).await.map_err(late)??.into_inner())
}

/// Asks where the peer serves a volume.
///
/// # Errors
/// [`CallError`].
pub async fn locate(peer: &PeerAddress, transport: &Transport, volume: VolumeId) -> Result<u16, CallError> {
    let mut caller = Caller::connect(peer, transport).await?;
    let message = wire::LocateRequest { volume: raw(&volume.0) };
    let answer = bounded(caller.client.locate(request(message))).await.map_err(|s| caller.failed(&s))?;
    u16::try_from(answer.data_port).map_err(|_| CallError::Refused("an impossible port".into()))
}

/// Asks the peer to make an empty copy.
///
/// # Errors
/// [`CallError`].
pub async fn create_replica(peer: &PeerAddress, transport: &Transport, replica: &NewReplica) -> Result<(), CallError> {
    let mut caller = Caller::connect(peer, transport).await?;
    let made = match &replica.members {
        None => bounded(caller.client.create_replica(request(replica_out(replica)))).await,
        Some(members) => {
            let (replica, members) = (Some(replica_out(replica)), Some(membership_out(members)));
            bounded(caller.client.create_member(request(wire::CreateMemberRequest { replica, members }))).await
        }
    };
    made.map(drop).map_err(|s| caller.failed(&s))
}

/// Tells the peer the name of a volume that is about to join a group.
///
/// # Errors
/// [`CallError`].
pub async fn add_volume(peer: &PeerAddress, transport: &Transport, joining: &JoiningVolume) -> Result<(), CallError> {
    let mut caller = Caller::connect(peer, transport).await?;
    let volume = Some(name_out(joining.volume, &joining.name));
    let message = wire::AddVolumeRequest { copy: raw(&joining.copy.0), volume };
    bounded(caller.client.add_volume(request(message))).await.map(drop).map_err(|s| caller.failed(&s))
}

/// Asks an agent who it is; `own` introduces the caller.
///
/// # Errors
/// [`CallError`].
pub async fn describe_peer(
    peer: &PeerAddress,
    transport: &Transport,
    own: &PeerDescription,
) -> Result<PeerDescription, CallError> {
    let mut caller = Caller::connect(peer, transport).await?;
    let message = wire::DescribePeerRequest { caller: Some(description_out(own)) };
    let answer = bounded(caller.client.describe_peer(request(message))).await.map_err(|s| caller.failed(&s))?;
    let described = description_in(answer.agent).map_err(|error| CallError::Refused(error.to_string()))?;
    match caller.dialled.connection.identity {
        Some(proven) if proven != described.identity => Err(CallError::Refused("it claims another identity".into())),
        _ => Ok(described),
    }
}
