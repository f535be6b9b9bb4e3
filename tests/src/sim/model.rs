//! What the workload may observe: the oracle.
//!
//! Every operation of the workload has a number; numbers follow the order of issue, which is also the order in which
//! overlapping operations take effect (the core promises arrival order). A *line* is one opening of the volume as Primary: a
//! history that continues another one from the point where that was cut. An operation is alive in a line when the line's
//! content may contain it. Opening a line and reading the whole volume settles which operations the line inherited.
//!
//! Checked:
//! - a read returns the newest completed write of each sector, or one that runs concurrently, and never goes back;
//! - what a line inherited is a prefix: if an operation is missing, everything issued after its completion is missing;
//! - whole operations: a write is there or not, never in part;
//! - what a site promised (flushes, recovered content that a read returned, writes that only a kill followed) is there when
//!   that site opens;
//! - where a site opens in place of another one and claims that nothing is lost, what the other one promised is there too.

use crate::sim::pattern::{OpId, Value};

/// Moments of the workload, strictly increasing: each issue and each completion has its own.
pub type Seq = u64;
/// Number of a line.
pub type LineId = u8;

/// The most lines of one seed.
pub const MAX_LINES: usize = 128;
/// Sectors of a block.
pub const BLOCK_SECTORS: u64 = 8;

const INITIAL: OpId = 0;
const GROWN: OpId = 1;

/// What an operation leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Its own pattern.
    Pattern,
    /// Zeros.
    Zeros,
}

#[derive(Clone, Debug)]
struct Op {
    effect: Effect,
    issue: Seq,
    done: Option<Seq>,
    alive: u128,
    born: LineId,
    /// Sites that promised it by number.
    firm: u8,
    /// May have no effect at all.
    optional: bool,
    sectors: u64,
}

/// What one site owes: operations that completed before `.1` in a history that line `.0` belongs to.
#[derive(Clone, Debug, Default)]
struct Promise {
    hard: Vec<(LineId, Seq)>,
    /// Ends with the site's power.
    soft: Vec<(LineId, Seq)>,
}

fn raise(list: &mut Vec<(LineId, Seq)>, line: LineId, seq: Seq) {
    match list.iter_mut().find(|(l, _)| *l == line) {
        Some((_, s)) => *s = seq.max(*s),
        None => list.push((line, seq)),
    }
}

/// The lower bounds of a read, fixed when it was issued.
#[derive(Clone, Debug)]
pub struct ReadCheck {
    /// First sector.
    pub first: u64,
    lower: Vec<OpId>,
}

impl ReadCheck {
    /// Sectors of the read.
    pub fn sectors(&self) -> u64 {
        self.lower.len() as u64
    }
}

/// The oracle.
#[derive(Debug)]
pub struct Model {
    ops: Vec<Op>,
    history: Vec<Vec<OpId>>,
    seen: Vec<OpId>,
    initial_sectors: u64,
    promises: [Promise; 2],
    /// Lines whose inheritance is known.
    settled: u128,
    /// The line that each line continues.
    parents: Vec<Option<LineId>>,
    /// The site at which each line was opened.
    opened_at: Vec<usize>,
    /// Lines that claim to have all that a site promised.
    claims: Vec<(LineId, usize)>,
    /// Lines that were opened with a bound on what they lack.
    bounds: Vec<Bound>,
    now: Seq,
}

/// Of what `site` had completed and promised before `heard`, no more than `bytes` are missing in `line`.
#[derive(Clone, Copy, Debug)]
struct Bound {
    line: LineId,
    site: usize,
    heard: Seq,
    bytes: u64,
}

impl Model {
    /// A volume of `sectors` sectors; the first `adopted` hold the pattern of operation 0, the others zeros. Room for growth
    /// up to `max_sectors`.
    pub fn new(adopted: u64, max_sectors: u64) -> Self {
        let always =
            |effect| Op { effect, issue: 0, done: Some(0), alive: !0, born: 0, firm: 3, optional: false, sectors: 0 };
        Self {
            ops: vec![always(Effect::Pattern), always(Effect::Zeros)],
            history: vec![Vec::new(); max_sectors as usize],
            seen: vec![0; max_sectors as usize],
            initial_sectors: adopted,
            promises: Default::default(),
            settled: 1,
            parents: Vec::new(),
            opened_at: Vec::new(),
            claims: Vec::new(),
            bounds: Vec::new(),
            now: 1,
        }
    }

