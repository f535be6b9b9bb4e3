//! The bars: what one run of the bench has to show, as ratios between targets of the same run.

use crate::job::Job;
use crate::run::Sample;
use crate::target::Name;

/// Which way a ratio has to lie.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Limit {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

/// Which figure is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Figure {
    /// Operations per second.
    Iops,
    /// 99th percentile of the latency.
    P99,
    /// CPU for an operation.
    CpuPerOperation,
    /// CPU for a byte.
    CpuPerByte,
}

impl Figure {
    fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Iops => sample.iops,
            Self::P99 => sample.p99_us,
            Self::CpuPerOperation => sample.cpu_per_100k,
            Self::CpuPerByte => sample.cpu_per_gb,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Iops => "speed",
            Self::P99 => "p99",
            Self::CpuPerOperation => "CPU per operation",
            Self::CpuPerByte => "CPU per byte",
        }
    }
}

/// One bar.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bar {
    job: Job,
    of: Name,
    to: Name,
    figure: Figure,
    limit: Limit,
}

const fn speed(job: Job, of: Name, to: Name, least: f64) -> Bar {
    Bar { job, of, to, figure: Figure::Iops, limit: Limit::AtLeast(least) }
}

/// Every bar.
pub const BARS: [Bar; 18] = [
    speed(Job::Write1, Name::Sync, Name::Raw, 0.50),
    speed(Job::Write1, Name::Sync, Name::Quorum, 1.4),
    speed(Job::Write1, Name::Write, Name::Quorum, 1.0),
    speed(Job::Write32, Name::Sync, Name::Raw, 1.15),
    speed(Job::Write32, Name::Sync, Name::Quorum, 2.8),
    speed(Job::Write32, Name::Write, Name::Raw, 1.05),
    Bar { job: Job::Write32, of: Name::Sync, to: Name::Raw, figure: Figure::P99, limit: Limit::AtMost(1.5) },
    speed(Job::Flush1, Name::Sync, Name::Quorum, 1.3),
    speed(Job::Seq128, Name::SyncPlain, Name::Raw, 0.28),
    speed(Job::Seq128, Name::SyncPlain, Name::Quorum, 1.6),
    speed(Job::Seq128, Name::Sync, Name::SyncPlain, 0.8),
    speed(Job::Read32, Name::Sync, Name::Raw, 0.65),
    speed(Job::Read32, Name::Sync, Name::Quorum, 1.4),
    speed(Job::ReadLog32, Name::Sync, Name::Raw, 0.65),
    speed(Job::Mixed16, Name::Sync, Name::Raw, 0.80),
    speed(Job::Mixed16, Name::Sync, Name::Quorum, 1.45),
    Bar {
        job: Job::Write32,
        of: Name::Sync,
        to: Name::Quorum,
        figure: Figure::CpuPerOperation,
        limit: Limit::AtMost(0.33),
    },
    Bar { job: Job::Seq128, of: Name::Sync, to: Name::Quorum, figure: Figure::CpuPerByte, limit: Limit::AtMost(0.55) },
];

/// How a run stands to a bar.
#[derive(Clone, PartialEq, Debug)]
pub struct Standing {
    /// The bar in words.
    pub title: String,
    /// The measured ratio.
    pub ratio: f64,
    /// The bar.
    pub limit: Limit,
    /// It holds.
    pub pass: bool,
    /// One of the two medians is a client's stall: the ratio says nothing.
    pub void: bool,
}

impl Bar {
    /// Compares, when both sides were measured. `median` gives a target's figures for a job.
    pub fn judge(&self, median: impl Fn(Job, Name) -> Option<Sample>) -> Option<Standing> {
        let (of, to) = (median(self.job, self.of)?, median(self.job, self.to)?);
        let ratio = self.figure.of(&of) / self.figure.of(&to);
        let pass = match self.limit {
            Limit::AtLeast(least) => ratio >= least,
            Limit::AtMost(most) => ratio <= most,
        };
        let title =
            format!("{}: {} of {} to {}", self.job.title(), self.figure.title(), self.of.title(), self.to.title());
        Some(Standing { title, ratio, limit: self.limit, pass, void: of.is_void() || to.is_void() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_passes_at_its_limit_and_not_below() {
        let judged = |ours: f64| {
            let sample =
                move |_, name| Some(Sample { iops: if name == Name::Raw { 100.0 } else { ours }, ..Sample::default() });
            BARS[0].judge(sample).unwrap()
        };
        assert!(judged(50.0).pass && !judged(49.0).pass);
        assert_eq!(judged(50.0).ratio, 0.5);
    }

    #[test]
    fn a_bar_without_figures_is_not_judged() {
        assert_eq!(BARS[0].judge(|_, name| (name == Name::Raw).then(Sample::default)), None);
    }
}
