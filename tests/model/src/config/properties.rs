//! The invariants of section 14 that apply, and what has to happen for the search to show anything.

use std::cell::RefCell;
use std::collections::HashMap;

use stateright::Property;
use tidemark_core::group::arbitrated::Proposer;
use tidemark_core::group::{Contact, contact};

use super::state::{Lead, State};
use super::{Groups, is_joint};
use crate::k::{Id, K, Site, node, nonce, other, site_id};

pub(super) fn all() -> Vec<Property<Groups>> {
    vec![
        Property::always("I1 one primary per epoch", one_primary),
        Property::always("I2 an acknowledged flush is durable on S", flushes_are_durable),
        Property::always("I3 epochs rise, one K per epoch", epochs_rise),
        Property::always("I4 lossless promotion only from S", |_, state: &State| !state.broken.promotion),
        Property::always("I6 nothing is overwritten unsealed", |_, state: &State| !state.broken.unsealed),
        Property::always("I7 what opens has all that was promised", |_, state: &State| !state.broken.opened),
        Property::always("I8 contact is total and symmetric", contact_is_symmetric),
        Property::always("I9 protected means promotable", protected_is_promotable),
        Property::sometimes("B serves", |model, state: &State| serves(model, state, 1, |_| true)),
        Property::sometimes("A goes on alone", |model, state| {
            serves(model, state, 0, |k| k.id.major > 1 && !is_joint(k))
        }),
    ]
}

fn one_primary(model: &Groups, state: &State) -> bool {
    let open = |site: Site| model.volumes().map(move |v| state.agent(site, v)).filter(|agent| agent.open);
    !state.broken.late && !open(0).any(|a| open(1).any(|b| a.k.id.epoch() == b.k.id.epoch()))
}

fn serves(model: &Groups, state: &State, site: Site, wanted: impl Fn(&K) -> bool) -> bool {
    model.volumes().map(|v| state.agent(site, v)).any(|agent| agent.open && wanted(&agent.k))
}

fn flushes_are_durable(model: &Groups, state: &State) -> bool {
    model.volumes().all(|v| {
        [0, 1].into_iter().all(|site| {
            let has = state.agent(site, v).kept().set() | state.sites[site].sealed[v];
            state.sites[site].owed[v] & !has == 0
        })
    })
}

fn epochs_rise(model: &Groups, state: &State) -> bool {
    let agents = || model.volumes().flat_map(|v| [state.agent(0, v).k.id, state.agent(1, v).k.id]);
    let held = || agents().chain([state.witness.id]);
    let agrees = |a: Id, b: Id| a.epoch() != b.epoch() || a == b;
    !state.broken.epoch && agents().all(|a| held().all(|b| agrees(a, b)))
}

fn contact_is_symmetric(_: &Groups, state: &State) -> bool {
    let (a, b) = (state.agent(0, 0).k, state.agent(1, 0).k);
    a == b || CONTACTS.with_borrow_mut(|known| *known.entry((a, b)).or_insert_with(|| is_symmetric(&a, &b)))
}

thread_local! {
    /// What was asked of the core already: few K are compared in many states.
    static CONTACTS: RefCell<HashMap<(K, K), bool>> = RefCell::default();
}

/// What both conclude from each other's K fits together. With a witness nobody decides alone.
fn is_symmetric(a: &K, b: &K) -> bool {
    use Contact::{AdoptTheirs, MineIsNewer, PeerLeads, Same};
    let (a, b) = (a.config(), b.config());
    matches!(
        (contact(&a, site_id(1), &b), contact(&b, site_id(0), &a)),
        (Same, Same) | (MineIsNewer, PeerLeads | AdoptTheirs) | (PeerLeads | AdoptTheirs, MineIsNewer)
    )
}

/// While a primary's status says protected, and no change of its own is on its way, its peer could be promoted.
fn protected_is_promotable(model: &Groups, state: &State) -> bool {
    [0, 1].into_iter().all(|site| {
        let k = state.agent(site, 0).k;
        let agrees = |s: Site| model.volumes().all(|v| state.agent(s, v).k.id == k.id);
        let is_open = model.volumes().all(|v| state.agent(site, v).open);
        let is_protected = k.is_led_by(site) && is_joint(&k) && is_open && agrees(site) && agrees(other(site));
        !is_protected || k.id.is_before(state.witness.id) || would_promote(other(site), &state.witness, &k)
    })
}

fn would_promote(site: Site, cell: &K, local: &K) -> bool {
    let proposer = Proposer { site: site_id(site), node: node(site), nonce: nonce(9), lease_gen: 0 };
    proposer.promote(&cell.config(), &local.config()).is_ok()
}

impl State {
    /// Every K that somebody holds or has under way.
    pub(super) fn ids(&self) -> Vec<Id> {
        let mut ids = vec![self.witness.id];
        for site in &self.sites {
            ids.extend(site.agents.iter().map(|agent| agent.k.id));
            ids.extend(site.late.map(|proposal| proposal.k.id));
            match site.lead {
                Lead::Idle => {}
                Lead::Asks(proposal) => ids.push(proposal.k.id),
                Lead::Spreads(k) | Lead::Changes(_, k, _) => ids.push(k.id),
            }
        }
        ids
    }

    /// The same with the volumes in the other order.
    pub(super) fn swapped(&self) -> Self {
        let mut state = *self;
        state.written.swap(0, 1);
        for site in &mut state.sites {
            site.agents.swap(0, 1);
            site.owed.swap(0, 1);
            site.sealed.swap(0, 1);
            site.verified = (site.verified & 1) << 1 | site.verified >> 1;
            if let Lead::Changes(_, _, tails) = &mut site.lead {
                tails.swap(0, 1);
            }
        }
        state
    }
}
