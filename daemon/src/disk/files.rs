//! The files of one volume: made, opened, listed, grown, given back.
//!
//! Nothing here looks inside a file. A volume's directory appears and disappears by one rename, so a crash leaves a whole
//! volume or none. Descriptors of log slots are opened when first used and kept, up to [`OPEN_SLOTS_MAX`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tidemark_core::event::{FileRef, Slot};
use tidemark_core::types::{ByteRange, VolumeId};

use super::Error;
use super::buffer::Pool;
use super::data_file::{DataFile, Mode};
use super::home::{self, Access, Home, numbered};
use super::identity::{BaseInfo, describe, probe_base, size_of};
use super::log_place::{self, NewLog};
use crate::crashsafe;

/// Descriptors of log slots kept open per volume; the least recently used is closed.
pub const OPEN_SLOTS_MAX: usize = 64;
/// The most bytes of a file that is read whole (superblock, configuration).
pub const WHOLE_MAX_BYTES: u64 = 4 << 20;
/// Suffix of a directory whose volume was removed.
const REMOVED: &str = ".gone";

/// How files are opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileOptions {
    /// Accept the page cache where the file system has no direct I/O (tmpfs). For tests: a completed write is then not even
    /// with the device.
    pub allow_buffered: bool,
}

/// Where the base image of a new volume comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NewBase {
    /// A sparse file beside the log.
    Image {
        /// Bytes, a multiple of 512.
        size: u64,
    },
    /// An existing device or file, left where it is.
    Adopt {
        /// Its path; for a device best one that survives a reboot.
        path: PathBuf,
    },
}

/// First content of a new volume's files.
#[derive(Clone, Debug)]
pub struct NewFiles {
    /// The whole superblock file.
    pub superblock: Bytes,
    /// The whole configuration file.
    pub config: Bytes,
    /// Files of the caller's own, by name: they are there whenever the volume is.
    pub others: Vec<(&'static str, Bytes)>,
    /// Where the log goes; none: into the volume's directory.
    pub log: Option<NewLog>,
}

/// An open log slot and when it was last used, in lookups.
type CachedSlot = (Arc<DataFile>, u64);

/// The open files of a volume. Used on one thread at a time; dropping it closes the volume.
#[derive(Debug)]
pub struct VolumeFiles {
    home: Arc<Home>,
    base: Arc<DataFile>,
    info: BaseInfo,
    base_size: Cell<u64>,
    superblock: Arc<DataFile>,
    config: Arc<DataFile>,
    slots: RefCell<HashMap<Slot, CachedSlot>>,
    lookups: Cell<u64>,
}

impl VolumeFiles {
    /// Makes the directory `dir` of a new volume, durably and whole, and opens it.
    ///
    /// # Errors
    /// [`Error::Exists`] when `dir` is there, [`Error::InUse`] when the adopted base is claimed, else what failed; a failure
    /// leaves nothing under the name `dir`.
    pub fn create(dir: &Path, base: &NewBase, new: &NewFiles, options: FileOptions) -> Result<Self, Error> {
        if dir.exists() {
            return Err(Error::Exists { path: dir.to_owned() });
        }
        let unfinished = crashsafe::unfinished(dir);
        discard(&unfinished)?;
        let made = furnish(&unfinished, base, new)
            .and_then(|()| Home::lock(&unfinished, Access::Serve, options.allow_buffered))
            .and_then(Self::open_files) // proves that the base can be claimed before the volume exists
            .map(drop)
            .and_then(|()| publish(&unfinished, dir));
        if made.is_err() {
            let _ = discard(&unfinished); // the first error is the one to report
        }
        made.and_then(|()| Self::open(dir, options))
    }

    /// Opens a volume for service: excludes every other opener, claims the base and sweeps what a crash left unfinished.
    pub fn open(dir: &Path, options: FileOptions) -> Result<Self, Error> {
        let home = Home::lock(dir, Access::Serve, options.allow_buffered)?;
        for dir in [home.log_dir(), home.branch_dir()] {
            crashsafe::sweep(&dir).map_err(Error::io("clear", &dir))?;
        }
        Self::open_files(home)
    }

    /// Opens a volume that no agent serves, for reading only.
    pub fn inspect(dir: &Path, options: FileOptions) -> Result<Self, Error> {
        Self::open_files(Home::lock(dir, Access::Inspect, options.allow_buffered)?)
    }

