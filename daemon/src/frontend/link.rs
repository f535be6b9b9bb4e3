//! The stable name of a device: a link that changes in one step and is removed only by who it belongs to.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Makes `link` point to `device`, replacing an older link but nothing else.
pub(super) fn place(link: &Path, device: &Path) -> io::Result<()> {
    if let Some(dir) = link.parent() {
        fs::create_dir_all(dir)?;
    }
    if fs::symlink_metadata(link).is_ok_and(|existing| !existing.is_symlink()) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let fresh = beside(link);
    ignore_missing(fs::remove_file(&fresh))?;
    symlink(device, &fresh)?;
    fs::rename(&fresh, link)
}

/// Removes `link` when it points to `device`.
pub(super) fn remove(link: &Path, device: &Path) -> io::Result<()> {
    match fs::read_link(link) {
        Ok(target) if target == device => ignore_missing(fs::remove_file(link)),
        _ => Ok(()),
    }
}

fn beside(link: &Path) -> PathBuf {
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    link.with_file_name(format!(".{name}.new"))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_replaced_and_removed_only_by_its_owner() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let link = dir.path().join("deep/volume");
        place(&link, Path::new("/dev/loop1")).expect("first");
        place(&link, Path::new("/dev/loop2")).expect("second");
        remove(&link, Path::new("/dev/loop1")).expect("not ours");
        assert_eq!(fs::read_link(&link).expect("still there"), Path::new("/dev/loop2"));
        remove(&link, Path::new("/dev/loop2")).expect("ours");
        assert!(fs::symlink_metadata(&link).is_err());
    }

    #[test]
    fn what_is_not_a_link_is_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("volume");
        fs::write(&file, "precious").expect("file");
        assert!(place(&file, Path::new("/dev/loop1")).is_err());
        assert_eq!(fs::read(&file).expect("kept"), b"precious");
    }
}
