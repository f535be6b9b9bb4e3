//! A copy that fell behind the log is brought up to date by what changed.

use tidemark_core::config::Policy;
use tidemark_core::event::{DiskOp, FileRef};
use tidemark_core::status::CopyState;
use tidemark_core::types::BLOCK;
use tidemark_core::verb::Verb;

use crate::bench::{A, B, Fate, Pair, SIZE, SLOT_BYTES};

const BLOCKS: u64 = SIZE / BLOCK as u64;
/// Blocks that are written while the peer is away, over and over.
const CHANGED: [u64; 6] = [3, 4, 5, 77, 200, 255];

fn seeded(pair: &Pair) -> u64 {
    pair.status(A).counters.seeded_bytes
}

/// Both hold data everywhere, and the log is small.
fn full_pair() -> Pair {
    let mut pair = Pair::new();
    let policy = Policy { log_bytes: 8 * SLOT_BYTES, retention_ms: 2_000, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    for block in 0..BLOCKS {
        pair.write(A, block, (block % 250) as u8 + 1);
        pair.pass(100);
    }
    pair.pass(2_000);
    pair
}

/// The primary writes more than its log holds.
fn write_more_than_the_log(pair: &mut Pair) {
    for round in 0..40u8 {
        for block in CHANGED {
            // The last of them is zeros: the peer has other data there.
            pair.write(A, block, if block == 77 { 0 } else { round + 100 });
        }
        pair.pass(100);
    }
    pair.pass(1_000);
}

fn is_in_step(pair: &mut Pair) {
    pair.pass(2_000);
    assert_eq!(pair.status(B).copy, CopyState::Current, "{:?}", pair.status(B));
    for site in [A, B] {
        let drain = pair.verb(site, Verb::Drain);
        pair.pass(2_000);
        assert!(pair.copies[site].end_of(drain).is_some_and(Result::is_ok), "{:?}", pair.status(site));
    }
    assert!(pair.copies[A].base() == pair.copies[B].base(), "both hold the same");
}

/// Bytes of what changed that is not zeros.
const DIFFERENCE: u64 = (CHANGED.len() as u64 - 1) * BLOCK as u64;

#[test]
fn a_copy_that_fell_behind_the_log_is_sent_what_changed_and_nothing_else() {
    let mut pair = full_pair();
    pair.disconnect();
    write_more_than_the_log(&mut pair);
    let before = seeded(&pair);
    pair.connect();
    is_in_step(&mut pair);
    assert_eq!(seeded(&pair) - before, DIFFERENCE);
}

#[test]
fn what_changed_is_known_after_restarts_of_the_primary_and_beyond_many_advances_of_its_floor() {
    let mut pair = full_pair();
    pair.disconnect();
    for _ in 0..5 {
        write_more_than_the_log(&mut pair);
        pair.kill(A);
        pair.start(A);
    }
    let before = seeded(&pair);
    pair.connect();
    is_in_step(&mut pair);
    assert_eq!(seeded(&pair) - before, DIFFERENCE);
}

#[test]
fn where_a_footer_is_damaged_or_missing_the_whole_is_sent() {
    for damage in [|content: &mut Vec<u8>| content[100] ^= 1, |content: &mut Vec<u8>| content.clear()] {
        let mut pair = full_pair();
        pair.disconnect();
        write_more_than_the_log(&mut pair);
        pair.kill(A);
        let footers = pair.copies[A].files.iter_mut().filter(|(file, _)| matches!(file, FileRef::Footer(_)));
        let (_, content) = footers.last().expect("there are footers");
        damage(content);
        pair.start(A);
        let before = seeded(&pair);
        pair.connect();
        is_in_step(&mut pair);
        assert!(seeded(&pair) - before >= SIZE - BLOCK as u64, "{}", seeded(&pair) - before);
    }
}

fn base_is_late(op: &DiskOp) -> Fate {
    match op {
        DiskOp::Write { file: FileRef::Base, offset, .. } if *offset >= 77 * BLOCK as u64 => Fate::Later,
        _ => Fate::Done,
    }
}

/// A difference that stands still after some of it was written.
fn half_done() -> Pair {
    let mut pair = full_pair();
    pair.disconnect();
    write_more_than_the_log(&mut pair);
    pair.copies[B].fate = base_is_late;
    pair.connect();
    pair.pass(500);
    assert!(matches!(pair.status(B).copy, CopyState::Seeding { by_difference: true, .. }), "{:?}", pair.status(B));
    pair
}

/// The same, and the peer died then.
fn broken_off() -> Pair {
    let mut pair = half_done();
    pair.kill(B);
    pair.copies[B].fate = |_| Fate::Done;
    pair
}

#[test]
fn a_difference_whose_stream_broke_is_taken_up() {
    let mut pair = half_done();
    pair.disconnect();
    pair.copies[B].fate = |_| Fate::Done;
    pair.do_late(B);
    for block in [10, 11] {
        pair.write(A, block, 7);
    }
    let before = seeded(&pair);
    pair.connect();
    is_in_step(&mut pair);
    assert_eq!(seeded(&pair) - before, DIFFERENCE + 2 * BLOCK as u64);
}

#[test]
fn a_base_that_somebody_wrote_to_after_its_process_died_in_a_difference_is_made_anew() {
    let mut pair = broken_off();
    pair.copies[B].files.get_mut(&FileRef::Base).unwrap()[100 * BLOCK..][..512].fill(0xee);
    pair.start(B);
    pair.connect();
    is_in_step(&mut pair);
}

#[test]
fn a_difference_that_the_primary_broke_off_is_followed_by_the_whole() {
    let mut pair = broken_off();
    pair.kill(A);
    pair.start(A);
    pair.start(B);
    let before = seeded(&pair);
    pair.connect();
    is_in_step(&mut pair);
    assert!(seeded(&pair) - before >= SIZE - BLOCK as u64, "{}", seeded(&pair) - before);
}

#[test]
fn nothing_is_kept_of_what_changed_while_the_peer_is_in_step() {
    let mut pair = full_pair();
    for round in 0..60 {
        pair.write(A, CHANGED[round as usize % CHANGED.len()], round);
        pair.pass(100);
    }
    let footers = pair.copies[A].files.keys().filter(|file| matches!(file, FileRef::Footer(_))).count();
    assert_eq!(footers, 0);
}
