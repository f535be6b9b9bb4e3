//! The operator: what happens to the sites on purpose, by a plan drawn from the seed, and what a careful person does when
//! something needs a hand. It asserts only what is true: "the other site is stopped" is said while it is.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemark_core::config::{AckOn, Mode, Paused, Policy};
use tidemark_core::event::{FileRef, Input, VerbId};
use tidemark_core::layout::Layout;
use tidemark_core::node::{CreateKind, CreateParams};
use tidemark_core::status::{CopyState, LinkState, Role, Status, SuspendReason};
use tidemark_core::types::{GenId, GroupId, Nonce, WallMs};
use tidemark_core::verb::{Assertion, PromotionClass, Verb, VerbError, VerbOk};

use crate::sim::arbitrated::Trouble;
use crate::sim::copy::Copy;
use crate::sim::disk::Crash;
use crate::sim::faults::{DiskRates, Fault, Rates};
use crate::sim::group::Bases;
use crate::sim::image::Image;
use crate::sim::model::LineId;
use crate::sim::pattern::{self, OpId};
use crate::sim::rng::Rng;
use crate::sim::world::{Ev, MS, World, name, note};

/// The group of the volume.
pub const GROUP: GroupId = GroupId([9; 16]);

const LOOK_MS: u64 = 150;
/// How long a healthy pair may take for anything.
const PATIENCE_MS: u64 = 180_000;

/// One thing to do when so many requests were issued.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The second copy is made and seeded.
    AddReplica,
    /// A site goes down and comes back.
    Crash {
        /// The primary's site, or the other.
        primary: bool,
        /// How.
        how: Crash,
        /// For how long.
        down_ms: u64,
    },
    /// Both go down at once.
    CrashBoth {
        /// How.
        how: Crash,
    },
    /// A process is closed in order and started again.
    CleanRestart {
        /// The primary's site, or the other.
        primary: bool,
    },
    /// The primary is lost and the other site promoted; the old one returns later.
    Failover {
        /// How it is lost.
        how: Crash,
        /// How long it stays away after the promotion.
        away_ms: u64,
    },
    /// Demote here, promote there.
    Switchover {
        /// By one verb.
        at_once: bool,
    },
    /// A policy.
    Policy(Mode, AckOn),
    /// The other site is stopped and left out of S.
    DropPeer {
        /// How long it stays away afterwards.
        away_ms: u64,
    },
    /// The link is cut.
    Cut {
        /// For how long.
        ms: u64,
    },
    /// Shipping or the floor is paused for a while.
    Pause {
        /// Shipping; else the floor.
        ship: bool,
        /// For how long.
        ms: u64,
    },
    /// The volume grows by so many sectors.
    Resize(u64),
    /// A group gets a volume, loses one, or one of its grows.
    Regroup,
    /// Compare both copies.
    Verify,
    /// Bring the base up to the log, at both sites.
    Drain,
    /// Seed the other copy anew.
    Reseed,
    /// A bit flips at the site whose medium lies.
    Rot,
    /// What befalls a witnessed pair.
    Trouble(Trouble),
}

/// What a verb was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Failover,
    TakeOver,
    Take,
    Demote,
    HandOver,
    Switchover,
    Pause { ship: bool, ms: u64 },
    Resume,
    TakeBack,
    Policy,
    DropPeer { away_ms: u64 },
    Resize(u64),
    Regroup(Fault),
    Remove,
    Verify,
    Drain,
    Reseed,
    Close,
    StepDown,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    site: usize,
    instance: u32,
    purpose: Purpose,
}

#[derive(Clone, Copy, Debug)]
struct Move {
    from: usize,
    to: usize,
    away_ms: u64,
    since: u64,
    lossless: bool,
    /// As it was asked to open, the copy knew the K of the site that is lost, and that named both for mode sync.
    agreed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    No,
    Healing { since: u64 },
    Flushing { since: u64 },
    Draining { site: usize, since: u64 },
    Verifying { since: u64 },
}

/// The operator.
#[derive(Debug)]
pub struct Operator {
    /// What will be done, by number of requests issued.
    pub plan: Vec<(u64, Step)>,
    next: usize,
    /// Lines that were opened.
    pub opened: Vec<LineId>,
    /// Verbs issued.
    pub verbs_issued: u64,
    waiting: BTreeMap<VerbId, Waiting>,
    /// What the removal of a volume that was asked for does to it.
    pub(super) removing: Vec<OpId>,
    pub(super) policy: Policy,
    slot_bytes: u64,
    /// Memory of recent frames: with little of it, reads and shipping go through segments.
    pub tail_bytes: u64,
    moving: Option<Move>,
    ending: Ending,
    /// The target's role as last seen, and when it changed.
    last_role: Role,
    pub(super) moved_at: u64,
    /// When a repair was last tried.
    pub(super) tried: u64,
    /// True time since which the target serves and everything is connected.
    healthy_since: Option<u64>,
    /// When what is paused goes on.
    resume_at: u64,
    /// No copy is left that may be opened.
    pub hopeless: bool,
}

