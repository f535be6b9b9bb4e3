//! How PKI files reach the disk: whole or not at all.
//!
//! A file is written beside its final place, synced, then linked (a new one) or renamed (a replacement) into place, then
//! the directory is synced. A new file never hits an old one, even when two commands race.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{PkiError, random_bytes};

/// Largest file that is read; a certificate or key has about one KiB.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// Mode of private keys.
const SECRET_MODE: u32 = 0o600;
/// Mode of everything else.
const PUBLIC_MODE: u32 = 0o644;

/// What happens to a file that is already there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// It stays and the write fails.
    Keep,
    /// It is replaced, in one step.
    Replace,
}

impl Existing {
    /// What `--force` means.
    pub fn from_force(force: bool) -> Self {
        if force { Self::Replace } else { Self::Keep }
    }
}

/// One file to write.
#[derive(Clone, PartialEq, Eq)]
pub struct NewFile {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub content: String,
    secret: bool,
}

impl NewFile {
    /// A private key: mode 0600.
    pub fn secret(path: PathBuf, content: String) -> Self {
        Self { path, content, secret: true }
    }

    /// A certificate or a description: mode 0644.
    pub fn public(path: PathBuf, content: String) -> Self {
        Self { path, content, secret: false }
    }

    fn mode(&self) -> u32 {
        if self.secret { SECRET_MODE } else { PUBLIC_MODE }
    }
}

/// Writes `files` in their order. With [`Existing::Keep`] nothing is written when one of them is there.
///
/// # Errors
/// [`PkiError::Exists`], [`PkiError::File`]. After an error the files before the failing one are written.
pub fn write_all(files: &[NewFile], existing: Existing) -> Result<(), PkiError> {
    if existing == Existing::Keep
        && let Some(file) = files.iter().find(|file| file.path.symlink_metadata().is_ok())
    {
        return Err(PkiError::Exists { path: file.path.clone() });
    }
    files.iter().try_for_each(|file| write(file, existing))
}

/// Makes `dir` and its parents, readable by the owner only where they are new.
///
/// # Errors
/// [`PkiError::File`].
pub fn make_dir(dir: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))
}

/// Reads a text file of at most 256 KiB.
///
/// # Errors
/// [`PkiError::File`], [`PkiError::TooLarge`].
pub fn read(path: &Path) -> Result<String, PkiError> {
    let file = File::open(path).map_err(failed("read", path))?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed("read", path))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(PkiError::TooLarge { path: path.to_owned(), limit: MAX_FILE_BYTES });
    }
    Ok(text)
}

/// Reads and parses a TOML file.
///
/// # Errors
/// As [`read`], and [`PkiError::Malformed`].
pub fn read_toml<T: serde::de::DeserializeOwned>(path: &Path, expected: &'static str) -> Result<T, PkiError> {
    toml::from_str(&read(path)?).map_err(|error| PkiError::Malformed {
        path: path.to_owned(),
        expected,
        why: error.message().to_owned(),
    })
}

/// True when others than the owner may read the file.
///
/// # Errors
/// [`PkiError::File`].
pub fn is_exposed(path: &Path) -> Result<bool, PkiError> {
    Ok(path.metadata().map_err(failed("read", path))?.mode() & 0o077 != 0)
}

fn write(file: &NewFile, existing: Existing) -> Result<(), PkiError> {
    let temporary = temporary_beside(&file.path)?;
    let done = fill(&temporary, file).and_then(|()| place(&temporary, &file.path, existing));
    if done.is_err() || existing == Existing::Keep {
        // Kept on success only by the rename; a leftover is harmless and has a name of its own.
        fs::remove_file(&temporary).ok();
    }
    match done {
        Ok(()) => sync_parent(&file.path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(PkiError::Exists { path: file.path.clone() }),
        Err(error) => Err(failed("write", &file.path)(error)),
    }
}

fn fill(temporary: &Path, file: &NewFile) -> io::Result<()> {
    let mut out = OpenOptions::new().write(true).create_new(true).mode(file.mode()).open(temporary)?;
    // The mode of open() is narrowed by the umask; a certificate has to be readable whatever the shell's umask is.
    out.set_permissions(fs::Permissions::from_mode(file.mode()))?;
    keep_owner(temporary, &file.path)?;
    out.write_all(file.content.as_bytes())?;
    out.sync_all()
}

/// A replaced file stays its owner's: root may renew what an unprivileged agent reads.
fn keep_owner(temporary: &Path, target: &Path) -> io::Result<()> {
    let Ok(old) = target.metadata() else { return Ok(()) };
    let new = temporary.metadata()?;
    if (old.uid(), old.gid()) == (new.uid(), new.gid()) {
        return Ok(());
    }
    std::os::unix::fs::chown(temporary, Some(old.uid()), Some(old.gid()))
}

fn place(temporary: &Path, target: &Path, existing: Existing) -> io::Result<()> {
    match existing {
        Existing::Keep => fs::hard_link(temporary, target),
        Existing::Replace => fs::rename(temporary, target),
    }
}

fn temporary_beside(path: &Path) -> Result<PathBuf, PkiError> {
    let token = u64::from_le_bytes(random_bytes()?);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.{token:016x}")))
}

fn sync_parent(path: &Path) -> Result<(), PkiError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed("sync", parent))
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File { verb, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("readable");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_existing_file_stops_the_whole_batch_before_anything_is_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let old = dir.path().join("old");
        fs::write(&old, "old").expect("written");
        let batch =
            [NewFile::public(dir.path().join("new"), "new".into()), NewFile::public(old.clone(), "replaced".into())];
        assert!(matches!(write_all(&batch, Existing::Keep), Err(PkiError::Exists { path }) if path == old));
        assert_eq!(names(dir.path()), ["old"]);

        write_all(&batch, Existing::Replace).expect("replaced");
        assert_eq!(fs::read_to_string(&old).expect("readable"), "replaced");
        assert_eq!(names(dir.path()), ["new", "old"]);
    }

    #[test]
    fn a_secret_is_for_its_owner_only_even_when_it_replaces_an_open_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = dir.path().join("key");
        fs::write(&key, "open").expect("written");
        assert!(is_exposed(&key).expect("readable"));
        write_all(&[NewFile::secret(key.clone(), "secret".into())], Existing::Replace).expect("written");
        assert!(!is_exposed(&key).expect("readable"));
    }

    #[test]
    fn a_huge_file_is_refused_and_not_read_to_its_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("huge");
        File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("sparse file");
        assert!(matches!(read(&path), Err(PkiError::TooLarge { .. })));
    }
}
