//! The result of failovers: what was lost, how long each step took, and what moved.

use std::time::Duration;

use serde_json::{Value, json};

use crate::agents::{WitnessKind, WitnessPlan};
use crate::ledger::Audit;

use super::report::ms;

/// A takeover has this much over the wait for the lease until the device serves.
const TAKEOVER_MARGIN: Duration = Duration::from_secs(1);
/// A planned switchover holds input and output for less than this.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The takeover by B, from the kill on.
#[derive(Clone, Debug)]
pub struct Takeover {
    /// What the database at B holds of what was acknowledged at A.
    pub audit: Audit,
    /// Until B was the primary.
    pub decided: Duration,
    /// Until its device was read from.
    pub serving: Duration,
    /// Until the database answered.
    pub answering: Duration,
}

/// The return of A as the follower.
#[derive(Clone, Debug)]
pub struct Return {
    /// From the start of its agent until every flush waited for it again.
    pub took: Duration,
    /// Bytes that went to it.
    pub moved: u64,
    /// Of the volumes, in bytes.
    pub size: u64,
}

/// The planned switchover, from the demotion on.
#[derive(Clone, Debug)]
pub struct Switch {
    /// What the database at A holds of what was acknowledged at B.
    pub audit: Audit,
    /// Until B had stopped.
    pub demoted: Duration,
    /// Until A was the primary.
    pub promoted: Duration,
    /// Until A's device was read from.
    pub pause: Duration,
    /// Both copies were equal afterwards.
    pub equal: bool,
}

/// One round: there and back.
#[derive(Clone, Debug)]
pub struct Trip {
    /// Its number.
    pub round: u32,
    /// Who arbitrated.
    pub witness: WitnessPlan,
    /// What the database's device was: `nbd-device` or `fuse`.
    pub frontend: String,
    /// Times count, too.
    pub judges_times: bool,
    /// There.
    pub takeover: Takeover,
    /// A follows.
    pub back: Return,
    /// And back.
    pub switch: Switch,
}

impl Trip {
    /// Whether the promises held, in words when not.
    ///
    /// # Errors
    /// What did not hold.
    pub fn verdict(&self) -> Result<(), String> {
        let limit = self.witness.lease_wait() + TAKEOVER_MARGIN;
        let checks = [
            (self.takeover.audit.lost == 0, format!("the takeover lost {}", self.takeover.audit.lost)),
            (self.switch.audit.lost == 0, format!("the switchover lost {}", self.switch.audit.lost)),
            (self.switch.equal, "the copies differ afterwards".to_owned()),
            (self.back.moved < self.back.size, format!("{} bytes moved at the return", self.back.moved)),
            (
                !self.judges_times || self.takeover.serving <= limit,
                format!("B served after {} ms: allowed are {}", ms(self.takeover.serving), ms(limit)),
            ),
            (
                !self.judges_times || self.switch.pause <= MAX_PAUSE,
                format!("the switchover paused for {} ms", ms(self.switch.pause)),
            ),
        ];
        checks.into_iter().find(|(held, _)| !held).map_or(Ok(()), |(_, why)| Err(why))
    }

    fn witness_name(&self) -> &'static str {
        match self.witness.kind {
            WitnessKind::File => "file",
            WitnessKind::Etcd => "etcd",
            WitnessKind::S3 => "s3",
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let Self { takeover, back, switch, .. } = self;
        let audited =
            |audit: &Audit| format!("committed {}, found {}, lost {}", audit.committed, audit.found, audit.lost);
        let (wait, serving) = (self.witness.lease_wait(), takeover.serving);
        let over = i128::from(ms(serving)) - i128::from(ms(wait));
        vec![
            ("witness", format!("{}, lease {} ms", self.witness_name(), self.witness.lease.as_millis())),
            ("group", "2 volumes: the database's data and its write-ahead log".to_owned()),
            ("devices", self.frontend.clone()),
            ("takeover", audited(&takeover.audit)),
            ("  primary after", format!("{} ms", ms(takeover.decided))),
            ("  serving after", format!("{} ms: the wait of {} ms for the lease and {over} ms", ms(serving), ms(wait))),
            ("  database after", format!("{} ms", ms(takeover.answering))),
            ("return", format!("{} ms until every flush waits for both sites", ms(back.took))),
            ("  moved", format!("{:.1} of {} MiB", back.moved as f64 / f64::from(1 << 20), back.size >> 20)),
            ("switchover", audited(&switch.audit)),
            (
                "  pause",
                format!(
                    "{} ms: {} to stop, {} to promote, {} to serve",
                    ms(switch.pause),
                    ms(switch.demoted),
                    ms(switch.promoted.saturating_sub(switch.demoted)),
                    ms(switch.pause.saturating_sub(switch.promoted))
                ),
            ),
        ]
    }

