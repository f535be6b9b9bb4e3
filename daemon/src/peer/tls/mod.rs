//! Mutual TLS 1.3 between agents: own certificate, trusted authorities, reloading.
//!
//! Invariants: both ends present a certificate; it is judged at every handshake (no resumption, which would skip that); what
//! was loaded last and whole stays in force when a reload fails; a private key is never logged.

mod files;
mod identity;
mod trust;

pub use identity::PeerIdentity;
pub(super) use trust::{alert_of, refusal_of, tls_error};

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use tidemark_core::types::{NodeId, SiteId};

use files::{OwnCertificate, Stamps};
use trust::{Dialled, Dialling, TrustSet};

/// How often the files are looked at for a change.
pub const POLL_FILES: Duration = Duration::from_secs(5);
/// The one application protocol.
const ALPN: &[u8] = b"h2";

/// The files of this agent's own certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnFiles {
    /// Chain, leaf first, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// Whom one peer's authorities may vouch for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerTrust {
    /// The peer's site; `None` until it is known: any site but our own.
    pub site: Option<SiteId>,
    /// Files of its authorities, PEM, each one or more certificates.
    pub ca: Vec<PathBuf>,
}

/// Why TLS material cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is larger than any such file may be.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes allowed.
        limit: u64,
    },
    /// A file does not hold what it should.
    #[error("{} holds no usable {expected}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The own certificate names no single node.
    #[error("{} has no single SAN URI spiffe://tidemark/site/.../node/...", path.display())]
    NoIdentity {
        /// The file.
        path: PathBuf,
    },
    /// The own certificate is another's.
    #[error("{} belongs to {found}, but this agent is {wanted}", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// Who it speaks for.
        found: PeerIdentity,
        /// Who this agent is.
        wanted: PeerIdentity,
    },
    /// The TLS library refuses the material.
    #[error("unusable TLS material: {0}")]
    Tls(#[from] rustls::Error),
    /// The TLS library refuses the authorities.
    #[error("unusable authorities: {0}")]
    Authorities(#[from] rustls::server::VerifierBuilderError),
}

/// The TLS material of the agent, shared by all its listeners and diallers.
#[derive(Debug)]
pub struct Tls {
    files: OwnFiles,
    /// Who this agent is: a certificate for anybody else is refused at load.
    identity: PeerIdentity,
    provider: Arc<CryptoProvider>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    peers: Vec<PeerTrust>,
    mates: BTreeSet<NodeId>,
    stamps: Stamps,
    current: Arc<Material>,
}

/// One consistent reading of all files.
#[derive(Debug)]
struct Material {
    own: OwnCertificate,
    trust: Arc<TrustSet>,
    server: Arc<ServerConfig>,
}

/// Whom an agent's own certificate names.
///
/// # Errors
/// Any [`TlsError`].
pub fn certified(files: &OwnFiles) -> Result<PeerIdentity, TlsError> {
    OwnCertificate::read(files).map(|own| own.identity)
}

impl Tls {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// Any [`TlsError`].
    pub fn load(identity: PeerIdentity, files: OwnFiles, peers: Vec<PeerTrust>) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(provider());
        let (current, stamps) = read_all(identity, &files, (&peers, BTreeSet::new()), &provider)?;
        let state = RwLock::new(State { peers, mates: BTreeSet::new(), stamps, current });
        Ok(Arc::new(Self { files, identity, provider, state }))
    }

    /// Who this agent is.
    pub fn identity(&self) -> PeerIdentity {
        self.identity
    }

    /// When the own certificate expires, seconds since 1970.
    pub fn expires_at(&self) -> i64 {
        self.current().own.not_after
    }

    /// Replaces the set of peers. Connections of a peer that is gone fail at their next call.
    ///
    /// # Errors
    /// Any [`TlsError`]; the old set then stays.
    pub fn set_peers(&self, peers: Vec<PeerTrust>) -> Result<(), TlsError> {
        let mates = self.state.read().unwrap_or_else(PoisonError::into_inner).mates.clone();
        self.accept(peers, mates)
    }

    /// The same with the other nodes of the own site that may speak; their authority is that of the own site in `peers`.
    ///
    /// # Errors
    /// Any [`TlsError`]; the old set then stays.
    pub fn accept(&self, peers: Vec<PeerTrust>, mates: BTreeSet<NodeId>) -> Result<(), TlsError> {
        let (current, stamps) = read_all(self.identity, &self.files, (&peers, mates.clone()), &self.provider)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State { peers, mates, stamps, current };
        Ok(())
    }

    /// Reads everything again when a file changed since the last attempt. True when something new is in force.
    ///
    /// # Errors
    /// Any [`TlsError`]; the old material then stays, and the same files are not tried again until they change.
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        let peers = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let stamps = Stamps::take(&self.files, &state.peers);
            if stamps == state.stamps {
                return Ok(false);
            }
            state.stamps = stamps;
            state.peers.clone()
        };
        self.set_peers(peers).map(|()| true)
    }

    /// Polls the files for ever; run it as one task of the control runtime.
    pub async fn watch_files(self: Arc<Self>) {
        loop {
            tokio::time::sleep(POLL_FILES).await;
            match self.reload_if_changed() {
                Ok(true) => tracing::info!(expires_at = self.expires_at(), "peer certificates reloaded"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "changed peer certificates are unusable; the old ones stay in force")
                }
            }
        }
    }

    /// True while a peer with that identity may speak.
    pub(super) fn allows(&self, identity: PeerIdentity) -> bool {
        self.current().trust.allows(identity)
    }

    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current().server)
    }

    /// For one dial to `expected`.
    pub(super) fn client_config(&self, expected: Option<SiteId>) -> Result<ClientConfig, TlsError> {
        let current = self.current();
        let verifier = Arc::new(Dialled { trust: Arc::clone(&current.trust), expected });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(current.own.chain.clone(), current.own.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(config)
    }

    fn current(&self) -> Arc<Material> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner).current)
    }
}

/// ring with the suites of TLS 1.3, the cheapest first: every host that matters has AES instructions.
fn provider() -> CryptoProvider {
    use ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    let cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    CryptoProvider { cipher_suites, ..ring::default_provider() }
}

fn read_all(
    identity: PeerIdentity,
    files: &OwnFiles,
    (peers, mates): (&[PeerTrust], BTreeSet<NodeId>),
    provider: &Arc<CryptoProvider>,
) -> Result<(Arc<Material>, Stamps), TlsError> {
    // Stamps first: a file that changes while it is read looks changed at the next poll.
    let stamps = Stamps::take(files, peers);
    let own = OwnCertificate::read(files)?;
    if own.identity != identity {
        return Err(TlsError::NotOurs { path: files.cert.clone(), found: own.identity, wanted: identity });
    }
    let roots =
        peers.iter().map(|peer| Ok((peer.site, files::read_roots(&peer.ca)?))).collect::<Result<_, TlsError>>()?;
    let trust = Arc::new(TrustSet::new(identity, mates, roots, provider)?);
    let server = server_config(&own, &trust, provider)?;
    Ok((Arc::new(Material { own, trust, server }), stamps))
}

fn server_config(
    own: &OwnCertificate,
    trust: &Arc<TrustSet>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Dialling(Arc::clone(trust))))
        .with_single_cert(own.chain.clone(), own.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
