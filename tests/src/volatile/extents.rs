//! Pieces of a file by position: what covers a range ([`Overlay`]), and which ranges there are ([`RangeSet`]).

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

/// What a piece of an overlay holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes; as many as the piece is long.
    Data(Bytes),
    /// Zeros.
    Zeros,
}

impl Content {
    fn part(&self, from: u64, to: u64) -> Self {
        match self {
            Self::Data(bytes) => Self::Data(bytes.slice(from as usize..to as usize)),
            Self::Zeros => Self::Zeros,
        }
    }

    /// Copies `part` of the piece to `target`, which is as long.
    pub fn copy(&self, part: Range<usize>, target: &mut [u8]) {
        match self {
            Self::Data(bytes) => target.copy_from_slice(&bytes[part]),
            Self::Zeros => target.fill(0),
        }
    }
}

/// Pieces that cover a base, the newest on top. Pieces never overlap.
#[derive(Clone, Debug, Default)]
pub struct Overlay(BTreeMap<u64, (u64, Content)>);

impl Overlay {
    /// Covers the range; what was there before is cut away.
    pub fn cover(&mut self, range: Range<u64>, content: Content) {
        if range.is_empty() {
            return;
        }
        let first = self.0.range(..range.start).next_back().map_or(range.start, |(start, _)| *start);
        let touched: Vec<u64> = self.0.range(first..range.end).map(|(start, _)| *start).collect();
        for start in touched {
            self.cut_away(start, &range);
        }
        self.0.insert(range.start, (range.end, content));
    }

    fn cut_away(&mut self, start: u64, range: &Range<u64>) {
        let Some((end, content)) = self.0.remove(&start) else { return };
        if start < range.start {
            let left = range.start.min(end);
            self.0.insert(start, (left, content.part(0, left - start)));
        }
        if end > range.end {
            self.0.insert(range.end, (end, content.part(range.end - start, end - start)));
        }
    }

    /// Writes what covers `[offset, offset + target.len())` over `target`.
    pub fn apply(&self, offset: u64, target: &mut [u8]) {
        let end = offset + target.len() as u64;
        let first = self.0.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        for (start, (stop, content)) in self.0.range(first..end) {
            let (from, to) = ((*start).max(offset), (*stop).min(end));
            if from < to {
                let part = (from - start) as usize..(to - start) as usize;
                content.copy(part, &mut target[(from - offset) as usize..(to - offset) as usize]);
            }
        }
    }

    /// Covers nothing any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// A set of positions, as ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: BTreeMap<u64, u64>,
    total: u64,
}

impl RangeSet {
    /// How many positions are in it.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut merged = range.clone();
        for (start, end) in self.touching(&range) {
            merged = merged.start.min(start)..merged.end.max(end);
            self.ranges.remove(&start);
            self.total -= end - start;
        }
        self.total += merged.end - merged.start;
        self.ranges.insert(merged.start, merged.end);
    }

    /// Removes a range.
    pub fn remove(&mut self, range: Range<u64>) {
        for (start, end) in self.touching(&range) {
            self.ranges.remove(&start);
            self.total -= end - start;
            for rest in [start..range.start.min(end), range.end.max(start)..end] {
                if !rest.is_empty() {
                    self.total += rest.end - rest.start;
                    self.ranges.insert(rest.start, rest.end);
                }
            }
        }
    }

    /// How many positions of the range are not in it.
    pub fn missing(&self, range: Range<u64>) -> u64 {
        let inside = |(start, end): (u64, u64)| end.min(range.end).saturating_sub(start.max(range.start));
        range.end.saturating_sub(range.start) - self.touching(&range).into_iter().map(inside).sum::<u64>()
    }

    /// The first position at or after `at` that is in it.
    pub fn next_inside(&self, at: u64) -> Option<u64> {
        match self.ranges.range(..=at).next_back() {
            Some((_, end)) if *end > at => Some(at),
            _ => self.ranges.range(at..).next().map(|(start, _)| *start),
        }
    }

    /// The first position at or after `at` that is not in it.
    pub fn next_outside(&self, at: u64) -> u64 {
        match self.ranges.range(..=at).next_back() {
            Some((_, end)) if *end > at => *end,
            _ => at,
        }
    }

    fn touching(&self, range: &Range<u64>) -> Vec<(u64, u64)> {
        if range.is_empty() {
            return Vec::new();
        }
        let first = self.ranges.range(..range.start).next_back().map_or(range.start, |(start, _)| *start);
        let near = self.ranges.range(first..=range.end).map(|(start, end)| (*start, *end));
        near.filter(|(_, end)| *end >= range.start).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_overlay_reads_as_the_last_write_to_each_byte(
            writes in prop::collection::vec((0..200_u64, 0..60_u64, any::<bool>()), 0..40),
        ) {
            let mut overlay = Overlay::default();
            let mut model = [255_u8; 300];
            for (index, (start, len, zeros)) in writes.into_iter().enumerate() {
                let value = if zeros { 0 } else { index as u8 + 1 };
                let content = if zeros { Content::Zeros } else { Content::Data(vec![value; len as usize].into()) };
                overlay.cover(start..start + len, content);
                model[start as usize..(start + len) as usize].fill(value);
            }
            for offset in [0_usize, 7, 100] {
                let mut read = vec![255; 300 - offset];
                overlay.apply(offset as u64, &mut read);
                prop_assert_eq!(&read[..], &model[offset..]);
            }
        }

        #[test]
        fn a_range_set_is_a_set(changes in prop::collection::vec((0..200_u64, 0..60_u64, any::<bool>()), 0..40)) {
            let mut set = RangeSet::default();
            let mut model = [false; 300];
            for (start, len, insert) in changes {
                let range = start..start + len;
                if insert { set.insert(range) } else { set.remove(range) }
                model[start as usize..(start + len) as usize].fill(insert);
            }
            prop_assert_eq!(set.total(), model.iter().filter(|inside| **inside).count() as u64);
            prop_assert_eq!(set.missing(50..150), model[50..150].iter().filter(|inside| !**inside).count() as u64);
            for at in 0..260 {
                let inside = model[at..].iter().position(|inside| *inside).map(|steps| (at + steps) as u64);
                let outside = model[at..].iter().position(|inside| !*inside).map(|steps| (at + steps) as u64);
                prop_assert_eq!(set.next_inside(at as u64), inside);
                prop_assert_eq!(Some(set.next_outside(at as u64)), outside);
            }
        }
    }
}
