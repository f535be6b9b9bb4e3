//! Changes of K by the primary while it serves: EXPAND (R5), RELEASE, a change of mode; and the follower's answers.

use crate::config::{Config, Mode, OnPeerLoss};
use crate::event::ConnId;
use crate::group::{self, Acceptor};
use crate::node::meta::AfterK;
use crate::node::{Node, Stage};
use crate::planted::{Planted, planted};
use crate::ship::sender::Source;
use crate::ship::{AdoptStep, Hello, Message, Refusal};
use crate::site::Readiness;
use crate::status::{Role, SuspendReason};
use crate::types::{Boundary, Epoch, Lsn, Nanos, Nonce, SiteId};

/// EXPAND starts when the peer is no further behind than this.
const EXPAND_LAG_BYTES: u64 = 64 << 20;

/// A change under way.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// K with a larger S (or a stronger mode) is persisted here, then the peer has to hold `tail` and persist it too.
    Expand { config: Config, tail: Option<Boundary>, asked: bool },
    /// The peer leaves S (or the mode is weakened): it persists K first.
    Release { config: Config },
    /// Only this copy is concerned.
    Local,
}

/// What the peer's K asks of the members of a group, where there are several.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// It is answered when all have persisted it.
    of_all: bool,
    /// What all have to be before.
    wanted: Option<Readiness>,
}

impl Node {
    /// What the operator's policy asks K to be, here and now.
    fn wanted(&self) -> (Vec<SiteId>, Mode) {
        let mode = self.superblock.policy.mode;
        match (mode, self.superblock.peer) {
            (Mode::Async, _) | (_, None) => (vec![self.site], mode),
            (_, Some(peer)) => (vec![self.site, peer], mode),
        }
    }

    pub(super) fn new_nonce(&mut self) -> Nonce {
        Nonce(self.rng.id())
    }

    /// Starts or continues a change of K.
    pub(super) fn pump_change(&mut self, now: Nanos) {
        let busy = self.is_persisting_k() || self.is_led() || self.is_rallying();
        if !self.may_change() || busy || !matches!(self.stage, Stage::Running) {
            return;
        }
        match self.change.clone() {
            None => {
                self.begin_change(now);
                // What only has to be asked is asked at once: nothing else may come to wake this copy.
                self.pump_again |= self.change.is_some() && !self.is_persisting_k();
            }
            Some(Change::Expand { asked: false, .. }) if let Some(hello) = self.left_behind() => {
                self.takes_back_expand(now, &hello);
            }
            Some(Change::Expand { config, tail, asked: false }) => self.continue_expand(config, tail),
            Some(_) => {}
        }
    }

    /// A primary changes K as its policy asks. One that opens, or waits for room in its log, only goes on with a K that lists a
    /// peer which does not have it yet: without that nothing could ever be everywhere.
    fn may_change(&self) -> bool {
        let is_free = self.opening.is_none_or(|o| o.stage != super::role::Stage::Tail);
        self.leads() && is_free && !self.arbiter.is_deciding()
    }

    fn begin_change(&mut self, now: Nanos) {
        let (sites, mode) = self.wanted();
        let unconfirmed = self.link.as_ref().is_some_and(|l| {
            let told = l.telling == Some(self.k.id());
            self.k.has(l.site) && l.sender.source == Source::Stream && l.sender.confirmed != self.k.epoch && !told
        });
        if unconfirmed {
            // K lists the peer and the peer has not persisted it: it still has to be asked.
            self.change = Some(Change::Expand { config: self.k.clone(), tail: None, asked: false });
            return;
        }
        // Nobody arbitrates any more: the peer has to know that before this site serves without a lease.
        let disarms = self.k.lease_gen != 0 && self.superblock.policy.on_peer_loss != OnPeerLoss::Witness;
        if self.role != Role::Primary || sites == self.k.sites && mode == self.k.mode && !disarms {
            return;
        }
        let nonce = self.new_nonce();
        let larger =
            sites.len() > self.k.sites.len() || (sites == self.k.sites && mode > self.k.mode && sites.len() > 1);
        let mut config = group::joint(&self.k, self.node, nonce, Some(self.site), sites, mode);
        if disarms && !larger {
            config.lease_gen = 0;
        }
        if self.k.sites.len() == 1 && config.sites.len() == 1 {
            self.change = Some(Change::Local);
            self.persist_k(now, config, AfterK::Change);
        } else if larger && self.peer_is_close() && !self.rests(now) {
            match self.has_members() {
                true => self.rally_to_expand(now, config),
                false => self.begin_expand(now, config),
            }
        } else if !larger && self.peer_is_confirmed() {
            self.change = Some(Change::Release { config: config.clone() });
            self.pause(true);
            let tail = self.log.end();
            self.send(Message::Adopt { config, step: AdoptStep::Release, tail });
        }
    }

