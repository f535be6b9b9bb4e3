//! The whole API over real sockets, in front of a [`FakeEngine`].

use std::path::Path;

use tidemark_core::status::{CopyState, Role, SuspendReason};
use tidemark_proto::admin as wire;
use tidemark_proto::admin::admin_client::AdminClient;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::health_client::HealthClient;

use super::fake::{FakeEngine, PEER, SITE, peer_b};
use super::*;

struct Agent {
    engine: FakeEngine,
    channel: Channel,
    client: AdminClient<Channel>,
    metrics: AdminMetrics,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<Result<(), ControlError>>,
    dir: tempfile::TempDir,
}

fn admin_config(dir: &Path) -> AdminConfig {
    AdminConfig { socket: dir.join("admin.sock"), socket_mode: 0o600, allow_uids: vec![], tcp: None }
}

async fn unix_channel(path: &Path) -> Channel {
    Endpoint::from_shared(format!("unix:{}", path.display())).unwrap().connect().await.unwrap()
}

impl Agent {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = admin_config(dir.path());
        let control = Control::bind(&config, SITE).await.unwrap();
        let (engine, metrics) = (FakeEngine::default(), AdminMetrics::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { drop(stopped.await) };
        let serve = control.serve(Arc::new(engine.clone()), Duration::from_secs(30), metrics.clone(), stopped);
        let served = tokio::spawn(serve);
        let channel = unix_channel(&config.socket).await;
        let client = AdminClient::new(channel.clone());
        Self { engine, channel, client, metrics, stop: Some(stop), served, dir }
    }

    async fn create(&mut self, name: &str) -> Result<wire::Volume, Status> {
        let request = wire::CreateVolumeRequest { name: name.into(), size_bytes: 1 << 20, ..Default::default() };
        self.client.create_volume(request).await.map(tonic::Response::into_inner)
    }

    async fn set(&mut self, name: &str, policy: wire::Policy) -> Result<wire::Volume, Status> {
        let request = wire::SetPolicyRequest { volume: name.into(), policy: Some(policy) };
        self.client.set_policy(request).await.map(tonic::Response::into_inner)
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        self.served.await.unwrap().unwrap();
        assert!(!self.dir.path().join("admin.sock").exists());
    }

    fn metrics_text(&self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }
}

fn reason(status: &Status) -> &str {
    status.metadata().get(REASON_KEY).unwrap().to_str().unwrap()
}

fn refused_field(status: &Status) -> &str {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    status.metadata().get(FIELD_KEY).unwrap().to_str().unwrap()
}

fn by_name(volume: &str) -> wire::GetVolumeRequest {
    wire::GetVolumeRequest { volume: volume.into() }
}

#[tokio::test]
async fn a_volume_lives_through_its_verbs() {
    let mut agent = Agent::start().await;
    let volume = agent.create("pg").await.unwrap();
    assert_eq!((volume.name.as_str(), volume.size_bytes), ("pg", 1 << 20));
    assert_eq!(agent.create("pg").await.unwrap(), volume, "creating again answers with the same volume");
    assert_eq!(agent.client.get_volume(by_name(&volume.id)).await.unwrap().into_inner(), volume);

    let attach = wire::AttachVolumeRequest { volume: "pg".into(), frontend: wire::Frontend::Nbd as i32 };
    let attached = agent.client.attach_volume(attach).await.unwrap().into_inner();
    assert!(attached.attachment.unwrap().nbd_uri.starts_with("nbd+unix:///pg?socket="));
    assert!(attached.volume.unwrap().attachment.is_some());
    let detach = wire::DetachVolumeRequest { volume: "pg".into(), force: false };
    assert_eq!(agent.client.detach_volume(detach).await.unwrap().into_inner().attachment, None);

    let resize = wire::ResizeVolumeRequest { volume: "pg".into(), size_bytes: 2 << 20 };
    assert_eq!(agent.client.resize_volume(resize).await.unwrap().into_inner().size_bytes, 2 << 20);
    let release = wire::ReleaseVolumeRequest { volume: "pg".into() };
    assert_eq!(agent.client.release_volume(release).await.unwrap().into_inner().base_path, "/pool/base.img");
    let delete = wire::DeleteVolumeRequest { volume: "pg".into(), ..Default::default() };
    assert_eq!(agent.client.delete_volume(delete).await.unwrap().into_inner().trash_path, "/pool/.trash/pg");
    let gone = agent.client.get_volume(by_name("pg")).await.unwrap_err();
    assert_eq!((gone.code(), reason(&gone)), (Code::NotFound, "no-volume"));
    assert!(gone.message().contains("no volume pg"), "{gone:?}");
    agent.stop().await;
}

