//! A copy that was given up.

use std::cell::RefCell;

use tidemark_core::config::{Mode, Policy};
use tidemark_core::event::{DiskOp, FileRef, Slot};
use tidemark_core::format::branch::{BranchClass, BranchHead};
use tidemark_core::status::{CopyState, LinkState, Role};
use tidemark_core::types::BLOCK;
use tidemark_core::verb::{Verb, VerbError, VerbOk};

use crate::bench::{A, B, Fate, Pair, promote_anyway};
use crate::sealing::parted;

/// Nothing of what being given up leads to gets as far as the disk.
fn no_superblock(op: &DiskOp) -> Fate {
    if matches!(op, DiskOp::Write { file: FileRef::Superblock, .. }) { Fate::Hangs } else { Fate::Done }
}

#[test]
fn a_restart_forgets_that_a_copy_was_given_up_and_loses_nothing_by_that() {
    let mut pair = parted(Mode::Async, |_| Fate::Done);
    let had = pair.status(A).appended;
    pair.copies[A].fate = no_superblock;
    pair.verb(A, Verb::Reseed);
    pair.kill(A);
    pair.copies[A].fate = |_| Fate::Done;
    pair.start(A);
    assert!(matches!(pair.status(A).copy, CopyState::Diverged { .. }), "{:?}", pair.status(A).copy);
    assert_eq!(pair.status(A).appended, had);

    pair.verb(A, Verb::Reseed);
    pair.connect();
    pair.pass(1_000);
    assert_eq!(pair.status(A).appended, pair.status(B).appended);
}

fn base_reads_are_late(op: &DiskOp) -> Fate {
    if matches!(op, DiskOp::Read { file: FileRef::Base, .. }) { Fate::Later } else { Fate::Done }
}

#[test]
fn what_an_earlier_seeding_read_does_not_overtake_what_the_next_one_sent() {
    let mut pair = Pair::new();
    pair.write(A, 1, 0x11);
    pair.pass(1_000);
    pair.verb(A, Verb::Drain);
    pair.pass(2_000);
    assert_eq!(pair.copies[A].files[&FileRef::Base][BLOCK], 0x11);
    pair.kill(B);
    pair.copies[B].files.get_mut(&FileRef::Base).unwrap().fill(0);
    pair.copies[A].fate = base_reads_are_late;
    pair.replace_b();
    pair.write(A, 1, 0x22);
    // The next seeding sends the block from the log, where it is new; the base's is still being read for the first.
    pair.connect();
    pair.do_late(A);
    pair.copies[A].fate = |_| Fate::Done;
    pair.do_late(A);
    pair.pass(3_000);
    assert!(matches!(pair.status(B).copy, CopyState::Current), "{:?}", pair.status(B).copy);
    let id = pair.verb(A, Verb::Verify);
    pair.pass(1_000);
    let Some(Ok(VerbOk::Verified { differing, .. })) = pair.copies[A].end_of(id) else {
        panic!("{:?}", pair.copies[A].end_of(id))
    };
    assert!(differing.is_empty(), "{differing:?}");
}

thread_local!(static GONE: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) });

/// A slot whose removal was asked for cannot be opened any more, long before the removal is durable.
fn removals_take_their_time(op: &DiskOp) -> Fate {
    let is_gone = |file: &FileRef| matches!(file, FileRef::Log(slot) if GONE.with_borrow(|gone| gone.contains(slot)));
    match op {
        DiskOp::Remove { slot } => {
            GONE.with_borrow_mut(|gone| gone.push(*slot));
            Fate::Later
        }
        DiskOp::Prepare { slot, .. } => {
            GONE.with_borrow_mut(|gone| gone.retain(|s| s != slot));
            Fate::Done
        }
        DiskOp::Sync { files } if files.iter().any(is_gone) => Fate::Fails,
        _ => Fate::Done,
    }
}

#[test]
fn a_log_that_starts_over_syncs_none_of_the_slots_that_are_being_removed() {
    let mut pair = Pair::new();
    pair.pass(1_000);
    for block in 0..16 {
        pair.write_without_promise(A, block, 0x33);
    }
    assert!(pair.status(B).durable < pair.status(B).appended.lsn, "B has something to sync");
    pair.copies[B].fate = removals_take_their_time;
    pair.verb(B, Verb::Reseed);
    for n in 0..12 {
        for block in 0..(if n >= 3 { 16 } else { 0 }) {
            pair.write_without_promise(A, block, 0x40 + n);
        }
        pair.pass(100);
        pair.do_late(B);
    }
    assert!(pair.copies[B].alarms.is_empty(), "{:?}", pair.copies[B].alarms);
}