    /// This moment, to compare with.
    pub fn now(&self) -> Seq {
        self.now
    }

    fn tick(&mut self) -> Seq {
        self.now += 1;
        self.now
    }

    fn initial(&self, sector: u64) -> OpId {
        if sector < self.initial_sectors { INITIAL } else { GROWN }
    }

    /// A new line at `site` that continues `parent`.
    pub fn open_line(&mut self, site: usize, parent: Option<LineId>) -> Option<LineId> {
        let line = self.parents.len();
        if line >= MAX_LINES {
            return None;
        }
        self.parents.push(parent);
        self.opened_at.push(site);
        if let Some(parent) = parent {
            for op in &mut self.ops[2..] {
                op.alive |= (op.alive >> parent & 1) << line;
            }
        }
        Some(line as LineId)
    }

    /// Where a line was opened.
    pub fn site_of(&self, line: LineId) -> Option<usize> {
        self.opened_at.get(line as usize).copied()
    }

    fn issue(&mut self, line: LineId, sectors: std::ops::Range<u64>, effect: Effect, optional: bool) -> OpId {
        let id = self.ops.len() as OpId;
        let (issue, count) = (self.tick(), sectors.end - sectors.start);
        self.ops.push(Op {
            effect,
            issue,
            done: None,
            alive: 1 << line,
            born: line,
            firm: 0,
            optional,
            sectors: count,
        });
        for sector in sectors {
            self.history[sector as usize].push(id);
        }
        id
    }

    /// The number that the next operation will have.
    pub fn next_op(&self) -> OpId {
        self.ops.len() as OpId
    }

    /// A write is issued.
    pub fn issue_write(&mut self, line: LineId, first: u64, sectors: u64) -> OpId {
        self.issue(line, first..first + sectors, Effect::Pattern, false)
    }

    /// ZERO or DISCARD is issued: up to three operations, as its edges inside blocks are records of their own or optional.
    pub fn issue_zero(&mut self, line: LineId, first: u64, sectors: u64, discard: bool) -> Vec<OpId> {
        let end = first + sectors;
        let inner = end.min(first.div_ceil(BLOCK_SECTORS) * BLOCK_SECTORS);
        let inner_end = inner.max(end / BLOCK_SECTORS * BLOCK_SECTORS);
        let parts = [(first..inner, discard), (inner..inner_end, false), (inner_end..end, discard)];
        let mut out = Vec::new();
        for (range, optional) in parts {
            if !range.is_empty() {
                out.push(self.issue(line, range, Effect::Zeros, optional));
            }
        }
        out
    }

    /// A write, zero or discard completed. `firm` names sites (bits) that promised it by that.
    pub fn complete(&mut self, op: OpId, firm: u8) {
        let now = self.tick();
        let op = &mut self.ops[op as usize];
        op.done = Some(now);
        op.firm |= firm;
    }

    /// A moment: everything completed so far is before it. For flushes, at their arrival.
    pub fn mark(&mut self) -> Seq {
        self.tick()
    }

    /// A flush that arrived at `at` was acknowledged: the sites in `hard` owe what was completed before, whatever happens;
    /// those in `soft` as long as their power lasts.
    pub fn flushed(&mut self, line: LineId, at: Seq, hard: u8, soft: u8) {
        for (site, promise) in self.promises.iter_mut().enumerate() {
            if hard >> site & 1 != 0 {
                raise(&mut promise.hard, line, at);
            }
            if soft >> site & 1 != 0 {
                raise(&mut promise.soft, line, at);
            }
        }
    }

    /// The process at `site` died while it was Primary in `line`: its completed writes survive.
    pub fn killed(&mut self, site: usize, line: LineId) {
        let now = self.tick();
        raise(&mut self.promises[site].soft, line, now);
    }

    /// The site gave way to another one: what it completed and never made durable may be sealed.
    pub fn gave_way(&mut self, site: usize) {
        self.promises[site].soft.clear();
    }

    /// The power at `site` failed.
    pub fn power_cut(&mut self, site: usize) {
        self.promises[site].soft.clear();
    }

    fn is_alive(&self, op: OpId, line: LineId) -> bool {
        self.ops[op as usize].alive >> line & 1 != 0
    }

