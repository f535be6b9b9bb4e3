//! What a copy held at one position is seen as it was, or not at all.

use bytes::Bytes;
use tidemark_core::config::{Mode, Policy};
use tidemark_core::event::{FileRef, HoldId, Input};
use tidemark_core::format::branch::BranchHead;
use tidemark_core::format::frame::FrameHeader;
use tidemark_core::node::{Held, MAX_VIEWS};
use tidemark_core::status::CopyState;
use tidemark_core::types::{BLOCK, BlockRange, Boundary};
use tidemark_core::verb::{Verb, VerbError};
use tidemark_core::view::{Found, Picture};

use crate::bench::{A, B, Fate, Pair, SLOT_BYTES};
use crate::sealing::parted;

const VIEW: HoldId = HoldId(1);

fn head(pair: &Pair) -> BranchHead {
    BranchHead::decode(&pair.copies[A].files[&FileRef::Branch(1)]).expect("a branch")
}

fn hold(pair: &mut Pair, site: usize, id: HoldId, at: Option<Boundary>) -> Result<Held, VerbError> {
    pair.tell(site, Input::Hold(id, at));
    pair.settle();
    let (_, held) = pair.copies[site].held.iter().find(|(of, _)| *of == id).expect("it is answered");
    held.clone().map(|held| *held)
}

fn hold_branch(pair: &mut Pair, id: HoldId) -> Result<Held, VerbError> {
    let from = head(pair).from;
    hold(pair, A, id, Some(from))
}

/// The first bytes of blocks 0 to 60, as the files that the view is made of say at this moment.
fn seen(pair: &Pair, site: usize, held: &Held, branch: Option<u32>) -> Vec<u8> {
    let files = &pair.copies[site].files;
    let mut picture = Picture::of_base(held.floor, held.layout.clone());
    let mut sources: Vec<&[u8]> = Vec::new();
    let add = |picture: &mut Picture, source: &'static [u8], at: usize, number: usize| {
        let header = FrameHeader::decode(&source[at..], &held.secret).expect("a frame");
        let payload = Bytes::from_static(&source[at + header.padded_bytes()..][..header.payload_bytes()]);
        let block = (at + header.padded_bytes()) / BLOCK;
        picture.add(&header, &[payload], number as u32, block as u32).expect("it follows");
        header.total_bytes()
    };
    for (slot, frame) in &held.frames {
        let source: &'static [u8] = files[&FileRef::Log(*slot)].clone().leak();
        add(&mut picture, source, frame.block as usize * BLOCK, sources.len());
        sources.push(source);
    }
    assert_eq!(picture.end(), held.end);
    if let Some(number) = branch {
        let source: &'static [u8] = files[&FileRef::Branch(number)].clone().leak();
        let mut at = BLOCK;
        while at < source.len() {
            at += add(&mut picture, source, at, sources.len());
        }
        sources.push(source);
    }
    let byte = |block| match &picture.runs(BlockRange::new(block, 1))[0].found {
        Found::Zeros => 0,
        Found::Base(_, offset) => files[&FileRef::Base][*offset as usize],
        Found::Source(number, block, _) => sources[*number as usize][*block as usize * BLOCK],
    };
    (0..60).map(byte).collect()
}

fn keep_for(pair: &mut Pair, site: usize, retention_ms: u64) {
    let policy = Policy { retention_ms, ..pair.status(site).policy };
    pair.verb(site, Verb::SetPolicy(policy));
}

#[test]
fn a_sealed_suffix_is_seen_whole_while_the_copy_follows_and_ends_before_the_base_moves_on() {
    let mut pair = parted(Mode::Sync, |_| Fate::Done);
    pair.pass(1_000);
    let held = hold_branch(&mut pair, VIEW).unwrap();
    assert_eq!(seen(&pair, A, &held, Some(1)), [2; 60]);
    for block in 0..60 {
        pair.write(B, block, 4);
    }
    pair.pass(1_000);
    assert_eq!(pair.status(A).appended, pair.status(B).appended, "it follows");
    assert_eq!(seen(&pair, A, &held, Some(1)), [2; 60]);

    let before = pair.copies[A].base().to_vec();
    pair.verb(A, Verb::Drain);
    pair.pass(2_000);
    assert_eq!(pair.copies[A].base()[0], 4, "the drain is not held up");
    assert_eq!(pair.copies[A].ended_views, [(VIEW, before)], "it ended before anything was written");
    assert!(pair.copies[A].alarms.contains(&"branch_not_openable"), "{:?}", pair.copies[A].alarms);
    let refused = hold_branch(&mut pair, HoldId(2)).unwrap_err();
    assert!(refused.to_string().contains("branch export"), "{refused}");
}

