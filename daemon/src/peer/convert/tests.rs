//! Every message survives the trip; everything that is not well-formed is named.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;
use tidemark_core::config::{AckOn, Config, Mode, OnPeerLoss, Policy, Since};
use tidemark_core::layout::Layout;
use tidemark_core::ship::{
    Ack, AdoptStep, Append, BaseBlocks, ChainEntry, Difference, Hello, Message, Refusal, Remembered, SeedBegin,
    VerifyVerdict,
};
use tidemark_core::types::*;

use super::*;
use crate::bounds;

fn id<T: 'static + std::fmt::Debug>(make: fn([u8; 16]) -> T) -> impl Strategy<Value = T> {
    any::<[u8; 16]>().prop_map(make)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<(u32, u32)>().prop_map(|(major, minor)| Epoch { major, minor })
}

fn position() -> impl Strategy<Value = Position> {
    (id(GenId), any::<u32>(), any::<u64>()).prop_map(|(generation, incarnation, lsn)| Position {
        generation,
        incarnation: Incarnation(incarnation),
        lsn: Lsn(lsn),
    })
}

fn boundary() -> impl Strategy<Value = Boundary> {
    (position(), any::<[u8; 32]>()).prop_map(|(position, chain)| Boundary { position, chain: Chain(chain) })
}

fn range() -> impl Strategy<Value = BlockRange> {
    (0..u64::MAX / 8192, 1..u32::MAX).prop_map(|(lba, count)| BlockRange::new(lba, count))
}

fn history() -> impl Strategy<Value = Vec<ChainEntry>> {
    let entry = (id(GenId), any::<u32>(), any::<u64>()).prop_map(|(generation, incarnation, fork)| ChainEntry {
        generation,
        incarnation: Incarnation(incarnation),
        fork: Lsn(fork),
    });
    vec(entry, 0..5)
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Async), Just(Mode::Receive), Just(Mode::Sync)]
}

prop_compose! {
    fn config()(
        epoch in epoch(), nonce in id(Nonce), proposer in id(NodeId), since_nonce in id(Nonce), base in epoch(),
        base_nonce in id(Nonce), has_primary in any::<bool>(), leader in id(NodeId), mode in mode(), generation in id(GenId),
        (lease_gen, member_rev, forced, hands_over) in any::<(u64, u64, bool, bool)>(), first in 1u8..200, count in 1u8..5,
    ) -> Config {
        let sites: Vec<_> = (0..count).map(|i| SiteId([first + i; 16])).collect();
        Config {
            epoch, nonce, proposer, since: Since { epoch, nonce: since_nonce }, base: Since { epoch: base, nonce: base_nonce },
            primary: has_primary.then(|| sites[0]), leader, lease_gen, member_rev, sites, mode, generation, forced, hands_over,
        }
    }
}

prop_compose! {
    fn hello()(
        (version, features, size) in any::<(u32, u64, u64)>(), group in option::of(layout()), volume in id(VolumeId), site in id(SiteId), node in id(NodeId),
        boot in id(BootId), config in config(), (is_primary, needs_seed, is_suspect) in any::<(bool, bool, bool)>(), history in history(),
        floor in boundary(), tail in boundary(), remembered in option::of((position(), id(BootId))),
        difference in option::of((boundary(), id(Nonce))),
    ) -> Message {
        let difference = difference.map(|(from, resync)| Difference { from, resync });
        let remembered = remembered.map(|(position, boot)| Remembered { position, boot });
        Message::Hello(Box::new(Hello {
            version, features, volume, site, node, boot, layout: group.unwrap_or(Layout::one(volume, size)), config, is_primary, needs_seed, is_suspect, history, floor,
            tail, remembered, difference,
        }))
    }
}

fn layout() -> impl Strategy<Value = Layout> {
    vec((1..8u8, 1..9u64), 2..12).prop_map(|runs| {
        let runs = runs.iter().enumerate().map(|(n, (volume, blocks))| {
            // No two holes are neighbours.
            let volume = if *volume == 7 && n % 2 == 1 { 0 } else { *volume };
            (VolumeId([volume; 16]), blocks * BLOCK as u64)
        });
        Layout::new(runs).expect("a group's")
    })
}

