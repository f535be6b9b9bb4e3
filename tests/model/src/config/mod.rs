//! Who may acknowledge what, and who may be promoted: configurations, acknowledgements, joint changes and changes at the witness, for
//! one or two agents a site.
//!
//! Nothing is timed here: a site may ask the witness to be promoted at any moment, whether or not its peer's lease has ended, and an
//! agent opens without asking whether it still may. What holds here holds whatever leases and clocks do. Stale reads are another
//! model's.
//!
//! Messages are not kept: a step of two agents happens at once, and that it may happen late or never is what a message under way
//! amounts to, except for what a primary remembers of its peer's acknowledgements, and for proposals at the witness. Those are read,
//! sent, carried out and answered in separate steps.

mod arbitrated;
mod data;
mod joint;
mod properties;
mod state;

pub use state::{Kind, State, Volume};
pub use tidemark_core::group::members::Joint;

use state::{Left, MOST};
use stateright::{Model, Property};

use crate::k::{BOTH, K, Site};
use crate::mutation::Mutation;

/// What is played, and how far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scope {
    /// Agents, and volumes, a site.
    pub agents: usize,
    /// The highest major.
    pub majors: u8,
    /// The highest minor.
    pub minors: u8,
    /// Writes of each volume.
    pub writes: u8,
    /// Agents that restart.
    pub restarts: u8,
    /// Leaders that forget what they were doing.
    pub losses: u8,
    /// B is in S at first.
    pub both: bool,
    /// Joint changes that are played.
    pub joints: &'static [Joint],
    /// Changes at the witness that are played.
    pub kinds: &'static [Kind],
    /// A proposal that was given up may still arrive.
    pub late: bool,
    /// Writes are durable at once, at home and at the peer, and acknowledgements are not delayed.
    pub coarse: bool,
}

impl Scope {
    /// In words.
    pub fn describe(&self) -> String {
        let Self { majors, minors, writes, restarts, losses, .. } = self;
        let mut words = format!("{majors} majors, {minors} minors, {writes} writes a volume");
        let mut note = |count: u8, what: &str| {
            if count > 0 {
                words += &format!(", {count} {what}");
            }
        };
        note(*restarts, "restarts");
        note(*losses, "leaders lost");
        words + if self.late { ", late proposals" } else { "" }
    }
}

/// The model.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// Bounds.
    pub scope: Scope,
    /// What is left out.
    pub mutation: Mutation,
}

/// A step; the first number is the site, the second the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A client writes.
    Write(Site, Volume),
    /// The log is synced.
    Sync(Site, Volume),
    /// The primary's agent sends what the peer lacks.
    Ship(Site, Volume),
    /// The primary's agent hears how far its peer is durable.
    Ack(Site, Volume),
    /// A flush of all that was written is answered.
    Flush(Site, Volume),
    /// The device opens.
    Open(Site, Volume),
    /// A recovering primary fetches what its peer has more (R7a).
    Fetch(Site, Volume),
    /// The agent restarts and loses what was not synced.
    Restart(Site, Volume),
    /// The agent learns a newer K of the other site, at contact.
    Learn(Site, Volume),
    /// It seals what the primary does not have, and follows.
    Rejoin(Site, Volume),
    /// The leader reads the cell and proposes a change of it.
    Propose(Site, Kind),
    /// The witness carries it out; the flag: the leader hears of it.
    Decide(Site, bool),
    /// The leader gives up what it waits for, or what it spreads.
    GiveUp(Site),
    /// What was given up arrives.
    DecideLate(Site),
    /// The leader finds its own change in the cell.
    FindOwn(Site),
    /// The agent persists the K that its leader made at the witness.
    Persist(Site, Volume),
    /// The leader forgets what it was doing.
    Forget(Site),
    /// The primary's leader begins a joint change.
    Begin(Site, Joint),
    /// EXPAND: the agent stops answering. HANDOVER: it is drained and closes.
    Prepare(Site, Volume),
    /// The agent of the proposing site persists the joint K.
    PersistJoint(Site, Volume),
    /// The agent of the other site verifies its volume (EXPAND).
    Verify(Site, Volume),
    /// The agent of the other site persists the joint K.
    Adopt(Site, Volume),
    /// The leader gives a joint change up.
    Cancel(Site),
    /// A leader takes up a joint change that some agent has persisted.
    Retry(Site),
}

