//! Writes, shipping, acknowledgements; opening, restarting, following.

use tidemark_core::group::Acceptor;
use tidemark_core::group::members::may_open;
use tidemark_core::ship::AdoptStep;

use super::state::{Ack, Agent, State, Volume};
use super::{Groups, is_joint};
use crate::k::{K, Site, other, site_id};
use crate::log::bit;
use crate::mutation::Mutation;

impl Groups {
    pub(super) fn write(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let agent = state.agent(site, volume);
        if !agent.open || agent.held || state.written[volume] >= self.scope.writes {
            return None;
        }
        let mut after = *state;
        after.written[volume] += 1;
        let id = after.written[volume];
        let agent = after.agent_mut(site, volume);
        let is_in = agent.log.push(id);
        if self.scope.coarse {
            agent.durable = agent.log.len();
        }
        is_in.then_some(after)
    }

    pub(super) fn sync(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let len = state.agent(site, volume).log.len();
        let mut after = *state;
        after.agent_mut(site, volume).durable = len;
        Some(after)
    }

    /// R3: what comes from a primary whose K this agent has confirmed is taken as far as it continues the log.
    pub(super) fn ship(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let (from, to) = (state.agent(site, volume), state.peer(site, volume));
        let is_confirmed = to.k.is_led_by(site) && !from.k.id.is_before(to.k.id);
        let is_taken = is_confirmed || self.is(Mutation::AppendOfAnyEpoch);
        let continues = to.log.is_prefix_of(&from.log) && to.log.len() < from.log.len();
        if !from.k.is_led_by(site) || !is_taken || !continues {
            return None;
        }
        let mut after = *state;
        after.broken.unsealed |= to.open; // an open device's content changes under its application
        let to = after.agent_mut(other(site), volume);
        to.log = from.log;
        if self.scope.coarse {
            to.durable = to.log.len();
        }
        if self.is(Mutation::AppendCarriesK) && to.k.id.is_before(from.k.id) {
            take(to, other(site), from.k);
        }
        Some(after)
    }

    pub(super) fn ack(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let ack = self.acknowledged(state, site, volume)?;
        let mut after = *state;
        after.agent_mut(site, volume).ack = ack;
        Some(after)
    }

    /// R2 c: what the peer says now; one that comes under another K does not count.
    fn acknowledged(&self, state: &State, site: Site, volume: Volume) -> Option<Ack> {
        let (agent, peer) = (state.agent(site, volume), state.peer(site, volume));
        let is_of_k = peer.k.id == agent.k.id
            || self.is(Mutation::AckOfAnyEpoch) && peer.k.is_led_by(site)
            || self.is(Mutation::AppendOfAnyEpoch);
        let is_wanted = agent.k.is_led_by(site) && is_joint(&agent.k) && is_of_k;
        is_wanted.then(|| Ack { len: peer.durable, last: peer.log.at(peer.durable) })
    }

    /// R2.
    pub(super) fn flush(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let agent = state.agent(site, volume);
        let is_durable = agent.durable == agent.log.len() || self.is(Mutation::FlushBeforeSync);
        let sites = self.waits_for(state, site, agent);
        let is_ready = sites & !crate::k::only(site) == 0 || self.counts(state, site, volume);
        if !agent.open || agent.held || agent.log.is_empty() || !is_durable || !is_ready {
            return None;
        }
        let mut after = promised(state, volume, agent, agent.k.sites);
        // What was acknowledged earlier may be counted later, unless acknowledgements are not delayed.
        after.broken.late |= self.scope.coarse && self.is_replaced(state, site, &agent.k);
        Some(after)
    }

    /// A device of the other site is open under a newer K.
    fn is_replaced(&self, state: &State, site: Site, k: &K) -> bool {
        self.volumes().map(|v| state.peer(site, v)).any(|peer| peer.open && k.id.is_before(peer.k.id))
    }

    /// The sites that a flush waits for.
    fn waits_for(&self, state: &State, site: Site, agent: &Agent) -> u8 {
        let is_shrinking = match state.sites[site].lead {
            super::state::Lead::Spreads(k) => !is_joint(&k),
            _ => false,
        };
        let goes_alone = self.is(Mutation::FlushWithoutPeer) || self.is(Mutation::SoloBeforePersisted) && is_shrinking;
        if goes_alone { crate::k::only(site) } else { agent.k.sites }
    }

    /// R2 c: the peer's acknowledgement covers the log, of just this history.
    fn counts(&self, state: &State, site: Site, volume: Volume) -> bool {
        let agent = state.agent(site, volume);
        let now = if self.scope.coarse { self.acknowledged(state, site, volume) } else { None };
        let Ack { len, last } = now.unwrap_or(agent.ack);
        let any = self.is(Mutation::AckOfAnyIncarnation) || self.is(Mutation::SameIncarnation);
        len >= agent.log.len() && (any || agent.log.at(len) == last)
    }

