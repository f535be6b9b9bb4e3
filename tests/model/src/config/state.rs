//! What the sites, their agents and the witness hold.

use tidemark_core::group::members::Joint;

use crate::k::{Id, K, Site, other};
use crate::log::Log;

/// A volume by number; the agent that serves it at a site has the same.
pub type Volume = usize;

/// The most volumes, and agents a site.
pub const MOST: usize = 2;

/// The newest durable-ack that a primary's agent has from its peer, under its own K: one under another never counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ack {
    /// What was durable there.
    pub len: u8,
    /// The record there: stands for generation and incarnation.
    pub last: u8,
}

/// An agent and its copy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Agent {
    /// Persisted.
    pub k: K,
    /// Appended.
    pub log: Log,
    /// Up to here durable.
    pub durable: u8,
    /// The device serves.
    pub open: bool,
    /// EXPAND: no flush is answered.
    pub held: bool,
    /// HANDOVER: quiesced, and equal to the peer since.
    pub drained: bool,
    /// From the peer.
    pub ack: Ack,
}

/// Why a K is proposed at the witness.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// R17.
    Resume,
    /// R4.
    Shrink,
    /// Promotion, and the reclaim of what was handed over.
    Promote,
    /// R15 v.
    Withdraw,
    /// The witness is told of a joint K.
    Lazy,
}

/// On its way to the witness.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Proposal {
    /// What for.
    pub kind: Kind,
    /// What the cell has to hold.
    pub expected: Id,
    /// What it is to hold.
    pub k: K,
}

/// Marks a tail that was not reported.
pub const UNTOLD: u8 = u8::MAX;

/// What the leader of a site is doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lead {
    /// Nothing.
    Idle,
    /// Waits for the witness.
    Asks(Proposal),
    /// Its proposal is in force: the agents of the site persist it.
    Spreads(K),
    /// A joint change, with the tails that its agents reported.
    Changes(Joint, K, [u8; MOST]),
}

/// A site.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SiteState {
    /// Its agents.
    pub agents: [Agent; MOST],
    /// Its leader.
    pub lead: Lead,
    /// A change that the leader gave up, and that may still reach the witness.
    pub late: Option<Proposal>,
    /// The agents that have verified the K that the other site proposes.
    pub verified: u8,
    /// What each volume must hold durable here: it was acknowledged under a K that lists this site, or shown after a recovery.
    pub owed: [u8; MOST],
    /// Sealed in branches, by volume.
    pub sealed: [u8; MOST],
}

/// What may happen how often yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Left {
    /// Agents that restart.
    pub restarts: u8,
    /// Leaders that forget what they were doing.
    pub losses: u8,
    /// Disks that lose what was durable.
    pub regressions: u8,
}

/// A promise that was broken by the last step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Broken {
    /// I1: a flush was answered although the other site had opened under a newer K.
    pub late: bool,
    /// I3.
    pub epoch: bool,
    /// I4.
    pub promotion: bool,
    /// I6.
    pub unsealed: bool,
    /// I7.
    pub opened: bool,
}

/// Everything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct State {
    /// The witness's cell.
    pub witness: K,
    /// A and B.
    pub sites: [SiteState; 2],
    /// Records written so far, by volume.
    pub written: [u8; MOST],
    /// Bounds.
    pub left: Left,
    /// Checked at the steps.
    pub broken: Broken,
}

/// In two pieces: states are hashed by the million.
impl std::hash::Hash for Agent {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.k.hash(state);
        let [a, b, c, d] = self.log.packed();
        let flags = u8::from(self.open) | u8::from(self.held) << 1 | u8::from(self.drained) << 2;
        let Ack { len, last } = self.ack;
        state.write_u64(u64::from_le_bytes([a, b, c, d, self.durable, flags, len, last]));
    }
}

impl Agent {
    /// With an empty log.
    pub fn new(k: K) -> Self {
        let (log, ack) = (Log::default(), Ack::default());
        Self { k, log, durable: 0, open: false, held: false, drained: false, ack }
    }

    /// What is durable.
    pub fn kept(&self) -> Log {
        self.log.upto(self.durable)
    }
}

impl State {
    /// Both sites hold `k`, nothing is written, A serves.
    pub fn new(k: K, left: Left, agents: usize) -> Self {
        let mut site = SiteState {
            agents: [Agent::new(k); MOST],
            lead: Lead::Idle,
            late: None,
            verified: 0,
            owed: [0; MOST],
            sealed: [0; MOST],
        };
        let b = site;
        for agent in &mut site.agents[..agents] {
            agent.open = true;
        }
        let written = [0; MOST];
        Self { witness: k, sites: [site, b], written, left, broken: Broken::default() }
    }

    /// That agent.
    pub fn agent(&self, site: Site, volume: Volume) -> &Agent {
        &self.sites[site].agents[volume]
    }

    /// That agent.
    pub fn agent_mut(&mut self, site: Site, volume: Volume) -> &mut Agent {
        &mut self.sites[site].agents[volume]
    }

    /// The other copy of `volume`.
    pub fn peer(&self, site: Site, volume: Volume) -> &Agent {
        self.agent(other(site), volume)
    }
}
