//! What befalls a witnessed pair on purpose, and the little that a person does there: switch over, replace what is dead, repair the
//! witness. Everything else has to come right by itself.

use tidemark_core::status::{CopyState, Role, SuspendReason};
use tidemark_core::verb::Verb;

use crate::sim::agents::Errand;
use crate::sim::arbitrated::{Arbitration, Ill, Trouble};
use crate::sim::copy::Copy;
use crate::sim::disk::Crash;
use crate::sim::faults::Fault;
use crate::sim::operator::{Purpose, Step, promote_anyway};
use crate::sim::world::{Ev, MS, World, name, note};

/// Trouble waits no longer for a pair to be whole.
const PATIENT_MS: u64 = 12_000;
/// After so long without a volume somebody repairs the witness.
const GIVES_IN_MS: u64 = 40_000;

impl<C: Copy> World<C> {
    /// True when nobody helps the pair.
    pub(super) fn is_witnessed(&self) -> bool {
        self.arbitration.is_some()
    }

    /// The seed begins: probes and faults of its own.
    pub(super) fn begin_arbitration(&mut self) {
        let Some(arb) = &mut self.arbitration else { return };
        let (terms, fates, fault_ms) = (arb.terms, arb.agents.fates, arb.fault_ms);
        note!(self, [55], "witnessed: {terms:?} {fates:?}");
        self.at(self.now, Ev::Errand(Errand::Probe));
        if fault_ms > 0 {
            self.at(fault_ms * MS, Ev::Errand(Errand::Fault));
        }
    }

    /// True while a step that is due waits.
    pub(super) fn has_to_wait(&mut self, step: Step) -> bool {
        let Some(arb) = &self.arbitration else { return false };
        let waits = !matches!(step, Step::AddReplica) && (!arb.begun || matches!(step, Step::Trouble(_)));
        arb.dead.is_some() || (waits && self.waits_for_calm())
    }

    /// True while what is due waits for the pair to be whole.
    fn waits_for_calm(&mut self) -> bool {
        let (now, whole) = (self.now, self.is_whole());
        let Some(arb) = self.arbitration.as_mut().filter(|arb| arb.patient || !arb.begun) else { return false };
        let since = *arb.waits_since.get_or_insert(now);
        if whole || now - since > PATIENT_MS * MS {
            (arb.waits_since, arb.begun) = (None, true);
        }
        arb.waits_since.is_some()
    }

    /// True while the workload rests for that.
    pub(super) fn is_waiting_for_calm(&self) -> bool {
        self.arbitration.as_ref().is_some_and(|arb| arb.waits_since.is_some())
    }

    /// How long the workload rests after a request.
    pub(super) fn pace(&mut self) -> Option<u64> {
        let arb = self.arbitration.as_mut().filter(|arb| arb.pace > 0)?;
        Some(arb.rng.below(arb.pace))
    }

    // ---- trouble