    /// K with a larger S (or a stronger mode) is persisted here first.
    pub(super) fn begin_expand(&mut self, now: Nanos, config: Config) {
        self.change = Some(Change::Expand { config: config.clone(), tail: None, asked: false });
        self.persist_k(now, config, AfterK::Change);
    }

    fn peer_is_confirmed(&self) -> bool {
        self.link.as_ref().is_some_and(|l| l.sender.source != Source::Probe && l.sender.confirmed == self.k.epoch)
    }

    /// The peer could join S now.
    pub(super) fn peer_is_close(&self) -> bool {
        let lag = self.link.as_ref().map_or(u64::MAX, |l| l.sender.outstanding_bytes());
        let streams = self.link.as_ref().is_some_and(|l| l.sender.source == Source::Stream);
        // Once K lists it, only an operator takes it off again: it must be possible to bring it up from the log.
        let start = self.log.segments.start().map_or(self.log.end().position.lsn, |s| s.position.lsn);
        let in_reach = self.link.as_ref().is_some_and(|l| l.sender.kept_from() >= start);
        // A base that was just seeded may hold what is not durable here yet: after a crash nobody could give that back.
        let held = self.link.as_ref().is_some_and(|l| self.log.durable() >= l.sender.floor());
        let follows = self.ships() && streams && self.peer_is_confirmed() && self.seeder.is_none();
        follows && in_reach && held && lag <= EXPAND_LAG_BYTES
    }

    pub(super) fn pause(&mut self, paused: bool) {
        if let Some(link) = &mut self.link {
            link.sender.paused = paused;
        }
    }

    /// K is persisted here: the peer is asked as soon as it holds the durable tail of this moment.
    fn continue_expand(&mut self, config: Config, tail: Option<Boundary>) {
        let Some(tail) = tail.or_else(|| self.boundary_below(self.log.durable())) else { return };
        let Some(link) = self.link.as_ref().filter(|l| l.sender.source != Source::Probe) else { return };
        let is_here = link.sender.durable() >= tail.position.lsn || planted(Planted::ExpandWithoutCheck);
        let ready = is_here && self.all_hold_k();
        self.change = Some(Change::Expand { config: config.clone(), tail: Some(tail), asked: ready });
        if ready {
            self.pause(true);
            self.send(Message::Expand { config, tail });
        }
    }

    /// K lists a peer that never persisted it and was given up meanwhile: it joins again when it was seeded. While it says that it
    /// needs that it refuses every EXPAND, and none can be on its way to its disk: a copy is not given up then.
    ///
    /// So does one that the log lost in the moment in which K got it: it was not asked yet.
    pub(super) fn takes_back_expand(&mut self, now: Nanos, hello: &Hello) -> bool {
        let is_expand = matches!(self.change, None | Some(Change::Expand { .. }));
        if hello.config.has(hello.site) || !is_expand || self.arbiter.is_deciding() || self.is_persisting_k() {
            return false;
        }
        let nonce = self.new_nonce();
        let config = group::joint(&self.k, self.node, nonce, Some(self.site), vec![self.site], self.k.mode);
        self.change = Some(Change::Local);
        self.persist_k(now, config, AfterK::Change);
        true
    }

    /// The peer has to be seeded before it can be asked anything.
    fn left_behind(&self) -> Option<Hello> {
        let hello = self.link.as_ref()?.hello.as_deref()?;
        let is_left = self.link.as_ref().is_some_and(|l| l.sender.source == Source::Probe) && hello.needs_seed;
        (is_left || self.a_fellow_seeds()).then(|| hello.clone())
    }

    fn boundary_below(&self, lsn: Lsn) -> Option<Boundary> {
        self.log.segments.boundary_below(lsn).or_else(|| self.boundary_at(lsn))
    }

    /// What a change waits for at the peer.
    pub(super) fn change_wants(&self) -> Option<Lsn> {
        match &self.change {
            Some(Change::Expand { tail: Some(tail), .. }) => Some(tail.position.lsn),
            _ => None,
        }
    }

    pub(super) fn change_lost(&mut self) {
        // An EXPAND that was persisted here is in force: the peer is asked again at the next contact.
        self.change = None;
        self.rally_lost();
    }