#[tokio::test]
async fn an_adopted_device_keeps_its_path() {
    let mut agent = Agent::start().await;
    let request = wire::AdoptVolumeRequest { name: "disk".into(), path: "/dev/vg/disk".into(), ..Default::default() };
    let volume = agent.client.adopt_volume(request).await.unwrap().into_inner();
    assert_eq!((volume.base_path.as_str(), volume.adopted), ("/dev/vg/disk", true));
    agent.stop().await;
}

#[tokio::test]
async fn another_volume_of_the_same_name_already_exists() {
    let mut agent = Agent::start().await;
    agent.create("pg").await.unwrap();
    let request = wire::CreateVolumeRequest { name: "pg".into(), size_bytes: 4096, ..Default::default() };
    let error = agent.client.create_volume(request).await.unwrap_err();
    assert_eq!((error.code(), reason(&error)), (Code::AlreadyExists, "exists"));
    agent.stop().await;
}

#[tokio::test]
async fn only_the_named_fields_of_a_policy_change() {
    let mut agent = Agent::start().await;
    let before = agent.create("pg").await.unwrap().policy.unwrap();
    let wanted = wire::Policy { retention_ms: Some(5000), ..Default::default() };
    let after = agent.set("pg", wanted).await.unwrap().policy.unwrap();
    assert_eq!(after, wire::Policy { retention_ms: Some(5000), ..before });

    let wanted = wire::Policy { rpo_guard: Some(wire::RpoGuard::Block as i32), ..Default::default() };
    let error = agent.set("pg", wanted).await.unwrap_err();
    assert_eq!(refused_field(&error), "rpoGuard");
    assert!(error.message().contains("rpoGuard: does not act yet"), "{error:?}");

    let wanted = wire::Policy { mode: Some(wire::Mode::Sync as i32), ..Default::default() };
    let error = agent.set("pg", wanted).await.unwrap_err();
    assert_eq!((error.code(), reason(&error)), (Code::FailedPrecondition, "no-peer-site"));
    agent.stop().await;
}

#[tokio::test]
async fn peers_are_added_named_by_volumes_and_removed() {
    let mut agent = Agent::start().await;
    let request = wire::AddPeerRequest { name: "b".into(), address: "b.example:9740".into(), ..Default::default() };
    let peer = agent.client.add_peer(request).await.unwrap().into_inner();
    let health = peer.health.unwrap();
    assert_eq!((health.code.as_str(), health.normal), ("down", false));
    assert_eq!(health.reason, "connection refused");
    assert_eq!(agent.client.list_peers(wire::ListPeersRequest {}).await.unwrap().into_inner().peers.len(), 1);

    let policy =
        wire::Policy { mode: Some(wire::Mode::Sync as i32), peer_site: Some("b".into()), ..Default::default() };
    let request =
        wire::CreateVolumeRequest { name: "pg".into(), size_bytes: 4096, policy: Some(policy), ..Default::default() };
    let volume = agent.client.create_volume(request).await.unwrap().into_inner();
    assert_eq!(volume.peer_name, "b");
    let set = wire::SetPeerRequest { volume: "pg".into(), peer_site: String::new() };
    assert_eq!(agent.client.set_peer(set).await.unwrap().into_inner().peer_name, "");
    let set = wire::SetPeerRequest { volume: "pg".into(), peer_site: "c".into() };
    assert_eq!(agent.client.set_peer(set).await.unwrap_err().code(), Code::NotFound);
    agent.client.remove_peer(wire::RemovePeerRequest { peer: "b".into() }).await.unwrap();
    assert_eq!(agent.client.list_peers(wire::ListPeersRequest {}).await.unwrap().into_inner().peers.len(), 0);
    agent.stop().await;
}

