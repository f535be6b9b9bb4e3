//! Which bases a copy has on disk: one, as it always was, and one more for each further volume of its group.
//!
//! ```text
//! <copy>/base.img            an image of the copy's own ...
//! <copy>/base                ... or the link to an adopted base: of the volume that the copy is named after
//! <copy>/base-<volume>.img   the same of each further volume
//! <copy>/base-<volume>
//! ```
//!
//! How they make one space the core says, and may say anew; a base that it does not name (yet) is kept open, and claimed, with the
//! others.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_core::event::FileRef;
use tidemark_core::layout::Layout;
use tidemark_core::types::VolumeId;

use super::Error;
use super::bases::{Base, Bases};
use super::data_file::{DataFile, Mode};
use super::files::{NewBase, not_a_volume};
use super::home::{self, Access, Home};
use super::identity::{describe, probe_base, size_of};
use crate::crashsafe;

/// Opens every base of a copy. The first space is that of a copy with a single volume.
pub(super) fn open(home: &Arc<Home>) -> Result<Bases, Error> {
    let others = others(home.dir())?;
    // A copy may have lost the volume that it is named after, but not its only one.
    let own = home.path(FileRef::Base);
    let own =
        if own.exists() || others.is_empty() { Some(open_base(home, own_volume(home.dir()), own)?) } else { None };
    let others = others.into_iter().map(|(volume, path)| open_base(home, volume, path));
    Ok(Bases::of(own.into_iter().map(Ok).chain(others).collect::<Result<_, _>>()?))
}

/// The volume that the copy in `dir` is named after; nil where that is no volume's.
fn own_volume(dir: &Path) -> VolumeId {
    let name = dir.file_name().and_then(|name| name.to_str());
    name.and_then(VolumeId::parse).unwrap_or(VolumeId::NIL)
}

/// The bases of further volumes, in the order of their ids.
fn others(dir: &Path) -> Result<Vec<(VolumeId, PathBuf)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("base-"));
        if let Some(volume) = name.and_then(|name| VolumeId::parse(name.strip_suffix(".img").unwrap_or(name))) {
            found.push((volume, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Makes the bases of a new copy, which is to be named after `own`: an image for each volume.
pub(super) fn create(dir: &Path, own: VolumeId, layout: &Layout) -> Result<(), Error> {
    for volume in layout.volumes() {
        let image = if volume == own { dir.join(home::BASE_IMAGE) } else { image_of(dir, volume) };
        create_image(&image, layout.volume_size(volume).unwrap_or(0))?;
    }
    Ok(())
}

/// As [`super::VolumeFiles::make_room`].
pub(super) fn make_room(home: &Arc<Home>, bases: &mut Bases, layout: &Layout) -> Result<(), Error> {
    for volume in layout.volumes() {
        let size = layout.volume_size(volume).unwrap_or(0);
        if bases.base(volume).is_none() {
            let named = named(home.dir(), volume);
            if !named.exists() {
                create_image(&image_of(home.dir(), volume), size)?;
                crashsafe::sync_dir(home.dir()).map_err(Error::io("sync the directory", home.dir()))?;
            }
            bases.add(open_base(home, volume, self::named(home.dir(), volume))?);
        }
        let joins = !bases.is_in_space(volume);
        if let Some(base) = bases.base(volume) {
            if joins {
                check_place(base, &named(home.dir(), volume))?;
            }
            base.size = grow(base, size)?;
        }
    }
    bases.measure();
    Ok(())
}

/// As [`super::files::lay_ready`].
pub(super) fn lay_ready(dir: &Path, volume: VolumeId, base: &NewBase) -> Result<(), Error> {
    check_closed(&named(dir, volume))?;
    remove(dir, volume)?;
    match base {
        NewBase::Image { size } => create_image(&image_of(dir, volume), *size),
        NewBase::Adopt { path } => link_base(&link_of(dir, volume), path),
        NewBase::Images { .. } => unreachable!("one volume has one base"),
    }?;
    crashsafe::sync_dir(dir).map_err(Error::io("sync the directory", dir))
}

/// What is open as a base is locked: so is the one named there, if anybody has it open.
fn check_closed(named: &Path) -> Result<(), Error> {
    match File::open(named) {
        Ok(file) => home::lock(file, Access::Serve, named).map(drop),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("open", named)(error)),
    }
}

/// Which file or device it is, as long as it is open.
fn place(of: &fs::Metadata) -> (u64, u64) {
    if of.file_type().is_block_device() { (of.rdev(), 0) } else { (of.dev(), of.ino()) }
}

/// What is open as a base is what the next start finds as such.
fn check_place(base: &Base, named: &Path) -> Result<(), Error> {
    let open = base.file.file().metadata().map_err(Error::io("look at", base.file.path()))?;
    match fs::metadata(named) {
        Ok(there) if place(&there) == place(&open) => Ok(()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("look at", named)(error)),
        _ => Err(Error::Replaced { path: named.to_owned() }),
    }
}

/// Removes the base of a volume, an adopted one's link alone. Not there: success.
pub(super) fn remove(dir: &Path, volume: VolumeId) -> Result<(), Error> {
    let named = match own_volume(dir) == volume {
        true => [dir.join(home::BASE_IMAGE), dir.join(home::BASE_LINK)],
        false => [image_of(dir, volume), link_of(dir, volume)],
    };
    for path in named {
        crashsafe::unlink(&path).map_err(Error::io("remove", &path))?;
    }
    crashsafe::sync_dir(dir).map_err(Error::io("sync the directory", dir))
}

/// Where the base of a volume in `dir` is named.
pub(super) fn named(dir: &Path, volume: VolumeId) -> PathBuf {
    if own_volume(dir) == volume {
        return home::base_in(dir);
    }
    let image = image_of(dir, volume);
    if image.exists() { image } else { link_of(dir, volume) }
}

fn image_of(dir: &Path, volume: VolumeId) -> PathBuf {
    dir.join(format!("base-{volume}.img"))
}

fn link_of(dir: &Path, volume: VolumeId) -> PathBuf {
    dir.join(format!("base-{volume}"))
}

fn open_base(home: &Arc<Home>, volume: VolumeId, path: PathBuf) -> Result<Base, Error> {
    let kind = fs::metadata(&path).map_err(Error::io("look at the base image", &path));
    let kind = kind.map_err(|error| not_a_volume(error, home, "the base image"))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::NotABase { path });
    }
    let file = DataFile::open(home, path, Mode::Base { is_device: kind.is_block_device() })?;
    let info = describe(file.file(), file.path())?;
    Ok(Base { volume, size: info.size, file: Arc::new(file), info })
}

/// Makes a base at least `size` bytes large; gives its size.
fn grow(base: &Base, size: u64) -> Result<u64, Error> {
    let path = base.file.path();
    if !size.is_multiple_of(512) {
        return Err(Error::Size { path: path.to_owned(), size });
    }
    if size <= base.size {
        return Ok(base.size);
    }
    let now = size_of(base.file.file(), path)?;
    if base.info.is_device && size > now {
        return Err(Error::Resize { path: path.to_owned(), size: now, wanted: size });
    }
    if size > now {
        base.file.file().set_len(size).map_err(Error::io("enlarge", path))?;
        base.file.sync_all()?;
    }
    Ok(size.max(now))
}

pub(super) fn create_image(path: &Path, size: u64) -> Result<(), Error> {
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
pub(super) fn link_base(link: &Path, target: &Path) -> Result<(), Error> {
    probe_base(target)?;
    let target = std::path::absolute(target).map_err(Error::io("resolve", target))?;
    symlink(&target, link).map_err(Error::io("link the base image to", link))
}
