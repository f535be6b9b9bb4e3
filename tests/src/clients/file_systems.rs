//! File systems on the block device, exercised by `fsx`: it does random operations on a file and holds every read against a
//! copy in memory.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Exercise;
use crate::agents::{NewVolume, Plan, TwoSites};
use crate::dice::Dice;
use crate::process;

/// XFS makes nothing smaller than 300 MB.
const SIZE: &str = "512Mi";
const PATIENCE: Duration = Duration::from_secs(60);
/// How long `fsx` may take for one operation, on average.
const OPERATION_PATIENCE: Duration = Duration::from_millis(50);

/// How a file system is made and checked.
struct Kind {
    name: &'static str,
    make: &'static [&'static str],
    check: &'static [&'static str],
}

const KINDS: [Kind; 3] = [
    Kind { name: "ext4", make: &["mkfs.ext4", "-q", "-F"], check: &["e2fsck", "-f", "-n"] },
    Kind { name: "xfs", make: &["mkfs.xfs", "-q", "-f"], check: &["xfs_repair", "-n"] },
    Kind { name: "btrfs", make: &["mkfs.btrfs", "-q", "-f"], check: &["btrfs", "check", "--readonly"] },
];

pub(super) fn run(exercise: &Exercise) -> Result<()> {
    let seed = exercise.seed.unwrap_or_else(Dice::fresh_seed);
    eprintln!("seed {seed}");
    for kind in &KINDS {
        let mut sites = TwoSites::new(&Plan { name: "fsx".to_owned(), ..Plan::default() })?;
        let begun = Instant::now();
        let done = play(&mut sites, kind, exercise, seed);
        let restarts = done.with_context(|| format!("{} (--seed {seed})\n{}", kind.name, sites.logs()))?;
        let ms = begun.elapsed().as_millis();
        eprintln!("{}: {} operations, {restarts} restarts of B, equal ({ms} ms)", kind.name, exercise.operations);
    }
    Ok(())
}

fn play(sites: &mut TwoSites, kind: &Kind, exercise: &Exercise, seed: u64) -> Result<u32> {
    sites.start()?;
    sites.create(&NewVolume { name: kind.name, size: SIZE, mode: "sync", options: vec!["--log-size", "64Mi"] })?;
    let cli = sites.a.cli();
    let device = cli.attach(kind.name, "fuse")?.block_device()?.clone();
    process::checked(with_args(kind.make).arg(&device))?;
    let mount = sites.stage.subdir("mount")?;
    process::checked(Command::new("mount").args(["-t", kind.name]).arg(&device).arg(&mount))?;
    let restarts = run_fsx(sites, &mount, exercise, seed)?;
    process::checked(Command::new("umount").arg(&mount))?;
    process::checked(with_args(kind.check).arg(&device)).context("the file system is damaged")?;
    cli.wait_for(kind.name, "copies in step", PATIENCE, |view| view.link() == "streaming" && view.is_protected())?;
    ensure!(cli.verify(kind.name)?, "the copies differ");
    cli.detach(kind.name)?;
    sites.a.stop()?;
    sites.b.stop()?;
    Ok(restarts)
}

fn with_args(line: &[&str]) -> Command {
    let mut command = Command::new(line[0]);
    command.args(&line[1..]);
    command
}

/// Runs the exerciser to its end; meanwhile B is killed and started again as often as wished.
fn run_fsx(sites: &mut TwoSites, mount: &Path, exercise: &Exercise, seed: u64) -> Result<u32> {
    let log = std::fs::File::create(sites.stage.dir().join("fsx.log"))?;
    let mut command = Command::new(&exercise.program);
    command.args(["-q", "-N", &exercise.operations.to_string(), "-S", &seed.to_string(), "-P"]);
    command.arg(sites.stage.dir()).arg(mount.join("file"));
    let mut child = sites.stage.spawn(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?;
    let patience = PATIENCE + OPERATION_PATIENCE * exercise.operations as u32;
    let deadline = Instant::now() + patience;
    let interval = exercise.restart_b.map(Duration::from_secs);
    let mut restarts = 0;
    loop {
        let wait = interval.unwrap_or(patience).min(deadline.saturating_duration_since(Instant::now()));
        if let Some(status) = process::wait_timeout(&mut child, wait)? {
            let said = process::tail(&sites.stage.dir().join("fsx.log"));
            ensure!(status.success(), "fsx ended with {status}\n{said}");
            return Ok(restarts);
        }
        ensure!(Instant::now() < deadline, "fsx is stuck");
        sites.b.kill();
        sites.b.start(&sites.stage)?;
        restarts += 1;
    }
}
