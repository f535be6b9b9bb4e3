//! When frames leave for the peer, and what an answer that waits for it costs.

use tidemark_core::config::{Mode, Policy};
use tidemark_core::event::{DiskOp, FileRef};
use tidemark_core::ship::gate::GATHER_BYTES;
use tidemark_core::status::{CopyState, Role};
use tidemark_core::types::{BLOCK, Lsn};
use tidemark_core::verb::Verb;

use crate::bench::{A, B, Fate, Pair, is_log_sync};

fn appended(pair: &Pair, site: usize) -> Lsn {
    pair.status(site).appended.lsn
}

/// Syncs of the log do not end.
fn no_sync_of_the_log(op: &DiskOp) -> Fate {
    if is_log_sync(op) { Fate::Hangs } else { Fate::Done }
}

fn is_frame(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Write { file: FileRef::Log(_), .. })
}

fn is_durable_write(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Write { durable: true, .. })
}

fn set(pair: &mut Pair, change: impl FnOnce(&mut Policy)) {
    let mut policy = pair.status(A).policy;
    change(&mut policy);
    let id = pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(1_000);
    assert!(matches!(pair.copies[A].end_of(id), Some(Ok(_))), "{:?}", pair.copies[A].end_of(id));
}

fn in_sync() -> Pair {
    let mut pair = Pair::new();
    set(&mut pair, |policy| policy.mode = Mode::Sync);
    assert_eq!(pair.status(A).config.sites.len(), 2, "S has grown: {:?}", pair.status(A));
    pair
}

#[test]
fn frames_that_nobody_waits_for_leave_together_when_they_are_many_or_some_time_has_passed() {
    let mut pair = Pair::new();
    pair.write(A, 1, 1);
    let before = appended(&pair, B);
    assert!(before < appended(&pair, A), "mode async: the answer waited for nobody");
    pair.pass(100);
    assert_eq!(appended(&pair, B), appended(&pair, A));

    // A frame of one block takes two: header and payload.
    let many = GATHER_BYTES / (2 * BLOCK as u64);
    for block in 0..many {
        assert!(appended(&pair, B) < appended(&pair, A) || block == 0);
        pair.write(A, block, 2);
    }
    assert_eq!(appended(&pair, B), appended(&pair, A));
}

#[test]
fn a_write_that_promises_durability_leaves_at_once_and_needs_no_sync_at_either_site() {
    let mut pair = in_sync();
    for site in [A, B] {
        pair.copies[site].fate = no_sync_of_the_log;
    }
    let id = pair.write(A, 1, 1);
    assert!(pair.copies[A].replies.contains(&id));
    assert_eq!((pair.status(B).durable, pair.status(A).peer_durable), (appended(&pair, A), appended(&pair, A)));
}

/// In mode sync, and written to in the way of a journal.
fn flushed_after_each_write() -> Pair {
    let mut pair = in_sync();
    for block in 0..2 {
        pair.write_without_promise(A, block, 1);
        assert!(pair.status(A).durable < appended(&pair, A), "nobody knows yet what follows");
        pair.flush(A);
    }
    pair
}

#[test]
fn what_is_flushed_after_every_write_is_durable_at_both_sites_before_the_flush_arrives() {
    let mut pair = flushed_after_each_write();
    for site in [A, B] {
        pair.copies[site].fate = no_sync_of_the_log;
    }
    for block in 2..5 {
        let write = pair.write_without_promise(A, block, 2);
        assert!(pair.copies[A].replies.contains(&write));
        assert_eq!((pair.status(A).durable, pair.status(A).peer_durable), (appended(&pair, A), appended(&pair, A)));
        let flush = pair.flush(A);
        assert!(pair.copies[A].replies.contains(&flush), "nothing is left to do for it");
    }
}

#[test]
fn of_writes_that_are_not_flushed_at_most_the_first_is_made_durable_by_itself() {
    let mut pair = flushed_after_each_write();
    pair.write_without_promise(A, 2, 2);
    let guessed = appended(&pair, A);
    assert_eq!(pair.status(A).durable, guessed);
    for block in 3..6 {
        pair.write_without_promise(A, block, 3);
        assert_eq!(pair.status(A).durable, guessed);
    }
}