    /// Trouble begins.
    pub(super) fn befall(&mut self, trouble: Trouble) {
        let target = self.client.target;
        let of = |primary: bool| if primary { target } else { 1 - target };
        match trouble {
            Trouble::Lose { primary, how, away_ms } => self.lose(of(primary), how, away_ms),
            Trouble::TakeOver { how, away_ms } => {
                self.lose(target, how, away_ms);
                let until = self.now + away_ms * MS;
                self.ask_to_take_over(1 - target, until);
            }
            Trouble::Both { how } => {
                for site in [0, 1] {
                    self.crash(site, how);
                    let down = self.rng.log_between(5, 3_000) * MS;
                    self.after(down, Ev::Start(site));
                }
            }
            Trouble::Cut { ms } => {
                self.fired.hit(Fault::Partition);
                self.sever(ms);
            }
            Trouble::OneWay { to_primary, ms, witness_ms, cut_ms } => {
                self.fired.hit(Fault::OneWay);
                self.stall(of(to_primary), ms);
                self.cut_witness(target, witness_ms[0]);
                self.cut_witness(1 - target, witness_ms[1]);
                // What is on its way there arrives when the other direction has long been silent.
                let (silent, severed) = (self.rng_between(0, ms), ms + self.rng_between(0, 1_500));
                self.after(silent * MS, Ev::Errand(Errand::Stall(1 - of(to_primary), severed - silent + cut_ms)));
                self.after(severed * MS, Ev::Errand(Errand::Sever(cut_ms)));
            }
            Trouble::Island { primary, ms, witness_ms, ill } => {
                self.fired.hit(Fault::Island);
                self.sever(ms);
                match ill {
                    Ill::Cut => self.cut_witness(of(primary), witness_ms),
                    Ill::Slow => self.slow_witness(of(primary), witness_ms),
                    Ill::Half => self.halve_witness(of(primary), witness_ms),
                }
            }
            Trouble::Unsure { how, down_ms, after_ms, ms, witness_ms } => {
                self.lose(target, how, down_ms);
                self.halve_witness(target, down_ms + after_ms + witness_ms);
                self.after((down_ms + after_ms) * MS, Ev::Errand(Errand::Sever(ms)));
            }
            Trouble::Relapse { primary, how, ms, down_ms, witness_ms } => {
                self.sever(ms);
                self.lose(of(primary), how, down_ms);
                self.cut_witness(of(primary), down_ms + witness_ms);
            }
            Trouble::Overtake { ms, after_ms, away_ms } => {
                self.sever(ms);
                self.after(after_ms * MS, Ev::Errand(Errand::Lose(target, away_ms)));
            }
            Trouble::LoseWitness => {
                self.fired.hit(Fault::WitnessGone);
                if let Some(arb) = &mut self.arbitration {
                    arb.gone = true;
                    arb.agents.ways.iter_mut().for_each(|way| way.cut_until = u64::MAX);
                }
            }
            Trouble::ByWord(how) => self.call_dead(target, how),
            Trouble::OnPeerLoss(wanted) => {
                self.operator.policy.on_peer_loss = wanted;
                self.verb(target, Verb::SetPolicy(self.operator.policy), Purpose::Policy);
            }
        }
    }

    fn rng_between(&mut self, low: u64, high: u64) -> u64 {
        self.arbitration.as_mut().map_or(low, |arb| arb.rng.between(low, high.max(low)))
    }

    /// A site goes down for a while.
    pub(super) fn lose(&mut self, site: usize, how: Crash, away_ms: u64) {
        self.crash(site, how);
        self.after(away_ms * MS, Ev::Start(site));
    }

    /// Asks a site to take over from one that is down, as long as it is.
    pub(super) fn ask_to_take_over(&mut self, site: usize, until: u64) {
        if self.now > until || self.sites[site].is_primary() || self.sites[1 - site].node.is_some() {
            return;
        }
        self.verb(site, promote_proven(), Purpose::TakeOver);
        self.after(300 * MS, Ev::Errand(Errand::TakeOver(site, until)));
    }

    /// A site that was to go down later goes down.
    pub(super) fn lose_later(&mut self, site: usize, away_ms: u64) {
        if !self.operator.is_ending() {
            self.lose(site, Crash::Power, away_ms);
        }
    }

    /// The link breaks, and stays broken.
    pub(super) fn sever(&mut self, ms: u64) {
        if self.operator.is_ending() {
            return;
        }
        note!(self, [56, ms], "the link is cut for {ms} ms");
        self.break_streams(true);
        self.net.cut_until = self.net.cut_until.max(self.now + ms * MS);
    }

    /// Nothing flows to a site for a while.
    pub(super) fn stall(&mut self, to: usize, ms: u64) {
        if self.operator.is_ending() {
            return;
        }
        note!(self, [57, to, ms], "nothing flows to {} for {ms} ms", name(to));
        let until = self.now + ms * MS;
        for id in self.net.whole() {
            if let Some(conn) = self.net.conn(id) {
                conn.stall(to, until);
            }
        }
    }

