//! The control listener: calls, their refusals, and heartbeats over real sockets.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tidemark_core::config::{Config, Mode, Policy, Since};
use tidemark_core::layout::Layout;
use tidemark_core::types::*;
use tokio::net::TcpListener;

use super::control::*;
use super::testing::*;
use super::*;

struct Handler {
    heartbeats: Heartbeats,
    asked: Mutex<Vec<(Option<SiteId>, NewReplica)>>,
}

/// A size that the handler has no room for.
const FULL: u64 = 512;

impl ControlHandler for Handler {
    fn locate(&self, volume: VolumeId) -> Option<u16> {
        (volume == VOLUME).then_some(4711)
    }

    fn create_replica(&self, site: Option<SiteId>, replica: NewReplica) -> ControlAnswer<u16> {
        let answer = if replica.layout.size() == FULL { Err("the pool is full".to_owned()) } else { Ok(4711) };
        self.asked.lock().unwrap().push((site, replica));
        Box::pin(std::future::ready(answer))
    }

    fn heartbeats(&self) -> Option<Heartbeats> {
        Some(self.heartbeats.clone())
    }

    fn describe(&self) -> Option<PeerDescription> {
        Some(description(SITE_B))
    }
}

fn description(site: SiteId) -> PeerDescription {
    PeerDescription {
        identity: node_of(site),
        site_name: "b".to_owned(),
        boot: BootId([1; 16]),
        product_version: "0.1.0".to_owned(),
        version: 1,
        features: 5,
        addresses: vec!["b.example:9740".to_owned()],
        shards: 2,
    }
}

fn heartbeats(site: SiteId) -> Heartbeats {
    let pulse = Pulse { identity: node_of(site), boot: BootId([site.0[0]; 16]), started: Instant::now() };
    Heartbeats { pulse, board: Arc::default() }
}

fn replica(size: u64) -> NewReplica {
    NewReplica {
        volume: VOLUME,
        group: GroupId([2; 16]),
        name: "pg".to_owned(),
        names: vec![(VOLUME, "db".to_owned())],
        secret: Secret([9; 32]),
        layout: Layout::one(VOLUME, size),
        slot_bytes: 64 << 20,
        config: Config {
            epoch: Epoch { major: 1, minor: 0 },
            nonce: Nonce([1; 16]),
            proposer: NodeId([1; 16]),
            since: Since::default(),
            base: Since::default(),
            primary: Some(SITE_A),
            leader: NodeId([1; 16]),
            lease_gen: 0,
            member_rev: 0,
            sites: vec![SITE_A],
            mode: Mode::Sync,
            generation: GenId([2; 16]),
            forced: false,
            hands_over: false,
        },
        policy: Policy::default(),
        members: None,
    }
}

async fn start(transport: Transport) -> (PeerAddress, Arc<Handler>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let handler = Arc::new(Handler { heartbeats: heartbeats(SITE_B), asked: Mutex::default() });
    tokio::spawn(serve_control(listener, transport, handler.clone(), None, std::future::pending()));
    (PeerAddress { host: "127.0.0.1".to_owned(), port, site: Some(SITE_B) }, handler)
}

#[tokio::test]
async fn a_volume_is_located_or_not_there() {
    let pair = Pair::new();
    let (peer, _) = start(pair.transport_b()).await;
    let client = pair.transport_a();
    assert_eq!(locate(&peer, &client, VOLUME).await.unwrap(), 4711);
    assert!(matches!(locate(&peer, &client, VolumeId([9; 16])).await, Err(CallError::NotFound)));
}

#[tokio::test]
async fn a_replica_is_asked_for_in_the_name_of_the_certificate() {
    let pair = Pair::new();
    let (peer, handler) = start(pair.transport_b()).await;
    create_replica(&peer, &pair.transport_a(), &replica(1 << 30)).await.unwrap();
    let asked = handler.asked.lock().unwrap();
    let (site, got) = &asked[0];
    assert_eq!(*site, Some(SITE_A));
    assert_eq!(format!("{got:?}"), format!("{:?}", replica(1 << 30)));
    assert_eq!(got.secret, Secret([9; 32]));
}

#[tokio::test]
async fn the_peers_reason_for_a_refusal_is_passed_on() {
    let pair = Pair::new();
    let (peer, _) = start(pair.transport_b()).await;
    let error = create_replica(&peer, &pair.transport_a(), &replica(FULL)).await.expect_err("refused");
    assert_eq!(error.to_string(), "the peer refused: the pool is full");
    let long = NewReplica { name: "x".repeat(MAX_VOLUME_NAME + 1), ..replica(1) };
    let error = create_replica(&peer, &pair.transport_a(), &long).await.expect_err("refused");
    assert!(error.to_string().contains("field group_name has 254, more than 253"), "{error}");
}

