//! What the witness decides: who serves, who goes on alone, and who takes over.

use tidemark_core::config::{Mode, OnPeerLoss, Policy};
use tidemark_core::event::{DiskOp, FileRef, VerbId};
use tidemark_core::format::witness::{Cell, Content};
use tidemark_core::group::arbitrated::Unfit;
use tidemark_core::status::{CopyState, Role, SuspendReason};
use tidemark_core::types::{GroupId, NodeId};
use tidemark_core::verb::{Assertion, PromotionClass, Verb, VerbError, VerbOk};

use crate::bench::{A, B, Fate, Pair, assertion, promote_anyway};
use crate::witness::Way;

const SECOND: u64 = 1_000_000_000;
/// D * 1.02 + 1 s, and what it takes to notice.
const WAIT_MS: u64 = 3_600;
const LEASE_LOST: Role = Role::Suspended(SuspendReason::LeaseLost);
const GROUP: Cell = Cell::Group(GroupId([9; 16]));

/// A sync volume at A and B, S = {A, B}, under a witness with leases of two seconds.
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
    let k = pair.status(A).config;
    assert!(k.sites.len() == 2 && k.lease_gen != 0 && pair.status(A).protected, "{:?}", pair.status(A));
    assert_eq!(pair.status(B).config, k);
    pair
}

/// A promotion, by a word or without one, that accepts no loss.
fn promote(word: Option<Assertion>) -> Verb {
    Verb::Promote { assert_peer_fenced: word, max_loss_bytes: None, max_loss_seconds: None, allow_unproven: false }
}

fn take_over() -> Verb {
    promote(None)
}

fn is_answered(pair: &Pair, site: usize, id: tidemark_core::event::RequestId) -> bool {
    pair.copies[site].replies.contains(&id)
}

fn unfit(pair: &Pair, site: usize, id: VerbId) -> Option<Unfit> {
    match pair.copies[site].end_of(id) {
        Some(Err(VerbError::Unfit(why))) => Some(*why),
        _ => None,
    }
}

fn role(pair: &Pair, site: usize) -> Role {
    pair.status(site).role
}

#[test]
fn a_primary_without_its_peer_goes_on_once_the_witness_left_the_peer_out() {
    let mut pair = witnessed(false);
    pair.disconnect();
    let write = pair.write(A, 0, 1);
    assert!(!is_answered(&pair, A, write), "B is in S");
    pair.pass(900);
    assert!(!is_answered(&pair, A, write));
    pair.pass(300);
    assert!(is_answered(&pair, A, write));
    let k = pair.status(A).config;
    assert_eq!((k.sites.len(), k.forced), (1, false));
    assert_eq!(pair.witness.cell(GROUP), Some(&Content::Config(k)));
    pair.connect();
    pair.pass(1_000);
    assert_eq!(pair.status(A).config.sites.len(), 2, "{:?}", pair.status(A));
    assert!(pair.status(A).protected);
}

#[test]
fn without_the_witness_a_flush_waits_for_the_peer_however_long() {
    let mut pair = witnessed(true);
    pair.witness.way[A] = Way::Shut;
    pair.witness.way[B] = Way::Shut;
    pair.disconnect();
    let write = pair.write(A, 0, 1);
    pair.pass(60_000);
    assert!(!is_answered(&pair, A, write));
    assert_eq!((role(&pair, A), role(&pair, B)), (LEASE_LOST, Role::Secondary));
    pair.connect();
    pair.pass(1_000);
    assert!(is_answered(&pair, A, write), "{:?}", pair.status(A));
    assert_eq!(role(&pair, A), Role::Primary);
}

#[test]
fn a_follower_takes_over_when_the_lease_of_a_dead_primary_has_ended() {
    let mut pair = witnessed(true);
    pair.write(A, 3, 7);
    pair.kill(A);
    pair.pass(WAIT_MS - 700);
    assert_eq!(role(&pair, B), Role::Secondary);
    pair.pass(1_200);
    assert_eq!(role(&pair, B), Role::Primary, "{:?}", pair.status(B));
    assert_eq!(pair.read(B, 3), 7);
    let write = pair.write(B, 4, 8);
    assert!(is_answered(&pair, B, write));
}

