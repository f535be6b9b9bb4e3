//! The one place that knows in which order content, name and directory become durable.
//!
//! A file appears under its final name only when its content is durable; what a crash leaves behind ends in
//! [`UNFINISHED`] and is swept at the next open.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Error;

/// Suffix of a name that nobody has been promised yet.
pub(super) const UNFINISHED: &str = ".new";

/// The name under which the content of `path` is made ready.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(UNFINISHED);
    name.into()
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync the directory", dir))
}

/// Makes the name `path` durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), Error> {
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Gives the finished `from`, whose content is already durable, its final name.
pub(super) fn publish(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(Error::io("rename a new file to", to))?;
    sync_parent(to)
}

/// Replaces `path` by `data` whole: after a crash there is the old content or the new, never a mixture. A failure leaves the
/// old content and no temporary file.
pub(super) fn replace(path: &Path, data: &[Bytes]) -> Result<(), Error> {
    let new = unfinished(path);
    let written = write_new(&new, data).and_then(|()| publish(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new); // the first error is the one to report; the sweep finds what stays
    }
    written
}

fn write_new(path: &Path, data: &[Bytes]) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        for piece in data {
            file.write_all(piece)?;
        }
        file.sync_all()
    };
    write().map_err(Error::io("write", path))
}

/// Removes the name `path`, not yet durably; one that is not there is success.
pub(super) fn unlink(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes what a crash left unfinished in `dir`.
pub(super) fn sweep(dir: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        if entry.file_name().as_encoded_bytes().ends_with(UNFINISHED.as_bytes()) {
            unlink(&entry.path())?;
        }
    }
    Ok(())
}
