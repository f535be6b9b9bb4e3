//! The agents' side of the witness: each site's own lease on its own clock, and questions on their way to the witness and back,
//! any of which may come late, get lost, or lose its answer. No question gets two answers.

use std::collections::BTreeMap;

use tidemark_core::event::{AskId, CellChange, Grant, Input, Question, WitnessAnswer};
use tidemark_core::format::witness::{Cell, Content};
use tidemark_core::group::lease::Holder;
use tidemark_core::types::Nonce;

use crate::sim::arbitrated::Arbitration;
use crate::sim::copy::Copy;
use crate::sim::faults::Fault;
use crate::sim::operator::GROUP;
use crate::sim::rng::Rng;
use crate::sim::world::{Ev, MS, World, name, note};

/// Who waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asker {
    /// The agent, for its lease.
    Agent,
    /// The copy.
    Copy(AskId),
}

/// Something that happens between agents and witness.
#[derive(Debug)]
pub enum Errand {
    /// An agent looks at its lease.
    Agent(usize, u32),
    /// A question arrives at the witness; the answer arrives, if it does, at the given time.
    Carry(u64, usize, Box<Question>, Option<u64>),
    /// An answer arrives.
    Answer(u64, WitnessAnswer),
    /// Whoever asked waits no longer.
    GiveUp(u64),
    /// The ways to the witness suffer.
    Fault,
    /// The link between the sites breaks for so many milliseconds.
    Sever(u64),
    /// Nothing flows to a site for so many milliseconds.
    Stall(usize, u64),
    /// A site goes down for so many milliseconds.
    Lose(usize, u64),
    /// A site is asked to take over, until then.
    TakeOver(usize, u64),
    /// A site that is not the workload's is asked for what it has.
    Probe,
}

/// What becomes of a question, in events per million.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fates {
    /// Never carried out.
    pub lost: u32,
    /// Carried out, and the answer is lost.
    pub unanswered: u32,
    /// Carried out after whoever asked gave up.
    pub late: u32,
    /// Answered slowly.
    pub slow: u32,
}

/// A site's way to the witness.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    /// Nothing gets through before.
    pub cut_until: u64,
    /// Answers take their time before.
    pub slow_until: u64,
    /// Only leases get through before.
    pub half_until: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    site: usize,
    instance: u32,
    asker: Asker,
}

/// An agent's lease as its process has it.
#[derive(Debug)]
struct Lease {
    instance: u32,
    holder: Holder,
    told: Option<Grant>,
}

/// Both agents, and what they asked.
#[derive(Debug)]
pub struct Agents {
    /// Ways to the witness.
    pub ways: [Way; 2],
    /// Rates.
    pub fates: Fates,
    /// How long an answer is waited for, in nanoseconds.
    pub timeout: u64,
    leases: [Option<Lease>; 2],
    open: BTreeMap<u64, Open>,
    next: u64,
}

impl Agents {
    /// Draws a seed's agents.
    pub fn draw(rng: &mut Rng) -> Self {
        let mut maybe = |high| if rng.percent(40) { rng.log_between(1_000, high) as u32 } else { 0 };
        let fates =
            Fates { lost: maybe(60_000), unanswered: maybe(100_000), late: maybe(60_000), slow: maybe(100_000) };
        Self {
            ways: Default::default(),
            fates,
            timeout: *rng.pick(&[300, 1_000, 3_000, 5_000]) * MS,
            leases: [None, None],
            open: BTreeMap::new(),
            next: 0,
        }
    }
}

impl<C: Copy> World<C> {
    /// A process has started: its agent takes its lease anew.
    pub(super) fn start_agent(&mut self, site: usize) {
        let instance = self.sites[site].instance;
        let Some(arb) = &mut self.arbitration else { return };
        arb.agents.leases[site] = Some(Lease { instance, holder: Holder::new(arb.terms), told: None });
        let after = arb.rng.log_between(100_000, 50 * MS);
        self.after(after, Ev::Errand(Errand::Agent(site, instance)));
    }

    /// Does what is due between agents and witness.
    pub(super) fn errand(&mut self, errand: Errand) {
        match errand {
            Errand::Agent(site, instance) if self.sites[site].instance == instance => self.agent_turn(site),
            Errand::Agent(..) => {}
            Errand::Carry(id, site, question, answer_at) => self.carry(id, site, &question, answer_at),
            Errand::Answer(id, answer) => self.answered(id, answer),
            Errand::GiveUp(id) => self.given_up(id),
            Errand::Fault => self.witness_fault(),
            Errand::Sever(ms) => self.sever(ms),
            Errand::Stall(to, ms) => self.stall(to, ms),
            Errand::Lose(site, away_ms) => self.lose_later(site, away_ms),
            Errand::TakeOver(site, until) => self.ask_to_take_over(site, until),
            Errand::Probe => self.probe(),
        }
    }

    fn agent_turn(&mut self, site: usize) {
        let (local, node) = (self.sites[site].clock.at(self.now), self.sites[site].node_id);
        let Some(arb) = &mut self.arbitration else { return };
        let nonce = Nonce(arb.rng.id());
        let Some(lease) = arb.agents.leases[site].as_mut() else { return };
        match lease.holder.poll(local, nonce) {
            Some(ask) => self.ask_witness(site, Asker::Agent, ask.about(Cell::Lease(node))),
            None => self.plan_agent(site),
        }
    }

    fn plan_agent(&mut self, site: usize) {
        let due = self.arbitration.as_ref().and_then(|arb| arb.agents.leases[site].as_ref()?.holder.poll_timeout());
        let (s, Some(due)) = (&self.sites[site], due) else { return };
        let (when, instance) = (s.clock.when(due).max(self.now + 1), s.instance);
        self.at(when, Ev::Errand(Errand::Agent(site, instance)));
    }

