//! A base that somebody names for a new, empty volume. What it held before would be read as the volume's content, so there is
//! nothing before: a file must not be there yet, a device must read as zeros.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::volumes::failed;
use crate::control::EngineError;
use crate::disk;

/// Bytes of a device that are looked at at once.
const CHUNK: usize = 1 << 20;
/// Bytes of a device after which the page cache may forget what it read of it.
const FORGET: u64 = 64 << 20;

/// The base of an empty volume of `size` bytes, to be at `path`.
pub(super) struct EmptyBase {
    pub path: PathBuf,
    pub size: u64,
}

/// A file that was made for a base: it goes when the volume is not made.
pub(super) struct MadeFile(PathBuf);

impl EmptyBase {
    /// Makes the file, or proves that the device will do. A device is read through, which takes as long as it is large.
    pub fn prepare(&self) -> Result<Option<MadeFile>, EngineError> {
        match File::create_new(&self.path) {
            Ok(file) => {
                let made = MadeFile(self.path.clone());
                let filled = file.set_len(self.size).and_then(|()| file.sync_all());
                match filled {
                    Ok(()) => Ok(Some(made)),
                    Err(error) => {
                        made.remove();
                        Err(failed(format!("cannot make {}: {error}", self.path.display())))
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.check_there().map(|()| None),
            Err(error) => {
                let text = format!("cannot make {}: {error}", self.path.display());
                Err(EngineError::Invalid { field: "basePath", text })
            }
        }
    }

    fn check_there(&self) -> Result<(), EngineError> {
        let path = self.path.display();
        if self.path.is_file() {
            return Err(EngineError::Exists(format!(
                "{path} exists already: a new, empty volume takes a file that is not there yet, or a block device; `tidemark volume \
                 adopt` keeps what a file holds"
            )));
        }
        let info = disk::probe_base(&self.path);
        let info = info.map_err(|error| EngineError::Invalid { field: "basePath", text: error.to_string() })?;
        if info.size < self.size {
            let text = format!("is {}: {path} has only {} bytes", self.size, info.size);
            return Err(EngineError::Invalid { field: "size", text });
        }
        match first_data(&self.path, self.size).map_err(|error| failed(format!("cannot read {path}: {error}")))? {
            None => Ok(()),
            Some(offset) => Err(EngineError::Refused {
                reason: "not-empty",
                text: format!(
                    "{path} holds data (at byte {offset}) that would be the content of a new, empty volume: `tidemark volume adopt` \
                     keeps it, `blkdiscard -z {path}` ends it"
                ),
            }),
        }
    }
}

impl MadeFile {
    pub fn remove(self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the base of a volume that was not made stays");
        }
    }
}

/// Where within the first `size` bytes something else than zeros begins, to the chunk.
fn first_data(path: &Path, size: u64) -> io::Result<Option<u64>> {
    let mut file = File::open(path)?;
    let mut chunk = vec![0; CHUNK];
    let (mut at, mut forgotten) = (0, 0);
    while at < size {
        let len = (size - at).min(CHUNK as u64) as usize;
        file.read_exact(&mut chunk[..len])?;
        if let Some(i) = chunk[..len].iter().position(|byte| *byte != 0) {
            return Ok(Some(at + i as u64));
        }
        at += len as u64;
        if at - forgotten >= FORGET || at == size {
            // Only politeness towards what else the page cache holds.
            let _ = posix_fadvise(
                &file,
                forgotten as i64,
                (at - forgotten) as i64,
                PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            );
            forgotten = at;
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(dir: &tempfile::TempDir, size: u64) -> EmptyBase {
        EmptyBase { path: dir.path().join("base"), size }
    }

    #[test]
    fn a_file_that_is_not_there_is_made_and_one_that_is_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = base(&dir, 4096);
        let made = base.prepare().unwrap().expect("a file was made");
        assert_eq!(std::fs::metadata(&base.path).unwrap().len(), 4096);
        let Err(EngineError::Exists(text)) = base.prepare() else { panic!("taken silently") };
        assert!(text.contains("adopt"), "{text}");
        made.remove();
        assert!(!base.path.exists());
    }

    #[test]
    fn a_directory_or_a_place_without_one_is_refused_by_the_field() {
        let dir = tempfile::tempdir().unwrap();
        let base = base(&dir, 4096);
        let missing = EmptyBase { path: base.path.join("below"), size: 4096 };
        assert!(matches!(missing.prepare(), Err(EngineError::Invalid { field: "basePath", .. })));
        std::fs::create_dir(&base.path).unwrap();
        assert!(matches!(base.prepare(), Err(EngineError::Invalid { field: "basePath", .. })));
    }

    #[test]
    fn the_first_byte_of_data_is_found_wherever_it_is_and_beyond_the_volume_it_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        let size = 3 * CHUNK as u64 + 512;
        for at in [0, CHUNK as u64 - 1, CHUNK as u64, size - 1] {
            let file = File::create(&path).unwrap();
            file.set_len(size + 4096).unwrap();
            assert_eq!(first_data(&path, size).unwrap(), None);
            std::os::unix::fs::FileExt::write_at(&file, &[1], at).unwrap();
            assert_eq!(first_data(&path, size).unwrap(), Some(at));
            assert_eq!(first_data(&path, at).unwrap(), None, "data at {at}");
        }
    }
}
