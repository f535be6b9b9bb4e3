//! The sealed branches of a copy: what there is of each.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use tidemark_core::event::FileRef;
use tidemark_core::format::branch::{BranchClass as Class, BranchHead};
use tidemark_core::types::{BLOCK, Boundary, Lsn, Position, VolumeId, WallMs};

use super::retention::{dropped_in, is_dropped};
use super::volumes::failed;
use super::{Agent, At, images};
use crate::control::{BranchClass, BranchCounts, BranchInfo, Branches, EngineError, Seen};
use crate::disk::files::path_in;

/// A branch as its file says.
pub(super) struct Sealed {
    /// Its number.
    pub number: u32,
    /// Its head.
    pub head: BranchHead,
    /// Its file; where nothing was sealed, what says that there are images.
    pub path: PathBuf,
    /// The number of the images that show the copy at the branch's end.
    pub images: Option<u32>,
}

/// Every branch of the copy in `dir`, by number. What is no branch, or has a damaged head, is not among them.
pub(super) fn sealed_in(dir: &Path) -> Result<Vec<Sealed>, EngineError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.join("branch")).map_err(failed)?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("branch-")?.parse().ok());
        if let Some(number) = number
            && !is_dropped(dir, number)
            && let Some(sealed) = sealed(dir, number)?
        {
            found.push(sealed);
        }
    }
    found.sort_by_key(|sealed| sealed.number);
    let images = (0..found.len()).map(|first| images_of(dir, &found[first..])).collect::<Result<Vec<_>, _>>()?;
    found.iter_mut().zip(images).for_each(|(sealed, images)| sealed.images = images);
    for (number, end, kept) in images::all_in(dir)? {
        // All that only the copy had was in its base already: no record was left to be sealed.
        if !is_dropped(dir, number) && found.iter().all(|sealed| sealed.number != number) {
            found.push(of_images(dir, number, end, kept));
        }
    }
    found.sort_by_key(|sealed| sealed.number);
    Ok(found)
}

/// The images that show the first of these branches with those that go on where it ends.
fn images_of(dir: &Path, branches: &[Sealed]) -> Result<Option<u32>, EngineError> {
    let goes_on = branches.windows(2).take_while(|two| two[1].head.from == two[0].head.tail).count();
    let (first, last) = (&branches[0], &branches[goes_on]);
    let kept = images::all_in(dir)?.into_iter().filter(|(number, ..)| *number <= first.number).max();
    Ok(kept.filter(|(_, end, _)| *end == last.head.tail.position.lsn).map(|(number, ..)| number))
}

fn of_images(dir: &Path, number: u32, end: Lsn, kept: WallMs) -> Sealed {
    let end = Boundary { position: Position { lsn: end, ..Position::default() }, ..Boundary::default() };
    let (volume, class) = (VolumeId::NIL, Class::Unknown);
    let head = BranchHead { volume, class, from: end, tail: end, bytes: 0, sealed_at: kept };
    Sealed { number, head, path: images::record_in(dir, number), images: Some(number) }
}

fn sealed(dir: &Path, number: u32) -> Result<Option<Sealed>, EngineError> {
    let path = path_in(dir, FileRef::Branch(number));
    let mut block = vec![0; BLOCK];
    match File::open(&path).and_then(|mut file| file.read_exact(&mut block)) {
        Ok(()) => Ok(BranchHead::decode(&block).ok().map(|head| Sealed { number, head, path, images: None })),
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
        for Sealed { number, head, path, images } in self.sealed_of(at.copy).await? {
            let may_open = match images {
                Some(_) => Ok(Ok(())),
                None => self.on_copy(at.copy, at.shard, move |copy| copy.may_view(Some(head.from))).await,
            };
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