fn append() -> impl Strategy<Value = Message> {
    let parts = (epoch(), vec(any::<u8>(), 1..300), vec(1usize..4, 0..4), 1..4095usize, any::<bool>());
    parts.prop_map(|(epoch, header, pieces, cut, sync)| {
        let mut payload: Vec<_> = pieces.iter().map(|n| Bytes::from(vec![*n as u8; n * BLOCK])).collect();
        if let Some(first) = payload.first_mut() {
            // Pieces need not end at blocks.
            let rest = first.split_off(cut);
            payload.insert(1, rest);
        }
        Message::Append(Append { epoch, header: header.into(), payload, sync })
    })
}

fn ack() -> impl Strategy<Value = Message> {
    (epoch(), id(GenId), any::<(u32, u64, u64, u64)>(), id(BootId)).prop_map(
        |(epoch, generation, (incarnation, appended, durable, floor), boot)| {
            Message::Ack(Ack {
                epoch,
                generation,
                incarnation: Incarnation(incarnation),
                appended: Lsn(appended),
                durable: Lsn(durable),
                floor: Lsn(floor),
                boot,
            })
        },
    )
}

fn base() -> impl Strategy<Value = Message> {
    (id(Nonce), 0..1u64 << 40, 1..4u32, position(), any::<bool>()).prop_map(|(resync, lba, count, as_of, zeros)| {
        let blocks = if zeros { 0 } else { count as usize };
        let (crcs, data) = (vec![7; blocks], Bytes::from(vec![3; blocks * BLOCK]));
        Message::Base(BaseBlocks { resync, range: BlockRange::new(lba, count), as_of, crcs, data })
    })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    proptest::sample::select(REFUSALS.to_vec())
}

const REFUSALS: [Refusal; 17] = [
    Refusal::Header,
    Refusal::Version,
    Refusal::Identity,
    Refusal::OldEpoch,
    Refusal::NeedConfig,
    Refusal::Gap,
    Refusal::Rewrite,
    Refusal::Payload,
    Refusal::Chain,
    Refusal::Unrelated,
    Refusal::Diverged,
    Refusal::Suspect,
    Refusal::Behind,
    Refusal::State,
    Refusal::Size,
    Refusal::Storage,
    Refusal::SplitBrain,
];

fn seeding() -> impl Strategy<Value = Message> {
    let nonce = || id(Nonce);
    prop_oneof![
        (nonce(), any::<(u32, u64, bool)>(), boundary(), option::of(boundary())).prop_map(
            |(resync, (pass, total_bytes, last), live_from, from)| {
                Message::SeedBegin(SeedBegin { resync, pass, total_bytes, last, live_from, from })
            }
        ),
        (nonce(), any::<(u32, u64)>(), history()).prop_map(|(resync, (pass, at), history)| {
            Message::SeedEnd { resync, pass, visible_at: Lsn(at), history }
        }),
        (nonce(), any::<(u32, u64, bool)>()).prop_map(|(resync, (pass, bytes, done))| Message::SeedAck {
            resync,
            pass,
            bytes,
            done
        }),
    ]
}

fn step() -> impl Strategy<Value = Message> {
    let kinds = vec![AdoptStep::Rejoin, AdoptStep::Release, AdoptStep::Handover, AdoptStep::Same];
    prop_oneof![
        (config(), boundary()).prop_map(|(config, tail)| Message::Expand { config, tail }),
        (config(), proptest::sample::select(kinds), boundary()).prop_map(|(config, step, tail)| Message::Adopt {
            config,
            step,
            tail
        }),
        (epoch(), id(Nonce), option::of(refusal())).prop_map(|(epoch, nonce, refusal)| Message::ConfigAnswer {
            epoch,
            nonce,
            result: refusal.map_or(Ok(()), Err),
        }),
        config().prop_map(Message::Fenced),
        refusal().prop_map(Message::Refused),
    ]
}

