//! Who may serve, and so what may be read: leases, heartbeats, sub-leases, takeovers, restarts, HANDOVER and reclaim (R15 ii, R16, R17, 3a),
//! together with the changes of K that they go with.
//!
//! Time is ticks: D is two of them, a challenger waits for three. Clocks run alike. There is no data: that nothing written is lost whatever
//! leases do is the other model's.

mod changes;
mod messages;
mod state;

pub use state::State;

use state::{Agent, MOST, SPAN, WAIT, Watch};
use stateright::{Model, Property};

use crate::k::{K, Site, other};
use crate::mutation::Mutation;

/// An agent by number.
pub type Number = usize;

/// What is played, and how far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scope {
    /// Agents at A; B has one.
    pub agents: usize,
    /// The highest major.
    pub majors: u8,
    /// The highest minor.
    pub minors: u8,
    /// Agents that restart.
    pub restarts: u8,
    /// Heartbeats and echoes.
    pub beats: bool,
    /// The primary goes on alone.
    pub shrinks: bool,
    /// HANDOVER, and its reclaim.
    pub handover: bool,
}

impl Scope {
    /// Few enough states for the unit tests: heartbeats and a second agent make many.
    pub const fn is_small(&self) -> bool {
        self.agents == 1 && !self.beats
    }

    /// In words.
    pub fn describe(&self) -> String {
        let Self { majors, minors, restarts, .. } = self;
        format!("{majors} majors, {minors} minors, {restarts} restarts, time without end")
    }
}

/// The model.
#[derive(Clone, Copy, Debug)]
pub struct Leases {
    /// Bounds.
    pub scope: Scope,
    /// What is left out.
    pub mutation: Mutation,
}

/// A step: first the site, then the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A tick passes.
    Tick,
    /// The agent sends a renewal.
    Renew(Site, Number),
    /// The witness carries it out.
    Make(Site, Number),
    /// The answer arrives.
    Renewed(Site, Number),
    /// An agent that holds nothing takes a new grant.
    TakeGrant(Site, Number),
    /// The primary's leader sends a heartbeat.
    Beat(Site),
    /// It arrives, and is echoed when it is of the receiver's K.
    Hear,
    /// The echo arrives.
    Echo,
    /// The agent asks its leader for a sub-lease.
    Ask(Site, Number),
    /// The leader answers.
    Answer(Site, Number),
    /// The answer arrives.
    Receive(Site, Number),
    /// The agent restarts.
    Restart(Site, Number),
    /// The leader of the site reads the lease that it waits for.
    Watch(Site),
    /// It takes the lease.
    Revoke(Site),
    /// It proposes itself as the primary.
    Promote(Site),
    /// The primary's leader proposes to go on, with the same S.
    Resume(Site, Number),
    /// The same, alone.
    Shrink(Site),
    /// Another agent of the primary site proposes itself as the leader.
    Takeover(Site, Number),
    /// The witness decides; the flag: the agent hears of it.
    Decide(Site, Number, bool),
    /// The agent finds its own change at the witness.
    FindOwn(Site, Number),
    /// The agent learns a newer K of its own site's other agent.
    Spread(Site, Number),
    /// The agent learns a newer K of the other site.
    Learn(Site, Number),
    /// The device opens.
    Open(Site, Number),
    /// The primary's agents close, and persist that the other site is the primary.
    HandOver(Site),
    /// The agent of the other site persists that.
    TakeOffice(Site, Number),
}

impl Leases {
    fn numbers(&self, site: Site) -> std::ops::Range<Number> {
        if site == 0 { 0..self.scope.agents } else { 0..1 }
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation.is(mutation)
    }

    /// What a challenger waits.
    fn wait(&self) -> u8 {
        if self.is(Mutation::ShortWait) { SPAN - 1 } else { WAIT }
    }

    /// How long `agent` may serve by R16; `None`: as long as it lives.
    fn left(&self, agent: &Agent, site: Site, number: Number) -> Option<u8> {
        if !agent.k.has(other(site)) {
            return None;
        }
        if usize::from(agent.k.leader) != number {
            return Some(agent.sub);
        }
        let is_named = agent.grant == agent.k.lease_gen || self.is(Mutation::ResumeWithoutCas);
        let leased = if is_named && agent.grant != 0 { SPAN.saturating_sub(agent.renewed) } else { 0 };
        Some(leased.max(SPAN.saturating_sub(agent.echoed)))
    }

