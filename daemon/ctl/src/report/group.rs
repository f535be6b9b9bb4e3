//! Groups: volumes that share one log.

use std::collections::BTreeMap;

use serde::Serialize;

use super::volume::{Attachment, Volume};
use crate::output::{Paint, Report, Table, Tone};
use crate::units;

/// One group as this agent has it.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Its name here.
    pub name: String,
    /// The same on every site that has a copy.
    pub group_id: String,
    /// Its volumes, by name; what is the group's is the same in each.
    pub volumes: Vec<Volume>,
}

impl Group {
    /// The group of these volumes, of which there is at least one.
    pub fn of(mut volumes: Vec<Volume>) -> Self {
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        let first = volumes.first();
        let name = first.map(|volume| volume.group_name.clone()).unwrap_or_default();
        let group_id = first.map(|volume| volume.group_id.clone()).unwrap_or_default();
        Self { name, group_id, volumes }
    }

    fn tone(&self) -> Tone {
        self.volumes.first().map_or(Tone::Plain, Volume::tone)
    }

    fn size(&self) -> u64 {
        self.volumes.iter().map(|volume| volume.size_bytes).sum()
    }
}

impl Report for Group {
    fn table(&self, paint: Paint) -> String {
        let mut table = Table::new(&["VOLUME", "SIZE", "ATTACHED", "BASE"]);
        for volume in &self.volumes {
            let attached = volume.attachment.as_ref().map_or("-", Attachment::place).to_owned();
            let size = units::bytes(volume.size_bytes);
            table.row(volume.tone(), [volume.name.clone(), size, attached, volume.base_path.clone()]);
        }
        let state = self.volumes.first().map(|volume| volume.group_fields()).unwrap_or_default();
        format!("{}\n\n{}", state, table.render(paint))
    }
}

/// The groups of an agent.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupList {
    /// By name.
    pub groups: Vec<Group>,
}

impl GroupList {
    /// The groups of these volumes.
    pub fn of(volumes: Vec<Volume>) -> Self {
        let mut groups: BTreeMap<String, Vec<Volume>> = BTreeMap::new();
        for volume in volumes {
            groups.entry(volume.group_name.clone()).or_default().push(volume);
        }
        Self { groups: groups.into_values().map(Group::of).collect() }
    }
}

impl Report for GroupList {
    fn table(&self, paint: Paint) -> String {
        let mut table = Table::new(&["GROUP", "VOLUMES", "SIZE", "MODE", "PEER", "ROLE", "COPY"]);
        for group in &self.groups {
            let names: Vec<_> = group.volumes.iter().map(|volume| volume.name.as_str()).collect();
            let first = group.volumes.first();
            let status = first.and_then(|volume| volume.status.as_ref());
            let code = |code: Option<&String>| code.map_or_else(|| "-".to_owned(), Clone::clone);
            table.row(
                group.tone(),
                [
                    group.name.clone(),
                    names.join(","),
                    units::bytes(group.size()),
                    first.and_then(|volume| volume.policy.mode.clone()).unwrap_or_default(),
                    first.map_or("-", Volume::peer).to_owned(),
                    code(status.map(|status| &status.role.code)),
                    code(status.map(|status| &status.copy.code)),
                ],
            );
        }
        table.render(paint)
    }
}

#[cfg(test)]
mod tests {
    use tidemark_proto::admin as pb;

    use super::*;

    fn volume(name: &str, group: &str, size_bytes: u64) -> Volume {
        let (name, group_name) = (name.to_owned(), group.to_owned());
        pb::Volume { name, group_name, size_bytes, ..Default::default() }.into()
    }

    #[test]
    fn volumes_are_listed_under_their_groups() {
        let list =
            GroupList::of(vec![volume("wal", "pg", 1024), volume("logs", "logs", 512), volume("data", "pg", 2048)]);
        let table = list.table(Paint(false));
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[1].starts_with("logs") && lines[2].starts_with("pg") && lines[2].contains("data,wal"), "{table}");
        assert!(lines[2].contains(&units::bytes(3072)), "{table}");
    }
}