#[tokio::test]
async fn a_promotion_is_refused_with_its_reason_or_answers_with_its_class() {
    let mut agent = Agent::start().await;
    agent.engine.add_peer(peer_b()).await.unwrap();
    agent.create("pg").await.unwrap();
    agent.engine.change("pg", |volume| volume.status.as_mut().unwrap().peer = Some(super::fake::PEER));
    let plain = wire::PromoteRequest { volume: "pg".into(), ..Default::default() };
    let error = agent.client.promote(plain.clone()).await.unwrap_err();
    assert_eq!((error.code(), reason(&error)), (Code::FailedPrecondition, "peer-unproven"));
    assert!(error.message().contains("--assert-peer-fenced"), "{error:?}");

    let asserted = wire::PromoteRequest {
        assert_peer_fenced: true,
        who: "ann".into(),
        reason: "site b burnt down".into(),
        ..plain
    };
    let promoted = agent.client.promote(asserted).await.unwrap().into_inner();
    assert_eq!(promoted.promotion_class, wire::PromotionClass::Lossy as i32);
    assert_eq!((promoted.fork_lsn, promoted.lost_bytes, promoted.lost_ms), (30, 4096, 5));
    let history = promoted.volume.unwrap().status.unwrap().forced_history;
    assert_eq!((history[0].who.as_str(), history[0].why.as_str()), ("ann", "site b burnt down"));
    assert!(history[0].at_ms > 0);
    agent.stop().await;
}

#[tokio::test]
async fn verbs_of_the_copy_answer_with_the_volume_afterwards() {
    let mut agent = Agent::start().await;
    agent.create("pg").await.unwrap();
    let volume = || "pg".to_owned();
    let demoted =
        agent.client.demote(wire::DemoteRequest { volume: volume(), force: true }).await.unwrap().into_inner();
    assert_eq!(demoted.status.unwrap().role.unwrap().code, "secondary");
    let pause = wire::PauseRequest { volume: volume(), ship: false, floor: true };
    let paused = agent.client.pause(pause).await.unwrap().into_inner().status.unwrap();
    assert_eq!((paused.paused, paused.log_full_in_ms), (vec!["floor".to_owned()], Some(90_000)));
    agent.client.resume(wire::ResumeRequest { volume: volume(), ..Default::default() }).await.unwrap();
    agent.client.abort_io(wire::AbortIoRequest { volume: volume() }).await.unwrap();
    agent.client.reseed(wire::ReseedRequest { volume: volume() }).await.unwrap();
    let assertion = Some(wire::Assertion { who: "ann".into(), why: "gone".into(), at_ms: 0 });
    let dropped = agent.client.drop_peer(wire::DropPeerRequest { volume: volume(), assertion }).await.unwrap();
    assert_eq!(dropped.into_inner().status.unwrap().forced_history.len(), 1);
    let branches = agent.client.list_branches(wire::ListBranchesRequest { volume: volume() }).await.unwrap();
    assert_eq!(branches.into_inner().branches[0].branch_class, "unacked");
    agent.stop().await;
}

