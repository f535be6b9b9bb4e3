//! The workload: what is asked of the volume, and what each answer means to the model.

use std::collections::BTreeMap;

use bytes::BytesMut;
use tidemark_core::event::{Input, ReplyData, Request, RequestError, RequestId};
use tidemark_core::layout::Layout;
use tidemark_core::status::Role;
use tidemark_core::types::{ByteRange, SECTOR};

use crate::sim::copy::Copy;
use crate::sim::faults::Fault;
use crate::sim::model::{LineId, ReadCheck, Seq};
use crate::sim::pattern::{self, OpId, Value};
use crate::sim::rng::Rng;
use crate::sim::site::{Terms, owing};
use crate::sim::world::{Ev, MS, World, name, note};

const SCAN_SECTORS: u64 = 256;

#[derive(Debug)]
enum Kind {
    Change {
        ops: Vec<OpId>,
        fua: bool,
        at: Seq,
    },
    Read(ReadCheck),
    Flush {
        at: Seq,
    },
    Scan {
        first: u64,
        sectors: u64,
    },
    /// Sent to a site that does not serve.
    Wrong,
}

#[derive(Debug)]
struct Asked {
    site: usize,
    line: LineId,
    terms: Option<Terms>,
    kind: Kind,
    since: u64,
}

#[derive(Debug)]
struct Scan {
    line: LineId,
    values: Vec<Value>,
    left: usize,
    failed: bool,
    blocking: bool,
}

/// The workload's own state.
#[derive(Debug)]
pub struct Client {
    /// The site that is asked.
    pub target: usize,
    /// Requests still to issue.
    pub remaining: u64,
    /// Requests issued.
    pub issued: u64,
    /// Size of the volume in bytes as last told.
    pub size: u64,
    /// The most it will grow to.
    pub max_bytes: u64,
    /// Sectors that hold data before the volume exists.
    pub adopted_sectors: u64,
    /// True time of the last answer.
    pub answered_at: u64,
    scheduled: bool,
    depth: usize,
    hot: (u64, u64),
    mix: Mix,
    in_flight: BTreeMap<RequestId, Asked>,
    scans: [Option<Scan>; 2],
    next: u64,
}

#[derive(Debug)]
struct Mix {
    read: u32,
    flush: u32,
    zero: u32,
    fua: u32,
    partial: u32,
    large: u32,
    think: u32,
}

impl Client {
    /// Draws a seed's workload.
    pub fn draw(rng: &mut Rng, requests: u64) -> Self {
        let blocks = rng.log_between(64, 1024);
        let size = blocks * 4096 + if rng.percent(30) { 512 * rng.between(1, 7) } else { 0 };
        let mix = Mix {
            read: rng.between(5, 35) as u32,
            flush: if rng.percent(10) { 1 } else { rng.between(3, 25) as u32 },
            zero: rng.between(0, 12) as u32,
            fua: rng.between(0, 15) as u32,
            partial: rng.between(0, 70) as u32,
            large: rng.between(0, 8) as u32,
            think: rng.between(0, 60) as u32,
        };
        Self {
            target: 0,
            remaining: requests,
            issued: 0,
            size,
            max_bytes: size + (2 << 20),
            adopted_sectors: if rng.percent(20) { size / 512 } else { 0 },
            answered_at: 0,
            scheduled: false,
            depth: rng.between(1, 16) as usize,
            hot: (0, rng.log_between(8, 512)),
            mix,
            in_flight: BTreeMap::new(),
            scans: [None, None],
            next: 0,
        }
    }

    /// It is of several volumes, of zeros.
    pub fn becomes(&mut self, layout: &Layout) {
        (self.size, self.adopted_sectors) = (layout.size(), 0);
        self.max_bytes = self.size + (2 << 20);
    }

    /// Number of the last request.
    pub fn last_request(&self) -> u64 {
        self.next
    }

    /// A request up to that one waits for its answer.
    pub fn waits_for_one_upto(&self, last: u64) -> bool {
        self.in_flight.keys().next().is_some_and(|id| id.0 <= last)
    }

    /// Requests not answered.
    pub fn outstanding(&self) -> usize {
        self.in_flight.len()
    }

    /// Requests not answered by a site.
    pub fn outstanding_at(&self, site: usize) -> usize {
        self.in_flight.values().filter(|asked| asked.site == site).count()
    }

    /// True time since which the oldest request waits.
    pub fn oldest(&self) -> Option<u64> {
        self.in_flight.values().map(|a| a.since).min()
    }

    fn is_blocked(&self, site: usize) -> bool {
        self.scans[site].as_ref().is_some_and(|s| s.blocking)
    }

    /// True while the content of an opening is being read.
    pub fn is_scanning(&self, site: usize) -> bool {
        self.scans[site].is_some()
    }
}

