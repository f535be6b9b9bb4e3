//! A witness in memory, and the leases of the two sites' agents.

use std::collections::BTreeMap;

use tidemark_core::event::{Grant, Input, Question, WitnessAnswer};
use tidemark_core::format::witness::{Cell, Content};
use tidemark_core::group::lease::{Holder, Terms};
use tidemark_core::group::witness::{Found, Revision};
use tidemark_core::types::Nonce;

use crate::bench::{Pair, node_id};

/// What becomes of a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Way {
    /// It is answered.
    #[default]
    Open,
    /// It does not arrive.
    Shut,
    /// It arrives; the answer does not.
    AnswersLost,
    /// Changes of K arrive and are not answered; everything else is.
    ChangesOfKLost,
    /// Changes of K do not arrive.
    ChangesOfKShut,
}

/// Cells with compare-and-swap.
#[derive(Default)]
pub struct Witness {
    /// The way there from each site.
    pub way: [Way; 2],
    /// Questions so far.
    pub questions: u64,
    cells: BTreeMap<Cell, Found>,
    count: u64,
    holders: [Option<Holder>; 2],
    terms: Option<Terms>,
    told: [Option<Grant>; 2],
}

impl Witness {
    /// What `cell` holds.
    pub fn cell(&self, cell: Cell) -> Option<&Content> {
        self.cells.get(&cell).map(|found| &found.content)
    }

    /// Somebody deletes a cell.
    pub fn wipe(&mut self, cell: Cell) {
        self.cells.remove(&cell);
    }

    /// The agent of a site has ended.
    pub fn forget(&mut self, site: usize) {
        self.holders[site] = self.terms.map(Holder::new);
        self.told[site] = None;
    }

    /// Answers a question of `site`.
    pub fn ask(&mut self, site: usize, question: &Question) -> WitnessAnswer {
        self.questions += 1;
        let changes_k = question.change.is_some() && matches!(question.cell, Cell::Group(_));
        if self.way[site] == Way::Shut || (self.way[site] == Way::ChangesOfKShut && changes_k) {
            return WitnessAnswer::Lost;
        }
        let answer = self.carry_out(question);
        match self.way[site] {
            Way::AnswersLost => WitnessAnswer::Lost,
            Way::ChangesOfKLost if changes_k => WitnessAnswer::Lost,
            _ => answer,
        }
    }

    fn carry_out(&mut self, question: &Question) -> WitnessAnswer {
        let found = self.cells.get(&question.cell).cloned();
        let Some(change) = &question.change else { return WitnessAnswer::Holds(found) };
        if found.as_ref().map(|found| &found.revision) != change.expected.as_ref() {
            return match found {
                Some(found) if found.content == change.content => WitnessAnswer::Committed(found.revision),
                found => WitnessAnswer::Holds(found),
            };
        }
        self.count += 1;
        let revision = Revision::Counted(self.count);
        self.cells.insert(question.cell, Found { content: change.content.clone(), revision: revision.clone() });
        WitnessAnswer::Committed(revision)
    }
}

impl Pair {
    /// Both agents get a witness, with leases of `span_ns`; copies that are open are opened anew.
    pub fn appoint_witness(&mut self, span_ns: u64) {
        let terms = Terms::new(span_ns);
        self.witness.terms = Some(terms);
        for site in [crate::bench::A, crate::bench::B] {
            self.kill(site);
            self.copies[site].lease = Some(terms);
        }
        for site in [crate::bench::A, crate::bench::B] {
            self.start(site);
        }
        self.connect();
    }

    /// The agent of a site sees after its lease, and tells its copy.
    pub(crate) fn renew(&mut self, site: usize) {
        if !self.is_up(site) {
            return;
        }
        let Some(mut holder) = self.witness.holders[site].take() else { return };
        let mut nonce = [site as u8; 16];
        nonce[..8].copy_from_slice(&self.now.0.to_be_bytes());
        for again in 0..2 {
            nonce[8] = again;
            let Some(ask) = holder.poll(self.now, Nonce(nonce)) else { break };
            let answer = self.witness.ask(site, &ask.about(Cell::Lease(node_id(site))));
            holder.on_answer(self.now, answer.into());
        }
        let held = holder.held().map(|(lease_gen, sent)| Grant { lease_gen, sent });
        self.witness.holders[site] = Some(holder);
        if self.witness.told[site] != held {
            self.witness.told[site] = held;
            self.tell(site, Input::Lease(held));
        }
    }
}
