//! The configuration K: who may change it how, and what two copies that meet conclude from their Ks; leases, and what is
//! remembered of a witness; groups with several agents a site. Pure.

pub mod arbitrated;
pub mod ballot;
pub mod flapping;
pub mod lease;
pub mod members;
#[cfg(test)]
mod testing;
pub mod witness;

use crate::config::{Config, Mode, Since};
use crate::ship::{AdoptStep, Refusal};
use crate::types::{Boundary, Epoch, GenId, NodeId, Nonce, SiteId};

/// What a copy concludes when it meets its peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contact {
    /// Both hold the same K.
    Same,
    /// The peer's K is newer and names the peer as primary: this copy is fenced and follows.
    PeerLeads,
    /// The peer's K is newer, and names this site or nobody: it is this site's own proposal whose answer was lost, or a demotion.
    AdoptTheirs,
    /// This copy's K is newer: the peer has to learn it.
    MineIsNewer,
    /// Both sides decided without an arbiter since they parted.
    SplitBrain,
}

/// What a copy concludes from its own K and that of `peer`.
pub fn contact(mine: &Config, peer: SiteId, theirs: &Config) -> Contact {
    if mine.id() == theirs.id() {
        return Contact::Same;
    }
    if mine.epoch == theirs.epoch {
        return Contact::SplitBrain;
    }
    let (lower, higher) = if mine.epoch < theirs.epoch { (mine, theirs) } else { (theirs, mine) };
    // The higher one was judged on a K that is not the lower one's, and is not a later decision of the same node: both
    // decided on their own.
    let apart = lower.since != higher.base && lower.proposer != higher.proposer;
    if lower.forced && higher.forced && lower.primary != higher.primary && apart {
        return Contact::SplitBrain;
    }
    match theirs.epoch > mine.epoch {
        true if theirs.primary == Some(peer) => Contact::PeerLeads,
        true => Contact::AdoptTheirs,
        false => Contact::MineIsNewer,
    }
}

/// The K of a volume that begins at `site`.
pub fn genesis(site: SiteId, node: NodeId, nonce: Nonce, generation: GenId, mode: Mode) -> Config {
    let epoch = Epoch { major: 1, minor: 0 };
    let since = Since { epoch, nonce };
    Config {
        epoch,
        nonce,
        proposer: node,
        since,
        base: since,
        primary: Some(site),
        leader: node,
        lease_gen: 0,
        member_rev: 1,
        sites: vec![site],
        mode,
        generation,
        forced: false,
        hands_over: false,
    }
}

/// A change of K by the current primary together with the peer: minor + 1.
pub fn joint(
    k: &Config,
    node: NodeId,
    nonce: Nonce,
    primary: Option<SiteId>,
    sites: Vec<SiteId>,
    mode: Mode,
) -> Config {
    let epoch = Epoch { major: k.epoch.major, minor: k.epoch.minor + 1 };
    change(k, epoch, node, nonce, primary, sites, mode)
}

/// The K with which the primary gives up its role: nobody has it then; `hands_over`: the other site is to take it.
pub fn demoted(k: &Config, node: NodeId, nonce: Nonce, hands_over: bool) -> Config {
    Config { hands_over, ..joint(k, node, nonce, None, k.sites.clone(), k.mode) }
}

/// A change of K by a recorded human decision: major + 1.
pub fn forced(k: &Config, node: NodeId, nonce: Nonce, primary: Option<SiteId>, sites: Vec<SiteId>) -> Config {
    let epoch = Epoch { major: k.epoch.major + 1, minor: 0 };
    let mode = k.mode;
    Config { forced: true, lease_gen: 0, ..change(k, epoch, node, nonce, primary, sites, mode) }
}

fn change(
    k: &Config,
    epoch: Epoch,
    node: NodeId,
    nonce: Nonce,
    primary: Option<SiteId>,
    sites: Vec<SiteId>,
    mode: Mode,
) -> Config {
    let matters = primary != k.primary || sites != k.sites || mode != k.mode;
    let since = if matters { Since { epoch, nonce } } else { k.since };
    // A demotion decides for nobody: what the demoted primary's own promotion was judged on is still what counts.
    let base = if primary.is_some() && primary != k.primary { k.since } else { k.base };
    let hands_over = false;
    Config { epoch, nonce, proposer: node, since, base, primary, leader: node, sites, mode, hands_over, ..k.clone() }
}

