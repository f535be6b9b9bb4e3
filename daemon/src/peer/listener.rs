//! Accepting connections of peers: handshakes run beside each other, so that a slow or hostile one holds up nobody, and there
//! are never more of them than a named limit.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::transport::{PeerIo, Transport};

/// Handshakes under way per listener; more wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 64;
/// Calls and streams of one connection.
const MAX_STREAMS: u32 = 64;
/// After a failed accept (no descriptors left): how long to wait before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one HTTP/2 stream may have under way: the bandwidth of a fast link times its round trip, and two largest messages.
pub(super) const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// The same for a connection.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Bytes of an HTTP/2 frame's header.
const FRAME_HEADER_BYTES: u32 = 9;
/// Largest HTTP/2 frame with its header: whole TLS records, handed to the kernel in one call. A byte more would be a record and
/// a call of its own.
pub(super) const WRITE_BYTES: u32 = 256 << 10;
/// Largest HTTP/2 frame.
pub(super) const FRAME_BYTES: u32 = WRITE_BYTES - FRAME_HEADER_BYTES;
/// How often an idle or silent connection is probed.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long the answer may take before the connection counts as lost.
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
#[error("peer listener failed: {0}")]
pub struct ServeError(#[from] tonic::transport::Error);

/// An HTTP/2 server as every peer listener has it.
pub(super) fn http2() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// Serves until `shutdown` resolves and all connections are closed.
pub(super) async fn serve(
    router: Router,
    listener: TcpListener,
    transport: Transport,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (sender, receiver) = mpsc::channel(1);
    let accepting = tokio::spawn(accept_all(listener, transport, sender));
    let incoming = ReceiverStream::new(receiver).map(Ok::<_, std::io::Error>);
    let served = router.serve_with_incoming_shutdown(incoming, shutdown).await;
    accepting.abort();
    Ok(served?)
}

async fn accept_all(listener: TcpListener, transport: Transport, accepted: mpsc::Sender<PeerIo>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    // The semaphore is never closed and the listener is gone with the server.
    while let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await {
        let (tcp, remote) = tokio::select! {
            () = accepted.closed() => return,
            connection = accept_one(&listener) => connection,
        };
        tokio::spawn(handshake(transport.clone(), (tcp, remote), accepted.clone(), permit));
    }
}

async fn accept_one(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(connection) => return connection,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of a peer");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handshake(
    transport: Transport,
    (tcp, remote): (TcpStream, SocketAddr),
    accepted: mpsc::Sender<PeerIo>,
    _permit: OwnedSemaphorePermit,
) {
    match transport.accept(tcp, remote).await {
        // The server is shutting down when this fails.
        Ok(io) => drop(accepted.send(io).await),
        Err(error) => tracing::debug!(%remote, %error, "connection refused"),
    }
}
