//! A follower whose disk was put back, a loss that is only estimated, a volume that grows over what a device held, a FORK that
//! is not durable yet.

use bytes::Bytes;
use tidemark_core::config::{Mode, Policy};
use tidemark_core::event::{DiskOp, FileRef};
use tidemark_core::format::config;
use tidemark_core::status::{Role, SuspendReason};
use tidemark_core::types::BLOCK;
use tidemark_core::verb::{Verb, VerbError, VerbOk};

use crate::bench::{A, B, Fate, Pair, SIZE, VOLUME, assertion, is_log_sync, promote_anyway};

fn in_sync() -> Pair {
    let mut pair = Pair::new();
    let policy = Policy { mode: Mode::Sync, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(1_000);
    assert_eq!(pair.status(A).config.sites.len(), 2);
    pair
}

/// Nothing of what the peer sends gets as far as the disk.
fn no_frame(op: &DiskOp) -> Fate {
    if matches!(op, DiskOp::Write { file: FileRef::Log(_), .. }) { Fate::Hangs } else { Fate::Done }
}

/// B is stopped, and its files are put back to what they were before A wrote more.
fn put_back() -> Pair {
    let mut pair = in_sync();
    let earlier = pair.copies[B].files.clone();
    for block in 0..5 {
        pair.write(A, block, 7);
    }
    pair.pass(1_000);
    pair.kill(B);
    pair.copies[B].files = earlier;
    pair.copies[B].fate = no_frame;
    pair.start(B);
    pair.connect();
    pair
}

#[test]
fn a_follower_that_comes_back_with_less_than_it_acknowledged_is_no_protection_and_no_successor() {
    let mut pair = put_back();
    assert!(pair.copies[A].alarms.contains(&"peer_regressed"), "{:?}", pair.copies[A].alarms);
    assert!(pair.copies[B].alarms.contains(&"regressed"), "{:?}", pair.copies[B].alarms);
    assert!(!pair.status(A).protected);
    pair.kill(A);
    let promotion = pair.verb(B, promote_anyway());
    pair.pass(11_000);
    // What it was sent again is on its way to its disk: it opens with that, or not at all.
    let ended = pair.copies[B].end_of(promotion);
    assert!(matches!(ended, Some(Err(_))), "{ended:?}");
}

#[test]
fn a_follower_that_has_again_what_it_lost_is_whole() {
    let mut pair = put_back();
    pair.kill(B);
    pair.copies[B].fate = |_| Fate::Done;
    pair.start(B);
    pair.connect();
    pair.pass(1_000);
    assert!(pair.status(A).protected, "{:?}", pair.status(A));
    pair.kill(A);
    let promotion = pair.verb(B, promote_anyway());
    pair.pass(1_000);
    assert!(matches!(pair.copies[B].end_of(promotion), Some(Ok(VerbOk::Promoted { .. }))));
}

fn bounded(bytes: Option<u64>, seconds: Option<u64>) -> Verb {
    Verb::Promote {
        assert_peer_fenced: Some(assertion()),
        max_loss_bytes: bytes,
        max_loss_seconds: seconds,
        allow_unproven: false,
    }
}

#[test]
fn a_bound_in_bytes_alone_says_nothing_of_what_a_primary_wrote_since_it_was_heard() {
    let mut pair = Pair::new();
    pair.write(A, 1, 1);
    pair.pass(1_000);
    pair.disconnect();
    pair.pass(60_000);
    let asked = pair.verb(B, bounded(Some(1 << 30), None));
    let refused = pair.copies[B].end_of(asked);
    assert!(matches!(refused, Some(Err(VerbError::LossTooLarge { .. }))), "{refused:?}");
    let asked = pair.verb(B, bounded(Some(1 << 30), Some(120)));
    pair.pass(1_000);
    assert!(matches!(pair.copies[B].end_of(asked), Some(Ok(VerbOk::Promoted { .. }))));
}

#[test]
fn a_loss_is_counted_in_bytes_of_the_log_and_not_in_records() {
    let mut pair = Pair::new();
    let limited = Policy { bandwidth: 64 << 10, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(limited));
    pair.pass(1_000);
    for _ in 0..50 {
        pair.write_blocks(A, 0, 4, 1);
    }
    pair.pass(1_000);
    let lacks = pair.status(A).appended.lsn.since(pair.status(B).appended.lsn);
    assert!(lacks > 5, "B lacks {lacks} records: {:?}", pair.status(A));
    pair.kill(A);
    let refused = |pair: &mut Pair, bytes| {
        let asked = pair.verb(B, bounded(Some(bytes), Some(10)));
        matches!(pair.copies[B].end_of(asked), Some(Err(VerbError::LossTooLarge { .. })))
    };
    assert!(refused(&mut pair, lacks * 4 * BLOCK as u64 - 1));
    assert!(!refused(&mut pair, 2 * lacks * 4 * BLOCK as u64));
}

#[test]
fn what_a_device_held_behind_the_volume_is_not_seen_when_the_volume_grows() {
    let mut pair = Pair::new();
    pair.kill(A);
    pair.copies[A].files.get_mut(&FileRef::Base).expect("a base").resize(2 * SIZE as usize, 0xee);
    pair.start(A);
    pair.connect();
    pair.pass(1_000);
    let resize = pair.verb(A, Verb::Resize { volume: VOLUME, size: 2 * SIZE });
    pair.pass(1_000);
    assert!(matches!(pair.copies[A].end_of(resize), Some(Ok(VerbOk::Done(_)))), "{:?}", pair.copies[A].end_of(resize));
    for site in [A, B] {
        pair.verb(site, Verb::Drain);
        pair.pass(1_000);
        let base = &pair.copies[site].files[&FileRef::Base];
        assert_eq!(base.len() as u64, 2 * SIZE);
        assert!(base[SIZE as usize..].iter().all(|byte| *byte == 0), "site {site}");
    }
}

#[test]
fn an_incarnation_begins_at_home_before_the_peer_hears_of_it() {
    let mut pair = Pair::new();
    pair.write(A, 1, 1);
    pair.pass(1_000);
    pair.kill(A);
    pair.copies[A].fate = |op| if is_log_sync(op) { Fate::Later } else { Fate::Done };
    pair.start(A);
    pair.connect();
    let before = pair.status(B).appended;
    // The first sync is that of what was recovered; behind it the FORK is written.
    pair.do_late(A);
    assert!(pair.status(A).appended.lsn > before.lsn, "{:?}", pair.status(A));
    assert_eq!(pair.status(B).appended, before, "it is not durable at A yet");
    pair.do_late(A);
    pair.pass(1_000);
    assert_eq!(pair.status(B).appended, pair.status(A).appended);
}

#[test]
fn a_configuration_whose_newest_version_does_not_read_any_more_is_taken_from_the_log() {
    let mut pair = in_sync();
    pair.write(A, 1, 0x11);
    pair.pass(1_000);
    pair.kill(A);
    pair.verb(B, promote_anyway());
    pair.pass(1_000);
    pair.write(B, 1, 0x22);
    pair.pass(1_000);
    let promoted = pair.status(B).config;
    assert_eq!(pair.status(B).role, Role::Primary);

    pair.kill(B);
    let file = pair.copies[B].files.get_mut(&FileRef::Config).unwrap();
    let newest = config::FILE.decode(&Bytes::from(file.clone())).unwrap().counter;
    file[config::FILE.offset(newest) as usize + 100] ^= 1;
    pair.start(B);
    pair.pass(1_000);
    assert_eq!(pair.status(B).config, promoted, "B still knows that it was promoted");
    assert_eq!(pair.status(B).role, Role::Suspended(SuspendReason::Restart));

    pair.start(A);
    pair.connect();
    pair.pass(3_000);
    assert_eq!(pair.status(B).role, Role::Primary);
    assert_eq!((pair.status(A).role, pair.read(B, 1)), (Role::Secondary, 0x22));
    assert_eq!(pair.status(A).appended, pair.status(B).appended);
}