    fn open_files(home: Arc<Home>) -> Result<Self, Error> {
        if let Some(probe) = log_place::probe(home.dir()) {
            DataFile::open(&home, probe, Mode::Direct)?; // a device that cannot do it is refused before it holds anything
        }
        let superblock = open_part(&home, FileRef::Superblock, home::SUPERBLOCK)?;
        let config = open_part(&home, FileRef::Config, home::CONFIG)?;
        let (base, info) = open_base(&home)?;
        Ok(Self {
            base: Arc::new(base),
            base_size: Cell::new(info.size),
            info,
            superblock: Arc::new(superblock),
            config: Arc::new(config),
            slots: RefCell::default(),
            lookups: Cell::new(0),
            home,
        })
    }

    /// The volume's directory.
    pub fn dir(&self) -> &Path {
        self.home.dir()
    }

    /// Size of the base image in bytes.
    pub fn base_size(&self) -> u64 {
        self.base_size.get()
    }

    /// What identifies the device or file under the base.
    pub fn base_identity(&self) -> &str {
        &self.info.identity
    }

    /// True when the base is a block device.
    pub fn base_is_device(&self) -> bool {
        self.info.is_device
    }

    /// Where the base is, links resolved.
    pub fn base_path(&self) -> PathBuf {
        fs::canonicalize(self.base.path()).unwrap_or_else(|_| self.base.path().to_owned())
    }

    /// True when completed writes are on the devices, not in the page cache.
    pub fn is_direct(&self) -> bool {
        self.base.is_direct() && self.superblock.is_direct()
    }

    /// The superblock's file, whole.
    pub fn superblock(&self) -> Result<Bytes, Error> {
        read_whole(self.superblock.path())
    }

    /// The configuration's file, whole.
    pub fn config(&self) -> Result<Bytes, Error> {
        read_whole(self.config.path())
    }

    /// Log slots and their lengths in bytes, ascending.
    pub fn slots(&self) -> Result<Vec<(Slot, u64)>, Error> {
        Ok(list(&self.home.log_dir(), "slot-", ".seg")?.into_iter().map(|(slot, len)| (Slot(slot), len)).collect())
    }

    /// Footers and their lengths in bytes, ascending.
    pub fn footers(&self) -> Result<Vec<(Slot, u64)>, Error> {
        Ok(list(&self.home.log_dir(), "footer-", "")?.into_iter().map(|(slot, len)| (Slot(slot), len)).collect())
    }

    /// Sealed suffixes by number and their lengths in bytes, ascending.
    pub fn branches(&self) -> Result<Vec<(u32, u64)>, Error> {
        list(&self.home.branch_dir(), "branch-", "")
    }

    /// Reads on the calling thread: for inspection, not for service.
    pub fn read_at(&self, file: FileRef, offset: u64, len: usize) -> Result<Bytes, Error> {
        let mut buf = Pool::new().take(len);
        self.file(file)?.read_exact_at(&mut buf, offset)?;
        Ok(buf.freeze())
    }

    /// Which parts of the range of the base may hold data. Answers from the file system's memory of its extents; meant for
    /// allocation queries, not for the data path.
    pub fn data_ranges(&self, range: ByteRange) -> Result<Vec<ByteRange>, Error> {
        super::blocking::map(&self.base, range)
    }

    /// Makes the base at least `size` bytes large; returns its size. A device must have been enlarged before.
    ///
    /// # Errors
    /// [`Error::Resize`] when the device is too small; [`Error::Size`] when `size` is no multiple of 512.
    pub fn grow_base(&self, size: u64) -> Result<u64, Error> {
        let path = self.base.path();
        if !size.is_multiple_of(512) {
            return Err(Error::Size { path: path.to_owned(), size });
        }
        if size <= self.base_size() {
            return Ok(self.base_size());
        }
        let now = size_of(self.base.file(), path)?;
        if self.info.is_device && size > now {
            return Err(Error::Resize { path: path.to_owned(), size: now, wanted: size });
        }
        if size > now {
            self.base.file().set_len(size).map_err(Error::io("enlarge", path))?;
            self.base.sync_all()?;
        }
        self.base_size.set(size.max(now));
        Ok(self.base_size())
    }

    /// Closes the volume. The locks go with the last operation in flight, not before.
    pub fn close(self) {}

