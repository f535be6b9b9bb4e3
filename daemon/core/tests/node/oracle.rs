//! What a copy foretells of its promotion, and of other verbs: it is what happens, and nothing changes by asking.

use tidemark_core::config::{Mode, Policy};
use tidemark_core::types::SiteId;
use tidemark_core::verb::{PromotionClass, Verb, VerbError, VerbOk};

use crate::bench::{A, B, Pair, assertion, promote_anyway};

fn plain_promotion() -> Verb {
    Verb::Promote { assert_peer_fenced: None, max_loss_bytes: None, max_loss_seconds: None, allow_unproven: false }
}

fn in_step() -> Pair {
    let mut pair = Pair::new();
    pair.verb(A, Verb::SetPolicy(Policy { mode: Mode::Sync, ..pair.status(A).policy }));
    pair.pass(1_000);
    assert_eq!(pair.status(A).config.sites.len(), 2);
    pair
}

#[test]
fn a_follower_in_s_foretells_that_a_word_opens_it_without_a_loss() {
    let mut pair = in_step();
    let primary: SiteId = pair.status(A).site;
    let beside_a_primary = pair.status(B).promotable;
    assert_eq!(beside_a_primary.class(), "impossible", "the primary is there");
    assert!(matches!(beside_a_primary.blockers[..], [VerbError::PeerIsPrimary { .. }]));

    pair.write(A, 1, 1);
    pair.kill(A);
    let foretold = pair.status(B).promotable;
    assert_eq!((foretold.class(), foretold.needs_word), ("lossless", true));
    assert_eq!(foretold.blockers, [VerbError::PeerUnproven { site: primary }]);
    assert_eq!(foretold, pair.status(B).promotable, "asking changes nothing");

    let bare = pair.verb(B, plain_promotion());
    assert_eq!(pair.copies[B].end_of(bare), Some(&Err(foretold.blockers[0].clone())));
    let promotion = pair.verb(B, promote_anyway());
    let Some(Ok(VerbOk::Promoted { class, .. })) = pair.copies[B].end_of(promotion) else { panic!("not promoted") };
    assert_eq!(*class, PromotionClass::Lossless);
    assert_eq!(pair.status(B).promotable.blockers, [], "it serves");
}

#[test]
fn an_async_follower_foretells_the_loss_that_its_promotion_then_reports() {
    let mut pair = Pair::new();
    pair.write(A, 1, 1);
    pair.pass(1_000);
    pair.kill(A);
    pair.pass(5_000);
    let loss = pair.status(B).promotable.loss.expect("it can be promoted");
    assert_eq!(loss.class, PromotionClass::Lossy);
    assert!(loss.ms >= 5_000, "{loss:?}");
    let blockers = pair.status(B).promotable.blockers;
    assert!(matches!(blockers[..], [VerbError::PeerUnproven { .. }, VerbError::LossTooLarge { .. }]), "{blockers:?}");

    let promotion = pair.verb(B, promote_anyway());
    let Some(Ok(VerbOk::Promoted { class, lost_bytes, lost_ms, .. })) = pair.copies[B].end_of(promotion) else {
        panic!("not promoted")
    };
    assert_eq!((*class, *lost_bytes, *lost_ms), (loss.class, loss.bytes, loss.ms));
}

#[test]
fn a_restarted_primary_still_counts_what_its_peer_lacks() {
    let mut pair = Pair::new();
    pair.pass(1_000);
    pair.disconnect();
    pair.write_blocks(A, 0, 64, 1);
    pair.flush(A);
    let before = pair.status(A).backlog_bytes;
    assert!(before >= 64 * 4096);
    pair.kill(A);
    pair.start(A);
    assert!(pair.status(A).backlog_bytes >= 64 * 4096, "{} were {before}", pair.status(A).backlog_bytes);
    pair.connect();
    pair.pass(2_000);
    assert_eq!(pair.status(A).backlog_bytes, 0, "the peer has caught up");
}

#[test]
fn what_a_plan_says_is_refused_is_refused_with_the_same_words() {
    let mut pair = in_step();
    let verbs = [
        Verb::Reseed,
        Verb::Release,
        Verb::SetPeer(None),
        Verb::Resize { volume: pair.status(A).volume, size: 512 },
        Verb::SetPeer(Some(SiteId([9; 16]))),
    ];
    for verb in verbs {
        let foretold = pair.plan(A, &verb).map(|_| ());
        let asked = pair.verb(A, verb.clone());
        let found = pair.copies[A].end_of(asked).cloned().map(|end| end.map(|_| ()));
        assert!(foretold.is_err(), "{verb:?}");
        assert_eq!(found, Some(foretold), "{verb:?}");
    }
    let dropping = Verb::DropPeer(assertion());
    let plan = pair.plan(A, &dropping).expect("it goes");
    assert!(plan.steps.iter().any(|step| step.contains("loses data until a peer has joined again")), "{plan:?}");
    assert_eq!(pair.status(A).config.sites.len(), 2, "nothing was changed");
}
