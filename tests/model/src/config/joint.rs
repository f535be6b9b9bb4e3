//! Joint changes of K by the current primary: EXPAND (R5), HANDOVER (R15 ii), RELEASE (R15 iii).

use tidemark_core::config::Mode;
use tidemark_core::group::joint;
use tidemark_core::group::members::{Joint, Members, Round, Side};
use tidemark_core::ship::AdoptStep;

use super::arbitrated::with_lead;
use super::data::{acceptor_of, take};
use super::state::{Lead, MOST, State, UNTOLD, Volume};
use super::{Groups, is_joint};
use crate::k::{BOTH, Id, K, Site, node, nonce, only, other, site_id};
use crate::mutation::Mutation;

/// A change under way: whose, which, its K and the tails that were reported.
type Change = (Joint, K, [u8; MOST]);

impl Groups {
    fn change(&self, state: &State, site: Site) -> Option<Change> {
        match state.sites[site].lead {
            Lead::Changes(joint, k, tails) => Some((joint, k, tails)),
            _ => None,
        }
    }

    pub(super) fn begin(&self, state: &State, site: Site, kind: Joint) -> Option<State> {
        let k = state.agent(site, 0).k;
        let agrees = self.volumes().all(|v| state.agent(site, v).k.id == k.id);
        let is_free = state.sites[site].lead == Lead::Idle && k.is_led_by(site) && k.id.minor < self.scope.minors;
        if !is_free || !agrees || self.is_taken(state, k.id) || is_joint(&k) == (kind == Joint::Expand) {
            return None;
        }
        let is_fit = |v: Volume| {
            let (agent, peer) = (state.agent(site, v), state.peer(site, v));
            kind != Joint::Expand || agent.open && peer.log.is_prefix_of(&agent.log)
        };
        if !self.volumes().all(is_fit) {
            return None;
        }
        let (primary, sites) = match kind {
            Joint::Expand => (site, BOTH),
            Joint::Release => (site, only(site)),
            Joint::Handover => (other(site), BOTH),
        };
        Some(self.changing(state, site, kind, self.made(state, site, &k, primary, sites)))
    }

    /// Some agent has a K of the epoch that would follow `id`, or of a later one of the same major: a proposer gives no epoch to two K.
    fn is_taken(&self, state: &State, id: Id) -> bool {
        let mut all = self.volumes().flat_map(|v| [state.agent(0, v).k.id, state.agent(1, v).k.id]);
        all.any(|other| other.major == id.major && id.is_before(other)) && !self.is(Mutation::NoNonce)
    }

    /// By the core's rule; a HANDOVER sets `base` to its own age.
    fn made(&self, state: &State, site: Site, k: &K, primary: Site, sites: u8) -> K {
        let nonce = nonce(self.fresh(state, site, (k.id.major, k.id.minor + 1)));
        let list = [0, 1].into_iter().filter(|s| sites & only(*s) != 0).map(site_id).collect();
        let k = joint(&k.config(), node(site), nonce, Some(site_id(primary)), list, Mode::Sync);
        let k = K::of(&k);
        if primary == site { k } else { K { base: k.id, ..k } }
    }

    fn changing(&self, state: &State, site: Site, kind: Joint, k: K) -> State {
        let mut after = with_lead(state, site, Lead::Changes(kind, k, [UNTOLD; MOST]));
        after.sites[other(site)].verified = 0;
        after
    }

    /// A leader that knows nothing of it takes up a joint K that some agent has and another lacks.
    pub(super) fn retry(&self, state: &State, site: Site) -> Option<State> {
        if state.sites[site].lead != Lead::Idle {
            return None;
        }
        let mut all = self.volumes().flat_map(|v| [state.agent(site, v).k, state.peer(site, v).k]);
        let k = all.clone().max_by_key(|k| k.id.epoch())?;
        let is_partial = all.any(|other| other.id != k.id && other.id.major == k.id.major);
        if k.id.minor == 0 || usize::from(k.by) != site || !is_partial {
            return None;
        }
        let kind = match (k.is_led_by(site), k.has(other(site))) {
            (false, _) => Joint::Handover,
            (true, true) => Joint::Expand,
            (true, false) => Joint::Release,
        };
        Some(self.changing(state, site, kind, k))
    }

    pub(super) fn cancel(&self, state: &State, site: Site) -> Option<State> {
        self.change(state, site)?;
        let mut after = with_lead(state, site, Lead::Idle);
        after.sites[other(site)].verified = 0;
        for volume in self.volumes() {
            let agent = after.agent_mut(site, volume);
            (agent.held, agent.drained) = (false, false);
        }
        Some(after)
    }

