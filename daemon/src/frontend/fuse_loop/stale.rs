//! Clears what an agent that died left behind: loop devices on files that are gone, FUSE mounts without a server
//! ("transport endpoint is not connected"), links to them.
//!
//! Decides by name only: everything below the run directory belongs to this agent, and the caller holds that directory's
//! lock. A device that is still mounted cannot go; it is reported, and goes with its unmount.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::loop_device::{self, LoopError};
use super::{mount, mounts_dir};

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleanup {
    /// Loop devices that were released.
    pub released: Vec<PathBuf>,
    /// Loop devices of dead volumes that are still in use; they fail all input/output and go with their last close.
    pub lingering: Vec<PathBuf>,
    /// Mount points that were cleared.
    pub unmounted: Vec<PathBuf>,
    /// Links in the device directory that pointed to nothing of use.
    pub unlinked: Vec<PathBuf>,
}

/// Why the recovery of a dead agent's remains stopped.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// A directory or table could not be read or changed.
    #[error("cannot clear {}: {source}", path.display())]
    Path {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A loop device could not be examined or released.
    #[error(transparent)]
    Loop(#[from] LoopError),
}

/// Removes the remains of a dead agent that used `run_dir` and `dev_dir`. The caller must hold the lock of `run_dir`: the
/// devices of a living agent would be cleared as well. Blocks; call it before the first attach.
///
/// # Errors
/// [`CleanupError`] at the first thing that cannot be examined or removed; calling it again is safe.
pub fn cleanup_stale(run_dir: &Path, dev_dir: &Path) -> Result<Cleanup, CleanupError> {
    let mut done = Cleanup::default();
    let run_dir = match run_dir.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(done),
        other => &other.map_err(at(run_dir))?,
    };
    let fuse_dir = mounts_dir(run_dir);
    let mounts = mount::mounts_below(&fuse_dir).map_err(at(&fuse_dir))?;
    // Found before the mounts go: afterwards the kernel no longer knows the full name of the file.
    let loops = loops_on(&mounts)?;
    for dir in &mounts {
        mount::abort_at(dir);
    }
    for device in loops {
        loop_device::clear_by_path(&device)?;
        if loop_device::is_bound(&device) { done.lingering.push(device) } else { done.released.push(device) }
    }
    for dir in mounts {
        mount::detach_at(&dir).map_err(at(&dir))?;
        remove_empty(&dir)?;
        done.unmounted.push(dir);
    }
    done.unlinked = unlink_stale(dev_dir, &done)?;
    Ok(done)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CleanupError {
    let path = path.to_owned();
    move |source| CleanupError::Path { path, source }
}

fn remove_empty(dir: &Path) -> Result<(), CleanupError> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(dir)(error)),
        _ => Ok(()),
    }
}

/// Loop devices whose file lies on one of these mounts. A path alone says too little: the kernel gives that of another mount
/// namespace as it is there.
fn loops_on(mounts: &[PathBuf]) -> Result<Vec<PathBuf>, CleanupError> {
    let blocks = Path::new("/sys/block");
    let mut found = Vec::new();
    for entry in fs::read_dir(blocks).map_err(at(blocks))? {
        let device = Path::new("/dev").join(entry.map_err(at(blocks))?.file_name());
        if loop_device::backing_file(&device).is_some_and(|file| mounts.iter().any(|dir| file.starts_with(dir))) {
            found.push(device);
        }
    }
    Ok(found)
}

/// Links that point to a device which was cleared, lingers, or is bound to nothing.
fn unlink_stale(dev_dir: &Path, done: &Cleanup) -> Result<Vec<PathBuf>, CleanupError> {
    let mut unlinked = Vec::new();
    let Ok(entries) = fs::read_dir(dev_dir) else { return Ok(unlinked) };
    for entry in entries {
        let link = entry.map_err(at(dev_dir))?.path();
        let Ok(target) = fs::read_link(&link) else { continue };
        if done.released.contains(&target) || done.lingering.contains(&target) || is_unbound_loop(&target) {
            fs::remove_file(&link).map_err(at(&link))?;
            unlinked.push(link);
        }
    }
    Ok(unlinked)
}

fn is_unbound_loop(target: &Path) -> bool {
    let name = target.strip_prefix("/dev").ok().and_then(Path::to_str);
    name.is_some_and(|name| name.starts_with("loop")) && !loop_device::is_bound(target)
}
