//! One directory of one test or demo, and everything that has to be undone when it ends.
//!
//! Whatever way it ends (success, error, panic, Ctrl-C), the processes started through it are killed, the mounts and
//! block devices of its agents are taken down, and the directory is removed. Only process ids that were recorded at their
//! start are ever killed, and only while they still are the same process.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{
    ExitCode, {Child, Command},
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{devices, netns, process};

/// File in the stage's directory with one line `PID START` for each process.
const PIDS: &str = "pids";

/// Stages that are open, for the interrupt.
static OPEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A directory with everything that runs in it.
#[derive(Debug)]
pub struct Stage {
    dir: PathBuf,
    keep: bool,
}

/// Where stages are made: in `TIDEMARK_STAGE_DIR`, else in the system's place for temporary files.
pub fn place() -> PathBuf {
    std::env::var_os("TIDEMARK_STAGE_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

impl Stage {
    /// A new directory in [`place`].
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        watch_interrupts();
        let parent = place();
        let made = tempfile::Builder::new().prefix(&format!("tidemark-{name}-")).tempdir_in(&parent);
        let dir = made.with_context(|| format!("cannot make a directory in {}", parent.display()))?.keep();
        // PostgreSQL runs as a user of its own and has to get through.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        open_stages().insert(dir.clone());
        Ok(Self { dir, keep: false })
    }

    /// Leaves the directory where it is at the end; processes, mounts and loops are taken down all the same.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a directory in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Starts `command` in a process group of its own (a Ctrl-C reaches only us) and records it for the end.
    ///
    /// # Errors
    /// When it cannot start, or everything is about to end.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        if INTERRUPTED.load(Ordering::SeqCst) {
            bail!("interrupted");
        }
        let child =
            command.process_group(0).spawn().with_context(|| format!("cannot start {}", process::line(command)))?;
        record(&self.dir, child.id() as i32)?;
        Ok(child)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = sweep(&self.dir) {
            eprintln!("clean-up of {}: {error:#}", self.dir.display());
        }
        if self.keep {
            eprintln!("kept: {}", self.dir.display());
        } else if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
        open_stages().remove(&self.dir);
    }
}

fn open_stages() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record(dir: &Path, pid: i32) -> Result<()> {
    let start = start_time(pid).context("a process was gone at once")?;
    let mut file = OpenOptions::new().create(true).append(true).open(dir.join(PIDS))?;
    writeln!(file, "{pid} {start}")?;
    Ok(())
}

/// Field 22 of `/proc/PID/stat`: a process id that comes again has another one.
fn start_time(pid: i32) -> Option<String> {
    process::stat(pid)?.get(19).cloned()
}

/// Takes down everything of the stage in `dir`: processes, mounts, devices. Can be called again and again.
///
/// # Errors
/// When something cannot be taken down; the rest is taken down all the same.
pub fn sweep(dir: &Path) -> Result<()> {
    let killed = kill_recorded(dir);
    // Before they are awaited: one that waits for a device whose agent is gone does not end. What that cannot end yet is tried
    // again below.
    let _ = devices::end_kernel_devices(dir);
    wait_gone(&killed, Duration::from_secs(10));
    netns::take_down(dir);
    devices::take_down(dir)
}

/// The processes that ran.
fn kill_recorded(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join(PIDS)).unwrap_or_default();
    let recorded = text.lines().filter_map(|line| line.split_once(' '));
    let ours = recorded.filter_map(|(pid, start)| {
        let pid = pid.parse().ok()?;
        (start_time(pid)? == start).then_some(pid)
    });
    let pids: Vec<i32> = ours.collect();
    pids.iter().for_each(|&pid| process::kill_tree(pid));
    pids
}

/// Waits until none of them runs. A zombie that waits for its parent, who may be this thread, counts as gone.
fn wait_gone(pids: &[i32], patience: Duration) {
    let deadline = Instant::now() + patience;
    let runs = |pid: &i32| process::stat(*pid).is_some_and(|stat| stat.first().is_some_and(|state| state != "Z"));
    while pids.iter().any(runs) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How a test program ends that either held or says why not.
pub fn exit(program: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// For a program whose panics abort: then no value is dropped, and a panic has to take down every stage itself.
pub fn sweep_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        sweep_all();
    }));
}

fn sweep_all() {
    // A panic may hold the lock: then the list is as it was.
    let open = OPEN.try_lock().map(|open| open.clone()).unwrap_or_default();
    for dir in &open {
        // Everything is shown that could not be undone; there is nobody left to handle it.
        if let Err(error) = sweep(dir).and_then(|()| Ok(fs::remove_dir_all(dir)?)) {
            eprintln!("clean-up of {}: {error:#}", dir.display());
        }
    }
}

/// From the first stage on, SIGINT, SIGTERM and SIGHUP take down every stage before this process ends.
fn watch_interrupts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(end_on_signal()),
                Err(error) => eprintln!("no clean-up on Ctrl-C: {error}"),
            }
        });
    });
}

async fn end_on_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds else { return };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
    INTERRUPTED.store(true, Ordering::SeqCst);
    eprintln!("interrupted: cleaning up");
    sweep_all();
    std::process::exit(130);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_stage_leaves_no_process_and_no_directory() {
        let stage = Stage::new("self-test").unwrap();
        let dir = stage.dir().to_owned();
        let mut child = stage.spawn(Command::new("sh").args(["-c", "sleep 1000 & wait"])).unwrap();
        drop(stage);
        assert!(!dir.exists());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_process_id_that_came_again_is_not_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(dir.path().join(PIDS), format!("{} 1\n", child.id())).unwrap();
        sweep(dir.path()).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
