//! What a cut keeps. Decides from a seed only; the same operations and the same seed lose the same.
//!
//! A cut has one style, so that seeds differ in kind and not only in detail: pure chance nearly never loses everything, or
//! nearly nothing.

use std::collections::HashMap;

use crate::dice::Dice;

/// The kind of loss of one cut.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Style {
    /// Nothing that was not synced.
    Nothing,
    /// All of it: the power went after the cache was written out.
    Everything,
    /// All operations up to a moment.
    UpTo { sequence: u64 },
    /// Each sector for itself: the newest version with this chance, else any.
    Sectors { newest: f64 },
    /// Each operation for itself: whole, not at all, or torn.
    Operations,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Operation {
    Kept,
    Lost,
    Torn,
}

/// The choices of one cut.
#[derive(Debug)]
pub struct Fate {
    dice: Dice,
    style: Style,
    operations: HashMap<u64, Operation>,
}

impl Fate {
    /// The fate of `seed` over operations with sequence numbers from `first` up to, not including, `end`.
    pub fn new(seed: u64, first: u64, end: u64) -> Self {
        let mut dice = Dice::new(seed);
        let style = match dice.below(10) {
            0 => Style::Nothing,
            1 => Style::Everything,
            2 | 3 => Style::UpTo { sequence: first + dice.below(end.saturating_sub(first) + 1) },
            4..=6 => Style::Sectors { newest: [0.1, 0.5, 0.9, 0.99][dice.below(4) as usize] },
            _ => Style::Operations,
        };
        Self { dice, style, operations: HashMap::new() }
    }

    /// How many of a sector's versions (the operations that touched it, in order) had reached the medium: 0 is the old content,
    /// `sequences.len()` the newest.
    pub fn version(&mut self, sequences: &[u64]) -> usize {
        match self.style {
            Style::Nothing => 0,
            Style::Everything => sequences.len(),
            Style::UpTo { sequence } => sequences.iter().take_while(|own| **own < sequence).count(),
            Style::Sectors { newest } if self.dice.happens(newest) => sequences.len(),
            Style::Sectors { .. } => self.dice.below(sequences.len() as u64 + 1) as usize,
            Style::Operations => self.newest_kept(sequences),
        }
    }

    fn newest_kept(&mut self, sequences: &[u64]) -> usize {
        let newest = sequences.iter().rposition(|sequence| match self.operation(*sequence) {
            Operation::Kept => true,
            Operation::Lost => false,
            Operation::Torn => self.dice.happens(0.5),
        });
        newest.map_or(0, |index| index + 1)
    }

    fn operation(&mut self, sequence: u64) -> Operation {
        let dice = &mut self.dice;
        *self.operations.entry(sequence).or_insert_with(|| match dice.below(3) {
            0 => Operation::Kept,
            1 => Operation::Lost,
            _ => Operation::Torn,
        })
    }

    /// Whether an operation that is whole or not there at all (a name) survives.
    pub fn keeps(&mut self, sequence: u64) -> bool {
        self.version(&[sequence]) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_lose_nothing_all_and_parts() {
        let kept = |seed| {
            let mut fate = Fate::new(seed, 0, 100);
            (0..100).filter(|sequence| fate.keeps(*sequence)).count()
        };
        let kept: Vec<_> = (0..200).map(kept).collect();
        assert!(kept.contains(&0) && kept.contains(&100));
        assert!(kept.iter().filter(|count| (20..80).contains(*count)).count() > 50);
    }

    #[test]
    fn the_same_seed_has_the_same_fate() {
        let versions = |seed| {
            let mut fate = Fate::new(seed, 0, 9);
            (0..50).map(|_| fate.version(&[1, 4, 8])).collect::<Vec<_>>()
        };
        assert!((0..50).all(|seed| versions(seed) == versions(seed)));
    }

    #[test]
    fn any_version_of_a_sector_can_survive() {
        let survived: std::collections::BTreeSet<_> =
            (0..200).map(|seed| Fate::new(seed, 0, 9).version(&[1, 4, 8])).collect();
        assert_eq!(survived.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }
}