    fn cut_witness(&mut self, site: usize, ms: u64) {
        note!(self, [58, site, ms], "{} does not reach the witness for {ms} ms", name(site));
        let until = self.now + ms * MS;
        if let Some(arb) = &mut self.arbitration {
            let way = &mut arb.agents.ways[site];
            way.cut_until = way.cut_until.max(until);
        }
    }

    fn slow_witness(&mut self, site: usize, ms: u64) {
        note!(self, [59, site, ms], "answers of the witness to {} are slow for {ms} ms", name(site));
        let until = self.now + ms * MS;
        if let Some(arb) = &mut self.arbitration {
            arb.agents.ways[site].slow_until = until;
        }
    }

    fn halve_witness(&mut self, site: usize, ms: u64) {
        note!(self, [62, site, ms], "{} gets nothing but leases to the witness for {ms} ms", name(site));
        let until = self.now + ms * MS;
        if let Some(arb) = &mut self.arbitration {
            arb.agents.ways[site].half_until = until;
        }
    }

    /// The ways to the witness suffer now and then.
    pub(super) fn witness_fault(&mut self) {
        if self.operator.is_ending() {
            return;
        }
        let Some(arb) = &mut self.arbitration else { return };
        let Arbitration { rng, fault_ms, .. } = &mut **arb;
        let (ms, next) = (rng.log_between(50, 8_000), rng.between(1, 2 * *fault_ms));
        match rng.below(6) {
            0 | 1 => self.cut_witness(0, ms),
            2 | 3 => self.cut_witness(1, ms),
            4 => [0, 1].into_iter().for_each(|site| self.cut_witness(site, ms)),
            _ => [0, 1].into_iter().for_each(|site| self.slow_witness(site, ms)),
        }
        self.after(next * MS, Ev::Errand(Errand::Fault));
    }

    /// Whoever else may believe to be the primary is asked for something.
    pub(super) fn probe(&mut self) {
        let other = 1 - self.client.target;
        if self.client.outstanding_at(other) < 4
            && let Some(line) = self.open_line_at(other)
        {
            self.fired.hit(Fault::AskedBoth);
            self.issue_read(other, line);
        }
        let next = self.rng_between(2, 120) * if self.operator.is_ending() { 20 } else { 1 };
        self.after(next * MS, Ev::Errand(Errand::Probe));
    }

    /// A person called a site dead, and it was not replaced yet.
    pub(super) fn is_bereaved(&self) -> bool {
        self.arbitration.as_ref().is_some_and(|arb| arb.dead.is_some())
    }

    // ---- the person

    /// What a person does in a witnessed seed.
    pub(super) fn watch_over(&mut self) {
        let target = self.client.target;
        if !self.sites[1].created && (self.operator.has_begun() || self.operator.is_ending()) {
            self.create_replica(1);
        }
        if self.now < self.operator.tried + 400 * MS {
            return;
        }
        self.operator.tried = self.now;
        self.help_the_lost(target);
        if self.arbitration.as_ref().is_some_and(|arb| arb.dead.is_some()) {
            return self.bury();
        }
        if !self.sites[target].is_primary() && self.sites[1 - target].is_primary() {
            return self.retarget(1 - target);
        }
        self.finish_switchover(target);
        self.give_up_unfounded(target, 1 - target);
    }

    /// What has nobody to ask: a volume whose second copy does not exist yet goes on by a person's word, one that needs its witness
    /// waits until somebody repairs that.
    fn help_the_lost(&mut self, target: usize) {
        let waits = self.has_role(target, Role::Suspended(SuspendReason::Restart));
        if self.sites[0].is_primary() || self.sites[1].is_primary() {
            self.operator.moved_at = self.now;
        }
        if waits && !self.sites[1].created && !self.operator.waits_for(target) {
            self.verb(target, promote_anyway(), Purpose::Take);
        }
        if self.now > self.operator.moved_at + GIVES_IN_MS * MS {
            self.repair_witness();
        }
    }

    fn repair_witness(&mut self) {
        if let Some(arb) = self.arbitration.as_mut().filter(|arb| arb.gone) {
            arb.gone = false;
            arb.agents.ways = Default::default();
            note!(self, [61], "the witness is repaired");
        }
    }