#[test]
fn the_base_stays_where_a_sealed_suffix_begins_over_restarts_and_until_the_log_runs_short() {
    let mut pair = parted(Mode::Sync, |_| Fate::Done);
    pair.pass(1_000);
    let from = head(&pair).from;
    keep_for(&mut pair, B, 1_000);
    pair.pass(1_000);
    for round in 0..3 {
        pair.write(B, round, 5);
        pair.pass(5_000);
        assert!(pair.status(A).floor <= from.position.lsn, "{:?}", pair.status(A));
        pair.kill(A);
        pair.start(A);
        pair.connect();
        pair.pass(1_000);
    }
    assert!(pair.status(B).floor > from.position.lsn, "where there is none the base goes on: {:?}", pair.status(B));
    let held = hold(&mut pair, A, VIEW, Some(from)).unwrap();
    assert_eq!(seen(&pair, A, &held, Some(1)), [2; 60]);
    pair.tell(A, Input::LetGo(VIEW));

    while pair.status(A).floor <= from.position.lsn {
        assert!(pair.status(A).log_bytes < 64 * SLOT_BYTES, "the log is full: {:?}", pair.status(A));
        for block in 0..20 {
            pair.write(B, block, 6);
        }
        pair.pass(1_000);
    }
    assert!(pair.copies[A].alarms.contains(&"branch_not_openable"), "{:?}", pair.copies[A].alarms);
    assert!(hold(&mut pair, A, HoldId(2), Some(from)).is_err());
}

#[test]
fn the_base_goes_on_when_no_sealed_suffix_is_left() {
    let mut pair = parted(Mode::Sync, |_| Fate::Done);
    pair.pass(1_000);
    let from = head(&pair).from;
    keep_for(&mut pair, B, 1_000);
    pair.write(B, 0, 5);
    pair.pass(5_000);
    assert!(pair.status(A).floor <= from.position.lsn);
    pair.tell(A, Input::KeepBranches { sealed: 0, first: None });
    pair.pass(5_000);
    assert!(pair.status(A).floor <= from.position.lsn, "another was sealed meanwhile");
    pair.tell(A, Input::KeepBranches { sealed: 1, first: None });
    pair.write(B, 1, 5);
    pair.pass(5_000);
    assert!(pair.status(A).floor > from.position.lsn, "{:?}", pair.status(A));
    assert!(pair.copies[A].alarms.is_empty(), "{:?}", pair.copies[A].alarms);
}

#[test]
fn what_a_diverged_copy_holds_is_seen_until_it_is_seeded_anew() {
    let mut pair = parted(Mode::Async, |_| Fate::Done);
    assert!(matches!(pair.status(A).copy, CopyState::Diverged { .. }), "{:?}", pair.status(A).copy);
    let held = hold(&mut pair, A, VIEW, None).unwrap();
    assert_eq!(held.end.position, pair.status(A).appended);
    assert_eq!(seen(&pair, A, &held, None), [2; 60]);
    pair.verb(A, Verb::Reseed);
    pair.pass(1_000);
    assert!(matches!(pair.status(A).copy, CopyState::Current), "{:?}", pair.status(A).copy);
    let ended: Vec<HoldId> = pair.copies[A].ended_views.iter().map(|(id, _)| *id).collect();
    assert_eq!(ended, [VIEW]);
    let refused = hold_branch(&mut pair, HoldId(2)).unwrap_err();
    assert!(refused.to_string().contains("branch export"), "{refused}");
}

#[test]
fn a_primary_whose_content_is_looked_at_serves_on_and_its_base_goes_on_afterwards() {
    let mut pair = Pair::new();
    keep_for(&mut pair, A, 1_000);
    pair.write(A, 0, 1);
    pair.pass(5_000);
    let floor = pair.status(A).floor;
    let held = hold(&mut pair, A, VIEW, None).unwrap();
    pair.write(A, 0, 2);
    pair.write(A, 1, 2);
    pair.pass(5_000);
    assert_eq!(seen(&pair, A, &held, None)[..2], [1, 0]);
    assert_eq!((pair.read(A, 0), pair.status(A).floor), (2, floor));
    pair.tell(A, Input::LetGo(VIEW));
    pair.pass(1_000);
    assert!(pair.status(A).floor > floor);
    assert!(pair.copies[A].ended_views.is_empty());
}

#[test]
fn there_are_only_so_many_views_of_a_copy() {
    let mut pair = Pair::new();
    for number in 0..MAX_VIEWS as u64 {
        hold(&mut pair, B, HoldId(number), None).unwrap();
    }
    let one_more = HoldId(MAX_VIEWS as u64);
    assert!(hold(&mut pair, B, one_more, None).is_err());
    pair.tell(B, Input::LetGo(HoldId(0)));
    assert!(hold(&mut pair, B, HoldId(99), None).is_ok());
}
