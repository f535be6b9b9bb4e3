//! What befalls the four, until it is over.

use tidemark_core::config::{Mode, OnPeerLoss, Policy};
use tidemark_core::event::Input;
use tidemark_core::status::{CopyState, Role};
use tidemark_core::verb::Verb;

use super::party::{MEMBERS, PARTIES, name, party, site_id};
use super::streams::{between, within};
use super::world::{Ev, World, note};
use crate::sim::disk::Crash;
use crate::sim::faults::Fault;
use crate::sim::net::KEEPALIVE_MS;
use crate::sim::world::MS;

/// Nothing happens any more after that.
const TROUBLE_MS: u64 = 240_000;
/// After that without trouble everything is well.
const PATIENCE_MS: u64 = 600_000;
/// A group of which no member serves is promoted by the operator after this time, where there is no witness.
const PROMOTE_MS: u64 = 8_000;

impl World {
    /// Something goes wrong.
    pub(super) fn trouble(&mut self) {
        if self.is_quiet {
            return;
        }
        let next = self.rng.log_between(300, 20_000) * MS;
        self.after(next, Ev::Trouble);
        let lasts = self.rng.log_between(20, 15_000) * MS;
        match self.rng.below(16) {
            0..=3 => {
                let p = self.rng.below(PARTIES as u64) as usize;
                self.go_down(p, lasts);
            }
            4..=5 => {
                let site = self.rng.below(2) as usize;
                (0..MEMBERS).for_each(|member| self.go_down(party(site, member), lasts));
            }
            6 => (0..PARTIES).for_each(|p| self.go_down(p, lasts)),
            7..=8 => {
                let way = self.any_way();
                self.cut(way, lasts);
            }
            9 => (0..MEMBERS).for_each(|member| self.cut(between(member), lasts)),
            10 => {
                let site = self.rng.below(2) as usize;
                self.cut(within(party(site, 0)), lasts);
            }
            11..=12 => self.stall(lasts),
            13 => {
                let site = self.rng.below(2) as usize;
                self.witness_cut[site] = self.now + lasts;
            }
            14 => self.darken(),
            _ => self.switch_over(),
        }
    }

    fn any_way(&mut self) -> usize {
        self.rng.below(self.ways.len() as u64) as usize
    }

    fn go_down(&mut self, p: usize, lasts: u64) {
        let crash = if self.rng.percent(50) { Crash::Kill } else { Crash::Power };
        let lasts = if self.rng.percent(30) { 5 * MS } else { lasts };
        self.crash(p, crash);
        let until = self.now + lasts + self.rng.log_between(MS, 200 * MS);
        self.parties[p].down_until = Some(until);
        self.at(until, Ev::Start(p));
    }

    fn cut(&mut self, way: usize, lasts: u64) {
        self.fired.hit(Fault::Partition);
        note!(self, [17, way], "the way of {:?} is cut for {} ms", self.ways[way].ends.map(name), lasts / MS);
        let slow = self.rng.percent(50);
        self.break_way(way, slow, None);
        self.ways[way].net.cut_until = self.now + lasts;
    }

    fn stall(&mut self, lasts: u64) {
        let (way, to) = (self.any_way(), self.rng.below(2) as usize);
        self.stall_way(way, to, lasts.min(KEEPALIVE_MS * MS));
    }

    /// A site is cut off from everything, and what its leader says to its member comes late while their lease runs out.
    fn darken(&mut self) {
        let site = self.serving_site().filter(|_| self.rng.percent(80)).unwrap_or(self.rng.below(2) as usize);
        let lasts = self.rng.between(5_000, 25_000) * MS;
        self.witness_cut[site] = self.now + lasts;
        (0..MEMBERS).for_each(|member| self.cut(between(member), lasts));
        let span = self.terms.map_or(1_000 * MS, |terms| terms.span_ns);
        let (begins, stalls) = (self.rng.below(span), self.rng.between(1_500, 5_000) * MS);
        self.after(begins, Ev::Stall(within(party(site, 0)), 1, stalls));
    }

