//! Every rule that is left out is found, and the rules as they stand hold within the smallest bounds. The table and the larger bounds
//! are `hack/test model`.

use tidemark_model::cases::{Bounds, FAST, HUNTS};
use tidemark_model::check::{End, Limits};
use tidemark_model::config::Scope;
use tidemark_model::mutation::Mutation;

const LIMITS: Limits = Limits { steps: usize::MAX, seconds: 600, threads: 1 };

#[test]
fn each_rule_that_is_left_out_breaks_a_promise() {
    for hunt in HUNTS.iter().filter(|hunt| hunt.is_small) {
        let outcome = hunt.bounds.run(hunt.mutation, LIMITS);
        assert!(!outcome.broken.is_empty(), "{:?} is not found in {} states", hunt.mutation, outcome.states);
    }
}

#[test]
fn the_rules_as_they_stand_hold() {
    for case in FAST.iter().filter(|case| case.is_small) {
        let outcome = case.bounds.run(Mutation::Kept, LIMITS);
        assert!(outcome.holds(), "{}: {:#?}, never happened: {:?}", case.name, outcome.broken, outcome.missing);
        assert_eq!(outcome.end, End::Exhausted, "{}", case.name);
    }
}

#[test]
fn a_run_in_which_nobody_takes_over_shows_nothing() {
    let Bounds::Groups(scope) = FAST[0].bounds else { panic!("the first is one of these") };
    let outcome = Bounds::Groups(Scope { majors: 1, joints: &[], ..scope }).run(Mutation::Kept, LIMITS);
    assert!(outcome.broken.is_empty());
    assert!(!outcome.holds(), "missing: {:?}", outcome.missing);
}
