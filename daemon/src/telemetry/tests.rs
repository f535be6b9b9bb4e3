//! Scrapes as Prometheus sees them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tidemark_core::config::Policy;
use tidemark_core::status::{CopyState, Role, SuspendReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

use super::*;
use crate::control::fake::{FakeEngine, name, peer_b};
use crate::control::{NewVolume, Origin, PeerKey, PolicyPatch};
use crate::peer::PeerRefusal;

async fn engine() -> FakeEngine {
    let engine = FakeEngine::default();
    engine.add_peer(peer_b()).await.unwrap();
    let volume = NewVolume {
        group: None,
        name: name("pg"),
        origin: Origin::Empty { size: 1 << 20, base: None },
        policy: PolicyPatch::default(),
        peer: Some(PeerKey::Name(name("b"))),
        pool: None,
        members: None,
    };
    engine.create_volume(volume).await.unwrap();
    engine
}

/// Samples by `name{labels}`; panics on what is no exposition text.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families = std::collections::BTreeSet::new();
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            if let Some(family) = comment.strip_prefix("TYPE ") {
                assert!(families.insert(family.split(' ').next().unwrap().to_owned()), "twice: {line}");
            }
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        assert!(sample.starts_with("tidemark_"), "{line}");
        assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
    }
    samples
}

async fn scrape(telemetry: &Telemetry, engine: &FakeEngine) -> BTreeMap<String, f64> {
    let engine: Arc<dyn Engine> = Arc::new(engine.clone());
    parse(&telemetry.scrape(&engine).await.unwrap())
}

#[tokio::test]
async fn a_scrape_mirrors_the_status_of_every_volume() {
    let (telemetry, engine) = (Telemetry::new(), engine().await);
    let samples = scrape(&telemetry, &engine).await;
    let is = |sample: &str, value: f64| assert_eq!(samples.get(sample), Some(&value), "{sample} in {samples:#?}");
    is("tidemark_volume_size_bytes{volume=\"pg\"}", f64::from(1 << 20));
    is("tidemark_volume_rpo_seconds{volume=\"pg\"}", 1.5);
    is("tidemark_volume_backlog_bytes{volume=\"pg\"}", 4096.0);
    is("tidemark_volume_floor_lsn{volume=\"pg\"}", 10.0);
    is("tidemark_volume_protected{volume=\"pg\"}", 0.0);
    is("tidemark_volume_log_limit_bytes{volume=\"pg\"}", Policy::default().log_bytes as f64);
    is("tidemark_volume_writes_total{volume=\"pg\"}", 5.0);
    is("tidemark_volume_role{volume=\"pg\",state=\"primary\"}", 1.0);
    is("tidemark_volume_role{volume=\"pg\",state=\"secondary\"}", 0.0);
    is("tidemark_volume_link{volume=\"pg\",state=\"disconnected\"}", 1.0);
    is("tidemark_pool_free_bytes{pool=\"main\"}", 50.0);
    is("tidemark_peer_up{peer=\"b\"}", 0.0);
    is("tidemark_peer_rtt_seconds{peer=\"b\"}", 0.00025);
    is("tidemark_peer_last_heard_seconds{peer=\"b\"}", 1.2);
    is(&format!("tidemark_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0);
    assert!(samples.keys().any(|key| key.starts_with("tidemark_agent_info{site=\"a\"")));
}

#[tokio::test]
async fn states_change_with_the_volume_and_one_that_cannot_open_says_so() {
    let (telemetry, engine) = (Telemetry::new(), engine().await);
    engine.change("pg", |volume| {
        let status = volume.status.as_mut().unwrap();
        status.role = Role::Suspended(SuspendReason::LogFull);
        status.copy = CopyState::Seeding { done: 3, total: 9, by_difference: false };
    });
    let samples = scrape(&telemetry, &engine).await;
    assert_eq!(samples["tidemark_volume_role{volume=\"pg\",state=\"suspended-log-full\"}"], 1.0);
    assert_eq!(samples["tidemark_volume_seeding_done_bytes{volume=\"pg\"}"], 3.0);
    assert_eq!(samples["tidemark_volume_seeding_bytes{volume=\"pg\"}"], 9.0);
    engine.change("pg", |volume| volume.status = Err("damaged".to_owned()));
    let samples = scrape(&telemetry, &engine).await;
    assert_eq!(samples["tidemark_volume_open{volume=\"pg\"}"], 0.0);
    assert!(!samples.contains_key("tidemark_volume_rpo_seconds{volume=\"pg\"}"));
}

#[tokio::test]
async fn what_components_count_is_in_the_scrape() {
    let (telemetry, engine) = (Telemetry::new(), engine().await);
    telemetry.admin.call("Promote", "peer-unproven");
    telemetry.peers.refused(PeerRefusal::WrongSite);
    telemetry.disk.ended(DiskVerb::Sync, DiskFile::Log, Duration::from_millis(3));
    telemetry.nbd.open.set(2);
    let samples = scrape(&telemetry, &engine).await;
    assert_eq!(samples["tidemark_admin_calls_total{verb=\"Promote\",reason=\"peer-unproven\"}"], 1.0);
    assert_eq!(samples["tidemark_peer_refusals_total{reason=\"wrong_site\"}"], 1.0);
    assert_eq!(samples["tidemark_peer_refusals_total{reason=\"expired\"}"], 0.0);
    assert_eq!(samples["tidemark_nbd_connections"], 2.0);
    assert_eq!(samples["tidemark_disk_op_seconds_count{op=\"sync\",file=\"log\"}"], 1.0);
    let bucket =
        |le: &str| samples[&format!("tidemark_disk_op_seconds_bucket{{le=\"{le}\",op=\"sync\",file=\"log\"}}")];
    assert_eq!((bucket("0.002048"), bucket("0.004096")), (0.0, 1.0));
}

async fn page(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn pages_answer_until_the_stop() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let pages = Pages::new(listener);
    let (ready, is_ready) = watch::channel(false);
    let (stop, stopped) = oneshot::channel::<()>();
    let engine: Arc<dyn Engine> = Arc::new(engine().await);
    let stopped = async { drop(stopped.await) };
    let served = tokio::spawn(pages.serve(Arc::new(Telemetry::new()), engine, is_ready, stopped));

    assert!(page(address, "/readyz").await.starts_with("HTTP/1.1 503"));
    ready.send_replace(true);
    assert!(page(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(page(address, "/healthz").await.ends_with("ok\n"));
    assert!(page(address, "/none").await.starts_with("HTTP/1.1 404"));
    let metrics = page(address, "/metrics").await;
    assert!(metrics.contains("content-type: application/openmetrics-text"), "{metrics}");
    assert!(metrics.contains("tidemark_volume_open{volume=\"pg\"} 1"), "{metrics}");
    // A client that says nothing does not hold up the stop.
    let _silent = TcpStream::connect(address).await.unwrap();
    drop(stop);
    served.await.unwrap().unwrap();
}