    fn lower(&self, sector: u64, line: LineId) -> OpId {
        let seen = self.seen[sector as usize];
        let settled = |op: &&OpId| {
            let o = &self.ops[**op as usize];
            self.is_alive(**op, line) && (**op == seen || (o.done.is_some() && !o.optional))
        };
        self.history[sector as usize].iter().rev().find(settled).copied().unwrap_or(self.initial(sector))
    }

    /// A read is issued in a line.
    pub fn issue_read(&self, line: LineId, first: u64, sectors: u64) -> ReadCheck {
        ReadCheck { first, lower: (first..first + sectors).map(|s| self.lower(s, line)).collect() }
    }

    /// Judges what a read in `line` returned. `firm`: sites that from now on owe recovered content that it returned. What a
    /// medium that lies returned (`trusted` is false) binds nobody.
    pub fn check_read(
        &mut self,
        line: LineId,
        read: &ReadCheck,
        values: &[Value],
        firm: u8,
        trusted: bool,
    ) -> Result<(), String> {
        for ((sector, lower), value) in (read.first..).zip(&read.lower).zip(values) {
            let op = match value {
                Value::Op(op) => self.judge_pattern(line, sector, *lower, *op)?,
                Value::Zero => self.judge_zero(line, sector, *lower)?,
                Value::Foreign => return Err(format!("sector {sector}: foreign or mixed content")),
            };
            if trusted {
                let seen = &mut self.seen[sector as usize];
                *seen = (*seen).max(op);
                // What a read has shown did have its effect.
                self.ops[op as usize].optional = false;
            }
            let o = &mut self.ops[op as usize];
            if o.born != line && *value != Value::Zero {
                o.firm |= firm;
            }
        }
        Ok(())
    }

    /// Part of the content of a new line was returned: what it shows of the past is owed by the sites in `firm`.
    pub fn recovered(&mut self, line: LineId, values: &[Value], firm: u8) {
        for value in values {
            if let Value::Op(op) = value
                && let Some(o) = self.ops.get_mut(*op as usize)
                && o.born != line
            {
                o.firm |= firm;
            }
        }
    }

    fn judge_pattern(&self, line: LineId, sector: u64, lower: OpId, op: OpId) -> Result<OpId, String> {
        let known = op == self.initial(sector) || self.history[sector as usize].binary_search(&op).is_ok();
        if !known || (op as usize) >= self.ops.len() || self.ops[op as usize].effect != Effect::Pattern {
            return Err(format!("sector {sector}: holds write {op}, which never wrote there"));
        }
        if op < lower {
            return Err(format!("sector {sector}: stale: holds write {op}, but {lower} was completed or read before"));
        }
        if !self.is_alive(op, line) {
            return Err(format!("sector {sector}: holds write {op}, which line {line} had lost"));
        }
        Ok(op)
    }

    /// Zeros have no number: the oldest operation that explains them counts. One that may have had no effect explains nothing
    /// for sure when another one could have.
    fn judge_zero(&self, line: LineId, sector: u64, lower: OpId) -> Result<OpId, String> {
        if self.ops[lower as usize].effect == Effect::Zeros {
            return Ok(lower);
        }
        let zero =
            |op: &&OpId| **op > lower && self.ops[**op as usize].effect == Effect::Zeros && self.is_alive(**op, line);
        let mut candidates = self.history[sector as usize].iter().filter(zero);
        match candidates.next() {
            Some(op) if self.ops[*op as usize].optional && candidates.next().is_some() => Ok(lower),
            Some(op) => Ok(*op),
            None => Err(format!("sector {sector}: zeros, but {lower} was completed or read before")),
        }
    }

    /// Whoever opened `line` claims that nothing is lost of what `site` promised to survive a crash.
    pub fn claim(&mut self, line: LineId, site: usize) {
        self.claims.push((line, site));
    }

    /// Whoever opened `line` claims that of what `site` had promised before `heard` no more than `bytes` are missing.
    pub fn bound(&mut self, line: LineId, site: usize, heard: Seq, bytes: u64) {
        self.bounds.push(Bound { line, site, heard, bytes });
    }

