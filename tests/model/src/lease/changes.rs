//! Restarts, challenges, and changes of K.

use tidemark_core::group::arbitrated::Proposer;
use tidemark_core::group::{Acceptor, joint};
use tidemark_core::ship::AdoptStep;
use tidemark_core::types::Boundary;

use super::messages::touched;
use super::state::{Agent, Proposal, State, WAIT, Watch};
use super::{Leases, Number};
use crate::k::{K, Site, node, nonce, other, site_id};
use crate::mutation::Mutation;

impl Leases {
    /// The newest K that an agent of `site` has persisted.
    fn newest(&self, state: &State, site: Site) -> K {
        let all = self.numbers(site).map(|n| state.agents[site][n].k);
        all.max_by_key(|k| k.id.epoch()).expect("a site has agents")
    }

    pub(super) fn restart(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let mut after = *state;
        after.restarts = state.restarts.checked_sub(1)?;
        let k = state.agents[site][number].k;
        after.agents[site][number] = Agent { waits: state.agents[site][number].waits, ..Agent::started(k) };
        if number == 0 {
            (after.watches[site].still, after.watches[site].changed, after.watches[site].revoked) =
                (None, false, false);
        }
        Some(after)
    }

    /// K* names whom to wait for; another one than before: the wait begins anew.
    pub(super) fn watch(&self, state: &State, site: Site) -> Option<State> {
        let star = self.star(state, site);
        if !star.is_led_by(other(site)) {
            return None;
        }
        let mut after = *state;
        let watch = &mut after.watches[site];
        let target = (star.leader, star.lease_gen);
        let gone = state.grants[other(site)][usize::from(star.leader)] > star.lease_gen;
        let is_new = watch.target != target || watch.still.is_none() || watch.changed;
        if is_new {
            *watch = Watch { target, still: Some(0), changed: false, gone, revoked: false };
        }
        Some(after)
    }

    fn star(&self, state: &State, site: Site) -> K {
        let local = self.newest(state, site);
        if state.witness.id.is_before(local.id) { local } else { state.witness }
    }

    /// The leader of `site` saw the lease unchanged, and heard nothing, for the whole wait.
    fn has_waited(&self, state: &State, site: Site) -> bool {
        let heard = state.agents[site][0].heard;
        let is_still = state.watches[site].still.is_some_and(|age| age >= self.wait());
        is_still && heard >= self.wait()
    }

    pub(super) fn revoke(&self, state: &State, site: Site) -> Option<State> {
        let watch = state.watches[site];
        let (leader, grant) = (usize::from(watch.target.0), watch.target.1);
        let holds = grant != 0 && state.grants[other(site)][leader] == grant && !watch.changed;
        if !self.has_waited(state, site) || watch.revoked || !holds {
            return None;
        }
        let mut after = *state;
        after.grants[other(site)][leader] += 1;
        after.watches[site].revoked = true;
        Some(after)
    }

    /// R16: only who took the lease, or found it taken, after a full wait; with the core's judgement of K.
    pub(super) fn promote(&self, state: &State, site: Site) -> Option<State> {
        let watch = state.watches[site];
        let star = self.star(state, site);
        let is_same = watch.target == (star.leader, star.lease_gen);
        let is_gone = watch.target.1 == 0 || watch.gone || self.is(Mutation::NoLeaseBump);
        let may = is_same && (watch.revoked || self.has_waited(state, site) && is_gone);
        let reclaims = self.is(Mutation::ReclaimAtOnce) && usize::from(star.by) == site;
        if star.is_led_by(site) || !(may || reclaims) {
            return None;
        }
        self.propose(state, site, 0, |p, cell, local| p.promote(cell, local).ok())
    }

    pub(super) fn resume(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let agent = &state.agents[site][number];
        let leads = usize::from(agent.k.leader) == number && agent.k.is_led_by(site);
        let has_to = !agent.open || agent.grant != agent.k.lease_gen;
        if !leads || !has_to {
            return None;
        }
        self.propose(state, site, number, |p, cell, local| p.resume(cell, local).ok())
    }