    /// The open file for an operation.
    pub(super) fn file(&self, file: FileRef) -> Result<Arc<DataFile>, Error> {
        match file {
            FileRef::Base => Ok(Arc::clone(&self.base)),
            FileRef::Superblock => Ok(Arc::clone(&self.superblock)),
            FileRef::Config => Ok(Arc::clone(&self.config)),
            FileRef::Log(slot) => self.slot(slot),
            // Replaced whole under its name: an open descriptor would go on showing the old content.
            FileRef::Footer(_) | FileRef::Branch(_) => self.open_new(file, Mode::Buffered),
        }
    }

    /// Forgets the descriptor of a slot that is made anew or removed.
    pub(super) fn forget_slot(&self, slot: Slot) {
        self.slots.borrow_mut().remove(&slot);
    }

    pub(super) fn home(&self) -> &Arc<Home> {
        &self.home
    }

    fn slot(&self, slot: Slot) -> Result<Arc<DataFile>, Error> {
        let now = self.lookups.get() + 1;
        self.lookups.set(now);
        let mut slots = self.slots.borrow_mut();
        if let Some((file, used)) = slots.get_mut(&slot) {
            *used = now;
            return Ok(Arc::clone(file));
        }
        let file = self.open_new(FileRef::Log(slot), Mode::Direct)?;
        if slots.len() >= OPEN_SLOTS_MAX {
            evict(&mut slots);
        }
        slots.insert(slot, (Arc::clone(&file), now));
        Ok(file)
    }

    fn open_new(&self, file: FileRef, mode: Mode) -> Result<Arc<DataFile>, Error> {
        DataFile::open(&self.home, self.home.path(file), mode).map(Arc::new)
    }
}

fn evict(slots: &mut HashMap<Slot, CachedSlot>) {
    let oldest = slots.iter().min_by_key(|(_, (_, used))| *used).map(|(slot, _)| *slot);
    if let Some(slot) = oldest {
        slots.remove(&slot);
    }
}

/// The volumes in a pool, ascending. Directories of other names are not volumes; what a crash left half made or half removed
/// is swept away.
///
/// # Errors
/// When the pool cannot be listed, or a leftover cannot be removed.
pub fn volumes_in(pool: &Path) -> Result<Vec<(VolumeId, PathBuf)>, Error> {
    let mut volumes = Vec::new();
    for entry in fs::read_dir(pool).map_err(Error::io("list", pool))? {
        let path = entry.map_err(Error::io("list", pool))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let leftover = [crashsafe::UNFINISHED, REMOVED].iter().find_map(|suffix| name.strip_suffix(suffix));
        match (VolumeId::parse(name), leftover.and_then(VolumeId::parse)) {
            (Some(id), _) if path.is_dir() => volumes.push((id, path)),
            (_, Some(_)) => discard(&path)?,
            _ => {}
        }
    }
    volumes.sort();
    Ok(volumes)
}

/// True when nobody has the volume in `dir` open any more, or it is not there.
pub fn is_free(dir: &Path) -> bool {
    !matches!(Home::lock_dir(dir, Access::Serve), Err(Error::InUse { .. }))
}

/// Where the base of the volume in `dir` is: its own image, or what its link says.
pub fn base_path(dir: &Path) -> PathBuf {
    let named = home::base_in(dir);
    fs::read_link(&named).unwrap_or(named)
}

/// Removes the files of the volume in `dir`, an image of its own included; an adopted base stays untouched. A crash leaves the
/// whole volume, or what [`volumes_in`] sweeps.
///
/// # Errors
/// [`Error::InUse`] when somebody serves it, else what failed.
pub fn remove_volume(dir: &Path) -> Result<(), Error> {
    let lock = Home::lock_dir(dir, Access::Serve)?;
    let gone = crashsafe::with_suffix(dir, REMOVED);
    discard(&gone)?;
    publish(dir, &gone)?;
    drop(lock);
    discard(&gone)?;
    crashsafe::sync_parent(dir).map_err(Error::io("sync the directory of", dir))
}

/// Removes the files of the volume in `dir` but keeps the base, and returns where it is: an adopted one where it always was,
/// an image of its own as `kept`, which is in the same pool.
///
/// # Errors
/// [`Error::Exists`] when `kept` is there, [`Error::InUse`] when somebody serves the volume, else what failed.
pub fn release_volume(dir: &Path, kept: &Path) -> Result<PathBuf, Error> {
    let base = base_path(dir);
    if !dir.join(home::BASE_IMAGE).exists() {
        return remove_volume(dir).map(|()| base);
    }
    if kept.exists() {
        return Err(Error::Exists { path: kept.to_owned() });
    }
    drop(Home::lock_dir(dir, Access::Serve)?);
    // The image must not go with its directory when the power fails in between.
    crashsafe::rename(&base, kept).map_err(Error::io("keep the base image as", kept))?;
    remove_volume(dir).map(|()| kept.to_owned())
}

/// Fills a directory that is not yet a volume, durably.
fn furnish(dir: &Path, base: &NewBase, new: &NewFiles) -> Result<(), Error> {
    let own_log = new.log.is_none().then(|| dir.join(home::LOG));
    for sub in [dir.to_owned(), dir.join(home::BRANCH)].into_iter().chain(own_log) {
        fs::DirBuilder::new().mode(0o700).create(&sub).map_err(Error::io("create", &sub))?;
    }
    if let Some(log) = &new.log {
        log_place::make(dir, log)?;
    }
    let own = [(home::SUPERBLOCK, &new.superblock), (home::CONFIG, &new.config)];
    for (name, content) in own.into_iter().chain(new.others.iter().map(|(name, content)| (*name, content))) {
        let path = dir.join(name);
        crashsafe::replace(&path, &[content]).map_err(Error::io("write", &path))?;
    }
    match base {
        NewBase::Image { size } => create_image(&dir.join(home::BASE_IMAGE), *size)?,
        NewBase::Adopt { path } => link_base(&dir.join(home::BASE_LINK), path)?,
    }
    crashsafe::sync_dir(dir).map_err(Error::io("sync the directory", dir))
}

/// Gives what is finished its final name.
fn publish(from: &Path, to: &Path) -> Result<(), Error> {
    crashsafe::publish(from, to).map_err(Error::io("rename a new file to", to))
}

fn create_image(path: &Path, size: u64) -> Result<(), Error> {
    if size == 0 || !size.is_multiple_of(512) {
        return Err(Error::Size { path: path.to_owned(), size });
    }
    let create = || {
        let file = File::create_new(path)?;
        file.set_len(size)?;
        file.sync_all()
    };
    create().map_err(Error::io("create the base image", path))
}

/// The link keeps the given path as it is, if absolute: a name under `/dev/disk/by-id` outlives the device's number.
fn link_base(link: &Path, target: &Path) -> Result<(), Error> {
    probe_base(target)?;
    let target = std::path::absolute(target).map_err(Error::io("resolve", target))?;
    symlink(&target, link).map_err(Error::io("link the base image to", link))
}

fn open_part(home: &Arc<Home>, file: FileRef, missing: &'static str) -> Result<DataFile, Error> {
    DataFile::open(home, home.path(file), Mode::Direct).map_err(|error| not_a_volume(error, home, missing))
}

fn open_base(home: &Arc<Home>) -> Result<(DataFile, BaseInfo), Error> {
    let path = home.path(FileRef::Base);
    let kind = fs::metadata(&path).map_err(Error::io("look at the base image", &path));
    let kind = kind.map_err(|error| not_a_volume(error, home, "the base image"))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::NotABase { path });
    }
    let base = DataFile::open(home, path, Mode::Base { is_device: kind.is_block_device() })?;
    let info = describe(base.file(), base.path())?;
    Ok((base, info))
}

