//! The world: true time, the queue of what will happen, and the two sites. Single-threaded and deterministic: the seed decides
//! everything.

use std::collections::BTreeMap;

use tidemark_core::config::Mode;
use tidemark_core::event::{ConnId, Event, Input, Output, VerbId};
use tidemark_core::node::OpenParams;
use tidemark_core::ship::{Message, SeedBegin};
use tidemark_core::status::{Role, SuspendReason};
use tidemark_core::types::{BootId, Boundary, GenId, Incarnation, NodeId, Secret, SiteId, VolumeId, WallMs};

use crate::sim::agenda::Agenda;
use crate::sim::agents::{Asker, Errand};
use crate::sim::arbitrated::{Arbitration, Witnessed};
use crate::sim::behind;
use crate::sim::client::Client;
use crate::sim::copy::Copy;
use crate::sim::disk::{Crash, Env};
use crate::sim::faults::{Fault, Fired, Rates};
use crate::sim::group::Group;
use crate::sim::handing;
use crate::sim::model::{LineId, Model, Seq};
use crate::sim::net::{Arrival, Net};
use crate::sim::operator::Operator;
use crate::sim::rng::Rng;
use crate::sim::site::{Clock, Site};
use crate::sim::trace::Trace;

/// Nanoseconds of a millisecond.
pub const MS: u64 = 1_000_000;

/// No seed takes longer, in true time.
const LONGEST_MS: u64 = 3_600_000;

/// Something that will happen.
#[derive(Debug)]
pub enum Ev {
    /// A process takes what is in its inbox.
    Wake(usize, u32),
    /// A process looks at its clock.
    Tick(usize, u32),
    /// A disk operation ends.
    Disk(usize, u32, u64),
    /// A message arrives.
    Arrive(ConnId, usize, Box<Message>, Seq),
    /// An end learns that a stream is up.
    Up(ConnId, usize),
    /// An end learns that a stream is gone.
    Down(ConnId, usize),
    /// The dialling side tries.
    Dial,
    /// A process starts.
    Start(usize),
    /// The link suffers.
    LinkFault,
    /// The workload may go on.
    Client,
    /// The operator looks.
    Doctor,
    /// A bit flips.
    Rot,
    /// Between agents and witness.
    Errand(Errand),
}

/// What a run is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Requests of the workload.
    pub requests: u64,
    /// Lines of text kept for the report.
    pub keep_lines: usize,
    /// Print every line.
    pub print: bool,
    /// Which seeds have a witness.
    pub witnessed: Witnessed,
    /// Two agents a site: the seeds of [`super::members`].
    pub members: bool,
    /// Each seed has a group of several volumes, not only some.
    pub groups: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { requests: 1_000, keep_lines: 0, print: false, witnessed: Witnessed::Some, members: false, groups: false }
    }
}

/// The world.
pub struct World<C> {
    pub(super) rng: Rng,
    pub(super) now: u64,
    agenda: Agenda<Ev>,
    pub(super) sites: [Site<C>; 2],
    pub(super) net: Net,
    pub(super) model: Model,
    pub(super) client: Client,
    pub(super) operator: Operator,
    pub(super) rates: Rates,
    pub(super) arbitration: Option<Box<Arbitration>>,
    pub(super) group: Option<Box<Group>>,
    pub(super) handing: Rng,
    pub(super) fired: Fired,
    pub(super) trace: Trace,
    pub(super) volume: VolumeId,
    pub(super) secret: Secret,
    pub(super) lines: BTreeMap<(GenId, Incarnation), LineId>,
    pub(super) wall: u64,
    pub(super) violation: Option<String>,
    pub(super) finished: bool,
    /// Where the last difference began.
    seeded_from: Option<Boundary>,
    outputs: Vec<Output>,
}

/// Adds a fact to the trace: numbers always, text when it is kept.
macro_rules! note {
    ($world:expr, [$($n:expr),*], $($text:tt)*) => {{
        let now = $world.now;
        $world.trace.fold(&[now $(, $n as u64)*]);
        if $world.trace.is_on() {
            let text = format!($($text)*);
            $world.trace.line(format!("{:>12.3} ms {text}", now as f64 / 1e6));
        }
    }};
}
pub(in crate::sim) use note;