    /// The operator moves the group to the other site.
    fn switch_over(&mut self) {
        let Some(site) = self.serving_site() else { return };
        self.fired.hit(Fault::Switchover);
        note!(self, [18, site], "the operator switches over from {}", name(party(site, 0)));
        if self.rng.percent(50) {
            let to = site_id(1 - site);
            return self.verb(party(site, 0), Verb::Switchover { to, force: false });
        }
        self.verb(party(site, 0), Verb::Demote { force: false });
        self.promote_next = Some((1 - site, self.now + 3_000 * MS));
    }

    /// The site whose leader serves.
    fn serving_site(&self) -> Option<usize> {
        (0..2).find(|site| self.parties[party(*site, 0)].role == Role::Primary)
    }

    fn verb(&mut self, p: usize, verb: Verb) {
        self.next_verb += 1;
        let id = tidemark_core::event::VerbId(self.next_verb);
        self.tell(p, Input::Verb(id, verb));
    }

    fn promote(&mut self, site: usize) {
        let verb = Verb::Promote {
            assert_peer_fenced: None,
            max_loss_bytes: None,
            max_loss_seconds: None,
            allow_unproven: false,
        };
        self.verb(party(site, 0), verb);
    }

    /// The operator looks, and ends the run when all is well.
    pub(super) fn doctor(&mut self) {
        self.after(500 * MS, Ev::Doctor);
        if let Some((site, _)) = self.promote_next.take_if(|(_, at)| self.now >= *at) {
            self.promote(site);
        }
        match self.serving_site() {
            Some(_) => self.idle_since = self.now,
            None if self.now >= self.idle_since + PROMOTE_MS * MS => {
                self.idle_since = self.now;
                let site = self.rng.below(2) as usize;
                self.promote(site);
            }
            None => {}
        }
        self.give_up_diverged();
        let p = self.rng.below(PARTIES as u64) as usize;
        if self.rng.percent(30) && self.serving_site().is_some_and(|site| site != self.parties[p].site) {
            self.probe(p);
        }
        let done = self.clients.iter().all(|client| client.remaining == 0);
        if !self.is_quiet && (done || self.now >= TROUBLE_MS * MS) {
            self.heal();
        }
        if self.is_quiet {
            match self.is_settled() {
                Ok(_) => self.finished = true,
                Err(why) if self.now >= self.quiet_since + PATIENCE_MS * MS => {
                    self.fail(format!("not settled {PATIENCE_MS} ms after the last trouble: {why}"));
                }
                Err(_) => {}
            }
        }
    }

    /// A person names the copies of the site that does not serve as the losers.
    fn give_up_diverged(&mut self) {
        let Some(site) = self.serving_site() else { return };
        for p in (0..MEMBERS).map(|member| party(1 - site, member)) {
            let now = self.parties[p].clock.at(self.now);
            let Some(node) = self.parties[p].node.as_ref() else { continue };
            if matches!(node.status(now).copy, CopyState::Diverged { .. }) {
                self.fired.hit(Fault::Reseed);
                self.verb(p, Verb::Reseed);
            }
        }
    }

    fn heal(&mut self) {
        note!(self, [19], "no more trouble");
        (self.is_quiet, self.quiet_since) = (true, self.now);
        self.witness_cut = [0; 2];
        self.slow_message = 0;
        for way in &mut self.ways {
            way.net.cut_until = 0;
        }
        for p in 0..PARTIES {
            self.at(self.now, Ev::Start(p));
            self.parties[p].down_until = None;
        }
    }

    /// What the group is to be.
    pub(super) fn policy(&mut self, is_witnessed: bool) -> Policy {
        Policy {
            mode: Mode::Sync,
            log_bytes: 8 << 20,
            on_peer_loss: if is_witnessed { OnPeerLoss::Witness } else { OnPeerLoss::Suspend },
            auto_failover: is_witnessed,
            peer_loss_ms: *self.rng.pick(&[1_000, 2_000, 5_000]),
            ..Policy::default()
        }
    }
}
