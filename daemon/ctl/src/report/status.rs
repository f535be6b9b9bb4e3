//! The state of a volume copy, and of all of them in one table.

use serde::Serialize;
use tidemark_proto::admin as pb;

use super::plan::Promotable;
use super::volume::Volume;
use super::{Position, State, explained, mirror, mode, moment};
use crate::output::{Paint, Report, Table, Tone};
use crate::units;

mirror! {
    /// The age of a configuration.
    Epoch of Epoch { major: u32, minor: u32 }
}
mirror! {
    /// A human's word.
    Assertion of Assertion { who: String, why: String, at_ms: i64 }
}
mirror! {
    /// Progress of the first copy.
    Progress of Progress { done_bytes: u64, total_bytes: u64 }
}
mirror! {
    /// Counters since the volume was opened.
    Counters of Counters {
        reads: u64, read_bytes: u64, writes: u64, write_bytes: u64, flushes: u64, frames: u64, syncs: u64,
        shipped_bytes: u64, seeded_bytes: u64, floor_blocks: u64, checksum_errors: u64, refusals: u64,
    }
}

/// The configuration K.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct GroupConfig {
    pub epoch: Epoch,
    pub nonce: String,
    pub proposer_node: String,
    pub primary_site: String,
    pub leader_node: String,
    pub sites: Vec<String>,
    pub mode: String,
    pub generation: String,
    pub forced: bool,
    pub lease_gen: u64,
}

impl From<pb::GroupConfig> for GroupConfig {
    fn from(config: pb::GroupConfig) -> Self {
        Self {
            epoch: config.epoch.unwrap_or_default().into(),
            nonce: config.nonce,
            proposer_node: config.proposer_node,
            primary_site: config.primary_site,
            leader_node: config.leader_node,
            sites: config.sites,
            mode: mode(config.mode),
            generation: config.generation,
            forced: config.forced,
            lease_gen: config.lease_gen,
        }
    }
}

impl GroupConfig {
    /// Who decides when the sites do not see each other.
    fn arbiter(&self) -> &'static str {
        if self.lease_gen == 0 { "none" } else { "witness" }
    }
}

/// Everything about one copy of one volume.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Status {
    pub role: State,
    pub copy: State,
    pub link: State,
    pub protection: State,
    pub config: GroupConfig,
    pub floor_lsn: u64,
    pub committed_lsn: u64,
    pub durable_lsn: u64,
    pub appended: Position,
    pub peer_durable_lsn: u64,
    pub backlog_bytes: u64,
    pub rpo_ms: u64,
    pub log_bytes: u64,
    pub log_limit_bytes: u64,
    pub index_ranges: u64,
    pub requests: u64,
    pub forced_history: Vec<Assertion>,
    pub branches: u32,
    pub oldest_disk_op_ms: u64,
    pub counters: Counters,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seeding: Option<Progress>,
    pub promotable: Promotable,
    pub paused: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_full_in_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<Members>,
}

/// The members of a group, as one of them sees them.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Members {
    pub here: Vec<Member>,
    pub peers: Vec<String>,
    pub me: u32,
    pub worst: String,
}

/// One of them.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Member {
    pub node: String,
    pub leads: bool,
    pub state: String,
}

impl From<pb::GroupMembers> for Members {
    fn from(members: pb::GroupMembers) -> Self {
        let member = |member: pb::GroupMember| Member { node: member.node, leads: member.leads, state: member.state };
        Self {
            here: members.here.into_iter().map(member).collect(),
            peers: members.peers,
            me: members.me,
            worst: members.worst,
        }
    }
}

impl Members {
    /// A line for each of them, and one for what stands against a promotion.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let of = |(number, member): (usize, &Member)| {
            let leads = if member.leads { ", leads" } else { "" };
            let own = if number == self.me as usize { ", this node" } else { "" };
            ("member", format!("{number}: node {}, {}{leads}{own}", member.node, member.state))
        };
        let worst = (!self.worst.is_empty()).then(|| ("worst member", self.worst.clone()));
        self.here.iter().enumerate().map(of).chain(worst).collect()
    }
}