fn values(data: &ReplyData, first: u64) -> Vec<Value> {
    let mut out = Vec::new();
    let mut carry: Vec<u8> = Vec::new();
    for piece in data {
        let mut rest = &piece[..];
        if !carry.is_empty() {
            let n = rest.len().min(SECTOR - carry.len());
            carry.extend_from_slice(&rest[..n]);
            rest = &rest[n..];
            if carry.len() == SECTOR {
                out.push(pattern::read_sector(&carry, first + out.len() as u64));
                carry.clear();
            }
        }
        let mut chunks = rest.chunks_exact(SECTOR);
        for sector in &mut chunks {
            out.push(pattern::read_sector(sector, first + out.len() as u64));
        }
        carry.extend_from_slice(chunks.remainder());
    }
    out
}

impl<C: Copy> World<C> {
    /// The workload may issue more.
    pub(super) fn client_turn(&mut self) {
        self.client.scheduled = false;
        while self.client.remaining > 0 && self.occupied() < self.client.depth {
            if !self.issue_one() {
                return;
            }
            if let Some(pause) = self.pace() {
                return self.wake_client(pause);
            }
            if self.rng.percent(self.client.mix.think) {
                let pause = self.rng.log_between(1_000, 3 * MS);
                return self.wake_client(pause);
            }
        }
    }

    /// What waits at one site does not keep the workload from the other where that took over.
    fn occupied(&self) -> usize {
        match self.is_witnessed() {
            true => self.client.outstanding_at(self.client.target),
            false => self.client.outstanding(),
        }
    }

    /// Lets the workload go on after a while.
    pub(super) fn wake_client(&mut self, after: u64) {
        if !self.client.scheduled {
            self.client.scheduled = true;
            self.after(after, Ev::Client);
        }
    }

    /// The line in which the target serves, when it can be asked.
    pub(super) fn open_line_at(&self, site: usize) -> Option<LineId> {
        let s = &self.sites[site];
        s.node.as_ref()?;
        let (instance, line) = s.opened?;
        let serves = matches!(s.role(), Some(Role::Primary | Role::Suspended(_)));
        (instance == s.instance && serves && !self.client.is_blocked(site)).then_some(line)
    }

    fn issue_one(&mut self) -> bool {
        self.run_plan();
        let site = self.client.target;
        if self.is_waiting_for_calm() {
            return false;
        }
        let Some(line) = self.open_line_at(site) else { return false };
        self.client.remaining -= 1;
        self.client.issued += 1;
        if self.rng.ppm(3_000) {
            self.ask_wrong_site(1 - site);
        }
        let (draw, mix) = (self.rng.below(100) as u32, &self.client.mix);
        let (read, flush, zero) = (mix.read, mix.read + mix.flush, mix.read + mix.flush + mix.zero);
        match draw {
            d if d < read && self.client.scans[site].is_none() => self.issue_read(site, line),
            d if d < flush => self.issue_flush(site, line),
            d if d < zero => self.issue_zero(site, line),
            _ => self.issue_write(site, line),
        }
        true
    }

    /// First sector and length of a request.
    fn range(&mut self) -> (u64, u64) {
        let total = self.client.size / 512;
        let (rng, mix) = (&mut self.rng, &self.client.mix);
        let (mut first, mut len);
        if rng.percent(mix.large) {
            len = rng.between(64, 512);
            first = rng.below(total);
        } else {
            len = rng.between(1, 16);
            let hot = self.client.hot.1.min(total);
            first = if rng.percent(75) { self.client.hot.0 + rng.below(hot) } else { rng.below(total) };
            if rng.percent(2) {
                first = total - 1;
            }
        }
        if !rng.percent(mix.partial) {
            first = first / 8 * 8;
            len = len.div_ceil(8) * 8;
        }
        first = first.min(total - 1);
        self.inside_a_volume(self.client.target, first, len.min(total - first))
    }

    fn ask(&mut self, site: usize, line: LineId, kind: Kind, request: Request) {
        self.client.next += 1;
        let id = RequestId(self.client.next);
        if self.trace.is_on() {
            note!(self, [20, site, id.0], "{} request {} {} (line {line}) {kind:?}", name(site), id.0, brief(&request));
        } else {
            self.trace.fold(&[self.now, 20, site as u64, id.0]);
        }
        let terms = match kind {
            Kind::Wrong => None,
            _ => self.terms(site),
        };
        self.client.in_flight.insert(id, Asked { site, line, terms, kind, since: self.now });
        self.tell(site, Input::Request(id, request));
    }

    pub(super) fn terms(&self, site: usize) -> Option<Terms> {
        let node = self.sites[site].node.as_ref()?;
        let (config, ack_on) = node.terms();
        Some(Terms::of(config, ack_on, [self.sites[0].id, self.sites[1].id]))
    }

