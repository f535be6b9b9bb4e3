//! The promises, each on any kind of witness.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use tidemark_agent::witness::{Outcome, Store, Stored, Swap, Witness, WitnessError};
use tidemark_core::config::{Config, Mode};
use tidemark_core::format::witness::{self as format, Cell, Content, MAX_CELL_BYTES};
use tidemark_core::group::witness::{Found, Regression, Revision};
use tidemark_core::group::{forced, genesis};
use tidemark_core::types::{GenId, GroupId, NodeId, Nonce, SiteId};

use crate::history::{History, lease};
use crate::{Backend, TIMEOUT, over};

const NODE: NodeId = NodeId([0x11; 16]);
const CELL: Cell = Cell::Lease(NODE);
const GROUP: Cell = Cell::Group(GroupId([0x22; 16]));

fn first_config() -> Config {
    genesis(SiteId([1; 16]), NODE, Nonce([2; 16]), GenId([3; 16]), Mode::Sync)
}

fn committed(outcome: Result<Outcome, WitnessError>) -> Revision {
    match outcome {
        Ok(Outcome::Committed(revision)) => revision,
        other => panic!("not committed: {other:?}"),
    }
}

fn conflict(outcome: Result<Outcome, WitnessError>) -> Option<Found> {
    match outcome {
        Ok(Outcome::Conflict(now)) => now,
        other => panic!("no conflict: {other:?}"),
    }
}

pub async fn a_value_comes_back_as_it_was_put_and_one_revision_is_replaced_once(backend: &mut impl Backend) {
    let (a, b) = (backend.witness(), backend.witness());
    assert_eq!(a.read(GROUP).await, Ok(None));
    let k = first_config();
    let revision = committed(a.cas(GROUP, None, &Content::Config(k.clone())).await);
    let found = b.read(GROUP).await.unwrap().unwrap();
    assert_eq!(found, Found { content: Content::Config(k.clone()), revision: revision.clone() });
    let next = |nonce| Content::Config(forced(&k, NODE, Nonce([nonce; 16]), None, k.sites.clone()));
    let newer = committed(b.cas(GROUP, Some(&revision), &next(7)).await);
    assert_ne!(newer, revision);
    let now = conflict(a.cas(GROUP, Some(&revision), &next(8)).await).unwrap();
    assert_eq!(now, Found { content: next(7), revision: newer });
    assert!(conflict(a.cas(GROUP, None, &next(9)).await).is_some(), "what exists is not created");
    assert_eq!(a.read(CELL).await, Ok(None), "another cell is not touched");
    assert_eq!(conflict(a.cas(CELL, Some(&revision), &Content::Lease(Default::default())).await), None);
}

/// Loses the answer to every `every`th change that was made.
struct Forgetful {
    inner: Box<dyn Store>,
    every: u32,
    changes: AtomicU32,
}

#[tonic::async_trait]
impl Store for Forgetful {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    async fn read(&self, cell: Cell, deadline: Instant) -> Result<Option<Stored>, WitnessError> {
        self.inner.read(cell, deadline).await
    }

    async fn cas(
        &self,
        cell: Cell,
        expected: Option<&Revision>,
        value: Bytes,
        deadline: Instant,
    ) -> Result<Swap, WitnessError> {
        let swap = self.inner.cas(cell, expected, value, deadline).await;
        match self.changes.fetch_add(1, Ordering::SeqCst) % self.every {
            0 => Err(WitnessError::Unavailable("the answer was lost".to_owned())),
            _ => swap,
        }
    }
}

fn forgetful(backend: &impl Backend, every: u32) -> Witness {
    over(Box::new(Forgetful { inner: backend.store(), every, changes: AtomicU32::new(0) }))
}

/// Changes the cell as often as one can in `tries` tries.
async fn change_again_and_again(witness: Witness, history: History, tries: u32) {
    for _ in 0..tries {
        let Ok(found) = history.read(&witness, CELL).await else { continue };
        let _ = history.replace(&witness, CELL, found.as_ref()).await; // the history knows how it ended
    }
}

pub async fn racing_clients_make_one_history(backend: &mut impl Backend) {
    const TRIES: u32 = 30;
    let history = History::default();
    let clients =
        [backend.witness(), backend.witness(), backend.witness(), forgetful(backend, 2), forgetful(backend, 3)];
    let racing = clients.map(|client| tokio::spawn(change_again_and_again(client, history.clone(), TRIES)));
    for client in racing {
        client.await.unwrap();
    }
    let end = backend.witness().read(CELL).await.unwrap();
    let changes = history.check(end.as_ref());
    assert_eq!(end.map(|found| lease(&found).counter), Some(changes));
    assert!(changes >= TRIES.into(), "only {changes} changes: nobody got through");
}