    pub(super) fn shrink(&self, state: &State, site: Site) -> Option<State> {
        let agent = &state.agents[site][0];
        if !agent.open || !agent.k.has(other(site)) || agent.k.leader != 0 {
            return None;
        }
        self.propose(state, site, 0, |p, cell, local| p.shrink(cell, local).ok())
    }

    /// 3a: the old leader's lease is taken first, without a wait: it serves at the same site.
    pub(super) fn takeover(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let k = state.agents[site][number].k;
        let old = usize::from(k.leader);
        if !k.is_led_by(site) || old == number || state.grants[site][old] > self.scope.majors {
            return None;
        }
        let mut after = self.propose(state, site, number, |p, cell, local| p.resume(cell, local).ok())?;
        if !self.is(Mutation::TakeoverWithoutBump) && state.grants[site][old] == k.lease_gen {
            after.grants[site][old] += 1;
            touched(&mut after, site, old);
        }
        Some(after)
    }

    fn propose(
        &self,
        state: &State,
        site: Site,
        number: Number,
        make: impl FnOnce(
            Proposer,
            &tidemark_core::config::Config,
            &tidemark_core::config::Config,
        ) -> Option<tidemark_core::config::Config>,
    ) -> Option<State> {
        let agent = &state.agents[site][number];
        let local = self.newest(state, site);
        let major = state.witness.id.major.max(local.id.major) + 1;
        if agent.asks.is_some() || agent.grant == 0 || major > self.scope.majors {
            return None;
        }
        let nonce = nonce((1 + site + 2 * number) as u8);
        let proposer = Proposer { site: site_id(site), node: node(site), nonce, lease_gen: agent.grant.into() };
        let k = make(proposer, &state.witness.config(), &local.config())?;
        let k = K { leader: number as u8, ..K::of(&k) };
        let mut after = *state;
        after.agents[site][number].asks = Some(Proposal { expected: state.witness.id, k });
        Some(after)
    }

    pub(super) fn decide(&self, state: &State, site: Site, number: Number, heard: bool) -> Option<State> {
        let proposal = state.agents[site][number].asks?;
        let mut after = *state;
        after.agents[site][number].asks = None;
        if state.witness.id == proposal.expected {
            after.witness = proposal.k;
            if heard && !self.refuses(&state.agents[site][number].k, &proposal.k, site) {
                take(&mut after.agents[site][number], site, proposal.k);
            }
        }
        Some(after)
    }

    pub(super) fn find_own(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let k = state.witness;
        let agent = &state.agents[site][number];
        let is_own = usize::from(k.by) == site && usize::from(k.leader) == number && k.is_led_by(site);
        if agent.asks.is_some() || !is_own || !agent.k.id.is_before(k.id) || self.refuses(&agent.k, &k, site) {
            return None;
        }
        let mut after = *state;
        take(&mut after.agents[site][number], site, k);
        Some(after)
    }

    pub(super) fn spread(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let k = self.newest(state, site);
        let mine = state.agents[site][number].k;
        if !mine.id.is_before(k.id) || self.refuses(&mine, &k, site) {
            return None;
        }
        let mut after = *state;
        take(&mut after.agents[site][number], site, k);
        Some(after)
    }

    /// R15 v: a K made at the witness that takes no account of what both sites decided meanwhile.
    fn refuses(&self, mine: &K, made: &K, site: Site) -> bool {
        made.id.minor == 0 && made.is_led_by(site) && made.base.is_before(mine.since) && !mine.has(site)
    }

    pub(super) fn learn(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let k = self.newest(state, other(site));
        let agent = &state.agents[site][number];
        if !k.is_led_by(other(site)) || !agent.k.id.is_before(k.id) {
            return None;
        }
        let step = if k.has(site) { AdoptStep::Same } else { AdoptStep::Rejoin };
        let mine = agent.k.config();
        let tail = Boundary::default();
        let acceptor = Acceptor {
            me: site_id(site),
            peer: site_id(other(site)),
            mine: &mine,
            serves: agent.open,
            is_sound: true,
            durable: tail,
            holds_tail: true,
        };
        acceptor.adopt(&k.config(), step, &tail).ok()?;
        let mut after = *state;
        take(&mut after.agents[site][number], site, k);
        Some(after)
    }

