//! Renewals, heartbeats, questions for sub-leases: what was sent counts from then.

use super::state::{Question, Renewal, SPAN, State, WAIT};
use super::{Leases, Number};
use crate::k::{Site, other};
use crate::mutation::Mutation;

impl Leases {
    /// Only leaders renew; what another holds lets nothing serve.
    pub(super) fn renew(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let mut after = *state;
        let agent = &mut after.agents[site][number];
        let leads = agent.k.is_led_by(site) && usize::from(agent.k.leader) == number && agent.k.has(other(site));
        if agent.renewal != Renewal::Idle || agent.grant == 0 || !leads || agent.renewed == 0 {
            return None;
        }
        agent.renewal = Renewal::Sent(0);
        Some(after)
    }

    /// A grant that was taken from it is not renewed, which it learns.
    pub(super) fn make(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let Renewal::Sent(age) = state.agents[site][number].renewal else { return None };
        let mut after = *state;
        let agent = &mut after.agents[site][number];
        if agent.grant == state.grants[site][number] {
            agent.renewal = Renewal::Made(age);
            touched(&mut after, site, number);
        } else {
            (agent.renewal, agent.grant, agent.renewed) = (Renewal::Idle, 0, WAIT);
        }
        Some(after)
    }

    pub(super) fn renewed(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let Renewal::Made(age) = state.agents[site][number].renewal else { return None };
        let mut after = *state;
        let agent = &mut after.agents[site][number];
        let age = if self.is(Mutation::RenewalFromAnswer) { 0 } else { age };
        (agent.renewal, agent.renewed) = (Renewal::Idle, agent.renewed.min(age));
        Some(after)
    }

    /// A change of the own lease cell that is answered at once.
    pub(super) fn take_grant(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let is_bounded = state.grants[site][number] < self.scope.majors + 1;
        if state.agents[site][number].grant != 0 || !is_bounded {
            return None;
        }
        let mut after = *state;
        after.grants[site][number] += 1;
        let agent = &mut after.agents[site][number];
        // It serves nothing before a K names it.
        (agent.grant, agent.renewed) = (state.grants[site][number] + 1, 0);
        touched(&mut after, site, number);
        Some(after)
    }

    pub(super) fn beat(&self, state: &State, site: Site) -> Option<State> {
        let leader = self.numbers(site).find(|n| {
            let agent = &state.agents[site][*n];
            agent.k.is_led_by(site) && usize::from(agent.k.leader) == *n && agent.k.has(other(site))
        })?;
        if state.beat.is_some() || state.echo.is_some() {
            return None;
        }
        let mut after = *state;
        after.beat = Some((0, site, state.agents[site][leader].k.id));
        Some(after)
    }

    pub(super) fn hear(&self, state: &State) -> Option<State> {
        let (age, from, k) = state.beat?;
        let mut after = *state;
        after.beat = None;
        let agent = &mut after.agents[other(from)][0];
        agent.heard = 0;
        if agent.k.id == k {
            after.echo = Some((age, from));
        }
        Some(after)
    }

    pub(super) fn echo(&self, state: &State) -> Option<State> {
        let (age, to) = state.echo?;
        let mut after = *state;
        after.echo = None;
        let age = if self.is(Mutation::HeartbeatFromEcho) { 0 } else { age };
        for number in self.numbers(to) {
            let agent = &mut after.agents[to][number];
            if agent.k.is_led_by(to) && usize::from(agent.k.leader) == number {
                agent.echoed = agent.echoed.min(age);
            }
        }
        Some(after)
    }

    pub(super) fn ask(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let mut after = *state;
        let agent = &mut after.agents[site][number];
        let follows = agent.k.is_led_by(site) && usize::from(agent.k.leader) != number;
        if !follows || agent.question != Question::Idle {
            return None;
        }
        agent.question = Question::Sent(0);
        Some(after)
    }

    /// The leader says how long it may itself still serve.
    pub(super) fn answer(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let agent = &state.agents[site][number];
        let Question::Sent(age) = agent.question else { return None };
        let leader = usize::from(agent.k.leader);
        let named = &state.agents[site][leader];
        let is_leader = named.k.is_led_by(site) && usize::from(named.k.leader) == leader && named.open;
        let left = if is_leader { self.left(named, site, leader).unwrap_or(SPAN) } else { 0 };
        let mut after = *state;
        after.agents[site][number].question = Question::Answered(age, left);
        Some(after)
    }

    /// What the leader said counts from when it was asked.
    pub(super) fn receive(&self, state: &State, site: Site, number: Number) -> Option<State> {
        let Question::Answered(age, left) = state.agents[site][number].question else { return None };
        let mut after = *state;
        let agent = &mut after.agents[site][number];
        let left = if self.is(Mutation::SubLeaseFromReceipt) { left } else { left.saturating_sub(age) };
        (agent.question, agent.sub) = (Question::Idle, agent.sub.max(left));
        Some(after)
    }
}

/// The cell of that agent's lease changed: who watches it will see that.
pub(super) fn touched(state: &mut State, site: Site, number: Number) {
    let watch = &mut state.watches[other(site)];
    if usize::from(watch.target.0) == number {
        watch.changed = true;
    }
}
