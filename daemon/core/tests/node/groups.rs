//! A group of several volumes: what it has, on both sites and after whatever happens to one of them.

use tidemark_core::config::{Mode, Policy};
use tidemark_core::event::{ConnId, DiskOp, FileRef, Input};
use tidemark_core::format::FormatError;
use tidemark_core::format::superblock::{self, Superblock};
use tidemark_core::layout::Layout;
use tidemark_core::ship::{FEATURE_LAYOUT, Message};
use tidemark_core::status::CopyState;
use tidemark_core::types::{BLOCK, VolumeId};
use tidemark_core::verb::{Verb, VerbError};

use crate::bench::{A, B, Fate, Pair, SIZE, VOLUME, promote_anyway};

const SECOND: VolumeId = VolumeId([8; 16]);
const THIRD: VolumeId = VolumeId([9; 16]);
/// With a short last block.
const SMALL: u64 = 5 * BLOCK as u64 + 512;
/// The first block of what comes behind the first volume.
const BEHIND: u64 = SIZE / BLOCK as u64;

fn add(pair: &mut Pair, site: usize, volume: VolumeId) {
    let id = pair.verb(site, Verb::AddVolume { volume, size: SMALL });
    assert!(matches!(pair.copies[site].end_of(id), Some(Ok(_))), "{:?}", pair.copies[site].end_of(id));
}

fn remove(pair: &mut Pair, site: usize, volume: VolumeId) {
    let id = pair.verb(site, Verb::RemoveVolume { volume });
    assert!(matches!(pair.copies[site].end_of(id), Some(Ok(_))), "{:?}", pair.copies[site].end_of(id));
}

fn drain(pair: &mut Pair) {
    pair.pass(1_000);
    for site in [A, B] {
        pair.verb(site, Verb::Drain);
    }
    pair.pass(1_000);
    for site in [A, B] {
        assert_eq!(pair.status(site).floor, pair.status(site).appended.lsn, "{:?}", pair.status(site));
    }
}

fn superblock(pair: &Pair, site: usize) -> Superblock {
    let file = &pair.copies[site].files[&FileRef::Superblock];
    Superblock::decode(superblock::FILE.decode(file).expect("a superblock").content).expect("a superblock")
}

/// A pair with two volumes, at both sites.
fn of_two() -> Pair {
    let mut pair = Pair::new();
    add(&mut pair, A, SECOND);
    pair.write(A, BEHIND, 3);
    pair.pass(1_000);
    assert_eq!(pair.status(B).appended, pair.status(A).appended);
    pair
}

#[test]
fn an_added_volume_is_at_both_sites_and_stays_there_over_restarts_and_promotions() {
    for drained in [false, true] {
        let mut pair = of_two();
        if drained {
            drain(&mut pair);
        }
        let layout = Layout::new([(VOLUME, SIZE), (SECOND, SMALL)]).unwrap();
        for site in [A, B] {
            pair.kill(site);
            pair.start(site);
            assert_eq!(pair.status(site).layout, layout);
        }
        pair.kill(A);
        pair.verb(B, promote_anyway());
        assert_eq!((pair.read(B, BEHIND), pair.read(B, BEHIND + 1)), (3, 0), "drained: {drained}");
    }
}

#[test]
fn what_the_base_of_an_added_volume_held_is_not_the_volumes() {
    let mut pair = Pair::new();
    pair.copies[A].fills_new_bases_with = 9;
    pair.copies[B].fills_new_bases_with = 9;
    add(&mut pair, A, SECOND);
    drain(&mut pair);
    for block in BEHIND..BEHIND + 6 {
        assert!(block == BEHIND + 5 || pair.read(A, block) == 0, "the last one is short");
        assert!(pair.copies[B].base()[block as usize * BLOCK..].iter().take(512).all(|byte| *byte == 0));
    }
}

#[test]
fn a_volume_grows_behind_another_one_and_in_its_short_last_block_first() {
    let mut pair = of_two();
    let id = pair.verb(A, Verb::Resize { volume: VOLUME, size: SIZE + 2 * BLOCK as u64 });
    assert!(matches!(pair.copies[A].end_of(id), Some(Ok(_))));
    let id = pair.verb(A, Verb::Resize { volume: SECOND, size: 7 * BLOCK as u64 });
    assert!(matches!(pair.copies[A].end_of(id), Some(Ok(_))));
    pair.pass(1_000);
    let (tail, block) = (2 * BLOCK as u64, BLOCK as u64);
    let wanted = Layout::new([(VOLUME, SIZE), (SECOND, 6 * block), (VOLUME, tail), (SECOND, block)]).unwrap();
    assert_eq!((pair.status(A).layout, pair.status(B).layout), (wanted.clone(), wanted));
}

