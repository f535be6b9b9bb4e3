//! A volume's directory: the names in it, its lock, and how it may be used.
//!
//! ```text
//! <pool>/<volume>/superblock            two alternating slots
//! <pool>/<volume>/config                two alternating slots
//! <pool>/<volume>/log/slot-000001.seg   preallocated segments
//! <pool>/<volume>/log/footer-000001     changed blocks of a run of the log
//! <pool>/<volume>/branch/branch-0001    sealed suffixes
//! <pool>/<volume>/base.img              base image of its own (sparse), or
//! <pool>/<volume>/base                  symbolic link to an adopted device or file
//! ```
//!
//! `log` is a link where the logs of the pool lie on another device (see [`super::log_place`]).
//!
//! Invariant: whoever may still touch a file of the volume, an operation in flight included, holds an `Arc<Home>` and with it
//! the lock. So a second agent is refused until the last operation of the first has ended.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tidemark_core::event::{FileRef, Slot};

use super::{Error, log_place};

/// Directory of the log.
pub(super) const LOG: &str = "log";
/// Directory of the sealed suffixes.
pub(super) const BRANCH: &str = "branch";
/// Name of the superblock's file.
pub(super) const SUPERBLOCK: &str = "superblock";
/// Name of the configuration's file.
pub(super) const CONFIG: &str = "config";
/// A base image of the volume's own.
pub(super) const BASE_IMAGE: &str = "base.img";
/// The link to an adopted base.
pub(super) const BASE_LINK: &str = "base";

/// What may be done with a volume's files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Everything; excludes everybody else.
    Serve,
    /// Reading; excludes who serves.
    Inspect,
}

/// A locked volume directory.
#[derive(Debug)]
pub(super) struct Home {
    dir: PathBuf,
    access: Access,
    /// Page cache instead of direct I/O is accepted where the file system has no other.
    allow_buffered: bool,
    _lock: Flock<File>,
    /// Of the log's directory where that is elsewhere.
    _log: Option<Flock<File>>,
}

impl Home {
    /// Locks `dir`, which exists, with its log, which has to be there.
    pub fn lock(dir: &Path, access: Access, allow_buffered: bool) -> Result<Arc<Self>, Error> {
        let lock = Self::lock_dir(dir, access)?;
        let log = log_place::claim(dir, access)?;
        Ok(Arc::new(Self { dir: dir.to_owned(), access, allow_buffered, _lock: lock, _log: log }))
    }

    /// Locks `dir` alone, whatever there is of its log: nobody serves the volume as long as that is held.
    pub fn lock_dir(dir: &Path, access: Access) -> Result<Flock<File>, Error> {
        let handle = match File::open(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotAVolume { dir: dir.to_owned(), missing: "the directory" });
            }
            other => other.map_err(Error::io("open", dir))?,
        };
        lock(handle, access, dir)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn access(&self) -> Access {
        self.access
    }

    pub fn allows_buffered(&self) -> bool {
        self.allow_buffered
    }

    /// Where a file is; the base is at its image or behind its link.
    pub fn path(&self, file: FileRef) -> PathBuf {
        path_in(&self.dir, file)
    }

    pub fn log_dir(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    pub fn branch_dir(&self) -> PathBuf {
        self.dir.join(BRANCH)
    }
}

/// Where a file of the copy in `dir` is; the base is at its image or behind its link.
pub(super) fn path_in(dir: &Path, file: FileRef) -> PathBuf {
    match file {
        FileRef::Log(Slot(slot)) => dir.join(LOG).join(format!("slot-{slot:06}.seg")),
        FileRef::Footer(number) => dir.join(LOG).join(format!("footer-{number:06}")),
        FileRef::Superblock => dir.join(SUPERBLOCK),
        FileRef::Config => dir.join(CONFIG),
        FileRef::Base => base_in(dir),
        FileRef::Branch(branch) => dir.join(BRANCH).join(format!("branch-{branch:04}")),
    }
}

/// Where the base of the volume in `dir` is named: its own image, or a link.
pub(super) fn base_in(dir: &Path) -> PathBuf {
    let own = dir.join(BASE_IMAGE);
    if own.exists() { own } else { dir.join(BASE_LINK) }
}

/// Takes the advisory lock of an open file, or says who is in the way.
pub(super) fn lock(file: File, access: Access, path: &Path) -> Result<Flock<File>, Error> {
    let kind = match access {
        Access::Serve => FlockArg::LockExclusiveNonblock,
        Access::Inspect => FlockArg::LockSharedNonblock,
    };
    Flock::lock(file, kind).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Error::InUse { path: path.to_owned() },
        other => Error::io("lock", path)(other),
    })
}

/// The number in a name like `slot-000001.seg`.
/// The number in a file's name: digits and nothing else between `prefix` and `suffix`.
pub(crate) fn numbered(name: &str, prefix: &str, suffix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_their_numbers_back() {
        assert_eq!(numbered("slot-000012.seg", "slot-", ".seg"), Some(12));
        assert_eq!(numbered("slot-1000012.seg", "slot-", ".seg"), Some(1_000_012));
        for wrong in ["slot-000012.seg.new", "slot-.seg", "slot-+12.seg", "footer-000001", "slot-99999999999.seg"] {
            assert_eq!(numbered(wrong, "slot-", ".seg"), None, "{wrong}");
        }
    }
}
