//! A log that finds no room: what says so, what gives way, and what becomes of the records that wait.

use tidemark_core::config::{Mode, Policy};
use tidemark_core::event::{DiskOp, FileRef};
use tidemark_core::status::{LinkState, Role, SuspendReason};
use tidemark_core::verb::{Verb, VerbOk};

use crate::bench::{A, B, Fate, Pair, promote_anyway};

/// The disk has no room for a further slot.
fn no_slot(op: &DiskOp) -> Fate {
    if matches!(op, DiskOp::Prepare { .. }) { Fate::FindsNoSpace } else { Fate::Done }
}

/// Nor does the base take anything.
fn no_slot_and_no_base(op: &DiskOp) -> Fate {
    match op {
        DiskOp::Write { file: FileRef::Base, .. } => Fate::Hangs,
        _ => no_slot(op),
    }
}

fn set(pair: &mut Pair, change: impl FnOnce(&mut Policy)) {
    let mut policy = pair.status(A).policy;
    change(&mut policy);
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(1_000);
}

/// A writes until a write finds no room.
fn fill(pair: &mut Pair) {
    for block in 0..400 {
        let request = pair.write_blocks(A, block % 200, 4, 1);
        if !pair.copies[A].replies.contains(&request) {
            return pair.pass(2_000);
        }
    }
    panic!("the log takes whatever comes: {:?}", pair.status(A));
}

const FULL: Role = Role::Suspended(SuspendReason::LogFull);

#[test]
fn a_log_that_finds_no_space_far_below_its_limit_makes_room_by_its_floor() {
    let mut pair = Pair::new();
    pair.copies[A].fate = no_slot;
    for block in 0..100 {
        let request = pair.write(A, block, 1);
        pair.pass(100);
        assert!(pair.copies[A].replies.contains(&request), "write {block}: {:?}", pair.status(A));
    }
    assert!(pair.status(A).log_bytes < pair.status(A).log_limit_bytes / 4);
    assert_eq!(pair.status(A).role, Role::Primary);
}

#[test]
fn a_full_primary_that_another_site_replaced_follows_that() {
    let mut pair = Pair::new();
    pair.copies[A].fate = no_slot_and_no_base;
    fill(&mut pair);
    assert_eq!(pair.status(A).role, FULL);
    assert_eq!(pair.status(B).appended, pair.status(A).appended, "B has all that is in a frame");
    pair.disconnect();
    pair.verb(B, promote_anyway());
    pair.connect();
    pair.pass(1_000);
    assert_eq!(pair.status(A).role, Role::Secondary, "{:?}", pair.status(A));
    pair.kill(A);
    pair.copies[A].fate = |_| Fate::Done;
    pair.start(A);
    pair.connect();
    pair.write(B, 1, 2);
    pair.pass(3_000);
    assert_eq!(pair.status(A).appended, pair.status(B).appended);
}

#[test]
fn a_full_primary_can_be_demoted_by_force() {
    let mut pair = Pair::new();
    pair.copies[A].fate = no_slot_and_no_base;
    fill(&mut pair);
    let demotion = pair.verb(A, Verb::Demote { force: true });
    pair.pass(1_000);
    assert!(matches!(pair.copies[A].end_of(demotion), Some(Ok(VerbOk::Done(_)))), "{:?}", pair.status(A));
    assert_eq!(pair.status(A).role, Role::Secondary);
}

#[test]
fn a_full_index_is_named_as_a_full_log_is() {
    let mut pair = Pair::new();
    set(&mut pair, |policy| policy.mode = Mode::Sync);
    set(&mut pair, |policy| policy.index_ranges = 8);
    // Without its peer nothing more is committed, and the floor stands.
    pair.kill(B);
    for block in 0..16 {
        pair.write_without_promise(A, 2 * block, 1);
    }
    pair.pass(2_000);
    assert_eq!(pair.status(A).role, FULL);
    assert!(pair.copies[A].alarms.contains(&"log_full"), "{:?}", pair.copies[A].alarms);
    pair.start(B);
    pair.connect();
    pair.pass(2_000);
    assert_eq!(pair.status(A).role, Role::Primary, "and on with room");
}

#[test]
fn a_follower_without_room_says_so_at_both_sites_until_it_has_some() {
    let mut pair = Pair::new();
    set(&mut pair, |policy| policy.mode = Mode::Sync);
    assert!(pair.status(A).protected);
    pair.copies[B].fate =
        |op| if matches!(op, DiskOp::Write { file: FileRef::Base, .. }) { Fate::Later } else { no_slot(op) };
    for block in 0..100 {
        pair.write_without_promise(A, block, 1);
    }
    pair.pass(2_000);
    assert!(pair.status(B).appended.lsn < pair.status(A).appended.lsn);
    assert!(pair.copies[B].alarms.contains(&"log_full"), "{:?}", pair.copies[B].alarms);
    for site in [A, B] {
        let status = pair.status(site);
        assert!(!status.protected && matches!(status.link, LinkState::Refused(_)), "{status:?}");
    }
    pair.copies[B].fate = |_| Fate::Done;
    pair.do_late(B);
    pair.pass(3_000);
    assert_eq!(pair.status(B).appended, pair.status(A).appended);
    for site in [A, B] {
        assert!(pair.status(site).protected, "{:?}", pair.status(site));
    }
}

#[test]
fn a_primary_whose_follower_failed_does_not_call_itself_protected() {
    let mut pair = Pair::new();
    set(&mut pair, |policy| policy.mode = Mode::Sync);
    assert!(pair.status(A).protected);
    pair.copies[B].fate = |op| match op {
        DiskOp::Write { file: FileRef::Log(_), .. } => Fate::Fails,
        _ => Fate::Done,
    };
    pair.write(A, 1, 1);
    assert!(!pair.status(A).protected, "{:?}", pair.status(A));
}