    /// The peer answered a K.
    pub(super) fn on_config_answer(&mut self, now: Nanos, epoch: Epoch, nonce: Nonce, result: Result<(), Refusal>) {
        if self.promotion_answered(now, epoch, nonce, &result) {
            return;
        }
        match (self.change.take(), result) {
            (Some(Change::Expand { config, .. }), Ok(())) if config.nonce == nonce => self.peer_confirmed(config.epoch),
            (Some(Change::Release { config }), Ok(())) if config.nonce == nonce => {
                self.change = Some(Change::Local);
                self.persist_k(now, config, AfterK::Change);
            }
            (Some(Change::Expand { config, .. } | Change::Release { config }), Err(why)) if config.nonce == nonce => {
                self.hang_up(why);
            }
            (other, result) => {
                self.change = other;
                self.told_k(now, nonce, result);
            }
        }
    }

    fn peer_confirmed(&mut self, epoch: Epoch) {
        self.pause(false);
        if let Some(link) = &mut self.link {
            link.sender.confirmed = epoch;
            if let Some(hello) = &mut link.hello {
                hello.config = self.k.clone();
            }
        }
    }

    /// A K was persisted: go on.
    pub(super) fn run_after_k(&mut self, now: Nanos, then: AfterK) {
        match then {
            AfterK::Change => {
                if matches!(self.change, Some(Change::Local)) {
                    self.change = None;
                    self.pause(false);
                }
                // Also for a peer that greeted while K was on its way to the disk.
                if self.change.is_none() {
                    self.match_peer(now);
                }
            }
            AfterK::Answer { conn, config, by_all } => self.on_k_adopted(now, conn, &config, by_all),
            AfterK::Adopted => {
                match self.k.primary == Some(self.site) {
                    true => self.named_primary(),
                    false => self.step_down(),
                }
                self.greet();
                self.match_peer(now);
            }
            AfterK::Open => {
                self.begin_opening();
                self.greet();
                self.match_peer(now);
            }
            AfterK::Arbitrated => self.on_arbitrated(now),
            AfterK::PutBack => self.on_k_put_back(now),
            AfterK::Demoted(id) => self.on_demoted(now, id),
            AfterK::Led => self.on_led(now),
        }
    }

    /// K names this site, by its own proposal or because the other side was given up: it opens when its peer confirms.
    pub(super) fn named_primary(&mut self) {
        if matches!(self.role, Role::Secondary | Role::Fenced(_)) {
            self.set_role(Role::Suspended(SuspendReason::Restart));
        }
        self.handover_found();
    }

    /// Tells the peer K before anything is streamed; true when it knows it, or learns it by an EXPAND later.
    pub(super) fn tell_k_first(&mut self, hello: &Hello) -> bool {
        if hello.config.id() == self.k.id() {
            return true;
        }
        let same_s = hello.config.since == self.k.since;
        if self.k.has(hello.site) && !same_s {
            return true;
        }
        self.tell_k(hello);
        false
    }

    /// Sends K to a peer that does not know it.
    pub(super) fn tell_k(&mut self, hello: &Hello) {
        if self.is_led() {
            return; // its leader tells the other one, and that its own members
        }
        let (config, tail) = (self.k.clone(), self.log.end());
        if hello.config.id() == config.id() || hello.config.epoch > config.epoch {
            return;
        }
        let step =
            if config.primary.is_some() && !config.has(hello.site) { AdoptStep::Rejoin } else { AdoptStep::Same };
        let Some(link) = self.link.as_mut().filter(|l| l.telling != Some(config.id())) else { return };
        link.telling = Some(config.id());
        self.send(Message::Adopt { config, step, tail });
    }

    fn told_k(&mut self, now: Nanos, nonce: Nonce, result: Result<(), Refusal>) {
        let k = self.k.clone();
        let Some(link) = self.link.as_mut().filter(|l| l.telling.is_some_and(|t| t.nonce == nonce)) else { return };
        link.telling = None;
        link.sender.paused = false;
        match result {
            Ok(()) => {
                if let Some(hello) = &mut link.hello {
                    hello.config = k;
                }
                self.match_peer(now);
            }
            Err(why) => {
                link.tell_again_at = Some(now.after_ms(super::link::TELL_AGAIN_MS)).filter(|_| why == Refusal::State);
                self.link_refused = Some(format!("by the peer: {why}"));
                self.counters.refusals += 1;
            }
        }
    }

    // ---- the follower -------------------------------------------------------------------------------------------------

