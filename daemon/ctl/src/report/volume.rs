//! A volume, alone and in a list.

use serde::Serialize;
use tidemark_proto::admin as pb;

use super::plan::Refusal;
use super::policy::Policy;
use super::status::Status;
use super::{Position, frontend, mirror, moment};
use crate::output::{self, Paint, Report, Table, Tone};
use crate::units;

/// A frontend that is open.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Attachment {
    pub frontend: String,
    pub device_path: String,
    pub device_link: String,
    pub nbd_uri: String,
    pub nbd_tcp_uri: String,
    pub connections: u32,
}

impl From<pb::Attachment> for Attachment {
    fn from(attachment: pb::Attachment) -> Self {
        Self {
            frontend: frontend(attachment.frontend),
            device_path: attachment.device_path,
            device_link: attachment.device_link,
            nbd_uri: attachment.nbd_uri,
            nbd_tcp_uri: attachment.nbd_tcp_uri,
            connections: attachment.connections,
        }
    }
}

impl Attachment {
    /// Where the data can be reached: a device by the name that stays, else an address.
    pub fn place(&self) -> &str {
        let places = [&self.device_link, &self.device_path, &self.nbd_uri, &self.nbd_tcp_uri];
        places.into_iter().find(|place| !place.is_empty()).map_or("", String::as_str)
    }
}

impl Report for Attachment {
    /// The place alone, so that a shell can take it.
    fn table(&self, _: Paint) -> String {
        self.place().to_owned()
    }
}

/// One volume.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Volume {
    pub id: String,
    pub name: String,
    pub size_bytes: u64,
    pub group_id: String,
    pub pool: String,
    pub directory: String,
    pub base_path: String,
    pub adopted: bool,
    pub shard: u32,
    pub created_ms: i64,
    pub peer_site_id: String,
    pub peer_name: String,
    pub policy: Policy,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub open_error: String,
    pub group_name: String,
    pub group_volumes: Vec<String>,
}

impl From<pb::Volume> for Volume {
    fn from(volume: pb::Volume) -> Self {
        Self {
            id: volume.id,
            name: volume.name,
            size_bytes: volume.size_bytes,
            group_id: volume.group_id,
            pool: volume.pool,
            directory: volume.directory,
            base_path: volume.base_path,
            adopted: volume.adopted,
            shard: volume.shard,
            created_ms: volume.created_ms,
            peer_site_id: volume.peer_site_id,
            peer_name: volume.peer_name,
            policy: volume.policy.unwrap_or_default().into(),
            attachment: volume.attachment.map(Into::into),
            status: volume.status.map(Into::into),
            open_error: volume.open_error,
            group_name: volume.group_name,
            group_volumes: volume.group_volumes,
        }
    }
}

impl Volume {
    /// The peer as people call it; `-` for a local volume.
    pub fn peer(&self) -> &str {
        let names = [&self.peer_name, &self.peer_site_id];
        names.into_iter().find(|name| !name.is_empty()).map_or("-", String::as_str)
    }

    /// The name of a site if this volume's agent told one.
    pub fn known_site(&self, id: &str) -> Option<&str> {
        (id == self.peer_site_id && !self.peer_name.is_empty()).then_some(self.peer_name.as_str())
    }

    /// How much attention it wants.
    pub fn tone(&self) -> Tone {
        match &self.status {
            None => Tone::Alarm,
            Some(status) => status.tone(),
        }
    }

    /// The group, and its volumes where there are several.
    fn group_text(&self) -> String {
        match self.group_volumes.len() {
            0 | 1 => self.group_name.clone(),
            _ => format!("{} ({})", self.group_name, self.group_volumes.join(", ")),
        }
    }

    /// What is the same for all volumes of the group.
    pub fn group_fields(&self) -> String {
        let mut pairs = vec![("group", self.group_name.clone()), ("peer", self.peer().to_owned())];
        if let Some(status) = &self.status {
            pairs.extend(status.fields(|id| self.known_site(id).unwrap_or(id).to_owned()));
        }
        pairs.push(("not open", self.open_error.clone()));
        output::fields(&pairs)
    }

