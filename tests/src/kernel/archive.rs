//! The initial file system of a virtual machine: a "newc" cpio archive, written as the kernel reads it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

/// An archive under construction.
pub(super) struct Archive {
    out: BufWriter<File>,
    directories: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
    number: u32,
}

impl Archive {
    pub fn create(path: &Path) -> Result<Self> {
        let out = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { out: BufWriter::new(out), directories: BTreeSet::new(), files: BTreeSet::new(), number: 0 })
    }

    /// Adds a directory and those above it.
    pub fn directory(&mut self, path: &Path) -> Result<()> {
        if path.parent().is_none() || !self.directories.insert(path.to_owned()) {
            return Ok(());
        }
        self.directory(path.parent().unwrap_or(Path::new("/")))?;
        Ok(self.entry(path, DIRECTORY, &[])?)
    }

    /// Adds a file with this content.
    pub fn file(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        if !self.files.insert(path.to_owned()) {
            return Ok(());
        }
        self.directory(path.parent().unwrap_or(Path::new("/")))?;
        Ok(self.entry(path, FILE | mode, content)?)
    }

    /// Adds a copy of the file `from`.
    pub fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let read = || Ok::<_, io::Error>((fs::read(from)?, fs::metadata(from)?.permissions().mode() & 0o777));
        let (content, mode) = read().with_context(|| format!("cannot read {}", from.display()))?;
        self.file(to, mode, &content)
    }

    /// Adds everything below the directory `from`.
    pub fn tree(&mut self, from: &Path, to: &Path) -> Result<()> {
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.metadata()?.is_dir() {
                self.tree(&entry.path(), &target)?
            } else {
                self.copy(&entry.path(), &target)?
            }
        }
        Ok(())
    }

    /// Adds a program, where it is here unless `to` says otherwise, with the libraries that it loads.
    pub fn program(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.copy(from, to)?;
        let said = process::checked(Command::new("ldd").arg(from))?;
        for library in said.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new) {
            self.copy(library, library)?;
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<()> {
        self.entry(Path::new("TRAILER!!!"), 0, &[])?;
        Ok(self.out.flush()?)
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        self.number += 1;
        let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
        let (number, len, name_len) = (self.number, content.len() as u32, name.len() as u32 + 1);
        // Inode, mode, owner, group, links, time, size, device twice over, length of the name, checksum.
        write!(self.out, "070701")?;
        for field in [number, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0] {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(name)?;
        self.pad(110 + name.len(), 1)?;
        self.out.write_all(content)?;
        self.pad(content.len(), 0)
    }

    /// Zeros behind `len` bytes, `least` of them, up to a multiple of four.
    fn pad(&mut self, len: usize, least: usize) -> io::Result<()> {
        let zeros = (len + least).next_multiple_of(4) - len;
        self.out.write_all(&[0; 4][..zeros])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_made_of_entries_that_begin_at_multiples_of_four() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("archive");
        let mut archive = Archive::create(&path)?;
        archive.file(Path::new("/etc/motd"), 0o644, b"hello")?;
        archive.finish()?;
        let bytes = fs::read(&path)?;
        let begins = |at: usize| bytes[at..].starts_with(b"070701");
        assert!(begins(0) && begins(116) && bytes.len().is_multiple_of(4));
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 3, "a directory, a file, the end: {text}");
        assert!(text.contains("etc/motd\0") && text.contains("hello\0\0\0") && text.contains("TRAILER!!!"));
        Ok(())
    }
}
