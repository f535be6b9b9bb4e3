//! Pauses of shipping and of the floor.

use tidemark_core::config::{Mode, Paused, Policy};
use tidemark_core::event::DiskOp;
use tidemark_core::status::{LinkState, Role};
use tidemark_core::verb::{Verb, VerbError};

use crate::bench::{A, B, Fate, Pair, SLOT_BYTES, promote_anyway, site_id};

const SHIP: Paused = Paused { ship: true, floor: false };
const FLOOR: Paused = Paused { ship: false, floor: true };

fn goes(pair: &mut Pair, site: usize, verb: Verb) {
    assert!(pair.plan(site, &verb).is_ok());
    let id = pair.verb(site, verb);
    pair.pass(200);
    assert!(pair.copies[site].end_of(id).is_some_and(Result::is_ok), "{:?}", pair.copies[site].end_of(id));
}

fn refused(pair: &mut Pair, site: usize, verb: Verb) -> VerbError {
    let plan = pair.plan(site, &verb).expect_err("refused");
    let id = pair.verb(site, verb);
    assert_eq!(pair.copies[site].end_of(id), Some(&Err(plan.clone())), "as it was foretold");
    plan
}

#[test]
fn nothing_is_shipped_while_that_is_paused_also_after_a_restart() {
    let mut pair = Pair::new();
    pair.write(A, 0, 1);
    let before = pair.status(B).appended;
    goes(&mut pair, A, Verb::Pause(SHIP));
    pair.write(A, 1, 2);
    pair.kill(A);
    pair.start(A);
    pair.connect();
    pair.write(A, 2, 3);
    pair.pass(1_000);
    let status = pair.status(A);
    assert_eq!((status.paused, &status.link), (SHIP, &LinkState::Paused));
    assert!(!status.protected && status.not_protected_because.contains("resume"), "{status:?}");
    assert!(status.backlog_bytes > 0 && pair.status(B).appended == before, "{status:?}");
    assert!(matches!(refused(&mut pair, A, Verb::Verify), VerbError::CopyState { .. }));
    assert!(matches!(refused(&mut pair, A, Verb::Demote { force: true }), VerbError::CopyState { .. }));
    goes(&mut pair, A, Verb::Resume(Paused::ALL));
    pair.pass(1_000);
    assert_eq!(pair.status(B).appended, pair.status(A).appended);
    assert_eq!(pair.status(A).paused, Paused::default());
}

#[test]
fn a_peer_that_flushes_wait_for_is_shipped_to_and_one_that_is_not_does_not_join() {
    let mut pair = Pair::new();
    let sync = Policy { mode: Mode::Sync, ..pair.status(A).policy };
    goes(&mut pair, A, Verb::Pause(SHIP));
    goes(&mut pair, A, Verb::SetPolicy(sync));
    pair.pass(2_000);
    assert_eq!(pair.status(A).config.sites.len(), 1, "it has all, and could not be kept so");
    goes(&mut pair, A, Verb::Resume(SHIP));
    pair.pass(1_000);
    assert_eq!(pair.status(A).config.sites.len(), 2);
    let VerbError::PeerInS { .. } = refused(&mut pair, A, Verb::Pause(SHIP)) else { panic!("in S") };
    assert!(matches!(refused(&mut pair, B, Verb::Pause(SHIP)), VerbError::Role { .. }));
    assert!(matches!(refused(&mut pair, A, Verb::Pause(Paused::default())), VerbError::Invalid(_)));
}

#[test]
fn a_site_that_was_replaced_has_no_shipping_to_pause_any_more() {
    let mut pair = Pair::new();
    goes(&mut pair, A, Verb::Pause(SHIP));
    pair.kill(A);
    let promote = pair.verb(B, promote_anyway());
    assert!(pair.copies[B].end_of(promote).is_some_and(Result::is_ok));
    pair.start(A);
    pair.connect();
    pair.pass(2_000);
    assert_eq!((pair.status(A).role, pair.status(A).paused), (Role::Secondary, Paused::default()));
}

#[test]
fn the_base_stands_while_the_floor_is_paused_and_the_log_says_when_it_is_full() {
    for site in [A, B] {
        let mut pair = Pair::new();
        pair.write(A, 0, 1);
        goes(&mut pair, site, Verb::Pause(FLOOR));
        let floor = pair.status(site).floor;
        for round in 0..20 {
            pair.write(A, round % 16, 7);
            pair.pass(1_000);
        }
        assert!(matches!(refused(&mut pair, site, Verb::Drain), VerbError::CopyState { .. }));
        let status = pair.status(site);
        assert!(status.floor == floor && status.durable > floor, "{status:?}");
        assert!(status.log_full_in_ms.is_some_and(|ms| ms > 1_000), "{status:?}");
        pair.kill(site);
        pair.start(site);
        pair.connect();
        pair.pass(500);
        assert_eq!((pair.status(site).paused, pair.status(site).floor), (FLOOR, floor));
        goes(&mut pair, site, Verb::Resume(FLOOR));
        goes(&mut pair, site, Verb::Drain);
        assert_eq!(pair.status(site).log_full_in_ms, None);
    }
}

/// A sync volume whose log is full at `site`, where the floor is paused and the disk has no room for a further slot.
fn filled(site: usize) -> Pair {
    let mut pair = Pair::new();
    let policy = Policy { mode: Mode::Sync, log_bytes: 6 * SLOT_BYTES, ..pair.status(A).policy };
    goes(&mut pair, A, Verb::SetPolicy(policy));
    pair.pass(1_000);
    goes(&mut pair, site, Verb::Pause(FLOOR));
    for block in 0..400 {
        pair.write_blocks(A, block % 200, 4, 1);
        pair.pass(200);
        if pair.status(A).role != Role::Primary {
            pair.copies[site].fate =
                |op| if matches!(op, DiskOp::Prepare { .. }) { Fate::FindsNoSpace } else { Fate::Done };
            return pair;
        }
    }
    panic!("the log takes whatever comes: {:?}", pair.status(A));
}

#[test]
fn a_follower_whose_log_a_paused_floor_filled_can_be_promoted_however_often() {
    let mut pair = filled(B);
    for round in 0..8 {
        pair.kill(A);
        pair.verb(B, promote_anyway());
        pair.pass(2_000);
        assert_eq!(pair.status(B).role, Role::Primary, "round {round}: {:?}", pair.status(B));
        pair.copies[B].fate = |_| Fate::Done;
        pair.kill(B);
        pair.start(B);
    }
}

#[test]
fn a_primary_whose_log_a_paused_floor_filled_has_room_for_what_its_successor_begins_with() {
    let mut pair = filled(A);
    let id = pair.verb(A, Verb::Switchover { to: site_id(B), force: true });
    pair.pass(3_000);
    assert!(pair.copies[A].end_of(id).is_some_and(Result::is_ok), "{:?}", pair.copies[A].end_of(id));
    assert_eq!((pair.status(A).role, pair.status(B).role), (Role::Secondary, Role::Primary));
}