/// The acceptor's judgement of a K that its peer sends (R3, R5, R15 for one agent a site).
pub struct Acceptor<'a> {
    /// Own site.
    pub me: SiteId,
    /// The sender.
    pub peer: SiteId,
    /// K persisted here.
    pub mine: &'a Config,
    /// This copy serves, or may come to serve by itself.
    pub serves: bool,
    /// The copy is complete and trusted.
    pub is_sound: bool,
    /// Durable tail here.
    pub durable: Boundary,
    /// True when `tail` of the message is on this copy's history.
    pub holds_tail: bool,
}

impl Acceptor<'_> {
    /// EXPAND: join S. Only when the proposer's whole durable tail is durable here.
    pub fn expand(&self, k: &Config, tail: &Boundary) -> Result<(), Refusal> {
        if k.id() == self.mine.id() {
            return Ok(());
        }
        self.newer(k)?;
        if !k.has(self.me) || k.primary != Some(self.peer) || self.serves || !self.is_sound {
            return Err(Refusal::State);
        }
        match self.durable.position.lsn < tail.position.lsn {
            true => Err(Refusal::Behind),
            false if !self.holds_tail => Err(Refusal::Chain),
            false => Ok(()),
        }
    }

    /// Every other K that the peer sends.
    pub fn adopt(&self, k: &Config, step: AdoptStep, tail: &Boundary) -> Result<(), Refusal> {
        if k.id() == self.mine.id() {
            return Ok(());
        }
        self.newer(k)?;
        // A serving primary gives way only to a higher major: that is a fence, and its suffix is judged before it follows.
        if self.serves && k.epoch.major == self.mine.epoch.major {
            return Err(Refusal::State);
        }
        match step {
            AdoptStep::Rejoin | AdoptStep::Release if !k.has(self.me) => Ok(()),
            AdoptStep::Same if k.since == self.mine.since => Ok(()),
            AdoptStep::Same if k.primary.is_none() && self.mine.primary == Some(self.peer) => Ok(()),
            AdoptStep::Release if self.mine.primary == Some(self.peer) && k.has(self.me) => Ok(()),
            AdoptStep::Handover if self.mine.primary.is_none() && self.durable == *tail => Ok(()),
            _ => Err(Refusal::State),
        }
    }

    fn newer(&self, k: &Config) -> Result<(), Refusal> {
        if k.epoch > self.mine.epoch { Ok(()) } else { Err(Refusal::OldEpoch) }
    }
}

