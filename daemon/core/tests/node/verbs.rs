//! Verbs, at moments at which they cannot do what they are for.

use tidemark_core::config::{Mode, Policy};
use tidemark_core::event::{DiskOp, FileRef};
use tidemark_core::status::{CopyState, Role};
use tidemark_core::verb::{Verb, VerbError, VerbOk};

use crate::bench::{A, B, Fate, Pair, SIZE, VOLUME, assertion, is_log_sync, promote_anyway, site_id};

fn no_sync_of_the_log(op: &DiskOp) -> Fate {
    if is_log_sync(op) { Fate::Fails } else { Fate::Done }
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
fn a_promotion_that_is_asked_for_while_the_copy_is_recovered_begins_afterwards() {
    let mut pair = Pair::new();
    pair.kill(A);
    pair.kill(B);
    pair.copies[B].fate = |_| Fate::Hangs;
    pair.start(B);
    let promotion = pair.verb(B, promote_anyway());
    pair.pass(9_000);
    assert_eq!(pair.copies[B].end_of(promotion), None);
    pair.pass(1_000);
    assert!(matches!(pair.copies[B].end_of(promotion), Some(Err(VerbError::Interrupted(_)))), "by its deadline");

    pair.kill(B);
    pair.copies[B].fate = |_| Fate::Later;
    pair.start(B);
    let promotion = pair.verb(B, promote_anyway());
    assert_eq!(pair.copies[B].end_of(promotion), None);
    pair.copies[B].fate = |_| Fate::Done;
    pair.do_late(B);
    assert!(matches!(pair.copies[B].end_of(promotion), Some(Ok(VerbOk::Promoted { .. }))));
    assert_eq!(pair.status(B).role, Role::Primary);
}

#[test]
fn a_promotion_that_waits_for_the_recovery_ends_when_the_copy_is_closed() {
    let mut pair = Pair::new();
    pair.kill(B);
    pair.copies[B].fate = |_| Fate::Hangs;
    pair.start(B);
    let promotion = pair.verb(B, promote_anyway());
    let close = pair.verb(B, Verb::Close);
    assert!(pair.copies[B].end_of(promotion).is_some_and(Result::is_err));
    assert!(pair.copies[B].end_of(close).is_some_and(Result::is_ok));
}

#[test]
fn a_demotion_that_can_go_on_while_another_change_is_written_waits_for_that() {
    let mut pair = Pair::new();
    let policy = Policy { mode: Mode::Sync, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(1_000);
    pair.copies[B].fate = |op| if is_log_sync(op) { Fate::Later } else { Fate::Done };
    pair.write_without_promise(A, 1, 1);
    let demote = pair.verb(A, Verb::Demote { force: false });
    pair.pass(200);
    assert_eq!(pair.copies[A].end_of(demote), None, "B has synced nothing");
    pair.copies[A].fate =
        |op| if matches!(op, DiskOp::Write { file: FileRef::Config, .. }) { Fate::Later } else { Fate::Done };
    let drop_peer = pair.verb(A, Verb::DropPeer(assertion()));
    pair.copies[B].fate = |_| Fate::Done;
    pair.do_late(B);
    assert_eq!(pair.status(A).peer_durable, pair.status(A).appended.lsn, "all that the demotion waited for");
    pair.copies[A].fate = |_| Fate::Done;
    pair.do_late(A);
    pair.pass(1_000);
    for verb in [demote, drop_peer] {
        assert!(pair.copies[A].end_of(verb).is_some(), "{:?}", pair.status(A));
    }
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

#[test]
fn a_resize_that_is_not_durable_when_its_site_is_fenced_is_not_reported_as_done() {
    let mut pair = Pair::new();
    for copy in &mut pair.copies {
        copy.files.get_mut(&FileRef::Base).unwrap().resize(2 * SIZE as usize, 0);
    }
    pair.copies[A].fate =
        |op| if matches!(op, DiskOp::Write { file: FileRef::Log(_), .. }) { Fate::Later } else { Fate::Done };
    let resize = pair.verb(A, Verb::Resize { volume: VOLUME, size: 2 * SIZE });
    pair.disconnect();
    assert_eq!(pair.copies[A].end_of(resize), None);
    pair.verb(B, promote_anyway());
    pair.write(B, 0, 1);
    pair.connect();
    pair.copies[A].fate = |_| Fate::Done;
    pair.do_late(A);
    pair.pass(1_000);
    assert!(matches!(pair.status(A).role, Role::Fenced(_)), "{:?}", pair.status(A).role);
    let end = pair.copies[A].end_of(resize);
    assert!(matches!(end, Some(Err(VerbError::Interrupted(_)))), "{end:?}");
}

#[test]
fn a_demotion_that_waits_while_the_other_site_becomes_primary_leaves_that_sites_configuration_alone() {
    let mut pair = Pair::new();
    let policy = Policy { mode: Mode::Sync, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    assert_eq!(pair.status(B).config.sites.len(), 2);
    pair.disconnect();
    pair.write(A, 0, 1);
    pair.verb(B, promote_anyway());
    let demotion = pair.verb(A, Verb::Demote { force: true });
    assert!(pair.copies[A].end_of(demotion).is_none(), "B may lack what was written");
    pair.connect();
    pair.pass(2_000);
    assert!(matches!(pair.copies[A].end_of(demotion), Some(Ok(_))), "{:?}", pair.copies[A].ended);
    let (a, b) = (pair.status(A), pair.status(B));
    assert_eq!((a.role, b.role, b.config.primary), (Role::Secondary, Role::Primary, Some(site_id(B))));
    assert_eq!(a.config.id(), b.config.id());
}

#[test]
fn a_drain_that_a_silent_peer_holds_back_ends_by_its_deadline_and_names_it() {
    let mut pair = Pair::new();
    let policy = Policy { mode: Mode::Sync, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(1_000);
    pair.copies[B].fate = |op| if is_log_sync(op) { Fate::Hangs } else { Fate::Done };
    pair.write_without_promise(A, 1, 1);
    let id = pair.verb(A, Verb::Drain);
    pair.pass(599_000);
    assert_eq!(pair.copies[A].end_of(id), None);
    pair.pass(2_000);
    let Some(Err(VerbError::Interrupted(why))) = pair.copies[A].end_of(id) else { panic!("{:?}", pair.status(A)) };
    assert!(why.contains(&format!("site {}", site_id(B))), "{why}");
}
