use super::*;
use crate::config::Mode;
use crate::group::genesis;
use crate::types::{GenId, NodeId, Nonce, SiteId};

const GROUP: GroupId = GroupId([7; 16]);
const AGE: u64 = 1_000;
const RETRY: u64 = 100;

fn k(major: u32, nonce: u8) -> Config {
    let k = genesis(SiteId([1; 16]), NodeId([1; 16]), Nonce([nonce; 16]), GenId([1; 16]), Mode::Sync);
    Config { epoch: Epoch { major, minor: 0 }, ..k }
}

fn holds(config: Config, revision: u64) -> WitnessAnswer {
    WitnessAnswer::Holds(Some(Found { content: Content::Config(config), revision: Revision::Counted(revision) }))
}

/// A ballot that has read K of major 1 at revision 5.
fn read() -> Ballot {
    let mut ballot = Ballot::new(GROUP);
    assert_eq!(ballot.read().change, None);
    assert_eq!(ballot.on_answer(Nanos(1), holds(k(1, 1), 5), RETRY), None);
    ballot
}

fn expected(question: &Question) -> Option<Revision> {
    question.change.as_ref().and_then(|change| change.expected.clone())
}

#[test]
fn a_proposal_expects_what_was_read_and_is_won_when_committed() {
    let mut ballot = read();
    let question = ballot.propose(k(2, 2));
    assert_eq!(expected(&question), Some(Revision::Counted(5)));
    assert!(ballot.is_open());
    assert_eq!(ballot.on_answer(Nanos(2), WitnessAnswer::Committed(Revision::Counted(6)), RETRY), Some(k(2, 2)));
    assert!(!ballot.is_open());
    assert_eq!(ballot.cell(Nanos(3), AGE), Some(Some(&k(2, 2))));
}

#[test]
fn a_cell_that_never_was_is_made_by_expecting_nothing() {
    let mut ballot = Ballot::new(GROUP);
    let _ = ballot.read();
    ballot.on_answer(Nanos(1), WitnessAnswer::Holds(None), RETRY);
    assert_eq!(ballot.cell(Nanos(1), AGE), Some(None));
    let question = ballot.propose(k(2, 2));
    assert_eq!(question.change.unwrap().expected, None);
}

#[test]
fn a_proposal_whose_answer_was_lost_is_open_until_the_cell_says_more() {
    let mut ballot = read();
    let _ = ballot.propose(k(2, 2));
    assert_eq!(ballot.on_answer(Nanos(2), WitnessAnswer::Lost, RETRY), None);
    assert!(ballot.is_open() && !ballot.may_ask(Nanos(2)) && ballot.may_ask(Nanos(102)));
    assert_eq!(ballot.cell(Nanos(2), AGE), None);
    let _ = ballot.read();
    assert_eq!(ballot.on_answer(Nanos(102), holds(k(1, 1), 5), RETRY), None);
    assert!(ballot.is_open(), "it may be under way still");
    let again = ballot.propose_again();
    assert_eq!(again.change.unwrap().content, Content::Config(k(2, 2)));
    assert_eq!(ballot.on_answer(Nanos(103), holds(k(2, 2), 6), RETRY), Some(k(2, 2)));
    assert!(!ballot.is_open());
}

#[test]
fn a_proposal_is_dead_once_the_cell_has_left_what_it_expects() {
    let mut ballot = read();
    let _ = ballot.propose(k(2, 2));
    assert_eq!(ballot.on_answer(Nanos(2), holds(k(2, 9), 6), RETRY), None);
    assert!(!ballot.is_open());
    assert_eq!(ballot.highest().major, 2);
}

#[test]
fn a_second_proposal_over_a_lost_one_is_won_whichever_of_them_is_found() {
    for found in [k(2, 2), k(3, 3)] {
        let mut ballot = read();
        let _ = ballot.propose(k(2, 2));
        ballot.on_answer(Nanos(2), WitnessAnswer::Lost, RETRY);
        let _ = ballot.read();
        ballot.on_answer(Nanos(102), holds(k(1, 1), 5), RETRY);
        let _ = ballot.propose(k(3, 3));
        assert_eq!(ballot.on_answer(Nanos(103), holds(found.clone(), 6), RETRY), Some(found));
        assert!(!ballot.is_open());
    }
}

#[test]
#[should_panic(expected = "was proposed before")]
fn no_other_k_gets_an_epoch_that_was_proposed() {
    let mut ballot = read();
    let _ = ballot.propose(k(2, 2));
    ballot.on_answer(Nanos(2), holds(k(2, 9), 6), RETRY);
    let _ = ballot.propose(k(2, 3));
}

#[test]
fn an_old_reading_is_read_again() {
    let ballot = read();
    assert!(ballot.cell(Nanos(1 + AGE), AGE).is_some());
    assert_eq!(ballot.cell(Nanos(2 + AGE), AGE), None);
}

#[test]
fn a_k_of_the_other_site_ends_what_was_proposed_below_it() {
    let mut ballot = read();
    let _ = ballot.propose(k(2, 2));
    ballot.on_answer(Nanos(2), WitnessAnswer::Lost, RETRY);
    ballot.outdone_by(Epoch { major: 1, minor: 4 });
    assert!(ballot.is_open(), "a joint change says nothing of the cell");
    ballot.outdone_by(Epoch { major: 2, minor: 0 });
    assert!(!ballot.is_open());
}
