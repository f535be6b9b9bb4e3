//! Listeners: accept, negotiate within a deadline, then serve on this thread or hand over to the volume's.
//!
//! Runs on a current-thread tokio runtime with timers. A listener owns its connections: dropping its future
//! ends them. A client that misbehaves costs its own connection and a count.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::rustls::ServerConfig;

use super::conn::Connection;
use super::error::{BindError, ConnectionError};
use super::export::{Export, ExportResolver};
use super::handover::HandOver;
use super::handshake::Negotiated;
use super::meta::Contexts;
use super::metrics::NbdMetrics;
use super::negotiate::{Ready, negotiate};
use super::unix::{UnixSocket, hung_up};
use super::wire::{Socket, Wire};
use crate::disk::Pool;
use crate::frontend::BlockTarget;
use crate::here;

/// How long a client may take from its connection to the first request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of one listener: each may hold 32 MiB of data. Clients with multi-conn open four to sixteen.
const MAX_CONNECTIONS: usize = 64;
/// Pause after a failed accept (no file descriptors left, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A TCP client that has been silent for so long is asked whether it is still there,
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// again after this,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// and given up after so many times.
const KEEPALIVE_RETRIES: u32 = 3;
/// Longest path of a unix socket, its final zero excluded.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// What a listener allows.
#[derive(Clone)]
pub struct Options {
    /// Connections open at once; further ones are closed at once.
    pub max_connections: usize,
    /// How long the handshake may take.
    pub handshake_timeout: Duration,
    /// Where the data of WRITEs goes: the shard's pool.
    pub pool: Pool,
    /// Where to count.
    pub metrics: NbdMetrics,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_connections: MAX_CONNECTIONS,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            pool: Pool::new(),
            metrics: NbdMetrics::default(),
        }
    }
}

/// How a TCP listener keeps strangers out.
#[derive(Clone)]
pub enum TcpSecurity {
    /// Nothing before STARTTLS; the configuration must demand a client certificate. Asked for at each connection, so that
    /// renewed certificates are taken.
    Tls(Rc<dyn Fn() -> Arc<ServerConfig>>),
    /// Anybody who can connect is served: only by an explicit wish of the operator.
    Insecure,
}

impl TcpSecurity {
    fn tls(&self) -> Option<Arc<ServerConfig>> {
        match self {
            Self::Tls(config) => Some(config()),
            Self::Insecure => None,
        }
    }
}

/// The path of a volume's socket in the agent's run directory.
///
/// # Errors
/// The name is not a plain file name, or the path is too long for a socket.
pub fn socket_path(run_dir: &Path, volume: &str) -> Result<PathBuf, BindError> {
    let plain = !volume.is_empty() && !volume.starts_with('.') && !volume.contains(['/', '\0']);
    let path = run_dir.join("nbd").join(format!("{volume}.sock"));
    let fits = path.as_os_str().len() <= MAX_SOCKET_PATH_BYTES;
    if plain && fits { Ok(path) } else { Err(BindError::Name(volume.to_owned())) }
}