fn policy() -> impl Strategy<Value = Message> {
    let ack_on = prop_oneof![Just(AckOn::Flush), Just(AckOn::Write)];
    let bandwidth = prop_oneof![Just(0), bounds::MIN_BANDWIDTH..=u64::MAX];
    let times = (bounds::RPO_TARGET_MS, bounds::RETENTION_MS, bounds::DISK_TIMEOUT_MS, bounds::PEER_LOSS_MS);
    let losses = (prop_oneof![Just(OnPeerLoss::Suspend), Just(OnPeerLoss::Witness)], any::<bool>());
    let sizes = (bounds::LOG_BYTES, bandwidth, bounds::INDEX_RANGES);
    (mode(), ack_on, times, sizes, losses).prop_map(|(mode, ack_on, times, sizes, losses)| {
        Message::Policy(Policy {
            mode,
            ack_on,
            rpo_target_ms: times.0,
            retention_ms: times.1,
            disk_timeout_ms: times.2,
            log_bytes: sizes.0,
            bandwidth: sizes.1,
            index_ranges: sizes.2,
            on_peer_loss: losses.0,
            auto_failover: losses.1,
            peer_loss_ms: times.3,
        })
    })
}

fn small() -> impl Strategy<Value = Message> {
    let verdicts = vec![VerifyVerdict::Equal, VerifyVerdict::Different, VerifyVerdict::Busy];
    prop_oneof![
        (epoch(), any::<u64>()).prop_map(|(epoch, lsn)| Message::Sync { epoch, lsn: Lsn(lsn) }),
        (epoch(), any::<(u64, u64, u64, u64)>()).prop_map(|(epoch, (committed, appended, at, backlog))| {
            Message::Committed { epoch, committed: Lsn(committed), appended: Lsn(appended), at: WallMs(at), backlog }
        }),
        boundary().prop_map(|from| Message::FetchTail { from }),
        Just(Message::TailEnd),
        Just(Message::Goodbye),
        (epoch(), any::<[u8; 16]>())
            .prop_map(|(epoch, nonce)| Message::HandOver { k: Since { epoch, nonce: Nonce(nonce) } }),
        option::of("[ -~]{0,1024}").prop_map(|refusal| Message::HandedOver { result: refusal.map_or(Ok(()), Err) }),
        (epoch(), any::<[u8; 16]>(), any::<(u64, u64)>()).prop_map(|(epoch, nonce, (stamp, span_ms))| {
            Message::Confirm { k: Since { epoch, nonce: Nonce(nonce) }, stamp, span_ms }
        }),
        any::<(u64, bool)>().prop_map(|(stamp, undecided)| Message::Confirmed { stamp, undecided }),
        (any::<u64>(), option::of(layout())).prop_map(|(size, layout)| Message::Grow { size, layout }),
        (any::<u64>(), option::of(layout())).prop_map(|(size, layout)| Message::GrowAnswer { size, layout }),
        (any::<u64>(), range(), any::<u64>(), any::<[u8; 32]>())
            .prop_map(|(id, range, lsn, hash)| Message::VerifyRange { id, range, lsn: Lsn(lsn), hash }),
        (any::<u64>(), proptest::sample::select(verdicts))
            .prop_map(|(id, verdict)| Message::VerifyAnswer { id, verdict }),
    ]
}

/// Any message that the core may send.
pub(crate) fn message() -> impl Strategy<Value = Message> {
    prop_oneof![hello(), append(), ack(), base(), seeding(), step(), policy(), small()]
}

proptest! {
    #[test]
    fn every_message_survives_the_trip_over_encoded_bytes(message in message()) {
        let bytes = Bytes::from(to_wire(message.clone()).encode_to_vec());
        let back = from_wire(wire::Envelope::decode(bytes).unwrap());
        prop_assert_eq!(back, Ok(message));
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_understood_but_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(envelope) = wire::Envelope::decode(Bytes::from(bytes)) {
            let _ = from_wire(envelope);
        }
    }

    #[test]
    fn a_message_with_flipped_bytes_never_panics(message in message(), at in any::<prop::sample::Index>(), mask in 1u8..) {
        let mut bytes = to_wire(message).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        if let Ok(envelope) = wire::Envelope::decode(Bytes::from(bytes)) {
            let _ = from_wire(envelope);
        }
    }
}

