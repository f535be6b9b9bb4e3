//! Changes of files, as bad disks and busy people make them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::dice::Dice;

/// One change of one file, by its path in the directory of the case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Damage {
    /// Bits of one byte turn over.
    Flip {
        /// Which file.
        file: String,
        /// Where.
        at: u64,
    },
    /// The same byte of both slots of a twin file.
    FlipBoth {
        /// Which file.
        file: String,
        /// Where in each half.
        at: u64,
    },
    /// A range becomes zeros.
    Zero {
        /// Which file.
        file: String,
        /// Where.
        at: u64,
        /// How many bytes.
        len: u64,
    },
    /// The file ends early.
    Truncate {
        /// Which file.
        file: String,
        /// Its new length.
        len: u64,
    },
    /// The file, or the directory with all in it, is gone.
    Remove {
        /// Which file.
        file: String,
    },
    /// Two files change places.
    Swap {
        /// One.
        one: String,
        /// The other.
        other: String,
    },
    /// Another file of the same size and with other content is in its place.
    Replace {
        /// Which file.
        file: String,
    },
    /// Somebody wrote to it without asking.
    Scribble {
        /// Which file.
        file: String,
        /// Where.
        at: u64,
        /// How many bytes.
        len: u64,
    },
}

impl Damage {
    /// Does it to the files in `dir`.
    ///
    /// # Errors
    /// When a file is not there.
    pub fn inflict(&self, dir: &Path) -> Result<()> {
        let open = |file: &str| {
            let path = dir.join(file);
            OpenOptions::new().read(true).write(true).open(&path).with_context(|| path.display().to_string())
        };
        match self {
            Self::Flip { file, at } => flip(&open(file)?, *at)?,
            Self::FlipBoth { file, at } => {
                let file = open(file)?;
                let half = file.metadata()?.len() / 2;
                flip(&file, *at)?;
                flip(&file, half + *at)?;
            }
            Self::Zero { file, at, len } => open(file)?.write_all_at(&vec![0; *len as usize], *at)?,
            Self::Truncate { file, len } => open(file)?.set_len(*len)?,
            Self::Remove { file } if dir.join(file).is_dir() => fs::remove_dir_all(dir.join(file))?,
            Self::Remove { file } => fs::remove_file(dir.join(file))?,
            Self::Swap { one, other } => swap(&dir.join(one), &dir.join(other))?,
            Self::Replace { file } => replace(&dir.join(file))?,
            Self::Scribble { file, at, len } => open(file)?.write_all_at(&noise(*len as usize), *at)?,
        }
        Ok(())
    }
}

fn flip(file: &File, at: u64) -> Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 0x5a], at)?)
}

fn swap(one: &Path, other: &Path) -> Result<()> {
    let aside = one.with_extension("aside");
    fs::rename(one, &aside)?;
    fs::rename(other, one)?;
    Ok(fs::rename(&aside, other)?)
}

fn replace(path: &Path) -> Result<()> {
    let len = fs::metadata(path)?.len();
    fs::remove_file(path)?;
    Ok(fs::write(path, noise(len as usize))?)
}

fn noise(len: usize) -> Vec<u8> {
    let mut dice = Dice::new(len as u64);
    (0..len.div_ceil(8)).flat_map(|_| dice.number().to_le_bytes()).take(len).collect()
}