    /// Requests are answered.
    fn serves(&self, state: &State, site: Site, number: Number) -> bool {
        let agent = &state.agents[site][number];
        agent.open && agent.k.is_led_by(site) && self.left(agent, site, number) != Some(0)
    }

    fn site_serves(&self, state: &State, site: Site) -> bool {
        self.numbers(site).any(|number| self.serves(state, site, number))
    }

    fn after(&self, state: &State, action: Action) -> Option<State> {
        match action {
            Action::Tick => {
                let mut after = *state;
                after.tick();
                Some(after)
            }
            Action::Renew(s, n) => self.renew(state, s, n),
            Action::Make(s, n) => self.make(state, s, n),
            Action::Renewed(s, n) => self.renewed(state, s, n),
            Action::TakeGrant(s, n) => self.take_grant(state, s, n),
            Action::Beat(s) => self.beat(state, s),
            Action::Hear => self.hear(state),
            Action::Echo => self.echo(state),
            Action::Ask(s, n) => self.ask(state, s, n),
            Action::Answer(s, n) => self.answer(state, s, n),
            Action::Receive(s, n) => self.receive(state, s, n),
            Action::Restart(s, n) => self.restart(state, s, n),
            Action::Watch(s) => self.watch(state, s),
            Action::Revoke(s) => self.revoke(state, s),
            Action::Promote(s) => self.promote(state, s),
            Action::Resume(s, n) => self.resume(state, s, n),
            Action::Shrink(s) => self.shrink(state, s),
            Action::Takeover(s, n) => self.takeover(state, s, n),
            Action::Decide(s, n, heard) => self.decide(state, s, n, heard),
            Action::FindOwn(s, n) => self.find_own(state, s, n),
            Action::Spread(s, n) => self.spread(state, s, n),
            Action::Learn(s, n) => self.learn(state, s, n),
            Action::Open(s, n) => self.open(state, s, n),
            Action::HandOver(s) => self.hand_over(state, s),
            Action::TakeOffice(s, n) => self.take_office(state, s, n),
        }
    }

    fn agent_actions(&self, s: Site, n: Number, actions: &mut Vec<Action>) {
        actions.extend([Action::Renew(s, n), Action::Make(s, n), Action::Renewed(s, n)]);
        actions.extend([Action::TakeGrant(s, n), Action::Restart(s, n), Action::Resume(s, n)]);
        actions.extend([Action::Decide(s, n, true), Action::Decide(s, n, false), Action::FindOwn(s, n)]);
        actions.extend([Action::Learn(s, n), Action::Open(s, n)]);
        if self.numbers(s).len() > 1 {
            actions.extend([Action::Ask(s, n), Action::Answer(s, n), Action::Receive(s, n)]);
            actions.extend([Action::Takeover(s, n), Action::Spread(s, n)]);
        }
        if self.scope.handover {
            actions.push(Action::TakeOffice(s, n));
        }
    }
}

impl Model for Leases {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let k = K { lease_gen: 1, ..K::first(true, true) };
        let agent = Agent { restarted: false, grant: 1, ..Agent::started(k) };
        let watch = Watch { target: (0, 1), still: None, changed: false, gone: false, revoked: false };
        let mut agents = [[agent; MOST]; 2];
        for number in self.numbers(0) {
            agents[0][number].open = true;
        }
        agents[0][0].renewed = 0;
        vec![State {
            witness: k,
            grants: [[1, 1], [1, 1]],
            agents,
            watches: [watch; 2],
            beat: None,
            echo: None,
            offered: None,
            restarts: self.scope.restarts,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        for site in [0, 1] {
            for number in self.numbers(site) {
                self.agent_actions(site, number, actions);
            }
            actions.extend([Action::Watch(site), Action::Revoke(site), Action::Promote(site)]);
            if self.scope.shrinks {
                actions.push(Action::Shrink(site));
            }
            if self.scope.handover {
                actions.push(Action::HandOver(site));
            }
            if self.scope.beats {
                actions.push(Action::Beat(site));
            }
        }
        if self.scope.beats {
            actions.extend([Action::Hear, Action::Echo]);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.after(state, action).filter(|after| after != state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("G15 no two sites serve at once", |model: &Self, state: &State| {
                !(model.site_serves(state, 0) && model.site_serves(state, 1))
            }),
            Property::sometimes("B serves", |model: &Self, state: &State| model.site_serves(state, 1)),
            Property::sometimes("A is frozen", |model: &Self, state: &State| {
                state.agents[0][0].open && !model.serves(state, 0, 0)
            }),
        ]
    }
}