    /// What is missing is no more than was said.
    fn check_bounds(&self, line: LineId, lost: &[OpId]) -> Result<(), String> {
        for bound in self.bounds.iter().filter(|b| b.line == line) {
            let known = |op: &&OpId| self.ops[**op as usize].done.is_some_and(|done| done <= bound.heard);
            let owed = |op: &&OpId| self.owed_at_every_opening(**op, line, bound.site, Self::owed_for_ever).is_err();
            let is_sure = |op: &&OpId| !self.ops[**op as usize].optional;
            let missing: Vec<OpId> = lost.iter().filter(is_sure).filter(known).filter(owed).copied().collect();
            let bytes: u64 = missing.iter().map(|op| self.bytes_of(*op)).sum();
            if bytes > bound.bytes || (bound.bytes == 0 && !missing.is_empty()) {
                return Err(format!(
                    "{} bytes were said to be missing of what site {} had written when it was last heard, and {bytes} are:                      operations {missing:?}",
                    bound.bytes, bound.site
                ));
            }
        }
        Ok(())
    }

    /// Bytes that an operation takes in a log at least.
    fn bytes_of(&self, op: OpId) -> u64 {
        let o = &self.ops[op as usize];
        if o.effect == Effect::Pattern { o.sectors * 512 } else { 0 }
    }

    /// Judges the whole content with which `line` opened at `site`, and settles what the line inherited. `trusted` is false
    /// when the site's own medium lies and nothing else was asked: then its promises do not count, the rest does.
    pub fn check_opening(
        &mut self,
        line: LineId,
        site: usize,
        values: &[Value],
        trusted: bool,
    ) -> Result<Opening, String> {
        let (mut lost, doubtful) = self.settle(line, values)?;
        lost.sort_unstable();
        let mut opening = Opening { lost: 0, lost_completed: 0 };
        for op in lost.iter().filter(|op| !self.ops[**op as usize].optional) {
            let o = &self.ops[*op as usize];
            opening.lost += 1;
            opening.lost_completed += usize::from(o.done.is_some());
            if trusted {
                self.owed_at_every_opening(*op, line, site, Self::owed)?;
                for (_, of) in self.claims.iter().filter(|(l, _)| *l == line) {
                    let owed = self.owed_at_every_opening(*op, line, *of, Self::owed_for_ever);
                    owed.map_err(|why| format!("nothing was said to be lost, but {why}"))?;
                }
            }
        }
        if trusted {
            self.check_bounds(line, &lost)?;
        }
        for op in lost {
            self.ops[op as usize].alive &= !(1u128 << line);
        }
        self.settled |= u128::from(!doubtful) << line;
        Ok(opening)
    }

    /// What is gone may have been lost when an earlier line was opened whose content nobody read to the end: then it is what that
    /// line's site owed that counts, too.
    fn owed_at_every_opening(
        &self,
        op: OpId,
        line: LineId,
        site: usize,
        owed: fn(&Self, OpId, usize) -> Result<(), String>,
    ) -> Result<(), String> {
        let born = self.ops[op as usize].born;
        let earlier = self.doubtful_before(line).into_iter().filter(|l| *l > born);
        let excused = earlier.map(|l| self.opened_at[l as usize]).any(|s| s != site && owed(self, op, s).is_ok());
        if excused { Ok(()) } else { owed(self, op, site) }
    }

    fn owed(&self, op: OpId, site: usize) -> Result<(), String> {
        self.owed_for_ever(op, site)?;
        if self.is_owed(op, &self.promises[site].soft) {
            return Err(format!(
                "operation {op} is gone at site {site}, although it was completed there and the power never failed"
            ));
        }
        Ok(())
    }

    fn owed_for_ever(&self, op: OpId, site: usize) -> Result<(), String> {
        let o = &self.ops[op as usize];
        if o.firm >> site & 1 != 0 {
            return Err(format!(
                "operation {op} is gone, which site {site} had promised by itself (FUA, ackOn write, or read after a recovery)"
            ));
        }
        if self.is_owed(op, &self.promises[site].hard) {
            return Err(format!(
                "operation {op} is gone at site {site}, although a flush that it was part of was acknowledged"
            ));
        }
        Ok(())
    }

    fn is_owed(&self, op: OpId, promises: &[(LineId, Seq)]) -> bool {
        let o = &self.ops[op as usize];
        // What was promised in a line that never settled says nothing about what it inherited.
        let knew = |line: LineId| self.is_alive(op, line) && (o.born == line || self.settled >> line & 1 != 0);
        o.done.is_some_and(|done| promises.iter().any(|(l, s)| done < *s && knew(*l)))
    }