#[tokio::test]
async fn a_switchover_answers_with_the_pause_or_with_what_would_lift_its_refusal() {
    let mut agent = Agent::start().await;
    agent.create("pg").await.unwrap();
    let request = |to: String| wire::SwitchoverRequest { volume: "pg".into(), to, ..Default::default() };
    let refused = agent.client.switchover(request("c".into())).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.metadata().get("tidemark-reason").unwrap(), "peer-unfit");
    assert!(refused.message().ends_with("; restore the link"), "{refused}");
    let done = agent.client.switchover(request(PEER.to_string())).await.unwrap().into_inner();
    assert_eq!((done.primary_site_id, done.pause_ms), (PEER.to_string(), 321));
    assert_eq!(done.volume.unwrap().status.unwrap().role.unwrap().code, "secondary");
    agent.stop().await;
}

#[tokio::test]
async fn every_state_that_is_not_normal_says_why() {
    let mut agent = Agent::start().await;
    agent.create("pg").await.unwrap();
    agent.engine.change("pg", |volume| {
        let status = volume.status.as_mut().unwrap();
        status.role = Role::Suspended(SuspendReason::Restart);
        status.copy = CopyState::Seeding { done: 10, total: 30, by_difference: false };
    });
    let status = agent.client.get_volume(by_name("pg")).await.unwrap().into_inner().status.unwrap();
    let role = status.role.unwrap();
    assert_eq!((role.code.as_str(), role.normal), ("suspended-restart", false));
    assert!(role.reason.contains("--assert-peer-fenced"), "{role:?}");
    assert_eq!(status.seeding, Some(wire::Progress { done_bytes: 10, total_bytes: 30 }));
    assert_eq!(status.protection.unwrap().reason, "there is no peer");

    agent.engine.change("pg", |volume| volume.status = Err("the superblock is damaged".to_owned()));
    let volume = agent.client.get_volume(by_name("pg")).await.unwrap().into_inner();
    assert_eq!((volume.status, volume.open_error.as_str()), (None, "the superblock is damaged"));
    agent.stop().await;
}

#[tokio::test]
async fn a_watch_shows_changes_until_its_listener_or_the_agent_goes() {
    let mut agent = Agent::start().await;
    agent.create("pg").await.unwrap();
    let request = wire::WatchStatusRequest { volumes: vec!["pg".into()], interval_ms: 100 };
    let mut watch = agent.client.watch_status(request).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.volumes[0].status.as_ref().unwrap().role.as_ref().unwrap().code, "primary");
    agent.engine.change("pg", |volume| volume.status.as_mut().unwrap().role = Role::Secondary);
    loop {
        let next = watch.message().await.unwrap().unwrap();
        if next.volumes[0].status.as_ref().unwrap().role.as_ref().unwrap().code == "secondary" {
            break;
        }
    }
    let engine = agent.engine.clone();
    agent.stop().await;
    let last = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(error) => break error,
        }
    };
    assert_eq!((last.code(), reason(&last)), (Code::Unavailable, "stopping"));
    drop(engine);
}

#[tokio::test]
async fn a_watch_of_an_unknown_volume_ends_with_its_reason() {
    let mut agent = Agent::start().await;
    let request = wire::WatchStatusRequest { volumes: vec!["none".into()], interval_ms: 0 };
    let mut watch = agent.client.watch_status(request).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap_err().code(), Code::NotFound);
    let request = wire::WatchStatusRequest { volumes: vec![], interval_ms: 5 };
    assert_eq!(refused_field(&agent.client.watch_status(request).await.unwrap_err()), "intervalMs");
    agent.stop().await;
}