    /// R7, R10, R15 v: every agent of the site has persisted K, and the whole log is durable on S.
    pub(super) fn open(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let (agent, peer) = (state.agent(site, volume), state.peer(site, volume));
        let all_have_it = may_open(agent.k.id.core(), self.volumes().map(|v| state.agent(site, v).k.id.core()));
        let is_ready = !agent.open && !agent.drained && agent.durable == agent.log.len();
        let is_forward = !is_joint(&agent.k) || self.is_rolled_forward(agent, peer);
        if !agent.k.is_led_by(site) || !is_ready || !is_forward || !(all_have_it || self.is(Mutation::OpenBeforeAll)) {
            return None;
        }
        let mut after = promised(state, volume, agent, agent.k.sites);
        let owed = state.sites.iter().fold(0, |owed, site| owed | site.owed[volume]);
        after.broken.opened |= owed & !agent.log.set() != 0;
        after.broken.promotion |= self.volumes().any(|v| {
            let k = state.peer(site, v).k;
            k.is_led_by(other(site)) && !k.has(site) && agent.k.base.is_before(k.id) && k.id.is_before(agent.k.id)
        });
        after.agent_mut(site, volume).open = true;
        Some(after)
    }

    fn is_rolled_forward(&self, agent: &Agent, peer: &Agent) -> bool {
        if self.is(Mutation::OpenWithoutRollForward) {
            return true;
        }
        let is_equal = match self.is(Mutation::SameIncarnation) {
            true => peer.durable >= agent.log.len(),
            false => peer.kept() == agent.log && peer.log == agent.log,
        };
        peer.k.id == agent.k.id && is_equal
    }

    /// R7a.
    pub(super) fn fetch(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let (agent, peer) = (state.agent(site, volume), state.peer(site, volume));
        let has_more = agent.log.is_prefix_of(&peer.log) && agent.log.len() < peer.log.len();
        let may = agent.k.is_led_by(site) && !agent.open && peer.k.is_led_by(site) && !peer.open;
        if !may || !has_more || self.is(Mutation::SameIncarnation) {
            return None;
        }
        let mut after = *state;
        after.agent_mut(site, volume).log = peer.log;
        Some(after)
    }

    pub(super) fn restart(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let left = state.left.restarts.checked_sub(1)?;
        let mut after = *state;
        after.left.restarts = left;
        let agent = after.agent_mut(site, volume);
        agent.log.truncate(agent.durable);
        (agent.open, agent.held, agent.drained, agent.ack) = (false, false, false, Ack::default());
        Some(after)
    }

    /// R3: a newer K is learned from the site that leads, by the core's own acceptor.
    pub(super) fn learn(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let from = other(site);
        let newest = self.volumes().map(|v| state.agent(from, v).k).filter(|k| k.is_led_by(from));
        let k = newest.max_by_key(|k| k.id.epoch())?;
        let agent = state.agent(site, volume);
        if !agent.k.id.is_before(k.id) {
            return None;
        }
        let step = if k.has(site) { AdoptStep::Same } else { AdoptStep::Rejoin };
        let may = acceptor_of(agent, site, true, |acceptor| {
            acceptor.adopt(&k.config(), step, &state.peer(site, volume).log.boundary(0)).is_ok()
        });
        if !may && !self.is(Mutation::ListedWithoutCheck) {
            return None;
        }
        let mut after = *state;
        take(after.agent_mut(site, volume), site, k);
        Some(after)
    }

    /// R13, R14: what the primary's log does not have is sealed, then cut.
    pub(super) fn rejoin(&self, state: &State, site: Site, volume: Volume) -> Option<State> {
        let (agent, primary) = (state.agent(site, volume), state.peer(site, volume));
        let follows = agent.k.is_led_by(other(site)) && !primary.k.id.is_before(agent.k.id);
        let is_ahead = !agent.log.is_prefix_of(&primary.log);
        if !primary.open || !primary.k.is_led_by(other(site)) || !follows || !is_ahead {
            return None;
        }
        let common = agent.log.common(&primary.log);
        let suffix = agent.log.set() & !agent.log.upto(common).set();
        let mut after = *state;
        match self.is(Mutation::CutUnsealed) {
            true => after.broken.unsealed |= agent.durable > common,
            false => after.sites[site].sealed[volume] |= suffix & after.sites[site].owed[volume],
        }
        let agent = after.agent_mut(site, volume);
        agent.log.truncate(common);
        agent.durable = agent.durable.min(common);
        Some(after)
    }
}

/// Everything in the log of `agent` is promised: `sites` owe it.
fn promised(state: &State, volume: Volume, agent: &Agent, sites: u8) -> State {
    let mut after = *state;
    for (number, site) in after.sites.iter_mut().enumerate() {
        if sites & crate::k::only(number) != 0 {
            site.owed[volume] |= agent.log.records().iter().fold(0, |set, id| set | bit(*id));
        }
    }
    after
}

/// `agent` of `site` persists `k`.
pub(super) fn take(agent: &mut Agent, site: Site, k: K) {
    (agent.k, agent.held, agent.ack) = (k, false, Ack::default());
    if !k.is_led_by(site) {
        (agent.open, agent.drained) = (false, false);
    }
}

/// Asks the core's acceptor for `agent` of `site`.
pub(super) fn acceptor_of(agent: &Agent, site: Site, holds_tail: bool, ask: impl FnOnce(Acceptor<'_>) -> bool) -> bool {
    let mine = agent.k.config();
    ask(Acceptor {
        me: site_id(site),
        peer: site_id(other(site)),
        mine: &mine,
        serves: agent.open,
        is_sound: true,
        durable: agent.log.boundary(agent.durable),
        holds_tail,
    })
}
