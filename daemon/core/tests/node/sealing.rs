//! A log of which something is no longer part of the history, and what an interruption leaves of that.

use tidemark_core::config::{Mode, Policy};
use tidemark_core::event::{DiskOp, FileRef};
use tidemark_core::status::CopyState;
use tidemark_core::verb::Verb;

use crate::bench::{A, B, Fate, Pair, promote_anyway};

/// Which of the files that are to be removed stay until the process dies.
const SOME_STAY: [fn(&DiskOp) -> Fate; 3] = [
    |op| if matches!(op, DiskOp::Remove { .. }) { Fate::Hangs } else { Fate::Done },
    |op| if matches!(op, DiskOp::Remove { slot } if slot.0.is_multiple_of(2)) { Fate::Hangs } else { Fate::Done },
    |op| if matches!(op, DiskOp::Remove { slot } if !slot.0.is_multiple_of(2)) { Fate::Hangs } else { Fate::Done },
];

/// A goes on alone over several segments, B is promoted meanwhile, and A comes back.
pub fn parted(mode: Mode, fate: fn(&DiskOp) -> Fate) -> Pair {
    let mut pair = Pair::new();
    let policy = Policy { mode, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(1_000);
    assert_eq!(pair.status(A).config.sites.len(), if mode == Mode::Sync { 2 } else { 1 });
    pair.write(A, 0, 1);
    pair.disconnect();
    for block in 0..60 {
        pair.write(A, block, 2);
    }
    pair.kill(A);
    pair.verb(B, promote_anyway());
    pair.write(B, 0, 3);
    pair.copies[A].fate = fate;
    pair.start(A);
    pair.connect();
    pair
}

/// A's process dies and is started again: what its files hold is a log, and A follows B in the end.
fn restart_and_follow(mut pair: Pair) {
    pair.kill(A);
    pair.copies[A].fate = |_| Fate::Done;
    pair.start(A);
    assert!(pair.copies[A].alarms.is_empty(), "{:?}", pair.copies[A].alarms);
    pair.connect();
    pair.pass(1_000);
    assert_eq!(pair.status(A).appended, pair.status(B).appended, "{:?}", pair.status(A));
}

/// Nothing new reaches the log.
fn is_of_the_log(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Write { file: FileRef::Log(_), .. })
}

#[test]
fn a_suffix_that_nobody_was_promised_is_sealed() {
    let mut pair = parted(Mode::Sync, |_| Fate::Done);
    pair.pass(1_000);
    assert_eq!(pair.status(A).branches, 1);
    assert_eq!(pair.status(A).appended, pair.status(B).appended);
}

#[test]
fn a_process_that_dies_while_sealed_slots_are_removed_leaves_no_gap_that_reads_as_damage() {
    let fates: [fn(&DiskOp) -> Fate; 3] = [
        |op| if is_of_the_log(op) { Fate::Hangs } else { SOME_STAY[0](op) },
        |op| if is_of_the_log(op) { Fate::Hangs } else { SOME_STAY[1](op) },
        |op| if is_of_the_log(op) { Fate::Hangs } else { SOME_STAY[2](op) },
    ];
    fates.into_iter().for_each(|fate| restart_and_follow(parted(Mode::Sync, fate)));
}

#[test]
fn a_slot_that_cannot_be_removed_fails_the_copy_until_a_restart_removes_it() {
    let mut pair = parted(Mode::Sync, |op| if matches!(op, DiskOp::Remove { .. }) { Fate::Fails } else { Fate::Done });
    pair.pass(1_000);
    assert!(matches!(pair.status(A).copy, CopyState::Failed { .. }), "{:?}", pair.status(A).copy);
    restart_and_follow(pair);
}

#[test]
fn a_process_that_dies_after_a_seeding_does_not_leave_the_log_that_this_replaced() {
    for fate in SOME_STAY {
        let mut pair = parted(Mode::Async, fate);
        assert!(matches!(pair.status(A).copy, CopyState::Diverged { .. }), "{:?}", pair.status(A).copy);
        pair.verb(A, Verb::Reseed);
        pair.pass(1_000);
        restart_and_follow(pair);
    }
}

#[test]
fn what_was_cut_is_not_found_again_by_a_process_that_dies_before_the_log_goes_on() {
    // The suffix is sealed and cut, and nothing of the newer history gets as far as the disk.
    let mut pair = parted(Mode::Sync, |op| if is_of_the_log(op) { Fate::Hangs } else { Fate::Done });
    pair.pass(1_000);
    let (had, ends) = (pair.status(A).branches, pair.status(B).appended);
    assert_eq!(had, 1, "{:?}", pair.status(A));
    pair.kill(A);
    pair.start(A);
    let found = pair.status(A);
    assert!(found.appended.lsn < ends.lsn, "it ends where the histories part: {:?} {ends:?}", found.appended);
    pair.copies[A].fate = |_| Fate::Done;
    restart_and_follow(pair);
}

#[test]
fn a_slot_that_is_being_made_when_the_log_is_cut_does_not_take_the_place_of_one_that_is_in_use() {
    let mut pair = Pair::new();
    let policy = Policy { mode: Mode::Sync, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(1_000);
    pair.disconnect();
    // A goes on alone over more than a segment: another slot is being made when it is fenced.
    pair.copies[A].fate = |op| if matches!(op, DiskOp::Prepare { .. }) { Fate::Later } else { Fate::Done };
    for block in 0..20 {
        pair.write_without_promise(A, block, 2);
    }
    pair.verb(B, promote_anyway());
    pair.connect();
    pair.do_first_late(A);
    pair.pass(1_000);
    assert_eq!(pair.status(A).branches, 1);
    for block in 0..40 {
        pair.write(B, block, 3);
        pair.pass(100);
    }
    pair.do_late(A);
    let held = pair.status(A).appended;
    pair.kill(A);
    pair.copies[A].fate = |_| Fate::Done;
    pair.start(A);
    assert_eq!(pair.status(A).appended, held);
}

#[test]
fn a_drain_that_waited_for_what_was_cut_ends_with_the_log() {
    let mut pair = Pair::new();
    let policy = Policy { mode: Mode::Sync, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(1_000);
    pair.write(A, 0, 1);
    pair.pass(1_000);
    pair.disconnect();
    for block in 0..20 {
        pair.write_without_promise(A, block, 2);
    }
    let drain = pair.verb(A, Verb::Drain);
    pair.pass(1_000);
    assert!(pair.copies[A].end_of(drain).is_none(), "the base may not pass what B has");
    pair.verb(B, promote_anyway());
    pair.connect();
    pair.pass(2_000);
    assert_eq!((pair.status(A).branches, pair.status(A).appended), (1, pair.status(B).appended));
    assert!(matches!(pair.copies[A].end_of(drain), Some(Ok(_))), "{:?}", pair.copies[A].end_of(drain));
}
