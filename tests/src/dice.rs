//! Randomness of the harness: one seed, printed by every program that takes one, gives the same choices again.

use std::time::Duration;

/// A SplitMix64 generator: small, seedable, good enough for choosing moments.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The choices of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A seed that differs from run to run.
    pub fn fresh_seed() -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Six digits or so can be typed again by a person.
        Self::new(now.as_nanos() as u64 ^ u64::from(std::process::id())).below(1_000_000)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "nothing is below zero");
        self.number() % end
    }

    /// True with probability `chance`, 0 to 1.
    pub fn happens(&mut self, chance: f64) -> bool {
        const STEPS: u64 = 1 << 53;
        (self.below(STEPS) as f64) < chance * STEPS as f64
    }

    /// A span from `min` up to, not including, `max`.
    pub fn between(&mut self, min: Duration, max: Duration) -> Duration {
        let width = max.saturating_sub(min).as_micros() as u64;
        if width == 0 { min } else { min + Duration::from_micros(self.below(width)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let (mut one, mut two) = (Dice::new(7), Dice::new(7));
        assert!((0..100).all(|_| one.number() == two.number()));
    }

    #[test]
    fn chances_at_the_ends_are_certain() {
        let mut dice = Dice::new(1);
        assert!((0..1000).all(|_| dice.happens(1.0) && !dice.happens(0.0)));
    }

    #[test]
    fn a_span_stays_between_its_ends() {
        let (min, max) = (Duration::from_millis(3), Duration::from_millis(9));
        let mut dice = Dice::new(2);
        assert!((0..1000).map(|_| dice.between(min, max)).all(|span| span >= min && span < max));
        assert_eq!(dice.between(min, min), min);
    }
}
