//! Dialling a peer: one TCP connection per stream or call, each attempt bounded by a deadline.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tidemark_core::types::SiteId;
use tidemark_proto::peer::replication_client::ReplicationClient;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::convert::MAX_ENCODED_BYTES;
use super::listener::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, KEEPALIVE, KEEPALIVE_TIMEOUT, STREAM_WINDOW_BYTES};
use super::refusal::PeerRefusal;
use super::stream::{Inbound, Outbound, PeerStream, Requests, StreamEnd, end_of_status};
use super::transport::{Fault, HandshakeError, PeerConnection, PeerIo, Transport};

/// How long one attempt may take, from the name to the peer's first answer.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What requests are addressed to; the connection is made before and nobody looks at it.
const AUTHORITY: &str = "http://peer.tidemark";

/// Where a peer is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerAddress {
    /// Host name or IP address.
    pub host: String,
    /// Port of the control listener.
    pub port: u16,
    /// The site that must answer there; `None` until it is known.
    pub site: Option<SiteId>,
}

/// Why a peer could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host name has no address.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody listens, or the network does not lead there.
    #[error("cannot connect to {remote}: {source}")]
    Tcp {
        /// The last address tried.
        remote: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Nothing happened in time.
    #[error("no answer from {host}:{port} within {CONNECT_TIMEOUT:?}")]
    Timeout {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// TLS failed on the way.
    #[error("cannot secure the connection to {remote}: {source}")]
    Handshake {
        /// The address.
        remote: SocketAddr,
        /// Why.
        source: HandshakeError,
    },
    /// TLS stood, but the peer refused us or the connection broke.
    #[error("{remote} did not open the stream: {end}")]
    Stream {
        /// The address.
        remote: SocketAddr,
        /// What it said.
        end: StreamEnd,
    },
}

impl ConnectError {
    /// The named reason when one end refused the other.
    pub fn refusal(&self) -> Option<PeerRefusal> {
        match self {
            Self::Handshake {
                source: HandshakeError::Refused(refusal) | HandshakeError::RefusedUs(refusal), ..
            }
            | Self::Stream { end: StreamEnd::Refused(refusal) | StreamEnd::RefusedUs(refusal), .. } => Some(*refusal),
            _ => None,
        }
    }
}

/// An HTTP/2 connection to a peer.
pub(super) struct Dialled {
    pub channel: Channel,
    pub connection: PeerConnection,
    pub fault: Fault,
}

/// Opens the stream of a volume on the data listener at `data_port`. The first message to send is Hello.
///
/// # Errors
/// Any [`ConnectError`].
pub async fn connect_stream(
    peer: &PeerAddress,
    data_port: u16,
    transport: &Transport,
) -> Result<PeerStream, ConnectError> {
    within_deadline(peer, data_port, open_stream(peer, data_port, transport)).await
}

async fn open_stream(peer: &PeerAddress, port: u16, transport: &Transport) -> Result<PeerStream, ConnectError> {
    let Dialled { channel, connection, fault } = dial(peer, port, transport).await?;
    let (outbound, queue) = Outbound::pair();
    let mut client = ReplicationClient::new(channel.clone())
        .max_decoding_message_size(MAX_ENCODED_BYTES)
        .max_encoding_message_size(MAX_ENCODED_BYTES);
    let PeerConnection { remote, identity } = connection;
    let answer = client.stream(Requests(queue)).await;
    let answer = answer.map_err(|status| ConnectError::Stream { remote, end: end_of_status(&status, &fault) })?;
    let inbound = Inbound::of_client(answer.into_inner(), connection, transport.clone(), fault, channel);
    Ok(PeerStream { identity, remote, inbound, outbound })
}

/// Bounds an attempt.
pub(super) async fn within_deadline<T>(
    peer: &PeerAddress,
    port: u16,
    attempt: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let late = |_| ConnectError::Timeout { host: peer.host.clone(), port };
    timeout(CONNECT_TIMEOUT, attempt).await.map_err(late)?
}

/// Connects to any port of a peer. Not bounded by itself.
pub(super) async fn dial(peer: &PeerAddress, port: u16, transport: &Transport) -> Result<Dialled, ConnectError> {
    let (tcp, remote) = connect_tcp(&peer.host, port).await?;
    let io = transport.connect(tcp, remote, peer.site).await;
    let io = io.map_err(|source| ConnectError::Handshake { remote, source })?;
    let (connection, fault) = (io.connection().clone(), io.fault());
    let channel = http2_over(io).await.map_err(|error| {
        let end = fault.refused_us().map_or_else(|| lost(&error), StreamEnd::RefusedUs);
        ConnectError::Stream { remote, end }
    })?;
    Ok(Dialled { channel, connection, fault })
}

async fn connect_tcp(host: &str, port: u16) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let failed = |source| ConnectError::Resolve { host: host.to_owned(), source };
    let mut last = failed(io::Error::from(io::ErrorKind::NotFound));
    for remote in tokio::net::lookup_host((host, port)).await.map_err(failed)? {
        match TcpStream::connect(remote).await {
            Ok(tcp) => return Ok((tcp, remote)),
            Err(source) => last = ConnectError::Tcp { remote, source },
        }
    }
    Err(last)
}

/// HTTP/2 on a connection that stands. There is no reconnecting underneath: a lost connection ends its streams, and the owner
/// of the stream decides when to dial again.
async fn http2_over(io: PeerIo) -> Result<Channel, tonic::transport::Error> {
    let mut io = Some(io);
    let once = service_fn(move |_| {
        let io = io.take().map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset));
        std::future::ready(io)
    });
    Endpoint::from_static(AUTHORITY)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(once)
        .await
}

fn lost(error: &dyn std::error::Error) -> StreamEnd {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    StreamEnd::Lost(text)
}