impl Operator {
    /// Draws a seed's plan.
    pub fn draw(rng: &mut Rng, rates: &Rates, requests: u64) -> Self {
        let slot_bytes = *rng.pick(&[64, 128, 256, 512]) * 1024;
        let mode = *rng.pick(&[Mode::Sync, Mode::Sync, Mode::Async, Mode::Receive]);
        let policy = Policy {
            mode,
            ack_on: if rng.percent(20) { AckOn::Write } else { AckOn::Flush },
            retention_ms: *rng.pick(&[0, 10, 200, 3_600_000]),
            log_bytes: slot_bytes * rng.between(6, 24),
            disk_timeout_ms: *rng.pick(&[1_500, 3_000, 8_000]),
            index_ranges: *rng.pick(&[64, 256, 2_048, 262_144]),
            ..Policy::default()
        };
        let tail_bytes = *rng.pick(&[0, 16 << 10, 256 << 10, 64 << 20]);
        let plan = plan(rng, rates, requests);
        Self {
            plan,
            next: 0,
            opened: Vec::new(),
            verbs_issued: 0,
            waiting: BTreeMap::new(),
            removing: Vec::new(),
            policy,
            slot_bytes,
            tail_bytes,
            moving: None,
            ending: Ending::No,
            last_role: Role::Secondary,
            moved_at: 0,
            tried: 0,
            healthy_since: None,
            resume_at: 0,
            hopeless: false,
        }
    }

    /// True when the workload is over and faults have stopped.
    pub fn is_ending(&self) -> bool {
        self.ending != Ending::No
    }

    /// Bytes of a log slot.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Sectors of the largest record for the slot size in use.
    pub fn record_sectors(&self) -> u64 {
        tidemark_core::log::frames::frame_limit(self.slot_bytes) / 512
    }

    /// The plan has begun.
    pub fn has_begun(&self) -> bool {
        self.next > 0
    }

    pub(super) fn waits_for(&self, site: usize) -> bool {
        self.waiting.values().any(|w| w.site == site)
    }
}