#[test]
fn no_volume_is_added_while_the_peer_cannot_be_asked_for_room() {
    let mut pair = Pair::new();
    pair.disconnect();
    let id = pair.verb(A, Verb::AddVolume { volume: SECOND, size: SMALL });
    assert!(matches!(pair.copies[A].end_of(id), Some(Err(VerbError::PeerUnproven { .. }))));
    pair.copies[B].fate = |op| if matches!(op, DiskOp::Grow { .. }) { Fate::FindsNoSpace } else { Fate::Done };
    pair.connect();
    let id = pair.verb(A, Verb::AddVolume { volume: SECOND, size: SMALL });
    assert!(matches!(pair.copies[A].end_of(id), Some(Err(VerbError::Invalid(why))) if why.contains("no room")));
    assert_eq!(pair.status(A).layout, Layout::one(VOLUME, SIZE));
    pair.copies[B].fate = |_| Fate::Done;
    add(&mut pair, A, SECOND);
    let again = pair.verb(A, Verb::AddVolume { volume: SECOND, size: SMALL });
    assert!(matches!(pair.copies[A].end_of(again), Some(Ok(_))), "the same is success");
    let other = pair.verb(A, Verb::AddVolume { volume: SECOND, size: SIZE });
    assert!(matches!(pair.copies[A].end_of(other), Some(Err(VerbError::Invalid(_)))));
}

#[test]
fn a_request_that_leaves_its_volume_is_invalid_although_another_one_follows() {
    let mut pair = Pair::new();
    add(&mut pair, A, SECOND);
    add(&mut pair, A, THIRD);
    let across = pair.write_blocks(A, BEHIND - 1, 2, 1);
    let inside = pair.write_blocks(A, BEHIND - 1, 1, 1);
    // The rest of the last block of the second one is nobody's.
    let beyond = pair.write_blocks(A, BEHIND + 5, 1, 1);
    let refused = pair.copies[A].refused.clone();
    assert!(refused.contains(&across) && refused.contains(&beyond) && !refused.contains(&inside), "{refused:?}");
}

#[test]
fn the_base_of_a_removed_volume_is_given_up_only_when_the_superblock_has_left_it() {
    let mut pair = of_two();
    drain(&mut pair);
    pair.write(A, BEHIND + 1, 4);
    pair.disconnect();
    remove(&mut pair, A, SECOND);
    assert!(!pair.status(A).layout.has(SECOND) && pair.status(A).base_layout.has(SECOND));
    let refused = pair.write_blocks(A, BEHIND, 1, 5);
    assert!(pair.copies[A].refused.contains(&refused));
    let again = pair.verb(A, Verb::AddVolume { volume: SECOND, size: SMALL });
    assert!(matches!(pair.copies[A].end_of(again), Some(Err(VerbError::CopyState { .. }))), "its base is not free");
    pair.kill(A);
    pair.start(A);
    assert!(pair.copies[A].bases.contains_key(&SECOND), "or the copy could not be opened");
    pair.connect();
    pair.pass(1_000);
    drain(&mut pair);
    for site in [A, B] {
        assert!(!pair.copies[site].bases.contains_key(&SECOND) && !pair.status(site).base_layout.has(SECOND));
        assert_eq!(pair.copies[site].base()[(BEHIND as usize + 1) * BLOCK], 4, "it holds what the volume held");
        pair.kill(site);
        pair.start(site);
        assert!(!pair.status(site).layout.has(SECOND));
    }
    let last = pair.verb(A, Verb::RemoveVolume { volume: VOLUME });
    assert!(matches!(pair.copies[A].end_of(last), Some(Err(_))));
}

