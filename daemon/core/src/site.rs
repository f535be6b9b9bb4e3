//! What the members of a group at one site tell each other: their leader and each of the others, over a stream of their own.
//!
//! Both ends say how things are, whole, whenever that changed, and say it again on a new stream: nothing hangs on one message.
//! Holding the requests of all volumes for a consistency mark joins here later.

use crate::config::{Config, Policy, Since};
use crate::group::members::{MAX_MEMBERS, Members};
use crate::types::{NodeId, Nonce};

/// Which member of a group a copy is. Written into its superblock when it is made; the lists do not change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    /// Its number: the same as that of its peer at the other site.
    pub me: usize,
    /// The agents of this site, by member, at most [`MAX_MEMBERS`]. The first one leads.
    pub nodes: Vec<NodeId>,
    /// Those of the other site, as many; none without one.
    pub peers: Vec<NodeId>,
}

impl Membership {
    /// Who leads.
    pub const LEADER: usize = 0;

    /// Everyone.
    pub fn all(&self) -> Members {
        Members::first(self.nodes.len())
    }

    /// The agent that leads at this site.
    pub fn leader(&self) -> NodeId {
        self.nodes.first().copied().unwrap_or_default()
    }

    /// The agent of this member.
    pub fn own(&self) -> NodeId {
        self.nodes.get(self.me).copied().unwrap_or_default()
    }

    /// That of the same member at the other site.
    pub fn peer(&self) -> Membership {
        Self { me: self.me, nodes: self.peers.clone(), peers: self.nodes.clone() }
    }

    /// That of the member of this site with that number.
    pub fn of(&self, me: usize) -> Membership {
        Self { me, ..self.clone() }
    }

    /// What is wrong with it; `None`: nothing.
    pub fn fault(&self) -> Option<&'static str> {
        let all: Vec<NodeId> = self.nodes.iter().chain(&self.peers).copied().collect();
        let is_named_twice = all.iter().enumerate().any(|(i, node)| all[..i].contains(node));
        match self.nodes.len() {
            0 | 1 => Some("a list of members names at least two nodes"),
            count if count > MAX_MEMBERS => Some("a list of members names at most 16 nodes"),
            count if !self.peers.is_empty() && self.peers.len() != count => Some("both sites have as many members"),
            count if self.me >= count => Some("no such member is in the list"),
            _ if all.iter().any(|node| node.is_nil()) => Some("a member is a node with an identity"),
            _ if is_named_twice => Some("a node is named twice"),
            _ => None,
        }
    }
}

/// What a member is asked to be before a K is persisted (R5, R15 ii).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// It answers no flush alone any more, and its peer is close enough to join S.
    Held,
    /// Its peer has persisted this K, and everything that the peer had when it said so is durable here.
    Verified(Since),
    /// It serves nothing any more, and everything is durable here and at its peer.
    Drained {
        /// What is queued fails.
        force: bool,
    },
    /// Everything is durable here, and its peer, which does not serve either, has nothing else.
    Settled,
}

/// What a leader wants of a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// K as the leader has persisted it: the member is to do so, too.
    pub k: Config,
    /// What the operator wants.
    pub policy: Policy,
    /// What the member is to be, and the name of that question; `None`: nothing (any more).
    pub wanted: Option<(Nonce, Readiness)>,
}

/// How a member is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// K as persisted there.
    pub k: Config,
    /// Its copy is complete and trusted.
    pub is_sound: bool,
    /// Its peer could join S now.
    pub is_close: bool,
    /// Its peer has been of no use for as long as the policy allows.
    pub is_alone: bool,
    /// Its peer has to be seeded before it can be anything.
    pub seeds: bool,
    /// It serves.
    pub serves: bool,
    /// It is what that question asks for.
    pub ready: Option<Nonce>,
    /// It is settled, and its peer has exactly what it has.
    pub is_equal: bool,
}

/// How long a member may serve (3a), counted from when it asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lasts {
    /// So many nanoseconds.
    For(u64),
    /// Until K is another one.
    Always,
}

/// A leader's answer to a member that asked whether it may serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubLease {
    /// When it was asked, on the clock of who did.
    pub stamp: u64,
    /// Under which K.
    pub k: Since,
    /// How long.
    pub lasts: Lasts,
    /// Every member has persisted K, and nothing of the other site has to be waited for: it may open.
    pub may_open: bool,
}

/// A message between a leader and another member of its site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SiteMessage {
    /// To the leader.
    Report(Box<Report>),
    /// From the leader.
    Order(Box<Order>),
    /// To the leader: may I serve? Answered by a [`SubLease`], or not at all.
    MayIServe {
        /// Now, on the clock of who asks.
        stamp: u64,
    },
    /// From the leader.
    Lease(SubLease),
}
