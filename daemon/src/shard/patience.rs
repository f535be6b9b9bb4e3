//! How long a shard looks for work before it sleeps.
//!
//! To fall asleep and to be woken costs a thread some 30 to 50 us on a virtual processor, as much as a write to a fast disk. Where
//! the last waits were short the next will be: then looking is cheaper for whoever waits. The rule is that of Linux's `haltpoll`
//! governor: the limit doubles with each wait that was shorter than the bound, and falls to nothing with one that was longer.
//! An idle shard therefore sleeps, and so does one whose peer or disk is slower than the bound.

use std::time::Duration;

/// The first limit.
const FIRST: Duration = Duration::from_micros(20);

/// The present limit and its bound.
pub(super) struct Patience {
    limit: Duration,
    most: Duration,
}

impl Patience {
    /// `most`: the bound; zero to sleep at once, always.
    pub fn new(most: Duration) -> Self {
        Self { limit: Duration::ZERO, most }
    }

    /// How long to look before the next sleep.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Takes how long the last wait was, looking and asleep.
    pub fn waited(&mut self, time: Duration) {
        self.limit =
            if time < self.most { (self.limit * 2).clamp(FIRST, self.most.max(FIRST)) } else { Duration::ZERO };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: fn(u64) -> Duration = Duration::from_micros;

    #[test]
    fn short_waits_raise_the_limit_up_to_its_bound() {
        let mut patience = Patience::new(US(100));
        assert_eq!(patience.limit(), Duration::ZERO, "nothing is known yet");
        let limits = [20, 40, 80, 100, 100];
        for limit in limits {
            patience.waited(US(99));
            assert_eq!(patience.limit(), US(limit));
        }
    }

    #[test]
    fn one_long_wait_ends_the_looking() {
        let mut patience = Patience::new(US(100));
        (0..10).for_each(|_| patience.waited(US(5)));
        patience.waited(US(100));
        assert_eq!(patience.limit(), Duration::ZERO);
    }

    #[test]
    fn a_bound_of_zero_never_looks() {
        let mut patience = Patience::new(Duration::ZERO);
        (0..10).for_each(|_| patience.waited(Duration::ZERO));
        assert_eq!(patience.limit(), Duration::ZERO);
    }
}
