//! The stream between agents of one site over real sockets: who may open one, and what is said.

use std::sync::{Arc, Mutex};

use tidemark_core::config::{Config, Policy, Since};
use tidemark_core::group::genesis;
use tidemark_core::site::{Lasts, Membership, Order, Readiness, Report, SiteMessage, SubLease};
use tidemark_core::types::*;
use tidemark_proto::peer as wire;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::control::{CallError, ControlAnswer, ControlHandler, NewReplica, locate, serve_control};
use super::convert::{Malformed, membership_in, membership_out, site_from_wire, site_to_wire};
use super::site::*;
use super::testing::*;
use super::*;

const GROUP: GroupId = GroupId([5; 16]);

fn node(number: u8) -> PeerIdentity {
    PeerIdentity { site: SITE_A, node: NodeId([number; 16]) }
}

fn members(me: usize) -> Membership {
    let nodes = |from: u8| vec![NodeId([from; 16]), NodeId([from + 1; 16])];
    Membership { me, nodes: nodes(1), peers: nodes(0xb1) }
}

fn hello() -> SiteHello {
    SiteHello { group: GROUP, members: members(1) }
}

fn k() -> Config {
    genesis(SITE_A, node(1).node, Nonce([1; 16]), GenId([2; 16]), Policy::default().mode)
}

struct Handler {
    accepted: Mutex<mpsc::UnboundedSender<(SiteHello, SiteStream)>>,
}

impl SiteHandler for Handler {
    fn admit<'a>(&'a self, node: Option<NodeId>, hello: &SiteHello) -> SiteAnswer<'a, ()> {
        let is_known = hello.group == GROUP && node == Some(hello.members.own());
        Box::pin(std::future::ready(if is_known { Ok(()) } else { Err(SiteRefusal::NoGroup) }))
    }

    fn accept(&self, hello: SiteHello, stream: SiteStream) {
        self.accepted.lock().unwrap().send((hello, stream)).unwrap();
    }

    fn join(&self, _: Option<NodeId>, group: String, _: Membership) -> SiteAnswer<'_, Joined> {
        let joined = Joined {
            group: GROUP,
            secret: Secret([9; 32]),
            config: k(),
            policy: Policy::default(),
            peer: Some(SITE_B),
        };
        let answer = if group == "pg" { Ok(joined) } else { Err(SiteRefusal::Refused("it was there before".into())) };
        Box::pin(std::future::ready(answer))
    }
}

impl ControlHandler for Handler {
    fn locate(&self, _: VolumeId) -> Option<u16> {
        Some(4711)
    }

    fn create_replica(&self, _: Option<SiteId>, _: NewReplica) -> ControlAnswer<u16> {
        Box::pin(std::future::ready(Err("never".to_owned())))
    }
}

/// Node `number` of site A, which accepts `mates` of it, and site B.
fn transport(pair: &Pair, number: u8, mates: &[u8]) -> Transport {
    let own = node(number);
    let files = pair.a.issue(&own.node.to_string(), &[own.to_string()], VALID);
    let tls = Tls::load(own, files, Vec::new()).unwrap();
    let mates = mates.iter().map(|number| node(*number).node).collect();
    tls.accept(vec![pair.b.trust(SITE_B), pair.a.trust(SITE_A)], mates).unwrap();
    Transport::mutual(tls, Arc::default())
}

type Accepted = mpsc::UnboundedReceiver<(SiteHello, SiteStream)>;

/// Node 1, which accepts node 2.
async fn leader(pair: &Pair) -> (PeerAddress, Accepted) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, accepted) = mpsc::unbounded_channel();
    let handler = Arc::new(Handler { accepted: Mutex::new(sender) });
    let site: Arc<dyn SiteHandler> = handler.clone();
    tokio::spawn(serve_control(listener, transport(pair, 1, &[2]), handler, Some(site), std::future::pending()));
    (PeerAddress { host: "127.0.0.1".to_owned(), port, site: Some(SITE_A) }, accepted)
}

fn messages() -> Vec<SiteMessage> {
    let since = Since { epoch: Epoch { major: 3, minor: 1 }, nonce: Nonce([4; 16]) };
    let report = Report {
        k: k(),
        is_sound: true,
        is_close: false,
        is_alone: true,
        seeds: false,
        serves: true,
        ready: Some(Nonce([6; 16])),
        is_equal: true,
    };
    let order = |wanted| SiteMessage::Order(Box::new(Order { k: k(), policy: Policy::default(), wanted }));
    let wanted = |readiness| order(Some((Nonce([7; 16]), readiness)));
    vec![
        SiteMessage::Report(Box::new(Report { ready: None, ..report.clone() })),
        SiteMessage::Report(Box::new(report)),
        SiteMessage::MayIServe { stamp: u64::MAX },
        order(None),
        wanted(Readiness::Held),
        wanted(Readiness::Verified(since)),
        wanted(Readiness::Drained { force: true }),
        wanted(Readiness::Settled),
        SiteMessage::Lease(SubLease { stamp: 1, k: since, lasts: Lasts::For(0), may_open: true }),
        SiteMessage::Lease(SubLease { stamp: 1, k: since, lasts: Lasts::Always, may_open: false }),
    ]
}

