//! What agents, the witness and the network hold. Times are ages in ticks, no greater than what makes a difference: so the states are
//! finite however long it goes on.

use crate::k::{Id, K, Site};

/// D, in ticks.
pub const SPAN: u8 = 2;
/// What a challenger waits: D * 1.02 + 1 s. Older than this is old.
pub const WAIT: u8 = 3;
/// Agents a site, at most.
pub const MOST: usize = 2;

/// A renewal on its way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Renewal {
    /// None.
    Idle,
    /// Sent so long ago.
    Sent(u8),
    /// And carried out.
    Made(u8),
}

/// A question for a sub-lease.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Question {
    /// None.
    Idle,
    /// Sent so long ago.
    Sent(u8),
    /// And answered: for how long, counted from when it was sent.
    Answered(u8, u8),
}

/// What an agent proposed to the witness.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Proposal {
    /// What the cell has to hold.
    pub expected: Id,
    /// What it is to hold.
    pub k: K,
}

/// The wait for the other site's lease to end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Watch {
    /// The leader and grant that are waited for.
    pub target: (u8, u8),
    /// Its cell was read, and did not change since as far as is known, for so long.
    pub still: Option<u8>,
    /// It did change.
    pub changed: bool,
    /// When it was read, it had another grant already.
    pub gone: bool,
    /// The grant was taken from it.
    pub revoked: bool,
}

/// An agent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Agent {
    /// Persisted.
    pub k: K,
    /// The device was opened under K.
    pub open: bool,
    /// It came to be the primary by a change at the witness, and has not opened since.
    pub waits: bool,
    /// It restarted, and K was not changed since.
    pub restarted: bool,
    /// The grant of its lease; 0: none.
    pub grant: u8,
    /// Since its last renewal was sent.
    pub renewed: u8,
    /// On its way.
    pub renewal: Renewal,
    /// Since it sent the last heartbeat that was echoed.
    pub echoed: u8,
    /// How long its sub-lease lasts.
    pub sub: u8,
    /// For another.
    pub question: Question,
    /// Since it echoed anything, or started.
    pub heard: u8,
    /// It asks the witness.
    pub asks: Option<Proposal>,
}

impl Agent {
    /// One that has just started with this K, and knows nothing of anybody.
    pub fn started(k: K) -> Self {
        Self {
            k,
            open: false,
            waits: false,
            restarted: true,
            grant: 0,
            renewed: WAIT,
            renewal: Renewal::Idle,
            echoed: WAIT,
            sub: 0,
            question: Question::Idle,
            heard: 0,
            asks: None,
        }
    }
}

/// Everything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct State {
    /// K at the witness.
    pub witness: K,
    /// The lease of each agent: its grant.
    pub grants: [[u8; MOST]; 2],
    /// The agents.
    pub agents: [[Agent; MOST]; 2],
    /// What the leader of each site watches.
    pub watches: [Watch; 2],
    /// A heartbeat of the primary: how old, under which K.
    pub beat: Option<(u8, Site, Id)>,
    /// Its echo: how old the heartbeat is.
    pub echo: Option<(u8, Site)>,
    /// A HANDOVER that was offered, where the demotion is not durable.
    pub offered: Option<K>,
    /// Restarts that may happen yet.
    pub restarts: u8,
}

fn older(age: &mut u8) {
    *age = (*age + 1).min(WAIT);
}

impl Agent {
    fn tick(&mut self) {
        for age in [&mut self.renewed, &mut self.echoed, &mut self.heard] {
            older(age);
        }
        self.sub = self.sub.saturating_sub(1);
        // What is as old as that counts no more, and is as good as lost.
        self.renewal = match self.renewal {
            Renewal::Sent(age) if age + 1 < WAIT => Renewal::Sent(age + 1),
            Renewal::Made(age) if age + 1 < WAIT => Renewal::Made(age + 1),
            _ => Renewal::Idle,
        };
        self.question = match self.question {
            Question::Sent(age) if age + 1 < WAIT => Question::Sent(age + 1),
            Question::Answered(age, left) if age + 1 < WAIT => Question::Answered(age + 1, left),
            _ => Question::Idle,
        };
    }
}

impl State {
    /// Time passes.
    pub fn tick(&mut self) {
        self.agents.iter_mut().flatten().for_each(Agent::tick);
        for watch in &mut self.watches {
            watch.still.iter_mut().for_each(older);
        }
        self.beat = self.beat.filter(|(age, ..)| age + 1 < WAIT).map(|(age, site, k)| (age + 1, site, k));
        self.echo = self.echo.filter(|(age, _)| age + 1 < WAIT).map(|(age, site)| (age + 1, site));
    }
}
