//! Who may speak, and how streams begin and end: over real sockets with real certificates.

use std::fs;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tidemark_core::ship::{Append, MAX_MESSAGE_BYTES, Message};
use tidemark_core::types::*;
use tidemark_proto::peer::{Envelope, envelope::Body};

use super::testing::*;
use super::*;

fn append(lsn: u64, bytes: usize) -> Message {
    let header = Bytes::copy_from_slice(&lsn.to_le_bytes());
    Message::Append(Append {
        epoch: Epoch { major: 1, minor: 0 },
        header,
        payload: vec![vec![lsn as u8; bytes].into()],
        sync: false,
    })
}

/// The reason that the client reads, and the one that the server counts.
async fn refused(server: &Server, client: &Transport) -> (PeerRefusal, PeerRefusal) {
    let error = server.dial(client).await.expect_err("the peer must be refused");
    let read = error.refusal().unwrap_or_else(|| panic!("no reason in: {error}"));
    // The server's side may finish later than the client's.
    for _ in 0..1000 {
        if let Some(counted) = counted(&server.transport) {
            return (read, counted);
        }
        tokio::task::yield_now().await;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("the server counted nothing; the client read {read}");
}

fn counted(transport: &Transport) -> Option<PeerRefusal> {
    PeerRefusal::ALL.into_iter().find(|refusal| transport.refusals().count(*refusal) > 0)
}

#[tokio::test]
async fn a_good_peer_is_accepted_and_each_end_knows_the_other() {
    let pair = Pair::new();
    let mut server = Server::start(pair.transport_b()).await;
    let mut ours = server.dial(&pair.transport_a()).await.unwrap();
    assert_eq!(ours.identity, Some(node_of(SITE_B)));
    ours.outbound.send(hello(node_of(SITE_A))).unwrap();
    ours.outbound.send(append(1, 4096)).unwrap();
    let mut theirs = server.next().await;
    assert_eq!(theirs.identity, Some(node_of(SITE_A)));
    assert_eq!(theirs.inbound.recv().await, Ok(hello(node_of(SITE_A))));
    assert_eq!(theirs.inbound.recv().await, Ok(append(1, 4096)));
    theirs.outbound.send(hello(node_of(SITE_B))).unwrap();
    assert_eq!(ours.inbound.recv().await, Ok(hello(node_of(SITE_B))));
    assert_eq!(counted(&server.transport), None);
}

#[tokio::test]
async fn a_peer_of_an_unknown_authority_is_refused() {
    let (pair, other) = (Pair::new(), Site::new("other"));
    let server = Server::start(pair.transport_b()).await;
    let client = other.transport(node_of(SITE_A), VALID, vec![pair.b.trust(SITE_B)]);
    assert_eq!(refused(&server, &client).await, (PeerRefusal::UnknownCa, PeerRefusal::UnknownCa));
}

#[tokio::test]
async fn a_peer_whose_authority_has_the_same_name_as_a_known_one_is_refused() {
    let (pair, other) = (Pair::new(), Site::new("A"));
    let server = Server::start(pair.transport_b()).await;
    let client = other.transport(node_of(SITE_A), VALID, vec![pair.b.trust(SITE_B)]);
    assert_eq!(refused(&server, &client).await, (PeerRefusal::UnknownCa, PeerRefusal::UnknownCa));
}

#[tokio::test]
async fn a_known_authority_cannot_vouch_for_another_site() {
    let pair = Pair::new();
    let server = Server::start(pair.transport_b()).await;
    let client = pair.a.transport(node_of(SITE_C), VALID, vec![pair.b.trust(SITE_B)]);
    assert_eq!(refused(&server, &client).await, (PeerRefusal::WrongSite, PeerRefusal::WrongSite));
}

#[tokio::test]
async fn one_peers_authority_cannot_vouch_for_another_peer() {
    let (pair, c) = (Pair::new(), Site::new("C"));
    let trusts = vec![pair.a.trust(SITE_A), c.trust(SITE_C)];
    let server = Server::start(pair.b.transport(node_of(SITE_B), VALID, trusts)).await;
    let client = c.transport(node_of(SITE_A), VALID, vec![pair.b.trust(SITE_B)]);
    assert_eq!(refused(&server, &client).await, (PeerRefusal::WrongSite, PeerRefusal::WrongSite));
}

#[tokio::test]
async fn a_peer_that_claims_our_own_site_is_refused() {
    let pair = Pair::new();
    let any = PeerTrust { site: None, ca: vec![pair.a.ca()] };
    let server = Server::start(pair.b.transport(node_of(SITE_B), VALID, vec![any])).await;
    let client = pair.a.transport(
        PeerIdentity { site: SITE_B, node: NodeId([9; 16]) },
        VALID,
        vec![PeerTrust { site: None, ca: vec![pair.b.ca()] }],
    );
    let error = server.dial(&client).await.expect_err("refused");
    assert_eq!(error.refusal(), Some(PeerRefusal::WrongSite));
}

#[tokio::test]
async fn an_expired_peer_is_refused() {
    let pair = Pair::new();
    let server = Server::start(pair.transport_b()).await;
    let client = pair.a.transport(node_of(SITE_A), EXPIRED, vec![pair.b.trust(SITE_B)]);
    assert_eq!(refused(&server, &client).await, (PeerRefusal::Expired, PeerRefusal::Expired));
}

#[tokio::test]
async fn a_peer_from_the_future_is_refused() {
    let pair = Pair::new();
    let server = Server::start(pair.transport_b()).await;
    let client = pair.a.transport(node_of(SITE_A), NOT_YET, vec![pair.b.trust(SITE_B)]);
    let (read, counted) = refused(&server, &client).await;
    // The alert for both is the same one.
    assert_eq!((read, counted), (PeerRefusal::Expired, PeerRefusal::NotYetValid));
}

#[tokio::test]
async fn a_certificate_that_names_no_single_node_is_refused() {
    let pair = Pair::new();
    let server = Server::start(pair.transport_b()).await;
    let node = node_of(SITE_A).to_string();
    let admin = format!("spiffe://tidemark/site/{SITE_A}/admin/root");
    for uris in [vec![], vec![admin], vec![node.clone(), node]] {
        // Loaded as the own one it is refused already, so the client presents it behind a good one's back.
        let (good, bad) = (node_of(SITE_A), pair.a.issue("bad", &uris, VALID));
        assert!(matches!(Tls::load(good, bad.clone(), vec![]), Err(TlsError::NoIdentity { .. })));
        assert_eq!(raw_client(&server, &pair, Some(&bad)).await, "BadCertificate");
    }
    assert_eq!(server.transport.refusals().count(PeerRefusal::Malformed), 3);
}

#[tokio::test]
async fn a_peer_without_a_certificate_is_refused() {
    let pair = Pair::new();
    let server = Server::start(pair.transport_b()).await;
    assert_eq!(raw_client(&server, &pair, None).await, "CertificateRequired");
    assert_eq!(server.transport.refusals().count(PeerRefusal::NoCertificate), 1);
}

/// A client that any program could be: presents what it likes and returns the alert that it gets.
async fn raw_client(server: &Server, pair: &Pair, files: Option<&OwnFiles>) -> String {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    let trusting = pair.transport_a();
    let verifier = trusting.tls_for_tests().client_config(Some(SITE_B)).unwrap();
    // Only the verifier of a good client is kept.
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(verifier.crypto_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(Arc::clone(verifier.crypto_provider()))));
    let config = match files {
        None => builder.with_no_client_auth(),
        Some(files) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&files.cert).unwrap()],
                PrivateKeyDer::from_pem_file(&files.key).unwrap(),
            )
            .unwrap(),
    };
    let address = server.address;
    let read = tokio::task::spawn_blocking(move || {
        let name = ServerName::IpAddress(address.ip().into());
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut tcp = std::net::TcpStream::connect(address).unwrap();
        rustls::Stream::new(&mut connection, &mut tcp).read(&mut [0; 16])
    });
    let error = read.await.unwrap().expect_err("refused");
    match tls::tls_error(&error) {
        Some(rustls::Error::AlertReceived(alert)) => format!("{alert:?}"),
        other => panic!("{other:?} in {error}"),
    }
}