impl<C: Copy> World<C> {
    /// The world of a seed.
    pub fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let mut rates = Rates::draw(&mut rng);
        let mut client = Client::draw(&mut rng, options.requests);
        let mut operator = Operator::draw(&mut rng, &rates, options.requests);
        let (policy, plan) = (&mut operator.policy, &mut operator.plan);
        let (which, requests) = (options.witnessed, options.requests);
        let arbitration = Arbitration::draw(seed, which, &mut rates, policy, plan, requests);
        let slot_bytes = operator.slot_bytes();
        let is_witnessed = arbitration.is_some();
        behind::draw(seed, &mut rates, &mut operator.policy, slot_bytes, &mut operator.plan, is_witnessed);
        let group = Group::draw(seed, client.size, &mut operator.plan, options.requests, options.groups);
        if let Some(group) = &group {
            client.becomes(&group.begins);
        }
        let model = Model::new(client.adopted_sectors, client.max_bytes / 512);
        let sites = std::array::from_fn(|i| Site {
            id: SiteId([i as u8 + 1; 16]),
            node_id: NodeId([i as u8 + 0x11; 16]),
            node: None,
            instance: 0,
            disk: Default::default(),
            bases: None,
            composed_in: 0,
            clock: Clock::new(0, 0, 1_000_000),
            boot: BootId(rng.id()),
            inbox: Vec::new(),
            foretelling: Default::default(),
            waking: false,
            tick_at: None,
            created: false,
            held: false,
            refused: None,
            line: None,
            key: None,
            status: None,
            opened: None,
            opened_with: 0,
            linked_at: 0,
            power_cut_at: 0,
            since: 0,
            erred: false,
            tainted: false,
            misled: false,
            asked_to_join: None,
        });
        let mut world = Self {
            now: 0,
            agenda: Agenda::default(),
            sites,
            net: Net::default(),
            model,
            client,
            operator,
            rates,
            arbitration,
            group,
            handing: handing::stream(seed),
            fired: Fired::default(),
            trace: Trace::new(options.keep_lines, options.print),
            volume: VolumeId(rng.id()),
            secret: Secret(rng.seed32()),
            lines: BTreeMap::new(),
            wall: 1_700_000_000_000,
            violation: None,
            finished: false,
            seeded_from: None,
            outputs: Vec::new(),
            rng,
        };
        if let Some(group) = &world.group {
            world.volume = group.begins.extents()[0].volume;
        }
        world.begin();
        world
    }

    fn begin(&mut self) {
        note!(self, [1], "rates {:?}", self.rates);
        note!(self, [2], "plan {:?}", self.operator.plan);
        self.create_first();
        self.at(self.now, Ev::Start(0));
        self.at(self.now, Ev::Doctor);
        if self.rates.link_fault_ms > 0 {
            let after = self.rng.between(1, 2 * self.rates.link_fault_ms) * MS;
            self.at(after, Ev::LinkFault);
        }
        self.begin_arbitration();
        if self.rates.clock_ppm[0] != self.rates.clock_ppm[1] {
            self.fired.hit(Fault::ClockRate);
        }
    }

    /// Schedules something.
    pub(super) fn at(&mut self, when: u64, ev: Ev) {
        self.agenda.put(when.max(self.now), ev);
    }

    /// Schedules something `ns` from now.
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

    /// Runs until the workload has ended and everything was compared, or something broke.
    pub fn run(&mut self) {
        while !self.finished && self.violation.is_none() {
            let Some((when, ev)) = self.agenda.pop() else {
                return self.fail("nothing will ever happen again".into());
            };
            self.now = when;
            if self.now > LONGEST_MS * MS {
                return self.overdue();
            }
            self.happen(ev);
        }
    }

    fn happen(&mut self, ev: Ev) {
        match ev {
            Ev::Wake(site, instance) if self.sites[site].instance == instance => self.wake(site),
            Ev::Tick(site, instance) if self.sites[site].instance == instance => self.tick(site),
            Ev::Disk(site, instance, id) if self.sites[site].instance == instance => self.disk_ended(site, id),
            Ev::Wake(..) | Ev::Tick(..) | Ev::Disk(..) => {}
            Ev::Arrive(conn, to, message, sent) => self.arrive(conn, to, message, sent),
            Ev::Up(conn, side) => self.up(conn, side),
            Ev::Down(conn, side) => self.down(conn, side),
            Ev::Dial => self.dial(),
            Ev::Start(site) => self.start(site),
            Ev::LinkFault => self.link_fault(),
            Ev::Client => self.client_turn(),
            Ev::Doctor => self.doctor(),
            Ev::Rot => self.rot(),
            Ev::Errand(errand) => self.errand(errand),
        }
    }

    // ---- processes

    /// A process starts from what the disks hold.
    fn start(&mut self, site: usize) {
        let s = &mut self.sites[site];
        if s.node.is_some() || !s.created || s.held || s.refused.is_some() {
            return;
        }
        s.instance += 1;
        s.clock = Clock::new(self.rng.below(1 << 50), self.now, self.rates.clock_ppm[site]);
        s.since = self.now;
        if self.rng.percent(20) {
            self.fired.hit(Fault::WallJump);
            self.wall = self.wall.wrapping_add_signed(self.rng.between(0, 7_200_000) as i64 - 3_600_000);
        }
        let s = &mut self.sites[site];
        let content = |file| s.disk.content(file).unwrap_or_default();
        let params = OpenParams {
            volume: self.volume,
            site: s.id,
            node: s.node_id,
            boot: s.boot,
            rng_seed: self.rng.seed32(),
            wall: WallMs(self.wall + self.now / MS),
            superblock: content(tidemark_core::event::FileRef::Superblock),
            config: content(tidemark_core::event::FileRef::Config),
            slots: s.disk.slots(),
            footers: s.disk.footers(),
            bases: match &s.bases {
                Some(bases) => bases.list(),
                None => vec![(self.volume, s.disk.seen(tidemark_core::event::FileRef::Base).map_or(0, |b| b.len()))],
            },
            tail_bytes: self.operator.tail_bytes,
            lease: self.arbitration.as_ref().map(|arb| arb.terms),
        };
        let instance = s.instance;
        match C::open(s.clock.at(self.now), params) {
            Ok(node) => {
                self.sites[site].node = Some(node);
                note!(self, [3, site, instance], "{} starts, process {instance}", name(site));
                self.wake(site);
                self.start_agent(site);
                self.want_dial(5 * MS);
                self.after(MS, Ev::Client);
            }
            Err(why) => self.refused(site, why),
        }
    }

    fn refused(&mut self, site: usize, why: String) {
        note!(self, [4, site], "{} cannot be opened: {why}", name(site));
        if !self.sites[site].tainted {
            return self.fail(format!("{} cannot be opened although its medium never lied: {why}", name(site)));
        }
        self.sites[site].refused = Some(why);
    }

    /// The site goes down.
    pub(super) fn crash(&mut self, site: usize, crash: Crash) {
        self.refresh_line(site);
        note!(self, [5, site, crash as u64], "{} goes down: {crash:?}", name(site));
        if self.sites[site].node.is_none() {
            return;
        }
        let line = self.sites[site].opened.filter(|o| o.0 == self.sites[site].instance).map(|o| o.1);
        if let Some(line) = line {
            self.model.killed(site, line);
        }
        let s = &mut self.sites[site];
        s.node = None;
        s.instance += 1;
        s.inbox.clear();
        s.foretelling.forget();
        s.waking = false;
        s.tick_at = None;
        s.since = self.now;
        s.disk.crash(crash, &mut self.rng, &mut self.fired);
        if crash == Crash::Power {
            s.boot = BootId(self.rng.id());
            s.power_cut_at = self.now;
            self.model.power_cut(site);
            self.fired.hit(Fault::PowerCut);
        } else {
            self.fired.hit(Fault::Kill);
        }
        self.forget_requests(site);
        self.drop_streams_of(site, crash == Crash::Power);
    }

    /// The process ended in order.
    pub(super) fn stopped(&mut self, site: usize) {
        self.fired.hit(Fault::CleanRestart);
        self.refresh_line(site);
        let s = &mut self.sites[site];
        s.node = None;
        s.instance += 1;
        s.inbox.clear();
        s.foretelling.forget();
        s.waking = false;
        s.tick_at = None;
        s.since = self.now;
        s.disk.crash(Crash::Kill, &mut self.rng, &mut self.fired);
        self.forget_requests(site);
        self.drop_streams_of(site, false);
    }

    /// Gives a process a fact; it takes it a moment later, together with others.
    pub(super) fn tell(&mut self, site: usize, input: Input) {
        self.tell_of(site, input, self.model.now());
    }

    fn tell_of(&mut self, site: usize, input: Input, sent: Seq) {
        let s = &mut self.sites[site];
        if s.node.is_none() {
            return;
        }
        s.inbox.push((input, sent));
        if !s.waking {
            s.waking = true;
            let instance = s.instance;
            let pause = self.rates.pause;
            let delay = if self.rng.ppm(pause) {
                self.fired.hit(Fault::Pause);
                self.rng.log_between(10 * MS, 4_000 * MS)
            } else if self.rng.percent(50) {
                0
            } else {
                self.rng.log_between(1_000, 100_000)
            };
            self.after(delay, Ev::Wake(site, instance));
        }
    }

    fn tick(&mut self, site: usize) {
        if self.sites[site].tick_at.is_some_and(|at| at <= self.now) {
            self.sites[site].tick_at = None;
            self.tell(site, Input::Tick);
        }
    }

    fn wake(&mut self, site: usize) {
        let now = self.now;
        let s = &mut self.sites[site];
        s.waking = false;
        let local = s.clock.at(now);
        let Some(node) = &mut s.node else { return };
        for (input, sent) in s.inbox.drain(..) {
            s.foretelling.before(now, local, node, &input, sent);
            node.handle(local, input);
        }
        let mut outputs = std::mem::take(&mut self.outputs);
        while let Some(output) = node.poll_output(local) {
            outputs.push(output);
        }
        node.check();
        let changed = outputs.iter().any(|o| matches!(o, Output::Event(_) | Output::Verb(..)));
        if changed {
            self.look(site);
        }
        let instance = self.sites[site].instance;
        for output in outputs.drain(..) {
            // A process that ended in order is gone with the rest of what it wanted.
            if self.sites[site].instance == instance {
                self.output(site, output);
            }
        }
        self.outputs = outputs;
        self.plan_tick(site);
    }

    fn plan_tick(&mut self, site: usize) {
        let now = self.now;
        let s = &mut self.sites[site];
        let Some(due) = s.node.as_ref().and_then(|n| n.poll_timeout()) else { return };
        let when = s.clock.when(due).max(now + 1);
        if s.tick_at.is_none_or(|at| when < at || at < now) {
            s.tick_at = Some(when);
            let instance = s.instance;
            self.at(when, Ev::Tick(site, instance));
        }
    }

    fn output(&mut self, site: usize, output: Output) {
        match output {
            Output::Disk(token, op) => self.submit(site, token, op),
            Output::Send(conn, message) => {
                self.strike_handing(site, &message);
                self.send(site, conn, message);
            }
            Output::Reply(id, result) => self.replied(site, id, result),
            Output::Verb(id, result) => self.verb_ended(site, id, result),
            Output::Close(conn, reason) => self.close(site, conn, &reason.to_string()),
            Output::Ask(id, question) => self.ask_witness(site, Asker::Copy(id), question),
            Output::Layout { layout, base } => self.compose(site, layout, base),
            Output::Event(event) => self.saw(site, event),
            Output::Held(..) | Output::HoldEnded(_) => {} // nobody looks at copies here
            Output::SendSite(..) => self.fail(format!("{} speaks to a member that it does not have", name(site))),
        }
    }

    fn saw(&mut self, site: usize, event: Event) {
        note!(self, [6, site], "{} {event:?}", name(site));
        if matches!(event, Event::Recovered { .. }) {
            self.note_recovered(site);
        }
        let lacking = matches!(event, Event::Alarm { code: "log_damaged" | "tail_missing", .. });
        if lacking && !self.sites[site].tainted && !self.sites[site].misled {
            self.fail(format!("{} lacks durable records although its medium never lied: {event:?}", name(site)));
        }
    }

    /// Takes the status of a site and draws conclusions from a change of role.
    pub(super) fn look(&mut self, site: usize) {
        let now = self.now;
        let s = &mut self.sites[site];
        let Some(node) = &s.node else { return };
        let status = node.status(s.clock.at(now));
        s.status = Some(Box::new(status));
        self.refresh_line(site);
        self.judge_kept(site);
        match self.sites[site].role() {
            Some(Role::Primary) => self.became_primary(site),
            Some(Role::Suspended(
                SuspendReason::LogFull | SuspendReason::User | SuspendReason::Failed | SuspendReason::LeaseLost,
            )) => {}
            Some(Role::Fenced(_)) => {
                self.sites[site].opened = None;
                self.model.gave_way(site);
            }
            // Whatever is served next is served in another line.
            _ => self.sites[site].opened = None,
        }
    }

    /// The history that the site's log follows, as far as it is known.
    pub(super) fn refresh_line(&mut self, site: usize) {
        let s = &mut self.sites[site];
        let Some(node) = &s.node else { return };
        let appended = node.appended();
        let key = (appended.generation, appended.incarnation);
        if let Some(line) = self.lines.get(&key) {
            s.line = Some(*line);
            s.key = Some(key);
        }
    }

    fn became_primary(&mut self, site: usize) {
        let instance = self.sites[site].instance;
        if self.sites[site].opened.is_some_and(|o| o.0 == instance && self.sites[site].line == Some(o.1)) {
            return;
        }
        let Some(status) = self.sites[site].status.clone() else { return };
        let key = (status.appended.generation, status.appended.incarnation);
        let Some(line) = self.lines.get(&key).copied() else {
            return self.fail(format!("{} serves in an incarnation that its log does not have", name(site)));
        };
        if self.operator.opened.contains(&line) {
            return self
                .fail(format!("{} serves, but line {line} had been opened before: no new incarnation", name(site)));
        }
        self.operator.opened.push(line);
        let other = &self.sites[1 - site];
        if let Some(theirs) = &other.status
            && other.is_primary()
            && theirs.config.id() == status.config.id()
        {
            return self.fail(format!("two primaries at epoch {}", status.config.epoch));
        }
        note!(self, [7, site, line], "{} serves line {line} at epoch {}", name(site), status.config.epoch);
        self.sites[site].opened = Some((instance, line));
        self.sites[site].opened_with = self.terms(site).filter(|t| t.mode == Mode::Sync).map_or(0, |t| t.sites);
        if self.is_witnessed() {
            self.judge_opened(site, line);
            self.retarget(site);
        }
        self.begin_scan(site, line, status.size);
    }

    // ---- disks

    fn submit(&mut self, site: usize, token: tidemark_core::event::DiskToken, op: tidemark_core::event::DiskOp) {
        self.peek(site, &op);
        if self.trace.is_on() {
            note!(self, [8, site, token.0], "{} disk {} {}", name(site), token.0, brief(&op));
        } else {
            self.trace.fold(&[self.now, 8, site as u64, token.0]);
        }
        let before: u64 = LIES.iter().map(|f| self.fired.count(*f)).sum();
        let mut env = Env {
            rng: &mut self.rng,
            rates: self.rates.disk[site],
            latency_ns: self.rates.disk_ns,
            fired: &mut self.fired,
        };
        let s = &mut self.sites[site];
        let submitted = s.disk.submit(token, op, self.now, &mut env);
        s.tainted |= LIES.iter().map(|f| self.fired.count(*f)).sum::<u64>() > before;
        let instance = s.instance;
        match submitted {
            Err(broken) => self.fail(format!("{}: disk contract: {broken}", name(site))),
            Ok(sub) => {
                if let Some(after) = sub.after {
                    self.after(after, Ev::Disk(site, instance, sub.id));
                }
            }
        }
    }

    fn disk_ended(&mut self, site: usize, id: u64) {
        let room = self.sites[site].disk.room_asked(id);
        if let Some((token, result)) = self.sites[site].disk.complete(id, &mut self.rng) {
            if let (Some(layout), Some(bases), true) = (room, &mut self.sites[site].bases, result.is_ok()) {
                bases.make_room(&layout);
            }
            if let Err(error) = &result {
                note!(self, [9, site, token.0], "{} disk {} failed: {error}", name(site), token.0);
                self.sites[site].erred = true;
            } else {
                self.trace.fold(&[self.now, 10, site as u64, token.0]);
            }
            self.tell(site, Input::Disk(token, result));
        }
    }

    /// Looks at frames on their way to a log: a new incarnation begins a new line.
    fn peek(&mut self, site: usize, op: &tidemark_core::event::DiskOp) {
        use tidemark_core::event::{DiskOp, FileRef};
        let DiskOp::Write { file: FileRef::Log(_), bufs, .. } = op else { return };
        for buf in bufs {
            let Some(key) = frame_key(buf) else { continue };
            if self.sites[site].key == Some(key) {
                continue;
            }
            self.sites[site].key = Some(key);
            let line = match self.lines.get(&key) {
                Some(line) => *line,
                None => {
                    let parent = self.sites[site].line;
                    let Some(line) = self.model.open_line(site, parent) else {
                        return self.fail("too many openings for one seed".into());
                    };
                    note!(self, [11, site, line], "{} begins line {line} after {parent:?}", name(site));
                    self.lines.insert(key, line);
                    line
                }
            };
            self.sites[site].line = Some(line);
        }
    }

    fn rot(&mut self) {
        let Some(site) = self.rates.liar else { return };
        if let Some(fault) = self.sites[site].disk.rot(&mut self.rng) {
            note!(self, [12, site], "{} bit flips: {fault:?}", name(site));
            self.fired.hit(fault);
            self.sites[site].tainted = true;
        }
    }

    // ---- network

    /// Schedules a dial unless the dialling side believes in a stream or one is scheduled.
    pub(super) fn want_dial(&mut self, within: u64) {
        if !self.net.dialing && !self.net.believes(0) {
            self.net.dialing = true;
            let after = self.rng.log_between(100_000, within.max(200_000));
            self.after(after, Ev::Dial);
        }
    }

    fn dial(&mut self) {
        self.net.dialing = false;
        let both = self.sites.iter().all(|s| s.node.is_some());
        if self.net.believes(0) || !both {
            return;
        }
        if self.now < self.net.cut_until {
            return self.want_dial(300 * MS);
        }
        let (low, high) = self.rates.net_ns;
        let up_at: [u64; 2] = std::array::from_fn(|_| self.now + self.rng.log_between(low, high));
        let conn = self.net.open([self.sites[0].instance, self.sites[1].instance], up_at);
        self.at(up_at[0], Ev::Up(conn, 0));
        self.at(up_at[1], Ev::Up(conn, 1));
    }

    fn up(&mut self, conn: ConnId, side: usize) {
        let instance = self.sites[side].instance;
        let Some(c) = self.net.conn(conn) else { return };
        if c.gone[side] || c.instance[side] != instance {
            return;
        }
        c.up[side] = true;
        note!(self, [13, side, conn.0], "{} stream {} is up", name(side), conn.0);
        self.sites[side].linked_at = self.now;
        let site = self.sites[1 - side].id;
        self.tell(side, Input::PeerUp { conn, site });
    }

    fn down(&mut self, conn: ConnId, side: usize) {
        let instance = self.sites[side].instance;
        let Some(c) = self.net.conn(conn) else { return };
        if c.gone[side] {
            return;
        }
        c.gone[side] = true;
        let known = c.up[side] && c.instance[side] == instance;
        if known {
            note!(self, [14, side, conn.0], "{} stream {} is down", name(side), conn.0);
            self.tell(side, Input::PeerDown(conn));
        }
        self.want_dial(500 * MS);
    }

    fn send(&mut self, site: usize, conn: ConnId, message: Message) {
        let to = 1 - site;
        let (low, high) = self.rates.net_ns;
        let mut delay = self.rng.log_between(low, high);
        if self.rng.ppm(self.rates.slow_message) {
            self.fired.hit(Fault::SlowMessage);
            delay += self.rng.log_between(10 * MS, 2_000 * MS);
        }
        if self.trace.is_on() {
            note!(self, [15, site, conn.0], "{} sends on {}: {}", name(site), conn.0, gist(&message));
        } else {
            self.trace.fold(&[self.now, 15, site as u64, conn.0]);
        }
        self.judge_joining(site, &message);
        self.count_differences(&message);
        let now = self.now;
        if let Some(at) = self.net.conn(conn).and_then(|c| c.arrival(to, now, delay)) {
            self.at(at, Ev::Arrive(conn, to, Box::new(message), self.model.now()));
        }
    }

    fn count_differences(&mut self, message: &Message) {
        let Message::SeedBegin(SeedBegin { pass: 1, from: Some(from), .. }) = message else { return };
        let again = self.seeded_from.replace(*from) == Some(*from);
        self.fired.hit(if again { Fault::DifferenceAgain } else { Fault::Difference });
    }

    /// A site joins S only with the durable tail that the primary named.
    fn judge_joining(&mut self, site: usize, message: &Message) {
        match message {
            Message::Expand { config, tail } => {
                self.sites[1 - site].asked_to_join = Some((config.epoch, config.nonce, tail.position.lsn));
            }
            Message::ConfigAnswer { epoch, nonce, result: Ok(()) } => {
                let s = &self.sites[site];
                let asked = s.asked_to_join.filter(|asked| (asked.0, asked.1) == (*epoch, *nonce) && !s.tainted);
                let durable = s.node.as_ref().map(|node| node.durable());
                if let (Some((_, _, tail)), Some(durable)) = (asked, durable)
                    && durable < tail
                {
                    self.fail(format!("{} joins S with {durable} durable, without the tail {tail}", name(site)));
                }
            }
            _ => {}
        }
    }

    fn arrive(&mut self, conn: ConnId, to: usize, message: Box<Message>, sent: Seq) {
        let (now, instance) = (self.now, self.sites[to].instance);
        let Some(c) = self.net.conn(conn) else { return };
        if c.instance[to] != instance {
            return;
        }
        match c.arrive(to, now) {
            Arrival::Lost => {}
            Arrival::Later(at) => self.at(at, Ev::Arrive(conn, to, message, sent)),
            Arrival::Now => {
                if self.net.is_replaced(conn, to) {
                    self.fired.hit(Fault::StaleMessage);
                }
                self.heed(to, &message);
                self.tell_of(to, Input::PeerMessage(conn, *message), sent);
            }
        }
    }

    /// A peer whose medium lied may claim a floor that never was here: its word is kept, and missed from then on.
    fn heed(&mut self, site: usize, message: &Message) {
        let Message::Hello(hello) = message else { return };
        let tainted = self.sites[1 - site].tainted;
        let s = &mut self.sites[site];
        if let Some(node) = s.node.as_ref().filter(|_| tainted) {
            s.misled |= hello.floor.position.lsn > node.appended().lsn;
        }
    }

    fn close(&mut self, site: usize, conn: ConnId, reason: &str) {
        note!(self, [16, site, conn.0], "{} closes {}: {reason}", name(site), conn.0);
        let delay = self.rng.log_between(self.rates.net_ns.0, self.rates.net_ns.1);
        let now = self.now;
        if let Some(at) = self.net.conn(conn).and_then(|c| c.close(site, now, delay)) {
            self.at(at, Ev::Down(conn, 1 - site));
        }
        self.want_dial(1_000 * MS);
    }

    fn drop_streams_of(&mut self, site: usize, slow: bool) {
        for id in self.net.whole() {
            let (now, mut rng) = (self.now, self.rng.fork());
            let Some(c) = self.net.conn(id) else { continue };
            c.gone[site] = true;
            let notices = c.break_up(now, slow, &mut rng, &mut self.fired);
            self.schedule_downs(id, notices);
        }
        self.net.whole();
        self.want_dial(500 * MS);
    }

    fn schedule_downs(&mut self, id: ConnId, notices: [Option<u64>; 2]) {
        for (side, notice) in notices.into_iter().enumerate() {
            if let Some(at) = notice {
                self.at(at, Ev::Down(id, side));
            }
        }
    }

    pub(super) fn break_streams(&mut self, slow: bool) {
        for id in self.net.whole() {
            let (now, mut rng) = (self.now, self.rng.fork());
            if let Some(c) = self.net.conn(id) {
                let notices = c.break_up(now, slow, &mut rng, &mut self.fired);
                self.schedule_downs(id, notices);
            }
        }
    }

    /// Nothing flows for so long.
    pub(super) fn cut(&mut self, ms: u64) {
        self.fired.hit(Fault::Partition);
        self.break_streams(false);
        self.net.cut_until = self.net.cut_until.max(self.now + ms * MS);
    }

    fn link_fault(&mut self) {
        if self.operator.is_ending() || self.rates.link_fault_ms == 0 {
            return;
        }
        let mean = self.rates.link_fault_ms;
        let mut next = self.rng.between(1, 2 * mean) * MS;
        match self.rng.below(10) {
            0..=3 => self.break_streams(false),
            4..=5 => {
                self.fired.hit(Fault::Partition);
                self.break_streams(true);
                let lasts = self.rng.log_between(20, 8_000) * MS;
                self.net.cut_until = self.now + lasts;
                next += lasts;
            }
            6..=7 => self.one_way(),
            _ => {
                self.fired.hit(Fault::Flap);
                self.break_streams(false);
                next = self.rng.between(20, 120) * MS;
            }
        }
        note!(self, [17], "link fault, next in {} ms", next / MS);
        self.after(next, Ev::LinkFault);
    }

    /// Bytes stop in one direction; long stalls end with the stream.
    fn one_way(&mut self) {
        self.fired.hit(Fault::OneWay);
        let to = self.rng.below(2) as usize;
        let lasts = self.rng.log_between(20, 8_000);
        if lasts > crate::sim::net::KEEPALIVE_MS {
            return self.break_streams(true);
        }
        let until = self.now + lasts * MS;
        for id in self.net.whole() {
            if let Some(c) = self.net.conn(id) {
                c.stall(to, until);
            }
        }
    }

    /// True when a site's copy is up and, as last seen, in that role.
    pub(super) fn has_role(&self, site: usize, role: Role) -> bool {
        self.sites[site].role() == Some(role)
    }

    /// A new verb's number.
    pub(super) fn next_verb(&mut self) -> VerbId {
        self.operator.verbs_issued += 1;
        VerbId(self.operator.verbs_issued)
    }
}