#[tokio::test]
async fn a_comparison_reports_progress_and_then_its_result() {
    let mut agent = Agent::start().await;
    agent.create("pg").await.unwrap();
    let mut verify = agent.client.verify(wire::VerifyRequest { volume: "pg".into() }).await.unwrap().into_inner();
    let progress = verify.message().await.unwrap().unwrap().event.unwrap();
    let wanted = wire::VerifyProgress { blocks_done: 128, blocks_total: 256 };
    assert_eq!(progress, wire::verify_response::Event::Progress(wanted));
    agent.engine.drained.notify_one();
    let result = verify.message().await.unwrap().unwrap().event.unwrap();
    let differing = vec![wire::ByteRange { offset: 3 * 4096, length: 2 * 4096 }];
    let wanted = wire::VerifyResult { equal: false, blocks: 256, lsn: 40, differing };
    assert_eq!(result, wire::verify_response::Event::Result(wanted));
    assert_eq!(verify.message().await.unwrap(), None);
    agent.stop().await;
}

#[tokio::test]
async fn a_verb_goes_on_after_its_deadline() {
    let mut agent = Agent::start().await;
    agent.create("pg").await.unwrap();
    let mut request = Request::new(wire::DrainRequest { volume: "pg".into() });
    request.set_timeout(Duration::from_millis(200));
    let error = agent.client.drain(request).await.unwrap_err();
    // Client and server watch the same deadline; the client's own timer says "cancelled" when it comes first.
    assert!(matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled), "{error:?}");
    assert_eq!(agent.engine.drains(), 0);
    agent.engine.drained.notify_one();
    while agent.engine.drains() == 0 {
        tokio::task::yield_now().await;
    }
    agent.stop().await;
}

#[tokio::test]
async fn an_oversized_request_is_refused_and_the_connection_stays() {
    let mut agent = Agent::start().await;
    let request = wire::AddPeerRequest { ca_pem: "x".repeat(MAX_REQUEST_BYTES + 1), ..Default::default() };
    let error = agent.client.add_peer(request).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error:?}");
    agent.client.get_version(wire::GetVersionRequest {}).await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn the_agent_describes_itself() {
    let mut agent = Agent::start().await;
    let version = agent.client.get_version(wire::GetVersionRequest {}).await.unwrap().into_inner();
    assert_eq!((version.agent.as_str(), version.api.as_str()), (env!("CARGO_PKG_VERSION"), "v1"));
    let about = agent.client.get_agent(wire::GetAgentRequest {}).await.unwrap().into_inner();
    assert_eq!((about.site_name.as_str(), about.shards.len(), about.pools.len()), ("a", 1, 1));
    let fuse = about.frontends.iter().find(|support| support.frontend == wire::Frontend::Fuse as i32).unwrap();
    assert_eq!((fuse.available, fuse.reason.as_str()), (false, "/dev/fuse is missing"));
    agent.stop().await;
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let agent = Agent::start().await;
    let mut health = HealthClient::new(agent.channel.clone());
    let request = tonic_health::pb::HealthCheckRequest { service: SERVICE_NAME.into() };
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);

    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol(SERVICE_NAME.into())),
    };
    let mut reflection = ServerReflectionClient::new(agent.channel.clone());
    let mut answers = reflection.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    assert!(
        matches!(answer, MessageResponse::FileDescriptorResponse(files) if !files.file_descriptor_proto.is_empty())
    );
    drop(answers);
    agent.stop().await;
}

#[tokio::test]
async fn calls_are_counted_by_verb_and_reason() {
    let mut agent = Agent::start().await;
    agent.create("pg").await.unwrap();
    agent.client.get_volume(by_name("none")).await.unwrap_err();
    let text = agent.metrics_text();
    assert!(text.contains("admin_calls_total{verb=\"CreateVolume\",reason=\"ok\"} 1"), "{text}");
    assert!(text.contains("admin_calls_total{verb=\"GetVolume\",reason=\"no-volume\"} 1"), "{text}");
    agent.stop().await;
}

mod over_tcp {
    use super::*;
    use crate::config::{AdminTcp, TlsFiles};
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
    use tonic::transport::{Certificate, ClientTlsConfig, Identity};

    struct Pki {
        ca: CertifiedIssuer<'static, KeyPair>,
    }

