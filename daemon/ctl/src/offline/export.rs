//! What a sealed branch changed, as a sparse image of the volume's size.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tidemark_core::ship::seed::BlockSet;
use tidemark_core::types::{BLOCK, BlockRange, Secret};

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

/// Writes the state in which the branch in `branch` left the blocks that it changed to the new file `to`, at least `size` bytes long.
///
/// # Errors
/// What is wrong with the branch file, or with the new one; it is removed then.
pub fn export(branch: &Path, secret: &Secret, size: u64, to: &Path) -> Result<Exported, String> {
    let file = OpenOptions::new().write(true).create_new(true).open(to).map_err(|error| error.to_string())?;
    let mut image = Image { file: Some(file), size, ..Image::default() };
    let written = walk(branch, None, secret, |change| image.take(change)).and_then(|()| image.finish());
    if written.is_err() {
        let _ = std::fs::remove_file(to); // it is not what was asked for, and the first error counts
    }
    written
}

#[derive(Default)]
struct Image {
    file: Option<File>,
    size: u64,
    /// Blocks that hold data in the file.
    data: BlockSet,
    changed: BlockSet,
}

impl Image {
    fn take(&mut self, change: Change) -> Result<(), String> {
        match change {
            Change::Size(size) => self.size = self.size.max(size),
            Change::Layout if self.file.is_some() => {
                return Err("the volumes of its group changed in it: no image of one volume can hold that".into());
            }
            Change::Layout => {}
            Change::Data(range, bytes) => {
                self.write(range.start() * BLOCK as u64, &bytes)?;
                self.data.insert(range.start(), range.end());
                self.changed.insert(range.start(), range.end());
            }
            Change::Zeros(range) => {
                self.clear(range)?;
                self.changed.insert(range.start(), range.end());
            }
        }
        Ok(())
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
            let len = file.metadata().map_err(|error| error.to_string())?.len();
            file.set_len(len.max(self.size)).map_err(|error| error.to_string())?;
            file.sync_all().map_err(|error| error.to_string())?;
        }
        Ok(self.exported())
    }

    fn exported(mut self) -> Exported {
        let mut extents = Vec::new();
        while let Some((start, end)) = self.changed.take_front(1 << 50) {
            extents.push((start * BLOCK as u64, (end - start) * BLOCK as u64));
        }
        Exported { size: self.size, extents }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_holds_the_last_state_of_what_was_changed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        let mut image = Image { file: Some(file), size: 1 << 20, ..Image::default() };
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