#[derive(Debug)]
struct AnyServer(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!()
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn plain_text_to_a_tls_listener_is_refused() {
    let pair = Pair::new();
    let server = Server::start(pair.transport_b()).await;
    assert!(server.dial(&Transport::insecure(Arc::default())).await.is_err());
    assert_eq!(counted(&server.transport), Some(PeerRefusal::Plaintext));
}

#[tokio::test]
async fn tls_to_a_plain_listener_is_refused() {
    let pair = Pair::new();
    let server = Server::start(Transport::insecure(Arc::default())).await;
    let error = server.dial(&pair.transport_a()).await.expect_err("refused");
    assert!(matches!(error.refusal(), Some(PeerRefusal::Plaintext)), "{error}");
}

#[tokio::test]
async fn plain_text_works_when_both_ends_are_configured_so() {
    let mut server = Server::start(Transport::insecure(Arc::default())).await;
    let ours = server.dial(&Transport::insecure(Arc::default())).await.unwrap();
    ours.outbound.send(hello(node_of(SITE_A))).unwrap();
    let mut theirs = server.next().await;
    assert_eq!(theirs.identity, None);
    assert_eq!(theirs.inbound.recv().await, Ok(hello(node_of(SITE_A))));
}

#[tokio::test]
async fn the_dialler_refuses_a_listener_of_another_site_an_unknown_authority_or_an_expired_one() {
    let (pair, other) = (Pair::new(), Site::new("other"));
    let trust = vec![pair.a.trust(SITE_A)];
    let cases = [
        (pair.b.transport(node_of(SITE_C), VALID, trust.clone()), PeerRefusal::WrongSite),
        (other.transport(node_of(SITE_B), VALID, trust.clone()), PeerRefusal::UnknownCa),
        (pair.b.transport(node_of(SITE_B), EXPIRED, trust), PeerRefusal::Expired),
    ];
    for (listening, reason) in cases {
        let (server, client) = (Server::start(listening).await, pair.transport_a());
        let error = server.dial(&client).await.expect_err("refused");
        assert_eq!((error.refusal(), counted(&client)), (Some(reason), Some(reason)), "{error}");
    }
}

#[tokio::test]
async fn the_dialler_refuses_a_known_peer_that_answers_at_anothers_address() {
    let (pair, c) = (Pair::new(), Site::new("C"));
    let server = Server::start(pair.transport_b()).await;
    let client = pair.a.transport(node_of(SITE_A), VALID, vec![pair.b.trust(SITE_B), c.trust(SITE_C)]);
    let error = connect_stream(&server.peer(Some(SITE_C)), server.address.port(), &client).await.expect_err("refused");
    assert_eq!(error.refusal(), Some(PeerRefusal::WrongSite));
}

#[tokio::test]
async fn hello_cannot_claim_another_identity_than_the_certificate() {
    let pair = Pair::new();
    let server = Server::start(pair.transport_b()).await;
    let mut ours = server.dial(&pair.transport_a()).await.unwrap();
    ours.outbound.send(hello(node_of(SITE_C))).unwrap();
    assert_eq!(ours.inbound.recv().await, Err(StreamEnd::RefusedUs(PeerRefusal::WrongSite)));
    assert_eq!(counted(&server.transport), Some(PeerRefusal::WrongSite));
}

#[tokio::test]
async fn a_stream_must_begin_with_hello() {
    let pair = Pair::new();
    let server = Server::start(pair.transport_b()).await;
    let mut ours = server.dial(&pair.transport_a()).await.unwrap();
    ours.outbound.send(append(1, 4096)).unwrap();
    let end = ours.inbound.recv().await.expect_err("refused");
    assert!(end.to_string().contains("did not say hello"), "{end}");
}

#[tokio::test]
async fn a_removed_peer_is_refused_at_its_next_call_and_a_new_one_is_let_in() {
    let pair = Pair::new();
    let mut server = Server::start(pair.b.transport(node_of(SITE_B), VALID, vec![])).await;
    let client = pair.transport_a();
    assert_eq!(server.dial(&client).await.expect_err("unknown").refusal(), Some(PeerRefusal::UnknownCa));
    let tls = server.transport.tls_for_tests();
    tls.set_peers(vec![pair.a.trust(SITE_A)]).unwrap();
    let ours = server.dial(&client).await.unwrap();
    ours.outbound.send(hello(node_of(SITE_A))).unwrap();
    let _theirs = server.next().await;
    tls.set_peers(vec![]).unwrap();
    assert!(server.transport.authorise(Some(node_of(SITE_A)), server.address).is_err());
}

#[test]
fn changed_files_are_loaded_and_unusable_ones_leave_the_old_in_force() {
    let pair = Pair::new();
    let files = pair.a.issue("node", &[node_of(SITE_A).to_string()], 2000..3000);
    let tls = Tls::load(node_of(SITE_A), files.clone(), vec![pair.b.trust(SITE_B)]).unwrap();
    let before = tls.expires_at();
    assert!(!tls.reload_if_changed().unwrap());
    pair.a.issue("node", &[node_of(SITE_A).to_string()], VALID);
    assert!(tls.reload_if_changed().unwrap());
    let after = tls.expires_at();
    assert!(after > before);
    fs::write(&files.cert, "not a certificate").unwrap();
    assert!(matches!(tls.reload_if_changed(), Err(TlsError::Malformed { .. })));
    assert_eq!(tls.expires_at(), after);
    assert!(!tls.reload_if_changed().unwrap(), "the same bad files are not tried again");
    // A key that does not fit the certificate, as between the two writes of a renewal.
    pair.a.issue("node", &[node_of(SITE_A).to_string()], VALID);
    let other = pair.a.issue("other", &[node_of(SITE_A).to_string()], VALID);
    fs::copy(&other.key, &files.key).unwrap();
    assert!(matches!(tls.reload_if_changed(), Err(TlsError::Tls(_))));
    assert_eq!(tls.expires_at(), after);
}

#[test]
fn unusable_material_is_named_at_load() {
    let pair = Pair::new();
    let good = pair.a.issue("node", &[node_of(SITE_A).to_string()], VALID);
    let load = |files: OwnFiles, peers| Tls::load(node_of(SITE_A), files, peers).unwrap_err();
    let missing = OwnFiles { key: "/nonexistent".into(), ..good.clone() };
    assert!(matches!(load(missing, vec![]), TlsError::Read { .. }));
    let others = pair.a.issue("c", &[node_of(SITE_C).to_string()], VALID);
    assert!(matches!(load(others, vec![]), TlsError::NotOurs { .. }));
    let empty = pair.a.dir.path().join("empty.pem");
    fs::File::create(&empty).unwrap();
    let trust = PeerTrust { site: Some(SITE_B), ca: vec![empty.clone()] };
    assert!(matches!(load(good.clone(), vec![trust.clone()]), TlsError::Malformed { .. }));
    fs::File::create(&empty).unwrap().write_all(&vec![b'x'; 2 << 20]).unwrap();
    assert!(matches!(load(good, vec![trust]), TlsError::TooLarge { .. }));
}

#[tokio::test]
async fn messages_that_are_ready_arrive_together_in_order() {
    let pair = Pair::new();
    let mut server = Server::start(pair.transport_b()).await;
    let ours = server.dial(&pair.transport_a()).await.unwrap();
    ours.outbound.send(hello(node_of(SITE_A))).unwrap();
    let mut theirs = server.next().await;
    theirs.inbound.recv().await.unwrap();
    for lsn in 1..=100 {
        ours.outbound.send(append(lsn, 4096)).unwrap();
    }
    let (mut got, mut wakes) = (Vec::new(), 0);
    while got.len() < 100 {
        assert!(theirs.inbound.recv_many(&mut got, 64).await.unwrap() <= 64);
        wakes += 1;
    }
    assert_eq!(got, (1..=100).map(|lsn| append(lsn, 4096)).collect::<Vec<_>>());
    assert!(wakes < 50, "{wakes} wake-ups for 100 messages");
    assert_eq!(ours.outbound.queued_bytes(), 0);
}

#[tokio::test]
async fn the_largest_message_passes_and_a_larger_one_ends_the_stream() {
    let pair = Pair::new();
    let mut server = Server::start(pair.transport_b()).await;
    let ours = server.dial(&pair.transport_a()).await.unwrap();
    ours.outbound.send(hello(node_of(SITE_A))).unwrap();
    let mut theirs = server.next().await;
    theirs.inbound.recv().await.unwrap();
    ours.outbound.send(append(1, MAX_MESSAGE_BYTES)).unwrap();
    assert_eq!(theirs.inbound.recv().await, Ok(append(1, MAX_MESSAGE_BYTES)));
    ours.outbound.send(append(2, MAX_MESSAGE_BYTES + (1 << 20))).unwrap();
    assert!(theirs.inbound.recv().await.is_err());
}

#[tokio::test]
async fn an_oversized_message_of_a_hostile_peer_is_refused_before_it_is_read() {
    use tidemark_proto::peer::replication_client::ReplicationClient;
    let mut server = Server::start(Transport::insecure(Arc::default())).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let mut client = ReplicationClient::new(channel.connect().await.unwrap());
    let hello = convert::to_wire(hello(node_of(SITE_A)));
    let append = tidemark_proto::peer::Append { payload: vec![vec![0; 16 << 20].into()], ..Default::default() };
    let huge = Envelope { body: Some(Body::Append(append)) };
    let requests = tokio_stream::iter([hello, huge]);
    let mut answers = client.stream(requests).await.unwrap().into_inner();
    let mut theirs = server.next().await;
    theirs.inbound.recv().await.unwrap();
    assert_eq!(theirs.inbound.recv().await, Err(StreamEnd::TooLarge));
    assert_eq!(theirs.inbound.recv().await, Err(StreamEnd::TooLarge), "and stays so");
    assert_eq!(answers.message().await.unwrap_err().code(), tonic::Code::ResourceExhausted);
}

#[tokio::test]
async fn a_malformed_message_ends_the_stream_with_its_name() {
    use tidemark_proto::peer::replication_client::ReplicationClient;
    let mut server = Server::start(Transport::insecure(Arc::default())).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let mut client = ReplicationClient::new(channel.connect().await.unwrap());
    let requests = tokio_stream::iter([convert::to_wire(hello(node_of(SITE_A))), Envelope { body: None }]);
    let mut answers = client.stream(requests).await.unwrap().into_inner();
    let mut theirs = server.next().await;
    theirs.inbound.recv().await.unwrap();
    assert_eq!(theirs.inbound.recv().await, Err(StreamEnd::Malformed(convert::Malformed::UnknownKind)));
    let status = answers.message().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("unknown kind"), "{status}");
}