    fn json(&self) -> Value {
        let audited = |audit: &Audit| json!({ "committed": audit.committed, "found": audit.found, "lost": audit.lost });
        let Self { takeover, back, switch, .. } = self;
        json!({
            "volumes": 2,
            "round": self.round, "witness": self.witness_name(), "leaseMs": ms(self.witness.lease),
            "leaseWaitMs": ms(self.witness.lease_wait()), "frontend": self.frontend,
            "takeover": audited(&takeover.audit), "primaryMs": ms(takeover.decided), "servingMs": ms(takeover.serving),
            "databaseMs": ms(takeover.answering), "returnMs": ms(back.took), "movedBytes": back.moved,
            "sizeBytes": back.size, "switchover": audited(&switch.audit), "pauseMs": ms(switch.pause),
            "equal": switch.equal, "held": self.verdict().is_ok(), "broken": self.verdict().err(),
        })
    }
}

/// Every round.
#[derive(Clone, Debug)]
pub struct FailoverReport {
    pub(super) seed: u64,
    pub(super) trips: Vec<Trip>,
}

impl FailoverReport {
    /// True when every round held.
    pub fn held(&self) -> bool {
        !self.trips.is_empty() && self.trips.iter().all(|trip| trip.verdict().is_ok())
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut lines = Vec::new();
        for trip in &self.trips {
            lines.push(format!("round {}", trip.round));
            lines.extend(trip.lines().iter().map(|(name, value)| format!("{name:<18}{value}")));
            lines.extend(trip.verdict().err().map(|why| format!("DID NOT HOLD: {why}")));
        }
        lines.join("\n")
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let rounds: Vec<Value> = self.trips.iter().map(Trip::json).collect();
        json!({ "seed": self.seed, "held": self.held(), "rounds": rounds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trip() -> Trip {
        let ms = Duration::from_millis;
        let audit = Audit { committed: 10, found: 10, ..Audit::default() };
        Trip {
            round: 1,
            witness: WitnessPlan { kind: WitnessKind::File, lease: ms(1000) },
            frontend: "fuse".to_owned(),
            judges_times: true,
            takeover: Takeover { audit: audit.clone(), decided: ms(2100), serving: ms(2900), answering: ms(4000) },
            back: Return { took: ms(900), moved: 5, size: 1 << 20 },
            switch: Switch { audit, demoted: ms(100), promoted: ms(200), pause: ms(300), equal: true },
        }
    }

    #[test]
    fn a_round_holds_when_nothing_is_lost_within_the_wait_for_the_lease_and_a_second() {
        assert_eq!(trip().verdict(), Ok(()));
        let mut late = trip();
        late.takeover.serving = Duration::from_millis(3100);
        assert!(late.verdict().unwrap_err().contains("allowed are 3020"));
        late.judges_times = false;
        assert_eq!(late.verdict(), Ok(()));
    }

    #[test]
    fn one_lost_transaction_or_a_full_copy_breaks_it() {
        let mut lost = trip();
        lost.switch.audit.lost = 1;
        assert!(lost.verdict().unwrap_err().contains("switchover lost 1"));
        let mut copied = trip();
        copied.back.moved = copied.back.size;
        assert!(copied.verdict().unwrap_err().contains("moved at the return"));
        let report = |trips| FailoverReport { seed: 1, trips };
        assert!(!report(Vec::new()).held() && !report(vec![trip(), lost]).held() && report(vec![trip()]).held());
    }
}
