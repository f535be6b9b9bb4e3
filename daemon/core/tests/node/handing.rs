//! A switchover that was interrupted between the demotion and the promotion: it goes on by itself until some site is the primary.

use tidemark_core::config::{Mode, OnPeerLoss, Policy};
use tidemark_core::status::Role;
use tidemark_core::verb::{Verb, VerbError, VerbOk};

use crate::bench::{A, B, Pair, site_id};

const SECOND: u64 = 1_000_000_000;
/// The wait for a lease of two seconds, and what it takes to notice and to open.
const WAIT_MS: u64 = 8_000;

fn in_mode(mode: Mode) -> Pair {
    let mut pair = Pair::new();
    let policy = Policy { mode, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair
}

fn witnessed(auto_failover: bool) -> Pair {
    let mut pair = Pair::new();
    pair.appoint_witness(2 * SECOND);
    let policy = Policy {
        mode: Mode::Sync,
        on_peer_loss: OnPeerLoss::Witness,
        auto_failover,
        peer_loss_ms: 1_000,
        ..pair.status(A).policy
    };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(1_000);
    assert_ne!(pair.status(A).config.lease_gen, 0);
    pair
}

fn promote() -> Verb {
    Verb::Promote { assert_peer_fenced: None, max_loss_bytes: None, max_loss_seconds: None, allow_unproven: false }
}

/// A was demoted for B, and B has heard nothing of it.
fn unheard(pair: &mut Pair) {
    pair.write_without_promise(A, 3, 7);
    pair.pass(1_000);
    pair.deaf[B] = true;
    pair.verb(A, Verb::Switchover { to: site_id(B), force: false });
    pair.pass(300);
    let k = pair.status(A).config;
    assert_eq!((k.primary, k.hands_over), (None, true));
}

/// A was demoted, for B or for nobody; B knows of that, and is not asked for anything.
fn heard(pair: &mut Pair, verb: Verb) {
    pair.write_without_promise(A, 3, 7);
    pair.pass(1_000);
    pair.deaf[A] = true;
    pair.verb(A, verb);
    pair.pass(300);
    pair.disconnect();
    pair.deaf[A] = false;
    assert_eq!([A, B].map(|site| pair.status(site).config.primary), [None; 2]);
}

fn serves(pair: &mut Pair, site: usize) {
    assert_eq!(pair.status(site).role, Role::Primary, "{:?}", pair.status(site));
    assert_eq!(pair.status(site).config.primary, Some(site_id(site)));
    assert_eq!(pair.read(site, 3), 7);
}

#[test]
fn it_goes_on_when_either_copy_is_opened_anew() {
    for mode in [Mode::Sync, Mode::Async] {
        for dies in [A, B] {
            let mut pair = in_mode(mode);
            unheard(&mut pair);
            pair.disconnect();
            pair.kill(dies);
            pair.deaf[B] = false;
            pair.start(dies);
            pair.connect();
            pair.pass(1_000);
            serves(&mut pair, B);
        }
    }
}

#[test]
fn it_goes_on_after_who_asked_was_told_that_no_site_serves() {
    let mut pair = in_mode(Mode::Sync);
    unheard(&mut pair);
    pair.pass(12_000);
    let Some((_, Err(VerbError::Interrupted(why)))) = pair.copies[A].ended.last() else { panic!("it waits") };
    assert!(why.contains("goes on by itself"), "{why}");
    pair.deaf[B] = false;
    pair.connect();
    pair.pass(1_000);
    serves(&mut pair, B);
}

#[test]
fn a_peer_that_cannot_take_over_gives_the_role_back_though_nobody_waits_for_it() {
    let mut pair = in_mode(Mode::Async);
    unheard(&mut pair);
    pair.disconnect();
    pair.kill(A);
    pair.verb(B, Verb::Reseed);
    pair.deaf[B] = false;
    pair.start(A);
    pair.connect();
    pair.pass(30_000);
    serves(&mut pair, A);
}

#[test]
fn an_heir_takes_over_by_the_witness_from_a_site_that_died_as_it_handed_over() {
    let mut pair = witnessed(true);
    heard(&mut pair, Verb::Switchover { to: site_id(B), force: false });
    pair.kill(A);
    pair.pass(WAIT_MS);
    serves(&mut pair, B);
    pair.start(A);
    pair.connect();
    pair.pass(2_000);
    assert_eq!((pair.status(A).role, pair.status(B).config.sites.len()), (Role::Secondary, 2));
    serves(&mut pair, B);
}

#[test]
fn a_site_that_hands_over_to_one_that_died_serves_again_by_the_witness() {
    let mut pair = witnessed(false);
    unheard(&mut pair);
    pair.disconnect();
    pair.kill(B);
    pair.pass(WAIT_MS);
    serves(&mut pair, A);
}

#[test]
fn what_was_demoted_for_nobody_waits_for_a_person_and_then_needs_no_word() {
    for site in [A, B] {
        let mut pair = witnessed(true);
        heard(&mut pair, Verb::Demote { force: false });
        pair.kill(1 - site);
        pair.pass(60_000);
        assert_eq!(pair.status(site).role, Role::Secondary, "nobody is to be the primary");
        let promotable = pair.status(site).promotable;
        assert!(promotable.blockers.is_empty() && !promotable.needs_word, "{promotable:?}");
        let plan = pair.plan(site, &promote()).expect("it may be promoted");
        assert!(plan.steps[0].contains("no site is"), "{plan:?}");
        let id = pair.verb(site, promote());
        pair.pass(WAIT_MS);
        assert!(matches!(pair.copies[site].end_of(id), Some(Ok(VerbOk::Promoted { .. }))));
        serves(&mut pair, site);
    }
}

#[test]
fn a_witness_that_does_not_answer_is_named_where_nobody_is_the_primary() {
    let mut pair = witnessed(true);
    heard(&mut pair, Verb::Demote { force: false });
    pair.kill(A);
    pair.witness.way[B] = crate::witness::Way::Shut;
    let id = pair.verb(B, promote());
    pair.pass(30_000);
    let Some(Err(VerbError::Interrupted(why))) = pair.copies[B].end_of(id) else { panic!("{:?}", pair.status(B)) };
    assert!(why.contains("the witness did not answer"), "{why}");
}

#[test]
fn of_two_that_may_ask_the_witness_one_becomes_the_primary() {
    let mut pair = witnessed(true);
    heard(&mut pair, Verb::Switchover { to: site_id(B), force: false });
    pair.pass(WAIT_MS);
    let primaries = [A, B].into_iter().filter(|site| pair.status(*site).role == Role::Primary).count();
    assert_eq!(primaries, 1, "{:?} {:?}", pair.status(A), pair.status(B));
    pair.connect();
    pair.pass(3_000);
    assert_eq!(pair.status(A).config, pair.status(B).config);
    assert!(pair.status(A).config.sites.len() == 2 && pair.status(A).config.primary.is_some());
}
