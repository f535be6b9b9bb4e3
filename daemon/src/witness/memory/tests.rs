//! What is remembered over a restart.

use tidemark_core::config::Mode;
use tidemark_core::format::witness::Lease;
use tidemark_core::group::genesis;
use tidemark_core::group::witness::Revision;
use tidemark_core::types::{GenId, GroupId, NodeId, Nonce, SiteId};

use super::*;

const LEASE: Cell = Cell::Lease(NodeId([1; 16]));
const GROUP: Cell = Cell::Group(GroupId([2; 16]));
const PATIENCE: Duration = Duration::from_secs(30);

fn lease(lease_gen: u64, counter: u64, revision: Revision) -> Found {
    Found { content: Content::Lease(Lease { lease_gen, counter, writer: Nonce([7; 16]), span_ms: 10 }), revision }
}

fn config() -> Found {
    let k = genesis(SiteId([1; 16]), NodeId([1; 16]), Nonce([1; 16]), GenId([1; 16]), Mode::Sync);
    Found { content: Content::Config(k), revision: Revision::Counted(50) }
}

fn path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("witness-seen")
}

#[tokio::test]
async fn a_cell_that_went_back_while_the_agent_was_down_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::load(path(&dir));
    memory.raise(LEASE, &lease(2, 10, Revision::Counted(60)));
    memory.raise(GROUP, &config());
    memory.settle(PATIENCE).await;
    let again = Memory::load(path(&dir));
    let lease_seen = again.highest(LEASE).unwrap();
    assert_eq!(lease_seen.precedes(Some(&lease(2, 9, Revision::Counted(61)))), Err(Regression::Value));
    assert_eq!(lease_seen.precedes(Some(&lease(2, 11, Revision::Counted(61)))), Ok(()));
    assert_eq!(again.highest(GROUP).unwrap().precedes(None), Err(Regression::Wiped));
    assert_eq!(again.highest(GROUP), memory.highest(GROUP));
}

#[tokio::test]
async fn a_cell_that_is_not_believed_is_not_believed_after_a_restart_either() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::load(path(&dir));
    let wiped = Regression::Revision { seen: 60, found: 3 };
    memory.raise(LEASE, &lease(2, 10, Revision::Counted(60)));
    memory.suspect(LEASE, wiped);
    memory.settle(PATIENCE).await;
    let grown = lease(3, 99, Revision::Counted(99));
    assert_eq!(Memory::load(path(&dir)).highest(LEASE).unwrap().precedes(Some(&grown)), Err(wiped));
}

#[tokio::test]
async fn renewals_are_written_once_a_second_and_another_grant_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::load(path(&dir));
    let on_disk = || Memory::load(path(&dir)).highest(LEASE).map(|highest| highest.revision);
    memory.raise(LEASE, &lease(1, 1, Revision::Counted(1)));
    memory.settle(PATIENCE).await;
    memory.raise(LEASE, &lease(1, 2, Revision::Counted(2)));
    memory.settle(PATIENCE).await;
    assert_eq!(on_disk(), Some(Some(1)));
    memory.raise(LEASE, &lease(2, 3, Revision::Counted(3)));
    memory.settle(PATIENCE).await;
    assert_eq!(on_disk(), Some(Some(3)));
    // What the file lacks is written with the next change that matters, too.
    memory.raise(LEASE, &lease(2, 4, Revision::Counted(4)));
    memory.raise(GROUP, &config());
    memory.settle(PATIENCE).await;
    assert_eq!(on_disk(), Some(Some(4)));
}

#[tokio::test]
async fn no_damage_to_the_file_goes_unnoticed_and_a_damaged_one_counts_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::load(path(&dir));
    memory.raise(LEASE, &lease(2, 10, Revision::Tagged("etag".into())));
    memory.raise(GROUP, &config());
    memory.settle(PATIENCE).await;
    let good = std::fs::read(path(&dir)).unwrap();
    assert_eq!(format::decode(&good).unwrap().len(), 2);
    for at in (0..good.len()).filter(|at| !(6..8).contains(at)) {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        assert!(format::decode(&flipped).is_err(), "byte {at}");
        assert!(format::decode(&good[..at]).is_err(), "{at} bytes");
    }
    std::fs::write(path(&dir), &good[..20]).unwrap();
    let damaged = Memory::load(path(&dir));
    assert_eq!(damaged.highest(LEASE), None);
    damaged.raise(GROUP, &config());
    damaged.settle(PATIENCE).await;
    assert!(Memory::load(path(&dir)).highest(GROUP).is_some(), "a damaged file is replaced");
}

#[test]
fn what_changed_longest_ago_is_forgotten_first_when_there_is_too_much() {
    let memory = Memory::default();
    let cell = |number: usize| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        Cell::Lease(NodeId(id))
    };
    for number in 0..=MAX_CELLS {
        memory.raise(cell(number), &lease(1, 1, Revision::Counted(1)));
    }
    memory.raise(Cell::Probe(NodeId([1; 16])), &lease(1, 1, Revision::Counted(1)));
    let kept = &memory.known().kept;
    assert_eq!(kept.len(), MAX_CELLS);
    assert!(!kept.contains_key(&cell(0)) && kept.contains_key(&cell(1)) && kept.contains_key(&cell(MAX_CELLS)));
    let bytes = format::encode(kept);
    assert!(bytes.len() <= format::MAX_BYTES);
    assert_eq!(format::decode(&bytes).unwrap(), *kept);
}
