//! The index in RocksDB: every write is in the synced write-ahead log before it returns, every read is checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rocksdb::{DB, DBRecoveryMode, IteratorMode, LogLevel, Options, ReadOptions, WriteOptions};

use super::index::{Index, IndexError};

/// A few hundred entries of a few hundred bytes: the defaults are made for a thousand times as much.
const WRITE_BUFFER_BYTES: usize = 1 << 20;
/// Open table files.
const MAX_OPEN_FILES: i32 = 16;
/// RocksDB's own log files that are kept.
const KEEP_LOG_FILES: usize = 2;
/// An index with more entries than this is none of ours.
const MAX_ENTRIES: usize = 100_000;

/// The index in RocksDB.
pub(super) struct RocksIndex {
    db: DB,
    path: PathBuf,
}

impl RocksIndex {
    /// Opens or creates the database in `path`.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_paranoid_checks(true);
        // A torn end is what a crash leaves; anything else that is wrong is an error, not a silently older index.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_open_files(MAX_OPEN_FILES);
        options.set_keep_log_file_num(KEEP_LOG_FILES);
        options.set_log_level(LogLevel::Warn);
        let db = DB::open(&options, path);
        db.map(|db| Self { db, path: path.to_owned() }).map_err(|error| failed(path, &error))
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> IndexError {
        failed(&self.path, error)
    }

    fn synced() -> WriteOptions {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        options
    }
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> IndexError {
    IndexError { path: path.to_owned(), why: error.to_string() }
}

impl Index for RocksIndex {
    fn load(&self) -> Result<BTreeMap<String, String>, IndexError> {
        let mut options = ReadOptions::default();
        options.set_verify_checksums(true);
        let mut content = BTreeMap::new();
        for entry in self.db.iterator_opt(IteratorMode::Start, options) {
            let (key, value) = entry.map_err(|error| self.failed(&error))?;
            let text = |bytes: Box<[u8]>| String::from_utf8(bytes.into_vec()).map_err(|error| self.failed(&error));
            content.insert(text(key)?, text(value)?);
            if content.len() > MAX_ENTRIES {
                return Err(self.failed(&format!("more than {MAX_ENTRIES} entries")));
            }
        }
        Ok(content)
    }

    fn put(&mut self, key: &str, value: &str) -> Result<(), IndexError> {
        self.db.put_opt(key, value, &Self::synced()).map_err(|error| self.failed(&error))
    }

    fn remove(&mut self, key: &str) -> Result<(), IndexError> {
        self.db.delete_opt(key, &Self::synced()).map_err(|error| self.failed(&error))
    }
}
