//! Every order of events of two sites, a witness and what is lost between them, up to a bound: no two sites serve at once, and no
//! promotion loses what was acknowledged. Played with the core's own leases and changes of K.
//!
//! And every rule that is left out, one at a time, is found to break one of the two.

mod search;
mod witness;
mod world;

use search::{Found, search};
use world::{Broken, Rule, Scope, World};

/// Of true time. A lease lasts one second, so that a challenger waits for three.
const SECONDS: u64 = 4;

const LEASES: Scope = Scope { beats: false, shrinks: false, resumes: false };
const BEATS: Scope = Scope { beats: true, ..LEASES };
const SHRINKS: Scope = Scope { shrinks: true, ..LEASES };
const RESUMES: Scope = Scope { resumes: true, ..SHRINKS };

fn explore(rule: Rule, scope: Scope, seconds: u64) -> Found {
    let found = search(World::new(rule, scope), seconds);
    println!("{rule:?}, {scope:?}: {} states, {} steps", found.states, found.depth);
    found
}

/// Nothing breaks in `scope`, in which each of `wanted` happened: else the search shows nothing.
#[track_caller]
fn holds(scope: Scope, seconds: u64, wanted: &[&str]) {
    let found = explore(Rule::Kept, scope, seconds);
    assert_eq!(found.broken, None);
    for (what, was_seen) in found.seen.named() {
        assert!(was_seen || !wanted.contains(&what), "no order of events had {what}");
    }
}

#[test]
fn leases_and_heartbeats_keep_the_sites_apart() {
    holds(BEATS, SECONDS, &["a promotion", "a freeze"]);
}

#[test]
fn a_shrink_and_a_promotion_exclude_each_other() {
    holds(SHRINKS, SECONDS, &["a promotion", "a freeze", "a shrink", "a fence"]);
}

#[test]
fn shrinks_resumes_and_promotions_exclude_each_other() {
    holds(RESUMES, SECONDS, &["a promotion", "a freeze", "a shrink", "a resume", "a fence"]);
}

/// For `hack/test --deep`.
#[test]
#[ignore = "two million states, some minutes"]
fn all_of_it_at_once_keeps_every_promise() {
    holds(
        Scope { beats: true, ..RESUMES },
        SECONDS - 1,
        &["a promotion", "a freeze", "a shrink", "a resume", "a fence"],
    );
}

#[track_caller]
fn breaks(rule: Rule, scope: Scope, wanted: Broken) {
    let found = explore(rule, scope, SECONDS);
    let Some((broken, steps)) = found.broken else { panic!("{rule:?} is not found in {} states", found.states) };
    assert_eq!(broken, wanted, "{steps:#?}");
}

#[test]
fn a_takeover_without_revoking_the_lease_is_found() {
    breaks(Rule::NoRevocation, LEASES, Broken::BothServe);
}

#[test]
fn a_wait_shorter_than_the_lease_is_found() {
    breaks(Rule::ShortWait, LEASES, Broken::BothServe);
}

#[test]
fn a_renewal_that_counts_from_its_answer_is_found() {
    breaks(Rule::RenewalFromAnswer, LEASES, Broken::BothServe);
}

#[test]
fn a_heartbeat_that_counts_from_its_echo_is_found() {
    breaks(Rule::HeartbeatFromEcho, BEATS, Broken::BothServe);
}

#[test]
fn an_opening_right_after_an_echo_is_found() {
    breaks(Rule::NoOpeningWait, BEATS, Broken::BothServe);
}

#[test]
fn a_resume_without_changing_k_is_found() {
    breaks(Rule::ResumeWithoutChange, RESUMES, Broken::BothServe);
}

#[test]
fn a_shrink_without_the_witness_is_found() {
    breaks(Rule::ShrinkAlone, SHRINKS, Broken::AcknowledgedLost);
}

#[test]
fn a_promotion_judged_on_the_copy_alone_is_found() {
    breaks(Rule::JudgedOnCopy, SHRINKS, Broken::AcknowledgedLost);
}
