//! True time, the queue of what will happen, and the four parties. The seed decides everything.

use std::collections::BTreeMap;

use tidemark_core::config::Since;
use tidemark_core::event::{ConnId, Event, FileRef, Input, Output, Question, WitnessAnswer};
use tidemark_core::group::genesis;
use tidemark_core::group::lease::Terms;
use tidemark_core::layout::Layout;
use tidemark_core::node::{CreateKind, CreateParams, Node, OpenParams};
use tidemark_core::site::Membership;
use tidemark_core::status::Role;
use tidemark_core::types::{BootId, Epoch, GenId, Lsn, Nonce, Secret, WallMs};

use super::agents::{Asker, Open};
use super::client::{BLOCKS, Client};
use super::judge::Asked;
use super::party::{MEMBERS, PARTIES, Party, name, node_id, party, site_id, volume_id};
use super::streams::{Letter, Way, between, ways, within};
use crate::sim::agenda::Agenda;
use crate::sim::arbitrated::{CALM, Witnessed};
use crate::sim::disk::{Crash, Env};
use crate::sim::faults::{DiskRates, Fault, Fired};
use crate::sim::image::Image;
use crate::sim::operator::GROUP;
use crate::sim::rng::Rng;
use crate::sim::site::Clock;
use crate::sim::trace::Trace;
use crate::sim::witness::Witness;
use crate::sim::world::{MS, Options};

pub(super) use crate::sim::world::note;

/// Separates what these seeds draw from everything else.
const STREAM: u64 = 0x6d65_6d62_6572_7321;
/// No seed takes longer.
const LONGEST_MS: u64 = 3_600_000;
/// Of a hundred seeds, so many have a witness, unless it is said otherwise.
const WITNESSED: u32 = 75;

/// Something that will happen.
#[derive(Debug)]
pub enum Ev {
    Wake(usize, u32),
    Tick(usize, u32),
    Disk(usize, u32, u64),
    Arrive(usize, ConnId, usize, Box<Letter>),
    Up(usize, ConnId, usize),
    Down(usize, ConnId, usize),
    Dial(usize),
    Start(usize),
    Agent(usize, u32),
    Carry(u64, usize, Box<Question>),
    Answer(u64, WitnessAnswer),
    GiveUp(u64),
    Client(usize),
    Stall(usize, usize, u64),
    Trouble,
    Doctor,
}

