//! When what is to be shipped leaves: frames for which nobody waits gather, and nothing leaves faster than the operator allows.
//!
//! A message costs both agents about as much as the hundred kilobytes it can carry, so frames that only the replica's lag
//! depends on leave together. A frame that an answer waits for (a FLUSH, a write under `ackOn: write`) is never held back for
//! company, only for the allowed bandwidth.

use crate::types::Nanos;

/// Frames gather up to so many bytes: what one write to the connection carries ...
pub const GATHER_BYTES: u64 = 128 << 10;
/// ... or for so long, in nanoseconds: far below any RPO that can be asked for.
pub const GATHER_NS: u64 = 4_000_000;
/// After a pause so many nanoseconds' worth of the bandwidth may leave at once.
const BURST_NS: u64 = 100_000_000;

/// The gate of one stream.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    /// What gathers leaves at this time at the latest.
    gathered_at: Option<Nanos>,
    /// The allowed bandwidth is used up to this time.
    free_at: Nanos,
}

impl Gate {
    /// True when the bandwidth allows more to leave.
    pub fn is_free(&self, now: Nanos) -> bool {
        self.free_at <= now
    }

    /// True when it was opened for what is there: it stays so until everything has left or the bandwidth is used up.
    pub fn is_open(&self, now: Nanos) -> bool {
        self.is_free(now) && self.gathered_at.is_some_and(|at| at <= now)
    }

    /// True when frames may leave that are `unsent` bytes together; `awaited`: somebody waits for them.
    pub fn opens(&mut self, now: Nanos, unsent: u64, awaited: bool) -> bool {
        if !self.is_free(now) {
            return false;
        }
        let at = self.gathered_at.get_or_insert(Nanos(now.0 + GATHER_NS));
        if awaited || unsent >= GATHER_BYTES {
            *at = now;
        }
        *at <= now
    }

    /// Everything there was has left.
    pub fn nothing_waits(&mut self) {
        self.gathered_at = None;
    }

    /// `bytes` left under a limit of `rate` bytes per second; 0 is none.
    pub fn on_sent(&mut self, now: Nanos, bytes: u64, rate: u64) {
        self.free_at = match rate {
            0 => Nanos::default(),
            _ => {
                let takes = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
                let from = self.free_at.max(Nanos(now.0.saturating_sub(BURST_NS)));
                Nanos(from.0.saturating_add(u64::try_from(takes).unwrap_or(u64::MAX)))
            }
        };
    }

    /// When it wants to be looked at again.
    pub fn timeout(&self) -> Option<Nanos> {
        let free = (self.free_at > Nanos::default()).then_some(self.free_at);
        self.gathered_at.map(|at| at.max(self.free_at)).or(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Nanos = Nanos(1_000_000_000);

    fn later(ns: u64) -> Nanos {
        Nanos(START.0 + ns)
    }

    #[test]
    fn frames_gather_until_they_are_many_or_old() {
        let mut gate = Gate::default();
        assert!(!gate.opens(START, 4096, false));
        assert!(!gate.opens(later(GATHER_NS - 1), 8192, false));
        assert_eq!(gate.timeout(), Some(later(GATHER_NS)));
        assert!(gate.opens(later(GATHER_NS), 8192, false), "the first of them is old enough");
        gate.nothing_waits();
        assert_eq!(gate.timeout(), None);
        assert!(!gate.opens(later(GATHER_NS), 4096, false), "the next wait anew");
        assert!(gate.opens(later(GATHER_NS), GATHER_BYTES, false));
    }

    #[test]
    fn a_frame_that_somebody_waits_for_leaves_at_once_and_all_before_it() {
        let mut gate = Gate::default();
        assert!(!gate.opens(START, 4096, false));
        assert!(gate.opens(START, 8192, true));
        assert!(gate.is_open(START), "also for what follows it");
    }

    #[test]
    fn no_more_leaves_than_the_bandwidth_allows_whoever_waits() {
        let mut gate = Gate::default();
        let (mut sent, mut now, rate) = (0, START, 1_000_000);
        while now < later(10_000_000_000) {
            if gate.opens(now, 50_000, true) {
                gate.on_sent(now, 50_000, rate);
                sent += 50_000;
            }
            now = gate.timeout().unwrap().max(Nanos(now.0 + 1));
        }
        assert!((9_900_000..=10_200_000).contains(&sent), "{sent} bytes in ten seconds at a megabyte per second");
    }

    #[test]
    fn a_limit_that_is_lifted_holds_nothing_back() {
        let mut gate = Gate::default();
        gate.on_sent(START, 1 << 30, 1);
        assert!(!gate.opens(START, GATHER_BYTES, true));
        gate.on_sent(START, 0, 0);
        assert!(gate.opens(START, GATHER_BYTES, true));
    }
}