fn valid_config() -> Config {
    let site = SiteId([1; 16]);
    Config {
        epoch: Epoch { major: 2, minor: 1 },
        nonce: Nonce([2; 16]),
        proposer: NodeId([3; 16]),
        since: Since::default(),
        base: Since::default(),
        primary: Some(site),
        leader: NodeId([3; 16]),
        lease_gen: 0,
        member_rev: 0,
        sites: vec![site, SiteId([4; 16])],
        mode: Mode::Sync,
        generation: GenId([5; 16]),
        forced: false,
        hands_over: false,
    }
}

const NEWER: Epoch = Epoch { major: 2, minor: 2 };

fn fenced_with(change: impl FnOnce(&mut wire::Config)) -> Result<Message, Malformed> {
    let mut config = config_out(&valid_config());
    change(&mut config);
    from_wire(wire::Envelope { body: Some(Body::Fenced(Box::new(wire::Fenced { config: Some(config) }))) })
}

#[test]
fn a_configuration_that_breaks_its_promises_is_refused() {
    let rule = |change: fn(&mut wire::Config)| match fenced_with(change) {
        Err(Malformed::Config { rule }) => rule,
        other => panic!("{other:?}"),
    };
    assert!(fenced_with(|_| ()).is_ok());
    assert_eq!(rule(|k| k.sites.clear()), "S is empty");
    assert_eq!(rule(|k| k.sites[1] = k.sites[0].clone()), "S names a site twice");
    assert_eq!(rule(|k| k.sites[1] = raw(&[0; 16])), "S names no site");
    assert_eq!(rule(|k| k.primary = Some(raw(&[9; 16]))), "primary is not in S");
    assert_eq!(
        rule(|k| k.since = Some(wire::Since { epoch: epoch_out(NEWER), nonce: raw(&[1; 16]) })),
        "since is newer than K"
    );
}

#[test]
fn a_field_of_the_wrong_length_is_named() {
    assert_eq!(
        fenced_with(|k| k.nonce = raw(&[1; 15])),
        Err(Malformed::Length { field: "nonce", wanted: 16, found: 15 })
    );
    assert_eq!(
        fenced_with(|k| k.sites = vec![raw(&[1; 16]); 5]),
        Err(Malformed::TooMany { field: "sites", limit: 4, found: 5 })
    );
    assert_eq!(fenced_with(|k| k.since = None), Err(Malformed::Missing { field: "since" }));
    assert_eq!(fenced_with(|k| k.mode = 0), Err(Malformed::Enum { field: "mode", value: 0 }));
    assert_eq!(fenced_with(|k| k.mode = 77), Err(Malformed::Enum { field: "mode", value: 77 }));
}

#[test]
fn a_peers_policy_is_held_to_the_bounds_of_the_admin_api() {
    type Change = fn(&mut wire::Policy);
    let with = |change: Change| {
        let mut policy = policy_out(Policy::default());
        change(&mut policy);
        from_wire(wire::Envelope { body: Some(Body::Policy(policy)) })
    };
    assert_eq!(with(|_| ()), Ok(Message::Policy(Policy::default())));
    let table: [(&str, Change); 6] = [
        ("disk_timeout_ms", |p| p.disk_timeout_ms = 0),
        ("rpo_target_ms", |p| p.rpo_target_ms = 0),
        ("retention_ms", |p| p.retention_ms = u64::MAX),
        ("log_bytes", |p| p.log_bytes = 1),
        ("bandwidth", |p| p.bandwidth = 1),
        ("index_ranges", |p| p.index_ranges = u32::MAX),
    ];
    for (name, change) in table {
        let refused = with(change);
        assert!(matches!(refused, Err(Malformed::Bounds { field, .. }) if field == name), "{name}: {refused:?}");
    }
}

#[test]
fn an_unknown_kind_of_message_is_refused() {
    assert_eq!(from_wire(wire::Envelope { body: None }), Err(Malformed::UnknownKind));
    // Field 30 is reserved for a later version.
    let later = Bytes::from_static(&[0xf2, 0x01, 0x00]);
    assert_eq!(from_wire(wire::Envelope::decode(later).unwrap()), Err(Malformed::UnknownKind));
}

