//! What an agent remembers of its witness, so that one which went back in time is found out (R6).
//!
//! A witness may lose what it held: restored from a backup, set up anew, a file deleted. Whoever then believed it could be
//! told that a lease has not moved, or that a K is in force which was replaced long ago. So the agent keeps, for each cell,
//! the highest that it has seen, and what comes after must not be lower. Plain values, to be persisted by whoever owns them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use crate::format::witness::{Cell, Content};
use crate::types::{Epoch, Nonce};

/// The age of a cell's value, as its back-end counts it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Revision {
    /// Rises with every change.
    Counted(u64),
    /// Another one after every change, in no order.
    Tagged(Box<str>),
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted(count) => write!(f, "{count}"),
            Self::Tagged(tag) => f.write_str(tag),
        }
    }
}

/// What a cell was found to hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its value.
    pub content: Content,
    /// The age of the value.
    pub revision: Revision,
}

/// The highest that was seen in one cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Highest {
    /// The back-end's count; `None` when it does not count.
    pub revision: Option<u64>,
    /// The value's own age.
    pub age: Age,
    /// The cell went back since: nothing that it holds is believed any more.
    suspect: Option<Regression>,
}

/// The age of a value by its own fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Age {
    /// Of K.
    Config(Epoch, Nonce),
    /// Of a lease.
    Lease {
        /// The grant.
        lease_gen: u64,
        /// Renewals.
        counter: u64,
        /// Who made it of these numbers.
        writer: Nonce,
    },
}

/// How a witness contradicts what it said before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Regression {
    /// The cell held a value and is gone.
    #[error("it held a value and now holds none")]
    Wiped,
    /// The back-end's count fell.
    #[error("its revision fell from {seen} to {found}")]
    Revision {
        /// Before.
        seen: u64,
        /// Now.
        found: u64,
    },
    /// The value is older than one that was seen.
    #[error("its value is older than one that it held before")]
    Value,
    /// Two values of one age: one of them replaces the other in no order.
    #[error("it holds another value of an age that was seen")]
    Rewritten,
}

impl Highest {
    fn of(found: &Found) -> Self {
        let age = match &found.content {
            Content::Config(k) => Age::Config(k.epoch, k.nonce),
            Content::Lease(lease) => {
                Age::Lease { lease_gen: lease.lease_gen, counter: lease.counter, writer: lease.writer }
            }
        };
        let revision = match found.revision {
            Revision::Counted(count) => Some(count),
            Revision::Tagged(_) => None,
        };
        Self { revision, age, suspect: None }
    }

    /// Whether `found`, read by a call that began after this was seen, is not older.
    ///
    /// # Errors
    /// How it is.
    pub fn precedes(&self, found: Option<&Found>) -> Result<(), Regression> {
        self.suspect.map_or(Ok(()), Err)?;
        let now = Self::of(found.ok_or(Regression::Wiped)?);
        if let (Some(seen), Some(found)) = (self.revision, now.revision)
            && found < seen
        {
            return Err(Regression::Revision { seen, found });
        }
        match self.age.order(now.age) {
            Some(Ordering::Less) => Ok(()),
            Some(Ordering::Equal) if self.age == now.age => Ok(()),
            Some(Ordering::Equal) => Err(Regression::Rewritten),
            Some(Ordering::Greater) | None => Err(Regression::Value),
        }
    }
}

impl Age {
    /// By the numbers alone; `None` when neither can have followed the other.
    fn order(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Config(mine, _), Self::Config(theirs, _)) => Some(mine.cmp(&theirs)),
            (Self::Lease { lease_gen, counter, .. }, Self::Lease { lease_gen: their_gen, counter: theirs, .. }) => {
                // Neither number ever falls.
                match (lease_gen.cmp(&their_gen), counter.cmp(&theirs)) {
                    (Ordering::Equal, order) | (order, Ordering::Equal) => Some(order),
                    (one, other) => (one == other).then_some(one),
                }
            }
            _ => None,
        }
    }
}

/// The highest seen in each cell. As many entries as the owner asks about cells: its groups, and the agents that lead them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    cells: BTreeMap<Cell, Highest>,
}

impl Seen {
    /// The highest seen in `cell`: to be taken *before* a call, and compared with what the call found. Two calls may overlap, and
    /// what the slower one found is then older than what the faster one left here.
    pub fn highest(&self, cell: Cell) -> Option<Highest> {
        self.cells.get(&cell).copied()
    }

    /// Remembers what was found; a value older than the one remembered changes nothing.
    pub fn raise(&mut self, cell: Cell, found: &Found) {
        let now = Highest::of(found);
        let entry = self.cells.entry(cell).or_insert(now);
        if entry.precedes(Some(found)).is_ok() {
            *entry = now;
        }
    }

