//! One TCP connection between agents: secured, with a known identity, and with a memory of what TLS had against it.
//!
//! Plain text is possible only when this end was configured so; there is no negotiation, and a plain end and a TLS end refuse
//! each other.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tidemark_core::types::SiteId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tonic::transport::server::Connected;

use super::listener::WRITE_BYTES;
use super::refusal::{PeerRefusal, Refusals};
use super::tls::{PeerIdentity, Tls, TlsError, alert_of, refusal_of, tls_error};

/// A handshake takes a few round trips; longer is a peer that is stuck or hostile.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// After a refusal: how long and how much is still read, so that the alert arrives instead of a reset.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: u64 = 64 << 10;
/// Bytes read from a secured connection at once. The TLS library asks for 4 KiB at a time, which would be a system call each.
const READ_BYTES: usize = 128 << 10;

/// How connections of this agent are secured.
#[derive(Clone, Debug)]
pub struct Transport {
    tls: Option<Arc<Tls>>,
    refusals: Arc<Refusals>,
}

/// Why a TCP connection did not become a connection to a peer.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// We refuse the other end.
    #[error("refused the peer: {0}")]
    Refused(PeerRefusal),
    /// The other end refuses us, as far as it said.
    #[error("the peer refused this agent: {0}")]
    RefusedUs(PeerRefusal),
    /// The connection broke.
    #[error("connection lost in the handshake: {0}")]
    Io(#[source] io::Error),
    /// Our own material is unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Transport {
    /// Mutual TLS.
    pub fn mutual(tls: Arc<Tls>, refusals: Arc<Refusals>) -> Self {
        Self { tls: Some(tls), refusals }
    }

    /// Plain text, for those who said so explicitly.
    pub fn insecure(refusals: Arc<Refusals>) -> Self {
        Self { tls: None, refusals }
    }

    #[cfg(test)]
    pub(super) fn tls_for_tests(&self) -> Arc<Tls> {
        Arc::clone(self.tls.as_ref().expect("a transport with TLS"))
    }

    /// The counters.
    pub fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    /// True while that peer may speak; asked at every call, so that a removed peer does not live on in an old connection.
    pub(super) fn authorise(&self, identity: Option<PeerIdentity>, remote: SocketAddr) -> Result<(), PeerRefusal> {
        match (&self.tls, identity) {
            (None, None) => Ok(()),
            (Some(tls), Some(identity)) if tls.allows(identity) => Ok(()),
            (_, Some(identity)) => Err(self.refuse(PeerRefusal::WrongSite, remote, &identity)),
            (Some(_), None) => Err(self.refuse(PeerRefusal::NoCertificate, remote, &"no identity")),
        }
    }

    /// The same for another agent of this site, which alone may speak of what is between the members of a group.
    pub(super) fn authorise_mate(&self, identity: Option<PeerIdentity>, remote: SocketAddr) -> Result<(), PeerRefusal> {
        self.authorise(identity, remote)?;
        match (&self.tls, identity) {
            (Some(tls), Some(identity)) if identity.site != tls.identity().site => {
                Err(self.refuse(PeerRefusal::WrongSite, remote, &identity))
            }
            _ => Ok(()),
        }
    }

    /// The same for an agent of another site.
    pub(super) fn authorise_peer(&self, identity: Option<PeerIdentity>, remote: SocketAddr) -> Result<(), PeerRefusal> {
        self.authorise(identity, remote)?;
        match (&self.tls, identity) {
            (Some(tls), Some(identity)) if identity.site == tls.identity().site => {
                Err(self.refuse(PeerRefusal::WrongSite, remote, &identity))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn refuse(
        &self,
        refusal: PeerRefusal,
        remote: SocketAddr,
        detail: &dyn std::fmt::Display,
    ) -> PeerRefusal {
        self.refusals.record(refusal, remote, detail);
        refusal
    }

    /// Secures a connection that was accepted.
    pub(super) async fn accept(&self, tcp: TcpStream, remote: SocketAddr) -> Result<PeerIo, HandshakeError> {
        tcp.set_nodelay(true).map_err(HandshakeError::Io)?;
        let Some(tls) = &self.tls else { return Ok(PeerIo::plain(tcp, remote)) };
        let accept = TlsAcceptor::from(tls.server_config()).accept(buffered(tcp)).into_fallible();
        match timeout(HANDSHAKE_TIMEOUT, accept).await {
            Ok(Ok(stream)) => Ok(PeerIo::secured(stream.into(), remote)),
            Ok(Err((error, tcp))) => {
                tokio::spawn(linger(tcp));
                Err(self.failed(error, remote))
            }
            Err(_) => Err(HandshakeError::Refused(self.refuse(PeerRefusal::Timeout, remote, &"handshake"))),
        }
    }

    /// Secures a connection that was dialled. `expected` is the site that should answer.
    pub(super) async fn connect(
        &self,
        tcp: TcpStream,
        remote: SocketAddr,
        expected: Option<SiteId>,
    ) -> Result<PeerIo, HandshakeError> {
        tcp.set_nodelay(true).map_err(HandshakeError::Io)?;
        let Some(tls) = &self.tls else { return Ok(PeerIo::plain(tcp, remote)) };
        let connector = TlsConnector::from(Arc::new(tls.client_config(expected)?));
        // The name is not looked at: the identity is the SAN URI.
        let name = ServerName::IpAddress(remote.ip().into());
        match timeout(HANDSHAKE_TIMEOUT, connector.connect(name, buffered(tcp))).await {
            Ok(Ok(stream)) => Ok(PeerIo::secured(stream.into(), remote)),
            Ok(Err(error)) => Err(self.failed(error, remote)),
            Err(_) => Err(HandshakeError::Refused(self.refuse(PeerRefusal::Timeout, remote, &"handshake"))),
        }
    }

    fn failed(&self, error: io::Error, remote: SocketAddr) -> HandshakeError {
        let Some(tls) = tls_error(&error) else { return HandshakeError::Io(error) };
        let refusal = self.refuse(refusal_of(tls), remote, tls);
        alert_of(&error).map_or(HandshakeError::Refused(refusal), HandshakeError::RefusedUs)
    }
}

fn buffered(tcp: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(READ_BYTES, tcp)
}

/// Closes a refused connection so that the other end can read why: a close with unread input would be a reset.
async fn linger(mut tcp: BufReader<TcpStream>) {
    let drain = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // However it ends, the connection is closed.
    let _ = timeout(LINGER, drain).await;
}

/// What TLS had against this connection after the handshake; with TLS 1.3 a client learns only then that it is refused.
#[derive(Clone, Default, Debug)]
pub(super) struct Fault(Arc<OnceLock<PeerRefusal>>);

impl Fault {
    pub fn refused_us(&self) -> Option<PeerRefusal> {
        self.0.get().copied()
    }

    fn note(&self, error: &io::Error) {
        if let Some(refusal) = alert_of(error) {
            // The first one counts.
            let _ = self.0.set(refusal);
        }
    }
}

/// What a call knows about its connection.
#[derive(Clone, Debug)]
pub(super) struct PeerConnection {
    pub remote: SocketAddr,
    pub identity: Option<PeerIdentity>,
}

/// A connection to a peer.
#[derive(Debug)]
pub(super) struct PeerIo {
    wire: Wire,
    connection: PeerConnection,
    fault: Fault,
}

#[derive(Debug)]
enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
}

impl PeerIo {
    fn plain(tcp: TcpStream, remote: SocketAddr) -> Self {
        let connection = PeerConnection { remote, identity: None };
        Self { wire: Wire::Plain(tcp), connection, fault: Fault::default() }
    }

    fn secured(mut stream: TlsStream<BufReader<TcpStream>>, remote: SocketAddr) -> Self {
        let limit = Some(WRITE_BYTES as usize);
        match &mut stream {
            TlsStream::Client(client) => client.get_mut().1.set_buffer_limit(limit),
            TlsStream::Server(server) => server.get_mut().1.set_buffer_limit(limit),
        }
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let connection = PeerConnection { remote, identity: leaf.and_then(PeerIdentity::of) };
        Self { wire: Wire::Tls(Box::new(stream)), connection, fault: Fault::default() }
    }

    pub fn connection(&self) -> &PeerConnection {
        &self.connection
    }

    pub fn fault(&self) -> Fault {
        self.fault.clone()
    }

    fn noted<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result {
            self.fault.note(error);
        }
        result
    }
}

impl Connected for PeerIo {
    type ConnectInfo = PeerConnection;

    fn connect_info(&self) -> PeerConnection {
        self.connection.clone()
    }
}

/// Calls the same method of whichever stream there is.
macro_rules! on_wire {
    ($self:ident, $stream:ident => $call:expr) => {{
        let result = match &mut $self.wire {
            Wire::Plain(tcp) => {
                let $stream = Pin::new(tcp);
                $call
            }
            Wire::Tls(tls) => {
                let $stream = Pin::new(tls.as_mut());
                $call
            }
        };
        $self.noted(result)
    }};
}

impl AsyncRead for PeerIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for PeerIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_wire!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_wire!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Plain(tcp) => tcp.is_write_vectored(),
            Wire::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, stream => stream.poll_shutdown(cx))
    }
}
