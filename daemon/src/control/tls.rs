//! The TCP listener: mutual TLS 1.3 or nothing, and certificates that are read again when their files change.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::ControlError;
use super::connection::{Guarded, MAX_CONNECTIONS};
use crate::config::TlsFiles;
use crate::lock::lock;
use crate::telemetry::AdminMetrics;

/// A handshake that takes longer is ended: nobody holds a place by saying nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there or no PEM.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The files do not fit together.
    #[error("{}: {why}", path.display())]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
}

/// A server's TLS, as its files are now.
pub struct TlsSource {
    files: TlsFiles,
    /// The application protocols that are spoken; none: nothing is asked.
    protocols: &'static [&'static [u8]],
    current: Mutex<Loaded>,
}

struct Loaded {
    changed: [Option<SystemTime>; 3],
    config: Arc<ServerConfig>,
}

impl TlsSource {
    /// Reads the files; later changes are taken when the next connection comes.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn load(files: &TlsFiles, protocols: &'static [&'static [u8]]) -> Result<Self, TlsError> {
        let loaded = Loaded { changed: changed(files), config: server_config(files, protocols)? };
        Ok(Self { files: files.clone(), protocols, current: Mutex::new(loaded) })
    }

    /// For the next connection. Files that cannot be used leave what was there in force.
    pub fn config(&self) -> Arc<ServerConfig> {
        let mut current = lock(&self.current);
        let changed = changed(&self.files);
        if changed != current.changed {
            current.changed = changed;
            match server_config(&self.files, self.protocols) {
                Ok(config) => current.config = config,
                Err(error) => tracing::warn!(%error, "changed certificates cannot be used; the old ones stay in force"),
            }
        }
        Arc::clone(&current.config)
    }
}

fn changed(files: &TlsFiles) -> [Option<SystemTime>; 3] {
    [&files.cert, &files.key, &files.ca].map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
}

fn server_config(files: &TlsFiles, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
    let unusable =
        |error: &dyn std::fmt::Display| TlsError::Unusable { path: files.cert.clone(), why: error.to_string() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in certificates(&files.ca)? {
        roots.add(authority).map_err(|error| TlsError::File { path: files.ca.clone(), why: error.to_string() })?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = verifier.build().map_err(|error| unusable(&error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| TlsError::File { path: files.key.clone(), why: error.to_string() })?;
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.map_err(|error| unusable(&error))?.with_client_cert_verifier(verifier);
    let mut config = builder.with_single_cert(certificates(&files.cert)?, key).map_err(|error| unusable(&error))?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |why: String| TlsError::File { path: path.to_owned(), why };
    let list = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match list {
        Ok(list) if list.is_empty() => Err(failed("holds no certificate".to_owned())),
        other => other.map_err(|error| failed(error.to_string())),
    }
}

/// A bound TCP listener with its TLS.
pub(super) struct TlsSocket {
    listener: TcpListener,
    source: Arc<TlsSource>,
}

type Connection = io::Result<Guarded<TlsStream<TcpStream>>>;

impl TlsSocket {
    /// Binds `address` after the files of `files` proved usable.
    pub async fn bind(address: SocketAddr, files: &TlsFiles) -> Result<Self, ControlError> {
        let source = Arc::new(TlsSource::load(files, &[b"h2"])?);
        let listener = TcpListener::bind(address).await.map_err(|source| ControlError::Listen { address, source })?;
        Ok(Self { listener, source })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts until nobody takes the connections any more; handshakes run beside each other.
    pub async fn accept(self, metrics: AdminMetrics, connections: mpsc::Sender<Connection>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = connections.closed() => return,
            };
            match accepted {
                Ok((stream, from)) => {
                    let handshake = Handshake { from, place, metrics: metrics.clone() };
                    tokio::spawn(handshake.run(stream, TlsAcceptor::from(self.source.config()), connections.clone()));
                }
                Err(error) => super::accept_failed("admin listener", &error).await,
            }
        }
    }
}

struct Handshake {
    from: SocketAddr,
    place: OwnedSemaphorePermit,
    metrics: AdminMetrics,
}

impl Handshake {
    async fn run(self, stream: TcpStream, acceptor: TlsAcceptor, connections: mpsc::Sender<Connection>) {
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            // Nobody takes it: the server stops.
            Ok(Ok(stream)) => drop(connections.send(Ok(Guarded::new(stream, self.place))).await),
            Ok(Err(error)) => self.failed(&error),
            Err(timeout) => self.failed(&timeout),
        }
    }

    fn failed(&self, error: &dyn std::fmt::Display) {
        self.metrics.tls_failed();
        tracing::info!(from = %self.from, %error, "admin connection refused: TLS handshake failed");
    }
}
