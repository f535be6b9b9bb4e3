//! The base image, where somebody else has a hand in it.

use tidemark_core::event::FileRef;
use tidemark_core::status::CopyState;
use tidemark_core::types::BLOCK;
use tidemark_core::verb::Verb;

use crate::bench::{A, B, Pair, SIZE};

fn drained(pair: &mut Pair) {
    pair.verb(A, Verb::Drain);
    pair.pass(1_000);
    assert_eq!(pair.status(A).floor, pair.status(A).appended.lsn);
}

/// True when A, started again, finds its base as it left it after two blocks far apart were brought into it; `meanwhile` sees
/// the base just before that.
fn is_trusted(meanwhile: fn(&mut [u8])) -> bool {
    let mut pair = Pair::new();
    pair.write(A, 100, 1);
    drained(&mut pair);
    meanwhile(pair.copies[A].files.get_mut(&FileRef::Base).expect("the base"));
    pair.write(A, 20, 2);
    pair.write(A, 250, 3);
    drained(&mut pair);
    pair.kill(A);
    pair.start(A);
    !matches!(pair.status(A).copy, CopyState::Suspect { .. })
}

#[test]
fn a_base_that_somebody_wrote_to_while_the_copy_ran_is_suspect_although_it_advanced_around_that() {
    assert!(is_trusted(|_| {}));
    assert!(!is_trusted(|base| base[100 * BLOCK] = 9));
}

#[test]
fn nothing_of_what_a_base_held_before_is_left_by_a_seeding_also_beyond_the_volume() {
    let mut pair = Pair::new();
    pair.kill(B);
    let base = pair.copies[B].files.get_mut(&FileRef::Base).expect("the base");
    base.resize(2 * SIZE as usize, 7);
    base[..SIZE as usize].fill(7);
    pair.replace_b();
    assert_eq!(pair.status(B).appended, pair.status(A).appended);
    assert!(pair.copies[B].files[&FileRef::Base].iter().all(|byte| *byte == 0));
}
