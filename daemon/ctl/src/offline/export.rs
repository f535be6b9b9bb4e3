//! What a sealed branch changed of a volume, as a sparse image of that volume's size.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tidemark_core::blocks::BlockSet;
use tidemark_core::layout::{self, Layout};
use tidemark_core::types::{BLOCK, BlockRange, Secret, VolumeId};

use super::branch::{Change, walk};

static ZEROS: [u8; 256 * 1024] = [0; 256 * 1024];

/// What an image holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of the image.
    pub size: u64,
    /// Byte ranges that the branch changed, ascending: `(offset, length)`. Everything else of the image is a hole and says nothing
    /// of the volume.
    pub extents: Vec<(u64, u64)>,
}

/// What the branch in `branch` changed.
///
/// # Errors
/// What is wrong with the branch file.
pub fn extents(branch: &Path, secret: &Secret) -> Result<Exported, String> {
    let mut image = Image::default();
    walk(branch, None, secret, |change| image.take(change))?;
    Ok(image.exported())
}

/// Writes the state in which the branch in `branch` left the blocks of `volume` that it changed to the new file `to`, as large as the
/// volume. `layout` are the volumes of the group when the branch begins, or later ones of the history that it left.
///
/// # Errors
/// What is wrong with the branch file, or with the new one; it is removed then.
pub fn export(branch: &Path, secret: &Secret, volume: VolumeId, layout: Layout, to: &Path) -> Result<Exported, String> {
    let file = OpenOptions::new().write(true).create_new(true).open(to).map_err(|error| error.to_string())?;
    let place = Place { volume, size: layout.volume_size(volume).unwrap_or(0), layout };
    let mut image = Image { file: Some(file), place: Some(place), ..Image::default() };
    let written = walk(branch, None, secret, |change| image.take(change)).and_then(|()| image.finish());
    if written.is_err() {
        let _ = std::fs::remove_file(to); // it is not what was asked for, and the first error counts
    }
    written
}

/// Where a volume lies in the group's space, as far as the branch was read.
struct Place {
    volume: VolumeId,
    layout: Layout,
    /// Its last size.
    size: u64,
}

impl Place {
    fn change(&mut self, change: layout::Change) {
        self.layout = change.on(&self.layout);
        self.size = self.layout.volume_size(self.volume).unwrap_or(self.size);
    }

    /// The parts of a range of the space that are the volume's: how many blocks from its start on, and where in the volume.
    ///
    /// # Errors
    /// It lies behind all volumes.
    fn parts(&self, range: BlockRange) -> Result<Vec<(u64, BlockRange)>, String> {
        if range.end() > self.layout.blocks() {
            return Err("it writes to volumes of its group that are not known here".into());
        }
        let (mut parts, mut before) = (Vec::new(), 0);
        for extent in self.layout.of(self.volume) {
            let first = extent.start / BLOCK as u64;
            let blocks = extent.len.div_ceil(BLOCK as u64);
            let (from, to) = (range.start().max(first), range.end().min(first + blocks));
            if from < to {
                parts.push((from - range.start(), BlockRange::new(before + from - first, (to - from) as u32)));
            }
            before += blocks;
        }
        Ok(parts)
    }
}

#[derive(Default)]
struct Image {
    file: Option<File>,
    /// The volume that it is of; none: the ranges are of the group's space.
    place: Option<Place>,
    /// Blocks that hold data in the file.
    data: BlockSet,
    changed: BlockSet,
}

