//! How fast the base may be written while the log is: what is written for an answer goes first, what follows it takes the room
//! that the log has.
//!
//! Every byte that the log takes earns a share of a byte of base writes. The share is small while the log has room, so that a
//! burst runs at the speed of the log alone, and grows with what is above the floor until base writes are as free as anything
//! else. [`STEADY_BYTES_PER_SECOND`] are earned in any case: behind a writer that is slow the base does not fall back. When nothing
//! was appended for [`IDLE_MS`], or somebody waits for the floor, there is nothing to yield to.

use crate::types::Nanos;

/// Without an append for so long the base has the disk to itself.
const IDLE_MS: u64 = 20;
/// The most that may be earned ahead, in bytes: a pause must not become a burst of base writes.
const CREDIT_BYTES: i64 = 2 << 20;
/// What the base gets beside any load: a thousand blocks a second, a few percent of what a disk of flash does.
const STEADY_BYTES_PER_SECOND: u64 = 4 << 20;
/// Up to this fill, in percent, the share is [`LEAST`]; from it on the floor advances unasked.
pub const RELAXED_PERCENT: u64 = 60;
/// From this fill on nothing is held back.
const URGENT_PERCENT: u64 = 90;
/// Shares, in 16ths of a byte for each byte appended: a sixteenth, and at the urgent end two bytes.
const LEAST: u64 = 1;
const MOST: u64 = 32;

/// The measure of one floor.
#[derive(Clone, Debug)]
pub struct Pace {
    credit: i64,
    /// 16ths of a byte earned with each byte; `None`: nothing is held back.
    share: Option<u64>,
    earned_at: Nanos,
    idle_at: Nanos,
}

impl Default for Pace {
    fn default() -> Self {
        Self { credit: 0, share: Some(LEAST), earned_at: Nanos::default(), idle_at: Nanos::default() }
    }
}

impl Pace {
    /// `fill`: how much of its room the log has used, in percent.
    pub fn set_fill(&mut self, fill: u64) {
        self.share = match fill {
            0..=RELAXED_PERCENT => Some(LEAST),
            URGENT_PERCENT.. => None,
            _ => Some(LEAST + (MOST - LEAST) * (fill - RELAXED_PERCENT) / (URGENT_PERCENT - RELAXED_PERCENT)),
        };
    }

    /// The log has taken `bytes`.
    pub fn earn(&mut self, now: Nanos, bytes: u64) {
        let shared = bytes.saturating_mul(self.share.unwrap_or(MOST)) / 16;
        let steady = now.since(self.earned_at).min(1_000_000_000) * STEADY_BYTES_PER_SECOND / 1_000_000_000;
        self.credit = self.credit.saturating_add_unsigned(shared.saturating_add(steady)).min(CREDIT_BYTES);
        self.earned_at = now;
        self.idle_at = now.after_ms(IDLE_MS);
    }

    /// True when a base write may go.
    pub fn admits(&self, now: Nanos) -> bool {
        self.share.is_none() || self.credit > 0 || now >= self.idle_at
    }

    /// A base write of `bytes` goes.
    pub fn spend(&mut self, bytes: u64) {
        // No debt beyond what one write can make: writes of an idle time are free.
        self.credit = self.credit.saturating_sub_unsigned(bytes).max(-CREDIT_BYTES);
    }

    /// When a write that is not admitted will be, if nothing else happens.
    pub fn idle_at(&self) -> Nanos {
        self.idle_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Bytes admitted in 4 KiB writes after `appended` bytes at `fill`, of at most 64 MiB.
    fn admitted(fill: u64, appended: u64) -> u64 {
        let mut pace = Pace::default();
        pace.set_fill(fill);
        let mut bytes = 0;
        for _ in 0..appended / 4096 {
            pace.earn(Nanos(1), 4096);
            while pace.admits(Nanos(1)) && bytes < 64 * MIB {
                pace.spend(4096);
                bytes += 4096;
            }
        }
        bytes
    }

    #[test]
    fn a_burst_into_an_empty_log_leaves_the_base_a_sixteenth() {
        assert!(admitted(10, 16 * MIB).abs_diff(MIB) <= 4096);
    }

    #[test]
    fn the_share_grows_with_the_fill_until_nothing_is_held_back() {
        let shares = [0, 60, 70, 80, 89].map(|fill| admitted(fill, 16 * MIB));
        assert!(shares.is_sorted() && shares[4] > 16 * MIB, "{shares:?}");
        assert_eq!(admitted(90, 4096), 64 * MIB);
    }

    #[test]
    fn the_base_keeps_up_with_a_slow_writer() {
        let mut pace = Pace::default();
        // 100 blocks a second, for ten seconds: never idle, and less than what is steady.
        let mut debt = 0_i64;
        for i in 1..=1000_u64 {
            let now = Nanos(i * 10_000_000);
            pace.earn(now, 4096);
            debt += 4096;
            while debt > 0 && pace.admits(now) {
                pace.spend(4096);
                debt -= 4096;
            }
        }
        assert!(debt <= 4096, "{debt} bytes behind");
    }

    #[test]
    fn an_idle_log_holds_nothing_back_and_a_pause_is_no_credit() {
        let mut pace = Pace::default();
        pace.earn(Nanos(1), 16);
        pace.spend(64 * MIB);
        assert!(!pace.admits(Nanos(1)) && pace.admits(pace.idle_at()));
        pace.earn(Nanos(1), u64::MAX / 64);
        let mut bytes = 0;
        while pace.admits(Nanos(1)) {
            pace.spend(4096);
            bytes += 4096;
        }
        assert_eq!(bytes, CREDIT_BYTES as u64);
    }
}
