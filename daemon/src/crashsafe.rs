//! The one place that knows in which order content, name and directory become durable: small files that are whole or not
//! there, directories that appear and disappear by one rename.
//!
//! A file appears under its final name only when its content is durable; what a crash leaves behind ends in [`UNFINISHED`],
//! and is overwritten the next time or swept at the next open.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The most bytes of a small file that [`read`] takes; a larger one is damaged.
pub(crate) const MAX_BYTES: u64 = 1 << 20;

/// Suffix of a name that nobody has been promised yet.
pub(crate) const UNFINISHED: &str = ".new";

/// The name under which the content of `path` is made ready.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    with_suffix(path, UNFINISHED)
}

/// `path` with `suffix` behind its name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes the name `path` durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    sync_dir(parent(path)?)
}

/// Gives `from`, whose content is already durable, another name in the same directory, durably.
pub(crate) fn publish(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_parent(to)
}

/// Gives a file or directory another name in any directory of the file system, durably.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    publish(from, to)?;
    sync_parent(from)
}

/// Replaces `path` by the pieces of `content`, whole and private to its owner: after success the new content survives a power
/// cut, after a failure or a cut the old one does. Two writers of one path at once are the caller's mistake.
pub(crate) fn replace<T: AsRef<[u8]>>(path: &Path, content: &[T]) -> io::Result<()> {
    let new = unfinished(path);
    let written = write_new(&new, content).and_then(|()| publish(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new); // the first error is the one to report; what stays is overwritten or swept
    }
    written
}

fn write_new<T: AsRef<[u8]>>(path: &Path, content: &[T]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    for piece in content {
        file.write_all(piece.as_ref())?;
    }
    file.sync_all()
}

/// The text of a small file; `None` when it does not exist.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it is larger than [`MAX_BYTES`] or no UTF-8, else what failed.
pub(crate) fn read(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {MAX_BYTES} bytes")));
    }
    Ok(Some(text))
}

/// Removes the name `path`, not yet durably; one that is not there is success.
pub(crate) fn unlink(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes the name `path` durably; one that is not there is success.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.and_then(|()| sync_parent(path)),
    }
}

/// Removes what a crash left unfinished in `dir`.
pub(crate) fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().ends_with(UNFINISHED.as_bytes()) {
            unlink(&entry.path())?;
        }
    }
    Ok(())
}

/// Creates a private directory and its parents; the new names survive a power cut.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_dir(parent(path)?)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.and_then(|()| sync_parent(path)),
    }
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_private_and_leaves_nothing_beside_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        replace(&path, &["one"]).unwrap();
        replace(&path, &["tw", "o"]).unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_replacement_that_fails_leaves_the_old_content_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::create_dir_all(path.join("not empty")).unwrap();
        assert!(replace(&path, &["one"]).is_err());
        assert!(path.join("not empty").is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn removing_and_reading_what_is_not_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none");
        remove(&path).unwrap();
        unlink(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn an_absurdly_large_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn directories_are_made_with_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        create_dir(&path).unwrap();
        create_dir(&path).unwrap();
        assert!(path.is_dir());
    }

    #[test]
    fn only_what_is_unfinished_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["slot", "slot.new", "new"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        sweep(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["new", "slot"]);
    }
}
