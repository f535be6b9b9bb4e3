//! What several clients did to one cell, and whether a single cell with compare-and-swap explains it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tidemark_agent::witness::{Outcome, Witness, WitnessError};
use tidemark_core::format::witness::{Cell, Content, Lease};
use tidemark_core::group::witness::Found;
use tidemark_core::types::Nonce;

/// A value's own name; `None`: the cell does not exist.
pub type Value = Option<Nonce>;

/// One call, from when it began to when its answer was there, in the order of one clock.
#[derive(Clone, Debug)]
struct Event {
    began: u64,
    ended: u64,
    did: Did,
}

#[derive(Clone, Debug)]
enum Did {
    Saw(Value),
    Committed {
        old: Value,
        new: Nonce,
    },
    /// Perhaps.
    Asked {
        old: Value,
        new: Nonce,
    },
}

/// What all clients did. Clones are one history.
#[derive(Clone, Default)]
pub struct History {
    clock: Arc<AtomicU64>,
    values: Arc<AtomicU64>,
    events: Arc<Mutex<Vec<Event>>>,
}

/// The lease in a cell.
pub fn lease(found: &Found) -> Lease {
    match &found.content {
        Content::Lease(lease) => *lease,
        other => panic!("no lease: {other:?}"),
    }
}

fn value(found: Option<&Found>) -> Value {
    found.map(|found| lease(found).writer)
}

impl History {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A name that no value had before.
    pub fn fresh(&self) -> Nonce {
        Nonce((u128::from(self.values.fetch_add(1, Ordering::SeqCst)) + 1).to_be_bytes())
    }

    fn note(&self, began: u64, did: Did) {
        let ended = self.tick();
        self.events.lock().unwrap().push(Event { began, ended, did });
    }

    /// Reads; an unavailable witness says nothing.
    pub async fn read(&self, witness: &Witness, cell: Cell) -> Result<Option<Found>, WitnessError> {
        let began = self.tick();
        let found = witness.read(cell).await;
        if let Ok(found) = &found {
            self.note(began, Did::Saw(value(found.as_ref())));
        }
        found
    }

    /// Replaces what was read by the next value.
    pub async fn replace(&self, witness: &Witness, cell: Cell, old: Option<&Found>) -> Result<Outcome, WitnessError> {
        let new = self.fresh();
        let next = old.map(lease).unwrap_or_default().renewed(new);
        let began = self.tick();
        let outcome = witness.cas(cell, old.map(|found| &found.revision), &Content::Lease(next)).await;
        let asked = Did::Asked { old: value(old), new };
        match &outcome {
            Ok(Outcome::Committed(_)) => self.note(began, Did::Committed { old: value(old), new }),
            Ok(Outcome::Conflict(now)) => {
                // The answer to a change that was lost: it may have been there.
                self.note(began, asked);
                self.note(began, Did::Saw(value(now.as_ref())));
            }
            Err(_) => self.note(began, asked),
        }
        outcome
    }

    /// Panics unless the events are those of one cell whose last value is `end`; answers how many changes it had.
    pub fn check(&self, end: Option<&Found>) -> u64 {
        let events = self.events.lock().unwrap().clone();
        let places = Self::chain(&events, value(end));
        let place = |value: Value| value.map_or(0, |nonce| *places.get(&nonce).expect("a value that was in the cell"));
        // When each event saw the cell at which place. A change that may not have happened says nothing.
        let looks: Vec<_> = events
            .iter()
            .filter_map(|event| match &event.did {
                Did::Saw(value) => Some((event, place(*value), false)),
                Did::Committed { old, new } => {
                    assert_eq!(place(*old) + 1, place(Some(*new)), "{event:?} replaced another value than it expected");
                    Some((event, place(Some(*new)), true))
                }
                Did::Asked { .. } => None,
            })
            .collect();
        for (earlier, before, _) in &looks {
            for (later, after, changed) in looks.iter().filter(|(later, ..)| earlier.ended < later.began) {
                let is_fine = if *changed { before < after } else { before <= after };
                assert!(is_fine, "{later:?} saw place {after} after {earlier:?} had seen {before}");
            }
        }
        places.len() as u64
    }

    /// The place of each value in the history that ends with `end`, the first is 1.
    fn chain(events: &[Event], end: Value) -> BTreeMap<Nonce, u64> {
        let old_of: BTreeMap<Nonce, Value> = events
            .iter()
            .filter_map(|event| match event.did {
                Did::Committed { old, new } | Did::Asked { old, new } => Some((new, old)),
                Did::Saw(_) => None,
            })
            .collect();
        let mut chain: Vec<Nonce> = std::iter::successors(end, |value| old_of[value]).collect();
        chain.reverse();
        chain.into_iter().zip(1..).collect()
    }
}
