//! Verbs, at moments at which they cannot do what they are for.

use tidemark_core::event::{DiskOp, FileRef};
use tidemark_core::status::CopyState;
use tidemark_core::verb::{Verb, VerbError};

use crate::bench::{A, B, Fate, Pair};

fn no_sync_of_the_log(op: &DiskOp) -> Fate {
    match op {
        DiskOp::Sync { files } if files.iter().any(|f| matches!(f, FileRef::Log(_))) => Fate::Fails,
        _ => Fate::Done,
    }
}

#[test]
fn a_copy_that_failed_for_good_says_so_after_a_restart_and_is_not_drained() {
    let mut pair = Pair::new();
    pair.copies[B].fate = no_sync_of_the_log;
    pair.write(A, 1, 1);
    pair.pass(1_000);
    assert_eq!(pair.copies[B].alarms, ["copy_failed"]);
    pair.kill(B);
    pair.copies[B].fate = |_| Fate::Done;
    pair.start(B);
    pair.connect();
    let CopyState::Failed { reason } = pair.status(B).copy else { panic!("{:?}", pair.status(B).copy) };
    assert!(!reason.is_empty());

    let drain = pair.verb(B, Verb::Drain);
    let refused =
        Err(VerbError::CopyState { state: "failed".into(), hint: "its base cannot be brought up to its log".into() });
    assert_eq!(pair.copies[B].end_of(drain), Some(&refused), "nobody waits until a deadline of minutes");
}

#[test]
fn a_drain_ends_when_the_copy_is_drained() {
    let mut pair = Pair::new();
    pair.write(A, 1, 1);
    for site in [A, B] {
        let drain = pair.verb(site, Verb::Drain);
        pair.pass(1_000);
        assert!(pair.copies[site].end_of(drain).is_some_and(Result::is_ok));
        assert_eq!(pair.status(site).floor, pair.status(site).appended.lsn);
    }
}
