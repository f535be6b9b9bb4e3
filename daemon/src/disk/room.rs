//! Room on a file system that the log shares with a sparse base image.
//!
//! A log gives its space back only by moving its content into the base. Where that is a sparse file on the same file system,
//! the log must not take what the base will need for it: neither could go on then.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sys::statvfs::fstatvfs;

/// Fails with ENOSPC when one more slot of `len` bytes in `dir` would leave the bases too little. `slots`: how many there are then.
pub(super) fn leave_for_bases<'a>(
    bases: impl IntoIterator<Item = &'a File>,
    dir: &File,
    slots: u64,
    len: u64,
) -> io::Result<()> {
    let home = dir.metadata()?;
    let (mut shares, mut holes) = (false, 0u64);
    for base in bases {
        let image = base.metadata()?;
        if image.file_type().is_file() && image.dev() == home.dev() {
            shares = true;
            holes = holes.saturating_add(image.size().saturating_sub(image.blocks().saturating_mul(512)));
        }
    }
    if !shares {
        return Ok(());
    }
    let stat = fstatvfs(dir)?;
    let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    if fits(free, slots, len, holes) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) }
}

/// The base needs no more than all that the log can hold, and no more than it has holes.
fn fits(free: u64, slots: u64, len: u64, holes: u64) -> bool {
    let needed = holes.min(slots.saturating_mul(len));
    free >= len.saturating_add(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_log_leaves_a_sparse_base_room_for_all_that_it_holds() {
        // The third slot of 32 MiB: itself, and three times as much for the base.
        assert!(fits(128 * MIB, 3, 32 * MIB, u64::MAX));
        assert!(!fits(128 * MIB - 1, 3, 32 * MIB, u64::MAX));
    }

    #[test]
    fn a_base_without_holes_needs_nothing() {
        assert!(fits(32 * MIB, 100, 32 * MIB, 0));
        assert!(!fits(32 * MIB - 1, 1, 32 * MIB, 0));
        assert!(fits(33 * MIB, 100, 32 * MIB, MIB), "no more than its holes");
    }

    #[test]
    fn a_base_on_another_file_system_is_no_concern() {
        let null = File::open("/dev/null").unwrap();
        let dir = File::open(std::env::temp_dir()).unwrap();
        leave_for_bases([&null], &dir, 1, u64::MAX / 4).unwrap();
        let image = tempfile::tempfile_in(std::env::temp_dir()).unwrap();
        image.set_len(1 << 40).unwrap();
        let refused = leave_for_bases([&image], &dir, 1 << 20, 1 << 20).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    }
}