#[test]
fn what_a_copy_had_alone_is_sealed_before_it_is_seeded_anew() {
    let mut pair = parted(Mode::Async, |_| Fate::Done);
    let had = pair.status(A).appended;
    assert!(matches!(pair.status(A).copy, CopyState::Diverged { .. }), "{:?}", pair.status(A).copy);
    assert_eq!(pair.status(A).branches, 0);
    pair.verb(A, Verb::Reseed);
    pair.pass(1_000);
    assert!(matches!(pair.status(A).copy, CopyState::Current), "{:?}", pair.status(A).copy);
    assert_eq!(pair.status(A).branches, 1);
    let branch = &pair.copies[A].files[&FileRef::Branch(1)];
    let head = BranchHead::decode(branch).unwrap();
    assert_eq!((head.class, head.tail.position, head.bytes), (BranchClass::Acked, had, (branch.len() - BLOCK) as u64));
    assert_eq!(branch.iter().filter(|byte| **byte == 2).count() / BLOCK, 60, "all that it wrote alone is there");
}

#[test]
fn a_copy_whose_suffix_finds_no_room_is_not_seeded_before_it_does() {
    let mut pair = parted(Mode::Async, |_| Fate::Done);
    let had = pair.status(A).appended;
    pair.copies[A].fate = |op| {
        if matches!(op, DiskOp::Replace { file: FileRef::Branch(_), .. }) { Fate::FindsNoSpace } else { Fate::Done }
    };
    pair.verb(A, Verb::Reseed);
    pair.pass(1_000);
    assert_eq!((pair.status(A).appended, pair.status(A).branches), (had, 0));
    assert!(pair.copies[A].alarms.contains(&"branch_not_sealed"), "{:?}", pair.copies[A].alarms);
    pair.copies[A].fate = |_| Fate::Done;
    pair.pass(60_000);
    pair.connect();
    pair.pass(1_000);
    assert!(matches!(pair.status(A).copy, CopyState::Current), "{:?}", pair.status(A).copy);
    assert_eq!(pair.status(A).branches, 1);
}

#[test]
fn a_copy_that_has_nothing_of_its_own_is_seeded_anew_without_a_branch() {
    let mut pair = Pair::new();
    pair.write(A, 0, 1);
    pair.verb(B, Verb::Reseed);
    pair.write(A, 1, 1);
    pair.pass(1_000);
    assert_eq!((pair.status(B).appended, pair.status(B).branches), (pair.status(A).appended, 0));
}

fn in_sync() -> Pair {
    let mut pair = Pair::new();
    pair.verb(A, Verb::SetPolicy(Policy { mode: Mode::Sync, ..pair.status(A).policy }));
    pair.pass(1_000);
    assert_eq!(pair.status(A).config.sites.len(), 2);
    pair
}

/// A served alone and was cut off; B was promoted, wrote, put it all into its base, and has lost its newest K since: by what it
/// holds now A is the primary, and neither can follow the other.
fn parted_by_a_lost_k() -> Pair {
    let mut pair = in_sync();
    pair.write(A, 0, 1);
    pair.pass(1_000);
    let lost = pair.copies[B].files[&FileRef::Config].clone();
    pair.disconnect();
    pair.write_without_promise(A, 1, 2);
    pair.kill(A);
    pair.verb(B, promote_anyway());
    pair.write(B, 1, 3);
    pair.verb(B, Verb::Drain);
    pair.pass(1_000);
    pair.kill(B);
    pair.copies[B].files.insert(FileRef::Config, lost);
    pair.start(A);
    pair.start(B);
    pair.connect();
    pair.pass(1_000);
    pair
}

#[test]
fn two_copies_that_parted_and_do_not_lead_go_on_by_the_word_of_who_names_the_loser() {
    let mut pair = parted_by_a_lost_k();
    let (a, b) = (pair.status(A), pair.status(B));
    assert!(a.role != Role::Primary && b.role != Role::Primary, "{:?} {:?}", a.role, b.role);
    assert!(matches!(b.copy, CopyState::Diverged { .. }), "{:?}", b.copy);

    // The site that took the role up again cannot bring its peer to what it has: that holds up nobody.
    let id = pair.verb(A, Verb::Demote { force: true });
    pair.pass(100);
    assert!(matches!(pair.copies[A].end_of(id), Some(Ok(_))), "{:?}", pair.copies[A].end_of(id));
    let id = pair.verb(A, Verb::Reseed);
    assert!(matches!(pair.copies[A].end_of(id), Some(Ok(_))), "{:?}", pair.copies[A].end_of(id));
    pair.pass(1_000);
    assert_eq!(pair.status(B).copy, CopyState::Current, "the peer was given up");
    pair.kill(A);
    pair.verb(B, promote_anyway());
    pair.start(A);
    pair.connect();
    pair.pass(10_000);
    assert_eq!((pair.status(A).copy, pair.status(A).role), (CopyState::Current, Role::Secondary));
    assert_eq!((pair.read(B, 0), pair.read(B, 1)), (1, 3), "what the winner wrote is there");
}

