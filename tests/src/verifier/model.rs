//! What each sector may hold. Pure: no clock, no socket; time is a count of events.
//!
//! Invariants: a sector's versions are in the order of their writes, the first is the newest that a flush or a read after a
//! crash has made certain, the last is what a read shows now; no two requests under way overlap unless both read.

use std::collections::BTreeMap;
use std::ops::Range;

use super::pattern::{Found, Number, recognize};

/// A count of events: orders ends of requests and beginnings of others.
type Tick = u64;

/// What a write leaves in a sector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Version {
    number: Number,
    is_zero: bool,
}

impl Version {
    const FIRST: Self = Self { number: 0, is_zero: true };

    fn matches(self, found: Found) -> bool {
        match found {
            Found::Zeros => self.is_zero,
            Found::Write(number) => !self.is_zero && self.number == number,
            Found::Garbage => false,
        }
    }
}

/// A write that no flush has covered.
#[derive(Clone, Debug)]
struct Write {
    sectors: Range<u64>,
    begun: Tick,
    /// `None`: under way, or nobody knows how it ended.
    completed: Option<Tick>,
}

/// Something that the server must never do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// A read showed something else than the newest write.
    #[error("sector {sector} reads as {found:?}, its newest write is {newest}")]
    WrongRead {
        /// Where.
        sector: u64,
        /// What was read.
        found: Found,
        /// What should have been.
        newest: Number,
    },
    /// After a crash a sector holds what no crash can leave.
    #[error(
        "after the crash sector {sector} holds {found:?}; allowed are writes {allowed:?}, the first of them is flushed"
    )]
    Lost {
        /// Where.
        sector: u64,
        /// What is there.
        found: Found,
        /// What may be there.
        allowed: Vec<Number>,
    },
    /// What a crash left is no prefix.
    #[error("sector {sector} lost write {lost}, which had completed before write {kept} began, and that one is there")]
    NoPrefix {
        /// Where.
        sector: u64,
        /// What is missing.
        lost: Number,
        /// What is there all the same.
        kept: Number,
    },
}

/// A flush that is under way: it covers what had completed when it began.
#[derive(Clone, Copy, Debug)]
pub struct Flush(Tick);

/// The knowledge about a volume.
#[derive(Clone, Debug)]
pub struct Model {
    sectors: Vec<Vec<Version>>,
    writes: BTreeMap<Number, Write>,
    under_way: Vec<(Range<u64>, bool)>,
    next: Number,
    now: Tick,
}

impl Model {
    /// A volume of zeros.
    pub fn new(sectors: u64) -> Self {
        let sectors = vec![vec![Version::FIRST]; sectors as usize];
        Self { sectors, writes: BTreeMap::new(), under_way: Vec::new(), next: 1, now: 0 }
    }

