//! A group whose volumes lie on several agents of a site: what its *members* do together (R5, R15, 3a).
//!
//! A member is the group's part on one agent: one log, one floor, one stream to the member of the same number at the other site. What a
//! member ships and acknowledges is its own matter; K and S are the group's. One member of a site leads: it alone proposes K, and
//! persists each K *before* the others of its site do, so that none of them ever holds one that their leader does not hold.
//!
//! Pure rules: who carries them out keeps the facts.

use super::arbitrated::{Proposer, newest};
use crate::config::{Config, Since};
use crate::types::{Epoch, SiteId};

/// The most members that a group has at a site.
pub const MAX_MEMBERS: usize = 16;

/// Members by number, as a set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Members(u16);

impl Members {
    /// The members `0..count`.
    ///
    /// # Panics
    /// Above [`MAX_MEMBERS`]: a list of members is checked before.
    pub fn first(count: usize) -> Self {
        assert!(count <= MAX_MEMBERS, "{count} members");
        (0..count).collect()
    }

    /// The set and that one. A number that no member can have changes nothing.
    pub fn with(self, member: usize) -> Self {
        Self(self.0 | if member < MAX_MEMBERS { 1 << member } else { 0 })
    }

    /// That one is in the set.
    pub fn has(self, member: usize) -> bool {
        member < MAX_MEMBERS && self.0 & 1 << member != 0
    }

    /// Everyone of `others` is in the set.
    pub fn covers(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    /// Those of either set.
    pub fn or(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Nobody.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_MEMBERS).filter(move |member| self.has(*member))
    }
}

impl FromIterator<usize> for Members {
    fn from_iter<I: IntoIterator<Item = usize>>(members: I) -> Self {
        members.into_iter().fold(Self::default(), Self::with)
    }
}

/// A change of K that both sites make.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Joint {
    /// The other site joins S (R5).
    Expand,
    /// The other site leaves S, or the mode is weakened (R15 iii).
    Release,
    /// The other site becomes the primary (R15 ii).
    Handover,
}

/// Which of the two sites.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// It proposed the change.
    Proposes,
    /// It is asked to agree.
    Accepts,
}

/// A joint change as the members of one site take it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Round {
    /// Which change.
    pub joint: Joint,
    /// Whose members.
    pub side: Side,
    /// Everyone who has to take it.
    pub all: Members,
    /// Those who are ready. An EXPAND: they answer no flush alone any more, or, at the site that joins, have verified that they are
    /// sound and hold the tail that was named, durably. A HANDOVER: they are drained and closed.
    pub prepared: Members,
    /// Those who have persisted K.
    pub persisted: Members,
    /// Every member of the other site has persisted K.
    pub other_has_it: bool,
}

impl Round {
    /// Whether any member may persist K now.
    ///
    /// None does before the last is ready: K would count on one that is not, and may be promoted on by one that is.
    pub fn may_persist(&self) -> bool {
        let is_ready = self.prepared.or(self.persisted).covers(self.all);
        match (self.joint, self.side) {
            (Joint::Expand, _) | (Joint::Handover, Side::Proposes) => is_ready,
            // Who leaves S knows it first: what is weakened before could be promoted on.
            (Joint::Release, Side::Accepts) => true,
            (Joint::Release, Side::Proposes) | (Joint::Handover, Side::Accepts) => self.other_has_it,
        }
    }

    /// Every member has persisted K: the other site may be asked, or answered.
    pub fn is_complete(&self) -> bool {
        self.persisted.covers(self.all)
    }

    /// Nobody has persisted K: it may be forgotten. Afterwards the same K is asked for again, until all have it or the witness
    /// accepts a higher one.
    pub fn may_be_given_up(&self) -> bool {
        self.persisted.is_empty()
    }
}

/// Whether the members of a site that became the primary may open: each has persisted the K that says so. Were one to open before, another
/// could still refuse K ([`refuses`]), and the group would serve at both sites.
pub fn may_open(k: Since, members: impl IntoIterator<Item = Since>) -> bool {
    members.into_iter().all(|held| held == k)
}