    impl Pki {
        fn new() -> Self {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self { ca: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
        }

        /// Certificate and key in PEM.
        fn issue(&self, uri: &str) -> (String, String) {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
            (params.signed_by(&key, &self.ca).unwrap().pem(), key.serialize_pem())
        }

        fn server_files(&self, dir: &Path) -> TlsFiles {
            let (cert, key) = self.issue(&format!("spiffe://tidemark/site/{SITE}/node/n"));
            let files = TlsFiles { cert: dir.join("n.crt"), key: dir.join("n.key"), ca: dir.join("ca.crt") };
            std::fs::write(&files.cert, cert).unwrap();
            std::fs::write(&files.key, key).unwrap();
            std::fs::write(&files.ca, self.ca.pem()).unwrap();
            files
        }

        async fn version(&self, address: SocketAddr, identity: Option<(String, String)>) -> Result<(), Status> {
            let tls =
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.ca.pem())).domain_name("localhost");
            let tls = match identity {
                Some((cert, key)) => tls.identity(Identity::from_pem(cert, key)),
                None => tls,
            };
            let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
            let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
            AdminClient::new(channel).get_version(wire::GetVersionRequest {}).await.map(drop)
        }
    }

    #[tokio::test]
    async fn only_an_admin_of_this_site_may_speak() {
        // More than one provider may be compiled in by a dependency: the client of this test needs to know which.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (dir, pki, stranger) = (tempfile::tempdir().unwrap(), Pki::new(), Pki::new());
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let tcp = AdminTcp { listen, tls: pki.server_files(dir.path()), allow: vec![] };
        let control = Control::bind(&AdminConfig { tcp: Some(tcp), ..admin_config(dir.path()) }, SITE).await.unwrap();
        let address = control.tcp_address().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let metrics = AdminMetrics::default();
        let engine = Arc::new(FakeEngine::default());
        let stopped = async { drop(stopped.await) };
        let served = tokio::spawn(control.serve(engine, Duration::from_secs(30), metrics, stopped));

        let admin = format!("spiffe://tidemark/site/{SITE}/admin/ann");
        pki.version(address, Some(pki.issue(&admin))).await.unwrap();
        for uri in [
            format!("spiffe://tidemark/site/{SITE}/node/n"),
            format!("spiffe://tidemark/site/{}/admin/ann", super::super::fake::PEER),
        ] {
            let error = pki.version(address, Some(pki.issue(&uri))).await.unwrap_err();
            assert_eq!((error.code(), reason(&error)), (Code::PermissionDenied, "permission"), "{error:?}");
        }
        assert!(pki.version(address, None).await.is_err(), "no certificate, no answer");
        assert!(pki.version(address, Some(stranger.issue(&admin))).await.is_err(), "another authority, no answer");

        // A new authority takes force without a restart.
        let renewed = Pki::new();
        renewed.server_files(dir.path());
        renewed.version(address, Some(renewed.issue(&admin))).await.unwrap();
        assert!(pki.version(address, Some(pki.issue(&admin))).await.is_err());
        drop(stop);
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn files_that_cannot_be_used_are_named_at_start() {
        let (dir, pki) = (tempfile::tempdir().unwrap(), Pki::new());
        let files = pki.server_files(dir.path());
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        std::fs::write(&files.key, "nothing").unwrap();
        let tcp = AdminTcp { listen, tls: files.clone(), allow: vec![] };
        let config = AdminConfig { tcp: Some(tcp), ..admin_config(dir.path()) };
        let error = Control::bind(&config, SITE).await.err().unwrap().to_string();
        assert!(error.contains("n.key"), "{error}");
        let (_, other) = pki.issue("spiffe://x");
        std::fs::write(&files.key, other).unwrap();
        let error = Control::bind(&config, SITE).await.err().unwrap().to_string();
        assert!(error.contains("n.crt"), "{error}");
        assert!(!config.socket.exists());
    }
}