fn plan(rng: &mut Rng, rates: &Rates, requests: u64) -> Vec<(u64, Step)> {
    let mut plan = Vec::new();
    let replica = if rng.percent(40) { 0 } else { rng.below(requests / 3) };
    plan.push((replica, Step::AddReplica));
    let later = |rng: &mut Rng| rng.between(replica.min(requests / 50), requests.saturating_sub(1));
    for _ in 0..rates.crashes {
        let step = crash_step(rng);
        plan.push((later(rng), step));
    }
    for _ in 0..rng.below(6) {
        let step = verb_step(rng);
        plan.push((later(rng), step));
    }
    for _ in 0..if rates.liar.is_some() { rates.flips } else { 0 } {
        plan.push((later(rng), Step::Rot));
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

fn crash_step(rng: &mut Rng) -> Step {
    let how = if rng.percent(50) { Crash::Power } else { Crash::Kill };
    let away_ms = rng.log_between(5, 15_000);
    match rng.below(100) {
        0..=24 => Step::Failover { how, away_ms },
        25..=32 => Step::CrashBoth { how },
        33..=40 => Step::DropPeer { away_ms },
        draw => Step::Crash { primary: draw.is_multiple_of(2), how, down_ms: rng.log_between(5, 4_000) },
    }
}

fn verb_step(rng: &mut Rng) -> Step {
    match rng.below(100) {
        0..=29 => {
            let mode = *rng.pick(&[Mode::Sync, Mode::Sync, Mode::Async, Mode::Receive]);
            Step::Policy(mode, if rng.percent(25) { AckOn::Write } else { AckOn::Flush })
        }
        draw @ 30..=44 => Step::Switchover { at_once: draw.is_multiple_of(2) },
        45..=56 => Step::CleanRestart { primary: rng.percent(50) },
        57..=66 => Step::Resize(rng.between(1, 800)),
        67..=76 => Step::Verify,
        77..=88 => Step::Drain,
        89..=93 => Step::Reseed,
        draw @ 94..=97 => Step::Pause { ship: draw.is_multiple_of(2), ms: rng.log_between(20, 5_000) },
        _ => Step::CleanRestart { primary: true },
    }
}

fn assertion() -> Assertion {
    Assertion { who: "sim".into(), why: "the other site is stopped".into(), at: WallMs(1) }
}

impl<C: Copy> World<C> {
    // ---- making copies

    fn params(&self, site: usize, size: u64, kind: CreateKind, adopted: bool) -> CreateParams {
        CreateParams {
            volume: self.volume,
            group: GROUP,
            site: self.sites[site].id,
            node: self.sites[site].node_id,
            secret: self.secret.clone(),
            layout: self.layout_for(site, size),
            slot_bytes: self.operator.slot_bytes,
            policy: self.operator.policy,
            peer: Some(self.sites[1 - site].id),
            kind,
            adopted,
            members: None,
        }
    }

    fn place(&mut self, site: usize, params: &CreateParams, base: Image) {
        let new = C::create(params);
        let s = &mut self.sites[site];
        s.disk.wipe();
        s.disk.put(FileRef::Superblock, Image::of(&new.superblock));
        s.disk.put(FileRef::Config, Image::of(&new.config));
        s.disk.put(FileRef::Base, base);
        s.bases = self.group.is_some().then(|| Bases::of(&params.layout));
        s.created = true;
        s.refused = None;
        s.line = None;
        s.key = None;
        s.tainted = false;
        s.misled = false;
    }

    /// The first copy, at A.
    pub(super) fn create_first(&mut self) {
        let (generation, nonce) = (GenId(self.rng.id()), Nonce(self.rng.id()));
        let size = self.client.size;
        let mut base = Image::zeroed(size);
        let adopted = self.client.adopted_sectors;
        if adopted > 0 {
            base.write(0, &pattern::payload(0, 0, adopted));
        }
        let params = self.params(0, size, CreateKind::Primary { generation, nonce }, adopted > 0);
        note!(self, [30], "policy {:?}, slots {}", params.policy, params.slot_bytes);
        self.place(0, &params, base);
    }

    /// A copy that will be seeded, beside a primary that is up.
    pub(super) fn create_replica(&mut self, site: usize) -> bool {
        let Some(status) = self.sites[1 - site].status.clone() else { return false };
        if !self.sites[1 - site].is_primary() {
            return false;
        }
        self.fired.hit(Fault::Reseed);
        if self.client.remaining > 0 {
            self.fired.hit(Fault::SeedUnderLoad);
        }
        note!(self, [31, site], "{} is made anew, {} bytes", name(site), status.size);
        let mut params = self.params(site, status.size, CreateKind::Replica { config: status.config.clone() }, false);
        params.policy = status.policy;
        self.place(site, &params, Image::zeroed(self.client.max_bytes.min(status.size.max(self.client.size))));
        self.at(self.now, Ev::Start(site));
        true
    }

    // ---- the plan

    /// Does what is due.
    pub(super) fn run_plan(&mut self) {
        while let Some((at, step)) = self.operator.plan.get(self.operator.next).copied() {
            if at > self.client.issued || self.operator.moving.is_some() {
                return;
            }
            if self.has_to_wait(step) {
                return;
            }
            self.operator.next += 1;
            self.take_step(step);
        }
    }

    fn take_step(&mut self, step: Step) {
        let target = self.client.target;
        let other = 1 - target;
        note!(self, [32], "plan: {step:?}");
        match step {
            Step::AddReplica => {
                if !self.sites[1].created && !self.create_replica(1) {
                    // Not now; the doctor will.
                    note!(self, [33], "the replica has to wait");
                }
            }
            Step::Crash { primary, how, down_ms } => {
                let site = if primary { target } else { other };
                self.crash(site, how);
                self.after(down_ms * MS, Ev::Start(site));
            }
            Step::CrashBoth { how } => {
                for site in [0, 1] {
                    self.crash(site, how);
                    let down = self.rng.log_between(5, 3_000) * MS;
                    self.after(down, Ev::Start(site));
                }
            }
            Step::CleanRestart { primary } => {
                self.verb(if primary { target } else { other }, Verb::Close, Purpose::Close);
            }
            Step::Failover { how, away_ms } => self.begin_failover(target, how, away_ms),
            Step::Switchover { at_once: true } => {
                let to = self.sites[other].id;
                self.verb(target, Verb::Switchover { to, force: true }, Purpose::Switchover);
            }
            Step::Switchover { at_once: false } => {
                if self.sites[other].node.is_some() && self.net.is_connected() {
                    self.verb(target, Verb::Demote { force: true }, Purpose::Demote);
                }
            }
            Step::Cut { ms } => self.cut(ms),
            Step::Pause { ship, ms } => {
                let site = if ship || self.rng.percent(50) { target } else { other };
                self.verb(site, Verb::Pause(Paused { ship, floor: !ship }), Purpose::Pause { ship, ms });
            }
            Step::Policy(mode, ack_on) => {
                self.operator.policy.mode = mode;
                self.operator.policy.ack_on = ack_on;
                self.verb(target, Verb::SetPolicy(self.operator.policy), Purpose::Policy);
            }
            Step::DropPeer { away_ms } => {
                self.hold(other, Crash::Power);
                self.verb(target, Verb::DropPeer(assertion()), Purpose::DropPeer { away_ms });
            }
            Step::Resize(_) | Step::Regroup if self.group.is_some() => self.regroup(),
            Step::Regroup => {}
            Step::Resize(sectors) => {
                let size = (self.client.size + sectors * 512).min(self.client.max_bytes);
                for s in &mut self.sites {
                    s.disk.grow_base(size);
                }
                self.verb(target, Verb::Resize { volume: self.volume, size }, Purpose::Resize(size));
            }
            Step::Verify => {
                self.verb(target, Verb::Verify, Purpose::Verify);
            }
            Step::Drain => {
                self.verb(target, Verb::Drain, Purpose::Drain);
                self.verb(other, Verb::Drain, Purpose::Drain);
            }
            Step::Reseed => {
                if self.has_role(target, Role::Primary) && !self.in_s(target, other) {
                    self.verb(other, Verb::Reseed, Purpose::Reseed);
                }
            }
            Step::Rot => self.at(self.now, Ev::Rot),
            Step::Trouble(trouble) => self.befall(trouble),
        }
    }

    /// A site is stopped until it is released.
    pub(super) fn hold(&mut self, site: usize, how: Crash) {
        self.sites[site].held = true;
        self.crash(site, how);
    }

    fn release(&mut self, site: usize, after_ms: u64) {
        self.sites[site].held = false;
        self.after(after_ms * MS, Ev::Start(site));
    }

    fn begin_failover(&mut self, from: usize, how: Crash, away_ms: u64) {
        let to = 1 - from;
        if !self.sites[to].created || self.sites[to].refused.is_some() {
            return;
        }
        self.look(from);
        self.hold(from, how);
        self.operator.moving = Some(Move { from, to, away_ms, since: self.now, lossless: false, agreed: false });
    }

    pub(super) fn verb(&mut self, site: usize, verb: Verb, purpose: Purpose) -> bool {
        if self.sites[site].node.is_none()
            || self.operator.waiting.values().any(|w| w.site == site && w.purpose == purpose)
        {
            return false;
        }
        self.refresh_line(site);
        let id = self.next_verb();
        note!(self, [34, site, id.0], "{} verb {} {verb:?}", name(site), id.0);
        let instance = self.sites[site].instance;
        self.operator.waiting.insert(id, Waiting { site, instance, purpose });
        self.tell(site, Input::Verb(id, verb));
        true
    }

    /// A verb's answer.
    pub(super) fn verb_ended(&mut self, site: usize, id: VerbId, result: Result<VerbOk, VerbError>) {
        let Some(waiting) = self.operator.waiting.remove(&id) else {
            return self.fail(format!("{} answers verb {} which is not outstanding", name(site), id.0));
        };
        note!(
            self,
            [35, site, id.0, result.is_ok()],
            "{} verb {} ({:?}): {}",
            name(site),
            id.0,
            waiting.purpose,
            told(&result)
        );
        self.judge_foretold(site, id, &result);
        match result {
            Ok(ok) => self.achieved(site, waiting.purpose, ok),
            Err(error) => self.declined(site, waiting.purpose, &error),
        }
    }

    fn achieved(&mut self, site: usize, purpose: Purpose, ok: VerbOk) {
        match purpose {
            Purpose::Failover => self.failed_over(site, &ok),
            Purpose::TakeOver => {
                self.fired.hit(Fault::TakenOver);
                self.retarget(site);
            }
            Purpose::Take | Purpose::TakeBack => self.retarget(site),
            Purpose::Demote => {
                self.operator.moving =
                    Some(Move { from: site, to: 1 - site, away_ms: 0, since: self.now, lossless: true, agreed: false });
            }
            Purpose::HandOver => {
                self.fired.hit(Fault::Switchover);
                self.retarget(site);
                self.operator.moving = None;
            }
            Purpose::Switchover => {
                self.fired.hit(Fault::SwitchedOver);
                self.retarget(1 - site);
            }
            Purpose::Pause { ship, ms } => {
                self.fired.hit(if ship { Fault::ShippingPaused } else { Fault::FloorPaused });
                self.operator.resume_at = self.now + ms * MS;
            }
            Purpose::Resume => {}
            Purpose::Policy => self.policy_set(),
            Purpose::DropPeer { away_ms } => {
                self.fired.hit(Fault::DropPeer);
                self.release(1 - site, away_ms);
            }
            Purpose::Resize(size) => {
                self.fired.hit(Fault::Resize);
                if self.client.target == site {
                    self.client.size = self.client.size.max(size);
                }
            }
            Purpose::Regroup(fault) => {
                self.fired.hit(fault);
                self.retarget_size(site);
            }
            Purpose::Remove => self.removal_ended(true),
            Purpose::Verify => self.verified(ok),
            Purpose::Drain => {
                self.fired.hit(Fault::Drain);
                if self.operator.ending == (Ending::Draining { site, since: self.since_ending() }) {
                    self.drained(site);
                }
            }
            Purpose::Reseed => self.fired.hit(Fault::Reseed),
            Purpose::StepDown => {}
            Purpose::Close => {
                self.stopped(site);
                let down = self.rng.log_between(1, 500) * MS;
                self.after(down, Ev::Start(site));
            }
        }
        self.wake_client(1_000);
    }

    /// The workload goes to another site from now on.
    pub(super) fn retarget(&mut self, site: usize) {
        self.client.target = site;
        if let Some(status) = &self.sites[site].status {
            self.client.size = status.size;
        }
    }

    /// A group of the target may have become larger.
    fn retarget_size(&mut self, site: usize) {
        if let Some(layout) = self.layout_at(site).filter(|_| self.client.target == site) {
            self.client.size = self.client.size.max(layout.size());
        }
    }

    /// What a copy is made with. A replica learns the rest when it is seeded.
    fn layout_for(&self, site: usize, size: u64) -> Layout {
        let begins = self.group.as_ref().map(|group| group.begins.clone());
        let served = self.layout_at(1 - site).cloned();
        match (begins, served) {
            (Some(begins), None) => begins,
            (Some(_), Some(served)) if served.has(self.volume) => served,
            (Some(_), Some(_)) => Layout::one(self.volume, 4096),
            (None, _) => Layout::one(self.volume, size),
        }
    }

    fn failed_over(&mut self, site: usize, ok: &VerbOk) {
        self.fired.hit(Fault::Failover);
        let moved = self.operator.moving.take();
        let away = moved.map_or(0, |m| m.away_ms);
        self.retarget(site);
        if let VerbOk::Promoted { class: PromotionClass::Lossless, .. } = ok {
            note!(self, [36, site], "{} claims that nothing is lost", name(site));
            let honest = !self.sites.iter().any(|s| s.tainted);
            if let Some((_, line)) = self.sites[site].opened.filter(|_| honest && moved.is_some_and(|m| m.agreed)) {
                self.model.claim(line, 1 - site);
            }
        }
        self.release(1 - site, away);
        self.fired.hit(Fault::OldPrimaryReturned);
    }

    fn policy_set(&mut self) {
        self.fired.hit(match self.operator.policy.mode {
            Mode::Sync => Fault::ToSync,
            Mode::Receive => Fault::ToReceive,
            Mode::Async => Fault::ToAsync,
        });
        if self.operator.policy.ack_on == AckOn::Write {
            self.fired.hit(Fault::AckOnWrite);
        }
    }

    fn verified(&mut self, ok: VerbOk) {
        self.fired.hit(Fault::Verify);
        let VerbOk::Verified { differing, .. } = ok else { return self.fail("Verify answered something else".into()) };
        if !differing.is_empty() && !self.sites.iter().any(|s| s.tainted || s.erred) {
            self.fail(format!("Verify found differences although no medium lied: {differing:?}"));
        }
        if let Ending::Verifying { .. } = self.operator.ending {
            self.finished = true;
        }
    }

    fn declined(&mut self, site: usize, purpose: Purpose, error: &VerbError) {
        match purpose {
            Purpose::DropPeer { away_ms } => self.release(1 - site, away_ms),
            Purpose::Remove => self.removal_ended(false),
            Purpose::Failover => {
                // A copy that may not be opened will not be better in a while.
                let give_up = self.operator.moving.is_some_and(|m| self.now - m.since > 1_500 * MS);
                if let Some(m) = self.operator.moving.take_if(|_| give_up) {
                    self.release(m.from, 10);
                }
            }
            Purpose::HandOver => {
                let give_up = self.operator.moving.is_some_and(|m| self.now - m.since > 3_000 * MS);
                if give_up {
                    self.operator.moving = None;
                }
            }
            // A stream that just broke comes back; the end does not wait for ever.
            Purpose::Verify
                if matches!(self.operator.ending, Ending::Verifying { .. })
                    && !matches!(error, VerbError::Interrupted(_) | VerbError::CopyState { .. })
                    // A new K that the peer has to confirm, while a renewal is under way: for a moment nothing is served.
                    && !(self.is_witnessed() && matches!(error, VerbError::Role { .. })) =>
            {
                self.fail(format!("Verify was refused between healthy copies: {error}"));
            }
            _ => {}
        }
        self.wake_client(1_000);
    }

    // ---- the doctor

    /// Looks at everything and does what a careful operator would.
    pub(super) fn doctor(&mut self) {
        for site in [0, 1] {
            self.look(site);
        }
        if self.violation.is_some() {
            return;
        }
        self.expire_verbs();
        self.run_plan();
        self.remove_when_quiet();
        self.end_pauses();
        self.continue_move();
        match self.operator.moving {
            Some(_) => {}
            None if self.is_witnessed() => self.watch_over(),
            None => self.treat(),
        }
        self.judge_health();
        self.end_game();
        self.wake_client(0);
        let next = (LOOK_MS / 2 + self.rng.below(LOOK_MS)) * MS;
        self.after(next, Ev::Doctor);
    }

    /// Nothing is paused for ever, nor when the workload is over.
    fn end_pauses(&mut self) {
        if self.now < self.operator.resume_at && !self.operator.is_ending() {
            return;
        }
        for site in [0, 1] {
            if self.sites[site].status.as_ref().is_some_and(|status| !status.paused.is_none()) {
                self.verb(site, Verb::Resume(Paused::ALL), Purpose::Resume);
            }
        }
    }

    fn expire_verbs(&mut self) {
        let sites = &self.sites;
        let gone: Vec<Waiting> = {
            let dead = |w: &Waiting| sites[w.site].instance != w.instance || sites[w.site].node.is_none();
            let gone = self.operator.waiting.values().filter(|w| dead(w)).copied().collect();
            self.operator.waiting.retain(|_, w| !dead(w));
            gone
        };
        for w in gone {
            match w.purpose {
                Purpose::DropPeer { away_ms } => self.release(1 - w.site, away_ms),
                Purpose::Remove => self.removal_ended(false),
                _ => {}
            }
        }
    }

    fn continue_move(&mut self) {
        let Some(m) = self.operator.moving else { return };
        if self.now - m.since > 20_000 * MS {
            note!(self, [37], "the move is given up: {m:?}");
            self.operator.moving = None;
            return self.release(m.from, 10);
        }
        if self.operator.waits_for(m.to) || self.sites[m.to].node.is_none() {
            return;
        }
        if m.lossless {
            let verb = Verb::Promote {
                assert_peer_fenced: None,
                max_loss_bytes: None,
                max_loss_seconds: None,
                allow_unproven: false,
            };
            self.verb(m.to, verb, Purpose::HandOver);
        } else {
            let agreed = self.agree_on_sync();
            self.operator.moving = Some(Move { agreed, ..m });
            self.verb(m.to, promote_anyway(), Purpose::Failover);
        }
    }

    /// True when both sites were last seen with one K, and that names both for mode sync: either has what the other promised.
    fn agree_on_sync(&self) -> bool {
        let [Some(a), Some(b)] = [0, 1].map(|site: usize| self.sites[site].status.as_ref().map(|s| &s.config)) else {
            return false;
        };
        a.id() == b.id() && a.mode == Mode::Sync && a.sites.len() == 2
    }

    fn treat(&mut self) {
        let target = self.client.target;
        let other = 1 - target;
        if self.now < self.operator.tried + 400 * MS {
            return;
        }
        self.operator.tried = self.now;
        if !self.sites[1].created && (self.operator.next > 0 || self.operator.is_ending()) && !self.operator.hopeless {
            self.create_replica(1);
        }
        if let Some(status) = self.sites[target].status.clone().filter(|_| self.sites[target].node.is_some()) {
            self.treat_target(target, &status);
        } else if self.sites[target].refused.is_some() {
            self.target_lost(target);
        }
        if self.sites[target].is_primary() {
            self.treat_other(other);
        }
    }

    fn down_for(&self, site: usize, ms: u64) -> bool {
        self.sites[site].node.is_none() && self.now - self.sites[site].since > ms * MS
    }

    fn treat_target(&mut self, target: usize, status: &Status) {
        let other = 1 - target;
        if self.operator.waits_for(target) {
            return;
        }
        if status.role != self.operator.last_role {
            self.operator.last_role = status.role;
            self.operator.moved_at = self.now;
        }
        if self.part_from_lost_member(target, status) {
            return;
        }
        match status.role {
            _ if matches!(status.copy, CopyState::Diverged { .. }) && self.sites[other].is_primary() => {
                self.retarget(other);
            }
            // Neither side serves: this one is named the winner.
            _ if matches!(status.copy, CopyState::Diverged { .. }) => self.name_loser(other),
            _ if matches!(status.copy, CopyState::Failed { .. } | CopyState::Suspect { .. }) => {
                self.target_lost(target)
            }
            Role::Suspended(SuspendReason::Failed) => self.target_lost(target),
            Role::Suspended(SuspendReason::Restart | SuspendReason::NoSyncPeer) if self.down_for(other, 1_500) => {
                self.hold(other, Crash::Power);
                self.verb(target, promote_anyway(), Purpose::Take);
                self.release(other, 2_000);
            }
            Role::Secondary | Role::Fenced(_) if self.sites[other].is_primary() => self.retarget(other),
            // Nobody serves, and the other side cannot follow: it is named the loser.
            Role::Secondary | Role::Fenced(_) if self.is_diverged(other) => {
                self.verb(other, Verb::Reseed, Purpose::Reseed);
            }
            Role::Secondary | Role::Fenced(_) if self.is_abandoned(other, status) => {
                note!(self, [43, target], "{} is promoted by a human's word", name(target));
                self.begin_failover(other, Crash::Power, 500);
            }
            Role::Secondary | Role::Fenced(_) if self.is_handed_over() => {}
            Role::Secondary | Role::Fenced(_) => {
                let verb = Verb::Promote {
                    assert_peer_fenced: None,
                    max_loss_bytes: Some(u64::MAX),
                    max_loss_seconds: Some(u64::MAX),
                    allow_unproven: true,
                };
                self.verb(target, verb, Purpose::TakeBack);
            }
            _ => {}
        }
    }

    /// Nobody has served for long, although this copy could.
    fn is_abandoned(&self, other: usize, status: &Status) -> bool {
        let long = self.now - self.operator.moved_at > 20_000 * MS;
        long && !self.sites[other].is_primary() && status.copy == CopyState::Current
    }

    fn is_diverged(&self, site: usize) -> bool {
        let status = self.sites[site].status.as_ref().filter(|_| self.sites[site].node.is_some());
        status.is_some_and(|s| matches!(s.copy, CopyState::Diverged { .. }))
    }

    /// For how long the target has not been able to go on, in milliseconds.
    fn blocked_ms(&self, status: &Status) -> u64 {
        let waiting = self.client.oldest().map_or(0, |since| self.now - since) / MS;
        match status.role {
            Role::Primary => waiting,
            Role::Suspended(SuspendReason::User | SuspendReason::Failed) => 0,
            Role::Suspended(_) => (self.now - self.operator.moved_at) / MS,
            _ => 0,
        }
    }

    /// A member of S that is away, or whose copy is refused, is stopped and left out.
    fn part_from_lost_member(&mut self, target: usize, status: &Status) -> bool {
        let other = 1 - target;
        let blocked = self.blocked_ms(status);
        let refused = matches!(status.link, LinkState::Refused(_) | LinkState::Handshaking | LinkState::Disconnected);
        let running = self.sites[other].status.as_ref().filter(|_| self.sites[other].node.is_some());
        let failed = running.is_some_and(|s| matches!(s.copy, CopyState::Failed { .. } | CopyState::Suspect { .. }));
        let lost = (self.down_for(other, 1_500) && blocked > 2_500) || ((refused || failed) && blocked > 10_000);
        if lost && failed && status.role == Role::Suspended(SuspendReason::Restart) {
            // It will not answer: it is stopped, and then asked no more.
            self.crash(other, Crash::Power);
            return true;
        }
        let part = lost && self.in_s(target, other) && status.role != Role::Suspended(SuspendReason::Restart);
        if part {
            note!(self, [42, other], "{} is left out of S", name(other));
            self.exclude(other);
        }
        part
    }

    /// The target's copy is broken: restart it once in a while, or move.
    fn target_lost(&mut self, target: usize) {
        let other = 1 - target;
        let usable = self.sites[other].created && self.sites[other].refused.is_none();
        let sound = self.sites[other].status.as_ref().is_some_and(|s| {
            matches!(s.copy, CopyState::Current | CopyState::CatchingUp | CopyState::Stale | CopyState::Opening)
        });
        if usable && sound {
            note!(self, [38, target], "{} is lost, moving", name(target));
            self.begin_failover(target, Crash::Power, 500);
        } else if self.sites[target].refused.is_none() && self.rng.percent(30) {
            self.crash(target, Crash::Kill);
            self.after(100 * MS, Ev::Start(target));
        } else if !usable || self.sites[other].node.is_some() {
            note!(self, [39, target], "no copy is left");
            self.operator.hopeless = true;
            self.finished = true;
        }
    }

    fn treat_other(&mut self, other: usize) {
        if self.sites[other].refused.is_some() && self.sites[other].created {
            self.rebuild(other);
            return;
        }
        let Some(status) = self.sites[other].status.clone().filter(|_| self.sites[other].node.is_some()) else {
            return;
        };
        if self.operator.waits_for(other) {
            return;
        }
        let refused = matches!(status.link, LinkState::Refused(_));
        let leads = match status.role {
            Role::Primary => true,
            // What it waits for is at the target, which does not give it to who was promoted as well.
            Role::Suspended(SuspendReason::Opening) => refused,
            _ => false,
        };
        if leads && self.net.is_connected() {
            // Both were promoted by a human's word. The target is the winner.
            self.verb(other, Verb::Demote { force: true }, Purpose::StepDown);
            return;
        }
        match status.copy {
            CopyState::Failed { .. } => self.rebuild(other),
            CopyState::Diverged { .. } | CopyState::Suspect { .. } | CopyState::Seeding { .. }
                if self.in_s(1 - other, other) =>
            {
                self.exclude(other)
            }
            CopyState::Diverged { .. } | CopyState::Suspect { .. } => self.give_up(other),
            _ => {}
        }
    }

    /// The loser has to hear of it: a copy that is down or has failed is opened again first.
    fn name_loser(&mut self, site: usize) {
        let s = &self.sites[site];
        let failed = s.status.as_ref().is_some_and(|s| matches!(s.copy, CopyState::Failed { .. }));
        if s.node.is_some() && !failed {
            return self.give_up(site);
        }
        if failed && self.rng.percent(30) {
            // It may have failed for good: then what the other side has is all there is.
            self.hold(site, Crash::Power);
            self.verb(1 - site, promote_anyway(), Purpose::Take);
            return self.release(site, 2_000);
        }
        if failed {
            self.crash(site, Crash::Kill);
        }
        self.after(100 * MS, Ev::Start(site));
    }

    /// A copy that holds the role is demoted first.
    fn give_up(&mut self, site: usize) {
        let (verb, purpose) = match self.sites[site].role() {
            Some(Role::Suspended(_)) => (Verb::Demote { force: true }, Purpose::StepDown),
            _ => (Verb::Reseed, Purpose::Reseed),
        };
        self.verb(site, verb, purpose);
    }

    /// True when the K of `of` lists `site` in S.
    pub(super) fn in_s(&self, of: usize, site: usize) -> bool {
        self.sites[of].status.as_ref().is_some_and(|s| s.config.has(self.sites[site].id))
    }

    /// A copy that S still waits for is stopped and left out of it.
    fn exclude(&mut self, site: usize) {
        if !self.sites[site].held {
            self.hold(site, Crash::Power);
        }
        self.verb(1 - site, Verb::DropPeer(assertion()), Purpose::DropPeer { away_ms: 1_000 });
    }

    /// The copy is given up and made anew; first it leaves S.
    fn rebuild(&mut self, site: usize) {
        if self.in_s(1 - site, site) {
            return self.exclude(site);
        }
        self.crash(site, Crash::Power);
        self.create_replica(site);
    }

    /// A pair that is up and connected for long has no excuse for an unanswered request.
    fn judge_health(&mut self) {
        let up = self.sites.iter().all(|s| s.node.is_some() || !s.created);
        let fine = up && self.operator.moving.is_none() && (self.net.is_connected() || !self.sites[1].created);
        if !fine {
            self.operator.healthy_since = None;
            return;
        }
        let since = *self.operator.healthy_since.get_or_insert(self.now);
        let waited = self.client.oldest().map_or(0, |oldest| self.now - oldest.max(since));
        if waited > PATIENCE_MS * MS {
            let states = self.states();
            self.fail(format!(
                "a request waits for {} s although both sites are up and connected: {states}",
                waited / MS / 1000
            ));
        }
    }

    /// The seed does not end.
    pub(super) fn overdue(&mut self) {
        let states = self.states();
        self.fail(format!("the workload does not end: {states}"));
    }

    fn states(&self) -> String {
        let one = |site: usize| match &self.sites[site].status {
            Some(s) if self.sites[site].node.is_some() => format!(
                "{}: {:?} {:?} {:?} epoch {} S {} mode {:?} floor {} committed {} durable {} appended {} why {:?}",
                name(site),
                s.role,
                s.copy,
                s.link,
                s.config.epoch,
                s.config.sites.len(),
                s.config.mode,
                s.floor,
                s.committed,
                s.durable,
                s.appended.lsn,
                s.not_protected_because
            ),
            _ => format!("{}: down {:?}", name(site), self.sites[site].refused),
        };
        format!(
            "{}; {}; outstanding {}, remaining {}, target {}, moving {:?}, verbs {:?}",
            one(0),
            one(1),
            self.client.outstanding(),
            self.client.remaining,
            name(self.client.target),
            self.operator.moving,
            self.operator.waiting.values().map(|w| (name(w.site), w.purpose)).collect::<Vec<_>>()
        )
    }

    // ---- the end

    fn since_ending(&self) -> u64 {
        match self.operator.ending {
            Ending::No => 0,
            Ending::Healing { since }
            | Ending::Flushing { since }
            | Ending::Draining { since, .. }
            | Ending::Verifying { since } => since,
        }
    }

    fn end_game(&mut self) {
        if self.operator.hopeless {
            return;
        }
        let since = self.since_ending();
        if self.operator.is_ending() && self.now - since > PATIENCE_MS * MS {
            let states = self.states();
            return self.fail(format!("does not settle ({:?}): {states}", self.operator.ending));
        }
        let ending = self.operator.ending;
        match ending {
            Ending::No if self.client.remaining == 0 && self.operator.moving.is_none() && !self.is_bereaved() => {
                self.begin_ending()
            }
            Ending::No => {}
            Ending::Healing { .. } if self.is_repairing() => {}
            Ending::Healing { .. } => {
                if self.is_whole() && self.client.outstanding() == 0 {
                    let target = self.client.target;
                    if let Some((_, line)) = self.sites[target].opened {
                        self.issue_flush(target, line);
                        self.operator.ending = Ending::Flushing { since: self.now };
                    }
                }
            }
            Ending::Flushing { .. } => {
                if self.client.outstanding() == 0 {
                    self.operator.ending = Ending::Draining { site: 0, since: self.now };
                }
            }
            Ending::Draining { site, .. } => {
                if !self.operator.waits_for(site) {
                    self.verb(site, Verb::Drain, Purpose::Drain);
                }
            }
            Ending::Verifying { .. } => {
                let target = self.client.target;
                if !self.operator.waits_for(target) {
                    self.verb(target, Verb::Verify, Purpose::Verify);
                }
            }
        }
    }

    fn begin_ending(&mut self) {
        note!(self, [40], "the workload is over: faults stop");
        self.operator.ending = Ending::Healing { since: self.now };
        self.rates.disk = [DiskRates::default(); 2];
        self.rates.slow_message = 0;
        self.rates.pause = 0;
        self.net.cut_until = self.now;
        self.calm_witness();
        for site in [0, 1] {
            if self.sites[site].disk.outstanding() > 0 && self.sites[site].erred {
                // A hung operation stays hung until its process ends.
                self.crash(site, Crash::Kill);
            }
            self.release(site, 1);
        }
        self.want_dial(MS);
    }

    pub(super) fn is_whole(&self) -> bool {
        let target = self.client.target;
        let ok = |site: usize| self.sites[site].status.as_ref().filter(|_| self.sites[site].node.is_some());
        let (Some(a), Some(b)) = (ok(target), ok(1 - target)) else { return false };
        a.role == Role::Primary
            && b.role == Role::Secondary
            && matches!(b.copy, CopyState::Current)
            && b.appended == a.appended
            && a.link == LinkState::Streaming
            && (a.config.mode == a.policy.mode)
            && (a.config.mode == Mode::Async || a.config.sites.len() == 2)
    }

    /// Compares a site's base, as reads see it and as a power cut would leave it, with the model.
    fn drained(&mut self, site: usize) {
        let target = self.client.target;
        let Some(line) = self.sites[target].opened.map(|o| o.1) else { return };
        let Some(status) = self.sites[site].status.clone() else { return };
        if status.floor < status.appended.lsn || !self.is_whole() {
            // An earlier order ended; the log went on since, or an operation that never came back cost the copy, and it is being
            // made anew: it is drained again when it is whole.
            return;
        }
        note!(self, [41, site], "{} drained to {} of {}", name(site), status.floor, status.appended.lsn);
        // What a medium lost without a word is found by the next scrub or verification, not by draining.
        let judged = if self.sites[site].tainted { &[][..] } else { &[false, true] };
        for durable in judged.iter().copied() {
            let disk = &self.sites[site].disk;
            let Some(image) = (if durable { disk.durable(FileRef::Base) } else { disk.seen(FileRef::Base) }) else {
                return;
            };
            let sectors = (status.size / 512).min(image.len() / 512);
            let data: Bytes = image.read(0, (sectors * 512) as usize);
            let values: Vec<_> =
                data.chunks_exact(512).enumerate().map(|(i, s)| pattern::read_sector(s, i as u64)).collect();
            let values = self.of_volumes(site, values);
            let check = self.model.issue_read(line, 0, sectors);
            if let Err(why) = self.model.check_read(line, &check, &values, 0, true) {
                let which = if durable { "on the medium" } else { "as read" };
                return self.fail(format!("base of {} {which} after draining to {}: {why}", name(site), status.floor));
            }
        }
        self.operator.ending = match site {
            0 => Ending::Draining { site: 1, since: self.now },
            _ => Ending::Verifying { since: self.now },
        };
    }
}

pub(super) fn promote_anyway() -> Verb {
    Verb::Promote {
        assert_peer_fenced: Some(assertion()),
        max_loss_bytes: Some(u64::MAX),
        max_loss_seconds: Some(u64::MAX),
        allow_unproven: true,
    }
}

fn told(result: &Result<VerbOk, VerbError>) -> String {
    match result {
        Ok(VerbOk::Done(_)) => "done".into(),
        Ok(other) => format!("{other:?}"),
        Err(error) => format!("refused: {error}"),
    }
}
