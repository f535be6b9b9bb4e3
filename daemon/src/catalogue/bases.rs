//! The list of block devices that are base images, for udev: `<run_dir>/bases/MAJOR:MINOR`, one file each, with the name of
//! the volume in it. The rule in `deploy/udev/` takes the file system's identity from devices in the list, so that nothing
//! mounts a base by its UUID or label while a volume stands before it.
//!
//! The list is a hint for others; what protects the base is that it is opened exclusively. It is lost at a reboot and made
//! again when volumes are opened.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::config::Name;
use crate::crashsafe;

/// The list.
#[derive(Clone, Debug)]
pub struct Bases {
    dir: PathBuf,
    sys: PathBuf,
}

impl Bases {
    /// The list below `run_dir`. udev looks only below `/run/tidemark`.
    pub fn below(run_dir: &Path) -> Self {
        Self { dir: run_dir.join("bases"), sys: PathBuf::from("/sys/dev/block") }
    }

    /// Adds the device at `base` and lets udev look again. A file is no device: nothing to do.
    pub fn add(&self, base: &Path, volume: &Name) -> io::Result<()> {
        let Some(number) = device_number(base)? else { return Ok(()) };
        crashsafe::create_dir(&self.dir)?;
        std::fs::write(self.dir.join(&number), format!("{volume}\n"))?;
        self.look_again(&number)
    }

    /// Removes the device at `base` and lets udev look again. Not in the list: success.
    pub fn remove(&self, base: &Path) -> io::Result<()> {
        let Some(number) = device_number(base)? else { return Ok(()) };
        match std::fs::remove_file(self.dir.join(&number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.and_then(|()| self.look_again(&number)),
        }
    }

    /// Without a writable `/sys`, as in most containers, there is no udev either.
    fn look_again(&self, number: &str) -> io::Result<()> {
        match std::fs::write(self.sys.join(number).join("uevent"), "change") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
            other => other,
        }
    }
}

/// `MAJOR:MINOR` of a block device; none for anything else.
fn device_number(path: &Path) -> io::Result<Option<String>> {
    let meta = std::fs::metadata(path)?;
    if !meta.file_type().is_block_device() {
        return Ok(None);
    }
    let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    Ok(Some(format!("{major}:{minor}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_device() -> Option<PathBuf> {
        let entries = std::fs::read_dir("/dev").ok()?.flatten().map(|entry| entry.path());
        entries.into_iter().find(|path| matches!(device_number(path), Ok(Some(_))))
    }

    #[test]
    fn a_device_is_listed_by_its_number_until_it_is_removed() {
        // A host without any block device, such as a small container, has nothing to list.
        let Some(device) = block_device() else { return };
        let dir = tempfile::tempdir().unwrap();
        let bases = Bases { dir: dir.path().join("bases"), sys: dir.path().join("sys") };
        let number = device_number(&device).unwrap().unwrap();
        let uevent = dir.path().join("sys").join(&number).join("uevent");
        std::fs::create_dir_all(uevent.parent().unwrap()).unwrap();
        bases.add(&device, &Name::parse("pg").unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("bases").join(&number)).unwrap(), "pg\n");
        assert_eq!(std::fs::read_to_string(&uevent).unwrap(), "change");
        bases.remove(&device).unwrap();
        bases.remove(&device).unwrap();
        assert!(!dir.path().join("bases").join(&number).exists());
    }

    #[test]
    fn a_file_is_no_device() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("base.img");
        std::fs::write(&file, "").unwrap();
        let bases = Bases::below(dir.path());
        bases.add(&file, &Name::parse("pg").unwrap()).unwrap();
        bases.remove(&file).unwrap();
        assert!(!dir.path().join("bases").exists());
    }
}
