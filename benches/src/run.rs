//! The interleaved run: every repeat runs every job on every target, one after the other.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::fio::{self, Run};
use crate::job::Job;
use crate::target::{Name, Target};
use crate::usage::{Watch, cpu_seconds};

/// The region that [`Job::ReadLog32`] writes and reads: small enough to stay in any log.
const LOG_REGION_BYTES: u64 = 128 << 20;

/// Steps of qemu's NBD client over TCP, in microseconds: a median near one of them measures a delayed acknowledgement.
const STALLS_US: [std::ops::RangeInclusive<f64>; 2] = [38_000.0..=47_000.0, 78_000.0..=92_000.0];

/// One run of one job on one target.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Sample {
    /// Operations per second while the load ran.
    pub iops: f64,
    /// Bytes per second while the load ran.
    pub bytes_per_second: f64,
    /// Operations per second when the clock stops as the base images hold everything.
    pub drained_iops: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// CPU seconds of the target's processes, draining included, for 100,000 operations.
    pub cpu_per_100k: f64,
    /// The same for 10^9 bytes.
    pub cpu_per_gb: f64,
    /// The most resident memory of the target's processes in bytes.
    pub resident_bytes: f64,
}

impl Sample {
    /// Its median is a stall of a client, not of the target.
    pub fn is_void(&self) -> bool {
        STALLS_US.iter().any(|range| range.contains(&self.p50_us))
    }

    /// The median of each figure by itself; of an even number the mean of the middle two.
    pub fn median(samples: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(samples.iter().map(figure).collect());
        Self {
            iops: of(|s| s.iops),
            bytes_per_second: of(|s| s.bytes_per_second),
            drained_iops: of(|s| s.drained_iops),
            p50_us: of(|s| s.p50_us),
            p99_us: of(|s| s.p99_us),
            cpu_per_100k: of(|s| s.cpu_per_100k),
            cpu_per_gb: of(|s| s.cpu_per_gb),
            resident_bytes: of(|s| s.resident_bytes),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

/// How much is run.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Repeats of the whole round.
    pub repeats: u32,
    /// Seconds of each run.
    pub seconds: u64,
    /// Bytes of each device.
    pub size: u64,
}

/// Everything that was measured.
pub type Samples = BTreeMap<(Job, Name), Vec<Sample>>;

/// Runs it all; `progress` is told what comes next.
///
/// # Errors
/// When a run of ours fails. A peer's run that fails is left out.
pub fn interleaved(targets: &[Target], jobs: &[Job], scale: Scale, progress: impl Fn(&str)) -> Result<Samples> {
    let mut samples = Samples::new();
    for repeat in 1..=scale.repeats {
        for &job in jobs {
            for target in targets.iter().filter(|target| target.name.takes(job)) {
                progress(&format!("{repeat}/{}: {} on {}", scale.repeats, job.title(), target.name.title()));
                let Some(sample) = measure_again(target, job, scale, u64::from(repeat), &progress)
                    .with_context(|| format!("{} on {}", job.title(), target.name.title()))?
                else {
                    continue;
                };
                progress(&format!("    {:.0} IOPS, p50 {:.0} us", sample.iops, sample.p50_us));
                samples.entry((job, target.name)).or_default().push(sample);
            }
        }
    }
    Ok(samples)
}

/// A peer's server sometimes drops fio's connection in the middle of a run: that run is repeated once, and then left out of the
/// medians, with a word. Ours has no such excuse.
fn measure_again(
    target: &Target,
    job: Job,
    scale: Scale,
    seed: u64,
    progress: impl Fn(&str),
) -> Result<Option<Sample>> {
    let first = measure(target, job, scale, seed);
    if first.is_ok() || target.name.is_tidemark() {
        return first.map(Some);
    }
    match measure(target, job, scale, seed) {
        Ok(sample) => Ok(Some(sample)),
        Err(error) => {
            progress(&format!("    left out, it failed twice: {error:#}"));
            Ok(None)
        }
    }
}

fn measure(target: &Target, job: Job, scale: Scale, seed: u64) -> Result<Sample> {
    let bytes = if job == Job::ReadLog32 { LOG_REGION_BYTES.min(scale.size) } else { scale.size };
    if job == Job::ReadLog32 {
        fio::fill(&target.endpoint, bytes)?;
    }
    let (watch, cpu_before, start) = (Watch::start(target.roots.clone()), cpu_seconds(&target.roots), Instant::now());
    let figures = fio::run(job, &target.endpoint, Run { seconds: scale.seconds, bytes, seed, rate: None })?;
    let startup = start.elapsed().as_secs_f64() - figures.seconds;
    target.drain()?;
    let drained_seconds = (start.elapsed().as_secs_f64() - startup).max(figures.seconds);
    let cpu = cpu_seconds(&target.roots) - cpu_before;
    let operations = figures.operations as f64;
    Ok(Sample {
        iops: figures.iops(),
        bytes_per_second: figures.bytes as f64 / figures.seconds,
        drained_iops: operations / drained_seconds,
        p50_us: figures.p50_us,
        p99_us: figures.p99_us,
        cpu_per_100k: cpu / operations * 1e5,
        cpu_per_gb: cpu / figures.bytes as f64 * 1e9,
        resident_bytes: watch.most() as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(vec![9.0, 1.0, 5.0, 3.0]), 4.0);
    }

    #[test]
    fn a_median_at_a_client_stall_is_void() {
        let at = |p50_us| Sample { p50_us, ..Sample::default() };
        assert!(at(44_000.0).is_void() && at(88_000.0).is_void());
        assert!(!at(4_400.0).is_void() && !at(60_000.0).is_void());
    }
}