#[tokio::test]
async fn a_refused_stream_tells_why_and_a_dropped_one_closes() {
    let pair = Pair::new();
    let mut server = Server::start(pair.transport_b()).await;
    let client = pair.transport_a();
    let mut ours = server.dial(&client).await.unwrap();
    ours.outbound.send(hello(node_of(SITE_A))).unwrap();
    server.next().await.refuse(&StreamEnd::NoVolume);
    assert_eq!(ours.inbound.recv().await, Err(StreamEnd::NoVolume));

    let mut ours = server.dial(&client).await.unwrap();
    ours.outbound.send(hello(node_of(SITE_A))).unwrap();
    let theirs = server.next().await;
    theirs.outbound.send(append(1, 4096)).unwrap();
    drop(theirs.outbound);
    assert_eq!(ours.inbound.recv().await, Ok(append(1, 4096)), "what was sent before arrives");
    assert_eq!(ours.inbound.recv().await, Err(StreamEnd::Closed));

    let ours = server.dial(&client).await.unwrap();
    ours.outbound.send(hello(node_of(SITE_A))).unwrap();
    let mut theirs = server.next().await;
    theirs.inbound.recv().await.unwrap();
    drop(ours);
    assert!(theirs.inbound.recv().await.is_err());
}

#[tokio::test]
async fn the_sending_queue_has_a_limit() {
    let pair = Pair::new();
    let server = Server::start(pair.transport_b()).await;
    let ours = server.dial(&pair.transport_a()).await.unwrap();
    // Nothing is polled in between, so nothing leaves.
    let sent = (0..).take_while(|lsn| ours.outbound.send(append(*lsn, 1 << 20)).is_ok()).count();
    assert_eq!(sent, 63);
    assert_eq!(ours.outbound.send(append(0, 1 << 20)), Err(SendError::Full));
    assert!(ours.outbound.queued_bytes() <= MAX_QUEUED_BYTES);
}

