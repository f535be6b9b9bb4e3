//! Sites with real certificates, for the tests of this module.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use tempfile::TempDir;
use tidemark_core::config::{Config, Mode, Since};
use tidemark_core::ship::{Hello, Message};
use tidemark_core::types::*;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;

pub const SITE_A: SiteId = SiteId([0xa; 16]);
pub const SITE_B: SiteId = SiteId([0xb; 16]);
pub const SITE_C: SiteId = SiteId([0xc; 16]);
pub const VOLUME: VolumeId = VolumeId([7; 16]);

/// The years in which a certificate is valid.
pub type Years = std::ops::Range<i32>;
pub const VALID: Years = 2000..4000;
pub const EXPIRED: Years = 2000..2001;
pub const NOT_YET: Years = 3000..4000;

pub fn node_of(site: SiteId) -> PeerIdentity {
    PeerIdentity { site, node: NodeId([site.0[0] | 0xf0; 16]) }
}

/// A directory with the CA of a site.
pub struct Site {
    pub dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Site {
    pub fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Issues a certificate with these URIs.
    pub fn issue(&self, file: &str, uris: &[String], years: Years) -> OwnFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(years.start, 1, 1);
        params.not_after = date_time_ymd(years.end, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |suffix| self.dir.path().join(format!("{file}.{suffix}"));
        fs::write(path("crt"), certificate.pem()).unwrap();
        fs::write(path("key"), key.serialize_pem()).unwrap();
        OwnFiles { cert: path("crt"), key: path("key") }
    }

    /// A transport of `node` with a fresh certificate of this site, trusting `peers`.
    pub fn transport(&self, node: PeerIdentity, years: Years, peers: Vec<PeerTrust>) -> Transport {
        let files = self.issue(&node.node.to_string(), &[node.to_string()], years);
        Transport::mutual(Tls::load(node, files, peers).unwrap(), Arc::default())
    }

    pub fn trust(&self, site: SiteId) -> PeerTrust {
        PeerTrust { site: Some(site), ca: vec![self.ca()] }
    }
}

/// Two sites that trust each other.
pub struct Pair {
    pub a: Site,
    pub b: Site,
}

impl Pair {
    pub fn new() -> Self {
        Self { a: Site::new("A"), b: Site::new("B") }
    }

    pub fn transport_a(&self) -> Transport {
        self.a.transport(node_of(SITE_A), VALID, vec![self.b.trust(SITE_B)])
    }

    pub fn transport_b(&self) -> Transport {
        self.b.transport(node_of(SITE_B), VALID, vec![self.a.trust(SITE_A)])
    }
}

/// Hands accepted streams to the test.
pub struct Handover(pub mpsc::UnboundedSender<(VolumeId, PeerStream)>);

impl StreamAcceptor for Handover {
    fn accept(&self, volume: VolumeId, stream: PeerStream) {
        self.0.send((volume, stream)).unwrap();
    }
}

/// A data listener of site B on a free port.
pub struct Server {
    pub address: SocketAddr,
    pub transport: Transport,
    pub accepted: mpsc::UnboundedReceiver<(VolumeId, PeerStream)>,
}

impl Server {
    pub async fn start(transport: Transport) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, accepted) = mpsc::unbounded_channel();
        let serve = serve_data(listener, transport.clone(), Arc::new(Handover(sender)), std::future::pending());
        tokio::spawn(serve);
        Self { address, transport, accepted }
    }

    /// How `client` gets there when it expects site B.
    pub async fn dial(&self, client: &Transport) -> Result<PeerStream, ConnectError> {
        connect_stream(&self.peer(Some(SITE_B)), self.address.port(), client).await
    }

    pub fn peer(&self, site: Option<SiteId>) -> PeerAddress {
        PeerAddress { host: "127.0.0.1".to_owned(), port: self.address.port(), site }
    }

    pub async fn next(&mut self) -> PeerStream {
        let (volume, stream) = self.accepted.recv().await.unwrap();
        assert_eq!(volume, VOLUME);
        stream
    }
}

pub fn hello(from: PeerIdentity) -> Message {
    let config = Config {
        epoch: Epoch { major: 1, minor: 0 },
        nonce: Nonce([1; 16]),
        proposer: from.node,
        since: Since::default(),
        base: Since::default(),
        primary: None,
        leader: from.node,
        lease_gen: 0,
        member_rev: 0,
        sites: vec![SITE_A],
        mode: Mode::Sync,
        generation: GenId([2; 16]),
        forced: false,
        hands_over: false,
    };
    Message::Hello(Box::new(Hello {
        version: 1,
        features: 0,
        volume: VOLUME,
        site: from.site,
        node: from.node,
        boot: BootId([3; 16]),
        layout: tidemark_core::layout::Layout::one(VOLUME, 1 << 30),
        config,
        is_primary: false,
        needs_seed: false,
        is_suspect: false,
        history: vec![],
        floor: Boundary::default(),
        tail: Boundary::default(),
        remembered: None,
        difference: None,
    }))
}