    fn base_text(&self) -> String {
        let kind = if self.adopted { " (adopted)" } else { "" };
        format!("{}{kind}", self.base_path)
    }

    /// The frontend of the policy while another one is open: the policy speaks of the next attach.
    fn next_frontend(&self, open: &Attachment) -> Option<&str> {
        self.policy.frontend.as_deref().filter(|wanted| *wanted != "auto" && *wanted != open.frontend)
    }

    fn place_fields(&self) -> Vec<(&'static str, String)> {
        let attached = |attachment: &Attachment| {
            let next = self.next_frontend(attachment).map(|next| format!("; {next} from the next attach on"));
            let Attachment { frontend, connections, .. } = attachment;
            format!("{} ({frontend}, {connections} connections){}", attachment.place(), next.unwrap_or_default())
        };
        vec![
            ("volume", self.name.clone()),
            ("id", self.id.clone()),
            ("group", self.group_text()),
            ("size", units::bytes(self.size_bytes)),
            ("peer", self.peer().to_owned()),
            ("attached", self.attachment.as_ref().map_or_else(|| "no".to_owned(), attached)),
            ("pool", self.pool.clone()),
            ("directory", self.directory.clone()),
            ("base", self.base_text()),
            ("shard", self.shard.to_string()),
            ("created", moment(self.created_ms)),
            ("not open", self.open_error.clone()),
        ]
    }
}

impl Report for Volume {
    fn table(&self, _: Paint) -> String {
        let mut pairs = self.place_fields();
        if let Some(status) = &self.status {
            pairs.extend(status.fields(|id| self.known_site(id).unwrap_or(id).to_owned()));
        }
        pairs.extend(self.policy.fields());
        output::fields(&pairs)
    }
}

/// The volumes of an agent.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeList {
    /// By name.
    pub volumes: Vec<Volume>,
}

impl Report for VolumeList {
    fn table(&self, paint: Paint) -> String {
        let mut table = Table::new(&["NAME", "GROUP", "SIZE", "MODE", "PEER", "ROLE", "COPY", "ATTACHED", "POOL"]);
        for volume in &self.volumes {
            let code = |pick: fn(&Status) -> &str| volume.status.as_ref().map_or("-", pick).to_owned();
            let attached = volume.attachment.as_ref().map_or("-", Attachment::place).to_owned();
            table.row(
                volume.tone(),
                [
                    volume.name.clone(),
                    volume.group_name.clone(),
                    units::bytes(volume.size_bytes),
                    volume.policy.mode.clone().unwrap_or_default(),
                    volume.peer().to_owned(),
                    code(|status| &status.role.code),
                    code(|status| &status.copy.code),
                    attached,
                    volume.pool.clone(),
                ],
            );
        }
        table.render(paint)
    }
}

/// A sealed suffix.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Branch {
    pub number: u32,
    pub branch_class: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fork: Option<Position>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Position>,
    pub bytes: u64,
    pub sealed_ms: i64,
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<Refusal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
}

impl Branch {
    /// Whether it can be looked at, and where.
    fn openable(&self) -> String {
        match (&self.attachment, &self.closed) {
            (Some(open), _) => open.place().to_owned(),
            (None, None) => "yes".to_owned(),
            (None, Some(_)) => "no".to_owned(),
        }
    }
}

impl From<pb::Branch> for Branch {
    fn from(branch: pb::Branch) -> Self {
        Self {
            number: branch.number,
            branch_class: branch.branch_class,
            fork: branch.fork.map(Into::into),
            end: branch.end.map(Into::into),
            bytes: branch.bytes,
            sealed_ms: branch.sealed_ms,
            path: branch.path,
            closed: branch.closed.map(Into::into),
            attachment: branch.attachment.map(Into::into),
        }
    }
}