fn append_with(header: usize, pieces: &[usize]) -> Result<Message, Malformed> {
    let body = Body::Append(wire::Append {
        epoch: epoch_out(Epoch::default()),
        header: vec![1; header].into(),
        payload: pieces.iter().map(|n| vec![0; *n].into()).collect(),
        sync: false,
    });
    from_wire(wire::Envelope { body: Some(body) })
}

#[test]
fn an_append_is_held_to_its_limits() {
    assert!(append_with(64, &[]).is_ok());
    assert!(append_with(64, &[1, 4095]).is_ok());
    assert_eq!(append_with(0, &[4096]), Err(Malformed::Missing { field: "header" }));
    assert_eq!(append_with(64, &[4095]), Err(Malformed::NotBlocks { field: "payload", len: 4095 }));
    assert!(matches!(append_with(MAX_HEADER_BYTES + 1, &[]), Err(Malformed::TooMany { field: "header", .. })));
    assert!(matches!(append_with(64, &[4096; MAX_PIECES + 1]), Err(Malformed::TooMany { field: "payload", .. })));
    assert!(matches!(append_with(64, &[MAX_MESSAGE_BYTES, 4096]), Err(Malformed::TooMany { field: "payload", .. })));
}

fn base_with(lba: u64, count: u32, crcs: usize, data: usize) -> Result<Message, Malformed> {
    let body = Body::Base(wire::BaseBlocks {
        resync: raw(&[1; 16]),
        range: Some(wire::BlockRange { lba, count }),
        as_of: parts::position_out(Position::default()),
        crcs: vec![0; crcs],
        data: vec![0; data].into(),
    });
    from_wire(wire::Envelope { body: Some(body) })
}

#[test]
fn blocks_of_the_base_must_match_their_range() {
    assert!(base_with(1, 2, 2, 8192).is_ok());
    assert!(base_with(1, u32::MAX, 0, 0).is_ok());
    assert_eq!(base_with(1, 0, 0, 0), Err(Malformed::Range { lba: 1, count: 0 }));
    assert_eq!(base_with(u64::MAX, 1, 0, 0), Err(Malformed::Range { lba: u64::MAX, count: 1 }));
    assert_eq!(base_with(u64::MAX / 4096, 1, 0, 0), Err(Malformed::Range { lba: u64::MAX / 4096, count: 1 }));
    assert_eq!(base_with(1, 2, 2, 4096), Err(Malformed::NotBlocks { field: "data", len: 4096 }));
    assert_eq!(base_with(1, 2, 1, 8192), Err(Malformed::Length { field: "crcs", wanted: 2, found: 1 }));
    assert_eq!(base_with(1, 2, 2, 0), Err(Malformed::Length { field: "crcs", wanted: 0, found: 2 }));
}

#[test]
fn a_boundary_that_means_nothing_may_be_absent() {
    let begin = |last| {
        let body =
            wire::SeedBegin { resync: raw(&[1; 16]), pass: 1, total_bytes: 0, last, live_from: None, from: None };
        from_wire(wire::Envelope { body: Some(Body::SeedBegin(body)) })
    };
    assert!(begin(false).is_ok());
    assert_eq!(begin(true), Err(Malformed::Missing { field: "boundary" }));
}

#[test]
fn the_payload_of_a_received_append_is_not_copied() {
    let sent = Append {
        epoch: Epoch::default(),
        header: Bytes::from_static(b"h"),
        payload: vec![vec![7; BLOCK].into()],
        sync: false,
    };
    let bytes = Bytes::from(to_wire(Message::Append(sent)).encode_to_vec());
    let (start, end) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
    let Ok(Message::Append(got)) = from_wire(wire::Envelope::decode(bytes.clone()).unwrap()) else { panic!() };
    let at = got.payload[0].as_ptr() as usize;
    assert!(start <= at && at + BLOCK <= end, "the piece lies inside the received buffer");
}
