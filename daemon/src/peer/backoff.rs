//! When to try again: soon after the first failure, then 1 s, 2 s, ... 60 s, each spread so that many volumes do not dial in step.

use std::time::Duration;

/// After the first failure.
pub const FIRST_RETRY: Duration = Duration::from_millis(200);
/// After the second failure; doubles from there.
pub const SECOND_RETRY: Duration = Duration::from_secs(1);
/// Never longer, before the spread.
pub const LAST_RETRY: Duration = Duration::from_secs(60);
/// Each delay is shortened by up to one in this many.
const SPREAD: u32 = 4;

/// The delays between attempts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay after one more failure. `random` spreads it: the full delay at 0, three quarters of it at `u32::MAX`.
    pub fn next_delay(&mut self, random: u32) -> Duration {
        let full = match self.failures {
            0 => FIRST_RETRY,
            n => SECOND_RETRY.saturating_mul(1 << (n - 1).min(16)).min(LAST_RETRY),
        };
        self.failures = self.failures.saturating_add(1);
        full - (full / SPREAD).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// Something worked: the next failure is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(backoff: &mut Backoff, random: u32, count: usize) -> Vec<u64> {
        (0..count).map(|_| backoff.next_delay(random).as_millis() as u64).collect()
    }

    #[test]
    fn the_delays_double_up_to_a_minute() {
        let mut backoff = Backoff::default();
        assert_eq!(
            delays(&mut backoff, 0, 10),
            [200, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]
        );
    }

    #[test]
    fn the_spread_shortens_by_at_most_a_quarter() {
        assert_eq!(delays(&mut Backoff::default(), u32::MAX, 3), [150, 750, 1_500]);
        assert_eq!(delays(&mut Backoff::default(), u32::MAX / 2, 2), [175, 875]);
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::default();
        delays(&mut backoff, 0, 5);
        backoff.reset();
        assert_eq!(delays(&mut backoff, 0, 2), [200, 1_000]);
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut backoff = Backoff { failures: u32::MAX - 1 };
        assert_eq!(delays(&mut backoff, 0, 3), [60_000, 60_000, 60_000]);
    }
}