    fn issue_write(&mut self, site: usize, line: LineId) {
        let (first, sectors) = self.range();
        let fua = self.rng.percent(self.client.mix.fua);
        let at = self.model.mark();
        let (mut ops, mut from) = (Vec::new(), first);
        let mut data = BytesMut::with_capacity(sectors as usize * SECTOR);
        // A write larger than a record is cut where the core cuts it: each record is there or not by itself.
        let record = self.operator.record_sectors();
        while from < first + sectors {
            let end = (first / 8 * 8 + (ops.len() as u64 + 1) * record).min(first + sectors);
            let op = self.model.issue_write(line, from, end - from);
            pattern::append_payload(&mut data, op, from, end - from);
            ops.push(op);
            from = end;
        }
        let request = Request::Write { range: bytes(first, sectors), data: data.freeze(), fua };
        self.ask(site, line, Kind::Change { ops, fua, at }, request);
    }

    fn issue_zero(&mut self, site: usize, line: LineId) {
        let (first, sectors) = self.range();
        let (fua, discard) = (self.rng.percent(self.client.mix.fua), self.rng.percent(50));
        let at = self.model.mark();
        let ops = self.model.issue_zero(line, first, sectors, discard);
        let request = Request::Zero { range: bytes(first, sectors), discard, fua };
        self.ask(site, line, Kind::Change { ops, fua, at }, request);
    }

    pub(super) fn issue_read(&mut self, site: usize, line: LineId) {
        let (first, sectors) = self.range();
        let check = self.model.issue_read(line, first, sectors);
        self.ask(site, line, Kind::Read(check), Request::Read { range: bytes(first, sectors) });
    }

    /// A flush of the workload.
    pub(super) fn issue_flush(&mut self, site: usize, line: LineId) {
        let at = self.model.mark();
        self.ask(site, line, Kind::Flush { at }, Request::Flush);
    }

    fn ask_wrong_site(&mut self, site: usize) {
        let named = self.sites[site].status.as_ref().is_some_and(|s| s.config.primary == Some(s.site));
        if named || !matches!(self.sites[site].role(), Some(Role::Secondary | Role::Fenced(_))) {
            // A site that K names may keep the request until it opens.
            return;
        }
        self.fired.hit(Fault::WrongSite);
        let request = match self.rng.below(3) {
            0 => Request::Read { range: bytes(0, 8) },
            1 => Request::Write { range: bytes(0, 8), data: pattern::payload(OpId::MAX, 0, 8), fua: false },
            _ => Request::Flush,
        };
        self.ask(site, 0, Kind::Wrong, request);
    }

    /// Reads everything that a new line has.
    pub(super) fn begin_scan(&mut self, site: usize, line: LineId, size: u64) {
        if self.client.target == site {
            self.client.size = size;
        }
        let sectors = size / 512;
        let blocking = self.rng.percent(80);
        let runs = self.readable(site, sectors);
        let left = runs.iter().map(|(_, n)| n.div_ceil(SCAN_SECTORS) as usize).sum();
        let scan = Scan { line, values: vec![Value::Zero; sectors as usize], left, failed: false, blocking };
        self.client.scans[site] = Some(scan);
        for (mut first, count) in runs {
            let end = first + count;
            while first < end {
                let n = SCAN_SECTORS.min(end - first);
                self.ask(site, line, Kind::Scan { first, sectors: n }, Request::Read { range: bytes(first, n) });
                first += n;
            }
        }
    }

    /// Requests to a process that died are never answered.
    pub(super) fn forget_requests(&mut self, site: usize) {
        self.client.in_flight.retain(|_, asked| asked.site != site);
        self.client.scans[site] = None;
    }

    /// An answer.
    pub(super) fn replied(&mut self, site: usize, id: RequestId, result: Result<ReplyData, RequestError>) {
        let Some(asked) = self.client.in_flight.remove(&id) else {
            return self.fail(format!("{} answers request {} which is not outstanding", name(site), id.0));
        };
        note!(self, [21, site, id.0, result.is_ok()], "{} answers {}: {}", name(site), id.0, outcome(&result));
        self.client.answered_at = self.now;
        match result {
            Ok(data) => self.succeeded(site, asked, data),
            Err(error) => self.failed(site, asked, error),
        }
        let think = self.rng.log_between(1_000, 50_000);
        self.wake_client(think);
    }

