//! Who uses a block device, as far as the kernel tells. The NBD driver lets a device go while it is in use, so this is asked
//! before; a device that goes with its agent is asked for, too.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::mountinfo::{self, Mount};

/// udev and others open a device for a moment: so often it is looked again,
const POLLS: u32 = 100;
/// after this.
const POLL: Duration = Duration::from_millis(20);

/// Opens the device so that nobody can mount it; `None` when somebody has it in use already.
///
/// # Errors
/// It cannot be opened.
pub fn claim(device: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(device) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until no other process has the device open; the id of one that keeps it.
pub fn await_alone(device: &Path) -> Option<u32> {
    for _ in 0..POLLS {
        opener(device)?;
        thread::sleep(POLL);
    }
    opener(device)
}

/// Another process that has the device open. Without privileges those of other users are not seen.
fn opener(device: &Path) -> Option<u32> {
    let number = fs::metadata(device).ok().filter(|found| found.file_type().is_block_device())?.rdev();
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| *pid != std::process::id()).find(|pid| has_open(*pid, device, number))
}

fn has_open(pid: u32, device: &Path, number: u64) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.map(|entry| entry.path()).any(|file| {
        // The name first: what it leads to is asked only of block devices, since asking may wait for a dead file system.
        let named = fs::read_link(&file).is_ok_and(|target| target.starts_with("/dev") || target == device);
        let is_it = |found: fs::Metadata| found.file_type().is_block_device() && found.rdev() == number;
        named && fs::metadata(&file).is_ok_and(is_it)
    })
}

/// True while a file system that this process sees is mounted from the device, or another block device lies on it. Does not
/// open it: one without a connection would make the caller wait.
pub fn is_mounted(device: &Path) -> bool {
    let has_holder = fs::read_dir(sysfs(device).join("holders")).is_ok_and(|mut holders| holders.next().is_some());
    has_holder || !mount_points(device).is_empty()
}

/// Where file systems on the device are mounted, as far as this process sees them. Does not open the device.
pub fn mount_points(device: &Path) -> Vec<PathBuf> {
    let number = fs::read_to_string(sysfs(device).join("dev")).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    points(&mounts, number.trim(), device)
}

/// Has every file system that is mounted from the device write out what it holds. Waits for the device.
///
/// # Errors
/// One could not; the others are not asked any more.
pub fn sync_mounted(device: &Path) -> io::Result<()> {
    mount_points(device).iter().try_for_each(|point| Ok(nix::unistd::syncfs(File::open(point)?)?))
}

fn sysfs(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}

fn points(mounts: &str, number: &str, device: &Path) -> Vec<PathBuf> {
    let of_device =
        |mount: &Mount<'_>| (!number.is_empty() && mount.number == number) || Path::new(mount.source) == device;
    mountinfo::parse(mounts).filter(of_device).map(|mount| mount.point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_number_and_by_name() {
        let mounts = "36 35 43:64 / /mnt rw,noatime shared:1 - ext4 /dev/nbd2 rw\n37 35 0:40 / /b\\040c rw - btrfs /dev/nbd3 rw\n";
        assert_eq!(points(mounts, "43:64", Path::new("/dev/nbd2")), [Path::new("/mnt")]);
        assert_eq!(
            points(mounts, "43:96", Path::new("/dev/nbd3")),
            [Path::new("/b c")],
            "btrfs has a number of its own"
        );
        assert!(points(mounts, "43:0", Path::new("/dev/nbd0")).is_empty());
    }

    #[test]
    fn what_is_no_device_is_open_nowhere() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(opener(file.path()), None);
        assert!(claim(Path::new("/dev/null/none")).is_err());
    }
}