    /// The lines before `line` in its history whose inheritance was never learned, oldest first.
    fn doubtful_before(&self, line: LineId) -> Vec<LineId> {
        let next = |line: &LineId| self.parents.get(*line as usize).copied().flatten();
        let mut lines: Vec<LineId> = std::iter::successors(next(&line), next).collect();
        lines.retain(|l| self.settled >> l & 1 == 0);
        lines.reverse();
        lines
    }

    /// Finds the operations that the content does not have, those that may have had no effect at all among them, and whether
    /// there may be more. The content is a prefix or this is an error.
    fn settle(&self, line: LineId, values: &[Value]) -> Result<(Vec<OpId>, bool), String> {
        let doubts = self.doubtful_before(line);
        let (lost, lost_min) = (vec![false; self.ops.len()], vec![Seq::MAX; doubts.len() + 1]);
        let mut s = Settling { model: self, line, doubts, lost, list: Vec::new(), lost_min, doubtful: false };
        let mut zeros = Vec::new();
        let mut visible = vec![false; self.ops.len()];
        for (sector, value) in values.iter().enumerate() {
            match value {
                Value::Foreign => return Err(format!("sector {sector}: foreign or mixed content after opening")),
                Value::Zero => zeros.push(sector),
                Value::Op(op) => {
                    self.judge_pattern(line, sector as u64, 0, *op)?;
                    visible[*op as usize] = true;
                    if self.ops[*op as usize].born != line || *op <= GROWN {
                        s.lose_after(sector, *op);
                    }
                }
            }
        }
        s.zeros(&zeros)?;
        s.doubtful |= values.iter().enumerate().any(|(sector, value)| s.hides(sector, *value, &visible));
        for op in 2..self.ops.len() as OpId {
            let o = &self.ops[op as usize];
            if visible[op as usize] && s.lost[op as usize] {
                return Err(format!(
                    "operation {op} is there in part, or although something completed before it is gone"
                ));
            }
            if visible[op as usize] && o.born != line && o.issue > s.lost_min[s.part(o)] {
                return Err(format!(
                    "not a prefix: operation {op} is there, but one that completed before it was issued is gone"
                ));
            }
        }
        Ok((s.list, s.doubtful))
    }
}

/// What an opening inherited.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Operations that it does not have.
    pub lost: usize,
    /// Of these, completed ones.
    pub lost_completed: usize,
}

struct Settling<'a> {
    model: &'a Model,
    line: LineId,
    /// Earlier lines of this history that nobody read to the end. They cut it into parts: what is gone of one part may have
    /// been lost when such a line opened, and then says nothing of what was written after that.
    doubts: Vec<LineId>,
    lost: Vec<bool>,
    list: Vec<OpId>,
    /// The earliest completion of a lost operation, for each part.
    lost_min: Vec<Seq>,
    /// Operations of this very line hide what it inherited.
    doubtful: bool,
}

