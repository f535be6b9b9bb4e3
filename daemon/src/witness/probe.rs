//! Tries a witness: whether it answers, how fast, and whether it keeps the one promise that everything rests on.
//!
//! A store may ignore the condition of a change, look at one kind of condition alone, or compare first and write later, so that of
//! two changes at once both happen. Each is tried, with a cell that nothing depends on.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidemark_core::format::witness::{Cell, Content, Lease};
use tidemark_core::group::witness::Revision;
use tidemark_core::types::{NodeId, Nonce};

use super::{Outcome, Witness, WitnessError};
use crate::lock::lock;

/// Another check of the same agent may change the probe cell in between.
const TRIES: u32 = 10;
/// How much longer each try waits before it: that other check is at its end by then.
const PAUSE: Duration = Duration::from_millis(10);
/// How often changes of one value are made at once: a store that compares first may be lucky.
const RACES: u32 = 3;
/// What a proof may take, in times of one call: its calls come one after the other.
const PROOF_CALLS: u32 = 3;

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
    /// Of the probe cell after that change.
    pub revision: Revision,
}

/// How often an agent asks whether its witness is there.
const PULSE: Duration = Duration::from_secs(10);

/// Whether the store was seen to keep the condition of a change.
pub(super) struct Proof {
    /// Whose cell it is tried with.
    node: NodeId,
    found: Mutex<Verdict>,
    /// Held by who tries it.
    trying: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
enum Verdict {
    Untried,
    Kept,
    Broken(WitnessError),
}

impl Proof {
    /// `is_known`: its kind says so.
    pub fn new(node: NodeId, is_known: bool) -> Self {
        let verdict = if is_known { Verdict::Kept } else { Verdict::Untried };
        Self { node, found: Mutex::new(verdict), trying: tokio::sync::Mutex::default() }
    }

    /// Why the store is no arbiter.
    pub fn failed(&self) -> Option<String> {
        match &*lock(&self.found) {
            Verdict::Broken(error) => Some(error.to_string()),
            Verdict::Untried | Verdict::Kept => None,
        }
    }

    fn is_kept(&self) -> bool {
        matches!(&*lock(&self.found), Verdict::Kept)
    }
}

/// A nonce that nobody has drawn before.
///
/// # Errors
/// [`WitnessError::Unavailable`]: the system has no random numbers.
pub fn random_nonce() -> Result<Nonce, WitnessError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| WitnessError::Unavailable(format!("no random number: {error}")))?;
    Ok(Nonce(bytes))
}

fn next(content: Option<&Content>) -> Result<Content, WitnessError> {
    let writer = random_nonce()?;
    Ok(match content {
        Some(Content::Lease(lease)) => Content::Lease(lease.renewed(writer)),
        _ => Content::Lease(Lease { lease_gen: 1, counter: 1, writer, span_ms: 0 }),
    })
}

fn is_committed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Committed(_))
}

fn broken(what: &str) -> WitnessError {
    WitnessError::Refused(format!("it {what}: it cannot be an arbiter"))
}

impl Witness {
    /// Reads and changes the probe cell of `node`, then tries what an arbiter must refuse: to create what exists, to change what
    /// is no longer there, and several changes of one value at once. What it finds is in force: a store that failed is changed no
    /// more, until another check finds it mended.
    ///
    /// # Errors
    /// [`WitnessError`]; [`WitnessError::Refused`] when a change was made that had to be refused.
    pub async fn probe(&self, node: NodeId) -> Result<Probe, WitnessError> {
        let _alone = self.proof.trying.lock().await; // two at once would disturb each other
        self.try_it(node).await
    }

    /// Fails unless the store is known to keep the condition of a change; tries it when that is not known yet.
    pub(super) async fn must_be_proven(&self) -> Result<(), WitnessError> {
        if self.proof.is_kept() {
            return Ok(());
        }
        let trying = async {
            let _alone = self.proof.trying.lock().await;
            match self.proof.is_kept() {
                true => Ok(()),
                false => self.try_it(self.proof.node).await.map(drop),
            }
        };
        let slow = |_| Err(WitnessError::Unavailable("not tried yet whether it is an arbiter: too slow".to_owned()));
        tokio::time::timeout(self.timeout * PROOF_CALLS, trying).await.unwrap_or_else(slow)
    }

    async fn try_it(&self, node: NodeId) -> Result<Probe, WitnessError> {
        let probe = self.try_changes(Cell::Probe(node)).await;
        match &probe {
            Ok(_) => *lock(&self.proof.found) = Verdict::Kept,
            Err(error @ WitnessError::Refused(_)) => *lock(&self.proof.found) = Verdict::Broken(error.clone()),
            Err(_) => {} // says nothing about what it keeps
        }
        probe
    }

    async fn try_changes(&self, cell: Cell) -> Result<Probe, WitnessError> {
        for tried in 0..TRIES {
            tokio::time::sleep(PAUSE * tried).await;
            let began = Instant::now();
            let found = self.read(cell).await?;
            let (read, began) = (began.elapsed(), Instant::now());
            let (content, expected) = (next(found.as_ref().map(|found| &found.content))?, found.map(|f| f.revision));
            let Outcome::Committed(revision) = self.change(cell, expected.as_ref(), &content).await? else {
                continue;
            };
            let cas = began.elapsed();
            if is_committed(&self.change(cell, None, &next(Some(&content))?).await?) {
                return Err(broken("ignores the condition of a change that something does not exist"));
            }
            // Made, or refused because of somebody else's: what was put is replaced.
            self.change(cell, Some(&revision), &next(Some(&content))?).await?;
            if is_committed(&self.change(cell, Some(&revision), &next(Some(&content))?).await?) {
                return Err(broken("ignores the condition of a change"));
            }
            for _ in 0..RACES {
                self.race(cell).await?;
            }
            return Ok(Probe { backend: self.store.backend(), place: self.store.place(), read, cas, revision });
        }
        Err(WitnessError::Unavailable("somebody else changes the probe cell all the time".to_owned()))
    }

    /// Several changes of one value at once, of which one may happen.
    async fn race(&self, cell: Cell) -> Result<(), WitnessError> {
        let found = self.read(cell).await?;
        let (content, expected) = (found.as_ref().map(|found| &found.content), found.as_ref().map(|f| &f.revision));
        let (a, b, c, d) = (next(content)?, next(content)?, next(content)?, next(content)?);
        let change = |content| self.change(cell, expected, content);
        let (a, b, c, d) = tokio::join!(change(&a), change(&b), change(&c), change(&d));
        // A rival that got no certain answer says nothing; the others do.
        let made = [a, b, c, d].iter().flatten().filter(|outcome| is_committed(outcome)).count();
        if made > 1 { Err(broken("makes several changes of one value at once")) } else { Ok(()) }
    }

    /// Asks again and again whether the witness is there, so that its loss is known before it is needed. Never ends.
    pub async fn pulse(self: Arc<Self>) {
        let mut was = None;
        loop {
            let error = match self.must_be_proven().await {
                Ok(()) => self.read(Cell::Probe(self.proof.node)).await.err(),
                Err(error) => Some(error),
            };
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