    /// Number of sectors.
    pub fn len(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// True for a volume without sectors.
    pub fn is_empty(&self) -> bool {
        self.sectors.is_empty()
    }

    fn tick(&mut self) -> Tick {
        self.now += 1;
        self.now
    }

    /// Whether a request may begin: a write meets nothing, a read no write.
    pub fn is_free(&self, sectors: &Range<u64>, writes: bool) -> bool {
        let meets = |(other, other_writes): &(Range<u64>, bool)| {
            (writes || *other_writes) && other.start < sectors.end && sectors.start < other.end
        };
        !self.under_way.iter().any(meets)
    }

    /// A write, or one of zeros, is sent.
    pub fn begin_write(&mut self, sectors: Range<u64>, is_zero: bool) -> Number {
        let number = self.next;
        self.next += 1;
        for sector in sectors.clone() {
            self.sectors[sector as usize].push(Version { number, is_zero });
        }
        let begun = self.tick();
        self.under_way.push((sectors.clone(), true));
        self.writes.insert(number, Write { sectors, begun, completed: None });
        number
    }

    /// A write was answered with success; `is_durable`: it had asked to be.
    pub fn end_write(&mut self, number: Number, is_durable: bool) {
        let now = self.tick();
        self.forget_under_way(number);
        if let Some(write) = self.writes.get_mut(&number) {
            write.completed = Some(now);
        }
        if is_durable {
            self.make_certain(number);
        }
    }

    /// Nobody knows how a write ended: it may be there or not.
    pub fn lose_write(&mut self, number: Number) {
        self.forget_under_way(number);
    }

    fn forget_under_way(&mut self, number: Number) {
        let sectors = self.writes.get(&number).map(|write| write.sectors.clone());
        if let Some(at) = self.under_way.iter().position(|(range, writes)| *writes && Some(range) == sectors.as_ref()) {
            self.under_way.swap_remove(at);
        }
    }

    /// A flush is sent.
    pub fn begin_flush(&mut self) -> Flush {
        Flush(self.tick())
    }

    /// A flush was answered with success.
    pub fn end_flush(&mut self, flush: Flush) {
        let covered = |write: &Write| write.completed.is_some_and(|at| at < flush.0);
        let covered: Vec<Number> = self.writes.iter().filter(|(_, w)| covered(w)).map(|(number, _)| *number).collect();
        covered.into_iter().for_each(|number| self.make_certain(number));
    }

    fn make_certain(&mut self, number: Number) {
        let Some(write) = self.writes.remove(&number) else { return };
        for sector in write.sectors {
            let versions = &mut self.sectors[sector as usize];
            let at = versions.iter().position(|version| version.number == number).unwrap_or(0);
            versions.drain(..at);
        }
    }

    /// A read is sent.
    pub fn begin_read(&mut self, sectors: Range<u64>) {
        self.under_way.push((sectors, false));
    }

    /// A read was answered, with `data` or without.
    ///
    /// # Errors
    /// When a sector does not hold its newest write.
    pub fn end_read(&mut self, sectors: Range<u64>, data: Option<&[u8]>) -> Result<(), Violation> {
        if let Some(at) = self.under_way.iter().position(|(range, writes)| !writes && *range == sectors) {
            self.under_way.swap_remove(at);
        }
        let Some(data) = data else { return Ok(()) };
        for (sector, bytes) in sectors.zip(data.chunks_exact(super::pattern::SECTOR)) {
            let newest = *self.sectors[sector as usize].last().expect("a sector has a version");
            let found = recognize(bytes, sector);
            if !newest.matches(found) {
                return Err(Violation::WrongRead { sector, found, newest: newest.number });
            }
        }
        Ok(())
    }

    /// After a crash, with nothing under way: `found` is what each sector holds. From here on that is certain.
    ///
    /// # Errors
    /// When no crash can leave that.
    pub fn after_crash(&mut self, found: &[Found]) -> Result<(), Violation> {
        assert!(self.under_way.is_empty(), "requests are under way");
        let mut kept = Vec::with_capacity(found.len());
        for (sector, found) in (0..).zip(found) {
            let versions = &self.sectors[sector as usize];
            let is_match = |version: &Version| version.matches(*found);
            let oldest = versions.iter().position(is_match);
            let newest = versions.iter().rposition(is_match);
            let (Some(oldest), Some(newest)) = (oldest, newest) else {
                let allowed = versions.iter().map(|version| version.number).collect();
                return Err(Violation::Lost { sector, found: *found, allowed });
            };
            // Of several writes that look alike the one is taken that speaks for the server.
            kept.push((versions[oldest], versions[newest]));
        }
        self.check_prefix(&kept)?;
        for (versions, (_, newest)) in self.sectors.iter_mut().zip(kept) {
            *versions = vec![newest];
        }
        self.writes.clear();
        Ok(())
    }

    /// `kept`: of each sector the oldest and the newest write that its content may be from.
    fn check_prefix(&self, kept: &[(Version, Version)]) -> Result<(), Violation> {
        let there = kept.iter().filter_map(|(oldest, _)| Some((self.writes.get(&oldest.number)?.begun, oldest.number)));
        let Some((begun, latest)) = there.max() else { return Ok(()) };
        for (number, write) in self.writes.iter().filter(|(_, w)| w.completed.is_some_and(|at| at < begun)) {
            let gone = |sector: &u64| kept[*sector as usize].1.number < *number;
            if let Some(sector) = write.sectors.clone().find(gone) {
                return Err(Violation::NoPrefix { sector, lost: *number, kept: latest });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::{SECTOR, fill};
    use super::*;

    fn completed(model: &mut Model, sectors: Range<u64>) -> Number {
        let number = model.begin_write(sectors, false);
        model.end_write(number, false);
        number
    }

    fn flushed(model: &mut Model) {
        let flush = model.begin_flush();
        model.end_flush(flush);
    }

    #[test]
    fn a_flushed_write_must_be_there_and_a_completed_one_may_be() {
        let mut model = Model::new(2);
        completed(&mut model, 0..1);
        flushed(&mut model);
        completed(&mut model, 0..1);
        for (found, holds) in [(Found::Zeros, false), (Found::Write(1), true), (Found::Write(2), true)] {
            let mut model = Model { sectors: model.sectors.clone(), writes: model.writes.clone(), ..Model::new(2) };
            assert_eq!(model.after_crash(&[found, Found::Zeros]).is_ok(), holds, "{found:?}");
        }
        let lost = Violation::Lost { sector: 0, found: Found::Zeros, allowed: vec![1, 2] };
        assert_eq!(model.after_crash(&[Found::Zeros, Found::Zeros]), Err(lost));
    }

    #[test]
    fn a_flush_covers_only_what_completed_before_it_began() {
        let mut model = Model::new(1);
        let write = model.begin_write(0..1, false);
        let flush = model.begin_flush();
        model.end_write(write, false);
        model.end_flush(flush);
        assert_eq!(model.after_crash(&[Found::Zeros]), Ok(()));
    }

    #[test]
    fn a_durable_write_needs_no_flush() {
        let mut model = Model::new(1);
        let write = model.begin_write(0..1, false);
        model.end_write(write, true);
        assert!(model.after_crash(&[Found::Zeros]).is_err());
    }

    #[test]
    fn a_write_of_unknown_end_may_be_there_or_not() {
        for found in [Found::Zeros, Found::Write(1)] {
            let mut model = Model::new(1);
            let write = model.begin_write(0..1, false);
            model.lose_write(write);
            flushed(&mut model);
            assert_eq!(model.after_crash(&[found]), Ok(()));
            // What was read once stays.
            let other = if found == Found::Zeros { Found::Write(1) } else { Found::Zeros };
            assert!(model.after_crash(&[other]).is_err());
        }
    }

    #[test]
    fn a_later_write_without_an_earlier_one_is_no_prefix() {
        let mut model = Model::new(2);
        completed(&mut model, 0..1);
        completed(&mut model, 1..2);
        let error = Violation::NoPrefix { sector: 0, lost: 1, kept: 2 };
        assert_eq!(model.after_crash(&[Found::Zeros, Found::Write(2)]), Err(error));
        assert_eq!(model.after_crash(&[Found::Write(1), Found::Zeros]), Ok(()));
    }

    #[test]
    fn writes_that_were_under_way_together_come_in_any_order() {
        let mut model = Model::new(2);
        let writes = [model.begin_write(0..1, false), model.begin_write(1..2, false)];
        writes.into_iter().for_each(|write| model.end_write(write, false));
        assert_eq!(model.after_crash(&[Found::Zeros, Found::Write(2)]), Ok(()));
    }

    #[test]
    fn zeros_may_be_from_the_beginning_or_from_a_later_write_of_zeros() {
        let mut model = Model::new(1);
        completed(&mut model, 0..1);
        let zeros = model.begin_write(0..1, true);
        model.end_write(zeros, false);
        assert_eq!(model.after_crash(&[Found::Zeros]), Ok(()));
    }

    #[test]
    fn a_read_shows_the_newest_write() {
        let mut model = Model::new(1);
        completed(&mut model, 0..1);
        let mut data = vec![0; SECTOR];
        assert!(model.end_read(0..1, Some(&data)).is_err());
        fill(&mut data, 0, 1);
        assert_eq!(model.end_read(0..1, Some(&data)), Ok(()));
        data[100] ^= 1;
        assert!(model.end_read(0..1, Some(&data)).is_err());
    }

    #[test]
    fn a_write_meets_nothing_and_a_read_no_write() {
        let mut model = Model::new(8);
        model.begin_read(0..2);
        assert!(model.is_free(&(1..3), false) && !model.is_free(&(1..3), true));
        let write = model.begin_write(4..6, false);
        assert!(!model.is_free(&(5..8), false) && model.is_free(&(6..8), true));
        model.end_write(write, false);
        assert!(model.is_free(&(5..8), true));
    }
}