#[test]
fn a_restart_before_the_winner_was_promoted_leaves_the_two_to_be_named_again() {
    let mut pair = parted_by_a_lost_k();
    pair.verb(A, Verb::Demote { force: true });
    pair.pass(100);
    pair.verb(A, Verb::Reseed);
    pair.pass(1_000);
    pair.kill(A);
    pair.start(A);
    pair.connect();
    pair.pass(1_000);
    for site in [A, B] {
        assert!(matches!(pair.status(site).copy, CopyState::Diverged { .. }), "{:?}", pair.status(site).copy);
    }
    let id = pair.verb(A, Verb::Reseed);
    assert!(matches!(pair.copies[A].end_of(id), Some(Ok(_))), "{:?}", pair.copies[A].end_of(id));
    let id = pair.verb(B, promote_anyway());
    pair.pass(10_000);
    assert!(matches!(pair.copies[B].end_of(id), Some(Ok(_))), "{:?}", pair.copies[B].end_of(id));
    assert_eq!((pair.status(A).copy, pair.read(B, 1)), (CopyState::Current, 3));
}

#[test]
fn a_follower_that_was_made_whole_is_waited_for_by_a_demotion_again() {
    let mut pair = parted(Mode::Async, |_| Fate::Done);
    pair.verb(A, Verb::Reseed);
    pair.pass(1_000);
    assert_eq!(pair.status(A).copy, CopyState::Current);
    pair.deaf[A] = true;
    pair.write_without_promise(B, 7, 7);
    let id = pair.verb(B, Verb::Demote { force: false });
    pair.pass(1_000);
    assert_eq!(pair.copies[B].end_of(id), None, "the other copy has not got it yet");
}

#[test]
fn a_copy_that_flushes_wait_for_is_not_given_up_while_its_peer_takes_what_it_has() {
    let mut pair = in_sync();
    pair.write(A, 0, 1);
    pair.verb(A, Verb::Demote { force: false });
    pair.pass(1_000);
    for site in [A, B] {
        let id = pair.verb(site, Verb::Reseed);
        assert!(matches!(pair.copies[site].end_of(id), Some(Err(_))), "nobody leads, but the two are one history");
    }
}

#[test]
fn seedings_that_fail_come_at_growing_intervals_and_an_alarm_says_so() {
    let mut pair = Pair::new();
    pair.write(A, 0, 1);
    pair.copies[B].fate =
        |op| if matches!(op, DiskOp::Zero { file: FileRef::Base, .. }) { Fate::FindsNoSpace } else { Fate::Done };
    pair.verb(B, Verb::Reseed);
    let mut failed = Vec::new();
    for second in 0..120 {
        pair.pass(1_000);
        pair.connect();
        let alarms = pair.copies[B].alarms.iter().filter(|code| **code == "base_write_failed").count();
        failed.resize(alarms, second);
    }
    assert!((6..=9).contains(&failed.len()), "{failed:?}");
    assert!(pair.copies[A].alarms.contains(&"seeding_fails"), "{:?}", pair.copies[A].alarms);
    assert!(
        matches!(&pair.status(A).link, LinkState::Refused(why) if why.contains("to no end")),
        "{:?}",
        pair.status(A)
    );

    pair.copies[B].fate = |_| Fate::Done;
    pair.pass(60_000);
    pair.connect();
    pair.pass(1_000);
    assert!(matches!(pair.status(B).copy, CopyState::Current), "{:?}", pair.status(B).copy);
}

#[test]
fn a_copy_that_was_given_up_is_not_drained() {
    let mut pair = Pair::new();
    pair.disconnect();
    pair.verb(B, Verb::Reseed);
    let drain = pair.verb(B, Verb::Drain);
    let refused =
        matches!(pair.copies[B].end_of(drain), Some(Err(VerbError::CopyState { state, .. })) if state == "given up");
    assert!(refused, "{:?}", pair.copies[B].end_of(drain));
}

#[test]
fn a_copy_that_is_given_up_in_the_moment_in_which_it_joins_s_is_left_out_of_it_seeded_and_joins_later() {
    let mut pair = Pair::new();
    pair.write(A, 0, 1);
    pair.deaf[B] = true; // the EXPAND gets lost
    let policy = Policy { mode: Mode::Sync, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    assert_eq!((pair.status(A).config.sites.len(), pair.status(B).config.sites.len()), (2, 1));
    pair.deaf[B] = false;
    let waiting = pair.write(A, 1, 2);
    assert!(!pair.copies[A].replies.contains(&waiting), "K lists a site that holds nothing of it");

    let given_up = pair.verb(B, Verb::Reseed);
    assert!(matches!(pair.copies[B].end_of(given_up), Some(Ok(_))));
    pair.connect();
    pair.pass(2_000);
    assert!(pair.copies[A].replies.contains(&waiting));
    let (a, b) = (pair.status(A), pair.status(B));
    assert!(a.protected, "{}", a.not_protected_because);
    assert_eq!((a.config.id(), a.config.sites.len(), a.appended), (b.config.id(), 2, b.appended));
}
