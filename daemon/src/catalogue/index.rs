//! The index behind the catalogue: short texts by short keys, durable when `put` returns. It may be lost at any moment
//! without harm, so it only has to be honest: an error, or what was put.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct IndexError {
    /// Its directory.
    pub path: PathBuf,
    /// What failed.
    pub why: String,
}

/// A durable map.
pub(super) trait Index: Send {
    /// Everything in it, or an error when any part is damaged.
    fn load(&self) -> Result<BTreeMap<String, String>, IndexError>;
    /// Puts or replaces an entry, durably.
    fn put(&mut self, key: &str, value: &str) -> Result<(), IndexError>;
    /// Removes an entry, durably. A missing one is success.
    fn remove(&mut self, key: &str) -> Result<(), IndexError>;
}

/// An index that is made anew at every start: for builds without RocksDB, and for tests.
#[cfg(any(test, not(feature = "rocksdb")))]
#[derive(Default)]
pub(super) struct MemoryIndex(BTreeMap<String, String>);

#[cfg(any(test, not(feature = "rocksdb")))]
impl Index for MemoryIndex {
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
    /// The index, readable as a whole.
    pub index: Box<dyn Index>,
    /// Its content.
    pub content: BTreeMap<String, String>,
    /// Why the old one was thrown away, if it was.
    pub rebuilt: Option<String>,
}

/// Opens the index in `dir`. One that is damaged is removed and made anew, once.
#[cfg(feature = "rocksdb")]
pub(super) fn open(dir: &Path) -> Result<Opened, IndexError> {
    use super::rocks::RocksIndex;
    let whole = |index: RocksIndex| index.load().map(|content| (index, content));
    let damaged = match RocksIndex::open(dir).and_then(whole) {
        Ok((index, content)) => return Ok(Opened { index: Box::new(index), content, rebuilt: None }),
        Err(error) => error,
    };
    std::fs::remove_dir_all(dir)
        .or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            std::io::ErrorKind::NotADirectory => std::fs::remove_file(dir),
            _ => Err(error),
        })
        .map_err(|error| IndexError {
            path: dir.to_owned(),
            why: format!("damaged ({}) and cannot be removed: {error}", damaged.why),
        })?;
    let (index, content) = RocksIndex::open(dir).and_then(whole)?;
    Ok(Opened { index: Box::new(index), content, rebuilt: Some(damaged.why) })
}

/// Without RocksDB there is nothing to open.
#[cfg(not(feature = "rocksdb"))]
pub(super) fn open(_dir: &Path) -> Result<Opened, IndexError> {
    let index = MemoryIndex::default();
    let content = index.load()?;
    Ok(Opened { index: Box::new(index), content, rebuilt: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behaves_as_a_durable_map(index: &mut dyn Index) {
        index.put("a", "1").unwrap();
        index.put("b", "2").unwrap();
        index.put("a", "3").unwrap();
        index.remove("b").unwrap();
        index.remove("none").unwrap();
        assert_eq!(index.load().unwrap(), BTreeMap::from([("a".to_owned(), "3".to_owned())]));
    }

    #[test]
    fn memory_behaves_as_a_map() {
        behaves_as_a_durable_map(&mut MemoryIndex::default());
    }

    #[cfg(feature = "rocksdb")]
    #[test]
    fn rocksdb_behaves_as_a_map_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalogue");
        let mut opened = open(&path).unwrap();
        behaves_as_a_durable_map(&mut *opened.index);
        let content = opened.index.load().unwrap();
        drop(opened);
        let again = open(&path).unwrap();
        assert_eq!((again.content, again.rebuilt), (content, None));
    }
}