impl Settling<'_> {
    fn lose(&mut self, op: OpId) {
        let o = &self.model.ops[op as usize];
        let inherited = o.born != self.line && self.model.is_alive(op, self.line);
        if !inherited || self.lost[op as usize] {
            return;
        }
        self.lost[op as usize] = true;
        self.list.push(op);
        // One that may have had no effect proves nothing of others. It is gone for good all the same: another line may show
        // later that it did have its effect there.
        if !o.optional {
            let part = self.part(o);
            let earliest = &mut self.lost_min[part];
            *earliest = o.done.unwrap_or(Seq::MAX).min(*earliest);
        }
    }

    /// The part of the history that the operation belongs to.
    fn part(&self, op: &Op) -> usize {
        self.doubts.partition_point(|d| *d <= op.born)
    }

    fn lose_after(&mut self, sector: usize, op: OpId) {
        for later in self.model.history[sector].iter().rev().take_while(|id| **id > op) {
            self.lose(*later);
        }
    }

    /// True when a write of this very line stands where the line may have inherited one that is seen nowhere else: that was
    /// there, or was not, and nobody will know.
    fn hides(&self, sector: usize, value: Value, visible: &[bool]) -> bool {
        let Value::Op(op) = value else { return false };
        let inherited = |id: &&OpId| {
            let o = &self.model.ops[**id as usize];
            **id > GROWN && o.born != self.line && self.model.is_alive(**id, self.line) && !self.lost[**id as usize]
        };
        let hidden = || self.model.history[sector].iter().rev().skip_while(|id| **id >= op).find(inherited);
        op > GROWN && self.model.ops[op as usize].born == self.line && hidden().is_some_and(|id| !visible[*id as usize])
    }

    /// Everything issued after the completion of a lost operation is lost too.
    fn lose_by_order(&mut self) {
        let earliest = self.lost_min.iter().copied().min().unwrap_or(Seq::MAX);
        let first = self.model.ops.partition_point(|o| o.issue <= earliest);
        for op in first.max(2)..self.model.ops.len() {
            let o = &self.model.ops[op];
            if o.issue > self.lost_min[self.part(o)] {
                self.lose(op as OpId);
            }
        }
    }

    /// Zeros are explained by the newest operation that can explain them; what came after it is lost. Repeated until
    /// nothing changes, as an explanation may turn out to be lost.
    fn zeros(&mut self, sectors: &[usize]) -> Result<(), String> {
        loop {
            let before = self.list.len();
            self.lose_by_order();
            for sector in sectors {
                self.explain_zeros(*sector)?;
            }
            if self.list.len() == before {
                return Ok(());
            }
        }
    }

    fn explain_zeros(&mut self, sector: usize) -> Result<(), String> {
        let explains = |op: &&OpId| {
            let o = &self.model.ops[**op as usize];
            o.effect == Effect::Zeros && self.model.is_alive(**op, self.line) && !self.lost[**op as usize]
        };
        match self.model.history[sector].iter().rev().find(explains) {
            // What it hides of the past was there, or was not: nobody will know.
            Some(op) if self.model.ops[*op as usize].born == self.line => self.doubtful = true,
            Some(op) => self.lose_after(sector, *op),
            None if self.model.initial(sector as u64) == GROWN => self.lose_after(sector, GROWN),
            None => {
                return Err(format!("sector {sector}: zeros after opening, but nothing that may be there zeroed it"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> (Model, LineId) {
        let mut m = Model::new(0, 64);
        let line = m.open_line(0, None).unwrap();
        (m, line)
    }

    fn written(m: &mut Model, line: LineId, first: u64, sectors: u64) -> OpId {
        let op = m.issue_write(line, first, sectors);
        m.complete(op, 0);
        op
    }

    fn content(of: &[(u64, OpId)]) -> Vec<Value> {
        let mut out = vec![Value::Zero; 64];
        of.iter().for_each(|(s, op)| out[*s as usize] = Value::Op(*op));
        out
    }

    #[test]
    fn a_read_returns_the_last_completed_write_or_a_concurrent_one() {
        let (mut m, line) = model();
        let a = written(&mut m, line, 0, 1);
        let b = m.issue_write(line, 0, 1);
        let read = m.issue_read(line, 0, 1);
        assert!(m.check_read(line, &read, &[Value::Op(a)], 0, true).is_ok());
        assert!(m.check_read(line, &read, &[Value::Op(b)], 0, true).is_ok());
        let again = m.issue_read(line, 0, 1);
        assert!(m.check_read(line, &again, &[Value::Op(a)], 0, true).unwrap_err().contains("stale"));
        assert!(m.check_read(line, &again, &[Value::Zero], 0, true).is_err());
    }

    #[test]
    fn an_acknowledged_flush_may_not_be_missing_after_an_opening() {
        let (mut m, line) = model();
        let a = written(&mut m, line, 0, 1);
        let at = m.mark();
        m.flushed(line, at, 1, 0);
        let b = written(&mut m, line, 1, 1);
        let next = m.open_line(0, Some(line)).unwrap();
        assert_eq!(m.check_opening(next, 0, &content(&[(0, a)]), true).unwrap().lost_completed, 1);
        let next = m.open_line(0, Some(line)).unwrap();
        assert!(m.check_opening(next, 0, &content(&[]), true).unwrap_err().contains("flush"));
        assert!(m.check_opening(next, 1, &content(&[]), true).is_ok());
        let _ = b;
    }

    #[test]
    fn who_claims_that_nothing_is_lost_owes_what_the_other_site_promised_and_no_more() {
        let (mut m, line) = model();
        let a = written(&mut m, line, 0, 1);
        let at = m.mark();
        m.flushed(line, at, 0b01, 0);
        let _ = written(&mut m, line, 1, 1);
        m.killed(0, line);
        let next = m.open_line(1, Some(line)).unwrap();
        assert!(m.check_opening(next, 1, &content(&[]), true).is_ok());
        for (present, fine) in [(&[(0, a)][..], true), (&[], false)] {
            let next = m.open_line(1, Some(line)).unwrap();
            m.claim(next, 0);
            assert_eq!(m.check_opening(next, 1, &content(present), true).is_ok(), fine, "{present:?}");
        }
    }

    #[test]
    fn what_an_opening_keeps_is_a_prefix() {
        let (mut m, line) = model();
        let a = written(&mut m, line, 0, 1);
        let b = written(&mut m, line, 1, 1);
        let next = m.open_line(0, Some(line)).unwrap();
        assert!(m.check_opening(next, 0, &content(&[(1, b)]), true).is_err());
        assert!(m.check_opening(next, 0, &content(&[(0, a)]), true).is_ok());
    }

    #[test]
    fn a_write_is_there_whole_or_not_at_all() {
        let (mut m, line) = model();
        let a = m.issue_write(line, 0, 2);
        let next = m.open_line(0, Some(line)).unwrap();
        assert!(m.check_opening(next, 0, &content(&[(0, a)]), true).unwrap_err().contains("part"));
    }

    #[test]
    fn what_a_line_lost_may_not_come_back() {
        let (mut m, line) = model();
        let a = written(&mut m, line, 0, 1);
        let next = m.open_line(0, Some(line)).unwrap();
        m.check_opening(next, 0, &content(&[]), true).unwrap();
        let read = m.issue_read(next, 0, 1);
        assert!(m.check_read(next, &read, &[Value::Op(a)], 0, true).unwrap_err().contains("lost"));
        let third = m.open_line(0, Some(next)).unwrap();
        assert!(m.check_opening(third, 0, &content(&[(0, a)]), true).is_err());
    }

    #[test]
    fn recovered_content_that_a_read_returned_may_not_vanish() {
        let (mut m, line) = model();
        let a = written(&mut m, line, 0, 1);
        let next = m.open_line(0, Some(line)).unwrap();
        let read = m.issue_read(next, 0, 1);
        m.check_read(next, &read, &[Value::Op(a)], 0b01, true).unwrap();
        let third = m.open_line(0, Some(next)).unwrap();
        assert!(m.check_opening(third, 0, &content(&[]), true).is_err());
        assert!(m.check_opening(third, 1, &content(&[]), true).is_ok(), "a lossy failover may lose it");
    }

    #[test]
    fn a_kill_keeps_completed_writes_until_the_power_fails() {
        let (mut m, line) = model();
        let _ = written(&mut m, line, 0, 1);
        m.killed(0, line);
        let next = m.open_line(0, Some(line)).unwrap();
        assert!(m.check_opening(next, 0, &content(&[]), true).unwrap_err().contains("power"));
        m.power_cut(0);
        assert!(m.check_opening(next, 0, &content(&[]), true).is_ok());
    }

    #[test]
    fn what_an_unread_opening_may_have_lost_says_nothing_of_later_writes() {
        let (mut m, line) = model();
        let _ = written(&mut m, line, 0, 1);
        let unread = m.open_line(0, Some(line)).unwrap();
        let b = written(&mut m, unread, 1, 1);
        let c = written(&mut m, unread, 2, 1);
        let next = m.open_line(0, Some(unread)).unwrap();
        assert!(m.check_opening(next, 0, &content(&[(1, b), (2, c)]), true).is_ok());
        let next = m.open_line(0, Some(unread)).unwrap();
        assert!(m.check_opening(next, 0, &content(&[(2, c)]), true).is_err(), "but the order within it holds");
    }

    #[test]
    fn what_a_write_of_the_same_line_hid_before_anybody_read_is_not_owed_by_that_line() {
        for visible in [false, true] {
            let (mut m, line) = model();
            let sectors = if visible { 2 } else { 1 };
            let y = written(&mut m, line, 0, sectors);
            let next = m.open_line(1, Some(line)).unwrap();
            let hides = written(&mut m, next, 0, 1);
            let seen = [(0, hides), (1, y)];
            m.check_opening(next, 1, &content(&seen[..sectors as usize]), true).unwrap();
            let at = m.mark();
            m.flushed(next, at, 0b10, 0);
            // Both are gone; which of them is named says who of them was owed.
            let last = m.open_line(1, Some(next)).unwrap();
            let gone = m.check_opening(last, 1, &content(&[]), true).unwrap_err();
            assert_eq!(gone.contains(&format!("operation {y} ")), visible, "{gone}");
        }
    }

    #[test]
    fn zeros_are_explained_by_a_zeroing_that_is_not_lost() {
        let (mut m, line) = model();
        let a = written(&mut m, line, 0, 16);
        let zero = m.issue_zero(line, 0, 16, false)[0];
        m.complete(zero, 0);
        let b = written(&mut m, line, 3, 1);
        let next = m.open_line(0, Some(line)).unwrap();
        assert!(m.check_opening(next, 0, &content(&[(3, b)]), true).is_ok());
        let half: Vec<(u64, OpId)> = (0..8).map(|s| (s, a)).collect();
        let next = m.open_line(0, Some(line)).unwrap();
        assert!(
            m.check_opening(next, 0, &content(&half), true).is_err(),
            "half of a zeroing, and the old data is not there"
        );
    }

    #[test]
    fn the_edges_of_a_discard_are_free() {
        let (mut m, line) = model();
        let a = written(&mut m, line, 0, 24);
        let ids = m.issue_zero(line, 4, 16, true);
        assert_eq!(ids.len(), 3);
        ids.iter().for_each(|id| m.complete(*id, 0));
        let read = m.issue_read(line, 4, 5);
        let kept = [Value::Op(a), Value::Op(a), Value::Zero, Value::Zero, Value::Zero];
        assert!(m.check_read(line, &read, &kept, 0, true).is_ok());
        assert!(m.check_read(line, &read, &[Value::Op(a); 5], 0, true).is_err());
    }

    #[test]
    fn the_edge_of_a_discard_that_one_line_lost_and_another_kept_is_lost_in_the_one_alone() {
        let (mut m, line) = model();
        let a = written(&mut m, line, 0, 1);
        let edge = m.issue_zero(line, 0, 1, true)[0];
        m.complete(edge, 0);
        let without = m.open_line(1, Some(line)).unwrap();
        assert_eq!(
            m.check_opening(without, 1, &content(&[(0, a)]), true).unwrap().lost,
            0,
            "it may have had no effect"
        );
        let b = written(&mut m, without, 1, 1);
        let with = m.open_line(0, Some(line)).unwrap();
        assert!(m.check_opening(with, 0, &content(&[]), true).is_ok());
        let read = m.issue_read(with, 0, 1);
        assert!(m.check_read(with, &read, &[Value::Zero], 0, true).is_ok(), "here it had");

        let read = m.issue_read(without, 0, 1);
        assert!(m.check_read(without, &read, &[Value::Op(a)], 0, true).is_ok());
        let next = m.open_line(1, Some(without)).unwrap();
        assert!(m.check_opening(next, 1, &content(&[(0, a), (1, b)]), true).is_ok());
        let next = m.open_line(0, Some(with)).unwrap();
        assert!(m.check_opening(next, 0, &content(&[(0, a)]), true).is_ok_and(|o| o.lost == 1));
    }

    #[test]
    fn the_edge_of_a_discard_explains_no_zeros_when_what_completed_before_it_is_gone() {
        let (mut m, line) = model();
        let _ = written(&mut m, line, 0, 1);
        let kept = written(&mut m, line, 1, 1);
        let _ = written(&mut m, line, 2, 1);
        let edge = m.issue_zero(line, 0, 1, true)[0];
        m.complete(edge, 0);
        let next = m.open_line(0, Some(line)).unwrap();
        assert!(
            m.check_opening(next, 0, &content(&[(1, kept)]), true).unwrap_err().contains("completed before it is gone")
        );
    }

    #[test]
    fn what_a_lossy_opening_lost_before_anybody_read_it_is_not_owed_by_who_takes_that_history_over() {
        for other in [0, 1] {
            let (mut m, line) = model();
            let a = written(&mut m, line, 0, 1);
            let at = m.mark();
            m.flushed(line, at, 1, 0);
            let unread = m.open_line(other, Some(line)).unwrap();
            let next = m.open_line(0, Some(unread)).unwrap();
            assert_eq!(m.check_opening(next, 0, &content(&[]), true).is_ok(), other == 1, "operation {a}");
        }
    }
}
