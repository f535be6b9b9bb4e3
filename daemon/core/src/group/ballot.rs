//! One agent's changes of K at the witness: the group's cell is read, one K is proposed at a time, and of each proposal it is found
//! out what became of it.
//!
//! ```text
//! Unknown --read--> At(cell) --propose--> open --committed, or found in the cell--> won
//!    ^                 ^                    |
//!    +-- no answer ----+--- another value --+  (of another revision: the proposal is dead)
//! ```
//!
//! Invariants: at most one question is open; a K that was proposed is proposed again as it is, or not at all, and no other K gets its
//! epoch; a proposal counts as dead only when the cell has left the revision that it expects.
//!
//! Decides nothing about K: see [`super::arbitrated`]. The owner passes answers in and sends the questions.

use crate::config::Config;
use crate::event::{CellChange, Question, WitnessAnswer};
use crate::format::witness::{Cell, Content};
use crate::group::witness::{Found, Revision};
use crate::types::{Epoch, GroupId, Nanos};

/// Proposals whose end is not known that are remembered: one, and one that takes its place.
const MAX_UNSURE: usize = 2;

/// What is known of the cell.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Known {
    Nothing,
    Holds { found: Option<Box<(Config, Revision)>>, since: Nanos },
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Asked {
    Read,
    Change,
}

/// A K that was proposed, and what has to be in the cell for it to be accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Proposal {
    config: Config,
    expected: Option<Revision>,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ballot {
    group: GroupId,
    known: Known,
    asked: Option<Asked>,
    unsure: Vec<Proposal>,
    /// The highest epoch that was proposed here.
    highest: Epoch,
    /// Nothing is asked before.
    next: Nanos,
}

impl Ballot {
    /// Of a group of which nothing was asked yet.
    pub fn new(group: GroupId) -> Self {
        Self {
            group,
            known: Known::Nothing,
            asked: None,
            unsure: Vec::new(),
            highest: Epoch::default(),
            next: Nanos::default(),
        }
    }

    /// What the cell held when it was last read, no longer than `age_ns` ago; the inner `None`: nothing. `None`: read first.
    pub fn cell(&self, now: Nanos, age_ns: u64) -> Option<Option<&Config>> {
        match &self.known {
            Known::Holds { found, since } if now.since(*since) <= age_ns => Some(found.as_ref().map(|found| &found.0)),
            _ => None,
        }
    }

    /// When what was read is older than `age_ns`.
    pub fn stale_at(&self, age_ns: u64) -> Option<Nanos> {
        match &self.known {
            Known::Holds { since, .. } => Some(Nanos(since.0.saturating_add(age_ns).saturating_add(1))),
            Known::Nothing => None,
        }
    }

    /// A K was proposed here and may be in force now or come to be.
    pub fn is_open(&self) -> bool {
        !self.unsure.is_empty()
    }

    /// The K that was proposed last, where more than one may be on its way: another may be put in its place.
    pub fn newest_proposal(&self) -> Option<&Config> {
        self.unsure.last().map(|p| &p.config)
    }

    /// Another K may be proposed although the end of what was proposed is not known: it expects the same cell, so that one of
    /// them at most is accepted.
    pub fn has_room(&self) -> bool {
        self.unsure.len() < MAX_UNSURE
    }

    /// No other K that is made here may have this epoch or a lower one.
    pub fn highest(&self) -> Epoch {
        self.highest
    }

    /// A question may be asked now.
    pub fn may_ask(&self, now: Nanos) -> bool {
        self.asked.is_none() && now >= self.next
    }

    /// When the next question may be asked; `None` while an answer is awaited.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        self.asked.is_none().then_some(self.next)
    }

    /// Nothing is asked before `at`.
    pub fn rest_until(&mut self, at: Nanos) {
        self.next = self.next.max(at);
    }

    /// Somebody waits: what is asked next is asked at once.
    pub fn hurry(&mut self) {
        self.next = Nanos::default();
    }

    /// Asks what the cell holds.
    ///
    /// # Panics
    /// While another question is open.
    pub fn read(&mut self) -> Question {
        self.ask(Asked::Read, None)
    }

    /// Proposes `config` in place of what was read.
    ///
    /// # Panics
    /// When nothing was read, while another question is open, or with an epoch that was proposed before.
    pub fn propose(&mut self, config: Config) -> Question {
        let Known::Holds { found, .. } = &self.known else { panic!("a proposal without a reading") };
        assert!(config.epoch > self.highest, "{:?} was proposed before", config.epoch);
        assert!(self.unsure.len() < MAX_UNSURE, "too many proposals without an end");
        self.highest = config.epoch;
        self.unsure.push(Proposal { config, expected: found.as_ref().map(|found| found.1.clone()) });
        self.propose_again()
    }

    /// Proposes once more what may have been lost on its way.
    ///
    /// # Panics
    /// When nothing is open, or while another question is.
    pub fn propose_again(&mut self) -> Question {
        let Some(Proposal { config, expected }) = self.unsure.last().cloned() else { panic!("nothing is proposed") };
        self.ask(Asked::Change, Some(CellChange { expected, content: Content::Config(config) }))
    }

    fn ask(&mut self, asked: Asked, change: Option<CellChange>) -> Question {
        assert!(self.asked.is_none(), "one question at a time");
        self.asked = Some(asked);
        Question { cell: Cell::Group(self.group), change }
    }

    /// The answer to what was asked; gives the K that this agent proposed and that is in force. `retry_ns`: how long a witness that
    /// did not answer is left alone.
    pub fn on_answer(&mut self, now: Nanos, answer: WitnessAnswer, retry_ns: u64) -> Option<Config> {
        let asked = self.asked.take();
        match (asked, answer) {
            (Some(Asked::Change), WitnessAnswer::Committed(revision)) => {
                let config = self.unsure.pop()?.config;
                self.unsure.clear();
                self.known = Known::Holds { found: Some(Box::new((config.clone(), revision))), since: now };
                Some(config)
            }
            (Some(_), WitnessAnswer::Holds(None)) => self.holds(now, None),
            (Some(_), WitnessAnswer::Holds(Some(Found { content: Content::Config(config), revision }))) => {
                self.holds(now, Some((config, revision)))
            }
            // Also an answer that does not belong to the question: nothing certain.
            _ => {
                self.known = Known::Nothing;
                self.next = Nanos(now.0.saturating_add(retry_ns));
                None
            }
        }
    }

    fn holds(&mut self, now: Nanos, found: Option<(Config, Revision)>) -> Option<Config> {
        let is_there = |p: &Proposal| found.as_ref().is_some_and(|(config, _)| config.id() == p.config.id());
        let won = self.unsure.iter().find(|p| is_there(p)).map(|p| p.config.clone());
        let revision = found.as_ref().map(|(_, revision)| revision);
        self.unsure.retain(|p| won.is_none() && p.expected.as_ref() == revision);
        self.known = Known::Holds { found: found.map(Box::new), since: now };
        won
    }

    /// What was proposed here is outdone by a K with a higher epoch, which a person made.
    pub fn abandon(&mut self) {
        self.unsure.clear();
    }

    /// A K that the other site made at the witness is known to be in force: what was proposed here with the same or a lower major
    /// expects a cell that is gone.
    pub fn outdone_by(&mut self, epoch: Epoch) {
        self.unsure.retain(|p| p.config.epoch.major > epoch.major);
        self.known = Known::Nothing;
    }
}

#[cfg(test)]
mod tests;
