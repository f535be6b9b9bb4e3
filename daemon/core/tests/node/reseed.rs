//! A copy that was given up.

use tidemark_core::config::Mode;
use tidemark_core::event::{DiskOp, FileRef};
use tidemark_core::status::CopyState;
use tidemark_core::verb::Verb;

use crate::bench::{A, B, Fate};
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