/// See the module.
pub struct World {
    pub(super) rng: Rng,
    pub(super) now: u64,
    agenda: Agenda<Ev>,
    pub(super) parties: Vec<Party>,
    pub(super) ways: Vec<Way>,
    pub(super) clients: Vec<Client>,
    pub(super) terms: Option<Terms>,
    pub(super) witness: Witness,
    pub(super) witness_cut: [u64; 2],
    pub(super) questions: BTreeMap<u64, Open>,
    pub(super) next_question: u64,
    pub(super) next_verb: u64,
    pub(super) promote_next: Option<(usize, u64)>,
    pub(super) idle_since: u64,
    pub(super) is_quiet: bool,
    pub(super) quiet_since: u64,
    pub(super) net_ns: (u64, u64),
    pub(super) slow_message: u32,
    disk_ns: (u64, u64),
    secret: Secret,
    pub(super) leaders_k: [Epoch; 2],
    /// K as each party holds it, and what was durable there when it was first seen to.
    pub(super) persisted: [Option<(Since, Lsn)>; PARTIES],
    pub(super) opened_under: [Epoch; 2],
    pub(super) asked: [Option<Asked>; 2],
    pub(super) fired: Fired,
    pub(super) trace: Trace,
    pub(super) violation: Option<String>,
    pub(super) finished: bool,
    outputs: Vec<Output>,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed ^ STREAM);
        let is_witnessed = match options.witnessed {
            Witnessed::Some => rng.percent(WITNESSED),
            Witnessed::All => true,
            Witnessed::None => false,
        };
        let span = *rng.pick(&[1_000, 3_000, 10_000]) * MS;
        let writes = options.requests / 4;
        let net_low = rng.log_between(20_000, 500_000);
        let disk_low = rng.log_between(10_000, 300_000);
        let mut world = Self {
            now: 0,
            agenda: Agenda::default(),
            parties: (0..PARTIES).map(|number| Party::new(number, BootId(rng.id()))).collect(),
            ways: ways(),
            clients: (0..MEMBERS).map(|_| Client::new(writes)).collect(),
            terms: is_witnessed.then(|| Terms { calm: CALM, ..Terms::new(span) }),
            witness: Witness::default(),
            witness_cut: [0; 2],
            questions: BTreeMap::new(),
            next_question: 0,
            next_verb: 0,
            promote_next: None,
            idle_since: 0,
            is_quiet: false,
            quiet_since: 0,
            net_ns: (net_low, net_low * 8),
            slow_message: if rng.percent(40) { rng.log_between(100, 5_000) as u32 } else { 0 },
            disk_ns: (disk_low, disk_low * 8),
            secret: Secret(rng.seed32()),
            leaders_k: [Epoch::default(); 2],
            persisted: [None; PARTIES],
            opened_under: [Epoch::default(); 2],
            asked: [None; 2],
            fired: Fired::default(),
            trace: Trace::new(options.keep_lines, options.print),
            violation: None,
            finished: false,
            outputs: Vec::new(),
            rng,
        };
        world.begin(is_witnessed);
        world
    }

    fn begin(&mut self, is_witnessed: bool) {
        let policy = self.policy(is_witnessed);
        note!(self, [1], "terms {:?}, policy {policy:?}", self.terms);
        let (generation, nonce) = (GenId(self.rng.id()), Nonce(self.rng.id()));
        let nodes = |site| (0..MEMBERS).map(|member| node_id(party(site, member))).collect();
        let k = genesis(site_id(0), node_id(0), nonce, generation, policy.mode);
        for p in 0..PARTIES {
            let (site, member) = (self.parties[p].site, self.parties[p].member);
            let size = BLOCKS * 4096;
            let kind = match (site, member) {
                (0, 0) => CreateKind::Primary { generation, nonce },
                (0, _) => CreateKind::Member { config: k.clone() },
                _ => CreateKind::Replica { config: k.clone() },
            };
            let params = CreateParams {
                volume: volume_id(member),
                group: GROUP,
                site: site_id(site),
                node: node_id(p),
                secret: self.secret.clone(),
                layout: Layout::one(volume_id(member), size),
                slot_bytes: 256 << 10,
                policy,
                peer: Some(site_id(1 - site)),
                kind,
                adopted: false,
                members: Some(Membership { me: member, nodes: nodes(site), peers: nodes(1 - site) }),
            };
            let new = Node::create(&params);
            let disk = &mut self.parties[p].disk;
            disk.put(FileRef::Superblock, Image::of(&new.superblock));
            disk.put(FileRef::Config, Image::of(&new.config));
            disk.put(FileRef::Base, Image::zeroed(size));
            self.at(0, Ev::Start(p));
        }
        (0..MEMBERS).for_each(|member| self.at(0, Ev::Client(member)));
        self.at(0, Ev::Doctor);
        let after = self.rng.log_between(100, 10_000) * MS;
        self.after(after, Ev::Trouble);
    }

    pub(super) fn at(&mut self, when: u64, ev: Ev) {
        self.agenda.put(when.max(self.now), ev);
    }

    pub(super) fn after(&mut self, ns: u64, ev: Ev) {
        self.at(self.now + ns, ev);
    }

    /// Ends the run with a violation.
    pub(super) fn fail(&mut self, what: String) {
        if self.violation.is_none() {
            note!(self, [99], "VIOLATION {what}");
            self.violation = Some(what);
        }
    }

    /// Runs until all is well again, or something broke.
    pub fn run(&mut self) {
        while !self.finished && self.violation.is_none() {
            let Some((when, ev)) = self.agenda.pop() else {
                return self.fail("nothing will ever happen again".into());
            };
            self.now = when;
            if self.now > LONGEST_MS * MS {
                return self.fail("it takes too long".into());
            }
            self.happen(ev);
        }
    }

    fn happen(&mut self, ev: Ev) {
        match ev {
            Ev::Wake(p, instance) if self.parties[p].instance == instance => self.wake(p),
            Ev::Tick(p, instance) if self.parties[p].instance == instance => self.tick(p),
            Ev::Disk(p, instance, id) if self.parties[p].instance == instance => self.disk_ended(p, id),
            Ev::Agent(p, instance) if self.parties[p].instance == instance => self.agent_turn(p),
            Ev::Wake(..) | Ev::Tick(..) | Ev::Disk(..) | Ev::Agent(..) => {}
            Ev::Arrive(way, conn, to, letter) => self.arrive(way, conn, to, letter),
            Ev::Up(way, conn, side) => self.up(way, conn, side),
            Ev::Down(way, conn, side) => self.down(way, conn, side),
            Ev::Dial(way) => self.dial(way),
            Ev::Start(p) => self.start(p),
            Ev::Carry(id, p, question) => self.carry(id, p, &question),
            Ev::Answer(id, answer) => self.answered(id, answer),
            Ev::GiveUp(id) => self.answered(id, WitnessAnswer::Lost),
            Ev::Client(member) => self.client_turn(member),
            Ev::Stall(way, to, lasts) if !self.is_quiet => self.stall_way(way, to, lasts),
            Ev::Stall(..) => {}
            Ev::Trouble => self.trouble(),
            Ev::Doctor => self.doctor(),
        }
    }

    // ---- processes

    fn start(&mut self, p: usize) {
        let now = self.now;
        let s = &mut self.parties[p];
        if s.node.is_some() || s.down_until.is_some_and(|until| now < until) {
            return;
        }
        s.instance += 1;
        s.down_until = None;
        let ppm = 1_000_000 + self.rng.below(20_000) - 10_000;
        s.clock = Clock::new(self.rng.below(1 << 50), now, ppm);
        s.lease = None;
        let content = |file| s.disk.content(file).unwrap_or_default();
        let params = OpenParams {
            volume: volume_id(s.member),
            site: site_id(s.site),
            node: node_id(p),
            boot: s.boot,
            rng_seed: self.rng.seed32(),
            wall: WallMs(1_700_000_000_000 + now / MS),
            superblock: content(FileRef::Superblock),
            config: content(FileRef::Config),
            slots: s.disk.slots(),
            footers: s.disk.footers(),
            bases: vec![(volume_id(s.member), s.disk.seen(FileRef::Base).map_or(0, Image::len))],
            tail_bytes: 1 << 20,
            lease: self.terms,
        };
        match Node::open(s.clock.at(now), params) {
            Ok(node) => {
                s.node = Some(node);
                s.role = Role::Secondary;
                note!(self, [3, p], "{} starts", name(p));
                self.wake(p);
                self.start_agent(p);
                self.want_dial(between(p), 5 * MS);
                self.want_dial(within(p), 5 * MS);
            }
            Err(why) => self.fail(format!("{} cannot be opened: {why}", name(p))),
        }
    }

    pub(super) fn crash(&mut self, p: usize, crash: Crash) {
        if self.parties[p].node.is_none() {
            return;
        }
        note!(self, [5, p], "{} goes down: {crash:?}", name(p));
        let s = &mut self.parties[p];
        s.node = None;
        s.instance += 1;
        s.inbox.clear();
        (s.waking, s.tick_at, s.serves, s.lease) = (false, None, None, None);
        s.role = Role::Secondary;
        s.disk.crash(crash, &mut self.rng, &mut self.fired);
        if crash == Crash::Power {
            s.boot = BootId(self.rng.id());
        }
        self.fired.hit(if crash == Crash::Power { Fault::PowerCut } else { Fault::Kill });
        self.forget_requests(p);
        for way in [between(p), within(p)] {
            self.break_way(way, crash == Crash::Power, Some(p));
        }
    }

    /// Gives a process a fact; it takes it a moment later, together with others.
    pub(super) fn tell(&mut self, p: usize, input: Input) {
        let s = &mut self.parties[p];
        if s.node.is_none() {
            return;
        }
        s.inbox.push(input);
        if !s.waking {
            s.waking = true;
            let instance = s.instance;
            let delay = if self.rng.percent(50) { 0 } else { self.rng.log_between(1_000, 100_000) };
            self.after(delay, Ev::Wake(p, instance));
        }
    }

    fn tick(&mut self, p: usize) {
        if self.parties[p].tick_at.is_some_and(|at| at <= self.now) {
            self.parties[p].tick_at = None;
            self.tell(p, Input::Tick);
        }
    }

    fn wake(&mut self, p: usize) {
        let now = self.now;
        let s = &mut self.parties[p];
        s.waking = false;
        let local = s.clock.at(now);
        let Some(node) = &mut s.node else { return };
        s.inbox.drain(..).for_each(|input| node.handle(local, input));
        let mut outputs = std::mem::take(&mut self.outputs);
        while let Some(output) = node.poll_output(local) {
            outputs.push(output);
        }
        node.check();
        let (role, due) = (node.role(), node.poll_timeout());
        s.role = role;
        self.judge_party(p);
        self.look(p, role);
        for output in outputs.drain(..) {
            self.perform(p, output);
        }
        self.outputs = outputs;
        self.plan_tick(p, due);
    }

    /// A member that serves under another line than before has opened.
    fn look(&mut self, p: usize, role: Role) {
        let Some(node) = &self.parties[p].node else { return };
        let end = node.appended();
        let (line, k) = ((end.generation, end.incarnation), node.config().clone());
        if role != Role::Primary {
            return self.parties[p].serves = None;
        }
        if self.parties[p].serves == Some(line) {
            return;
        }
        self.parties[p].serves = Some(line);
        if !self.clients[self.parties[p].member].speaks_to(self.parties[p].site, line) {
            note!(self, [6, p], "{} opens under {}", name(p), crate::sim::world::k(&k));
            self.judge_opening(p, &k);
            if self.parties[p].site == 1 || k.epoch.major > 1 {
                self.fired.hit(Fault::Failover);
            }
            self.opened(p, line);
        }
    }

    fn plan_tick(&mut self, p: usize, due: Option<tidemark_core::types::Nanos>) {
        let s = &mut self.parties[p];
        let Some(due) = due else { return };
        let when = s.clock.when(due).max(self.now + 1);
        if s.tick_at.is_none_or(|at| when < at) {
            s.tick_at = Some(when);
            let instance = s.instance;
            self.at(when, Ev::Tick(p, instance));
        }
    }

    fn perform(&mut self, p: usize, output: Output) {
        match output {
            Output::Disk(token, op) => self.submit(p, token, op),
            Output::Send(conn, message) => {
                self.judge_letter(p, &message);
                self.send(between(p), p, conn, Letter::Peer(message));
            }
            Output::SendSite(conn, message) => self.send(within(p), p, conn, Letter::Site(message)),
            Output::Reply(id, result) => self.replied(p, id, result),
            Output::Verb(id, result) => {
                note!(self, [7, p, id.0], "{} verb {}: {:?}", name(p), id.0, result.map(|_| "done"));
            }
            Output::Close(conn, reason) => self.close(p, conn, &reason.to_string()),
            Output::Ask(id, question) => self.ask_witness(p, Asker::Copy(id), question),
            Output::Event(Event::Role { from, to, .. }) => note!(self, [21, p], "{} role {from} -> {to}", name(p)),
            Output::Event(event) => note!(self, [22, p], "{} {event:?}", name(p)),
            Output::Layout { .. } | Output::Held(..) | Output::HoldEnded(_) => {}
        }
    }

    fn submit(&mut self, p: usize, token: tidemark_core::event::DiskToken, op: tidemark_core::event::DiskOp) {
        let mut env =
            Env { rng: &mut self.rng, rates: DiskRates::default(), latency_ns: self.disk_ns, fired: &mut self.fired };
        let s = &mut self.parties[p];
        let instance = s.instance;
        match s.disk.submit(token, op, self.now, &mut env) {
            Err(broken) => self.fail(format!("{}: disk contract: {broken}", name(p))),
            Ok(submitted) => {
                if let Some(after) = submitted.after {
                    self.after(after, Ev::Disk(p, instance, submitted.id));
                }
            }
        }
    }

    fn disk_ended(&mut self, p: usize, id: u64) {
        if let Some((token, result)) = self.parties[p].disk.complete(id, &mut self.rng) {
            self.trace.fold(&[self.now, 10, p as u64, token.0]);
            self.tell(p, Input::Disk(token, result));
        }
    }
}