const LIES: [Fault; 2] = [Fault::Misdirected, Fault::LostWrite];

/// A or B.
pub fn name(site: usize) -> &'static str {
    ["A", "B"][site]
}

/// Generation and incarnation of the frame that begins in `buf`, if one does.
fn frame_key(buf: &[u8]) -> Option<(GenId, Incarnation)> {
    const MAGIC: [u8; 4] = tidemark_core::format::frame::MAGIC.to_le_bytes();
    if buf.len() < 52 || buf[..4] != MAGIC {
        return None;
    }
    let generation = GenId(buf[32..48].try_into().ok()?);
    Some((generation, Incarnation(u32::from_le_bytes(buf[48..52].try_into().ok()?))))
}

fn brief(op: &tidemark_core::event::DiskOp) -> String {
    use tidemark_core::event::DiskOp as D;
    match op {
        D::Write { file, offset, bufs, durable } => {
            let durably = if *durable { "durable " } else { "" };
            format!("{durably}write {file:?} {offset}+{}", bufs.iter().map(|b| b.len()).sum::<usize>())
        }
        D::Replace { file, data } => format!("replace {file:?} {}", data.iter().map(|b| b.len()).sum::<usize>()),
        other => format!("{other:?}"),
    }
}

fn short(p: tidemark_core::types::Position) -> (u8, u32, u64) {
    (p.generation.0[0], p.incarnation.0, p.lsn.0)
}

