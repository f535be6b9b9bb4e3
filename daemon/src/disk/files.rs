//! The files of one volume: made, opened, listed, grown, given back.
//!
//! Nothing here looks inside a file. A volume's directory appears and disappears by one rename, so a crash leaves a whole
//! volume or none. Descriptors of log slots are opened when first used and kept, up to [`OPEN_SLOTS_MAX`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tidemark_core::event::{FileRef, Slot};
use tidemark_core::layout::Layout;
use tidemark_core::types::{ByteRange, VolumeId};

use super::Error;
use super::bases::{Bases, Piece};
use super::buffer::Pool;
use super::composition;
use super::data_file::{DataFile, Mode};
use super::home::{self, Access, Home, numbered};
use super::identity::BaseInfo;
use super::log_place::{self, NewLog};
use crate::crashsafe;

/// Descriptors of log slots kept open per volume; the least recently used is closed.
pub const OPEN_SLOTS_MAX: usize = 64;
/// The most bytes of a file that is read whole (superblock, configuration).
pub const WHOLE_MAX_BYTES: u64 = 4 << 20;
/// The most bytes of a footer: one bit for each block of 8 TiB. What changed of more is sent as a whole after a restart.
pub const FOOTER_MAX_BYTES: u64 = 256 << 20;
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
    /// A sparse file beside the log for each volume of a layout.
    Images {
        /// The volume that the copy is named after.
        own: VolumeId,
        /// What the base is to hold.
        layout: Layout,
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
    bases: RefCell<Bases>,
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
        let bases = composition::open(&home)?;
        Ok(Self {
            bases: RefCell::new(bases),
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

    /// Size of the base in bytes: of its volumes' bases together.
    pub fn base_size(&self) -> u64 {
        self.bases.borrow().size()
    }

    /// What the devices or files under the base are, in the order of their volumes.
    pub fn base_infos(&self) -> Vec<BaseInfo> {
        self.bases.borrow().all().iter().map(|base| base.info.clone()).collect()
    }

    /// Where the bases are, links resolved.
    pub fn base_paths(&self) -> Vec<PathBuf> {
        let bases = self.bases.borrow();
        bases.all().iter().map(|base| resolved(base.file.path())).collect()
    }

    /// True when completed writes are on the devices, not in the page cache.
    pub fn is_direct(&self) -> bool {
        self.superblock.is_direct() && self.bases.borrow().all().iter().all(|base| base.file.is_direct())
    }

    /// The superblock's file, whole.
    pub fn superblock(&self) -> Result<Bytes, Error> {
        read_whole(self.superblock.path(), WHOLE_MAX_BYTES)
    }

    /// The configuration's file, whole.
    pub fn config(&self) -> Result<Bytes, Error> {
        read_whole(self.config.path(), WHOLE_MAX_BYTES)
    }

    /// Log slots and their lengths in bytes, ascending.
    pub fn slots(&self) -> Result<Vec<(Slot, u64)>, Error> {
        Ok(list(&self.home.log_dir(), "slot-", ".seg")?.into_iter().map(|(slot, len)| (Slot(slot), len)).collect())
    }

    /// Footers, whole, by number. One that does not read is left out: what it says is then not known.
    pub fn footers(&self) -> Result<Vec<(u32, Bytes)>, Error> {
        let found = list(&self.home.log_dir(), "footer-", "")?;
        let whole = |number| read_whole(&self.home.path(FileRef::Footer(number)), FOOTER_MAX_BYTES);
        let read = |(number, _)| Some((number, whole(number).ok()?));
        Ok(found.into_iter().filter_map(read).collect())
    }

    /// Sealed suffixes by number and their lengths in bytes, ascending.
    pub fn branches(&self) -> Result<Vec<(u32, u64)>, Error> {
        list(&self.home.branch_dir(), "branch-", "")
    }

    /// Reads on the calling thread: for inspection, not for service.
    pub fn read_at(&self, file: FileRef, offset: u64, len: usize) -> Result<Bytes, Error> {
        let mut buf = Pool::new().take_zeroed(len);
        let pieces = match file {
            FileRef::Base => self.base_pieces(ByteRange::new(offset, len as u64))?,
            other => vec![Piece { from: offset, len: len as u64, place: Some((self.file(other)?, offset)) }],
        };
        for piece in &pieces {
            let Some((file, range)) = piece.in_file() else { continue };
            if range.len == len as u64 {
                file.read_exact_at(&mut buf, range.offset)?;
            } else {
                let mut part = Pool::new().take(range.len as usize);
                file.read_exact_at(&mut part, range.offset)?;
                buf[(piece.from - offset) as usize..][..part.len()].copy_from_slice(&part);
            }
        }
        Ok(buf.freeze())
    }

    /// Which parts of the range of the base may hold data. Answers from the file system's memory of its extents; meant for
    /// allocation queries, not for the data path.
    pub fn data_ranges(&self, range: ByteRange) -> Result<Vec<ByteRange>, Error> {
        super::blocking::map_pieces(&self.base_pieces(range)?)
    }

    /// Makes room for `layout`: bases of volumes that are new are made or, where the agent laid one ready, taken; others grow. A device
    /// must have been enlarged before.
    ///
    /// # Errors
    /// [`Error::Resize`] when a device is too small, [`Error::InUse`] when one is claimed, [`Error::Replaced`] when the base of a volume
    /// that joins is not what is open; else what failed.
    pub fn make_room(&self, layout: &Layout) -> Result<(), Error> {
        composition::make_room(&self.home, &mut self.bases.borrow_mut(), layout)
    }

    /// Makes `layout` what the base is composed of, from the next operation on.
    ///
    /// # Errors
    /// When a volume has no base, or too small a one: then every operation on the base fails, a sync too, until one is composed.
    pub fn compose(&self, layout: &Layout) -> Result<(), Error> {
        self.bases.borrow_mut().compose(layout)
    }

    /// Each volume's base, and its size in bytes.
    pub fn bases(&self) -> Vec<(VolumeId, u64)> {
        self.bases.borrow().all().iter().map(|base| (base.volume, base.size)).collect()
    }

    /// Removes the base of a volume, an adopted one's link alone; false where the base is still composed of it.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove_base(&self, volume: VolumeId) -> Result<bool, Error> {
        let is_free = self.bases.borrow_mut().let_go(volume);
        if is_free {
            composition::remove(self.home.dir(), volume)?;
        }
        Ok(is_free)
    }

    /// Closes the volume. The locks go with the last operation in flight, not before.
    pub fn close(self) {}

    /// The file that all of a range of the base lies in, and where; none: it has to be taken apart.
    pub(super) fn base_at(&self, range: ByteRange) -> Option<(Arc<DataFile>, u64)> {
        self.bases.borrow().whole(range).map(|(file, at)| (Arc::clone(file), at))
    }

    /// The pieces of a range of the base.
    pub(super) fn base_pieces(&self, range: ByteRange) -> Result<Vec<Piece>, Error> {
        self.bases.borrow().pieces(range)
    }

    /// Each file of the base.
    pub(super) fn base_files(&self) -> Result<Vec<Arc<DataFile>>, Error> {
        Ok(self.bases.borrow().in_space()?.cloned().collect())
    }

    /// The open file for an operation on anything but the base.
    pub(super) fn file(&self, file: FileRef) -> Result<Arc<DataFile>, Error> {
        match file {
            FileRef::Base => unreachable!("the base is several files: see base_at"),
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

/// Where a file of the copy in `dir` is.
pub fn path_in(dir: &Path, file: FileRef) -> PathBuf {
    home::path_in(dir, file)
}

/// Where the base of the volume is that the copy in `dir` is named after: its own image, or what its link says.
pub fn base_path(dir: &Path) -> PathBuf {
    link_target(home::base_in(dir))
}

/// The same of any volume.
pub fn base_path_of(dir: &Path, volume: VolumeId) -> PathBuf {
    link_target(composition::named(dir, volume))
}

/// Lays the base of a volume ready that the copy in `dir` is about to get: an image is empty, and replaces one that was laid ready
/// before.
///
/// # Errors
/// [`Error::InUse`] when the one before is open: what is written to it would be gone with it. Else what failed.
pub fn lay_ready(dir: &Path, volume: VolumeId, base: &NewBase) -> Result<(), Error> {
    composition::lay_ready(dir, volume, base)
}

fn link_target(named: PathBuf) -> PathBuf {
    fs::read_link(&named).unwrap_or(named)
}

fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
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
        NewBase::Image { size } => composition::create_image(&dir.join(home::BASE_IMAGE), *size)?,
        NewBase::Images { own, layout } => composition::create(dir, *own, layout)?,
        NewBase::Adopt { path } => composition::link_base(&dir.join(home::BASE_LINK), path)?,
    }
    crashsafe::sync_dir(dir).map_err(Error::io("sync the directory", dir))
}

/// Gives what is finished its final name.
fn publish(from: &Path, to: &Path) -> Result<(), Error> {
    crashsafe::publish(from, to).map_err(Error::io("rename a new file to", to))
}

fn open_part(home: &Arc<Home>, file: FileRef, missing: &'static str) -> Result<DataFile, Error> {
    DataFile::open(home, home.path(file), Mode::Direct).map_err(|error| not_a_volume(error, home, missing))
}

pub(super) fn not_a_volume(error: Error, home: &Home, missing: &'static str) -> Error {
    match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::NotAVolume { dir: home.dir().to_owned(), missing }
        }
        other => other,
    }
}

fn read_whole(path: &Path, limit: u64) -> Result<Bytes, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(Error::io("read", path))?;
    let size = content.len() as u64;
    if size > limit {
        return Err(Error::TooLarge { path: path.to_owned(), size, limit });
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
