//! What the fields of a policy may hold, wherever they come from: the admin API, the configuration file, a peer.

use std::ops::RangeInclusive;

const YEAR_MS: u64 = 366 * 24 * 3600 * 1000;

/// `rpoTarget`, milliseconds.
pub const RPO_TARGET_MS: RangeInclusive<u64> = 1..=YEAR_MS;
/// `retention`, milliseconds.
pub const RETENTION_MS: RangeInclusive<u64> = 0..=10 * YEAR_MS;
/// `logSize`, bytes.
pub const LOG_BYTES: RangeInclusive<u64> = 1 << 20..=1 << 50;
/// `diskTimeout`, milliseconds: every healthy disk answers within the shortest, and the longest is still noticed.
pub const DISK_TIMEOUT_MS: RangeInclusive<u64> = 1_000..=600_000;
/// `peerLoss`, milliseconds: longer than a slow network takes, and the longest still ends.
pub const PEER_LOSS_MS: RangeInclusive<u64> = 500..=600_000;
/// `indexRanges`.
pub const INDEX_RANGES: RangeInclusive<u32> = 1 << 10..=1 << 24;
/// The least `bandwidth` that is not 0 (unlimited), bytes per second: less would hold up a single frame for longer than peers
/// and disks are waited for.
pub const MIN_BANDWIDTH: u64 = 128 << 10;

/// Whether `bandwidth` may be `bytes` per second.
pub fn is_bandwidth(bytes: u64) -> bool {
    bytes == 0 || bytes >= MIN_BANDWIDTH
}