    /// `cell` went back: it is not believed again as long as this memory lasts, whatever it comes to hold. What was decided on the
    /// lost part is decided no more, and numbers that rise anew do not bring it back.
    pub fn suspect(&mut self, cell: Cell, regression: Regression) {
        if let Some(highest) = self.cells.get_mut(&cell) {
            highest.suspect.get_or_insert(regression);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use crate::format::witness::Lease;
    use crate::group::{forced, genesis};
    use crate::types::{GenId, GroupId, NodeId, SiteId};

    const CELL: Cell = Cell::Lease(NodeId([1; 16]));

    fn lease(lease_gen: u64, counter: u64, revision: u64) -> Found {
        let content = Content::Lease(Lease { lease_gen, counter, writer: Nonce::NIL, span_ms: 0 });
        Found { content, revision: Revision::Counted(revision) }
    }

    fn after(seen: &[Found], found: Option<&Found>) -> Result<(), Regression> {
        let mut memory = Seen::default();
        seen.iter().for_each(|found| memory.raise(CELL, found));
        memory.highest(CELL).map_or(Ok(()), |highest| highest.precedes(found))
    }

    #[test]
    fn a_cell_that_goes_back_is_found_out_by_count_or_value() {
        let seen = [lease(2, 10, 50)];
        assert_eq!(after(&seen, None), Err(Regression::Wiped));
        assert_eq!(after(&seen, Some(&lease(2, 10, 49))), Err(Regression::Revision { seen: 50, found: 49 }));
        assert_eq!(after(&seen, Some(&lease(2, 9, 60))), Err(Regression::Value));
        assert_eq!(after(&seen, Some(&lease(1, 11, 60))), Err(Regression::Value));
        for fine in [lease(2, 10, 50), lease(2, 11, 51), lease(3, 10, 51)] {
            assert_eq!(after(&seen, Some(&fine)), Ok(()));
        }
    }

    #[test]
    fn another_lease_of_the_same_numbers_is_found_out() {
        let seen = lease(2, 10, 50);
        let mut other = seen.clone();
        other.content = Content::Lease(Lease { lease_gen: 2, counter: 10, writer: Nonce([1; 16]), span_ms: 0 });
        assert_eq!(after(&[seen], Some(&other)), Err(Regression::Rewritten));
    }

    #[test]
    fn a_cell_that_went_back_stays_suspect_though_it_grows_past_what_was_seen() {
        let mut memory = Seen::default();
        memory.raise(CELL, &lease(2, 10, 50));
        memory.suspect(CELL, Regression::Wiped);
        memory.raise(CELL, &lease(3, 20, 60));
        let highest = memory.highest(CELL).unwrap();
        assert_eq!(highest.precedes(Some(&lease(3, 21, 61))), Err(Regression::Wiped));
    }

    #[test]
    fn a_cell_that_was_never_seen_may_hold_anything() {
        assert_eq!(after(&[], None), Ok(()));
        assert_eq!(after(&[], Some(&lease(0, 0, 0))), Ok(()));
    }

    #[test]
    fn the_answer_to_a_slower_call_does_not_lower_what_was_seen() {
        let seen = [lease(2, 11, 51), lease(2, 10, 50)];
        assert_eq!(after(&seen, Some(&lease(2, 10, 50))), Err(Regression::Revision { seen: 51, found: 50 }));
    }

    #[test]
    fn a_back_end_without_order_is_judged_by_its_values_alone() {
        let tagged = |counter, tag: &str| Found { revision: Revision::Tagged(tag.into()), ..lease(1, counter, 0) };
        let seen = [tagged(5, "x")];
        assert_eq!(after(&seen, Some(&tagged(4, "y"))), Err(Regression::Value));
        assert_eq!(after(&seen, Some(&tagged(6, "a"))), Ok(()));
    }

    #[test]
    fn another_k_of_an_epoch_that_was_seen_is_no_successor() {
        let group = Cell::Group(GroupId([7; 16]));
        let k = genesis(SiteId([1; 16]), NodeId([1; 16]), Nonce([1; 16]), GenId([1; 16]), Mode::Sync);
        let found = |k| Found { content: Content::Config(k), revision: Revision::Tagged("t".into()) };
        let mut memory = Seen::default();
        memory.raise(group, &found(forced(&k, NodeId([1; 16]), Nonce([2; 16]), None, k.sites.clone())));
        let highest = memory.highest(group).unwrap();
        let other = forced(&k, NodeId([2; 16]), Nonce([3; 16]), None, k.sites.clone());
        assert_eq!(highest.precedes(Some(&found(other))), Err(Regression::Rewritten));
        assert_eq!(highest.precedes(Some(&found(k))), Err(Regression::Value));
    }
}
