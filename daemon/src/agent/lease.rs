//! The agent's own lease at its witness, kept for all its volumes by one task.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidemark_core::format::witness::Cell;
use tidemark_core::group::lease::{Ask, Holder, Terms};
use tidemark_core::types::{Nanos, NodeId};

use crate::lock::lock;
use crate::shard::{Held, ShardHandle};
use crate::witness::{Witness, random_nonce};

/// Before it is tried again to get a random number.
const NO_NONCE_PAUSE: Duration = Duration::from_millis(100);

/// The agent's lease as it is now, for status and metrics. Clones show the same.
#[derive(Clone, Debug)]
pub struct LeaseBoard {
    terms: Terms,
    held: Arc<Mutex<Option<Held>>>,
}

impl LeaseBoard {
    /// Nothing is held yet.
    pub fn new(terms: Terms) -> Self {
        Self { terms, held: Arc::default() }
    }

    /// The terms that the lease is held on.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// The grant that is held and how much longer its last renewal lasts: nothing once it has run out, until it is renewed.
    pub fn held(&self) -> Option<(u64, Duration)> {
        let held = (*lock(&self.held))?;
        Some((held.lease_gen, self.span().saturating_sub(held.sent.elapsed())))
    }

    fn span(&self) -> Duration {
        Duration::from_nanos(self.terms.span_ns)
    }
}

/// Keeps the lease. Its clock begins with it: what it counts is told to others as an [`Instant`].
pub(super) struct Keeper {
    witness: Arc<Witness>,
    cell: Cell,
    holder: Holder,
    start: Instant,
    board: LeaseBoard,
    shards: Vec<ShardHandle>,
}

impl Keeper {
    /// For the agent on `node`, which holds nothing yet. `shards` run already: an [`Instant`] from before one began is none on its
    /// clock.
    pub fn new(witness: Arc<Witness>, node: NodeId, board: LeaseBoard, shards: Vec<ShardHandle>) -> Self {
        let holder = Holder::new(board.terms());
        Self { witness, cell: Cell::Lease(node), holder, start: Instant::now(), board, shards }
    }

    /// Takes and renews the lease. Never ends.
    pub async fn keep(mut self) {
        loop {
            let Ok(nonce) = random_nonce() else {
                tokio::time::sleep(NO_NONCE_PAUSE).await;
                continue;
            };
            match self.holder.poll(self.now(), nonce) {
                Some(ask) => self.ask(ask).await,
                None => self.rest().await,
            }
        }
    }

    async fn ask(&mut self, ask: Ask) {
        let answer = self.witness.answer(ask.about(self.cell)).await;
        self.holder.on_answer(self.now(), answer.into());
        self.tell();
    }

    async fn rest(&self) {
        let due = self.holder.poll_timeout().unwrap_or_default();
        tokio::time::sleep(Duration::from_nanos(due.since(self.now()))).await;
    }

    /// Tells every volume when something changed.
    fn tell(&self) {
        let held = self.held();
        let before = std::mem::replace(&mut *lock(&self.board.held), held);
        if held == before {
            return;
        }
        match (before, held) {
            (Some(before), Some(held)) if before.lease_gen == held.lease_gen => {}
            (_, Some(held)) => tracing::info!(lease_gen = held.lease_gen, "lease granted by the witness"),
            (_, None) => tracing::warn!("the lease was revoked at the witness"),
        }
        if held.is_some() {
            self.witness.count_renewal();
        }
        for shard in &self.shards {
            shard.send(move |shard| shard.hold_lease(held));
        }
    }

    fn held(&self) -> Option<Held> {
        let (lease_gen, sent) = self.holder.held()?;
        Some(Held { lease_gen, sent: self.start + Duration::from_nanos(sent.0) })
    }

    /// Now, on the clock of the holder.
    fn now(&self) -> Nanos {
        Nanos(self.start.elapsed().as_nanos() as u64)
    }
}

#[cfg(test)]
mod tests {
    use tidemark_core::format::witness::Content;

    use super::*;
    use crate::telemetry::WitnessMetrics;
    use crate::witness::{FileStore, Outcome};

    const NODE: NodeId = NodeId([7; 16]);
    const TIMEOUT: Duration = Duration::from_secs(30);

    fn witness(dir: &tempfile::TempDir) -> Arc<Witness> {
        let store = Box::new(FileStore::new(dir.path().to_owned()));
        Arc::new(Witness::over(store, NODE, TIMEOUT, WitnessMetrics::default()))
    }

    async fn held_by(board: &LeaseBoard, wanted: impl Fn(u64) -> bool) -> (u64, Duration) {
        let began = Instant::now();
        loop {
            match board.held() {
                Some(held) if wanted(held.0) => return held,
                _ => assert!(began.elapsed() < TIMEOUT, "{:?}", board.held()),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_lease_that_was_revoked_is_taken_anew_under_another_grant() {
        let dir = tempfile::tempdir().unwrap();
        let terms = Terms::new(Terms::MIN_SPAN_NS);
        let board = LeaseBoard::new(terms);
        let keeper = tokio::spawn(Keeper::new(witness(&dir), NODE, board.clone(), Vec::new()).keep());
        let (first, left) = held_by(&board, |_| true).await;
        assert!(left <= Duration::from_nanos(terms.span_ns));

        let (challenger, cell) = (witness(&dir), Cell::Lease(NODE));
        loop {
            let found = challenger.read(cell).await.unwrap().unwrap();
            let Content::Lease(lease) = found.content else { panic!("no lease") };
            let revoked = Content::Lease(lease.revoked(random_nonce().unwrap()));
            // A renewal in between makes it fail.
            if let Outcome::Committed(_) = challenger.cas(cell, Some(&found.revision), &revoked).await.unwrap() {
                break;
            }
        }
        held_by(&board, |lease_gen| lease_gen > first + 1).await;
        keeper.abort();
    }

    #[tokio::test]
    async fn an_agent_that_starts_takes_a_new_grant_and_counts_from_when_it_asked() {
        let dir = tempfile::tempdir().unwrap();
        let mut grants = Vec::new();
        for _ in 0..2 {
            let board = LeaseBoard::new(Terms::new(600 * Terms::MIN_SPAN_NS));
            let keeper = Keeper::new(witness(&dir), NODE, board.clone(), Vec::new());
            let began = Instant::now();
            let keeper = tokio::spawn(keeper.keep());
            let (grant, _) = held_by(&board, |_| true).await;
            let held = lock(&board.held).unwrap();
            assert!(held.sent >= began && held.sent <= Instant::now());
            grants.push(grant);
            keeper.abort();
        }
        assert!(grants[1] > grants[0], "{grants:?}");
    }
}