#[test]
fn the_old_primary_follows_without_a_word_when_it_comes_back() {
    let mut pair = witnessed(true);
    pair.write(A, 3, 7);
    pair.disconnect();
    pair.witness.way[A] = Way::Shut;
    pair.write(A, 3, 9);
    pair.pass(6_000);
    assert_eq!((role(&pair, A), role(&pair, B)), (LEASE_LOST, Role::Primary));
    pair.write(B, 5, 1);
    pair.witness.way[A] = Way::Open;
    pair.connect();
    pair.pass(2_000);
    assert_eq!(role(&pair, A), Role::Secondary, "{:?}", pair.status(A));
    assert_eq!(pair.status(B).config.sites.len(), 2, "{:?}", pair.status(B));
    assert!(pair.status(A).branches > 0, "what nobody was promised is kept");
    pair.write(B, 6, 2);
    assert_eq!(pair.status(A).durable, pair.status(B).durable);
}

#[test]
fn a_cut_primary_that_sees_the_witness_goes_on_and_its_peer_does_not_take_over() {
    let mut pair = witnessed(true);
    pair.disconnect();
    pair.pass(20_000);
    assert_eq!((role(&pair, A), role(&pair, B)), (Role::Primary, Role::Secondary));
    let write = pair.write(A, 0, 1);
    assert!(is_answered(&pair, A, write));
    let promote = pair.verb(B, take_over());
    pair.pass(1_000);
    assert!(matches!(pair.copies[B].end_of(promote), Some(Err(VerbError::Unfit(Unfit::LeftOut)))));
}

#[test]
fn a_primary_whose_lease_is_over_serves_no_read_before_it_is_replaced() {
    let mut pair = witnessed(true);
    pair.disconnect();
    pair.witness.way[A] = Way::Shut;
    let mut frozen_before = false;
    for _ in 0..60 {
        pair.pass(100);
        let served = [A, B].map(|site| role(&pair, site) == Role::Primary);
        assert_ne!(served, [true, true], "both serve at {:?}", pair.now);
        frozen_before |= served == [false, false];
    }
    assert!(frozen_before);
    assert_eq!((role(&pair, A), role(&pair, B)), (LEASE_LOST, Role::Primary));
}

#[test]
fn a_peer_that_answers_keeps_a_primary_serving_that_does_not_see_the_witness() {
    let mut pair = witnessed(true);
    pair.witness.way[A] = Way::Shut;
    pair.pass(30_000);
    assert_eq!((role(&pair, A), role(&pair, B)), (Role::Primary, Role::Secondary));
    pair.deaf[B] = true;
    pair.pass(2_100);
    assert_eq!(role(&pair, A), LEASE_LOST);
}

#[test]
fn a_primary_that_restarts_alone_goes_on_by_the_witness() {
    let mut pair = witnessed(false);
    pair.write(A, 3, 7);
    pair.kill(B);
    pair.kill(A);
    pair.start(A);
    assert_eq!(role(&pair, A), Role::Suspended(SuspendReason::Restart));
    pair.pass(2_000);
    assert_eq!(role(&pair, A), Role::Primary, "{:?}", pair.status(A));
    assert_eq!(pair.read(A, 3), 7);
    pair.kill(A);
    pair.start(A);
    pair.pass(500);
    assert_eq!(role(&pair, A), Role::Primary, "alone in S");
}

#[test]
fn a_primary_that_restarts_where_it_was_replaced_is_fenced_by_the_witness() {
    let mut pair = witnessed(true);
    pair.kill(A);
    pair.pass(6_000);
    assert_eq!(role(&pair, B), Role::Primary);
    pair.start(A);
    pair.pass(3_000);
    assert!(matches!(role(&pair, A), Role::Fenced(_)), "{:?}", pair.status(A));
    pair.connect();
    pair.pass(1_000);
    assert_eq!(role(&pair, A), Role::Secondary);
    assert_eq!(pair.status(B).config.sites.len(), 2);
}