#[test]
fn volumes_of_a_suffix_that_is_sealed_are_gone_and_others_take_their_place() {
    let mut pair = Pair::new();
    let policy = Policy { mode: Mode::Sync, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.write(A, 0, 1);
    pair.pass(1_000);
    pair.copies[B].fate =
        |op| if matches!(op, DiskOp::Write { file: FileRef::Log(_), .. }) { Fate::Hangs } else { Fate::Done };
    add(&mut pair, A, SECOND);
    pair.write(A, BEHIND, 2);
    pair.kill(A);
    pair.kill(B);
    pair.copies[B].fate = |_| Fate::Done;
    pair.start(B);
    pair.verb(B, promote_anyway());
    assert_eq!(pair.status(B).layout, Layout::one(VOLUME, SIZE));
    pair.start(A);
    assert!(pair.status(A).layout.has(SECOND));
    pair.connect();
    pair.pass(1_000);
    assert_eq!((pair.status(A).layout, pair.status(A).branches), (Layout::one(VOLUME, SIZE), 1));
    add(&mut pair, B, THIRD);
    pair.write(B, BEHIND, 4);
    pair.pass(1_000);
    assert_eq!((pair.status(A).appended, pair.status(A).layout), (pair.status(B).appended, pair.status(B).layout));
    assert!(!pair.copies[A].bases.contains_key(&SECOND) && pair.copies[A].bases.contains_key(&THIRD));
}

#[test]
fn a_replica_that_knew_of_one_volume_learns_the_others_by_its_seeding() {
    let mut pair = of_two();
    pair.kill(B);
    pair.copies[B].bases.clear();
    pair.replace_b();
    pair.pass(1_000);
    assert_eq!((pair.status(B).appended, pair.status(B).layout), (pair.status(A).appended, pair.status(A).layout));
    pair.kill(A);
    pair.verb(B, promote_anyway());
    assert_eq!(pair.read(B, BEHIND), 3);
}

#[test]
fn a_peer_that_knows_no_groups_is_refused_by_a_group_of_several_and_no_reason_to_add_one() {
    let mut pair = Pair::new();
    let told = |pair: &mut Pair| {
        let mut hello = pair.copies[B].said.clone().expect("it has greeted");
        hello.features &= !FEATURE_LAYOUT;
        let conn = ConnId(pair.streams());
        pair.tell(A, Input::PeerMessage(conn, Message::Hello(hello)));
        pair.settle();
    };
    told(&mut pair);
    let id = pair.verb(A, Verb::AddVolume { volume: SECOND, size: SMALL });
    assert!(matches!(pair.copies[A].end_of(id), Some(Err(VerbError::Invalid(why))) if why.contains("version")));
    pair.connect();
    add(&mut pair, A, SECOND);
    assert!(pair.is_connected());
    told(&mut pair);
    assert!(!pair.is_connected(), "it would take the group for its volume");
}

#[test]
fn a_group_of_one_volume_is_written_as_versions_without_groups_read_it() {
    let mut pair = Pair::new();
    for copy in &mut pair.copies {
        copy.files.get_mut(&FileRef::Base).unwrap().resize(SIZE as usize + 512, 0);
    }
    let id = pair.verb(A, Verb::Resize { volume: VOLUME, size: SIZE + 512 });
    assert!(matches!(pair.copies[A].end_of(id), Some(Ok(_))));
    drain(&mut pair);
    let old = superblock::FILE.written_as(1);
    for site in [A, B] {
        assert!(old.decode(&pair.copies[site].files[&FileRef::Superblock]).is_ok());
        assert_eq!(superblock(&pair, site).layout, Layout::one(VOLUME, SIZE + 512));
    }
    add(&mut pair, A, SECOND);
    drain(&mut pair);
    for site in [A, B] {
        let refused = old.decode(&pair.copies[site].files[&FileRef::Superblock]);
        assert!(matches!(refused, Err(FormatError::Version { found: 2, .. })), "{refused:?}");
    }
}

#[test]
fn the_base_of_each_volume_is_known_again_by_its_own_beginning() {
    for swapped in [false, true] {
        let mut pair = of_two();
        drain(&mut pair);
        pair.kill(B);
        if swapped {
            pair.copies[B].files.get_mut(&FileRef::Base).unwrap()[BEHIND as usize * BLOCK + 5] ^= 1;
        }
        pair.start(B);
        assert_eq!(matches!(pair.status(B).copy, CopyState::Suspect { .. }), swapped);
    }
}

#[test]
fn a_removal_reaches_a_peer_that_was_away_and_compares_as_equal() {
    let mut pair = of_two();
    let policy = Policy { mode: Mode::Async, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.disconnect();
    remove(&mut pair, A, SECOND);
    pair.verb(A, Verb::Drain);
    pair.pass(1_000);
    pair.connect();
    pair.pass(1_000);
    assert_eq!((pair.status(B).appended, pair.status(B).layout), (pair.status(A).appended, pair.status(A).layout));
    let id = pair.verb(A, Verb::Verify);
    pair.pass(1_000);
    let end = pair.copies[A].end_of(id);
    assert!(
        matches!(end, Some(Ok(tidemark_core::verb::VerbOk::Verified { differing, .. })) if differing.is_empty()),
        "{end:?}"
    );
}

#[test]
fn the_base_of_a_volume_that_came_and_went_above_the_floor_stays_as_long_as_the_floor_may_stop_in_between() {
    let mut pair = Pair::new();
    add(&mut pair, A, SECOND);
    pair.write(A, BEHIND, 3);
    remove(&mut pair, A, SECOND);
    pair.pass(1_000);
    for site in [A, B] {
        let status = pair.status(site);
        assert!(!status.layout.has(SECOND) && status.base_layout.has(SECOND), "no superblock knows of the removal");
    }
    // The log ends before the removal, as after a failover that cut it: the volume is there again.
    for site in [A, B] {
        pair.kill(site);
        assert!(pair.copies[site].bases.contains_key(&SECOND));
        pair.start(site);
        assert!(pair.status(site).base_layout.has(SECOND));
    }
    pair.connect();
    pair.pass(1_000);
    drain(&mut pair);
    for site in [A, B] {
        assert!(!pair.copies[site].bases.contains_key(&SECOND));
    }
}

#[test]
fn a_flush_after_a_volume_was_removed_says_that_it_is_removed_at_both_sites() {
    let mut pair = of_two();
    let policy = Policy { mode: Mode::Sync, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(1_000);
    pair.disconnect();
    remove(&mut pair, A, SECOND);
    let flush = pair.flush(A);
    pair.pass(1_000);
    assert!(!pair.copies[A].replies.contains(&flush), "B would still have the volume");
    pair.connect();
    pair.pass(1_000);
    assert!(pair.copies[A].replies.contains(&flush) && !pair.status(B).layout.has(SECOND));
}