impl From<pb::VolumeStatus> for Status {
    fn from(status: pb::VolumeStatus) -> Self {
        Self {
            role: status.role.unwrap_or_default().into(),
            copy: status.copy.unwrap_or_default().into(),
            link: status.link.unwrap_or_default().into(),
            protection: status.protection.unwrap_or_default().into(),
            config: status.config.unwrap_or_default().into(),
            floor_lsn: status.floor_lsn,
            committed_lsn: status.committed_lsn,
            durable_lsn: status.durable_lsn,
            appended: status.appended.unwrap_or_default().into(),
            peer_durable_lsn: status.peer_durable_lsn,
            backlog_bytes: status.backlog_bytes,
            rpo_ms: status.rpo_ms,
            log_bytes: status.log_bytes,
            log_limit_bytes: status.log_limit_bytes,
            index_ranges: status.index_ranges,
            requests: status.requests,
            forced_history: status.forced_history.into_iter().map(Into::into).collect(),
            branches: status.branches,
            oldest_disk_op_ms: status.oldest_disk_op_ms,
            counters: status.counters.unwrap_or_default().into(),
            seeding: status.seeding.map(Into::into),
            promotable: status.promotable.unwrap_or_default().into(),
            paused: status.paused,
            log_full_in_ms: status.log_full_in_ms,
            members: status.members.map(Into::into),
        }
    }
}

impl Status {
    /// How much attention the copy wants.
    pub fn tone(&self) -> Tone {
        if !self.role.normal || !self.copy.normal {
            Tone::Alarm
        } else if !self.link.normal || !self.protection.normal {
            Tone::Warning
        } else {
            Tone::Plain
        }
    }

    /// True when nothing but the RPO is at stake if this site is lost.
    pub fn is_protected(&self) -> bool {
        self.protection.code == "protected"
    }

    /// The four aspects by name.
    pub fn aspects(&self) -> [(&'static str, &State); 4] {
        [("role", &self.role), ("copy", &self.copy), ("link", &self.link), ("protection", &self.protection)]
    }

    /// `name: value` pairs for people; `name_of` names a site.
    pub fn fields(&self, name_of: impl Fn(&str) -> String) -> Vec<(&'static str, String)> {
        let mut pairs: Vec<_> = self.aspects().iter().map(|(name, state)| (*name, explained(state))).collect();
        pairs.push(("promotable", self.promotable.text()));
        pairs.extend(self.promotable.blockers.iter().map(|blocker| ("not without", blocker.text())));
        if !self.paused.is_empty() {
            let full = self.log_full_in_ms.map(|ms| format!("; the log is full in {}", units::span_ms(ms)));
            pairs.push(("paused", format!("{}{}", self.paused.join(", "), full.unwrap_or_default())));
        }
        pairs.extend(self.seeding.as_ref().map(|progress| ("seeding", progress.text())));
        pairs.extend(self.config_fields(name_of));
        pairs.extend(self.members.iter().flat_map(Members::fields));
        pairs.extend(self.position_fields());
        for assertion in &self.forced_history {
            let at = moment(assertion.at_ms);
            pairs.push(("forced", format!("{at} by {}: {}", assertion.who, assertion.why)));
        }
        pairs
    }

    pub(super) fn config_fields(&self, name_of: impl Fn(&str) -> String) -> Vec<(&'static str, String)> {
        let config = &self.config;
        vec![
            ("epoch", config.epoch.text()),
            ("primary site", name_of(&config.primary_site)),
            ("S", config.sites.iter().map(|site| name_of(site)).collect::<Vec<_>>().join(", ")),
            ("mode", config.mode.clone()),
            ("arbiter", config.arbiter().to_owned()),
        ]
    }

    fn position_fields(&self) -> Vec<(&'static str, String)> {
        let log = format!("{} of {}", units::bytes(self.log_bytes), units::bytes(self.log_limit_bytes));
        let positions = format!(
            "floor {}, committed {}, durable {}, appended {}, peer durable {}",
            self.floor_lsn, self.committed_lsn, self.durable_lsn, self.appended.lsn, self.peer_durable_lsn
        );
        vec![
            ("positions", positions),
            ("rpo", format!("{}, {}", units::span_ms(self.rpo_ms), units::bytes(self.backlog_bytes))),
            ("log", log),
            ("index", format!("{} ranges", self.index_ranges)),
            ("requests", self.requests.to_string()),
            ("oldest disk op", units::span_ms(self.oldest_disk_op_ms)),
            ("branches", self.branches.to_string()),
        ]
    }
}

impl Epoch {
    /// `major.minor`.
    pub fn text(&self) -> String {
        format!("{}.{}", self.major, self.minor)
    }
}

impl Progress {
    fn text(&self) -> String {
        let percent = self.done_bytes.saturating_mul(100).checked_div(self.total_bytes).unwrap_or(0);
        format!("{} of {} ({percent}%)", units::bytes(self.done_bytes), units::bytes(self.total_bytes))
    }
}

/// The names of sites by their ids.
pub type SiteNames = std::collections::BTreeMap<String, String>;

/// The state of some volumes at one moment.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    /// When.
    pub at_ms: i64,
    /// By name.
    pub volumes: Vec<Volume>,
    /// What to call the sites in tables.
    #[serde(skip)]
    pub site_names: SiteNames,
}

