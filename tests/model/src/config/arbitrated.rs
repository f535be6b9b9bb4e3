//! Changes of K at the witness (R15 i, R4, R17, section 8), and their refusal (R15 v).

use tidemark_core::group::arbitrated::Proposer;
use tidemark_core::group::members;

use super::data::take;
use super::state::{Kind, Lead, Proposal, State, Volume};
use super::{Groups, Joint, is_joint};
use crate::k::{Id, K, Site, node, nonce, other, site_id};
use crate::mutation::Mutation;

impl Groups {
    /// The newest K that an agent of `site` has persisted.
    pub(super) fn newest(&self, state: &State, site: Site) -> K {
        let all = self.volumes().map(|v| state.agent(site, v).k);
        all.max_by_key(|k| k.id.epoch()).expect("a site has agents")
    }

    /// A nonce that no other K of this epoch has.
    pub(super) fn fresh(&self, state: &State, site: Site, epoch: (u8, u8)) -> u8 {
        if self.is(Mutation::NoNonce) {
            return 0;
        }
        let used = |id: Id| id.epoch() == epoch;
        let ids = state.ids();
        let mut candidates = (0u8..).map(|n| 1 + site as u8 + 2 * n);
        candidates.find(|n| !ids.iter().any(|id| used(*id) && id.nonce == *n)).expect("there is always one more")
    }

    pub(super) fn propose(&self, state: &State, site: Site, kind: Kind) -> Option<State> {
        let (cell, local) = (state.witness, self.newest(state, site));
        let k = match (kind, state.sites[site].lead) {
            (Kind::Withdraw, Lead::Spreads(k)) => self.withdrawal(state, site, k)?,
            (Kind::Lazy, Lead::Idle) => self.lazy(&cell, &local, site)?,
            (Kind::Withdraw | Kind::Lazy, _) => return None,
            (_, Lead::Idle) => self.decided(state, site, kind)?,
            _ => return None,
        };
        if self.is(Mutation::ShrinkAlone) && kind == Kind::Shrink {
            return Some(with_lead(state, site, Lead::Spreads(k)));
        }
        Some(with_lead(state, site, Lead::Asks(Proposal { kind, expected: cell.id, k })))
    }

    fn proposer(&self, state: &State, site: Site, major: u8) -> Proposer {
        let nonce = nonce(self.fresh(state, site, (major, 0)));
        Proposer { site: site_id(site), node: node(site), nonce, lease_gen: 0 }
    }

    /// By the core's rules.
    fn decided(&self, state: &State, site: Site, kind: Kind) -> Option<K> {
        let (cell, local) = (state.witness, self.newest(state, site));
        let major = cell.id.major.max(local.id.major) + 1;
        if major > self.scope.majors {
            return None;
        }
        let proposer = self.proposer(state, site, major);
        let (at_witness, mut copy) = (cell.config(), local.config());
        let judged = if self.is(Mutation::JudgedOnCopy) { local.config() } else { at_witness.clone() };
        if self.is(Mutation::NoSince) && kind == Kind::Promote {
            copy.since = if cell.id.epoch() > local.id.epoch() { cell.config().since } else { copy.since };
        }
        let made = match kind {
            Kind::Resume => proposer.resume(&at_witness, &copy),
            Kind::Shrink => proposer.shrink(&at_witness, &copy),
            _ if local.is_led_by(site) && cell.is_led_by(site) => return None,
            _ => proposer.promote(&judged, &copy),
        };
        let mut k = K::of(&made.ok()?);
        if kind == Kind::Shrink && !is_joint(&local) && !is_joint(&cell) {
            return None; // it is alone already: a resume
        }
        if self.is(Mutation::JudgedOnCopy) {
            k.id.major = major;
            k.since = k.id;
        }
        if self.is(Mutation::BaseNotInherited) {
            k.base = if cell.id.epoch() > local.id.epoch() { cell.since } else { local.since };
        }
        Some(k)
    }

    /// R15 v, by the core's rule: K gives the primary back to the other site.
    fn withdrawal(&self, state: &State, site: Site, refused: K) -> Option<K> {
        let refusing = self.volumes().map(|v| state.agent(site, v).k).find(|k| self.refuses(k, site, &refused))?;
        let newest = self.newest(state, site);
        let major = refused.id.major.max(newest.id.major) + 1;
        if state.witness.id != refused.id || major > self.scope.majors {
            return None;
        }
        let proposer = self.proposer(state, site, major);
        Some(K::of(&proposer.withdraw(&refused.config(), &refusing.config(), &newest.config(), site_id(other(site)))))
    }