impl Image {
    fn take(&mut self, change: Change) -> Result<(), String> {
        match change {
            Change::Size(size) => self.change(layout::Change::Size(size)),
            Change::Layout(layout) => self.change(layout::Change::Layout(layout)),
            Change::Data(range, bytes) => {
                for (skip, range) in self.parts(range)? {
                    let from = skip as usize * BLOCK;
                    let bytes = &bytes[from..from + range.bytes() as usize];
                    self.write(range.start() * BLOCK as u64, bytes)?;
                    self.data.insert(range.start(), range.end());
                    self.changed.insert(range.start(), range.end());
                }
            }
            Change::Zeros(range) => {
                for (_, range) in self.parts(range)? {
                    self.clear(range)?;
                    self.changed.insert(range.start(), range.end());
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, change: layout::Change) {
        if let Some(place) = &mut self.place {
            place.change(change);
        }
    }

    fn parts(&self, range: BlockRange) -> Result<Vec<(u64, BlockRange)>, String> {
        match &self.place {
            Some(place) => place.parts(range),
            None => Ok(vec![(0, range)]),
        }
    }

    /// What was never written is a hole and reads as zeros already.
    fn clear(&self, range: BlockRange) -> Result<(), String> {
        let mut at = range.start();
        let gaps = self.data.gaps(range.start(), range.end());
        for (start, end) in gaps.into_iter().chain([(range.end(), range.end())]) {
            let mut offset = at * BLOCK as u64;
            while offset < start * BLOCK as u64 {
                let len = (start * BLOCK as u64 - offset).min(ZEROS.len() as u64);
                self.write(offset, &ZEROS[..len as usize])?;
                offset += len;
            }
            at = end;
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        match &self.file {
            Some(file) => file.write_all_at(bytes, offset).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    fn finish(self) -> Result<Exported, String> {
        if let Some(file) = &self.file {
            // The last block may be a part of one.
            let size = self.place.as_ref().map_or(0, |place| place.size);
            if size == 0 {
                return Err("its group had no such volume".into());
            }
            file.set_len(size).map_err(|error| error.to_string())?;
            file.sync_all().map_err(|error| error.to_string())?;
        }
        Ok(self.exported())
    }

    fn exported(mut self) -> Exported {
        let mut extents = Vec::new();
        while let Some((start, end)) = self.changed.take_front(1 << 50) {
            extents.push((start * BLOCK as u64, (end - start) * BLOCK as u64));
        }
        Exported { size: self.place.map_or(0, |place| place.size), extents }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: VolumeId = VolumeId([1; 16]);
    const B: VolumeId = VolumeId([2; 16]);

    fn place(volume: VolumeId) -> Place {
        let layout = Layout::one(A, 1 << 20);
        Place { volume, size: layout.volume_size(volume).unwrap_or(0), layout }
    }

    #[test]
    fn of_several_volumes_an_image_holds_what_is_its_own_also_where_they_change_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        let mut image = Image { file: Some(file), place: Some(place(A)), ..Image::default() };
        let both = Layout::one(A, 1 << 20).added(B, 8192).unwrap().grown(A, (1 << 20) + 4096 + 512).unwrap();
        assert!(image.take(Change::Data(BlockRange::new(256, 1), vec![7; BLOCK])).unwrap_err().contains("not known"));
        image.take(Change::Layout(both)).unwrap();
        // The last block of A, both of B, and the two of which A has grown.
        image.take(Change::Data(BlockRange::new(255, 5), [1, 2, 3, 4, 5].map(|byte| [byte; BLOCK]).concat())).unwrap();
        let exported = image.finish().unwrap();
        assert_eq!(exported.extents, vec![(255 * BLOCK as u64, 3 * BLOCK as u64)]);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), (1 << 20) + 4096 + 512);
        assert_eq!([255, 256, 257].map(|block| bytes[block * BLOCK]), [1, 4, 5]);
    }

    #[test]
    fn an_image_holds_the_last_state_of_what_was_changed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        let mut image = Image { file: Some(file), place: Some(place(A)), ..Image::default() };
        image.take(Change::Data(BlockRange::new(4, 3), vec![7; 3 * BLOCK])).unwrap();
        image.take(Change::Zeros(BlockRange::new(5, 10))).unwrap();
        image.take(Change::Data(BlockRange::new(6, 1), vec![9; BLOCK])).unwrap();
        let exported = image.finish().unwrap();
        assert_eq!(exported, Exported { size: 1 << 20, extents: vec![(4 * BLOCK as u64, 11 * BLOCK as u64)] });
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        let firsts: Vec<u8> = (0..8).map(|block| bytes[block * BLOCK]).collect();
        assert_eq!(firsts, [0, 0, 0, 0, 7, 0, 9, 0]);
    }
}
