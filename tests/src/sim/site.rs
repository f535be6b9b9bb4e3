//! One site: its disks, its clock, and the process that runs on it, which comes and goes.

use tidemark_core::config::{AckOn, Config, Mode};
use tidemark_core::event::Input;
use tidemark_core::status::{Role, Status};
use tidemark_core::types::{BootId, Epoch, GenId, Incarnation, Lsn, Nanos, NodeId, Nonce, SiteId};

use crate::sim::disk::Disk;
use crate::sim::foretold::Foretelling;
use crate::sim::group::Bases;
use crate::sim::model::{LineId, Seq};

/// A monotonic clock that starts anywhere and runs at its own rate.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: u64,
    since: u64,
    ppm: u64,
}

impl Clock {
    /// A clock that shows `start` at true time `since` and runs at `ppm` parts per million of true time.
    pub fn new(start: u64, since: u64, ppm: u64) -> Self {
        Self { start, since, ppm }
    }

    /// What it shows.
    pub fn at(&self, now: u64) -> Nanos {
        let passed = u128::from(now.saturating_sub(self.since)) * u128::from(self.ppm) / 1_000_000;
        Nanos(self.start + passed as u64)
    }

    /// The first true moment at which it shows at least `then`.
    pub fn when(&self, then: Nanos) -> u64 {
        let local = u128::from(then.0.saturating_sub(self.start));
        self.since.saturating_add((local * 1_000_000).div_ceil(u128::from(self.ppm)).min(u128::from(u64::MAX)) as u64)
    }
}

/// The parts of K that decide what an acknowledgement means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Age.
    pub epoch: Epoch,
    /// Tells equal ages apart.
    pub nonce: Nonce,
    /// Mode.
    pub mode: Mode,
    /// S, a bit per site index.
    pub sites: u8,
    /// Every write is acknowledged like a flush.
    pub ack_on_write: bool,
}

/// One site.
#[derive(Debug)]
pub struct Site<C> {
    /// Its identity.
    pub id: SiteId,
    /// Its node's identity.
    pub node_id: NodeId,
    /// The running copy.
    pub node: Option<C>,
    /// Counts processes.
    pub instance: u32,
    /// Its disks.
    pub disk: Disk,
    /// The bases of a group.
    pub bases: Option<Bases>,
    /// The process that last said what the base is composed of.
    pub composed_in: u32,
    /// The process' clock.
    pub clock: Clock,
    /// The kernel's boot.
    pub boot: BootId,
    /// Facts that the process has not taken yet, and what the model knew when they came about.
    pub inbox: Vec<(Input, Seq)>,
    /// A wake-up is scheduled.
    pub waking: bool,
    /// When the next tick is due, in true time.
    pub tick_at: Option<u64>,
    /// The copy exists on disk.
    pub created: bool,
    /// Stays down until the operator starts it.
    pub held: bool,
    /// Why the copy could not be opened.
    pub refused: Option<String>,
    /// The history that its log follows.
    pub line: Option<LineId>,
    /// Last generation and incarnation seen in its log.
    pub key: Option<(GenId, Incarnation)>,
    /// Last known status.
    pub status: Option<Box<Status>>,
    /// The process instance in which the present opening as Primary was seen.
    pub opened: Option<(u32, LineId)>,
    /// Bits of the sites at which an opening makes what it recovered durable: those of S at that time.
    pub opened_with: u8,
    /// True time at which the present stream to the other side came up here.
    pub linked_at: u64,
    /// True time of the last power cut.
    pub power_cut_at: u64,
    /// True time at which the process stopped or started.
    pub since: u64,
    /// A device error was injected since the copy was last opened.
    pub erred: bool,
    /// The medium lied or rotted since the copy was made.
    pub tainted: bool,
    /// The other side, whose medium had lied, claimed to have more in its base than this log ever held.
    pub misled: bool,
    /// The K in which the other side last asked it to be, and the durable tail that this takes.
    pub asked_to_join: Option<(Epoch, Nonce, Lsn)>,
    /// What the process foretold of the verbs that it was asked.
    pub foretelling: Foretelling,
}

impl<C> Site<C> {
    /// The last known role.
    pub fn role(&self) -> Option<Role> {
        self.node.as_ref()?;
        self.status.as_ref().map(|s| s.role)
    }

    /// True when the copy was last seen to serve.
    pub fn is_primary(&self) -> bool {
        self.role() == Some(Role::Primary)
    }
}

impl Terms {
    /// What K and the policy say.
    pub fn of(config: &Config, ack_on: AckOn, ids: [SiteId; 2]) -> Self {
        let bit = |i: usize| u8::from(config.has(ids[i])) << i;
        Self {
            epoch: config.epoch,
            nonce: config.nonce,
            mode: config.mode,
            sites: bit(0) | bit(1),
            ack_on_write: ack_on == AckOn::Write,
        }
    }
}

/// Which sites owe what was acknowledged at `site`: for ever, and as long as their power lasts.
pub fn owing(site: usize, asked: Option<Terms>, answered: Option<Terms>) -> (u8, u8) {
    let own = 1u8 << site;
    match (asked, answered) {
        (Some(a), Some(b)) if (a.epoch, a.nonce) == (b.epoch, b.nonce) => match b.mode {
            Mode::Sync => (own | b.sites, 0),
            Mode::Receive => (own, b.sites & !own),
            Mode::Async => (own, 0),
        },
        _ => (own, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_reaches_a_moment_when_it_says() {
        for ppm in [980_000, 1_000_000, 1_020_000] {
            let clock = Clock::new(77, 1_000, ppm);
            for local in [77, 78, 12_345, 999_999_999] {
                let when = clock.when(Nanos(local));
                assert!(clock.at(when) >= Nanos(local), "{ppm} {local}");
                assert!(when <= 1_000 || clock.at(when - 2) < Nanos(local.max(78)));
            }
        }
    }
}