#[test]
fn a_promotion_without_a_word_waits_for_the_lease_and_loses_nothing() {
    let mut pair = witnessed(false);
    pair.write(A, 3, 7);
    pair.kill(A);
    pair.pass(20_000);
    assert_eq!(role(&pair, B), Role::Secondary, "nobody asked");
    let promote = pair.verb(B, take_over());
    pair.pass(WAIT_MS + 500);
    let end = pair.copies[B].end_of(promote);
    assert!(matches!(end, Some(Ok(VerbOk::Promoted { class: PromotionClass::Lossless, .. }))), "{end:?}");
    assert_eq!(pair.read(B, 3), 7);
    assert_eq!(pair.status(B).forced_history.len(), 0);
}

#[test]
fn a_promotion_without_a_word_ends_by_its_deadline_when_the_witness_is_silent() {
    let mut pair = witnessed(false);
    pair.kill(A);
    pair.witness.way[B] = Way::Shut;
    let promote = pair.verb(B, take_over());
    pair.pass(14_000);
    assert!(matches!(pair.copies[B].end_of(promote), Some(Err(VerbError::Interrupted(_)))));
    assert_eq!(role(&pair, B), Role::Secondary);
    let forced = pair.verb(B, promote_anyway());
    pair.pass(3_500);
    assert!(pair.copies[B].end_of(forced).is_some_and(Result::is_ok), "a person's word needs no witness");
}

#[test]
fn a_takeover_whose_answer_was_lost_is_found_out() {
    let mut pair = witnessed(true);
    pair.kill(A);
    pair.pass(2_500);
    pair.witness.way[B] = Way::AnswersLost;
    pair.pass(4_000);
    assert_eq!(role(&pair, B), Role::Secondary);
    pair.witness.way[B] = Way::Open;
    pair.pass(4_000);
    assert_eq!(role(&pair, B), Role::Primary, "{:?}", pair.status(B));
}

#[test]
fn a_shrink_whose_answer_was_lost_acknowledges_nothing_before_it_is_found_out() {
    let mut pair = witnessed(true);
    pair.disconnect();
    let write = pair.write(A, 0, 1);
    pair.pass(900);
    pair.witness.way[A] = Way::AnswersLost;
    pair.pass(1_000);
    assert!(!is_answered(&pair, A, write));
    pair.witness.way[A] = Way::Open;
    pair.pass(1_000);
    assert!(is_answered(&pair, A, write));
    assert_eq!(role(&pair, B), Role::Secondary);
}

#[test]
fn a_planned_switchover_keeps_the_witness_and_needs_no_wait() {
    let mut pair = witnessed(true);
    pair.write(A, 3, 7);
    pair.verb(A, Verb::Demote { force: false });
    let promote = pair.verb(B, take_over());
    assert!(pair.copies[B].end_of(promote).is_some_and(Result::is_ok), "{:?}", pair.copies[B].end_of(promote));
    assert_eq!(role(&pair, B), Role::Primary);
    pair.pass(3_000);
    assert_eq!((role(&pair, A), role(&pair, B)), (Role::Secondary, Role::Primary));
    assert!(pair.status(B).protected, "{:?}", pair.status(B));
    assert_eq!(pair.status(B).config.leader, NodeId([2; 16]));
    pair.kill(B);
    pair.pass(6_000);
    assert_eq!(role(&pair, A), Role::Primary, "{:?}", pair.status(A));
    assert_eq!(pair.read(A, 3), 7);
}