    /// The primary tells the witness a K that both sites made.
    fn lazy(&self, cell: &K, local: &K, site: Site) -> Option<K> {
        let is_news = cell.id.is_before(local.id) && cell.id.major == local.id.major;
        (is_news && local.is_led_by(site)).then_some(*local)
    }

    /// R15 v, by the core's rule: a K made at the witness that takes no account of what both sites decided meanwhile.
    fn refuses(&self, mine: &K, site: Site, made: &K) -> bool {
        made.is_led_by(site)
            && members::refuses(&mine.config(), site_id(site), &made.config())
            && !self.is(Mutation::NoBase)
    }

    pub(super) fn decide(&self, state: &State, site: Site, heard: bool) -> Option<State> {
        let Lead::Asks(proposal) = state.sites[site].lead else { return None };
        let (mut after, is_made) = self.carried_out(state, &proposal);
        if !is_made && !heard {
            return None; // nothing happened: as if it was given up
        }
        let is_told = is_made && heard && proposal.kind != Kind::Lazy;
        after.sites[site].lead = if is_told { Lead::Spreads(proposal.k) } else { Lead::Idle };
        Some(after)
    }

    fn carried_out(&self, state: &State, proposal: &Proposal) -> (State, bool) {
        let mut after = *state;
        let is_made = state.witness.id == proposal.expected || self.is(Mutation::BlindWrite);
        if is_made {
            after.witness = proposal.k;
            after.broken.epoch |= !state.witness.id.is_before(proposal.k.id);
        }
        (after, is_made)
    }

    pub(super) fn give_up(&self, state: &State, site: Site) -> Option<State> {
        let mut after = with_lead(state, site, Lead::Idle);
        match state.sites[site].lead {
            Lead::Asks(proposal) if self.scope.late => {
                if state.sites[site].late.is_some() {
                    return None;
                }
                after.sites[site].late = Some(proposal);
            }
            Lead::Asks(_) | Lead::Spreads(_) => {}
            Lead::Idle | Lead::Changes(..) => return None,
        }
        Some(after)
    }

    pub(super) fn decide_late(&self, state: &State, site: Site) -> Option<State> {
        let proposal = state.sites[site].late?;
        let (mut after, _) = self.carried_out(state, &proposal);
        after.sites[site].late = None;
        Some(after)
    }

    pub(super) fn find_own(&self, state: &State, site: Site) -> Option<State> {
        let k = state.witness;
        let is_news = usize::from(k.by) == site && self.volumes().any(|v| state.agent(site, v).k.id.is_before(k.id));
        (state.sites[site].lead == Lead::Idle && is_news).then(|| with_lead(state, site, Lead::Spreads(k)))
    }

    pub(super) fn persist(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let Lead::Spreads(k) = state.sites[site].lead else { return None };
        let mine = state.agent(site, volume).k;
        if !mine.id.is_before(k.id) || self.refuses(&mine, site, &k) {
            return None;
        }
        let mut after = *state;
        take(after.agent_mut(site, volume), site, k);
        if self.volumes().all(|v| !after.agent(site, v).k.id.is_before(k.id)) {
            after.sites[site].lead = Lead::Idle;
        }
        Some(after)
    }

    /// What it was doing, it does no more; nobody goes on waiting for it.
    pub(super) fn forget(&self, state: &State, site: Site) -> Option<State> {
        let left = state.left.losses.checked_sub(1)?;
        let mut after = match state.sites[site].lead {
            Lead::Idle if state.sites[site].verified == 0 => return None,
            Lead::Idle => *state,
            Lead::Changes(Joint::Expand | Joint::Release | Joint::Handover, ..) => self.cancel(state, site)?,
            Lead::Asks(_) | Lead::Spreads(_) => self.give_up(state, site)?,
        };
        after.sites[site].verified = 0;
        after.left.losses = left;
        Some(after)
    }
}

pub(super) fn with_lead(state: &State, site: Site, lead: Lead) -> State {
    let mut after = *state;
    after.sites[site].lead = lead;
    after
}
