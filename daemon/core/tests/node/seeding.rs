//! A copy that is seeded.

use tidemark_core::event::{DiskOp, FileRef};
use tidemark_core::status::{CopyState, Role};
use tidemark_core::verb::VerbError;

use crate::bench::{A, B, Fate, Pair, promote_anyway};

/// The superblock waits until the test says so; everything else is done.
fn superblock_later(op: &DiskOp) -> Fate {
    match op {
        DiskOp::Write { file: FileRef::Superblock, .. } => Fate::Later,
        _ => Fate::Done,
    }
}

#[test]
fn a_copy_is_whole_and_may_be_promoted_once_its_superblock_says_that_its_seeding_ended() {
    let mut pair = Pair::new();
    pair.write(A, 0, 1);
    pair.kill(B);
    pair.copies[B].fate = superblock_later;
    pair.replace_b();
    // Settled, begun, begun the last pass: then "whole".
    for _ in 0..2 {
        pair.do_late(B);
        assert!(matches!(pair.status(B).copy, CopyState::Seeding { .. }), "{:?}", pair.status(B).copy);
    }
    pair.do_late(B);
    pair.disconnect();
    let promotion = pair.verb(B, promote_anyway());
    let refused = matches!(pair.copies[B].end_of(promotion), Some(Err(VerbError::CopyState { .. })));
    assert!(refused, "{:?}", pair.copies[B].end_of(promotion));
    pair.do_late(B);
    pair.verb(B, promote_anyway());
    pair.pass(1_000);
    pair.do_late(B);
    pair.pass(1_000);
    assert_eq!(pair.status(B).role, Role::Primary);
}
