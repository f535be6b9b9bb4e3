//! The witness: the only arbiter between two sites, a few cells with compare-and-swap in a place that neither of them is.
//!
//! Decides what an unclear outcome means, and whether the witness can still be believed. Does not decide when K or a lease may
//! change, and tries nothing again by itself: the caller knows how long its question is worth asking.
//!
//! Invariants:
//! - Of all changes that expect one revision of a cell at most one is committed, whoever asks and however answers are lost.
//! - `Committed` is answered only when the value was durable in the cell; `Conflict` only when it is not there and never will be.
//! - A value lower than one that this agent saw before its call began is never answered, but [`WitnessError::Regressed`].
//! - Every call ends within twice the configured time, and as much again where the own disk does not keep up with what was seen.
//!   The first change of a kind of store that has to prove itself takes three times more.
//! - A store that was seen to ignore the condition of a change is asked for no change, but of the cell that it is tried with.

mod etcd;
mod file;
mod memory;
mod memory_file;
mod probe;
#[cfg(feature = "s3")]
mod s3;
mod store;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemark_core::event::{CellChange, Question, WitnessAnswer};
use tidemark_core::format::witness::{self as format, Cell, Content};
use tidemark_core::group::witness::{Found, Highest, Revision};
use tidemark_core::types::NodeId;

pub use etcd::Etcd;
pub use file::FileStore;
pub use memory::Memory;
pub use probe::{Probe, random_nonce};
#[cfg(feature = "s3")]
pub use s3::S3;
pub use store::{Store, Stored, Swap, WitnessError};

use crate::config::{WitnessBackend, WitnessConfig};
use crate::lock::lock;
use crate::telemetry::WitnessMetrics;

use probe::Proof;

/// The end of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The new value was durable in the cell, at this revision.
    Committed(Revision),
    /// The cell holds this instead. After an answer that was lost the own value may have been there for a while, before somebody
    /// who had read it replaced it.
    Conflict(Option<Found>),
}

/// One agent's way to its witness.
pub struct Witness {
    store: Box<dyn Store>,
    /// Of one call to the store.
    timeout: Duration,
    metrics: WitnessMetrics,
    memory: Memory,
    /// Why the last call was in vain.
    fault: Mutex<Option<String>>,
    /// Whether the store looks at the condition of a change.
    proof: Proof,
}

impl Witness {
    /// The witness of `config` for the agent at `node`, of which `memory` is what was seen. Nothing is asked yet: an agent starts
    /// without its witness.
    ///
    /// # Errors
    /// [`WitnessError::Refused`] when the configuration's files cannot be used.
    pub fn new(
        config: &WitnessConfig,
        node: NodeId,
        memory: Memory,
        metrics: WitnessMetrics,
    ) -> Result<Self, WitnessError> {
        let store: Box<dyn Store> = match &config.backend {
            WitnessBackend::File { path } => Box::new(FileStore::new(path.clone())),
            WitnessBackend::Etcd(etcd) => Box::new(Etcd::new(etcd)?),
            #[cfg(feature = "s3")]
            WitnessBackend::S3(s3) => Box::new(S3::new(s3)?),
            #[cfg(not(feature = "s3"))]
            WitnessBackend::S3(_) => return Err(WitnessError::Refused("this agent was built without s3".to_owned())),
        };
        Ok(Self { memory, ..Self::over(store, node, config.timeout, metrics) })
    }

    /// A witness over a store of which nothing was seen and nothing is kept, for the agent at `node`; `timeout` bounds each call.
    pub fn over(store: Box<dyn Store>, node: NodeId, timeout: Duration, metrics: WitnessMetrics) -> Self {
        metrics.begin(store.backend());
        let fault = Mutex::new(Some("it was not asked yet".to_owned()));
        let proof = Proof::new(node, !store.has_to_prove_itself());
        Self { store, timeout, metrics, memory: Memory::default(), fault, proof }
    }