#[tokio::test]
async fn nobody_listening_and_an_unknown_name_are_told_apart() {
    let transport = Transport::insecure(Arc::default());
    let nowhere = |host: &str| PeerAddress { host: host.to_owned(), port: 1, site: None };
    assert!(matches!(connect_stream(&nowhere("127.0.0.1"), 1, &transport).await, Err(ConnectError::Tcp { .. })));
    assert!(matches!(
        connect_stream(&nowhere("no such host.invalid"), 1, &transport).await,
        Err(ConnectError::Resolve { .. })
    ));
}

#[tokio::test]
async fn every_refusal_is_reported_to_the_callback() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let refusals = Refusals::new(Box::new(|refusal| {
        assert_eq!(refusal.name(), "plaintext");
        CALLS.fetch_add(1, Ordering::Relaxed);
    }));
    let pair = Pair::new();
    let files = pair.b.issue("node", &[node_of(SITE_B).to_string()], VALID);
    let tls = Tls::load(node_of(SITE_B), files, vec![pair.a.trust(SITE_A)]).unwrap();
    let server = Server::start(Transport::mutual(tls, Arc::new(refusals))).await;
    for _ in 0..3 {
        assert!(server.dial(&Transport::insecure(Arc::default())).await.is_err());
    }
    assert_eq!(CALLS.load(Ordering::Relaxed), 3);
}