impl Groups {
    fn volumes(&self) -> std::ops::Range<Volume> {
        0..self.scope.agents
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation.is(mutation)
    }

    fn agent_actions(&self, site: Site, volume: Volume, actions: &mut Vec<Action>) {
        actions.extend([
            Action::Write(site, volume),
            Action::Ship(site, volume),
            Action::Flush(site, volume),
            Action::Open(site, volume),
            Action::Fetch(site, volume),
            Action::Restart(site, volume),
            Action::Learn(site, volume),
            Action::Rejoin(site, volume),
            Action::Persist(site, volume),
        ]);
        if !self.scope.coarse {
            actions.extend([Action::Sync(site, volume), Action::Ack(site, volume)]);
        }
        if !self.scope.joints.is_empty() {
            actions.extend([
                Action::Prepare(site, volume),
                Action::PersistJoint(site, volume),
                Action::Verify(site, volume),
                Action::Adopt(site, volume),
            ]);
        }
    }

    fn leader_actions(&self, site: Site, actions: &mut Vec<Action>) {
        actions.extend(self.scope.kinds.iter().map(|kind| Action::Propose(site, *kind)));
        actions.extend([Action::Decide(site, true), Action::Decide(site, false), Action::GiveUp(site)]);
        actions.extend([Action::DecideLate(site), Action::FindOwn(site), Action::Forget(site)]);
        actions.extend(self.scope.joints.iter().map(|joint| Action::Begin(site, *joint)));
        if !self.scope.joints.is_empty() {
            actions.extend([Action::Cancel(site), Action::Retry(site)]);
        }
    }

    /// The state after `action`; `None`: it cannot happen, or changes nothing.
    fn after(&self, state: &State, action: Action) -> Option<State> {
        match action {
            Action::Write(site, volume) => self.write(state, site, volume),
            Action::Sync(site, volume) => self.sync(state, site, volume),
            Action::Ship(site, volume) => self.ship(state, site, volume),
            Action::Ack(site, volume) => self.ack(state, site, volume),
            Action::Flush(site, volume) => self.flush(state, site, volume),
            Action::Open(site, volume) => self.open(state, site, volume),
            Action::Fetch(site, volume) => self.fetch(state, site, volume),
            Action::Restart(site, volume) => self.restart(state, site, volume),
            Action::Learn(site, volume) => self.learn(state, site, volume),
            Action::Rejoin(site, volume) => self.rejoin(state, site, volume),
            Action::Propose(site, kind) => self.propose(state, site, kind),
            Action::Decide(site, heard) => self.decide(state, site, heard),
            Action::GiveUp(site) => self.give_up(state, site),
            Action::DecideLate(site) => self.decide_late(state, site),
            Action::FindOwn(site) => self.find_own(state, site),
            Action::Persist(site, volume) => self.persist(state, site, volume),
            Action::Forget(site) => self.forget(state, site),
            Action::Begin(site, joint) => self.begin(state, site, joint),
            Action::Prepare(site, volume) => self.prepare(state, site, volume),
            Action::PersistJoint(site, volume) => self.persist_joint(state, site, volume),
            Action::Verify(site, volume) => self.verify(state, site, volume),
            Action::Adopt(site, volume) => self.adopt(state, site, volume),
            Action::Cancel(site) => self.cancel(state, site),
            Action::Retry(site) => self.retry(state, site),
        }
    }
}

impl Model for Groups {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let scope = self.scope;
        let left = Left { restarts: scope.restarts, losses: scope.losses, regressions: 0 };
        vec![State::new(K::first(scope.both, true), left, scope.agents)]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        for site in [0, 1] {
            for volume in self.volumes() {
                self.agent_actions(site, volume, actions);
            }
            self.leader_actions(site, actions);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let after = self.after(state, action)?;
        // Two volumes, each with its agents, are alike.
        let after = if self.scope.agents == MOST { after.min(after.swapped()) } else { after };
        (after != *state).then_some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

/// S of both sites, or of one.
fn is_joint(k: &K) -> bool {
    k.sites == BOTH
}
