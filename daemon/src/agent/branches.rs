//! The sealed branches of a copy: what there is of each.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use tidemark_core::event::FileRef;
use tidemark_core::format::branch::{BranchClass as Class, BranchHead};
use tidemark_core::types::{BLOCK, VolumeId};

use super::retention::{dropped_in, is_dropped};
use super::volumes::failed;
use super::{Agent, At};
use crate::control::{BranchClass, BranchCounts, BranchInfo, Branches, EngineError, Seen};
use crate::disk::files::path_in;
use crate::disk::home::numbered;

/// A branch as its file says.
pub(super) struct Sealed {
    /// Its number.
    pub number: u32,
    /// Its head.
    pub head: BranchHead,
    /// Its file.
    pub path: PathBuf,
}

/// Every branch of the copy in `dir`, by number. What is no branch, or has a damaged head, is not among them.
pub(super) fn sealed_in(dir: &Path) -> Result<Vec<Sealed>, EngineError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.join("branch")).map_err(failed)?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| numbered(name, "branch-", ""));
        if let Some(number) = number
            && let Some(sealed) = sealed(dir, number)?
            && !is_dropped(dir, number, &sealed.head)
        {
            found.push(sealed);
        }
    }
    found.sort_by_key(|sealed| sealed.number);
    Ok(found)
}

pub(super) fn sealed(dir: &Path, number: u32) -> Result<Option<Sealed>, EngineError> {
    let path = path_in(dir, FileRef::Branch(number));
    let mut block = vec![0; BLOCK];
    match File::open(&path).and_then(|mut file| file.read_exact(&mut block)) {
        Ok(()) => Ok(BranchHead::decode(&block).ok().map(|head| Sealed { number, head, path })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(failed(format!("{}: {error}", path.display()))),
    }
}

pub(super) fn class_of(head: &BranchHead) -> BranchClass {
    match head.class {
        Class::Unacked => BranchClass::Unacked,
        Class::Acked => BranchClass::Acked,
        Class::Unknown => BranchClass::Unknown,
    }
}

impl Agent {
    /// The branches of a copy, and what is open of a volume.
    pub(super) async fn branches_of(&self, at: At) -> Result<Branches, EngineError> {
        let mut branches = Vec::new();
        for Sealed { number, head, path } in self.sealed_of(at.copy).await? {
            let may_open = self.on_copy(at.copy, at.shard, move |copy| copy.may_view(Some(head.from))).await;
            branches.push(BranchInfo {
                number,
                class: class_of(&head),
                fork: head.from.position,
                end: head.tail.position,
                bytes: head.bytes,
                sealed: head.sealed_at,
                path,
                closed: may_open.and_then(|may| may.map_err(EngineError::from)).err(),
                attachment: self.view_of(at.volume, Seen::Branch(number)),
            });
        }
        let dir = self.dir_of(at.copy).ok_or_else(|| EngineError::NoVolume(at.copy.to_string()))?;
        let dropped = tokio::task::spawn_blocking(move || dropped_in(&dir)).await.map_err(failed)??;
        let space = self.status_of(at.copy, at.shard).await.ok().map(|status| status.base_layout);
        Ok(Branches { branches, present: self.view_of(at.volume, Seen::Present), dropped, space })
    }

    /// The branches of a copy, read where blocking is allowed.
    pub(super) async fn sealed_of(&self, copy: VolumeId) -> Result<Vec<Sealed>, EngineError> {
        let dir = self.dir_of(copy).ok_or_else(|| EngineError::NoVolume(copy.to_string()))?;
        tokio::task::spawn_blocking(move || sealed_in(&dir)).await.map_err(failed)?
    }

    /// How many there are, for the metrics: none where they cannot be read.
    pub(super) async fn branch_counts(&self, copy: VolumeId) -> BranchCounts {
        let sealed = self.sealed_of(copy).await.unwrap_or_default();
        let unacked = sealed.iter().filter(|sealed| sealed.head.class == Class::Unacked).count() as u32;
        BranchCounts { unacked, unacknowledged: sealed.len() as u32 - unacked }
    }

    /// The branch of this number.
    pub(super) async fn branch_of(&self, copy: VolumeId, number: u32) -> Result<Sealed, EngineError> {
        let found = self.sealed_of(copy).await?.into_iter().find(|sealed| sealed.number == number);
        found.ok_or(EngineError::NoBranch { number })
    }
}
