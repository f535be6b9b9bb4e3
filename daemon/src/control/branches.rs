//! Sealed branches, and views of what a copy holds, as the engine speaks of them.

use std::path::PathBuf;

use tidemark_core::layout::Layout;
use tidemark_core::types::{Position, WallMs};
use tidemark_core::verb::Assertion;

use super::engine::{Attachment, EngineError};

/// What a view shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Seen {
    /// All that the copy holds at that moment.
    Present,
    /// What it held at the end of the sealed branch of this number.
    Branch(u32),
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Present => f.write_str("present"),
            Self::Branch(number) => write!(f, "branch-{number}"),
        }
    }
}

/// The sealed branches of a copy, and the open views of one of its volumes.
#[derive(Clone, Debug, Default)]
pub struct Branches {
    /// By number.
    pub branches: Vec<BranchInfo>,
    /// The open view of what the copy holds.
    pub present: Option<Attachment>,
    /// Branches that were dropped, by number.
    pub dropped: Vec<DroppedBranch>,
    /// Where the volumes of the group lie, while the copy is open.
    pub space: Option<Layout>,
}

/// A branch that was dropped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DroppedBranch {
    /// Its number.
    pub number: u32,
    /// Its class, as a word.
    pub class: String,
    /// Bytes of its file.
    pub bytes: u64,
    /// Who said so, why, and when.
    pub word: Assertion,
}

/// How many branches a copy keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BranchCounts {
    /// Of which nothing was acknowledged.
    pub unacked: u32,
    /// Others: they wait for a person.
    pub unacknowledged: u32,
}

/// A sealed suffix.
#[derive(Clone, Debug)]
pub struct BranchInfo {
    /// Its number.
    pub number: u32,
    /// What is known of the acknowledgement of its records.
    pub class: BranchClass,
    /// Last record that the newer history shares.
    pub fork: Position,
    /// Its last record.
    pub end: Position,
    /// Bytes of its file.
    pub bytes: u64,
    /// Moment of sealing.
    pub sealed: WallMs,
    /// Its file.
    pub path: PathBuf,
    /// Why it cannot be opened; none: it can.
    pub closed: Option<EngineError>,
    /// Its open view of the volume that was asked about.
    pub attachment: Option<Attachment>,
}

/// What is known of the acknowledgement of a branch's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BranchClass {
    /// None was acknowledged.
    Unacked,
    /// Some were.
    Acked,
    /// Nobody knows.
    Unknown,
}

impl BranchClass {
    /// As a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unacked => "unacked",
            Self::Acked => "acked",
            Self::Unknown => "unknown",
        }
    }
}
