//! A group whose configuration changes again and again stays in its smallest safe S for a while (R20): joining and taking over wait,
//! leaving never does.

use crate::types::Nanos;

/// Automatic changes within the window after which the group rests.
const CHANGES: usize = 3;

/// The times that decide when a group rests, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Calm {
    /// Three automatic changes within this time are too many.
    pub window_ns: u64,
    /// Without an automatic change for this long the group goes on.
    pub rest_ns: u64,
}

impl Calm {
    /// Ten minutes, and thirty.
    pub const DEFAULT: Self = Self { window_ns: 600_000_000_000, rest_ns: 1_800_000_000_000 };
}

impl Default for Calm {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The automatic changes of a group, as far as this agent has seen them since it started.
#[derive(Debug)]
pub struct Flapping {
    calm: Calm,
    /// The newest changes, oldest first.
    recent: [Option<Nanos>; CHANGES],
    rests: bool,
}

impl Flapping {
    /// Nothing has changed yet.
    pub fn new(calm: Calm) -> Self {
        Self { calm, recent: [None; CHANGES], rests: false }
    }

    /// An automatic change is in force; true when the group rests from now on.
    pub fn on_change(&mut self, now: Nanos) -> bool {
        let rested = self.rests(now);
        self.recent.rotate_left(1);
        self.recent[CHANGES - 1] = Some(now);
        let oldest = self.recent[0];
        self.rests = rested || oldest.is_some_and(|at| now.since(at) <= self.calm.window_ns);
        self.rests && !rested
    }

    /// A person has looked at it.
    pub fn clear(&mut self) {
        (self.recent, self.rests) = ([None; CHANGES], false);
    }

    /// Joining and taking over wait.
    pub fn rests(&self, now: Nanos) -> bool {
        self.rests_until().is_some_and(|until| now < until)
    }

    /// Until when, as it looks now.
    pub fn rests_until(&self) -> Option<Nanos> {
        let newest = self.recent[CHANGES - 1].filter(|_| self.rests)?;
        Some(Nanos(newest.0.saturating_add(self.calm.rest_ns)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Calm = Calm { window_ns: 100, rest_ns: 300 };

    fn after(changes: &[u64]) -> Flapping {
        let mut flapping = Flapping::new(CALM);
        for at in changes {
            flapping.on_change(Nanos(*at));
        }
        flapping
    }

    #[test]
    fn three_changes_within_the_window_begin_a_rest_that_the_newest_change_dates() {
        assert_eq!(after(&[1_000, 1_050]).rests_until(), None);
        assert_eq!(after(&[1_000, 1_050, 1_101]).rests_until(), None, "the first is out of the window");
        let flapping = after(&[1_000, 1_050, 1_100]);
        assert!(flapping.rests(Nanos(1_399)) && !flapping.rests(Nanos(1_400)));
    }

    #[test]
    fn a_change_during_the_rest_begins_it_anew_and_one_after_it_does_not() {
        assert_eq!(after(&[1_000, 1_050, 1_100, 1_399]).rests_until(), Some(Nanos(1_699)));
        let flapping = after(&[1_000, 1_050, 1_100, 1_400]);
        assert!(!flapping.rests(Nanos(1_401)), "three changes took 350");
    }

    #[test]
    fn only_the_change_that_begins_the_rest_says_so_and_a_person_ends_it() {
        let mut flapping = after(&[1_000, 1_050]);
        assert!(flapping.on_change(Nanos(1_060)));
        assert!(!flapping.on_change(Nanos(1_070)));
        flapping.clear();
        assert!(!flapping.rests(Nanos(1_071)));
        assert!(!flapping.on_change(Nanos(1_072)) && !flapping.on_change(Nanos(1_073)));
    }
}