    fn succeeded(&mut self, site: usize, asked: Asked, data: ReplyData) {
        let Asked { line, terms, kind, since, .. } = asked;
        if !matches!(kind, Kind::Wrong) {
            self.judge_served(site, line, since, matches!(kind, Kind::Change { .. }));
        }
        let answered = match kind {
            // Plain writes promise nothing unless every write does.
            Kind::Change { fua: false, .. } if !terms.is_some_and(|t| t.ack_on_write) => None,
            _ => self.terms(site),
        };
        let (hard, soft) = owing(site, terms, answered);
        // What the other side only had in its memory is gone when its power failed since.
        let gone = self.sites[1 - site].power_cut_at >= self.sites[site].linked_at;
        let soft = if gone { 0 } else { soft };
        // What an opening recovered is durable where S was then; members that joined later confirm it later.
        let recovered = hard & (self.sites[site].opened_with | 1 << site);
        match kind {
            Kind::Change { ops, fua, at } => {
                let on_write = [terms, answered].iter().all(|t| t.is_some_and(|t| t.ack_on_write));
                let promised = fua || on_write;
                for op in ops {
                    self.model.complete(op, if promised { hard } else { 0 });
                }
                if promised {
                    self.model.flushed(line, at, hard, soft);
                }
            }
            Kind::Flush { at } => self.model.flushed(line, at, hard, soft),
            Kind::Read(check) => {
                let values = values(&data, check.first);
                self.judge_length(values.len() as u64, check.sectors());
                if let Err(why) = self.model.check_read(line, &check, &values, recovered, !self.sites[site].tainted) {
                    self.fail(format!("read at {} in line {line}: {why}", name(site)));
                }
            }
            Kind::Scan { first, sectors } => {
                let values = values(&data, first);
                self.judge_length(values.len() as u64, sectors);
                self.scanned(site, line, first, Some(values), recovered);
            }
            Kind::Wrong => {
                let serves = self.sites[site].opened.is_some_and(|o| o.0 == self.sites[site].instance);
                if !serves {
                    self.fail(format!("{} answered a request although it never became primary", name(site)));
                }
            }
        }
    }

    fn judge_length(&mut self, got: u64, wanted: u64) {
        if got != wanted {
            self.fail(format!("a read returned {got} sectors instead of {wanted}"));
        }
    }

    fn failed(&mut self, site: usize, asked: Asked, error: RequestError) {
        let excused = self.sites[site].erred || self.sites[site].tainted;
        match (error, &asked.kind) {
            (_, Kind::Wrong) => {}
            // Whoever was replaced may have a layout that never came to be everywhere.
            (RequestError::Invalid, _)
                if !self.is_removing() && self.sites.iter().all(|s| s.line <= Some(asked.line)) =>
            {
                self.fail(format!("{} refused a valid request as invalid", name(site)))
            }
            (RequestError::Io, _) if !excused => {
                self.fail(format!("{} answered EIO although no device failed", name(site)));
            }
            _ => {}
        }
        if let Kind::Scan { first, .. } = asked.kind {
            self.scanned(site, asked.line, first, None, 0);
        }
    }

    fn scanned(&mut self, site: usize, line: LineId, first: u64, values: Option<Vec<Value>>, firm: u8) {
        let Some(scan) = self.client.scans[site].as_mut().filter(|s| s.line == line) else { return };
        scan.left -= 1;
        match values {
            Some(values) => {
                scan.values[first as usize..first as usize + values.len()].copy_from_slice(&values);
                self.model.recovered(line, &values, firm);
            }
            None => scan.failed = true,
        }
        let Some(scan) = self.client.scans[site].take_if(|s| s.left == 0) else { return };
        if scan.failed {
            // Without the whole content the line cannot be judged; ask again.
            let size = scan.values.len() as u64 * 512;
            if self.has_role(site, Role::Primary) {
                self.begin_scan(site, line, size);
            }
            return;
        }
        let trusted = !self.sites[site].tainted;
        match self.model.check_opening(line, site, &scan.values, trusted) {
            Ok(opening) => {
                note!(self, [22, site, opening.lost], "{} line {line} inherits all but {opening:?}", name(site));
            }
            Err(why) => self.fail(format!("line {line} opened at {}: {why}", name(site))),
        }
        self.wake_client(1_000);
    }
}

fn bytes(first: u64, sectors: u64) -> ByteRange {
    ByteRange::new(first * 512, sectors * 512)
}

fn brief(request: &Request) -> String {
    match request {
        Request::Read { range } => format!("read {}+{}", range.offset / 512, range.len / 512),
        Request::Write { range, fua, .. } => {
            format!("write{} {}+{}", if *fua { " fua" } else { "" }, range.offset / 512, range.len / 512)
        }
        Request::Zero { range, discard, .. } => {
            format!("{} {}+{}", if *discard { "discard" } else { "zero" }, range.offset / 512, range.len / 512)
        }
        Request::Flush => "flush".into(),
    }
}

fn outcome(result: &Result<ReplyData, RequestError>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(error) => error.to_string(),
    }
}