#[tokio::test]
async fn what_two_members_say_arrives_whole_and_in_order_both_ways() {
    let pair = Pair::new();
    let (address, mut accepted) = leader(&pair).await;
    let mut led = connect_site(&address, node(1).node, &transport(&pair, 2, &[1]), &hello()).await.unwrap();
    let (said, mut stream) = accepted.recv().await.unwrap();
    assert_eq!(said, hello());
    for message in messages() {
        led.outbound.send(message.clone()).await.unwrap();
        assert_eq!(stream.inbound.recv().await, Some(message.clone()));
        stream.outbound.send(message.clone()).await.unwrap();
        assert_eq!(led.inbound.recv().await, Some(message));
    }
    drop(stream);
    assert_eq!(led.inbound.recv().await, None, "the other end is gone");
    drop(led.outbound);
}

#[tokio::test]
async fn only_a_node_of_the_site_that_is_named_here_may_speak_for_a_member() {
    let pair = Pair::new();
    let (address, _accepted) = leader(&pair).await;
    let to = node(1).node;
    let stranger = connect_site(&address, to, &transport(&pair, 3, &[1]), &hello()).await.unwrap_err();
    assert!(stranger.to_string().contains("refused"), "a node that nobody named: {stranger}");
    let other_site = pair.b.transport(node_of(SITE_B), VALID, vec![pair.a.trust(SITE_A)]);
    let other_site = connect_site(&address, to, &other_site, &hello()).await.unwrap_err();
    assert!(other_site.to_string().contains(PeerRefusal::WrongSite.name()), "an agent of a peer: {other_site}");
    let wrong = connect_site(&address, node(4).node, &transport(&pair, 2, &[1]), &hello()).await.unwrap_err();
    assert!(wrong.to_string().contains("answers there"), "another node than the list names: {wrong}");
    let unknown = SiteHello { group: GroupId([6; 16]), ..hello() };
    let unknown = connect_site(&address, to, &transport(&pair, 2, &[1]), &unknown).await.unwrap_err();
    assert!(matches!(unknown, CallError::NotFound), "{unknown}");
}

#[tokio::test]
async fn a_node_of_the_own_site_is_no_peer() {
    let pair = Pair::new();
    let (address, _accepted) = leader(&pair).await;
    let refused = locate(&address, &transport(&pair, 2, &[1]), VOLUME).await.unwrap_err();
    assert!(refused.to_string().contains(PeerRefusal::WrongSite.name()), "{refused}");
    // Who asks for a site that it does not know yet does not take its own for it.
    let unknown = PeerAddress { site: None, ..address };
    assert!(locate(&unknown, &transport(&pair, 2, &[1]), VOLUME).await.is_err());
}

#[tokio::test]
async fn a_member_joins_with_what_the_leader_gives_or_hears_why_not() {
    let pair = Pair::new();
    let (address, _accepted) = leader(&pair).await;
    let client = transport(&pair, 2, &[1]);
    let joined = join_group(&address, node(1).node, &client, ("pg", &members(1))).await.unwrap();
    assert_eq!((joined.group, joined.secret, joined.config), (GROUP, Secret([9; 32]), k()));
    assert_eq!((joined.policy, joined.peer), (Policy::default(), Some(SITE_B)));
    let refused = join_group(&address, node(1).node, &client, ("other", &members(1))).await.unwrap_err();
    assert!(refused.to_string().contains("it was there before"), "{refused}");
}

#[test]
fn a_message_that_is_not_well_formed_is_refused_by_the_name_of_what_is_wrong() {
    use wire::site_envelope::Body;
    let read = |body| site_from_wire(wire::SiteEnvelope { body });
    assert_eq!(read(None), Err(Malformed::UnknownKind));
    let late = wire::SiteHello { group: vec![5; 16].into(), members: Some(membership_out(&members(1))) };
    assert_eq!(read(Some(Body::Hello(late))), Err(Malformed::UnknownKind), "a greeting is said once");
    assert_eq!(read(Some(Body::SubLease(wire::SubLease::default()))), Err(Malformed::Missing { field: "k" }));
    let Some(Body::Order(good)) = site_to_wire(messages()[5].clone()).body else { panic!("an order") };
    let with = |change: fn(&mut wire::Wanted)| {
        let mut order = good.clone();
        change(order.wanted.as_mut().unwrap());
        read(Some(Body::Order(order))).unwrap_err()
    };
    assert_eq!(with(|w| w.readiness = 0), Malformed::Enum { field: "readiness", value: 0 });
    assert_eq!(with(|w| w.since = None), Malformed::Missing { field: "since" });
    assert!(matches!(with(|w| w.id = vec![1; 15].into()), Malformed::Length { field: "id", .. }));
    let mut many = membership_out(&members(1));
    many.nodes = vec![vec![1; 16].into(); 17];
    assert!(matches!(membership_in(Some(many)), Err(Malformed::TooMany { field: "nodes", .. })));
    let outside = wire::Membership { me: u32::MAX, ..membership_out(&members(1)) };
    assert!(matches!(membership_in(Some(outside)), Err(Malformed::Config { .. })));
}