/// Listens on a unix socket, in place of one that a dead process left behind. The directory above is made.
///
/// # Errors
/// Another process serves the socket, or the system refuses.
pub fn bind_unix(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(BindError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    UnixListener::bind(path).map_err(failed)
}

/// Serves a unix socket until dropped. To be spawned with [`here::spawn`] on the thread of the volumes it serves.
pub async fn serve_unix(listener: UnixListener, exports: Rc<dyn ExportResolver>, options: Options) {
    let service = Rc::new(Service { exports, security: TcpSecurity::Insecure, options });
    let accept = async || {
        let (stream, _) = listener.accept().await?;
        Ok(Wire::Unix(UnixSocket::new(stream.into_std()?)?))
    };
    service.accept_from(accept).await;
}

/// Serves a TCP listener until dropped. To be spawned with [`here::spawn`]; volumes of other threads are handed over to them.
pub async fn serve_tcp(
    listener: TcpListener,
    exports: Rc<dyn ExportResolver>,
    security: TcpSecurity,
    options: Options,
) {
    let service = Rc::new(Service { exports, security, options });
    let accept = async || {
        let (stream, _) = listener.accept().await?;
        // It fails for a client that is gone already: its connection ends by itself, and is no fault of the listener.
        if let Err(error) = prepare_tcp(&stream) {
            tracing::debug!(%error, "NBD client left at once");
        }
        Ok(Wire::Tcp(Socket::Live(stream)))
    };
    service.accept_from(accept).await;
}

/// Replies are never held back to be joined, and a client whose host died gives its place back though idle ones are kept.
fn prepare_tcp(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Serves a connection that another thread accepted. To be spawned with [`here::spawn`] on the volume's thread; of the options
/// only the pool and the metrics matter here.
pub async fn serve_handed_over(connection: HandOver, target: Rc<dyn BlockTarget>, options: Options) {
    let HandOver { stream, negotiated, leftover, permit: _permit } = connection;
    let _open = OpenGuard::new(&options.metrics);
    let served = async {
        let ready = Ready { wire: stream.resume()?, negotiated, leftover };
        Connection::new(ready, target, &options).run().await
    };
    note_end(&options.metrics, served.await);
}

/// Serves a unix socket that is in the transmission phase from its first byte: there is no handshake, and replies are simple
/// ones. To be spawned with [`here::spawn`] on the volume's thread. When the client is gone `over` is told; this ends once the
/// volume has answered everything that was under way by then.
pub async fn serve_transmission(
    stream: std::os::unix::net::UnixStream,
    target: Rc<dyn BlockTarget>,
    options: Options,
    over: impl FnOnce(),
) {
    let _open = OpenGuard::new(&options.metrics);
    options.metrics.accepted.inc();
    let watched = stream.try_clone().and_then(|twin| Ok((twin, UnixSocket::new(stream)?)));
    let (twin, wire) = match watched {
        Ok((twin, socket)) => (twin, Wire::Unix(socket)),
        Err(error) => {
            over();
            return note_end(&options.metrics, Err(error.into()));
        }
    };
    let negotiated = Negotiated { export: String::new(), structured: false, contexts: Contexts::default() };
    let mut connection = Connection::new(Ready { wire, negotiated, leftover: Vec::new() }, target, &options);
    let under_way = connection.outbox();
    // A connection whose requests find no room is not read, and would not notice its end.
    let end = tokio::select! {
        end = connection.serve() => end,
        gone = hung_up(twin) => gone.map_err(Into::into),
    };
    drop(connection);
    over();
    note_end(&options.metrics, end);
    under_way.settled().await;
}

/// What the connections of one listener share.
struct Service {
    exports: Rc<dyn ExportResolver>,
    security: TcpSecurity,
    options: Options,
}

impl Service {
    async fn accept_from<F: Future<Output = io::Result<Wire>>>(self: Rc<Self>, accept: impl Fn() -> F) {
        let permits = Arc::new(Semaphore::new(self.options.max_connections));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = accept() => match accepted {
                    Ok(wire) => self.admit(wire, &permits, &mut connections),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept NBD connections");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = connections.join_next() => resume_panic(ended),
            }
        }
    }

    fn admit(self: &Rc<Self>, wire: Wire, permits: &Arc<Semaphore>, connections: &mut JoinSet<()>) {
        let metrics = &self.options.metrics;
        metrics.accepted.inc();
        match permits.clone().try_acquire_owned() {
            Ok(permit) => {
                connections.spawn(here::bound(self.clone().serve(wire, permit)));
            }
            Err(_) => {
                metrics.turned_away.inc();
            }
        }
    }

    async fn serve(self: Rc<Self>, wire: Wire, permit: OwnedSemaphorePermit) {
        let _open = OpenGuard::new(&self.options.metrics);
        note_end(&self.options.metrics, self.run(wire, permit).await);
    }

    async fn run(&self, wire: Wire, permit: OwnedSemaphorePermit) -> Result<(), ConnectionError> {
        let negotiated = negotiate(wire, self.exports.as_ref(), self.security.tls());
        let negotiated = tokio::time::timeout(self.options.handshake_timeout, negotiated).await;
        let Some(ready) = negotiated.map_err(|_| ConnectionError::HandshakeTimeout)?? else { return Ok(()) };
        self.start(ready, permit).await
    }

    async fn start(&self, ready: Ready, permit: OwnedSemaphorePermit) -> Result<(), ConnectionError> {
        match self.exports.resolve(&ready.negotiated.export) {
            None => Err(ConnectionError::Gone(ready.negotiated.export)),
            Some(Export::Here { name, target }) => {
                tracing::debug!(export = name, "NBD connection starts");
                Connection::new(ready, target, &self.options).run().await
            }
            Some(Export::Elsewhere { send, .. }) => {
                let Ready { wire, negotiated, leftover } = ready;
                send(HandOver { stream: wire.park()?, negotiated, leftover, permit });
                Ok(())
            }
        }
    }
}

/// Counts a connection as open while it lives.
struct OpenGuard(NbdMetrics);

impl OpenGuard {
    fn new(metrics: &NbdMetrics) -> Self {
        metrics.open.inc();
        Self(metrics.clone())
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.dec();
    }
}

/// Counts and logs the end of a connection. A broken stream is what a client that dies looks like: not worth a line.
fn note_end(metrics: &NbdMetrics, end: Result<(), ConnectionError>) {
    let Err(error) = end else { return };
    match &error {
        ConnectionError::Io(_) => return tracing::debug!(%error, "NBD connection ended"),
        ConnectionError::Protocol(_) => metrics.malformed.inc(),
        ConnectionError::HandshakeTimeout => metrics.handshake_timeouts.inc(),
        ConnectionError::Tls(_) => metrics.tls_failures.inc(),
        ConnectionError::Gone(_) => 0,
    };
    tracing::info!(%error, "NBD connection refused");
}

/// A connection that panicked is a bug of ours: it stops the shard.
fn resume_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}