    /// Sends a question on its way, and decides what will become of it.
    pub(super) fn ask_witness(&mut self, site: usize, asker: Asker, question: Question) {
        let (now, instance, net) = (self.now, self.sites[site].instance, self.rates.net_ns);
        if let Asker::Copy(id) = asker {
            note!(self, [50, site, id.0], "{} asks the witness {}: {}", name(site), id.0, gist(&question));
        }
        let Some(arb) = &mut self.arbitration else { return };
        let Arbitration { rng, agents, .. } = &mut **arb;
        agents.next += 1;
        let id = agents.next;
        agents.open.insert(id, Open { site, instance, asker });
        let mut carried = now + rng.log_between(net.0, net.1);
        let mut answered = Some(rng.log_between(net.0, net.1));
        let gives_up = now + agents.timeout;
        let fates = agents.fates;
        let mut hits = Vec::new();
        if rng.ppm(fates.slow) || now < agents.ways[site].slow_until {
            hits.push(Fault::WitnessSlow);
            answered = Some(rng.between(100 * MS, 5_000 * MS));
        }
        let mut arrives = true;
        match () {
            () if rng.ppm(fates.lost) => {
                hits.push(Fault::WitnessLostQuestion);
                arrives = false;
            }
            () if rng.ppm(fates.unanswered) => {
                hits.push(Fault::WitnessLostAnswer);
                answered = None;
            }
            () if rng.ppm(fates.late) => {
                hits.push(Fault::WitnessLate);
                carried = gives_up + rng.log_between(MS, 4_000 * MS);
                answered = None;
            }
            () => {}
        }
        for fault in hits {
            self.fired.hit(fault);
        }
        if arrives {
            let errand = Errand::Carry(id, site, Box::new(question), answered.map(|delay| carried + delay));
            self.at(carried, Ev::Errand(errand));
        }
        self.at(gives_up, Ev::Errand(Errand::GiveUp(id)));
    }

    fn carry(&mut self, id: u64, site: usize, question: &Question, answer_at: Option<u64>) {
        let now = self.now;
        let Some(arb) = &mut self.arbitration else { return };
        let way = arb.agents.ways[site];
        if now < way.cut_until {
            return self.fired.hit(Fault::WitnessCut);
        }
        if now < way.half_until && matches!(question.cell, Cell::Group(_)) {
            return self.fired.hit(Fault::WitnessHalf);
        }
        let before = arb.witness.config(GROUP).cloned();
        let answer = arb.witness.carry_out(question);
        let after = arb.witness.config(GROUP).cloned();
        if let WitnessAnswer::Committed(_) = answer {
            match &question.cell {
                Cell::Group(_) => {
                    let text = gist(question);
                    note!(self, [51, site, id], "the witness accepts of {}: {text}", name(site));
                    self.judge_accepted(site, before, after);
                }
                Cell::Lease(of) if *of != self.sites[site].node_id => {
                    note!(self, [52, site, id], "{} revokes the lease of {}", name(site), name(1 - site));
                    self.fired.hit(Fault::Revoked);
                }
                _ => {}
            }
        }
        if let Some(at) = answer_at {
            self.at(at, Ev::Errand(Errand::Answer(id, answer)));
        }
    }

    fn answered(&mut self, id: u64, answer: WitnessAnswer) {
        let now = self.now;
        let Some(arb) = &mut self.arbitration else { return };
        let Some(open) = arb.agents.open.get(&id).copied() else { return };
        if now >= arb.agents.ways[open.site].cut_until {
            arb.agents.open.remove(&id);
            self.deliver(open, answer);
        }
    }

    fn given_up(&mut self, id: u64) {
        let open = self.arbitration.as_mut().and_then(|arb| arb.agents.open.remove(&id));
        if let Some(open) = open {
            self.deliver(open, WitnessAnswer::Lost);
        }
    }

    fn deliver(&mut self, open: Open, answer: WitnessAnswer) {
        let s = &self.sites[open.site];
        if s.instance != open.instance || s.node.is_none() {
            return;
        }
        match open.asker {
            Asker::Copy(id) => {
                note!(self, [53, open.site, id.0], "{} hears of {}: {}", name(open.site), id.0, told(&answer));
                self.tell(open.site, Input::Witness(id, answer));
            }
            Asker::Agent => self.lease_answered(open.site, answer),
        }
    }

    fn lease_answered(&mut self, site: usize, answer: WitnessAnswer) {
        let (local, instance) = (self.sites[site].clock.at(self.now), self.sites[site].instance);
        let Some(arb) = &mut self.arbitration else { return };
        let Some(lease) = arb.agents.leases[site].as_mut().filter(|l| l.instance == instance) else { return };
        lease.holder.on_answer(local, answer.into());
        let grant = lease.holder.held().map(|(lease_gen, sent)| Grant { lease_gen, sent });
        if grant != lease.told {
            lease.told = grant;
            self.tell(site, Input::Lease(grant));
        }
        self.plan_agent(site);
    }
}

fn gist(question: &Question) -> String {
    let what = match &question.change {
        None => "read".into(),
        Some(CellChange { content: Content::Config(config), .. }) => crate::sim::world::k(config),
        Some(CellChange { content, .. }) => format!("{content:?}"),
    };
    format!("{} {what}", question.cell.to_string().chars().take(8).collect::<String>())
}

fn told(answer: &WitnessAnswer) -> String {
    match answer {
        WitnessAnswer::Holds(Some(found)) => match &found.content {
            Content::Config(config) => format!("holds {}", crate::sim::world::k(config)),
            content => format!("holds {content:?}"),
        },
        other => format!("{other:?}"),
    }
}
