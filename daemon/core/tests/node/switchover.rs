//! Switchover by one verb: the peer serves with everything, or things are as they were, or who asked is told that nobody serves.

use tidemark_core::config::{Mode, OnPeerLoss, Policy};
use tidemark_core::event::{ConnId, DiskOp, Input};
use tidemark_core::ship::{FEATURE_HANDOVER, Message};
use tidemark_core::status::Role;
use tidemark_core::verb::{Verb, VerbError, VerbOk};

use crate::bench::{A, B, Fate, Pair, is_log_sync, promote_anyway, site_id};

fn switchover(to: usize) -> Verb {
    Verb::Switchover { to: site_id(to), force: false }
}

fn sync() -> Pair {
    let mut pair = Pair::new();
    let policy = Policy { mode: Mode::Sync, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    assert_eq!(pair.status(B).config.sites.len(), 2);
    pair
}

fn roles(pair: &Pair) -> [Role; 2] {
    [A, B].map(|site| pair.status(site).role)
}

/// Ends the switchover that is under way, and gives the reason why it did not come about.
fn interrupted(pair: &Pair, id: tidemark_core::event::VerbId) -> String {
    match pair.copies[A].end_of(id) {
        Some(Err(VerbError::Interrupted(why))) => why.clone(),
        end => panic!("{end:?}: {:?}", pair.status(A)),
    }
}

/// A was demoted and B heard nothing of it.
fn lost_on_the_way(pair: &mut Pair) -> tidemark_core::event::VerbId {
    pair.pass(1_000);
    pair.deaf[B] = true;
    let id = pair.verb(A, switchover(B));
    pair.pass(500);
    assert_eq!((pair.copies[A].end_of(id), pair.status(A).config.primary), (None, None));
    id
}

#[test]
fn the_other_site_serves_all_that_was_written_and_the_pause_is_told() {
    for mut pair in [sync(), Pair::new()] {
        pair.write_without_promise(A, 3, 7);
        let in_s = pair.status(A).config.sites.len();
        assert!(pair.plan(A, &switchover(B)).is_ok());
        let id = pair.verb(A, switchover(B));
        let done = VerbOk::SwitchedOver { site: site_id(B), pause_ms: 0 };
        assert_eq!(pair.copies[A].end_of(id), Some(&Ok(done)), "no time has passed here");
        assert_eq!(roles(&pair), [Role::Secondary, Role::Primary]);
        assert_eq!(pair.read(B, 3), 7);
        pair.pass(1_000);
        assert_eq!(pair.status(B).config.sites.len(), in_s);
        // Again, and from the site that is none any more.
        let again = pair.verb(A, switchover(B));
        assert!(matches!(pair.copies[A].end_of(again), Some(Ok(VerbOk::SwitchedOver { .. }))));
        let back = pair.verb(B, switchover(A));
        let back = pair.copies[B].end_of(back);
        assert!(matches!(back, Some(Ok(VerbOk::SwitchedOver { .. }))), "{back:?}");
        assert_eq!(pair.read(A, 3), 7);
    }
}

#[test]
fn the_pause_counts_from_the_last_answer_to_the_other_sites_first() {
    let mut pair = sync();
    pair.copies[B].fate = |op| if is_log_sync(op) { Fate::Later } else { Fate::Done };
    pair.write_without_promise(A, 1, 1);
    let id = pair.verb(A, switchover(B));
    pair.pass(700);
    assert_eq!((pair.copies[A].end_of(id), pair.status(A).config.primary), (None, Some(site_id(A))), "B lacks it");
    pair.copies[B].fate = |_| Fate::Done;
    pair.do_late(B);
    pair.pass(100);
    let Some(Ok(VerbOk::SwitchedOver { pause_ms, .. })) = pair.copies[A].end_of(id) else { panic!("not done") };
    assert!((700..=900).contains(pause_ms), "{pause_ms}");
}

#[test]
fn what_cannot_come_about_is_refused_before_anything_stops() {
    let mut pair = sync();
    let refused = |pair: &mut Pair, site: usize, verb: Verb| {
        let plan = pair.plan(site, &verb).expect_err("refused");
        let id = pair.verb(site, verb);
        assert_eq!(pair.copies[site].end_of(id), Some(&Err(plan.clone())), "as it was foretold");
        plan
    };
    assert!(matches!(refused(&mut pair, B, switchover(B)), VerbError::Role { .. }), "asked at the wrong site");
    let stranger = Verb::Switchover { to: site_id(5), force: false };
    assert!(matches!(refused(&mut pair, A, stranger), VerbError::Invalid(_)));
    let mut hello = pair.copies[B].said.clone().expect("it has greeted");
    hello.features &= !FEATURE_HANDOVER;
    pair.tell(A, Input::PeerMessage(ConnId(pair.streams()), Message::Hello(hello)));
    pair.settle();
    let VerbError::PeerUnfit { why, hint, .. } = refused(&mut pair, A, switchover(B)) else { panic!("an old peer") };
    assert!(why.contains("too old") && hint.contains("demote here"), "{why}; {hint}");
    pair.disconnect();
    let VerbError::PeerUnfit { why, .. } = refused(&mut pair, A, switchover(B)) else { panic!("no peer") };
    assert!(why.contains("not connected"), "{why}");
    assert_eq!(roles(&pair), [Role::Primary, Role::Secondary]);
}

#[test]
fn a_peer_whose_disk_does_not_answer_leaves_the_volume_where_it_is() {
    let mut pair = sync();
    pair.copies[B].fate = |op| if is_log_sync(op) { Fate::Later } else { Fate::Done };
    pair.write_without_promise(A, 1, 1);
    let id = pair.verb(A, switchover(B));
    pair.pass(10_000);
    assert!(interrupted(&pair, id).contains("serves again"));
    assert_eq!(roles(&pair), [Role::Primary, Role::Secondary]);
    pair.copies[B].fate = |_| Fate::Done;
    pair.do_late(B);
    assert_eq!(pair.read(A, 1), 1);
}

#[test]
fn a_peer_that_does_not_answer_is_named_and_the_same_verb_goes_on_when_it_is_back() {
    for witnessed in [false, true] {
        let mut pair = sync();
        if witnessed {
            pair.appoint_witness(2_000_000_000);
            let policy = Policy { on_peer_loss: OnPeerLoss::Witness, ..pair.status(A).policy };
            pair.verb(A, Verb::SetPolicy(policy));
            pair.pass(1_000);
            assert_ne!(pair.status(A).config.lease_gen, 0);
        }
        pair.write_without_promise(A, 3, 7);
        let id = lost_on_the_way(&mut pair);
        pair.pass(10_000);
        let why = interrupted(&pair, id);
        assert!(why.contains("No site is the primary now and nothing is lost"), "{why}");
        assert_eq!(roles(&pair), [Role::Secondary; 2]);
        pair.deaf[B] = false;
        pair.connect();
        let id = pair.verb(A, switchover(B));
        pair.pass(1_000);
        assert!(matches!(pair.copies[A].end_of(id), Some(Ok(_))), "{:?}", pair.copies[A].end_of(id));
        assert_eq!(roles(&pair), [Role::Secondary, Role::Primary]);
        assert_eq!(pair.read(B, 3), 7);
    }
}

#[test]
fn a_stream_that_breaks_in_between_is_waited_for() {
    let mut pair = sync();
    pair.write_without_promise(A, 3, 7);
    let id = lost_on_the_way(&mut pair);
    pair.disconnect();
    pair.deaf[B] = false;
    // B adopts K without a primary, and its question for the role is lost.
    pair.deaf[A] = true;
    pair.connect();
    pair.deaf[A] = false;
    pair.connect();
    pair.pass(200);
    assert!(matches!(pair.copies[A].end_of(id), Some(Ok(_))), "{:?}", pair.copies[A].end_of(id));
    assert_eq!(pair.read(B, 3), 7);
}

#[test]
fn a_peer_that_will_not_take_over_gives_the_role_back() {
    let mut pair = Pair::new();
    pair.write_without_promise(A, 3, 7);
    let id = lost_on_the_way(&mut pair);
    let reseed = pair.verb(B, Verb::Reseed);
    assert!(pair.copies[B].end_of(reseed).is_some_and(Result::is_ok));
    pair.deaf[B] = false;
    pair.connect();
    pair.pass(3_000);
    let why = interrupted(&pair, id);
    assert!(why.contains("given up") && why.ends_with("this site serves again"), "{why}");
    assert_eq!(roles(&pair), [Role::Primary, Role::Secondary]);
    assert_eq!(pair.read(A, 3), 7);
}

#[test]
fn a_primary_that_was_replaced_while_it_hands_over_says_who_serves() {
    let mut pair = sync();
    pair.copies[B].fate = |op: &DiskOp| if is_log_sync(op) { Fate::Later } else { Fate::Done };
    pair.write_without_promise(A, 1, 1);
    let id = pair.verb(A, switchover(B));
    pair.disconnect();
    pair.copies[B].fate = |_| Fate::Done;
    pair.do_late(B);
    pair.verb(B, promote_anyway());
    pair.connect();
    pair.pass(11_000);
    assert!(pair.copies[A].end_of(id).is_some(), "{:?}", pair.status(A));
    assert_eq!(pair.status(B).role, Role::Primary);
}
