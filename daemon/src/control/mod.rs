//! The admin API: gRPC on a unix socket, and on TCP with mutual TLS where configured, with health and reflection.
//!
//! Decides who may ask ([`caller`]), what a request means ([`request`], [`policy`]), how long a call may run ([`calls`]) and
//! how an answer reads ([`answer`], [`state`], [`refusal`]). What is done is the business of an [`Engine`].
//!
//! Invariants: a verb that was started runs to its end; every refusal carries a stable reason; nothing an unknown client
//! sends costs more than one bounded message, one bounded connection and one bounded handshake.

mod answer;
mod branches;
mod caller;
mod calls;
mod connection;
mod engine;
pub mod exercise;
#[cfg(test)]
pub(crate) mod fake;
mod invalid;
mod plan;
mod policy;
mod refusal;
mod request;
mod service;
pub mod state;
mod streams;
mod tls;
mod unix;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemark_core::types::SiteId;
use tidemark_proto::admin::admin_server::AdminServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router};
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, HealthService};

pub use branches::{BranchClass, BranchCounts, BranchInfo, Branches, DroppedBranch, Seen};
pub use engine::{
    AgentInfo, Answer, Attachment, Disposal, Engine, EngineError, FrontendKind, MemberNodes, NewPeer, NewVolume,
    Origin, PeerHealth, PeerInfo, PeerKey, Place, PoolInfo, Scope, ShardInfo, Switchover, Verified, VerifyProgress,
    VolumeInfo, VolumeKey, WitnessInfo,
};
pub use plan::{Explained, Foretold, Planned, explained_verbs};
pub use policy::PolicyPatch;
pub use refusal::{FIELD_KEY, REASON_KEY, verb_reason};
pub use tls::{TlsError, TlsSource};

use crate::config::AdminConfig;
use crate::telemetry::AdminMetrics;
use caller::Gate;
use calls::Calls;
use service::Service;

/// The full name of the service, for health checks.
pub const SERVICE_NAME: &str = "tidemark.admin.v1.Admin";

/// The largest request: a list of 4,096 names fits many times.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// The largest answer: the status of 4,096 volumes.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Header bytes of one call.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Calls at once on one connection.
const MAX_STREAMS: u32 = 64;
/// A connection whose other end is gone is found within this and [`KEEPALIVE_TIMEOUT`].
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// The longest wait for a sign of life.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// After a stop: calls that are still running then lose their connection, not their work.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the admin API is not there.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The unix socket cannot be made.
    #[error("admin.socket {}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// Another process serves the socket.
    #[error("admin.socket {}: another agent serves it", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is taken by something else.
    #[error("admin.socket {}: exists and is no socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The TCP address cannot be had.
    #[error("admin.listen {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What failed.
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error("admin.tls: {0}")]
    Tls(#[from] TlsError),
    /// Reflection cannot be built from the compiled-in descriptors.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A server ended with an error.
    #[error("admin API: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// The bound listeners of the admin API.
pub struct Control {
    unix: unix::UnixSocket,
    tcp: Option<tls::TlsSocket>,
    gate: Gate,
}

impl Control {
    /// Binds everything that `config` names, so that a mistake is found before anything serves.
    pub async fn bind(config: &AdminConfig, site: SiteId) -> Result<Self, ControlError> {
        let tcp = match &config.tcp {
            Some(tcp) => Some(tls::TlsSocket::bind(tcp.listen, &tcp.tls).await?),
            None => None,
        };
        let unix = unix::UnixSocket::bind(&config.socket, config.socket_mode).await?;
        Ok(Self { unix, tcp, gate: Gate::new(config, site) })
    }

    /// Where the TCP listener is, if there is one.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.address().ok())
    }

    /// Serves `engine` until `stop` ends, then lets running calls finish for a short while. `verb_timeout` bounds every call
    /// that names no deadline.
    pub async fn serve(
        self,
        engine: Arc<dyn Engine>,
        verb_timeout: Duration,
        metrics: AdminMetrics,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), ControlError> {
        let (stop_now, stopping) = watch::channel(false);
        let health = HealthReporter::new();
        let calls = Calls::new(verb_timeout, metrics.clone());
        let routes = Routes { engine, calls, gate: self.gate, health: health.clone(), stopping: stopping.clone() };
        health.set_service_status(SERVICE_NAME, ServingStatus::Serving).await;

        let (unix_sender, unix) = mpsc::channel(1);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(self.unix.accept(unix_sender));
        let mut servers = tokio::task::JoinSet::new();
        servers.spawn(run(routes.router()?, unix, stopping.clone()));
        if let Some(tcp) = self.tcp {
            let (tcp_sender, tcp_connections) = mpsc::channel(1);
            tasks.spawn(tcp.accept(metrics, tcp_sender));
            servers.spawn(run(routes.router()?, tcp_connections, stopping.clone()));
        }
        let ended = tokio::select! {
            () = stop => None,
            ended = servers.join_next() => ended,
        };
        health.set_service_status(SERVICE_NAME, ServingStatus::NotServing).await;
        stop_now.send_replace(true);
        let rest = tokio::time::timeout(STOP_GRACE, all(servers)).await;
        match ended {
            Some(Ok(result)) => Ok(result?),
            _ => Ok(rest.unwrap_or(Ok(()))?),
        }
    }
}

/// Waits for every server; the first error counts.
async fn all(
    mut servers: tokio::task::JoinSet<Result<(), tonic::transport::Error>>,
) -> Result<(), tonic::transport::Error> {
    let mut first = Ok(());
    while let Some(ended) = servers.join_next().await {
        if let (Ok(Err(error)), Ok(())) = (ended, &first) {
            first = Err(error);
        }
    }
    first
}

async fn run<S>(
    router: Router,
    connections: mpsc::Receiver<io::Result<S>>,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let stopped = async move { streams::stopped(&mut stopping).await };
    router.serve_with_incoming_shutdown(ReceiverStream::new(connections), stopped).await
}

/// What every listener serves.
struct Routes {
    engine: Arc<dyn Engine>,
    calls: Calls,
    gate: Gate,
    health: HealthReporter,
    stopping: watch::Receiver<bool>,
}

impl Routes {
    fn router(&self) -> Result<Router, ControlError> {
        let service = Service::new(self.engine.clone(), self.calls.clone(), self.stopping.clone());
        let admin = AdminServer::new(service)
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_ANSWER_BYTES);
        let gate = self.gate.clone();
        let admin = InterceptedService::new(admin, move |request| gate.check(request));
        let health = HealthService::from_health_reporter(self.health.clone());
        let health = tonic_health::pb::health_server::HealthServer::new(health);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tidemark_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(SERVICE_NAME)
            .with_service_name("grpc.health.v1.Health")
            .build_v1()?;
        let mut server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .max_concurrent_streams(MAX_STREAMS);
        Ok(server.add_service(admin).add_service(health).add_service(reflection))
    }
}

/// An accept fails when descriptors or memory are short; trying again at once would only burn the processor.
async fn accept_failed(listener: &str, error: &io::Error) {
    tracing::warn!(listener, %error, "accept failed");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

#[cfg(test)]
mod tests;