fn not_a_volume(error: Error, home: &Home, missing: &'static str) -> Error {
    match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::NotAVolume { dir: home.dir().to_owned(), missing }
        }
        other => other,
    }
}

fn read_whole(path: &Path) -> Result<Bytes, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut content = Vec::new();
    file.take(WHOLE_MAX_BYTES + 1).read_to_end(&mut content).map_err(Error::io("read", path))?;
    let size = content.len() as u64;
    if size > WHOLE_MAX_BYTES {
        return Err(Error::TooLarge { path: path.to_owned(), size, limit: WHOLE_MAX_BYTES });
    }
    Ok(content.into())
}

/// Numbers and lengths of the files named `<prefix><number><suffix>`, ascending.
fn list(dir: &Path, prefix: &str, suffix: &str) -> Result<Vec<(u32, u64)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let Some(number) = entry.file_name().to_str().and_then(|name| numbered(name, prefix, suffix)) else { continue };
        let len = entry.metadata().map_err(Error::io("look at", &entry.path()))?.len();
        found.push((number, len));
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes a volume's directory, finished or not, with its log wherever that is.
fn discard(dir: &Path) -> Result<(), Error> {
    log_place::remove(dir)?;
    remove_tree(dir)
}

/// Removes a directory with all in it; one that is not there is success.
fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