#[tokio::test]
async fn an_agent_describes_itself_as_its_certificate_does() {
    let pair = Pair::new();
    let (peer, _) = start(pair.transport_b()).await;
    let described = describe_peer(&peer, &pair.transport_a(), &description(SITE_A)).await.unwrap();
    assert_eq!(described, description(SITE_B));

    let (peer, _) = start(pair.b.transport(
        PeerIdentity { site: SITE_B, node: NodeId([1; 16]) },
        VALID,
        vec![pair.a.trust(SITE_A)],
    ))
    .await;
    let error = describe_peer(&peer, &pair.transport_a(), &description(SITE_A)).await.expect_err("another node");
    assert_eq!(error.to_string(), "the peer refused: it claims another identity");
}

#[tokio::test]
async fn a_caller_with_a_refused_certificate_reads_the_reason() {
    let pair = Pair::new();
    let transport = pair.transport_b();
    let (peer, _) = start(transport.clone()).await;
    let client = pair.a.transport(node_of(SITE_A), EXPIRED, vec![pair.b.trust(SITE_B)]);
    let Err(CallError::Connect(error)) = locate(&peer, &client, VOLUME).await else { panic!("must be refused") };
    assert_eq!(error.refusal(), Some(PeerRefusal::Expired), "{error}");
    assert_eq!(transport.refusals().count(PeerRefusal::Expired), 1);
}

#[tokio::test]
async fn heartbeats_tell_both_ends_that_the_other_lives() {
    let pair = Pair::new();
    let (peer, handler) = start(pair.transport_b()).await;
    let ours = heartbeats(SITE_A);
    let (mut of_b, mut of_a) = (ours.board.watch(SITE_B), handler.heartbeats.board.watch(SITE_A));
    let beating = tokio::spawn(keep_beating(ours.clone(), peer, pair.transport_a()));
    let alive = |health: &PeerHealth| health.is_alive(Instant::now());
    assert_eq!(of_b.wait_for(alive).await.unwrap().boot, Some(BootId([0xb; 16])));
    let health = of_a.wait_for(|health| health.rtt.is_some()).await.unwrap().clone();
    assert_eq!((health.node, health.boot), (Some(node_of(SITE_A).node), Some(BootId([0xa; 16]))));
    assert!(health.rtt.unwrap() < SILENCE);
    assert_eq!(of_b.wait_for(|health| health.fault.is_none()).await.unwrap().node, Some(node_of(SITE_B).node));
    beating.abort();
}

#[tokio::test]
async fn a_peer_whose_site_is_not_known_is_who_its_certificate_says_and_nobody_else() {
    let pair = Pair::new();
    let (peer, _) = start(pair.transport_b()).await;
    let unknown = PeerAddress { site: None, ..peer.clone() };
    let stranger = || PeerTrust { site: None, ca: vec![pair.b.ca()] };
    let client = pair.a.transport(node_of(SITE_A), VALID, vec![stranger()]);
    let met = first_contact(&heartbeats(SITE_A), &unknown, &client).await.unwrap();
    assert_eq!(met, node_of(SITE_B));

    // The handler says that it is B under the certificate of another node.
    let node = PeerIdentity { site: SITE_B, node: NodeId([1; 16]) };
    let (liar, _) = start(pair.b.transport(node, VALID, vec![pair.a.trust(SITE_A)])).await;
    let error = first_contact(&heartbeats(SITE_A), &PeerAddress { site: None, ..liar }, &client).await.unwrap_err();
    assert_eq!(error.refusal(), Some(PeerRefusal::WrongSite), "{error}");

    let expected = PeerAddress { site: Some(SITE_C), ..peer };
    let error = first_contact(&heartbeats(SITE_A), &expected, &client).await.unwrap_err();
    assert_eq!(error.refusal(), Some(PeerRefusal::WrongSite), "{error}");
}

#[tokio::test]
async fn a_peer_that_cannot_be_reached_has_a_fault_that_says_why() {
    let pair = Pair::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let peer = PeerAddress { host: "127.0.0.1".to_owned(), port, site: Some(SITE_B) };
    let ours = heartbeats(SITE_A);
    let mut of_b = ours.board.watch(SITE_B);
    let beating = tokio::spawn(keep_beating(ours.clone(), peer, pair.transport_a()));
    let fault = of_b.wait_for(|health| health.fault.is_some()).await.unwrap().fault.clone().unwrap();
    assert!(fault.contains("cannot connect"), "{fault}");
    assert!(!ours.board.health(SITE_B).is_alive(Instant::now()));
    beating.abort();
}

#[tokio::test]
async fn a_beat_cannot_claim_another_identity_than_the_certificate() {
    let pair = Pair::new();
    let transport = pair.transport_b();
    let (peer, handler) = start(transport.clone()).await;
    let liar = heartbeats(SITE_C);
    let mut of_b = liar.board.watch(SITE_B);
    let beating = tokio::spawn(keep_beating(liar, peer, pair.transport_a()));
    let refused = |health: &PeerHealth| health.fault.as_ref().is_some_and(|fault| fault.contains("wrong_site"));
    of_b.wait_for(refused).await.unwrap();
    assert!(transport.refusals().count(PeerRefusal::WrongSite) > 0);
    assert_eq!(handler.heartbeats.board.health(SITE_C), PeerHealth::default());
    beating.abort();
}