    fn acceptor(&self, peer: SiteId, tail: &Boundary) -> Acceptor<'_> {
        let lsn = self.log.durable();
        Acceptor {
            me: self.site,
            peer,
            mine: &self.k,
            serves: self.leads(),
            is_sound: self.is_sound(),
            durable: self.boundary_at(lsn).unwrap_or_default(),
            holds_tail: self.has_in_history(tail),
        }
    }

    pub(super) fn on_expand(&mut self, now: Nanos, config: Config, tail: Boundary) {
        let Some(link) = &self.link else { return };
        let (conn, site) = (link.conn, link.site);
        let mut acceptor = self.acceptor(site, &tail);
        if planted(Planted::ExpandWithoutCheck) {
            acceptor.durable = Boundary { position: tail.position, ..acceptor.durable };
            (acceptor.holds_tail, acceptor.is_sound) = (true, true);
        }
        let verdict = acceptor.expand(&config, &tail);
        let wanted = Some(Readiness::Verified(config.id()));
        self.answer_k(now, conn, config, verdict, Asked { of_all: true, wanted });
    }

    pub(super) fn on_adopt(&mut self, now: Nanos, config: Config, step: AdoptStep, tail: Boundary) {
        let Some(link) = &self.link else { return };
        let (conn, site) = (link.conn, link.site);
        let verdict = match &self.diverged {
            Some(_) => Err(Refusal::Diverged),
            // The operator gave this copy up: it follows whatever newer K the other side has.
            None if self.reseed_wanted && config.primary != Some(self.site) && config.epoch > self.k.epoch => Ok(()),
            // The peer took over and has not forked yet. What was written here beyond its tail is fetched by it, or judged and sealed
            // while K still says who wrote it.
            None if self.was_primary()
                && config.primary == Some(site)
                && self.log.end().position.lsn > tail.position.lsn =>
            {
                Err(Refusal::State)
            }
            None => self.acceptor(site, &tail).adopt(&config, step, &tail),
        };
        let wanted = matches!(step, AdoptStep::Handover).then_some(Readiness::Settled);
        let of_all = matches!(step, AdoptStep::Handover | AdoptStep::Release);
        self.answer_k(now, conn, config, verdict, Asked { of_all, wanted });
    }

    fn answer_k(&mut self, now: Nanos, conn: ConnId, config: Config, verdict: Result<(), Refusal>, asked: Asked) {
        if !config.forced {
            self.arbiter.ballot.outdone_by(config.epoch);
        }
        // A handover by both sites goes on though nobody knows what became of a takeover: see `take_office`.
        let hands_over = self.k.primary.is_none() && config.primary.is_some_and(|site| site != self.site);
        let deciding = self.promotion_pending() || self.arbiter.is_deciding() && !hands_over;
        let busy = self.is_recovering()
            || self.is_persisting_k()
            || self.sealing.is_some()
            || deciding
            || self.is_led()
            || self.is_rallying();
        let is_asked_of_all = self.has_members() && config.id() != self.k.id() && verdict.is_ok() && !busy;
        if let Some(wanted) = asked.wanted.filter(|_| is_asked_of_all) {
            return self.rally_to_accept(now, conn, config, wanted);
        }
        let verdict = if busy { Err(Refusal::State) } else { verdict };
        match verdict {
            Ok(()) if config.id() != self.k.id() => {
                self.persist_k(now, config.clone(), AfterK::Answer { conn, config, by_all: asked.of_all });
            }
            Ok(()) if asked.of_all && !self.answer_for_all(conn, &config) => {}
            result => {
                let (epoch, nonce) = (config.epoch, config.nonce);
                self.send(Message::ConfigAnswer { epoch, nonce, result });
            }
        }
    }

    fn on_k_adopted(&mut self, now: Nanos, conn: ConnId, config: &Config, by_all: bool) {
        if self.k.primary != Some(self.site) {
            self.step_down();
        }
        let (epoch, nonce) = (config.epoch, config.nonce);
        self.link_refused = None;
        if let Some(link) = self.link.as_mut().filter(|l| l.conn == conn) {
            link.told = None;
            if let Some(hello) = &mut link.hello {
                hello.config = config.clone();
            }
            if !by_all || self.answer_for_all(conn, config) {
                self.send(Message::ConfigAnswer { epoch, nonce, result: Ok(()) });
            }
        } else {
            // The stream that asked is gone: the present one learns of it by a greeting.
            self.greet();
        }
        self.match_peer(now);
    }
}