#[test]
fn after_a_reconnect_only_what_the_peer_has_written_counts_as_received() {
    let mut pair = Pair::new();
    set(&mut pair, |policy| policy.mode = Mode::Receive);
    assert_eq!(pair.status(A).config.sites.len(), 2, "S has grown: {:?}", pair.status(A));
    pair.copies[B].fate = |op| if is_frame(op) { Fate::Later } else { Fate::Done };
    pair.write_without_promise(A, 1, 1);
    pair.pass(100);
    assert!(appended(&pair, B) < appended(&pair, A), "B has taken the frame and not written it");
    pair.connect();
    let flush = pair.flush(A);
    assert!(!pair.copies[A].replies.contains(&flush), "B's log may yet lose it");
    pair.do_late(B);
    pair.pass(100);
    assert!(pair.copies[A].replies.contains(&flush));
}

#[test]
fn a_durable_write_behind_one_that_is_not_synced_promises_nothing_before_a_sync() {
    let mut pair = in_sync();
    pair.copies[B].fate = no_sync_of_the_log;
    let plain = pair.write_without_promise(A, 1, 1);
    assert!(pair.copies[A].replies.contains(&plain));
    pair.pass(100);
    let promised = pair.write(A, 2, 2);
    assert!(!pair.copies[A].replies.contains(&promised), "B has synced nothing");
}

#[test]
fn a_follower_whose_durable_write_failed_has_failed_as_by_a_failed_sync() {
    let mut pair = in_sync();
    pair.copies[B].fate = |op| if is_durable_write(op) { Fate::Fails } else { Fate::Done };
    let id = pair.write(A, 1, 1);
    assert!(!pair.copies[A].replies.contains(&id));
    assert_eq!(pair.copies[B].alarms, ["copy_failed"]);
    pair.kill(B);
    pair.copies[B].fate = |_| Fate::Done;
    pair.start(B);
    assert!(matches!(pair.status(B).copy, CopyState::Failed { .. }), "for good: what lies there is not asked again");
}

#[test]
fn a_durable_write_that_finds_no_space_does_not_condemn_the_copy() {
    let mut pair = in_sync();
    pair.copies[B].fate = |op| if is_durable_write(op) { Fate::FindsNoSpace } else { Fate::Done };
    pair.write(A, 1, 1);
    pair.kill(B);
    pair.copies[B].fate = |_| Fate::Done;
    pair.start(B);
    pair.connect();
    pair.pass(1_000);
    assert_eq!(pair.status(B).durable, appended(&pair, A), "{:?}", pair.status(B).copy);
}

#[test]
fn a_bandwidth_limit_holds_and_is_lifted_online() {
    let mut pair = Pair::new();
    let frame = 2 * BLOCK as u64;
    set(&mut pair, |policy| policy.bandwidth = frame);
    let start = appended(&pair, B);
    for block in 0..100 {
        pair.write(A, block, 3);
    }
    pair.pass(10_000);
    let shipped = appended(&pair, B).0 - start.0;
    assert!((9..=12).contains(&shipped), "{shipped} frames in ten seconds at one a second");
    set(&mut pair, |policy| policy.bandwidth = 0);
    assert_eq!(appended(&pair, B), appended(&pair, A));
}

#[test]
fn a_peer_that_asks_for_the_tail_again_is_answered_when_the_read_for_the_first_question_has_ended() {
    let mut pair = in_sync();
    let earlier = pair.copies[A].files.clone();
    for block in 0..20 {
        pair.write(A, block, 7);
    }
    pair.kill(A);
    pair.kill(B);
    // A lost what it had written last; B reads its log from the disk.
    pair.copies[A].files = earlier;
    pair.start(B);
    pair.copies[B].fate = |op| match op {
        DiskOp::Read { file: FileRef::Log(_), .. } => Fate::Later,
        _ => Fate::Done,
    };
    pair.start(A);
    pair.connect();
    pair.connect();
    pair.copies[B].fate = |_| Fate::Done;
    pair.do_late(B);
    pair.pass(1_000);
    assert_eq!(pair.status(A).role, Role::Primary, "{:?}", pair.status(A));
    assert_eq!(appended(&pair, A), appended(&pair, B));
}