/// What a member says of itself when its site is to be promoted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate<'a> {
    /// K as persisted there.
    pub k: &'a Config,
    /// Its copy is complete and trusted.
    pub is_sound: bool,
}

/// Why a group is not promoted: the first of its members that stands against it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Hindrance {
    /// Nothing is heard of it.
    #[error("member {0} of the group does not answer")]
    Silent(usize),
    /// What it has is not to be served.
    #[error("the copy of member {0} of the group is not promotable")]
    Unsound(usize),
}

/// The newest K that a member of the site has persisted, on which a promotion without loss is judged; all of the members, or none: the
/// worst one decides.
///
/// # Errors
/// Who stands against it.
///
/// # Panics
/// Without a member: a group has one.
pub fn judged_on<'a>(members: &[Option<Candidate<'a>>]) -> Result<&'a Config, Hindrance> {
    let mut star: Option<&Config> = None;
    for (number, candidate) in members.iter().enumerate() {
        let candidate = candidate.ok_or(Hindrance::Silent(number))?;
        if !candidate.is_sound {
            return Err(Hindrance::Unsound(number));
        }
        star = Some(star.map_or(candidate.k, |star| newest(candidate.k, star)));
    }
    Ok(star.expect("a group has a member"))
}

/// Whether a member of `site` that holds `mine` refuses `made`, which the witness accepted and which makes its site the primary (R15 v): the
/// witness sees no joint change, and both sites may have left this one out since what `made` was judged on.
pub fn refuses(mine: &Config, site: SiteId, made: &Config) -> bool {
    let is_later = mine.since.epoch > made.base.epoch;
    let differs = !mine.has(site) || mine.member_rev != made.member_rev;
    made.primary == Some(site) && is_later && differs
}

