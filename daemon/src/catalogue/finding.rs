//! What a person should know about what was found at start.

use std::path::PathBuf;

use super::index::Rebuilt;
use crate::config::Name;

/// Something that a person should know about what was found at start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// The index is new, made from the files.
    #[error("the index of the catalogue {0}; it was made anew from the files")]
    IndexRebuilt(Rebuilt),
    /// The index did not know a volume, or knew something else of it.
    #[error("volume {name} in {} was not in the index as it is on disk; the disk counts", dir.display())]
    Reindexed {
        /// The volume.
        name: Name,
        /// Its directory.
        dir: PathBuf,
    },
    /// A volume that should be there is not.
    #[error("volume {name} is missing: {} is not there; is the pool mounted?", dir.display())]
    Missing {
        /// The volume.
        name: Name,
        /// Where it was.
        dir: PathBuf,
    },
    /// Two volumes want one name; the older has it.
    #[error("{} is not served: its name {name} belongs to the older volume in {}", dir.display(), by.display())]
    NameTaken {
        /// The name.
        name: Name,
        /// The directory that is not served.
        dir: PathBuf,
        /// The directory that is.
        by: PathBuf,
    },
    /// One volume lies in two pools: which of the two is the volume is not for the agent to guess.
    #[error("neither {} nor {} is served: they are the same volume", dir.display(), first.display())]
    Twice {
        /// One directory.
        dir: PathBuf,
        /// The other.
        first: PathBuf,
    },
    /// A file or directory cannot be used.
    #[error("{} cannot be read: {why}", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A peer that was made known is not any more.
    #[error("peer {name} was known, and its file cannot be used: add it again")]
    PeerLost {
        /// The peer.
        name: Name,
    },
}

impl Finding {
    /// Every kind, as a metric labels it.
    pub const KINDS: [&str; 7] =
        ["index_rebuilt", "reindexed", "missing", "name_taken", "twice", "unreadable", "peer_lost"];

    /// The kind, one of [`Finding::KINDS`].
    pub fn kind(&self) -> &'static str {
        let kind = match self {
            Self::IndexRebuilt(_) => 0,
            Self::Reindexed { .. } => 1,
            Self::Missing { .. } => 2,
            Self::NameTaken { .. } => 3,
            Self::Twice { .. } => 4,
            Self::Unreadable { .. } => 5,
            Self::PeerLost { .. } => 6,
        };
        Self::KINDS[kind]
    }

    /// What a crash at the wrong moment leaves, and nobody has to look after.
    pub fn is_harmless(&self) -> bool {
        matches!(self, Self::Reindexed { .. })
    }
}
