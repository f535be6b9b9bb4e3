//! What replication is for: how far an asynchronous copy lags behind its primary, and how soon the peer serves after a loss.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tidemark_tests::process;

use crate::bed::Bed;
use crate::fio::{self, Run};
use crate::job::Job;
use crate::run::{Sample, Samples, Scale};
use crate::target::{Name, Target};

/// The load of the lag, as a part of what the link carried in the run.
const LINK_SHARE: f64 = 0.7;
/// Between two looks at the lag.
const LOOK: Duration = Duration::from_millis(100);
/// How long the load runs before its site is killed.
const WARM_UP: Duration = Duration::from_secs(2);

/// Both figures; each is `None` when its target was not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Replication {
    /// 99th percentile of the age of the oldest write that the peer does not have durable, in milliseconds.
    pub async_lag_p99_ms: Option<u64>,
    /// From the decision to the first block read at the peer, the primary killed under load.
    pub failover: Option<Duration>,
}

impl Replication {
    /// Measures with what runs in `bed`. Its first site does not live afterwards.
    ///
    /// # Errors
    /// When a program fails.
    pub fn measure(bed: &mut Bed, targets: &[Target], samples: &Samples, scale: Scale) -> Result<Self> {
        let find = |name| targets.iter().find(|target| target.name == name);
        let lag = find(Name::Async).map(|target| async_lag(target, samples, scale)).transpose()?;
        let failover = find(Name::Sync).map(|target| failover(bed, target, scale)).transpose()?;
        Ok(Self { async_lag_p99_ms: lag.flatten(), failover })
    }

    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let lag = self.async_lag_p99_ms.map(|ms| {
            format!("async lag (oldest write not durable at the peer) at 70% of the link's rate: p99 {ms} ms")
        });
        let failover = self.failover.map(|time| {
            format!("failover, from the decision to the first block read at the peer: {} ms", time.as_millis())
        });
        lag.into_iter().chain(failover).collect()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "asyncLagP99Ms": self.async_lag_p99_ms,
            "failoverMs": self.failover.map(|time| time.as_millis() as u64),
        })
    }
}

/// Writes at a part of the speed that the run has shown, and watches.
fn async_lag(target: &Target, samples: &Samples, scale: Scale) -> Result<Option<u64>> {
    let Some(fastest) = samples.get(&(Job::Write32, Name::Async)) else { return Ok(None) };
    let (sites, volume) = target.log.as_ref().context("a replicated volume has a log")?;
    let rate = Some((Sample::median(fastest).drained_iops * LINK_SHARE) as u64);
    let run = Run { seconds: scale.seconds, bytes: scale.size, seed: 1, rate };
    let mut lags = Vec::new();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| fio::run(Job::Write32, &target.endpoint, run));
        while !load.is_finished() {
            lags.push(sites[0].show(volume)?.rpo_ms());
            std::thread::sleep(LOOK);
        }
        load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?
    })?;
    lags.sort_unstable();
    Ok(lags.get((lags.len() * 99).div_ceil(100).saturating_sub(1)).copied())
}

/// Kills the primary's agent under load and opens the volume at the peer.
fn failover(bed: &mut Bed, target: &Target, scale: Scale) -> Result<Duration> {
    let (_, volume) = target.log.as_ref().context("a replicated volume has a log")?;
    let sites = bed.sites().context("the sites run")?;
    let run = Run { seconds: scale.seconds + WARM_UP.as_secs(), bytes: scale.size, seed: 1, rate: None };
    std::thread::scope(|scope| {
        // It ends with an error when its server dies: that is what it is for.
        let _load = scope.spawn(|| fio::run(Job::Write32, &target.endpoint, run).is_ok());
        std::thread::sleep(WARM_UP);
        sites.a.kill();
        let decided = Instant::now();
        let peer = sites.b.cli();
        peer.promote_fenced(volume, "bench: the primary was killed", &[])?;
        let socket: PathBuf = peer.attach(volume, "nbd")?.nbd_socket()?;
        let uri = format!("nbd+unix:///{volume}?socket={}", socket.display());
        process::checked(Command::new("qemu-io").args(["-r", "-f", "raw", "-c", "read 0 4k", &uri]))?;
        Ok(decided.elapsed())
    })
}
