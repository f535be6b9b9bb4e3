//! Volumes and their names: reserved before they are made, listed in the record of their copy, changed there.

use std::path::Path;

use tidemark_core::types::VolumeId;

use super::{Catalogue, CatalogueError, CopyEntry, CopyRecord, VOLUME_FILE, VolumeRecord, indexed, io_at, volume_key};
use crate::config::Name;
use crate::control::FrontendKind;
use crate::crashsafe;

/// Which group a volume is made in.
#[derive(Clone, Copy, Debug)]
pub enum Joined<'a> {
    /// One that is made with it, under this name.
    New(&'a Name),
    /// That of a copy.
    Known(VolumeId),
}

impl Catalogue {
    /// Reserves the identity of a volume that is about to be made and its name, or the names of all that are made with it: until [`enlist`](Self::enlist),
    /// [`enlist_volume`](Self::enlist_volume) or [`unreserve`](Self::unreserve) nobody else gets them. `group` is the copy that it
    /// joins, or the name of a group that is made with it; `limit` is the most volumes that there may be.
    ///
    /// # Errors
    /// [`CatalogueError::Known`], [`CatalogueError::NameTaken`] and [`CatalogueError::TooMany`].
    pub fn reserve(
        &mut self,
        id: VolumeId,
        names: &[Name],
        group: Joined<'_>,
        limit: u32,
    ) -> Result<(), CatalogueError> {
        let known = self.volumes.values().any(|entry| entry.record.id == id || entry.record.volume(id).is_some());
        if known || self.reserved.contains_key(&id) {
            return Err(CatalogueError::Known(id));
        }
        let mut names = names.to_vec();
        let copy = match group {
            Joined::New(group) => {
                self.check_name(group, None)?;
                names.push(group.clone());
                None
            }
            Joined::Known(copy) => Some(copy),
        };
        names.iter().try_for_each(|name| self.check_name(name, copy))?;
        let there: usize = self.volumes.values().map(|entry| entry.record.volumes.len()).sum();
        if there + self.reserved.len() >= limit as usize {
            return Err(CatalogueError::TooMany { limit });
        }
        self.reserved.insert(id, names);
        Ok(())
    }

    /// Whether a new volume could have this name; in `copy` the group may have it.
    ///
    /// # Errors
    /// [`CatalogueError::NameTaken`].
    fn check_name(&self, name: &Name, copy: Option<VolumeId>) -> Result<(), CatalogueError> {
        let taken_in = |entry: &CopyEntry| {
            let own = usize::from(copy == Some(entry.record.id));
            entry.record.names().skip(own).any(|taken| taken == name)
        };
        match self.volumes.values().any(taken_in) || self.reserved.values().flatten().any(|taken| taken == name) {
            true => Err(CatalogueError::NameTaken(name.clone())),
            false => Ok(()),
        }
    }

    /// The volume was not made.
    pub fn unreserve(&mut self, id: VolumeId) {
        self.reserved.remove(&id);
    }

    /// Makes a copy known that was made in `dir`, its record included, and whose first volume was reserved.
    ///
    /// # Errors
    /// When the record cannot be put into text.
    ///
    /// # Panics
    /// When it was not reserved under this name.
    pub fn enlist(&mut self, pool: &Name, dir: &Path, record: CopyRecord) -> Result<CopyEntry, CatalogueError> {
        let names = self.reserved.remove(&record.id);
        assert!(names.is_some_and(|names| names.contains(&record.name)), "a volume is reserved before it is made");
        let entry = CopyEntry { record, pool: pool.clone(), dir: dir.to_owned(), fault: None };
        self.put(&volume_key(entry.record.id), &indexed(&entry)?);
        self.volumes.insert(entry.record.id, entry.clone());
        Ok(entry)
    }

    /// Makes a reserved volume known that joins a copy.
    ///
    /// # Errors
    /// When the copy's file cannot be written: then it is reserved no more.
    pub fn enlist_volume(&mut self, copy: VolumeId, volume: VolumeRecord) -> Result<(), CatalogueError> {
        self.reserved.remove(&volume.id);
        self.change_record(copy, |record| record.volumes.push(volume))
    }

    /// A volume was seen in its group.
    ///
    /// # Errors
    /// As [`set_attached`](Self::set_attached).
    pub fn settle_volume(&mut self, volume: VolumeId) -> Result<(), CatalogueError> {
        self.change_volume(volume, |record| record.pending = false)
    }

    /// Gives a volume another name.
    ///
    /// # Errors
    /// As [`set_attached`](Self::set_attached).
    pub fn rename_volume(&mut self, volume: VolumeId, name: Name) -> Result<(), CatalogueError> {
        self.change_volume(volume, |record| record.name = name)
    }

    /// Forgets a volume of a copy, which stays.
    ///
    /// # Errors
    /// As [`set_attached`](Self::set_attached).
    pub fn drop_volume(&mut self, copy: VolumeId, volume: VolumeId) -> Result<(), CatalogueError> {
        self.change_record(copy, |record| record.volumes.retain(|known| known.id != volume))
    }

    /// Keeps which frontend is to be open after a restart; none: detached.
    ///
    /// # Errors
    /// When the copy's file cannot be written; what was kept before stays.
    pub fn set_attached(&mut self, volume: VolumeId, kind: Option<FrontendKind>) -> Result<(), CatalogueError> {
        self.change_volume(volume, |record| record.attached = kind)
    }

    /// Keeps what an attach with `auto` takes.
    ///
    /// # Errors
    /// As [`set_attached`](Self::set_attached).
    pub fn set_frontend(&mut self, volume: VolumeId, kind: FrontendKind) -> Result<(), CatalogueError> {
        self.change_volume(volume, |record| record.frontend = kind)
    }

    fn change_volume(&mut self, id: VolumeId, change: impl FnOnce(&mut VolumeRecord)) -> Result<(), CatalogueError> {
        let copy = self.volumes.values().find(|entry| entry.record.volume(id).is_some());
        let copy = copy.map(|entry| entry.record.id).ok_or(CatalogueError::NoVolume(id))?;
        self.change_record(copy, |record| {
            if let Some(volume) = record.volumes.iter_mut().find(|known| known.id == id) {
                change(volume);
            }
        })
    }

    fn change_record(&mut self, id: VolumeId, change: impl FnOnce(&mut CopyRecord)) -> Result<(), CatalogueError> {
        let known = self.volumes.get(&id).filter(|entry| entry.fault.is_none()).ok_or(CatalogueError::NoVolume(id))?;
        let mut entry = known.clone();
        change(&mut entry.record);
        if entry == *known {
            return Ok(());
        }
        let file = entry.dir.join(VOLUME_FILE);
        crashsafe::replace(&file, &[entry.record.to_text()?]).map_err(io_at(&file))?;
        self.put(&volume_key(id), &indexed(&entry)?);
        self.volumes.insert(id, entry);
        Ok(())
    }
}