#[test]
fn a_policy_without_the_witness_lets_the_primary_serve_without_a_lease() {
    let mut pair = witnessed(true);
    let policy = Policy { on_peer_loss: OnPeerLoss::Suspend, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(500);
    assert_eq!((pair.status(A).config.lease_gen, pair.status(B).config.lease_gen), (0, 0));
    pair.disconnect();
    pair.pass(30_000);
    assert_eq!((role(&pair, A), role(&pair, B)), (Role::Primary, Role::Secondary));
    let promote = pair.verb(B, take_over());
    assert!(matches!(pair.copies[B].end_of(promote), Some(Err(VerbError::PeerUnproven { .. }))));
    assert_eq!(unfit(&pair, B, promote), None);
}

#[test]
fn a_word_at_a_site_that_was_left_out_outdoes_what_the_witness_holds() {
    let mut pair = witnessed(true);
    pair.disconnect();
    pair.pass(2_000);
    pair.write(A, 3, 7);
    pair.kill(A);
    pair.start(A);
    pair.pass(1_000);
    let theirs = pair.status(A).config;
    pair.kill(A);
    let forced = pair.verb(B, promote_anyway());
    pair.pass(500);
    assert!(pair.copies[B].end_of(forced).is_some_and(Result::is_ok), "{:?}", pair.copies[B].end_of(forced));
    assert!(pair.status(B).config.epoch > theirs.epoch);
    pair.pass(3_000);
    assert_eq!(role(&pair, B), Role::Primary);
    assert_eq!(pair.witness.cell(GROUP), Some(&Content::Config(pair.status(B).config)));
    pair.start(A);
    pair.connect();
    pair.pass(1_000);
    assert!(matches!(role(&pair, A), Role::Fenced(_)), "what A acknowledged alone is kept: {:?}", pair.status(A));
    assert!(matches!(pair.status(A).copy, CopyState::Diverged { .. }), "{:?}", pair.status(A).copy);
}

#[test]
fn a_word_waits_for_a_silent_witness_no_longer_than_three_seconds() {
    let mut pair = witnessed(false);
    pair.kill(A);
    pair.witness.way[B] = Way::Shut;
    let forced = pair.verb(B, promote_anyway());
    pair.pass(2_500);
    assert_eq!(pair.copies[B].end_of(forced), None);
    pair.pass(1_000);
    assert!(pair.copies[B].end_of(forced).is_some_and(Result::is_ok));
}

#[test]
fn a_word_of_the_replaced_primary_does_not_bring_it_back() {
    let mut pair = witnessed(true);
    pair.disconnect();
    pair.witness.way[A] = Way::Shut;
    pair.pass(6_000);
    assert_eq!((role(&pair, A), role(&pair, B)), (LEASE_LOST, Role::Primary));
    pair.witness.way[A] = Way::Open;
    let drop = pair.verb(A, Verb::DropPeer(assertion()));
    pair.pass(500);
    assert!(
        matches!(pair.copies[A].end_of(drop), Some(Err(VerbError::Role { .. }))),
        "{:?}",
        pair.copies[A].end_of(drop)
    );
    assert!(matches!(role(&pair, A), Role::Fenced(_)));
    assert_eq!(pair.status(A).forced_history, [], "what was refused is no decision");
}

#[test]
fn a_copy_that_was_left_out_is_not_promoted_as_if_it_had_everything() {
    let mut pair = witnessed(false);
    pair.disconnect();
    pair.pass(2_000);
    let write = pair.write(A, 3, 7);
    assert!(is_answered(&pair, A, write));
    pair.kill(A);
    let promote = pair.verb(B, promote(Some(assertion())));
    pair.pass(500);
    let end = pair.copies[B].end_of(promote);
    assert!(matches!(end, Some(Err(VerbError::LossTooLarge { .. } | VerbError::Unproven))), "{end:?}");
}

#[test]
fn without_the_witness_nothing_proves_that_a_copy_was_not_left_out() {
    let mut pair = witnessed(false);
    pair.kill(A);
    pair.witness.way[B] = Way::Shut;
    let promote = pair.verb(B, promote(Some(assertion())));
    pair.pass(4_000);
    assert!(matches!(pair.copies[B].end_of(promote), Some(Err(VerbError::Unproven))));
}

#[test]
fn a_word_at_a_replaced_primary_needs_that_its_loss_is_accepted() {
    let mut pair = witnessed(true);
    pair.kill(A);
    pair.pass(6_000);
    pair.write(B, 3, 7);
    pair.kill(B);
    pair.start(A);
    let promote = pair.verb(A, promote(Some(assertion())));
    pair.pass(1_000);
    assert!(matches!(pair.copies[A].end_of(promote), Some(Err(VerbError::Unproven))), "{:?}", pair.status(A));
}

#[test]
fn a_takeover_that_the_agent_did_not_live_to_see_is_found_after_its_restart() {
    let mut pair = witnessed(true);
    pair.write(A, 3, 7);
    pair.kill(A);
    pair.pass(2_500);
    pair.witness.way[B] = Way::AnswersLost;
    let names_b =
        |pair: &Pair| matches!(pair.witness.cell(GROUP), Some(Content::Config(k)) if k.leader == NodeId([2; 16]));
    for _ in 0..60 {
        // Its answers about the lease arrive; only that about K does not.
        pair.witness.way[B] = if names_b(&pair) { Way::AnswersLost } else { Way::ChangesOfKLost };
        pair.pass(100);
    }
    assert!(names_b(&pair));
    assert_eq!(role(&pair, B), Role::Secondary);
    pair.kill(B);
    pair.witness.way[B] = Way::Open;
    pair.start(B);
    pair.pass(6_000);
    assert_eq!(role(&pair, B), Role::Primary, "{:?}", pair.status(B));
    pair.start(A);
    pair.connect();
    pair.pass(3_000);
    assert_eq!(pair.status(B).config.sites.len(), 2, "{:?}", pair.status(A));
}

#[test]
fn a_shrink_that_never_arrived_is_settled_when_the_peer_is_back() {
    let mut pair = witnessed(true);
    pair.disconnect();
    pair.pass(900);
    pair.witness.way[A] = Way::ChangesOfKShut;
    pair.pass(500);
    pair.connect();
    let before = pair.witness.questions;
    pair.pass(5_000);
    assert!(pair.witness.questions - before < 100, "{} questions in 5 s", pair.witness.questions - before);
    pair.witness.way[A] = Way::Open;
    pair.pass(1_000);
    pair.verb(A, Verb::Demote { force: false });
    assert_eq!(role(&pair, A), Role::Secondary, "joint changes go on");
}

#[test]
fn a_primary_that_paused_for_another_reason_serves_no_more_when_its_lease_ended_meanwhile() {
    let mut pair = witnessed(true);
    pair.disconnect();
    pair.witness.way[A] = Way::Shut;
    pair.write(A, 0, 1);
    pair.verb(A, Verb::Demote { force: false });
    assert_eq!(role(&pair, A), Role::Suspended(SuspendReason::User));
    pair.pass(12_000);
    assert_eq!((role(&pair, A), role(&pair, B)), (LEASE_LOST, Role::Primary));
}

#[test]
fn a_primary_whose_disk_failed_is_replaced_though_its_agent_lives() {
    let mut pair = witnessed(true);
    pair.write(A, 3, 7);
    pair.copies[A].fate = |op| match op {
        DiskOp::Write { file: FileRef::Log(_), .. } => Fate::Fails,
        _ => Fate::Done,
    };
    pair.write(A, 4, 8);
    pair.pass(6_000);
    assert_eq!(role(&pair, B), Role::Primary, "{:?}", pair.status(A));
    assert_eq!(pair.read(B, 3), 7);
}

#[test]
fn a_promotion_without_a_word_of_a_primary_that_waits_for_its_lease_leaves_it_as_it_is() {
    let mut pair = witnessed(false);
    pair.disconnect();
    pair.witness.way[A] = Way::Shut;
    pair.pass(3_000);
    let promote = pair.verb(A, take_over());
    assert!(matches!(pair.copies[A].end_of(promote), Some(Err(VerbError::Role { .. }))));
    assert_eq!(role(&pair, A), LEASE_LOST);
}

#[test]
fn a_takeover_that_crashed_before_it_served_waits_again() {
    let mut pair = witnessed(true);
    pair.kill(A);
    pair.pass(6_000);
    assert_eq!(role(&pair, B), Role::Primary);
    pair.kill(B);
    pair.start(B);
    pair.pass(1_000);
    assert_eq!(role(&pair, B), Role::Suspended(SuspendReason::Opening), "it wrote nothing yet");
    pair.pass(3_000);
    assert_eq!(role(&pair, B), Role::Primary);
    pair.write(B, 3, 7);
    pair.kill(B);
    pair.start(B);
    pair.pass(1_000);
    assert_eq!(role(&pair, B), Role::Primary, "it served");
}

#[test]
fn a_word_at_a_primary_that_may_have_been_replaced_needs_that_its_loss_is_accepted() {
    let mut pair = witnessed(true);
    pair.disconnect();
    pair.witness.way[A] = Way::Shut;
    pair.pass(6_000);
    assert_eq!((role(&pair, A), role(&pair, B)), (LEASE_LOST, Role::Primary));
    let promote = pair.verb(A, promote(Some(assertion())));
    pair.pass(4_000);
    assert!(matches!(pair.copies[A].end_of(promote), Some(Err(VerbError::Unproven))), "{:?}", pair.status(A));
}

#[test]
fn a_witness_that_forgot_the_volume_decides_nothing_about_it() {
    let mut pair = witnessed(true);
    pair.disconnect();
    pair.witness.wipe(GROUP);
    let write = pair.write(A, 3, 7);
    pair.pass(20_000);
    assert!(!is_answered(&pair, A, write));
    assert_eq!((role(&pair, A), role(&pair, B)), (Role::Primary, Role::Secondary));
    pair.kill(A);
    pair.pass(20_000);
    assert_eq!(role(&pair, B), Role::Secondary);
    let promote = pair.verb(B, promote(Some(assertion())));
    pair.pass(4_000);
    assert!(matches!(pair.copies[B].end_of(promote), Some(Err(VerbError::Unproven))));
}

#[test]
fn a_second_promotion_waits_for_the_takeover_that_is_under_way() {
    let mut pair = witnessed(false);
    pair.kill(A);
    let first = pair.verb(B, take_over());
    pair.pass(1_000);
    let second = pair.verb(B, take_over());
    pair.pass(WAIT_MS);
    for promote in [first, second] {
        let end = pair.copies[B].end_of(promote);
        assert!(matches!(end, Some(Ok(VerbOk::Promoted { .. }))), "{end:?}");
    }
}

#[test]
fn a_takeover_that_never_arrived_is_asked_for_again() {
    let mut pair = witnessed(false);
    pair.kill(A);
    pair.witness.way[B] = Way::ChangesOfKShut;
    let first = pair.verb(B, take_over());
    pair.pass(14_000);
    assert!(matches!(pair.copies[B].end_of(first), Some(Err(VerbError::Interrupted(_)))));
    pair.witness.way[B] = Way::Open;
    let second = pair.verb(B, take_over());
    pair.pass(5_000);
    let end = pair.copies[B].end_of(second);
    assert!(matches!(end, Some(Ok(VerbOk::Promoted { .. }))), "{end:?}");
}

#[test]
fn a_word_at_a_copy_that_rests_asks_the_witness_at_once() {
    let mut pair = witnessed(true);
    pair.disconnect();
    pair.pass(2_000);
    let theirs = pair.status(A).config.epoch;
    pair.kill(A);
    pair.pass(300_000);
    let forced = pair.verb(B, promote_anyway());
    assert!(pair.copies[B].end_of(forced).is_some_and(Result::is_ok), "{:?}", pair.copies[B].end_of(forced));
    assert!(pair.status(B).config.epoch > theirs, "{:?}", pair.status(B).config);
}

#[test]
fn a_policy_without_the_witness_is_reached_also_where_a_proposal_was_lost() {
    let mut pair = witnessed(false);
    pair.disconnect();
    pair.pass(900);
    pair.witness.way[A] = Way::ChangesOfKShut;
    pair.pass(500);
    pair.connect();
    let policy = Policy { on_peer_loss: OnPeerLoss::Suspend, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(2_000);
    pair.witness.way[A] = Way::Open;
    pair.pass(3_000);
    assert_eq!((pair.status(A).config.lease_gen, pair.status(B).config.lease_gen), (0, 0));
}

#[test]
fn a_takeover_that_a_person_asked_for_and_nobody_saw_decided_is_gone_on_with_when_the_primary_gave_way() {
    let mut pair = witnessed(false);
    pair.write(A, 3, 7);
    pair.disconnect();
    pair.witness.way = [Way::Shut, Way::ChangesOfKLost];
    pair.verb(B, take_over());
    let names_b =
        |pair: &Pair| matches!(pair.witness.cell(GROUP), Some(Content::Config(k)) if k.leader == NodeId([2; 16]));
    while !names_b(&pair) {
        pair.pass(100);
    }
    assert_eq!(role(&pair, B), Role::Secondary);
    pair.kill(B);
    pair.start(B);
    pair.witness.way = [Way::Open, Way::Open];
    pair.pass(1_000);
    assert!(matches!(role(&pair, A), Role::Fenced(_)), "{:?}", pair.status(A));
    pair.connect();
    pair.pass(6_000);
    assert_eq!(role(&pair, B), Role::Primary, "{:?}", pair.status(B));
    assert_eq!(pair.status(B).config.sites.len(), 2);
    assert_eq!(pair.read(B, 3), 7);
}

/// The link is cut long enough for the primary to leave its peer out, and comes back.
fn flap(pair: &mut Pair) {
    pair.disconnect();
    pair.pass(3_000);
    assert_eq!(pair.status(A).config.sites.len(), 1, "leaving out never waits");
    pair.connect();
    pair.pass(3_000);
}

#[test]
fn after_three_changes_of_late_the_peer_joins_s_only_when_a_person_or_a_rest_says_so() {
    let mut pair = witnessed(true);
    for _ in 0..2 {
        flap(&mut pair);
        assert_eq!(pair.status(A).config.sites.len(), 2, "{:?}", pair.status(A));
    }
    flap(&mut pair);
    let a = pair.status(A);
    assert_eq!((a.role, a.config.sites.len()), (Role::Primary, 1));
    assert!(a.not_protected_because.contains("changed too often"), "{}", a.not_protected_because);
    assert!(pair.copies[A].alarms.contains(&"flapping"), "{:?}", pair.copies[A].alarms);
    let write = pair.write(A, 0, 1);
    assert!(is_answered(&pair, A, write), "it serves alone");

    pair.pass(29 * 60_000);
    assert_eq!(pair.status(A).config.sites.len(), 1);
    pair.pass(60_000);
    assert_eq!(pair.status(A).config.sites.len(), 2, "thirty minutes without a change");

    for _ in 0..3 {
        flap(&mut pair);
    }
    assert_eq!(pair.status(A).config.sites.len(), 1);
    let policy = pair.status(A).policy;
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(3_000);
    assert_eq!(pair.status(A).config.sites.len(), 2, "a person has looked at it");
}

#[test]
fn a_group_that_flaps_fails_over_only_by_a_persons_word_for_a_while() {
    let mut pair = witnessed(true);
    flap(&mut pair);
    flap(&mut pair);
    pair.kill(A);
    pair.pass(6_000);
    assert_eq!(role(&pair, B), Role::Primary, "the third change");
    pair.start(A);
    pair.connect();
    pair.pass(6_000);
    assert_eq!((role(&pair, A), pair.status(B).config.sites.len()), (Role::Secondary, 1), "A waits to join S");
    let policy = pair.status(B).policy;
    pair.verb(B, Verb::SetPolicy(policy));
    pair.pass(3_000);
    assert_eq!(pair.status(B).config.sites.len(), 2);
    for _ in 0..2 {
        pair.disconnect();
        pair.pass(3_000);
        pair.connect();
        pair.pass(3_000);
    }
    pair.kill(B);
    pair.pass(20_000);
    assert_eq!(role(&pair, A), Role::Secondary, "it saw three changes of late");
    let promote = pair.verb(A, take_over());
    pair.pass(6_000);
    assert!(matches!(pair.copies[A].end_of(promote), Some(Ok(_))), "{:?}", pair.copies[A].ended);
}