pub(in crate::sim) fn k(config: &tidemark_core::config::Config) -> String {
    let sites: Vec<u8> = config.sites.iter().map(|s| s.0[0]).collect();
    format!(
        "K {} primary {:?} S {sites:?} {:?} gen {:02x}{}",
        config.epoch,
        config.primary.map(|p| p.0[0]),
        config.mode,
        config.generation.0[0],
        if config.forced { " forced" } else { "" }
    )
}

pub(in crate::sim) fn gist(message: &Message) -> String {
    match message {
        Message::Append(a) => format!(
            "Append epoch {} first {} header {} payload {}",
            a.epoch,
            a.header.get(56..64).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes),
            a.header.len(),
            a.payload.iter().map(|p| p.len()).sum::<usize>()
        ),
        Message::Base(b) => format!("Base {:?} as of {:?}, {} bytes", b.range, b.as_of.lsn, b.data.len()),
        Message::Hello(h) => format!(
            "Hello epoch {} S {} primary {} seed {} suspect {} floor {:?} tail {:?} remembered {:?} history {:?}",
            h.config.epoch,
            h.config.sites.len(),
            h.is_primary,
            h.needs_seed,
            h.is_suspect,
            short(h.floor.position),
            short(h.tail.position),
            h.remembered.map(|r| short(r.position)),
            h.history.iter().map(|e| (e.generation.0[0], e.incarnation.0, e.fork.0)).collect::<Vec<_>>()
        ),
        Message::Expand { config, tail } => format!("Expand {} {:?}", k(config), short(tail.position)),
        Message::Adopt { config, step, tail } => format!("Adopt {step:?} {} {:?}", k(config), short(tail.position)),
        Message::Fenced(config) => format!("Fenced {}", k(config)),
        Message::Ack(a) => format!(
            "Ack epoch {} {:02x}.{} appended {} durable {} floor {}",
            a.epoch, a.generation.0[0], a.incarnation.0, a.appended, a.durable, a.floor
        ),
        other => format!("{other:?}"),
    }
}