impl Proposer {
    /// Gives back what was accepted by the witness and `refused` by a member that holds `refusing` (R15 v): `other` alone is the
    /// primary again. `local` is the newest K of this site's members.
    pub fn withdraw(&self, refused: &Config, refusing: &Config, local: &Config, other: SiteId) -> Config {
        let epoch = Epoch { major: newest(refused, local).epoch.major + 1, minor: 0 };
        Config {
            epoch,
            nonce: self.nonce,
            proposer: self.node,
            since: Since { epoch, nonce: self.nonce },
            base: refused.since,
            primary: Some(other),
            leader: refusing.leader,
            lease_gen: refusing.lease_gen,
            member_rev: refusing.member_rev,
            sites: vec![other],
            hands_over: false,
            ..refused.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use crate::group::testing::{A, B, alone, both, by};
    use crate::group::{Contact, contact, joint};
    use crate::types::{NodeId, Nonce};

    fn released() -> Config {
        joint(&both(), NodeId(A.0), Nonce([3; 16]), Some(A), vec![A], Mode::Sync)
    }

    fn set<const N: usize>(members: [usize; N]) -> Members {
        members.into_iter().collect()
    }

    fn round(joint: Joint, side: Side) -> Round {
        let nobody = Members::default();
        Round { joint, side, all: Members::first(2), prepared: nobody, persisted: nobody, other_has_it: false }
    }

    fn fit(k: &Config) -> Option<Candidate<'_>> {
        Some(Candidate { k, is_sound: true })
    }

    #[test]
    fn nobody_persists_a_k_before_the_last_member_is_ready() {
        for asked in [
            round(Joint::Expand, Side::Proposes),
            round(Joint::Expand, Side::Accepts),
            round(Joint::Handover, Side::Proposes),
        ] {
            assert!(!asked.may_persist());
            assert!(!Round { prepared: set([1]), ..asked }.may_persist(), "{asked:?}");
            assert!(Round { prepared: set([0, 1]), ..asked }.may_persist(), "{asked:?}");
            let restarted = Round { prepared: set([1]), persisted: set([0]), ..asked };
            assert!(restarted.may_persist(), "who has it needs not be ready once more");
            assert!(!restarted.may_be_given_up() && !restarted.is_complete());
        }
    }

    #[test]
    fn who_leaves_s_knows_it_before_the_primary_relies_on_it() {
        assert!(round(Joint::Release, Side::Accepts).may_persist());
        let primary = Round { prepared: set([0, 1]), ..round(Joint::Release, Side::Proposes) };
        assert!(!primary.may_persist());
        assert!(Round { other_has_it: true, ..primary }.may_persist());
    }

    #[test]
    fn a_group_is_handed_over_when_every_member_has_given_it_up() {
        let taken = round(Joint::Handover, Side::Accepts);
        assert!(!taken.may_persist());
        assert!(Round { other_has_it: true, ..taken }.may_persist());
    }

    #[test]
    fn a_change_goes_over_to_the_other_site_when_every_member_has_persisted_it() {
        let asked = round(Joint::Expand, Side::Proposes);
        assert!(!Round { persisted: set([1]), ..asked }.is_complete());
        assert!(Round { persisted: set([0, 1]), ..asked }.is_complete());
    }

    #[test]
    fn nobody_opens_before_all_have_persisted_the_same_k() {
        let (k, other) = (both().id(), Since { nonce: Nonce([9; 16]), ..both().id() });
        assert!(may_open(k, [k, k]));
        assert!(!may_open(k, [k, alone().id()]));
        assert!(!may_open(k, [k, other]), "an epoch alone says nothing");
    }

    #[test]
    fn a_promotion_is_judged_on_the_newest_k_of_any_member() {
        let (old, new) = (alone(), both());
        for members in [[fit(&old), fit(&new)], [fit(&new), fit(&old)]] {
            assert_eq!(judged_on(&members), Ok(&new));
        }
        let left_out = released();
        let star = judged_on(&[fit(&new), fit(&left_out)]).unwrap();
        assert!(by(B, 4).promote(&old, star).is_err(), "one member was told that its site is left out");
    }

    #[test]
    fn one_member_that_is_silent_or_unsound_stands_against_a_promotion() {
        let k = both();
        let rotten = Some(Candidate { k: &k, is_sound: false });
        assert_eq!(judged_on(&[fit(&k), None]), Err(Hindrance::Silent(1)));
        assert_eq!(judged_on(&[rotten, fit(&k)]), Err(Hindrance::Unsound(0)));
    }

    #[test]
    fn a_promotion_that_was_judged_before_both_sites_left_this_one_out_is_refused_and_given_back() {
        let (k, later) = (both(), released());
        let made = by(B, 4).promote(&alone(), &k).unwrap();
        assert!(!refuses(&k, B, &made), "what it was judged on");
        assert!(refuses(&later, B, &made));
        assert!(!refuses(&later, A, &made), "it is no change of A's own site");
        let back = by(B, 5).withdraw(&made, &later, &later, A);
        assert_eq!((back.primary, &back.sites, back.base), (Some(A), &vec![A], made.since));
        assert_eq!(contact(&made, A, &back), Contact::PeerLeads);
        assert!(back.epoch.major > made.epoch.major && back.since == back.id());
    }

    #[test]
    fn a_k_that_names_another_list_of_members_is_refused() {
        let joined = Config { member_rev: 2, ..both() };
        let made = by(B, 4).promote(&alone(), &alone_with_b()).unwrap();
        assert!(refuses(&joined, B, &made));
    }

    /// What a promotion was judged on before the list of members changed.
    fn alone_with_b() -> Config {
        Config { sites: vec![A, B], ..alone() }
    }

    #[test]
    fn a_set_of_members_holds_what_it_was_given() {
        let some = set([0, 3, MAX_MEMBERS - 1]);
        assert_eq!(some.iter().collect::<Vec<_>>(), [0, 3, MAX_MEMBERS - 1]);
        assert!(Members::first(MAX_MEMBERS).covers(some) && !some.covers(set([1])));
        assert_eq!(some.with(MAX_MEMBERS), some, "there is no such member");
    }
}
