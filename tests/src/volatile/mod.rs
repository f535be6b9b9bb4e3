//! A disk with a volatile cache, as a FUSE file system: what was not synced can vanish.
//!
//! `kill -9` leaves the kernel's page cache as it is, so it proves nothing about durability. This disk keeps every write in
//! memory until a sync covers it, and at a *cut* loses any part of the rest, at 512 bytes. What lies in the backing directory
//! is the medium: exactly the durable state.
//!
//! | module | what it is about |
//! |---|---|
//! | [`fate`] | what a cut keeps, from a seed |
//! | [`extents`] | pieces of a file by position |
//! | [`file`] | one file: durable content, unsynced operations, its cut |
//! | [`names`] | unsynced creations, renames and removals, and which of them hang together |
//! | [`tree`] | files and directories over the backing directory |
//! | [`disk`] | the tree with its faults: errors, full, limits, statistics |
//! | `filesystem`, [`gate`] | the FUSE side; a disk that hangs |
//! | [`control`] | commands over a unix socket |
//! | `program` | the disk in a process of its own |
//!
//! The model: a sync covers what had completed when it was submitted, and nothing else. Of what is not covered each sector holds
//! any one of the versions it had since. Sizes change in order. With [`Names::Strict`] creations, renames and removals are lost
//! in any combination that respects what depends on what; only a sync of the directory covers them, not one of the file.
//! After a failed sync the writes it should have covered are never made durable by a later one, though they still read back.
//!
//! Not modelled: permissions and times (kept, never lost), hard links (refused), writable shared mappings
//! (refused), misdirected or corrupted sectors (the simulator has them).

pub mod control;
pub mod disk;
pub mod extents;
pub mod fate;
pub mod file;
mod filesystem;
pub mod gate;
pub mod names;
mod program;
mod session;
pub mod tree;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disk::{Disk, Faults, Stats};
use gate::Gate;
pub use program::VolatileProgram;
use session::Session;

/// What happens to creations, renames and removals that no directory sync covered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Names {
    /// They can be lost.
    #[default]
    Strict,
    /// They are durable at once.
    Durable,
}

/// The state that the FUSE threads, the control socket and the owner share.
#[derive(Debug)]
pub struct Shared {
    disk: Mutex<Disk>,
    gate: Gate,
}

impl Shared {
    /// The disk. A thread that panicked with it makes the state doubtful, not the tests' verdict: it is used as it is.
    pub(crate) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loses power: a part of what is not durable survives, chosen by `seed`; the rest is gone, as is every open file. Requests
    /// that hang fail. Afterwards the disk serves what survived.
    ///
    /// # Errors
    /// When the backing directory cannot be read or written.
    pub fn cut(&self, seed: u64) -> io::Result<()> {
        let mut disk = self.disk();
        self.gate.drop_held();
        disk.cut(seed)
    }

    /// Counters and sizes.
    pub fn stats(&self) -> Stats {
        Stats { held_requests: self.gate.held(), ..self.disk().stats() }
    }

    /// Changes the injected faults.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(self.disk().faults_mut());
    }

    /// From here on reads, writes and syncs wait; `false` lets them go on.
    pub fn hang(&self, hangs: bool) {
        if hangs { self.gate.close() } else { self.gate.open() }
    }
}

/// A mounted volatile disk. Dropping it unmounts and loses everything that is not durable.
#[derive(Debug)]
pub struct VolatileDisk {
    shared: Arc<Shared>,
    session: Session,
}

impl VolatileDisk {
    /// Mounts the content of `backing` at `mount_point`; both are created when missing. A dead mount there is replaced.
    ///
    /// # Errors
    /// When the backing directory cannot be read, or FUSE cannot be mounted (it takes root and `/dev/fuse`).
    pub fn mount(backing: &Path, mount_point: &Path, names: Names) -> io::Result<Self> {
        let disk = Disk::open(backing, names)?;
        let shared = Arc::new(Shared { disk: Mutex::new(disk), gate: Gate::default() });
        let session = Session::start(mount_point, Arc::clone(&shared))?;
        Ok(Self { shared, session })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.session.mount_point()
    }

    /// The part that other threads may hold.
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// See [`Shared::cut`].
    ///
    /// # Errors
    /// When the backing directory cannot be read or written.
    pub fn cut(&self, seed: u64) -> io::Result<()> {
        self.shared.cut(seed)
    }

    /// See [`Shared::stats`].
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// See [`Shared::set_faults`].
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.set_faults(change);
    }

    /// See [`Shared::hang`].
    pub fn hang(&self, hangs: bool) {
        self.shared.hang(hangs);
    }

    /// Serves commands on a unix socket until the disk goes.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve_control(&self, socket: PathBuf) -> io::Result<control::Server> {
        control::Server::start(socket, self.shared())
    }

    /// Makes everything durable, as an orderly shutdown does, and unmounts.
    ///
    /// # Errors
    /// When the backing directory cannot be written.
    pub fn unmount(self) -> io::Result<()> {
        self.shared.hang(false);
        self.shared.disk().sync_all()
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        // Threads that wait at the gate would keep the session from ending.
        self.shared.gate.drop_held();
        self.session.stop();
    }
}
