//! What an operator has paused at this copy: shipping, or the floor. Recorded in the superblock, over restarts, and no part of the
//! policy: the other site goes on.
//!
//! A pause of shipping never holds back what S needs: it is refused while the peer is in S, keeps the peer out of S, and counts for
//! nothing where it got there another way. It ends when this copy is not the primary any more.

use crate::config::Paused;
use crate::event::VerbId;
use crate::node::Node;
use crate::node::plan::changing;
use crate::node::verbs::{DEADLINE_MS, Pending};
use crate::plan::Plan;
use crate::types::Nanos;
use crate::verb::VerbError;

/// The log counts as short from here on, in percent of what it may take.
const SHORT_PERCENT: u64 = 60;
/// And no more below this.
const RELIEVED_PERCENT: u64 = 50;
/// The log's growth is measured over this time.
const WINDOW_NS: u64 = 10_000_000_000;

/// How fast the log grows.
#[derive(Debug, Default)]
pub(super) struct Growth {
    since: Nanos,
    bytes: u64,
    /// Bytes per second over the last whole window.
    rate: u64,
}

impl Growth {
    pub fn note(&mut self, now: Nanos, bytes: u64) {
        if now.since(self.since) >= WINDOW_NS {
            self.rate = self.rate(now);
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes += bytes;
    }

    /// Bytes per second of late.
    pub fn rate(&self, now: Nanos) -> u64 {
        let elapsed = now.since(self.since);
        let present = u128::from(self.bytes) * 1_000_000_000 / u128::from(elapsed.max(WINDOW_NS));
        let present = u64::try_from(present).unwrap_or(u64::MAX);
        if elapsed >= WINDOW_NS { present } else { present.max(self.rate) }
    }
}

impl Node {
    pub(super) fn begin_pause(&mut self, now: Nanos, id: VerbId, parts: Paused) -> Result<(), VerbError> {
        let wanted = self.judge_pause(parts)?;
        self.set_paused(now, id, wanted);
        Ok(())
    }

    pub(super) fn end_pause(&mut self, now: Nanos, id: VerbId, parts: Paused) -> Result<(), VerbError> {
        let wanted = self.superblock.paused.without(parts);
        self.set_paused(now, id, wanted);
        // What was put off begins.
        self.match_peer(now);
        Ok(())
    }

    fn set_paused(&mut self, now: Nanos, id: VerbId, wanted: Paused) {
        if self.superblock.paused == wanted {
            return self.finish_verb(now, id);
        }
        self.superblock.paused = wanted;
        self.pause_alarmed = false;
        self.wait(now, id, DEADLINE_MS, Pending::Pause);
        self.save_superblock(now);
    }

    /// What is paused then.
    pub(super) fn judge_pause(&self, parts: Paused) -> Result<Paused, VerbError> {
        if parts.is_none() {
            return Err(VerbError::Invalid("nothing is named that could be paused".into()));
        }
        if parts.ship && !self.superblock.paused.ship {
            self.judge_pause_of_shipping()?;
        }
        if parts.floor && !self.superblock.paused.floor {
            self.judge_draining()?;
            if self.draining.is_some() {
                return Err(changing());
            }
        }
        Ok(self.superblock.paused.with(parts))
    }

    fn judge_pause_of_shipping(&self) -> Result<(), VerbError> {
        if self.k.primary != Some(self.site) {
            return Err(self.role_error("shipping is paused at the primary"));
        }
        match self.superblock.peer {
            None => Err(VerbError::Invalid("the volume has no peer: nothing is shipped".into())),
            Some(site) if self.k.has(site) => Err(VerbError::PeerInS { site }),
            Some(_) if self.change.is_some() || self.is_persisting_k() || self.verify.is_some() => Err(changing()),
            Some(_) => Ok(()),
        }
    }

