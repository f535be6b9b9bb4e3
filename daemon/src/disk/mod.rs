//! The disk shell: executes [`tidemark_core::event::DiskOp`] on real files.
//!
//! | file | does |
//! |---|---|
//! | `buffer` | 4096-aligned, recycled memory, and what alignment a file wants |
//! | `home` | a volume's directory: names, lock, access |
//! | `data_file` | one open file, with and without O_DIRECT |
//! | `files` | a volume's files together: create, open, list, release |
//! | `log_place` | a log on another device: made, proven to be the volume's, removed |
//! | `bases` | the bases of a copy's volumes as one space |
//! | `composition` | which bases a copy has: made, opened, grown, taken away |
//! | `joint` | an operation on the base that lies in several files |
//! | `identity` | a name for the device or file under a base image |
//! | `transfer` | one read or write in progress: pieces, short results, retries |
//! | `operation` | what the ring has under way, and its submission entries |
//! | `complaints` | log lines about failures, at a bounded rate |
//! | `blocking` | operations without a ring opcode, on one worker thread |
//! | `uring` | the ring of a shard: submission, completion, draining |
//!
//! It decides nothing about the log or the base. What it owes the core: a write is all or an error; a sync covers every write
//! that completed before it was queued and is never retried; an operation ends exactly once; memory and locks of an operation
//! live until the kernel has let go of them, even when the volume is closed meanwhile.

mod bases;
mod blocking;
pub mod buffer;
mod complaints;
mod composition;
mod data_file;
pub mod files;
pub(crate) mod home;
mod identity;
mod joint;
mod log_place;
mod lull;
mod operation;
mod room;
mod transfer;
pub mod uring;

use std::io;
use std::path::{Path, PathBuf};

use tidemark_core::event::DiskError;
use tidemark_core::types::VolumeId;

pub use buffer::{AlignedBuf, Pool};
pub use files::{FileOptions, NewBase, NewFiles, VolumeFiles};
pub use identity::{BaseInfo, probe_base};
pub use log_place::NewLog;
pub use uring::{Bell, Completion, Ring, RingOptions, VolumeKey};

/// Why the disk shell could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io {
        /// What was attempted, an infinitive.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else holds the lock of the volume or the device.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The directory, file or device.
        path: PathBuf,
    },
    /// O_DIRECT is refused: what completes would be in the page cache only.
    #[error("the file system of {} does not support direct I/O; put the pool on ext4, XFS, btrfs or a device", path.display())]
    Buffered {
        /// The file.
        path: PathBuf,
    },
    /// The volume's directory exists already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A file that every volume has is not there.
    #[error("{} is not a volume: {missing} is missing", dir.display())]
    NotAVolume {
        /// The directory.
        dir: PathBuf,
        /// What was looked for.
        missing: &'static str,
    },
    /// The directory for logs on another device is not there.
    #[error("{} is not there, where the pool's logs are to be (log_path): is its device mounted?", path.display())]
    NoLogPlace {
        /// The directory.
        path: PathBuf,
    },
    /// The log lies on another device, and is not there.
    #[error("the volume's log is missing: {} is not there; is its device mounted?", path.display())]
    LogMissing {
        /// Where it was.
        path: PathBuf,
    },
    /// What is where the log was is another volume's, or nobody's.
    #[error("the volume's log is missing: {} is not this volume's log", path.display())]
    ForeignLog {
        /// Where it was.
        path: PathBuf,
    },
    /// A base image is a regular file or a block device.
    #[error("{} is neither a regular file nor a block device", path.display())]
    NotABase {
        /// What it is instead.
        path: PathBuf,
    },
    /// A volume of the copy has no base here.
    #[error("the base of volume {volume} is missing")]
    NoBase {
        /// The volume.
        volume: VolumeId,
    },
    /// The bases do not make the space that the core asked for last.
    #[error("there is no base to work on: {why}")]
    NotComposed {
        /// Why they do not.
        why: String,
    },
    /// What is named as the base of a volume that joins is not what is open as its base.
    #[error("{} was replaced while it was open as a base", path.display())]
    Replaced {
        /// Where it is named.
        path: PathBuf,
    },
    /// A size that no volume can have.
    #[error("the size of {}, {size} bytes, is zero or not a multiple of 512", path.display())]
    Size {
        /// The base image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// A device is smaller than what was asked of it.
    #[error("{} has {size} bytes and cannot hold {wanted} bytes", path.display())]
    Resize {
        /// The base image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What was asked for, in bytes.
        wanted: u64,
    },
    /// A file that is read whole is larger than any that this program writes.
    #[error("{} has {size} bytes, more than the limit of {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The most that is read whole, in bytes.
        limit: u64,
    },
    /// A range outside the file.
    #[error("{} ends before byte {end}", path.display())]
    PastEnd {
        /// The file.
        path: PathBuf,
        /// First byte after the range.
        end: u64,
    },
    /// The operation was given up because the ring is closing.
    #[error("the disk shell is closing")]
    Closing,
    /// The ring itself failed; the shard cannot go on.
    #[error("cannot {attempt} the io_uring: {source}")]
    Ring {
        /// What was attempted, an infinitive.
        attempt: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: names what was attempted on `path`.
    fn io<E: Into<io::Error>>(attempt: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { attempt, path: path.to_owned(), source: source.into() }
    }

    /// What the core is told.
    pub fn disk(&self) -> DiskError {
        match self {
            Self::Io { source, .. } | Self::Ring { source, .. } => {
                source.raw_os_error().map_or(DiskError::Io, disk_error)
            }
            Self::PastEnd { .. } => DiskError::Short,
            Self::Resize { .. } => DiskError::NoSpace, // the device under the base is too small
            Self::NotAVolume { .. } => DiskError::Missing,
            _ => DiskError::Io,
        }
    }

    /// What the core is told, with a line in the log for what it cannot see: the path and the cause.
    fn told(&self, volume: VolumeKey) -> DiskError {
        let told = self.disk();
        match told {
            DiskError::Missing | DiskError::Short => {
                tracing::debug!(volume = volume.0, error = %self, "a disk operation failed")
            }
            _ => tracing::warn!(volume = volume.0, error = %self, "a disk operation failed"),
        }
        told
    }
}

/// What the core is told about an error number.
fn disk_error(errno: i32) -> DiskError {
    match errno {
        libc::ENOSPC | libc::EDQUOT => DiskError::NoSpace,
        libc::ENOENT => DiskError::Missing,
        _ => DiskError::Io,
    }
}

#[cfg(test)]
mod tests;