    pub(super) fn prepare(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let (kind, k, mut tails) = self.change(state, site)?;
        let (agent, peer) = (state.agent(site, volume), state.peer(site, volume));
        if agent.k.id == k.id {
            return None;
        }
        let mut after = *state;
        match kind {
            Joint::Expand => {
                after.agent_mut(site, volume).held = true;
                if self.is(Mutation::TailAtPrepare) && !agent.held {
                    tails[volume] = agent.durable;
                    after.sites[site].lead = Lead::Changes(kind, k, tails);
                }
            }
            Joint::Handover => {
                let is_equal = peer.kept() == agent.log && peer.log == agent.log && agent.durable == agent.log.len();
                if !is_equal && !self.is(Mutation::HandoverUnequal) {
                    return None;
                }
                let agent = after.agent_mut(site, volume);
                (agent.open, agent.drained) = (false, true);
            }
            Joint::Release => return None,
        }
        Some(after)
    }

    pub(super) fn persist_joint(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let (kind, k, mut tails) = self.change(state, site)?;
        let agent = state.agent(site, volume);
        let has_it = |v: Volume| state.peer(site, v).k.id == k.id;
        let round = self.round(state, kind, Side::Proposes, site, &k);
        let is_ready = round.prepared.or(round.persisted).has(volume);
        let may = match kind {
            Joint::Release if self.is(Mutation::ReleasePrimaryFirst) => true,
            Joint::Release if self.is(Mutation::ReleaseByOne) => self.volumes().any(has_it),
            Joint::Release => round.may_persist(),
            Joint::Expand | Joint::Handover => is_ready && round.may_persist(),
        };
        if !may || k.id.is_before(agent.k.id) {
            return None;
        }
        if !(self.is(Mutation::TailAtPrepare) && tails[volume] != UNTOLD) {
            tails[volume] = agent.durable;
        }
        let mut after = with_lead(state, site, Lead::Changes(kind, k, tails));
        take(after.agent_mut(site, volume), site, k);
        Some(after)
    }

    /// A joint change as the members of `site` take it, for the core's rule.
    fn round(&self, state: &State, joint: Joint, side: Side, site: Site, k: &K) -> Round {
        let has_it = |s: Site| self.volumes().filter(move |v| state.agent(s, *v).k.id == k.id).collect::<Members>();
        let is_prepared = |v: &Volume| match (joint, side) {
            (Joint::Expand, Side::Proposes) => state.agent(site, *v).held,
            (Joint::Expand, Side::Accepts) => state.sites[site].verified & 1 << v != 0,
            (Joint::Release | Joint::Handover, _) => state.agent(site, *v).drained,
        };
        let (all, prepared) = (Members::first(self.scope.agents), self.volumes().filter(is_prepared).collect());
        Round { joint, side, all, prepared, persisted: has_it(site), other_has_it: has_it(other(site)).covers(all) }
    }

    pub(super) fn verify(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let (Joint::Expand, k, tails) = self.change(state, other(site))? else { return None };
        let (agent, primary) = (state.agent(site, volume), state.peer(site, volume));
        if self.volumes().any(|v| tails[v] == UNTOLD) {
            return None;
        }
        let tail = primary.log.upto(tails[volume]);
        let holds = tail.is_prefix_of(&agent.log);
        let passes = acceptor_of(agent, site, holds, |a| a.expand(&k.config(), &tail.boundary(tail.len())).is_ok());
        if !passes && !self.is(Mutation::ExpandUnverified) {
            return None;
        }
        let mut after = *state;
        after.sites[site].verified |= 1 << volume;
        Some(after)
    }

    /// An agent of the other site persists the joint K.
    pub(super) fn adopt(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let (kind, k, _) = self.change(state, other(site))?;
        let agent = state.agent(site, volume);
        if !agent.k.id.is_before(k.id) {
            return None;
        }
        let may = match kind {
            Joint::Expand if self.is(Mutation::VerifyEach) => state.sites[site].verified & 1 << volume != 0,
            Joint::Expand => self.round(state, kind, Side::Accepts, site, &k).may_persist(),
            Joint::Release => acceptor_of(agent, site, true, |acceptor| {
                acceptor.adopt(&k.config(), AdoptStep::Release, &agent.log.boundary(0)).is_ok()
            }),
            Joint::Handover => self.may_be_handed(state, site, volume, &k),
        };
        if !may {
            return None;
        }
        let mut after = *state;
        take(after.agent_mut(site, volume), site, k);
        Some(after)
    }

    /// Every agent of the old primary has demoted itself, and the logs are equal.
    fn may_be_handed(&self, state: &State, site: Site, volume: Volume, k: &K) -> bool {
        let (agent, old) = (state.agent(site, volume), state.peer(site, volume));
        let gave = match self.is(Mutation::DemotionNotDurable) {
            true => self.volumes().all(|v| state.peer(site, v).drained || state.peer(site, v).k.id == k.id),
            false => self.round(state, Joint::Handover, Side::Accepts, site, k).may_persist(),
        };
        let is_equal = agent.log == old.log && agent.durable == agent.log.len();
        gave && agent.k.is_led_by(other(site)) && (is_equal || self.is(Mutation::HandoverUnequal))
    }
}
