//! The index behind the catalogue: short texts by short keys, durable when `put` returns. It may be lost at any moment
//! without harm, so it only has to be honest: an error, or what was put.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Of what is in the index, under [`VERSION_KEY`]. Another one is not converted: everything is in the files.
const VERSION: &str = "1";
#[cfg(feature = "rocksdb")]
const VERSION_KEY: &str = "version";

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct IndexError {
    /// Its directory.
    pub path: PathBuf,
    /// What failed.
    pub why: String,
}

/// Why the index is new.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rebuilt {
    /// It was not there.
    #[error("was not there")]
    Missing,
    /// It could not be read.
    #[error("was damaged ({0})")]
    Damaged(String),
    /// Another version of the agent made it.
    #[error("was of version {0:?}, not {VERSION}")]
    OtherVersion(String),
    /// Not even a new one can be made: it is kept in memory until the next start.
    #[error("cannot be kept on disk ({0})")]
    Unusable(String),
}

impl Rebuilt {
    /// Every reason, as a metric labels it.
    pub const REASONS: [&str; 4] = ["missing", "damaged", "version", "unusable"];

    /// The reason, one of [`Rebuilt::REASONS`].
    pub fn reason(&self) -> &'static str {
        let reason = match self {
            Self::Missing => 0,
            Self::Damaged(_) => 1,
            Self::OtherVersion(_) => 2,
            Self::Unusable(_) => 3,
        };
        Self::REASONS[reason]
    }
}

/// A durable map.
pub(super) trait Index: Send {
    /// Everything in it, or an error when any part is damaged.
    #[cfg(any(test, feature = "rocksdb"))]
    fn load(&self) -> Result<BTreeMap<String, String>, IndexError>;
    /// Puts or replaces an entry, durably.
    fn put(&mut self, key: &str, value: &str) -> Result<(), IndexError>;
    /// Removes an entry, durably. A missing one is success.
    fn remove(&mut self, key: &str) -> Result<(), IndexError>;
}

/// An index that is made anew at every start: where no other can be had, for builds without RocksDB, and for tests.
#[derive(Default)]
pub(super) struct MemoryIndex(BTreeMap<String, String>);

impl Index for MemoryIndex {
    #[cfg(any(test, feature = "rocksdb"))]
    fn load(&self) -> Result<BTreeMap<String, String>, IndexError> {
        Ok(self.0.clone())
    }

    fn put(&mut self, key: &str, value: &str) -> Result<(), IndexError> {
        self.0.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Result<(), IndexError> {
        self.0.remove(key);
        Ok(())
    }
}

/// What [`open`] found.
pub(super) struct Opened {
    /// The index.
    pub index: Box<dyn Index>,
    /// Its content, without the version.
    pub content: BTreeMap<String, String>,
    /// Why it is new, if it is.
    pub rebuilt: Option<Rebuilt>,
}

impl Opened {
    /// In memory.
    fn in_memory(rebuilt: Option<Rebuilt>) -> Self {
        Self { index: Box::new(MemoryIndex::default()), content: BTreeMap::new(), rebuilt }
    }
}

/// Opens the index in `dir`. One that cannot be used is removed and made anew; where that fails it is kept in memory, because
/// nothing depends on it.
#[cfg(feature = "rocksdb")]
pub(super) fn open(dir: &Path) -> Opened {
    let why = match existing(dir) {
        Ok(opened) => return opened,
        Err(why) => why,
    };
    match fresh(dir) {
        Ok(index) => Opened { index, content: BTreeMap::new(), rebuilt: Some(why) },
        Err(error) => Opened::in_memory(Some(Rebuilt::Unusable(error.to_string()))),
    }
}

#[cfg(feature = "rocksdb")]
fn existing(dir: &Path) -> Result<Opened, Rebuilt> {
    if !dir.exists() {
        return Err(Rebuilt::Missing);
    }
    let damaged = |error: IndexError| Rebuilt::Damaged(error.why);
    let index = super::rocks::RocksIndex::open(dir).map_err(damaged)?;
    let mut content = index.load().map_err(damaged)?;
    match content.remove(VERSION_KEY) {
        Some(version) if version == VERSION => Ok(Opened { index: Box::new(index), content, rebuilt: None }),
        // What a crash between the first two steps leaves, and the loss of the file that names the others.
        None if content.is_empty() => Err(Rebuilt::Missing),
        other => Err(Rebuilt::OtherVersion(other.unwrap_or_default())),
    }
}

#[cfg(feature = "rocksdb")]
fn fresh(dir: &Path) -> Result<Box<dyn Index>, IndexError> {
    remove_any(dir).map_err(|error| IndexError { path: dir.to_owned(), why: format!("cannot be removed: {error}") })?;
    let mut index = super::rocks::RocksIndex::open(dir)?;
    index.put(VERSION_KEY, VERSION)?;
    Ok(Box::new(index))
}

#[cfg(feature = "rocksdb")]
fn remove_any(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => std::fs::remove_file(path),
        other => other,
    }
}

/// Without RocksDB there is nothing to open.
#[cfg(not(feature = "rocksdb"))]
pub(super) fn open(_dir: &Path) -> Opened {
    Opened::in_memory(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behaves_as_a_map(index: &mut dyn Index) {
        index.put("a", "1").unwrap();
        index.put("b", "2").unwrap();
        index.put("a", "3").unwrap();
        index.remove("b").unwrap();
        index.remove("none").unwrap();
        assert_eq!(index.load().unwrap().get("a").map(String::as_str), Some("3"));
        assert!(!index.load().unwrap().contains_key("b"));
    }

    #[test]
    fn memory_behaves_as_a_map() {
        behaves_as_a_map(&mut MemoryIndex::default());
    }

    #[cfg(feature = "rocksdb")]
    #[test]
    fn rocksdb_behaves_as_a_map_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalogue");
        let mut opened = open(&path);
        assert_eq!(opened.rebuilt, Some(Rebuilt::Missing));
        behaves_as_a_map(&mut *opened.index);
        drop(opened);
        let again = open(&path);
        assert_eq!((again.content, again.rebuilt), (BTreeMap::from([("a".into(), "3".into())]), None));
    }

    #[cfg(feature = "rocksdb")]
    #[test]
    fn another_version_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalogue");
        let mut opened = open(&path);
        opened.index.put("a", "1").unwrap();
        opened.index.put(VERSION_KEY, "2").unwrap();
        drop(opened);
        let again = open(&path);
        assert_eq!((&again.content, &again.rebuilt), (&BTreeMap::new(), &Some(Rebuilt::OtherVersion("2".into()))));
        drop(again);
        assert_eq!(open(&path).rebuilt, None);
    }

    #[cfg(feature = "rocksdb")]
    #[test]
    fn where_no_index_can_be_made_it_is_kept_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(&dir.path().join("none/catalogue\0"));
        assert!(matches!(opened.rebuilt, Some(Rebuilt::Unusable(_))), "{:?}", opened.rebuilt);
        behaves_as_a_map(&mut *opened.index);
    }
}
