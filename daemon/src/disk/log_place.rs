//! A log on another device than its volume: `log` is then a link, and both ends hold the same identity.
//!
//! ```text
//! <pool>/<volume>/log            symbolic link to the log's directory
//! <pool>/<volume>/log-identity   what the log's directory has to say
//! <log path>/<log>/identity      the same
//! ```
//!
//! Invariant: a volume with a `log-identity` is opened with that very log or not at all. An empty directory, or another volume's,
//! in its place would be a volume that has forgotten what it acknowledged. The link may be changed by people who move the log.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;

use super::Error;
use super::home::{Access, LOG, lock};
use crate::crashsafe;

/// The identity in the log's directory.
const IDENTITY: &str = "identity";
/// The identity in the volume's directory.
const WANTED: &str = "log-identity";

/// Where a new volume's log goes when it is not in the volume's directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewLog {
    /// Its directory, absolute, not yet there; the one above it is.
    pub path: PathBuf,
    /// One line that no other log has.
    pub identity: String,
}

/// Makes the log's directory for the unfinished volume in `dir`. The link comes first: whatever a crash leaves is found by it.
pub(super) fn make(dir: &Path, new: &NewLog) -> Result<(), Error> {
    let above = new.path.parent().unwrap_or(&new.path);
    if !above.is_dir() {
        return Err(Error::NoLogPlace { path: above.to_owned() });
    }
    let wanted = dir.join(WANTED);
    crashsafe::replace(&wanted, &[&new.identity]).map_err(Error::io("write", &wanted))?;
    let link = dir.join(LOG);
    symlink(&new.path, &link).map_err(Error::io("link the log to", &link))?;
    DirBuilder::new().mode(0o700).create(&new.path).map_err(Error::io("create", &new.path))?;
    let identity = new.path.join(IDENTITY);
    crashsafe::replace(&identity, &[&new.identity]).map_err(Error::io("write", &identity))?;
    crashsafe::sync_parent(&new.path).map_err(Error::io("sync the directory of", &new.path))
}

/// Proves that the log of the volume in `dir` is there and its own, and keeps everybody else from it. None: it lies with the
/// volume.
pub(super) fn claim(dir: &Path, access: Access) -> Result<Option<Flock<File>>, Error> {
    let Some(wanted) = read(&dir.join(WANTED))? else { return Ok(None) };
    let log = place(dir);
    if !log.is_dir() {
        return Err(Error::LogMissing { path: log });
    }
    match read(&log.join(IDENTITY))? {
        Some(identity) if identity == wanted => {
            let handle = File::open(&log).map_err(Error::io("open", &log))?;
            lock(handle, access, &log).map(Some)
        }
        _ => Err(Error::ForeignLog { path: log }),
    }
}

/// A file on the log's device, when that is another, to try what the device can.
pub(super) fn probe(dir: &Path) -> Option<PathBuf> {
    dir.join(WANTED).exists().then(|| dir.join(LOG).join(IDENTITY))
}

/// Removes the log of a volume that is removed from `dir`, when it lies elsewhere and is its own; what is another's stays. One
/// that cannot be found stays too, with a warning: its device may be away.
pub(super) fn remove(dir: &Path) -> Result<(), Error> {
    let log = place(dir);
    let Some(wanted) = read(&dir.join(WANTED))? else { return Ok(()) };
    match read(&log.join(IDENTITY))? {
        Some(identity) if identity == wanted => {
            fs::remove_dir_all(&log).map_err(Error::io("remove", &log))?;
            crashsafe::sync_parent(&log).map_err(Error::io("sync the directory of", &log))
        }
        // Without an identity: a crash came before it, and nothing else is there.
        None if log.is_dir() => {
            let _ = crashsafe::remove(&crashsafe::unfinished(&log.join(IDENTITY)));
            let _ = fs::remove_dir(&log); // somebody put something there: it is theirs
            Ok(())
        }
        _ => {
            tracing::warn!(log = %log.display(), "the log of a removed volume is not found, or is another's, and stays");
            Ok(())
        }
    }
}

/// Where the volume's log is, its link resolved once.
fn place(dir: &Path) -> PathBuf {
    let log = dir.join(LOG);
    fs::read_link(&log).unwrap_or(log)
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    crashsafe::read(path).map_err(Error::io("read", path))
}
