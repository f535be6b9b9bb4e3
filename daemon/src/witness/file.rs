//! A witness in a directory: for one host only, that is for demonstrations and tests. Both sites on one disk have no arbiter that
//! outlives it.
//!
//! One file for each cell, replaced whole by a rename after its content is durable; one lock file orders readers and writers of
//! all processes. Nothing is read that a power cut could take back: readers wait for the writer's last sync.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};
use tidemark_core::format::witness::Cell;
use tidemark_core::format::witness::file::{self as format, MAX_FILE_BYTES};
use tidemark_core::group::witness::Revision;
use tokio::sync::Semaphore;

use super::store::{Store, Stored, Swap, WitnessError, bounded, unavailable};
use crate::crashsafe;

/// Calls at once; a file system that hangs keeps no more threads than this.
const MAX_CALLS: usize = 4;
/// Between two looks at a lock that somebody holds.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// The store. Clones of one directory, in this process or another, are one store.
pub struct FileStore {
    directory: Arc<Path>,
    places: Arc<Semaphore>,
}

impl FileStore {
    /// Over an existing directory.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory: directory.into(), places: Arc::new(Semaphore::new(MAX_CALLS)) }
    }

    /// Runs `work` on a thread that may wait for a disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, WitnessError> + Send + 'static,
    ) -> Result<T, WitnessError> {
        let place = self.places.clone().acquire_owned().await.map_err(|error| unavailable("file", &error))?;
        let directory = self.directory.clone();
        let run = move || {
            let _place = place; // as long as the thread runs, also when nobody waits for it
            work(&directory)
        };
        tokio::task::spawn_blocking(run).await.map_err(|error| unavailable("file", &error))?
    }
}

#[tonic::async_trait]
impl Store for FileStore {
    fn backend(&self) -> &'static str {
        "file"
    }

    fn place(&self) -> String {
        self.directory.display().to_string()
    }

    async fn read(&self, cell: Cell, deadline: Instant) -> Result<Option<Stored>, WitnessError> {
        self.blocking(move |directory| {
            let _shared = lock(directory, FlockArg::LockSharedNonblock, deadline)?;
            load(directory, cell)
        })
        .await
    }

    async fn cas(
        &self,
        cell: Cell,
        expected: Option<&Revision>,
        value: Bytes,
        deadline: Instant,
    ) -> Result<Swap, WitnessError> {
        bounded(&value)?;
        let expected = expected.cloned();
        self.blocking(move |directory| {
            let _alone = lock(directory, FlockArg::LockExclusiveNonblock, deadline)?;
            let now = load(directory, cell)?;
            if now.as_ref().map(|stored| &stored.revision) != expected.as_ref() {
                return Ok(Swap::Conflict(now));
            }
            let revision = match expected {
                Some(Revision::Counted(count)) => count + 1,
                _ => 1,
            };
            let path = directory.join(cell.to_string());
            crashsafe::replace(&path, &[format::encode(revision, &value)]).map_err(|error| failed(&path, &error))?;
            Ok(Swap::Committed(Revision::Counted(revision)))
        })
        .await
    }
}

/// The lock of the directory, held until it is dropped.
fn lock(directory: &Path, kind: FlockArg, deadline: Instant) -> Result<Flock<File>, WitnessError> {
    let path = directory.join("lock");
    let opened = File::options().create(true).truncate(false).write(true).open(&path);
    let mut file = opened.map_err(|error| failed(&path, &error))?;
    loop {
        match Flock::lock(file, kind) {
            Ok(lock) => return Ok(lock),
            Err((_, errno)) if errno != nix::Error::EWOULDBLOCK => return Err(failed(&path, &errno.into())),
            Err(_) if Instant::now() >= deadline => {
                return Err(WitnessError::Unavailable(format!("{} is locked", path.display())));
            }
            Err((same, _)) => file = same,
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

fn load(directory: &Path, cell: Cell) -> Result<Option<Stored>, WitnessError> {
    let path = directory.join(cell.to_string());
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| failed(&path, &error))?,
    };
    let mut bytes = Vec::new();
    // One byte more than there may be: what is too long fails its checksum.
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| failed(&path, &error))?;
    let decoded = format::decode(&bytes);
    let (revision, value) = decoded.map_err(|source| WitnessError::Corrupt { cell, source })?;
    Ok(Some(Stored { bytes: Bytes::copy_from_slice(value), revision: Revision::Counted(revision) }))
}

/// What nobody but the operator can mend is refused, the rest may pass.
fn failed(path: &Path, error: &io::Error) -> WitnessError {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    let text = format!("{}: {error}", path.display());
    match error.kind() {
        NotFound | PermissionDenied | NotADirectory | IsADirectory | ReadOnlyFilesystem => WitnessError::Refused(text),
        _ => WitnessError::Unavailable(text),
    }
}
