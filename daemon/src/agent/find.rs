//! What a request means by a name or an identity: a volume, or the group that it names or is part of.

use tidemark_core::types::{GroupId, VolumeId};

use super::{Agent, At, GroupCopy, State};
use crate::control::{EngineError, VolumeKey};

impl Agent {
    /// The volume of this name or identity.
    pub(super) fn find(&self, key: &VolumeKey) -> Result<At, EngineError> {
        let state = self.state();
        let found = state.copies.values().flat_map(|copy| state.volumes_of(copy.id)).find(|v| match key {
            VolumeKey::Name(name) => v.name == *name,
            VolumeKey::Id(id) => v.id == *id,
        });
        match found.and_then(|entry| state.at(entry)) {
            Some(at) => Ok(at),
            None => only_one(&state, group_of(&state, key).ok_or_else(|| EngineError::NoVolume(key.to_string()))?),
        }
    }

    /// The copy of the group of this name or identity, or of the group of this volume; the volume is then that, else the group's first.
    pub(super) fn find_group(&self, key: &VolumeKey) -> Result<At, EngineError> {
        let found = self.find(key);
        let state = self.state();
        match (found, group_of(&state, key)) {
            (Ok(at), _) => Ok(at),
            (Err(_), Some(copy)) => {
                let first = state.volumes_of(copy.id).first().map(|entry| entry.id);
                Ok(At { volume: first.unwrap_or(copy.id), copy: copy.id, shard: copy.shard })
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Refuses what cannot be done with one of several volumes.
    pub(super) fn refuse_of_several(&self, copy: VolumeId, what: &str) -> Result<(), EngineError> {
        let state = self.state();
        let Some(group) = state.copies.get(&copy) else { return Ok(()) };
        let volumes = state.volumes_of(copy);
        if volumes.len() < 2 {
            return Ok(());
        }
        let names: Vec<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        let text = format!(
            "{what}, and group {} has {}: remove the others first (`tidemark volume delete`)",
            group.name,
            names.join(", ")
        );
        Err(EngineError::Refused { reason: "group-of-several", text })
    }
}

/// The group of this name or identity.
fn group_of<'s>(state: &'s State, key: &VolumeKey) -> Option<&'s GroupCopy> {
    state.copies.values().find(|copy| match key {
        VolumeKey::Name(name) => copy.name == *name,
        VolumeKey::Id(id) => copy.group == Some(GroupId(id.0)),
    })
}

/// The only volume of a group.
fn only_one(state: &State, group: &GroupCopy) -> Result<At, EngineError> {
    let volumes = state.volumes_of(group.id);
    if let [only] = volumes[..] {
        return state.at(only).ok_or_else(|| EngineError::NoVolume(group.name.to_string()));
    }
    let names: Vec<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    let text = format!("{} is a group of several volumes: name one of {}", group.name, names.join(", "));
    Err(EngineError::Refused { reason: "group-of-several", text })
}
