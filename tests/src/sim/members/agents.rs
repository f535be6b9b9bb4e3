//! The witness, and the leaders' leases there: any question may come late, get lost, or lose its answer.

use tidemark_core::event::{AskId, Grant, Input, Question, WitnessAnswer};
use tidemark_core::format::witness::Cell;
use tidemark_core::group::lease::Holder;
use tidemark_core::types::Nonce;

use super::party::{name, node_id};
use super::world::{Ev, World, note};
use crate::sim::faults::Fault;
use crate::sim::world::MS;

/// How long an answer is waited for.
const PATIENCE: u64 = 2_000 * MS;

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    /// The agent, for its lease.
    Agent,
    /// The copy.
    Copy(AskId),
}

/// A question under way.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    party: usize,
    instance: u32,
    asker: Asker,
}

impl World {
    /// A leader's process has started: its agent takes its lease anew.
    pub(super) fn start_agent(&mut self, p: usize) {
        let Some(terms) = self.terms.filter(|_| self.parties[p].leads()) else { return };
        self.parties[p].lease = Some(Holder::new(terms));
        let (after, instance) = (self.rng.log_between(100_000, 50 * MS), self.parties[p].instance);
        self.after(after, Ev::Agent(p, instance));
    }

    pub(super) fn agent_turn(&mut self, p: usize) {
        let (local, nonce) = (self.parties[p].clock.at(self.now), Nonce(self.rng.id()));
        let Some(holder) = &mut self.parties[p].lease else { return };
        match holder.poll(local, nonce) {
            Some(ask) => self.ask_witness(p, Asker::Agent, ask.about(Cell::Lease(node_id(p)))),
            None => self.plan_agent(p),
        }
    }

    fn plan_agent(&mut self, p: usize) {
        let party = &self.parties[p];
        let Some(due) = party.lease.as_ref().and_then(Holder::poll_timeout) else { return };
        let (when, instance) = (party.clock.when(due).max(self.now + 1), party.instance);
        self.at(when, Ev::Agent(p, instance));
    }

    pub(super) fn ask_witness(&mut self, p: usize, asker: Asker, question: Question) {
        self.next_question += 1;
        let (id, instance) = (self.next_question, self.parties[p].instance);
        self.questions.insert(id, Open { party: p, instance, asker });
        self.after(PATIENCE, Ev::GiveUp(id));
        if self.rng.ppm(20_000) {
            return self.fired.hit(Fault::WitnessLostQuestion);
        }
        let (low, high) = self.net_ns;
        let mut carried = self.rng.log_between(low, high);
        if self.rng.ppm(20_000) {
            self.fired.hit(Fault::WitnessLate);
            carried = PATIENCE + self.rng.log_between(MS, 4_000 * MS);
        }
        self.after(carried, Ev::Carry(id, p, Box::new(question)));
    }

    pub(super) fn carry(&mut self, id: u64, p: usize, question: &Question) {
        if self.now < self.witness_cut[self.parties[p].site] {
            return self.fired.hit(Fault::WitnessCut);
        }
        let answer = self.witness.carry_out(question);
        if let (WitnessAnswer::Committed(_), Cell::Group(_)) = (&answer, &question.cell) {
            note!(
                self,
                [51, p],
                "the witness accepts of {}: {:?}",
                name(p),
                question.change.as_ref().map(|c| &c.content)
            );
        }
        if self.rng.ppm(30_000) {
            return self.fired.hit(Fault::WitnessLostAnswer);
        }
        let (low, high) = self.net_ns;
        let after = self.rng.log_between(low, high);
        self.after(after, Ev::Answer(id, answer));
    }

    /// An answer arrives, or nobody waits for it any longer.
    pub(super) fn answered(&mut self, id: u64, answer: WitnessAnswer) {
        let Some(open) = self.questions.remove(&id) else { return };
        let p = open.party;
        if self.parties[p].instance != open.instance || self.parties[p].node.is_none() {
            return;
        }
        match open.asker {
            Asker::Copy(ask) => self.tell(p, Input::Witness(ask, answer)),
            Asker::Agent => {
                let local = self.parties[p].clock.at(self.now);
                let Some(holder) = &mut self.parties[p].lease else { return };
                let before = holder.held();
                holder.on_answer(local, answer.into());
                let held = holder.held();
                if held != before {
                    self.tell(p, Input::Lease(held.map(|(lease_gen, sent)| Grant { lease_gen, sent })));
                }
                self.plan_agent(p);
            }
        }
    }
}
