//! TCP: nothing without TLS and a certificate of the right authority.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tidemark_agent::frontend::memory::{Answers, MemoryTarget};
use tidemark_agent::frontend::nbd::{NbdMetrics, Options, SingleExport, TcpSecurity, serve_tcp};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};

use crate::client::{ACK, Client, GO, STARTTLS};
use crate::server::{on_shard, until};

/// An authority with one certificate for everything.
pub struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Pki {
    pub fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("authority");
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("name");
        let certificate = params.signed_by(&key, &authority).expect("certificate");
        Self { authority, certificate, key }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).expect("root");
        Arc::new(roots)
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }

    pub fn server(&self) -> TcpSecurity {
        let verifier = WebPkiClientVerifier::builder(self.roots()).build().expect("verifier");
        let config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.certificate.der().clone()], self.key())
            .expect("server configuration");
        let config = Arc::new(config);
        TcpSecurity::Tls(Rc::new(move || Arc::clone(&config)))
    }

    pub fn client(&self) -> TlsConnector {
        let config = ClientConfig::builder()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(vec![self.certificate.der().clone()], self.key())
            .expect("client configuration");
        Arc::new(config).into()
    }

    fn client_without_certificate(&self) -> TlsConnector {
        Arc::new(ClientConfig::builder().with_root_certificates(self.roots()).with_no_client_auth()).into()
    }

    /// The files that libnbd expects in a directory.
    fn write_files(&self, dir: &Path) {
        let write = |name: &str, text: String| std::fs::write(dir.join(name), text).expect("file");
        write("ca-cert.pem", self.authority.pem());
        write("client-cert.pem", self.certificate.pem());
        write("client-key.pem", self.key.serialize_pem());
    }
}

/// Upgrades a greeted client.
pub async fn start_tls(stream: TcpStream, connector: &TlsConnector) -> std::io::Result<Client<TlsStream<TcpStream>>> {
    let mut client = Client::greet(stream).await;
    assert_eq!(client.option(STARTTLS, b"").await, ACK);
    let name = ServerName::try_from("localhost").expect("name");
    Ok(Client { stream: connector.connect(name, client.stream).await? })
}

struct Tcp {
    port: u16,
    metrics: NbdMetrics,
}

impl Tcp {
    async fn serve(security: TcpSecurity) -> Self {
        let target = Rc::new(MemoryTarget::new(64 << 20, Answers::AtOnce));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let port = listener.local_addr().expect("address").port();
        let options = Options::default();
        let metrics = options.metrics.clone();
        let exports = Rc::new(SingleExport::new("vol", target));
        tokio::task::spawn_local(serve_tcp(listener, exports, security, options));
        Self { port, metrics }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.expect("connection")
    }
}

/// Writes and reads back through whatever the client is.
pub async fn try_io<S: crate::client::Stream>(client: &mut Client<S>) {
    let data: Vec<u8> = (0..300_032).map(|i| (i % 253) as u8).collect();
    client.write(1, 4096, &data).await;
    assert_eq!(client.reply().await, (1, 0));
    client.request(crate::client::READ, 2, 4096, data.len() as u32, &[]).await;
    assert_eq!(client.reply().await, (2, 0));
    assert!(client.data(data.len()).await == data, "what was written is read");
}

#[test]
fn an_insecure_listener_serves_anybody() {
    on_shard(async || {
        let server = Tcp::serve(TcpSecurity::Insecure).await;
        try_io(&mut Client::start(server.connect().await, "vol").await).await;
    });
}

#[test]
fn a_client_with_the_right_certificate_is_served() {
    on_shard(async || {
        let pki = Pki::new();
        let server = Tcp::serve(pki.server()).await;
        let mut client = start_tls(server.connect().await, &pki.client()).await.expect("TLS");
        assert_eq!(client.go("vol").await, ACK);
        try_io(&mut client).await;
    });
}

#[test]
fn plaintext_is_refused() {
    on_shard(async || {
        let server = Tcp::serve(Pki::new().server()).await;
        let mut client = Client::greet(server.connect().await).await;
        assert_eq!(client.option(GO, b"\0\0\0\x03vol\0\0").await, 0x8000_0005);
    });
}

#[test]
fn clients_without_the_right_certificate_are_refused_and_counted() {
    on_shard(async || {
        let (pki, stranger) = (Pki::new(), Pki::new());
        let server = Tcp::serve(pki.server()).await;
        let no_certificate = pki.client_without_certificate();
        let foreign = {
            let config = ClientConfig::builder()
                .with_root_certificates(pki.roots())
                .with_client_auth_cert(vec![stranger.certificate.der().clone()], stranger.key())
                .expect("client configuration");
            TlsConnector::from(Arc::new(config))
        };
        for (count, connector) in [(1, no_certificate), (2, foreign)] {
            // TLS 1.3 tells the client only with its first read.
            if let Ok(mut client) = start_tls(server.connect().await, &connector).await {
                client.closed().await;
            }
            until(|| server.metrics.tls_failures.get() == count).await;
        }
    });
}

#[test]
fn plaintext_between_starttls_and_tls_closes() {
    on_shard(async || {
        let server = Tcp::serve(Pki::new().server()).await;
        let mut client = Client::greet(server.connect().await).await;
        let mut message = Vec::new();
        for option in [STARTTLS, GO] {
            message.extend(b"IHAVEOPT");
            message.extend(option.to_be_bytes());
            message.extend(0u32.to_be_bytes());
        }
        client.stream.write_all(&message).await.expect("both at once");
        until(|| server.metrics.malformed.get() == 1).await;
    });
}

#[test]
fn libnbd_speaks_tls_to_the_server() {
    let dir = TempDir::new().expect("temporary directory");
    let pki = Pki::new();
    pki.write_files(dir.path());
    on_shard(async || {
        let server = Tcp::serve(pki.server()).await;
        let uri = format!("nbds://localhost:{}/vol?tls-certificates={}", server.port, dir.path().display());
        let shown = tokio::task::spawn_blocking(move || {
            Command::new("nbdinfo").arg(uri).output().expect("cannot run nbdinfo (package libnbd-bin)")
        });
        let shown = shown.await.expect("nbdinfo ran");
        let text = String::from_utf8_lossy(&shown.stdout);
        assert!(text.contains("with TLS"), "{text}{}", String::from_utf8_lossy(&shown.stderr));
    });
}