    pub(super) fn plan_pause(&self, parts: Paused) -> Result<Plan, VerbError> {
        if self.judge_pause(parts)? == self.superblock.paused {
            return Ok(Plan::of(["nothing: it is paused"]));
        }
        let mut plan = Plan::of::<String>([]);
        if parts.ship && !self.superblock.paused.ship {
            plan.steps.push("nothing more is sent to the peer, over restarts, until that is resumed: it falls behind, and cannot join S".into());
            plan.steps
                .push("where the log runs short it gives up what the peer lacks: that is seeded anew then".into());
        }
        if parts.floor && !self.superblock.paused.floor {
            plan.steps.push("nothing more is written to the base here, over restarts, until that is resumed".into());
            plan.steps.push("the log fills; when it is full, requests wait".into());
        }
        Ok(plan.waiting("the superblock, and an advance of the base that has begun", DEADLINE_MS))
    }

    pub(super) fn plan_resume(&self, parts: Paused) -> Plan {
        let paused = self.superblock.paused;
        if paused.without(parts) == paused {
            return Plan::of(["nothing: it is not paused"]);
        }
        let mut plan = Plan::of::<String>([]);
        if parts.ship && paused.ship {
            plan.steps.push(
                "the peer is sent what it lacks, or is seeded anew where the log does not reach back that far".into(),
            );
        }
        if parts.floor && paused.floor {
            plan.steps.push("the base takes over what the log holds, as the policy says".into());
        }
        plan.waiting("the superblock", DEADLINE_MS)
    }

    /// Both copies of what was asked for are in force.
    pub(super) fn is_pause_settled(&self) -> bool {
        self.superblock_file.is_idle() && (self.floor.is_idle() || !self.superblock.paused.floor)
    }

    /// The peer is sent what it lacks.
    pub(super) fn ships(&self) -> bool {
        !self.superblock.paused.ship || self.superblock.peer.is_some_and(|peer| self.k.has(peer))
    }

    /// Another site is the primary from now on, or nobody, or there is no peer any more.
    pub(super) fn end_pause_of_shipping(&mut self, now: Nanos) {
        if std::mem::take(&mut self.superblock.paused.ship) {
            self.save_superblock(now);
        }
    }

    /// Says once that a pause makes the log run short. `fill`: of the log or its index, in percent; `short`: the log gives up
    /// segments that the peer needs.
    pub(super) fn watch_pauses(&mut self, fill: u64, short: bool) {
        let by_floor = self.superblock.paused.floor && fill >= SHORT_PERCENT;
        let by_ship = short && !self.ships();
        if !self.pause_alarmed && (by_floor || by_ship) {
            self.pause_alarmed = true;
            let why = match by_floor {
                true => format!("the floor is paused and the log is {fill}% full: when it is full, requests wait; `tidemark resume --floor`"),
                false => "shipping is paused and the log has no room for what the peer lacks: it will be seeded anew; `tidemark resume --ship`".into(),
            };
            self.alarm("pause_log_short", why);
        } else if fill < RELIEVED_PERCENT && !by_ship {
            self.pause_alarmed = false;
        }
    }

    /// In how many milliseconds the log is full, as it grew of late; of a floor that is paused.
    pub(super) fn log_full_in_ms(&self, now: Nanos) -> Option<u64> {
        let rate = Some(self.growth.rate(now)).filter(|rate| *rate > 0 && self.superblock.paused.floor)?;
        let free = (self.slots_to_be_had() as u64).saturating_sub(self.log.segments.live().count() as u64);
        Some(free.saturating_mul(self.superblock.slot_bytes).saturating_mul(1_000) / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_at_once_and_forgotten_when_nothing_comes() {
        let second = |n: u64| Nanos(n * 1_000_000_000);
        let mut growth = Growth::default();
        for n in 0..25 {
            growth.note(second(n), 1_000);
        }
        assert_eq!(growth.rate(second(25)), 1_000, "the last whole window counts while the next is short");
        assert!(growth.rate(second(200)) < 100);
        let mut fresh = Growth::default();
        fresh.note(second(1), 50_000);
        assert_eq!(fresh.rate(second(2)), 5_000);
    }
}
