//! A volume copy read from its directory, without an agent and without writing a byte.
//!
//! What the log holds is judged by the agent's own recovery, fed with reads of the files: what it says here is what an
//! agent will find at its next start. Everything else of the directory is decoded and checked file by file.

pub mod branch;
pub mod copy;
pub mod export;
pub mod replay;
pub mod verify;

use std::path::{Path, PathBuf};

use tidemark_core::format::FormatError;

/// Why a directory could not be read as a volume copy. What is damaged inside a copy is a finding, not an error.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is no superblock.
    #[error("{} is not the directory of a volume copy: it has no superblock", path.display())]
    NoCopy {
        /// The directory.
        path: PathBuf,
    },
    /// Its log lies elsewhere and is not there, or another one is.
    #[error("the log of the copy is missing: {} is not there, or is not this copy's", path.display())]
    NoLog {
        /// Where it was to be.
        path: PathBuf,
    },
    /// An agent has it.
    #[error("an agent has the volume copy in {} open", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The superblock cannot be used: nothing else can be understood without it.
    #[error("cannot use {}: {source}", path.display())]
    Superblock {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
}

impl OfflineError {
    /// What the caller can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoCopy { .. } => Some("`tidemark volume show` prints the directory of a volume"),
            Self::InUse { .. } => Some("stop the agent first; `tidemark status` shows a volume that is served"),
            Self::NoLog { .. } => Some("mount the device of the pool's log_path"),
            Self::Superblock { .. } => Some("restore the copy from its peer: both of its versions are unreadable"),
            Self::File { .. } => None,
        }
    }

    fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}