impl StatusReport {
    /// One line for each volume: for logs and pipes. Without volumes one line says so, so that a reader sees life.
    pub fn lines(&self) -> String {
        let at = moment(self.at_ms);
        if self.volumes.is_empty() {
            return format!("{at} no volumes\n");
        }
        self.volumes.iter().map(|volume| format!("{at} {}\n", self.line(volume))).collect()
    }

    fn line(&self, volume: &Volume) -> String {
        let Some(status) = &volume.status else {
            return format!("{} not-open: {}", volume.name, volume.open_error);
        };
        format!(
            "{} role={} copy={} link={} mode={} s={} epoch={} rpo={} backlog={} {}",
            volume.name,
            status.role.code,
            status.copy.code,
            status.link.code,
            status.config.mode,
            self.sites(volume, status, "+"),
            status.config.epoch.text(),
            units::span_ms(status.rpo_ms),
            units::bytes(status.backlog_bytes),
            status.protection.code,
        )
    }

    fn sites(&self, volume: &Volume, status: &Status, separator: &str) -> String {
        status.config.sites.iter().map(|id| self.site(volume, id)).collect::<Vec<_>>().join(separator)
    }

    /// The name of a site where one is known, else the head of its id.
    fn site<'a>(&'a self, volume: &'a Volume, id: &'a str) -> &'a str {
        let known = self.site_names.get(id).map(String::as_str).or_else(|| volume.known_site(id));
        known.unwrap_or_else(|| id.get(..8).unwrap_or(id))
    }

    fn row(&self, volume: &Volume) -> [String; 10] {
        let dash = || "-".to_owned();
        let Some(status) = &volume.status else {
            let not_open = "not open".to_owned();
            return [
                volume.name.clone(),
                not_open,
                dash(),
                dash(),
                dash(),
                dash(),
                dash(),
                dash(),
                "no".to_owned(),
                dash(),
            ];
        };
        [
            volume.name.clone(),
            status.role.code.clone(),
            status.copy.code.clone(),
            status.link.code.clone(),
            status.config.mode.clone(),
            self.sites(volume, status, ","),
            status.config.epoch.text(),
            format!("{} / {}", units::span_ms(status.rpo_ms), units::bytes(status.backlog_bytes)),
            super::yes_no(status.is_protected()),
            status.promotable.promotion_class.clone(),
        ]
    }

    /// Everything that is not normal, with its reason.
    fn remarks(&self) -> Vec<(Tone, String)> {
        let mut remarks = Vec::new();
        for volume in &self.volumes {
            let name = &volume.name;
            let Some(status) = &volume.status else {
                remarks.push((Tone::Alarm, format!("{name}: not open: {}", volume.open_error)));
                continue;
            };
            for (aspect, state) in status.aspects().iter().filter(|(_, state)| !state.normal) {
                remarks.push((status.tone(), format!("{name}: {aspect}: {}", explained(state))));
            }
            remarks.extend(
                status.seeding.as_ref().map(|progress| (Tone::Plain, format!("{name}: seeding: {}", progress.text()))),
            );
        }
        remarks
    }
}

impl Report for StatusReport {
    fn table(&self, paint: Paint) -> String {
        let header = ["VOLUME", "ROLE", "COPY", "LINK", "MODE", "S", "EPOCH", "RPO", "PROTECTED", "PROMOTABLE"];
        let mut table = Table::new(&header);
        for volume in &self.volumes {
            table.row(volume.tone(), self.row(volume));
        }
        let remarks: Vec<_> = self.remarks().iter().map(|(tone, remark)| paint.line(*tone, remark)).collect();
        let separator = if remarks.is_empty() { "" } else { "\n\n" };
        format!("{}{separator}{}", table.render(paint), remarks.join("\n"))
    }
}