/// True when nothing in a suffix that is here and not at the peer can have been acknowledged as durable, in mode sync, with the
/// peer in S: it was written under `mine`, and the peer's promotion was judged on just this S; or it came from the peer, which
/// has been its primary until it was demoted and does not hold it any more.
pub fn suffix_is_unacked(peer: SiteId, mine: &Config, theirs: &Config) -> bool {
    let is_demoted = theirs.primary.is_none() && mine.primary == Some(peer) && theirs.generation == mine.generation;
    let judged = theirs.base == mine.since || theirs.since == mine.since;
    mine.has(peer) && mine.mode == Mode::Sync && (judged || is_demoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SiteId = SiteId([1; 16]);
    const B: SiteId = SiteId([2; 16]);
    const N: NodeId = NodeId([3; 16]);
    const M: NodeId = NodeId([4; 16]);

    fn nonce(n: u8) -> Nonce {
        Nonce([n; 16])
    }

    fn both() -> Config {
        let k = genesis(A, N, nonce(1), GenId([1; 16]), Mode::Sync);
        joint(&k, N, nonce(2), Some(A), vec![A, B], Mode::Sync)
    }

    #[test]
    fn a_promotion_on_the_same_s_leaves_only_unacknowledged_records_behind() {
        let k = both();
        let promoted = forced(&k, N, nonce(3), Some(B), vec![B]);
        assert_eq!(contact(&k, B, &promoted), Contact::PeerLeads);
        assert_eq!(contact(&promoted, A, &k), Contact::MineIsNewer);
        assert!(suffix_is_unacked(B, &k, &promoted));
        let alone = forced(&k, N, nonce(4), Some(A), vec![A]);
        assert!(!suffix_is_unacked(B, &alone, &promoted));
    }

    #[test]
    fn a_demotion_right_after_a_promotion_takes_nothing_from_what_that_was_judged_on() {
        let k = both();
        let promoted = Config { generation: GenId([2; 16]), ..forced(&k, M, nonce(3), Some(B), vec![B]) };
        let demoted = joint(&promoted, M, nonce(4), None, vec![B], Mode::Sync);
        assert!(suffix_is_unacked(B, &k, &demoted), "what A wrote with B in S was promised to nobody");
        assert!(suffix_is_unacked(B, &promoted, &demoted), "nor what A had from B and B does not have");
        let alone = forced(&k, N, nonce(5), Some(A), vec![A]);
        assert!(!suffix_is_unacked(B, &alone, &demoted), "A promised alone");
        let other = Config { generation: GenId([3; 16]), ..forced(&promoted, M, nonce(6), Some(B), vec![B]) };
        assert!(!suffix_is_unacked(B, &promoted, &joint(&other, M, nonce(7), None, vec![B], Mode::Sync)));
    }

    #[test]
    fn two_forced_sides_are_a_split_brain_whatever_their_epochs() {
        let k = both();
        let a = forced(&k, N, nonce(3), Some(A), vec![A]);
        let b = forced(&k, M, nonce(4), Some(B), vec![B]);
        assert_eq!(contact(&a, B, &b), Contact::SplitBrain);
        let a2 = forced(&a, N, nonce(5), Some(A), vec![A]);
        let a3 = joint(&a2, N, nonce(6), Some(A), vec![A], Mode::Async);
        assert_eq!(contact(&a3, B, &b), Contact::SplitBrain);
        assert_eq!(contact(&b, A, &a3), Contact::SplitBrain);
    }

    #[test]
    fn later_decisions_of_the_same_node_are_no_split_brain() {
        let k = forced(&both(), N, nonce(3), Some(A), vec![A]);
        let again = forced(&k, N, nonce(4), Some(A), vec![A]);
        let demoted = joint(&again, N, nonce(5), None, vec![A], Mode::Async);
        assert_eq!(contact(&k, A, &demoted), Contact::AdoptTheirs);
        assert_eq!(contact(&demoted, B, &k), Contact::MineIsNewer);
    }

    #[test]
    fn a_k_that_lists_the_acceptor_is_taken_only_by_the_expand_check() {
        let k = genesis(A, N, nonce(1), GenId([1; 16]), Mode::Sync);
        let wider = joint(&k, N, nonce(2), Some(A), vec![A, B], Mode::Sync);
        let tail = Boundary::default();
        let acceptor =
            Acceptor { me: B, peer: A, mine: &k, serves: false, is_sound: true, durable: tail, holds_tail: true };
        for step in [AdoptStep::Same, AdoptStep::Rejoin] {
            assert_eq!(acceptor.adopt(&wider, step, &tail), Err(Refusal::State));
        }
        assert_eq!(acceptor.expand(&wider, &tail), Ok(()));
        let mut ahead = tail;
        ahead.position.lsn = crate::types::Lsn(5);
        assert_eq!(acceptor.expand(&wider, &ahead), Err(Refusal::Behind));
        let seeding = Acceptor { is_sound: false, ..acceptor };
        assert_eq!(seeding.expand(&wider, &tail), Err(Refusal::State));
    }

    #[test]
    fn a_serving_primary_gives_way_only_to_a_higher_major() {
        let k = genesis(A, N, nonce(1), GenId([1; 16]), Mode::Async);
        let acceptor = Acceptor {
            me: A,
            peer: B,
            mine: &k,
            serves: true,
            is_sound: true,
            durable: Boundary::default(),
            holds_tail: true,
        };
        let minor = joint(&k, N, nonce(2), Some(B), vec![B], Mode::Async);
        assert_eq!(acceptor.adopt(&minor, AdoptStep::Rejoin, &Boundary::default()), Err(Refusal::State));
        let major = forced(&k, N, nonce(3), Some(B), vec![B]);
        assert_eq!(acceptor.adopt(&major, AdoptStep::Rejoin, &Boundary::default()), Ok(()));
    }
}