pub async fn a_cell_is_created_once(backend: &mut impl Backend) {
    for round in 0..10u8 {
        let cell = Cell::Lease(NodeId([round + 1; 16]));
        let history = History::default();
        let creating: Vec<_> = (0..6)
            .map(|_| {
                let (witness, history) = (backend.witness(), history.clone());
                tokio::spawn(async move { history.replace(&witness, cell, None).await })
            })
            .collect();
        let mut winners = 0;
        for client in creating {
            winners += u32::from(matches!(client.await.unwrap(), Ok(Outcome::Committed(_))));
        }
        assert_eq!(winners, 1);
        assert_eq!(history.check(backend.witness().read(cell).await.unwrap().as_ref()), 1);
    }
}

pub async fn an_answer_that_was_lost_is_found_by_reading(backend: &mut impl Backend) {
    let witness = forgetful(backend, 1);
    let history = History::default();
    committed(history.replace(&witness, CELL, None).await);
    let found = witness.read(CELL).await.unwrap();
    let revision = committed(history.replace(&witness, CELL, found.as_ref()).await);
    let now = backend.witness().read(CELL).await.unwrap().unwrap();
    assert_eq!((now.revision.clone(), lease(&now).counter), (revision, 2));
}

/// Makes a change, lets another client replace it, and loses the answer.
struct Overtaken {
    inner: Box<dyn Store>,
    other: Witness,
}

#[tonic::async_trait]
impl Store for Overtaken {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    async fn read(&self, cell: Cell, deadline: Instant) -> Result<Option<Stored>, WitnessError> {
        self.inner.read(cell, deadline).await
    }

    async fn cas(
        &self,
        cell: Cell,
        expected: Option<&Revision>,
        value: Bytes,
        deadline: Instant,
    ) -> Result<Swap, WitnessError> {
        self.inner.cas(cell, expected, value, deadline).await?;
        let now = self.other.read(cell).await?.unwrap();
        let next = Content::Lease(lease(&now).revoked(Nonce([0xee; 16])));
        committed(self.other.cas(cell, Some(&now.revision), &next).await);
        Err(WitnessError::Unavailable("the answer was lost".to_owned()))
    }
}

pub async fn a_change_that_was_replaced_after_its_answer_was_lost_is_in_conflict(backend: &mut impl Backend) {
    let witness = over(Box::new(Overtaken { inner: backend.store(), other: backend.witness() }));
    let now = conflict(History::default().replace(&witness, CELL, None).await).unwrap();
    assert_eq!(lease(&now).writer, Nonce([0xee; 16]));
}

/// What a change was to do.
struct Held {
    expected: Option<Revision>,
    value: Bytes,
}

/// Says nothing to a change, and makes it only when it is told to.
struct Late {
    inner: Arc<dyn Store>,
    held: Arc<Mutex<Option<Held>>>,
    is_late: AtomicBool,
}

#[tonic::async_trait]
impl Store for Late {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    async fn read(&self, cell: Cell, deadline: Instant) -> Result<Option<Stored>, WitnessError> {
        self.inner.read(cell, deadline).await
    }

    async fn cas(
        &self,
        cell: Cell,
        expected: Option<&Revision>,
        value: Bytes,
        deadline: Instant,
    ) -> Result<Swap, WitnessError> {
        if !self.is_late.swap(false, Ordering::SeqCst) {
            return self.inner.cas(cell, expected, value, deadline).await;
        }
        *self.held.lock().unwrap() = Some(Held { expected: expected.cloned(), value });
        Err(WitnessError::Unavailable("no answer".to_owned()))
    }
}

pub async fn a_change_that_may_come_yet_is_not_called_a_conflict(backend: &mut impl Backend) {
    let (inner, held): (Arc<dyn Store>, Arc<Mutex<_>>) = (backend.store().into(), Arc::default());
    let witness = over(Box::new(Late { inner: inner.clone(), held: held.clone(), is_late: true.into() }));
    let history = History::default();
    let outcome = history.replace(&witness, CELL, None).await;
    assert!(matches!(outcome, Err(WitnessError::Unavailable(_))), "{outcome:?}");
    let Held { expected, value } = held.lock().unwrap().take().unwrap();
    let late = inner.cas(CELL, expected.as_ref(), value.clone(), Instant::now() + TIMEOUT).await.unwrap();
    assert!(matches!(late, Swap::Committed(_)), "it came after all");
    // Once somebody has changed the cell it cannot come any more.
    let found = witness.read(CELL).await.unwrap();
    assert_eq!(history.check(found.as_ref()), 1);
    committed(history.replace(&witness, CELL, found.as_ref()).await);
    let too_late = inner.cas(CELL, expected.as_ref(), value, Instant::now() + TIMEOUT).await.unwrap();
    assert!(matches!(too_late, Swap::Conflict(Some(_))), "{too_late:?}");
}

