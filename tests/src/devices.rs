//! Block devices that the agents of a stage made, and what is mounted from them: found, and taken down.
//!
//! Loop devices and mounts are found by where they lie. A device of the kernel's NBD client is owned by no process and no
//! directory: the agent's own program ends it, with the configuration that made it, as an operator would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};

use crate::agents::Programs;
use crate::process;

/// What each device of an agent is called in the kernel, before the ids of node and volume.
const IDENTIFIER: &str = "tidemark:";
/// An agent's configuration, in the directory of its site.
const CONFIG: &str = "agent.toml";

/// Takes down the mounts below `dir`, the devices of agents whose files lie below it, and what is mounted from those, wherever.
/// Agents that still run keep theirs.
///
/// # Errors
/// When something cannot be taken down; the rest is taken down all the same.
pub fn take_down(dir: &Path) -> Result<()> {
    // First: a file system on a device that waits for its agent could not be unmounted.
    let ended = end_kernel_devices(dir);
    let loops = loops_of(dir);
    let unmounted = unmount(&mounts_of(|point, source| point.starts_with(dir) || is_one_of(&loops, source)));
    let detached: Vec<Result<String>> = loops.iter().map(|device| detach(device)).collect();
    ended?;
    unmounted?;
    detached.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(())
}

/// Ends the devices of the kernel's NBD client that dead agents below `dir` left, and takes away what is mounted from them. What
/// waited on them fails: before that a killed process that writes there does not end.
///
/// # Errors
/// When one cannot be ended, such as while its agent runs.
pub fn end_kernel_devices(dir: &Path) -> Result<()> {
    if !any_kernel_device() {
        return Ok(());
    }
    let agent = Programs::find()?.agent;
    let mut ended = Vec::new();
    for config in configs_below(dir) {
        let printed = process::checked(Command::new(&agent).arg("--config").arg(&config).arg("--end-devices"))?;
        ended.extend(printed.lines().map(PathBuf::from));
    }
    unmount(&mounts_of(|_, source| is_one_of(&ended, source)))
}

fn any_kernel_device() -> bool {
    let mut devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices.any(|device| {
        fs::read_to_string(device.path().join("backend")).is_ok_and(|identifier| identifier.starts_with(IDENTIFIER))
    })
}

/// Configurations of agents in `dir`, which is a site's directory or one of several.
fn configs_below(dir: &Path) -> Vec<PathBuf> {
    let below = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let places = std::iter::once(dir.to_owned()).chain(below);
    places.map(|place| place.join(CONFIG)).filter(|config| config.is_file()).collect()
}

/// Loop devices whose file lies under `dir`.
pub fn loops_of(dir: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let ours = devices.filter(|device| {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        Path::new(file.trim_end()).starts_with(dir)
    });
    ours.map(|device| Path::new("/dev").join(device.file_name())).collect()
}

fn is_one_of(devices: &[PathBuf], source: &Path) -> bool {
    devices.iter().any(|device| device == source)
}

/// Last mounted first. Lazily: a file system on a device that is gone cannot be written back.
fn unmount(points: &[PathBuf]) -> Result<()> {
    let mut result = Ok(());
    for point in points.iter().rev() {
        if let Err(error) = umount2(point, MntFlags::MNT_DETACH) {
            result = Err(error).with_context(|| format!("cannot unmount {}", point.display()));
        }
    }
    result
}

/// Mount points that are `wanted` by themselves or by what is mounted there, in order of mounting.
fn mounts_of(wanted: impl Fn(&Path, &Path) -> bool) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let fields = text.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        Some((PathBuf::from(unescaped(front.split(' ').nth(4)?)), PathBuf::from(back.split(' ').nth(1)?)))
    });
    fields.filter(|(point, source)| wanted(point, source)).map(|(point, _)| point).collect()
}

/// Blanks in mountinfo are octal.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ")
}

fn detach(device: &Path) -> Result<String> {
    process::checked(Command::new("losetup").arg("-d").arg(device))
}
