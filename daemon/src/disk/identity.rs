//! A name for the device or file under a base image, so that another one at the same path is noticed.
//!
//! For a block device: the strongest identity that the kernel knows, else its number. For a file: its inode, with its birth
//! where the file system records one, and the file system's id where that does not depend on the order of mounting. The
//! name is compared as a whole and never parsed.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{self, EXT4_SUPER_MAGIC, FsType};
use nix::sys::statvfs;
use nix::unistd::{Whence, lseek64};

use super::Error;

/// btrfs derives its id from its UUID; the constant is missing from some C libraries.
const BTRFS_SUPER_MAGIC: i64 = 0x9123_683e;

/// What a base image is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseInfo {
    /// Size in bytes, a multiple of 512, above zero.
    pub size: u64,
    /// Names the device or file; equal as long as it is the same one.
    pub identity: String,
    /// True for a block device.
    pub is_device: bool,
}

/// Looks at a file or device that may become a base image, without claiming it.
pub fn probe_base(path: &Path) -> Result<BaseInfo, Error> {
    let kind = fs::metadata(path).map_err(Error::io("look at", path))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::NotABase { path: path.to_owned() }); // before the open: opening a FIFO would wait
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    describe(&file, path)
}

/// What the open `file` is.
pub(super) fn describe(file: &File, path: &Path) -> Result<BaseInfo, Error> {
    let metadata = file.metadata().map_err(Error::io("look at", path))?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::NotABase { path: path.to_owned() });
    }
    let size = size_of(file, path)?;
    if size == 0 || !size.is_multiple_of(512) {
        return Err(Error::Size { path: path.to_owned(), size });
    }
    let is_device = kind.is_block_device();
    let identity = if is_device { device_identity(metadata.rdev()) } else { file_identity(file, &metadata) };
    Ok(BaseInfo { size, identity, is_device })
}

/// Size of a file or device in bytes.
pub(super) fn size_of(file: &File, path: &Path) -> Result<u64, Error> {
    let end = lseek64(file, 0, Whence::SeekEnd).map_err(Error::io("measure", path))?;
    Ok(end.unsigned_abs())
}

fn file_identity(file: &File, metadata: &Metadata) -> String {
    let mut identity = format!("inode:{}", metadata.ino());
    if let Some(born) = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok()) {
        identity.push_str(&format!("+born:{}", born.as_nanos()));
    }
    if let Some(id) = stable_fs_id(file) {
        identity.push_str(&format!("+fs:{id}"));
    }
    identity
}

/// The file system's id where it comes from its UUID. Others make it from the device's number, which a reboot may change.
fn stable_fs_id(file: &File) -> Option<String> {
    let kind = statfs::fstatfs(file).ok()?.filesystem_type();
    let from_uuid = [EXT4_SUPER_MAGIC, FsType(BTRFS_SUPER_MAGIC as _)].contains(&kind);
    let id = statvfs::fstatvfs(file).ok()?.filesystem_id();
    from_uuid.then(|| format!("{id:016x}"))
}

fn device_identity(rdev: u64) -> String {
    let number = format!("{}:{}", major(rdev), minor(rdev));
    let sys = PathBuf::from("/sys/dev/block").join(&number);
    strong_identity(&sys).unwrap_or_else(|| format!("devno:{number}"))
}

fn strong_identity(sys: &Path) -> Option<String> {
    if let Some(partition) = attribute(&sys.join("partition")) {
        let disk = fs::canonicalize(sys).ok()?;
        return Some(format!("{}+part:{partition}", strong_identity(disk.parent()?)?));
    }
    const KNOWN: [(&str, &str); 7] = [
        ("dm/uuid", "dm"),
        ("md/uuid", "md"),
        ("wwid", "wwid"),
        ("device/wwid", "wwid"),
        ("serial", "serial"),
        ("device/serial", "serial"),
        ("loop/backing_file", "loop"),
    ];
    KNOWN.iter().find_map(|(file, name)| Some(format!("{name}:{}", attribute(&sys.join(file))?)))
}

/// A sysfs attribute, if it says anything.
fn attribute(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