    /// What kind of witness it is: a word.
    pub fn backend(&self) -> &'static str {
        self.store.backend()
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        self.store.place()
    }

    /// Why the last call was in vain, or why the store is no arbiter; `None`: it was answered, and the answer was believed.
    pub fn fault(&self) -> Option<String> {
        self.proof.failed().or_else(|| lock(&self.fault).clone())
    }

    /// What `cell` holds now.
    ///
    /// # Errors
    /// [`WitnessError`].
    pub async fn read(&self, cell: Cell) -> Result<Option<Found>, WitnessError> {
        let before = self.memory.highest(cell);
        let judged = self.judged(cell, before, self.stored(cell).await);
        self.memory.settle(self.timeout).await;
        judged
    }

    /// Replaces what was read at `expected` (`None`: that there was nothing) by `content`, which is known again by its nonce: no
    /// other change must ever have it. The same change may be asked for again as long as it is not known what became of it.
    ///
    /// # Errors
    /// [`WitnessError`]. After [`WitnessError::Unavailable`] the change may have happened or happen yet: read again, and take the
    /// own value there for committed.
    pub async fn cas(
        &self,
        cell: Cell,
        expected: Option<&Revision>,
        content: &Content,
    ) -> Result<Outcome, WitnessError> {
        self.must_be_proven().await?;
        self.change(cell, expected, content).await
    }

    /// As [`Self::cas`], also of a store that is still to be tried.
    async fn change(
        &self,
        cell: Cell,
        expected: Option<&Revision>,
        content: &Content,
    ) -> Result<Outcome, WitnessError> {
        let outcome = self.swap(cell, expected, content).await;
        self.memory.settle(self.timeout).await;
        outcome
    }

    async fn swap(&self, cell: Cell, expected: Option<&Revision>, content: &Content) -> Result<Outcome, WitnessError> {
        let before = self.memory.highest(cell);
        let value = Bytes::from(format::encode(cell, content));
        let call = self.store.cas(cell, expected, value.clone(), self.deadline());
        let swap = match self.timed("cas", call).await {
            Err(WitnessError::Unavailable(why)) => self.resolve(cell, expected, why).await?,
            other => other?,
        };
        match swap {
            Swap::Committed(revision) => Ok(self.committed(cell, content, revision)),
            // A back-end, or what lies on the way to it, asked again after an answer that was lost.
            Swap::Conflict(Some(now)) if now.bytes == value => Ok(self.committed(cell, content, now.revision)),
            Swap::Conflict(now) => self.judged(cell, before, Ok(now)).map(Outcome::Conflict),
        }
    }

    /// What a core asks. Whatever is not certain is [`WitnessAnswer::Lost`].
    pub async fn answer(&self, Question { cell, change }: Question) -> WitnessAnswer {
        let changes_group = change.is_some() && matches!(cell, Cell::Group(_));
        let answer = match change {
            None => self.read(cell).await.map(WitnessAnswer::Holds),
            Some(CellChange { expected, content }) => {
                let outcome = self.cas(cell, expected.as_ref(), &content).await;
                outcome.map(|outcome| match outcome {
                    Outcome::Committed(revision) => WitnessAnswer::Committed(revision),
                    Outcome::Conflict(found) => WitnessAnswer::Holds(found),
                })
            }
        };
        let answer = answer.unwrap_or_else(|error| {
            tracing::debug!(%cell, %error, "the witness does not answer for certain");
            WitnessAnswer::Lost
        });
        if changes_group {
            self.metrics.change_ended(&answer);
        }
        answer
    }

    /// This agent's own lease was granted or renewed.
    pub fn count_renewal(&self) {
        self.metrics.renewed(self.store.backend());
    }

    fn committed(&self, cell: Cell, content: &Content, revision: Revision) -> Outcome {
        self.memory.raise(cell, &Found { content: content.clone(), revision: revision.clone() });
        Outcome::Committed(revision)
    }

    /// What became of a change whose answer was lost: it is over once the cell is not as expected any more.
    async fn resolve(&self, cell: Cell, expected: Option<&Revision>, why: String) -> Result<Swap, WitnessError> {
        let now = self.stored(cell).await?;
        match now.as_ref().map(|stored| &stored.revision) == expected {
            true => Err(WitnessError::Unavailable(why)), // it may be under way still
            false => Ok(Swap::Conflict(now)),
        }
    }

    async fn stored(&self, cell: Cell) -> Result<Option<Stored>, WitnessError> {
        self.timed("read", self.store.read(cell, self.deadline())).await
    }

    /// One call to the store, bounded and counted.
    async fn timed<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = Result<T, WitnessError>>,
    ) -> Result<T, WitnessError> {
        let began = Instant::now();
        let silent = |_| Err(WitnessError::Unavailable(format!("no answer within {:?}", self.timeout)));
        let answer = tokio::time::timeout(self.timeout, call).await.unwrap_or_else(silent);
        let fault = answer.as_ref().err().map(WitnessError::kind);
        self.metrics.asked(self.store.backend(), verb, began.elapsed(), fault);
        *lock(&self.fault) = answer.as_ref().err().map(ToString::to_string);
        answer
    }

    /// A value that was read by a call before which `before` was the highest seen.
    fn judged(
        &self,
        cell: Cell,
        before: Option<Highest>,
        stored: Result<Option<Stored>, WitnessError>,
    ) -> Result<Option<Found>, WitnessError> {
        let found = stored?.map(|stored| decode(cell, stored)).transpose(); // a call that failed is counted already
        let believed =
            found.and_then(|found| match before.map_or(Ok(()), |highest| highest.precedes(found.as_ref())) {
                Ok(()) => Ok(found),
                Err(source) => Err(WitnessError::Regressed { cell, source }),
            });
        match &believed {
            Ok(Some(found)) => self.memory.raise(cell, found),
            Ok(None) => {}
            Err(error) => self.disbelieve(error),
        }
        believed
    }

    fn disbelieve(&self, error: &WitnessError) {
        *lock(&self.fault) = Some(error.to_string());
        self.metrics.disbelieved(self.store.backend(), error.kind());
        if let WitnessError::Regressed { cell, source } = error {
            self.memory.suspect(*cell, *source);
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }
}

fn decode(cell: Cell, stored: Stored) -> Result<Found, WitnessError> {
    let content = format::decode(cell, &stored.bytes).map_err(|source| WitnessError::Corrupt { cell, source })?;
    Ok(Found { content, revision: stored.revision })
}
