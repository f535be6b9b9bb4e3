//! Changes of K that the witness arbitrates (R15 i): judged on the newest K that is known, committed by replacing the very cell
//! that was read. Pure: the caller reads, swaps, and persists what was committed.

use super::change;
use crate::config::Config;
use crate::types::{Epoch, NodeId, Nonce, SiteId};

/// Who proposes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proposer {
    /// Its site.
    pub site: SiteId,
    /// The agent: the leader that K will name.
    pub node: NodeId,
    /// Never used for another K.
    pub nonce: Nonce,
    /// The grant of its lease that K will rely on; 0 without one.
    pub lease_gen: u64,
}

/// Why a change is not proposed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unfit {
    /// Another site, or none, is the primary.
    #[error("this site is not the primary of the newest configuration")]
    NotPrimary,
    /// This site was left out: the primary may have acknowledged what is not here.
    #[error("the newest configuration does not count on this site: it may lack what was acknowledged")]
    LeftOut,
    /// This copy has not persisted the S of the newest K.
    #[error("this copy does not hold the newest set of sites: it may lack what was acknowledged")]
    Behind,
    /// K says that it was made at the witness, and the witness holds none (R6).
    #[error("the witness has forgotten this volume: it was wiped, or is another one")]
    Forgotten,
    /// The mode does not make every acknowledged flush durable here.
    #[error("the mode does not wait for this site")]
    NotSync,
}

/// K*: the newer of what the witness holds and what is persisted here. A K that both sites made jointly is not at the witness.
pub fn newest<'a>(at_witness: &'a Config, local: &'a Config) -> &'a Config {
    if at_witness.epoch > local.epoch { at_witness } else { local }
}

/// The witness holds another K of the epoch of `local`, or of a higher one, that does not name `site` as its primary.
pub fn replaces(at_witness: &Config, site: SiteId, local: &Config) -> bool {
    at_witness.epoch >= local.epoch && at_witness.primary != Some(site)
}

impl Proposer {
    /// The next K on the newest of both: major + 1, made by nobody's assertion.
    fn next(&self, at_witness: &Config, local: &Config, primary: SiteId, sites: Vec<SiteId>) -> Config {
        let star = newest(at_witness, local);
        let epoch = Epoch { major: star.epoch.major + 1, minor: 0 };
        let k = change(star, epoch, self.node, self.nonce, Some(primary), sites, star.mode);
        Config { lease_gen: self.lease_gen, forced: false, ..k }
    }

    /// The primary goes on: with the same S after a restart or a revoked lease (R17).
    ///
    /// # Errors
    /// [`Unfit::NotPrimary`].
    pub fn resume(&self, at_witness: &Config, local: &Config) -> Result<Config, Unfit> {
        let star = newest(at_witness, local);
        let sites = star.sites.clone();
        self.as_primary(at_witness, local).map(|()| self.next(at_witness, local, self.site, sites))
    }

    /// The primary goes on without its peer (R4).
    ///
    /// # Errors
    /// [`Unfit::NotPrimary`].
    pub fn shrink(&self, at_witness: &Config, local: &Config) -> Result<Config, Unfit> {
        self.as_primary(at_witness, local).map(|()| self.next(at_witness, local, self.site, vec![self.site]))
    }

    /// This site becomes the primary and has everything that was acknowledged. The old primary has to have stopped: see
    /// [`super::lease::Watch`].
    ///
    /// # Errors
    /// When something may be missing here.
    pub fn promote(&self, at_witness: &Config, local: &Config) -> Result<Config, Unfit> {
        let star = newest(at_witness, local);
        if !star.has(self.site) {
            return Err(Unfit::LeftOut);
        }
        if local.since != star.since {
            return Err(Unfit::Behind);
        }
        if star.mode != crate::config::Mode::Sync {
            return Err(Unfit::NotSync);
        }
        Ok(self.next(at_witness, local, self.site, vec![self.site]))
    }

    fn as_primary(&self, at_witness: &Config, local: &Config) -> Result<(), Unfit> {
        let is_mine = newest(at_witness, local).primary == Some(self.site);
        if is_mine && !replaces(at_witness, self.site, local) { Ok(()) } else { Err(Unfit::NotPrimary) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use crate::group::testing::{A, B, alone, both, by};
    use crate::group::{Contact, contact, joint, suffix_is_unacked};

    #[test]
    fn a_resume_keeps_the_age_of_s_and_a_shrink_does_not() {
        let (old, k) = (alone(), both());
        let resumed = by(A, 3).resume(&old, &k).unwrap();
        assert_eq!((resumed.since, resumed.base, &resumed.sites), (k.since, k.base, &k.sites));
        assert_eq!((resumed.epoch, resumed.lease_gen, resumed.leader), (Epoch { major: 2, minor: 0 }, 7, NodeId(A.0)));
        let shrunk = by(A, 4).shrink(&resumed, &k).unwrap();
        assert_eq!((shrunk.epoch.major, &shrunk.sites, shrunk.since), (3, &vec![A], shrunk.id()));
    }

    #[test]
    fn a_promotion_is_judged_on_the_newer_of_witness_and_copy() {
        let (at_witness, k) = (alone(), both());
        let promoted = by(B, 3).promote(&at_witness, &k).unwrap();
        assert_eq!((promoted.primary, promoted.base, &promoted.sites), (Some(B), k.since, &vec![B]));
        assert_eq!(contact(&k, B, &promoted), Contact::PeerLeads);
        assert!(suffix_is_unacked(B, &k, &promoted), "what the old primary has more was acknowledged to nobody");
        let shrunk = by(A, 4).shrink(&at_witness, &k).unwrap();
        assert_eq!(by(B, 5).promote(&shrunk, &k), Err(Unfit::LeftOut));
    }

    #[test]
    fn who_has_not_persisted_the_newest_s_is_not_promoted() {
        let shrunk = by(A, 3).shrink(&alone(), &both()).unwrap();
        let again = joint(&shrunk, NodeId(A.0), Nonce([4; 16]), Some(A), vec![A, B], Mode::Sync);
        assert_eq!(by(B, 5).promote(&again, &both()), Err(Unfit::Behind));
        let lazy = Config { mode: Mode::Async, ..both() };
        assert_eq!(by(B, 5).promote(&lazy, &lazy), Err(Unfit::NotSync));
    }

    #[test]
    fn who_was_replaced_neither_resumes_nor_shrinks() {
        let promoted = by(B, 3).promote(&alone(), &both()).unwrap();
        assert_eq!(by(A, 4).resume(&promoted, &both()), Err(Unfit::NotPrimary));
        assert_eq!(by(A, 4).shrink(&promoted, &both()), Err(Unfit::NotPrimary));
    }
}