    /// After a change of primary at the witness: when all agents have K, and nothing was echoed for the whole wait.
    pub(super) fn open(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let agent = &state.agents[site][number];
        let all = self.numbers(site).all(|n| state.agents[site][n].k.id == agent.k.id);
        // A primary by HANDOVER starts frozen until a heartbeat is echoed.
        let was_handed = agent.k.id.minor > 0 && !self.is(Mutation::HandoverServesAtOnce);
        let is_thawed = !was_handed || agent.echoed < WAIT;
        let is_quiet = self.numbers(site).all(|n| state.agents[site][n].heard >= WAIT);
        let may_open = !agent.waits || is_quiet || self.is(Mutation::NoOpeningWait);
        // An agent that its leader lets serve needs no other K.
        let leads = usize::from(agent.k.leader) == number;
        let is_resumed = !agent.restarted || !leads || self.is(Mutation::ResumeWithoutCas);
        if agent.open || !agent.k.is_led_by(site) || !all || !may_open || !is_resumed || !is_thawed {
            return None;
        }
        let mut after = *state;
        let agent = &mut after.agents[site][number];
        (agent.open, agent.waits) = (true, false);
        if self.is(Mutation::HandoverServesAtOnce) && agent.k.id.minor > 0 {
            agent.echoed = 0;
        }
        Some(after)
    }

    pub(super) fn hand_over(&self, state: &State, site: Site) -> Option<State> {
        let k = state.agents[site][0].k;
        let agrees = self.numbers(site).all(|n| state.agents[site][n].k.id == k.id);
        if !k.is_led_by(site) || !k.has(other(site)) || !agrees || k.id.minor >= self.scope.minors {
            return None;
        }
        // Decision 13: what was proposed at the witness could come into force after the other site has opened.
        let is_asking = self.numbers(site).any(|n| state.agents[site][n].asks.is_some());
        if is_asking && !self.is(Mutation::HandoverWhileAsking) {
            return None;
        }
        let to = site_id(other(site));
        let nonce = nonce(1 + site as u8);
        let made = joint(&k.config(), node(site), nonce, Some(to), k.config().sites, k.config().mode);
        let lease_gen = state.agents[other(site)][0].grant;
        let made = K { lease_gen, leader: 0, ..K::of(&made) };
        let made = K { base: made.id, ..made };
        let mut after = *state;
        for number in self.numbers(site) {
            let agent = &mut after.agents[site][number];
            agent.open = false;
            if !self.is(Mutation::DemotionNotDurable) {
                take(agent, site, made);
            }
        }
        after.offered = self.is(Mutation::DemotionNotDurable).then_some(made);
        Some(after)
    }

    pub(super) fn take_office(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let k = state.offered.unwrap_or(self.newest(state, other(site)));
        let gave = |n: Number| state.agents[other(site)][n].k.id == k.id || state.offered.is_some();
        let mine = state.agents[site][number].k;
        let is_mine = k.is_led_by(site) && k.id.minor > 0 && usize::from(k.by) == other(site);
        if !is_mine || !mine.id.is_before(k.id) || !self.numbers(other(site)).all(gave) {
            return None;
        }
        let mut after = *state;
        take(&mut after.agents[site][number], site, k);
        Some(after)
    }
}

/// `agent` persists `k`. What was echoed to it was of another K.
fn take(agent: &mut Agent, site: Site, k: K) {
    let comes_to_lead = k.is_led_by(site) && !agent.k.is_led_by(site);
    agent.open &= k.is_led_by(site);
    agent.waits = k.is_led_by(site) && (agent.waits || comes_to_lead && k.id.minor == 0);
    agent.restarted &= !k.is_led_by(site);
    agent.echoed = if k.since == agent.k.since { agent.echoed } else { WAIT };
    agent.k = k;
}
