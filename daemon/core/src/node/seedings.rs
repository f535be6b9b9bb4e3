//! The bound on seedings: each begins with nothing and costs the whole volume, so that they must not follow each other without
//! end where they fail, or where the log loses the peer again at once.

use crate::node::Node;
use crate::types::Nanos;

/// A seeding that failed, or led nowhere, is followed by the next one after this time, then after twice that, and so on ...
const RETRY_MS: u64 = 1_000;
/// ... up to this.
const MAX_RETRY_MS: u64 = 60_000;
/// A peer that was out of reach of the log again within this time was seeded to no end.
const HELD_MS: u64 = 60_000;
/// After so many in a row an alarm says so, each time.
const ALARM_AFTER: u32 = 3;

/// How the seedings of the peer went.
#[derive(Debug, Default)]
pub(super) struct Seedings {
    /// In a row to no end.
    failed: u32,
    why: &'static str,
    not_before: Option<Nanos>,
    /// A peer waits for that time.
    again_at: Option<Nanos>,
    ended_at: Option<Nanos>,
}

impl Seedings {
    /// The peer holds all that the seeding was to give it.
    pub(super) fn on_ended(&mut self, now: Nanos) {
        self.ended_at = Some(now);
    }

    pub(super) fn ended_just_now(&self, now: Nanos) -> bool {
        self.ended_at.is_some_and(|at| now < at.after_ms(HELD_MS))
    }

    /// When a peer that waits is seeded again.
    pub(super) fn timeout(&self) -> Option<Nanos> {
        self.again_at
    }

    /// Forgets what went wrong before a seeding that held.
    fn look_back(&mut self, now: Nanos) {
        if self.ended_at.is_some_and(|at| now >= at.after_ms(HELD_MS)) {
            *self = Self::default();
        }
    }

    /// One more to no end; gives the milliseconds until the next one.
    fn fail(&mut self, now: Nanos, why: &'static str) -> u64 {
        self.look_back(now);
        let wait_ms = (RETRY_MS << self.failed.min(16)).min(MAX_RETRY_MS);
        let (failed, not_before) = (self.failed + 1, Some(now.after_ms(wait_ms)));
        *self = Self { failed, why, not_before, again_at: None, ended_at: None };
        wait_ms
    }
}

impl Node {
    /// A seeding failed not long ago: the next one has its time.
    pub(super) fn waits_to_seed(&mut self, now: Nanos) -> bool {
        self.seedings.look_back(now);
        let Seedings { failed, why, not_before, .. } = self.seedings;
        let Some(at) = not_before.filter(|at| now < *at) else { return false };
        self.link_refused = Some(format!("seeded {failed} times in a row to no end: {why}"));
        self.seedings.again_at = Some(at);
        true
    }

    /// The time of a seeding that had to wait has come.
    pub(super) fn pump_seed_again(&mut self, now: Nanos) {
        if self.seedings.again_at.take_if(|at| now >= *at).is_some() {
            self.match_peer(now);
        }
    }

    /// The seeding under way, or the one that ended just now, led nowhere.
    pub(super) fn seeding_failed(&mut self, now: Nanos, why: &'static str) {
        let wait_ms = self.seedings.fail(now, why);
        let failed = self.seedings.failed;
        if failed >= ALARM_AFTER {
            let detail =
                format!("the peer was seeded {failed} times in a row to no end: {why}; the next in {wait_ms} ms");
            self.alarm("seeding_fails", detail);
        }
    }
}