    /// Somebody demoted the volume, and nobody was promoted: only who did that ends it.
    fn finish_switchover(&mut self, target: usize) {
        let demoted = [0, 1].into_iter().all(|site: usize| {
            let s = &self.sites[site];
            let status = s.status.as_ref().filter(|_| s.node.is_some());
            !s.created || status.is_some_and(|status| status.role == Role::Secondary)
        });
        let nobody = self.sites[target].status.as_ref().is_some_and(|status| status.config.primary.is_none());
        if self.is_handed_over() {
            return;
        }
        if demoted && nobody && !self.operator.waits_for(0) && !self.operator.waits_for(1) {
            let site = if self.rng.percent(70) { target } else { 1 - target };
            self.verb(site, promote_proven(), Purpose::TakeBack);
        }
    }

    /// A copy that was seeded from what its primary lost in a power cut before it ever counted: a person gives it up. Nothing else
    /// that parts two copies needs one.
    fn give_up_unfounded(&mut self, target: usize, other: usize) {
        let status = self.sites[other].status.as_ref().filter(|_| self.sites[other].node.is_some());
        let Some(CopyState::Diverged { reason }) = status.map(|s| &s.copy) else { return };
        if reason.contains("below the log") && self.sites[target].is_primary() && !self.in_s(target, other) {
            self.verb(other, Verb::Reseed, Purpose::Reseed);
        }
    }

    /// The primary's site is lost for good: a person says so, and it is.
    fn call_dead(&mut self, site: usize, how: Crash) {
        let other = &self.sites[1 - site];
        let able = other.node.is_some() && other.status.as_ref().is_some_and(|s| s.copy == CopyState::Current);
        // Who looks sees that the other one has everything.
        let agree = self.k_at(0).map(|k| k.id()) == self.k_at(1).map(|k| k.id()) && self.in_s(site, 1 - site);
        if !able || !agree || self.operator.is_ending() {
            return;
        }
        note!(self, [60, site], "{} is lost for good", name(site));
        self.hold(site, how);
        let now = self.now;
        if let Some(arb) = &mut self.arbitration {
            (arb.dead, arb.dead_since) = (Some(site), now);
        }
    }

    /// The other site is promoted by a person's word, and the dead one is replaced.
    fn bury(&mut self) {
        let Some(arb) = &self.arbitration else { return };
        let (Some(dead), since) = (arb.dead, arb.dead_since) else { return };
        let heir = 1 - dead;
        let opened = self.sites[heir].is_primary() && !self.in_s(heir, dead);
        if opened && self.now > since + 500 * MS {
            self.retarget(heir);
            self.sites[dead].held = false;
            if self.create_replica(dead) {
                self.fired.hit(Fault::ByWord);
                if let Some(arb) = &mut self.arbitration {
                    arb.dead = None;
                    arb.judge.forget(dead);
                }
            }
        } else if self.sites[heir].node.is_some() && !self.operator.waits_for(heir) {
            self.verb(heir, promote_anyway(), Purpose::Take);
        }
    }

    /// Faults stop.
    pub(super) fn calm_witness(&mut self) {
        let Some(arb) = &mut self.arbitration else { return };
        arb.agents.fates = Default::default();
        if !arb.gone {
            arb.agents.ways = Default::default();
        }
    }

    /// A pair whose witness is gone serves all the same when both sites are there; then somebody repairs the witness. True while that
    /// is to come.
    pub(super) fn is_repairing(&mut self) -> bool {
        let serves = self.sites[self.client.target].is_primary() && self.client.outstanding() == 0;
        let gone = self.arbitration.as_ref().is_some_and(|arb| arb.gone);
        if gone && serves {
            self.repair_witness();
        }
        gone
    }
}

/// Without a word: what is not proven is refused.
fn promote_proven() -> Verb {
    Verb::Promote { assert_peer_fenced: None, max_loss_bytes: None, max_loss_seconds: None, allow_unproven: false }
}