/// Renews the lease `times` times; the last revision.
async fn renew(witness: &Witness, times: u32) -> Option<Revision> {
    let (history, mut last) = (History::default(), None);
    for _ in 0..times {
        let found = witness.read(CELL).await.unwrap();
        last = Some(committed(history.replace(witness, CELL, found.as_ref()).await));
    }
    last
}

pub async fn a_witness_that_was_wiped_is_found_out(backend: &mut impl Backend) {
    let witness = backend.witness();
    let last = renew(&witness, 3).await;
    backend.wipe();
    let forgot = Err(WitnessError::Regressed { cell: CELL, source: Regression::Wiped });
    assert_eq!(witness.read(CELL).await, forgot);
    let lost = witness.cas(CELL, last.as_ref(), &Content::Lease(Default::default())).await;
    assert!(matches!(lost, Err(WitnessError::Regressed { .. })), "{lost:?}");
    assert_eq!(backend.witness().read(CELL).await, Ok(None), "who has seen nothing believes it");
}

pub async fn a_witness_that_was_restored_is_found_out(backend: &mut impl Backend) {
    let witness = backend.witness();
    renew(&witness, 3).await;
    backend.save();
    renew(&witness, 1).await;
    backend.restore();
    let now = witness.read(CELL).await;
    let lower = |found| {
        matches!(found, Err(WitnessError::Regressed { source: Regression::Revision { .. } | Regression::Value, .. }))
    };
    assert!(lower(now.clone()), "{now:?}");
    // It stays found out when others go on with it.
    renew(&backend.witness(), 3).await;
    assert!(matches!(witness.read(CELL).await, Err(WitnessError::Regressed { .. })), "it grew past what was seen");
}

pub async fn what_no_agent_wrote_is_corrupt_and_stays(backend: &mut impl Backend) {
    let (store, witness) = (backend.store(), backend.witness());
    let other = format::encode(Cell::Lease(NodeId([9; 16])), &Content::Lease(Default::default()));
    let foreign =
        [Bytes::from_static(b"hello"), Bytes::from(vec![0; MAX_CELL_BYTES]), Bytes::from(other), Bytes::new()];
    let mut revision = None;
    for bytes in foreign {
        let swap = store.cas(CELL, revision.as_ref(), bytes.clone(), Instant::now() + TIMEOUT).await.unwrap();
        let Swap::Committed(now) = swap else { panic!("{swap:?}") };
        assert!(matches!(witness.read(CELL).await, Err(WitnessError::Corrupt { cell: CELL, .. })));
        let over_it = witness.cas(CELL, None, &Content::Lease(Default::default())).await;
        assert!(matches!(over_it, Err(WitnessError::Corrupt { .. })), "{over_it:?}");
        let stays = store.read(CELL, Instant::now() + TIMEOUT).await.unwrap().unwrap();
        assert_eq!((stays.bytes, &stays.revision), (bytes, &now));
        revision = Some(now);
    }
    let long = Bytes::from(vec![0; MAX_CELL_BYTES + 1]);
    let refused = store.cas(CELL, revision.as_ref(), long, Instant::now() + TIMEOUT).await;
    assert!(matches!(refused, Err(WitnessError::Refused(_))), "{refused:?}");
}

pub async fn a_check_measures_and_shows_that_old_values_are_refused(backend: &mut impl Backend) {
    let checks = [backend.witness(), backend.witness()].map(|w| tokio::spawn(async move { w.probe(NODE).await }));
    for check in checks {
        let probe = check.await.unwrap().unwrap();
        assert_eq!(probe.backend, backend.store().backend());
        assert!(!probe.read.is_zero() && !probe.cas.is_zero());
    }
    assert_eq!(backend.witness().read(CELL).await, Ok(None), "a check touches its own cell alone");
    let credulous = over(Box::new(Credulous(backend.store()))).probe(NODE).await;
    assert!(matches!(&credulous, Err(WitnessError::Refused(why)) if why.contains("condition")), "{credulous:?}");
}

/// A store that ignores the condition, as some object stores do.
struct Credulous(Box<dyn Store>);

#[tonic::async_trait]
impl Store for Credulous {
    fn backend(&self) -> &'static str {
        self.0.backend()
    }

    fn place(&self) -> String {
        self.0.place()
    }

    async fn read(&self, cell: Cell, deadline: Instant) -> Result<Option<Stored>, WitnessError> {
        self.0.read(cell, deadline).await
    }

    async fn cas(
        &self,
        cell: Cell,
        _expected: Option<&Revision>,
        value: Bytes,
        deadline: Instant,
    ) -> Result<Swap, WitnessError> {
        let now = self.0.read(cell, deadline).await?.map(|stored| stored.revision);
        self.0.cas(cell, now.as_ref(), value, deadline).await
    }
}
