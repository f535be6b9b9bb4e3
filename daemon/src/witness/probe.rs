//! Tries a witness: whether it answers, how fast, and whether it keeps the one promise that everything rests on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_core::format::witness::{Cell, Content, Lease};
use tidemark_core::group::witness::{Found, Revision};
use tidemark_core::types::{NodeId, Nonce};

use super::{Outcome, Witness, WitnessError};

/// Another check of the same agent may change the probe cell in between.
const TRIES: u32 = 3;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The kind of back-end.
    pub backend: &'static str,
    /// Where it is.
    pub place: String,
    /// Of one read.
    pub read: Duration,
    /// Of one change.
    pub cas: Duration,
    /// Of the probe cell afterwards.
    pub revision: Revision,
}

/// How often an agent asks whether its witness is there.
const PULSE: Duration = Duration::from_secs(10);

/// A nonce that nobody has drawn before.
///
/// # Errors
/// [`WitnessError::Unavailable`]: the system has no random numbers.
pub fn random_nonce() -> Result<Nonce, WitnessError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| WitnessError::Unavailable(format!("no random number: {error}")))?;
    Ok(Nonce(bytes))
}

fn next(found: Option<&Found>, writer: Nonce) -> Content {
    match found.map(|found| &found.content) {
        Some(Content::Lease(lease)) => Content::Lease(lease.renewed(writer)),
        _ => Content::Lease(Lease { lease_gen: 1, counter: 1, writer, span_ms: 0 }),
    }
}

impl Witness {
    /// Reads and changes the probe cell of `node`, then tries to change what is no longer there.
    ///
    /// # Errors
    /// [`WitnessError`]; [`WitnessError::Refused`] when the change of an old value was not refused.
    pub async fn probe(&self, node: NodeId) -> Result<Probe, WitnessError> {
        let cell = Cell::Probe(node);
        for _ in 0..TRIES {
            let began = Instant::now();
            let found = self.read(cell).await?;
            let (read, began) = (began.elapsed(), Instant::now());
            let expected = found.as_ref().map(|found| &found.revision);
            let Outcome::Committed(revision) = self.cas(cell, expected, &next(found.as_ref(), random_nonce()?)).await?
            else {
                continue;
            };
            let cas = began.elapsed();
            self.must_refuse(cell, found.as_ref()).await?;
            return Ok(Probe { backend: self.store.backend(), place: self.store.place(), read, cas, revision });
        }
        Err(WitnessError::Unavailable("somebody else changes the probe cell all the time".to_owned()))
    }

    /// A change that expects `old`, which was replaced since.
    async fn must_refuse(&self, cell: Cell, old: Option<&Found>) -> Result<(), WitnessError> {
        let expected = old.map(|found| &found.revision);
        match self.cas(cell, expected, &next(old, random_nonce()?)).await? {
            Outcome::Conflict(_) => Ok(()),
            Outcome::Committed(_) => {
                Err(WitnessError::Refused("it ignores the condition of a change: it cannot be an arbiter".to_owned()))
            }
        }
    }

    /// Asks again and again whether the witness is there, so that its loss is known before it is needed. Never ends.
    pub async fn pulse(self: Arc<Self>, node: NodeId) {
        let mut was = None;
        loop {
            let error = self.read(Cell::Probe(node)).await.err();
            let now = error.as_ref().map(WitnessError::kind);
            if was != Some(now) {
                match error {
                    None => tracing::info!(backend = self.store.backend(), "the witness answers"),
                    Some(error) => tracing::warn!(backend = self.store.backend(), %error, "no witness"),
                }
            }
            was = Some(now);
            tokio::time::sleep(PULSE).await;
        }
    }
}
