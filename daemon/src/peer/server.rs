//! The data listener of a shard: hands the streams of peers to whoever owns the volumes.
//!
//! Runs on the shard's own runtime; so do the connections and the streams, and no message crosses a thread.

use std::future::Future;
use std::sync::Arc;

use tidemark_core::types::VolumeId;
use tidemark_proto::peer::Envelope;
use tidemark_proto::peer::replication_server::{Replication, ReplicationServer};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming};

use super::convert::MAX_ENCODED_BYTES;
use super::listener::{self, ServeError};
use super::stream::{Answers, Inbound, Outbound, PeerStream, refused_status};
use super::transport::{PeerConnection, Transport};

/// Takes the streams that peers open.
pub trait StreamAcceptor: Send + Sync + 'static {
    /// A peer opened a stream for `volume`; its Hello is the first message that `stream` gives. Called on the runtime of the
    /// listener. A stream that is not wanted is refused by [`PeerStream::refuse`], with
    /// [`StreamEnd::NoVolume`](super::StreamEnd::NoVolume) for instance.
    fn accept(&self, volume: VolumeId, stream: PeerStream);
}

/// Serves the streams of peers on `listener` until `shutdown` resolves and all streams have ended: the acceptor ends them.
///
/// # Errors
/// When serving fails as a whole; what is wrong with one connection ends that one.
pub async fn serve_data(
    listener: TcpListener,
    transport: Transport,
    acceptor: Arc<dyn StreamAcceptor>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let service = DataService { transport: transport.clone(), acceptor };
    let service = ReplicationServer::new(service)
        .max_decoding_message_size(MAX_ENCODED_BYTES)
        .max_encoding_message_size(MAX_ENCODED_BYTES);
    listener::serve(listener::http2().add_service(service), listener, transport, shutdown).await
}

struct DataService {
    transport: Transport,
    acceptor: Arc<dyn StreamAcceptor>,
}

#[tonic::async_trait]
impl Replication for DataService {
    type StreamStream = Answers;

    async fn stream(&self, request: Request<Streaming<Envelope>>) -> Result<Response<Answers>, Status> {
        let connection = authorised(&request, &self.transport)?;
        let (outbound, queue) = Outbound::pair();
        let inbound = Inbound::of_server(request.into_inner(), connection.clone(), self.transport.clone(), &outbound);
        let PeerConnection { remote, identity } = connection;
        let stream = PeerStream { identity, remote, inbound, outbound };
        // The answer's headers go out at once: the peer waits for them before it says anything.
        tokio::spawn(introduce(stream, Arc::clone(&self.acceptor)));
        Ok(Response::new(Answers(queue)))
    }
}

async fn introduce(mut stream: PeerStream, acceptor: Arc<dyn StreamAcceptor>) {
    match stream.inbound.await_hello().await {
        Ok(volume) => acceptor.accept(volume, stream),
        Err(end) => {
            tracing::debug!(remote = %stream.remote, %end, "stream ended before it began");
            stream.refuse(&end);
        }
    }
}

/// The connection of a call, when its peer may speak now.
pub(super) fn authorised<T>(request: &Request<T>, transport: &Transport) -> Result<PeerConnection, Status> {
    let connection = connection_of(request)?;
    transport.authorise_peer(connection.identity, connection.remote).map_err(refused_status)?;
    Ok(connection)
}

/// The same, when it is another agent of this site.
pub(super) fn authorised_mate<T>(request: &Request<T>, transport: &Transport) -> Result<PeerConnection, Status> {
    let connection = connection_of(request)?;
    transport.authorise_mate(connection.identity, connection.remote).map_err(refused_status)?;
    Ok(connection)
}

fn connection_of<T>(request: &Request<T>) -> Result<PeerConnection, Status> {
    let connection = request.extensions().get::<PeerConnection>();
    connection.cloned().ok_or_else(|| Status::internal("a call without a connection"))
}