/// A branch that was dropped.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Dropped {
    pub number: u32,
    pub branch_class: String,
    pub bytes: u64,
    pub who: String,
    pub reason: String,
    pub at_ms: i64,
}

impl From<pb::DroppedBranch> for Dropped {
    fn from(branch: pb::DroppedBranch) -> Self {
        let pb::Assertion { who, why, at_ms } = branch.assertion.unwrap_or_default();
        let (number, branch_class, bytes) = (branch.number, branch.branch_class, branch.bytes);
        Self { number, branch_class, bytes, who, reason: why, at_ms }
    }
}

impl Dropped {
    fn line(&self) -> String {
        let (when, size) = (moment(self.at_ms), units::bytes(self.bytes));
        format!(
            "\nbranch {} ({}, {size}) was dropped {when} by {}: {}",
            self.number, self.branch_class, self.who, self.reason
        )
    }
}

/// The sealed suffixes of a volume.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BranchList {
    /// By number.
    pub branches: Vec<Branch>,
    /// Where the group's volumes lie: `(id, bytes)` of each run, end to end.
    #[serde(skip)]
    pub space: Vec<(String, u64)>,
    /// Those that were dropped, by number.
    pub dropped: Vec<Dropped>,
    /// The open view of what the copy holds, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub present: Option<Attachment>,
}

impl Report for BranchList {
    fn table(&self, paint: Paint) -> String {
        let lsn = |position: &Option<Position>| position.as_ref().map_or_else(|| "-".to_owned(), |p| p.lsn.to_string());
        let mut table = Table::new(&["BRANCH", "CLASS", "FORK", "END", "SIZE", "SEALED", "OPEN", "FILE"]);
        for branch in &self.branches {
            let (fork, end) = (lsn(&branch.fork), lsn(&branch.end));
            let number = branch.number.to_string();
            let size = units::bytes(branch.bytes);
            let sealed = moment(branch.sealed_ms);
            let (class, open) = (branch.branch_class.clone(), branch.openable());
            table.row(Tone::Plain, [number, class, fork, end, size, sealed, open, branch.path.clone()]);
        }
        let present = self.present.as_ref().map(|open| format!("\nwhat the copy holds now: {}", open.place()));
        let dropped = self.dropped.iter().map(Dropped::line).collect::<String>();
        table.render(paint) + &dropped + &present.unwrap_or_default()
    }
}

mirror! {
    /// What is left after a release.
    Released of ReleaseVolumeResponse { base_path: String }
}
mirror! {
    /// What is left after a delete.
    Deleted of DeleteVolumeResponse { trash_path: String }
}

impl Report for Released {
    fn table(&self, _: Paint) -> String {
        format!("released: {} mounts as it is", self.base_path)
    }
}

impl Report for Deleted {
    fn table(&self, _: Paint) -> String {
        match self.trash_path.as_str() {
            "" => "deleted".to_owned(),
            path => format!("deleted; its files are in {path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached_line(open: pb::Frontend, wanted: pb::Frontend) -> String {
        let attachment =
            pb::Attachment { frontend: open.into(), nbd_uri: "nbd+unix:x".to_owned(), ..Default::default() };
        let policy = pb::Policy { frontend: Some(wanted.into()), ..Default::default() };
        let volume = pb::Volume { attachment: Some(attachment), policy: Some(policy), ..Default::default() };
        let shown = Volume::from(volume).table(Paint(false));
        shown.lines().find(|line| line.starts_with("attached")).unwrap_or_default().to_owned()
    }

    #[test]
    fn another_frontend_than_the_open_one_is_said_to_come_with_the_next_attach() {
        let changed = attached_line(pb::Frontend::Nbd, pb::Frontend::Fuse);
        assert!(changed.ends_with("(nbd, 0 connections); fuse from the next attach on"), "{changed}");
        for wanted in [pb::Frontend::Nbd, pb::Frontend::Auto] {
            assert!(attached_line(pb::Frontend::Nbd, wanted).ends_with("(nbd, 0 connections)"));
        }
    }
}
