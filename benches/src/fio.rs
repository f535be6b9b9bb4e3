//! Running fio and reading what it measured.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tidemark_tests::process;

use crate::job::Job;

/// fio's NBD engine ignores SIGTERM while I/O hangs; a run that takes this much longer than asked is killed.
const GRACE: Duration = Duration::from_secs(60);

/// Where the load goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// A file, with O_DIRECT through io_uring.
    File(PathBuf),
    /// An NBD export, by its URI.
    Nbd(String),
}

/// How long, over what, with which dice.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Seconds of measuring.
    pub seconds: u64,
    /// Bytes of the device that are used.
    pub bytes: u64,
    /// Seed of fio's random offsets.
    pub seed: u64,
    /// The most operations per second; `None`: as fast as it goes.
    pub rate: Option<u64>,
}

/// What fio measured.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Figures {
    /// Reads and writes completed.
    pub operations: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Seconds.
    pub seconds: f64,
    /// Median latency in microseconds: of writes where there are any, else of reads.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
}

impl Figures {
    /// Operations per second.
    pub fn iops(&self) -> f64 {
        self.operations as f64 / self.seconds
    }
}

/// Runs `job` against `endpoint`.
///
/// # Errors
/// When fio fails, finds an I/O error, or hangs.
pub fn run(job: Job, endpoint: &Endpoint, run: Run) -> Result<Figures> {
    let time = ["--time_based".to_owned(), format!("--runtime={}", run.seconds), "--norandommap".to_owned()];
    let rate = run.rate.map(|rate| format!("--rate_iops={rate}"));
    let extra = job.fio().iter().map(|&option| option.to_owned()).chain(time).chain(rate).collect::<Vec<_>>();
    fio(endpoint, run, &extra, Duration::from_secs(run.seconds) + GRACE)
}

/// Writes every block of the first `bytes` once, in order.
///
/// # Errors
/// As [`run`].
pub fn fill(endpoint: &Endpoint, bytes: u64) -> Result<Figures> {
    let options = ["--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"].map(str::to_owned);
    // 8 MiB/s is slower than any disk that this is worth running on.
    let patience = Duration::from_secs(bytes >> 23) + GRACE;
    fio(endpoint, Run { seconds: 0, bytes, seed: 1, rate: None }, &options, patience)
}

fn fio(endpoint: &Endpoint, run: Run, options: &[String], patience: Duration) -> Result<Figures> {
    let mut command = Command::new("fio");
    command.args(["--name=bench", "--output-format=json", "--group_reporting", "--percentile_list=50:99"]);
    command.arg(format!("--size={}", run.bytes)).arg(format!("--randseed={}", run.seed)).args(options);
    match endpoint {
        Endpoint::File(path) => command.args(["--ioengine=io_uring", "--direct=1"]).arg("--filename").arg(path),
        Endpoint::Nbd(uri) => command.arg("--ioengine=nbd").arg(format!("--uri={uri}")),
    };
    let out = tempfile::NamedTempFile::new()?;
    command.stdin(Stdio::null()).stdout(out.reopen()?).stderr(Stdio::inherit());
    let mut child = command.spawn().context("cannot start fio: run hack/setup --bench")?;
    let status = process::wait_timeout(&mut child, patience)?;
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    let printed = std::fs::read_to_string(out.path())?;
    let status = status.with_context(|| format!("{} hung and was killed", process::line(&command)))?;
    ensure!(status.success(), "{} ended with {status}: {}", process::line(&command), complaints(&printed));
    figures(&printed).with_context(|| format!("cannot read what fio printed: {printed}"))
}

/// What fio said before its figures.
fn complaints(printed: &str) -> &str {
    printed.split("\n{").next().unwrap_or(printed).trim()
}

fn figures(printed: &str) -> Result<Figures> {
    // The NBD engine prints a line of its own before the document.
    let document = printed.find('{').map(|start| &printed[start..]).context("no JSON")?;
    let json: Value = serde_json::from_str(document)?;
    let job = json.pointer("/jobs/0").context("no job")?;
    ensure!(job["error"] == 0, "fio saw an I/O error");
    let number = |pointer: String| job.pointer(&pointer).and_then(Value::as_f64).unwrap_or_default();
    let sum = |field: &str| number(format!("/read/{field}")) + number(format!("/write/{field}"));
    let side = if number("/write/total_ios".to_owned()) > 0.0 { "write" } else { "read" };
    let percentile = |name: &str| {
        let list = job.pointer(&format!("/{side}/clat_ns/percentile/{name}"));
        list.and_then(Value::as_f64).unwrap_or_default() / 1000.0
    };
    let seconds = number("/read/runtime".to_owned()).max(number("/write/runtime".to_owned())) / 1000.0;
    ensure!(seconds > 0.0 && sum("total_ios") > 0.0, "nothing was done");
    Ok(Figures {
        operations: sum("total_ios") as u64,
        bytes: sum("io_bytes") as u64,
        seconds,
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = r#"fio: connected to NBD server
{"jobs": [{"error": 0,
  "read": {"total_ios": 70, "io_bytes": 286720, "runtime": 1000, "clat_ns": {"percentile": {"50.000000": 1, "99.000000": 2}}},
  "write": {"total_ios": 30, "io_bytes": 122880, "runtime": 2000,
            "clat_ns": {"percentile": {"50.000000": 64000, "99.000000": 250000}}}}]}"#;

    #[test]
    fn figures_add_both_directions_and_take_the_writes_latency() {
        let figures = figures(PRINTED).unwrap();
        assert_eq!((figures.operations, figures.bytes, figures.iops()), (100, 409_600, 50.0));
        assert_eq!((figures.p50_us, figures.p99_us), (64.0, 250.0));
    }

    #[test]
    fn an_io_error_is_an_error() {
        assert!(figures(&PRINTED.replace("\"error\": 0", "\"error\": 5")).is_err());
    }
}
