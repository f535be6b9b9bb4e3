//! What is kept about a volume and about a peer, and its text. The text is the same in its own file and in the index.
//!
//! A fact stands in one file: what the superblock says (group, adopted or not) and where the base is (the link or image beside
//! the superblock) is not repeated here.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tidemark_core::types::{SiteId, VolumeId, WallMs};

use crate::config::{HostPort, Name};
use crate::control::FrontendKind;

/// Of a peer's text, and of that of a copy of one volume. A newer one is refused, not guessed at.
const VERSION: u32 = 1;
/// Of the text of a copy of a group of several volumes.
const GROUP_VERSION: u32 = 2;

/// What the agent itself keeps of its copy of a group: `<copy's directory>/volume.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyRecord {
    /// Names the group's log, and the directory: the first volume that there was.
    pub id: VolumeId,
    /// The group's name, which no other group and no volume of another group here has.
    pub name: Name,
    /// Moment of creation.
    pub created: WallMs,
    /// Its volumes, in the order in which they came.
    pub volumes: Vec<VolumeRecord>,
}

/// What the agent itself keeps of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Identity.
    pub id: VolumeId,
    /// Its name, unique in this agent.
    pub name: Name,
    /// Moment of creation.
    pub created: WallMs,
    /// What an attach with `auto` takes.
    pub frontend: FrontendKind,
    /// The frontend to open again after a restart; none: detached.
    pub attached: Option<FrontendKind>,
    /// It was not yet seen in the group: it is being added, or that did not come about.
    pub pending: bool,
}

/// A site made known by a verb, or what was learnt of one that the configuration file names: `<state_dir>/peers/<name>.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Its name, unique in this agent.
    pub name: Name,
    /// Its identity; none: nobody said, and there was no contact yet.
    pub site: Option<SiteId>,
    /// Its control address.
    pub address: HostPort,
    /// It has an authority of its own, in `<state_dir>/peers/<name>.crt`.
    pub own_ca: bool,
    /// Only the identity counts, and only while the configuration file names a peer of this name.
    pub of_config: bool,
}

/// A text is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RecordError(String);

/// Only the version, whatever else there is.
#[derive(Deserialize)]
struct VersionText {
    version: u32,
}

/// A copy of one volume, which also names the group.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OneText {
    version: u32,
    id: String,
    name: String,
    created_ms: u64,
    frontend: FrontendText,
    #[serde(skip_serializing_if = "Option::is_none")]
    attached: Option<FrontendText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupText {
    version: u32,
    id: String,
    group: String,
    created_ms: u64,
    volumes: Vec<VolumeText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeText {
    id: String,
    name: String,
    created_ms: u64,
    frontend: FrontendText,
    #[serde(skip_serializing_if = "Option::is_none")]
    attached: Option<FrontendText>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pending: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerText {
    version: u32,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    site_id: Option<String>,
    address: String,
    own_ca: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    of_config: bool,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FrontendText {
    Auto,
    Nbd,
    Fuse,
    NbdDevice,
}

impl From<FrontendKind> for FrontendText {
    fn from(kind: FrontendKind) -> Self {
        match kind {
            FrontendKind::Auto => Self::Auto,
            FrontendKind::Nbd => Self::Nbd,
            FrontendKind::Fuse => Self::Fuse,
            FrontendKind::NbdDevice => Self::NbdDevice,
        }
    }
}

impl From<FrontendText> for FrontendKind {
    fn from(text: FrontendText) -> Self {
        match text {
            FrontendText::Auto => Self::Auto,
            FrontendText::Nbd => Self::Nbd,
            FrontendText::Fuse => Self::Fuse,
            FrontendText::NbdDevice => Self::NbdDevice,
        }
    }
}

impl CopyRecord {
    /// Of a new group with one volume, `volume`, that gives its identity to the copy.
    pub fn of_one(group: Name, volume: VolumeRecord) -> Self {
        Self { id: volume.id, name: group, created: volume.created, volumes: vec![volume] }
    }

    /// Stands in for the record of `id` that cannot be read, under a name made of the id.
    pub(super) fn unknown(id: VolumeId) -> Self {
        let name = name_of(id);
        let (frontend, created) = (FrontendKind::Auto, WallMs(0));
        Self::of_one(name.clone(), VolumeRecord { id, name, created, frontend, attached: None, pending: false })
    }

    /// The name of the group and those of its volumes.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        std::iter::once(&self.name).chain(self.volumes.iter().map(|volume| &volume.name))
    }

    /// The record of a volume.
    pub fn volume(&self, id: VolumeId) -> Option<&VolumeRecord> {
        self.volumes.iter().find(|volume| volume.id == id)
    }

    /// True for what a version without groups reads: one volume, which also names the copy.
    fn is_one(&self) -> bool {
        matches!(&self.volumes[..], [only] if only.id == self.id && only.name == self.name
            && only.created == self.created && !only.pending)
    }

    /// The record as text.
    ///
    /// # Errors
    /// When the text cannot be made.
    pub fn to_text(&self) -> Result<String, RecordError> {
        let (id, created_ms) = (self.id.to_string(), self.created.0);
        if self.is_one() {
            let VolumeText { name, frontend, attached, .. } = self.volumes[0].text();
            return text(&OneText { version: VERSION, id, name, created_ms, frontend, attached });
        }
        let volumes = self.volumes.iter().map(VolumeRecord::text).collect();
        text(&GroupText { version: GROUP_VERSION, id, group: self.name.to_string(), created_ms, volumes })
    }

    /// The record that `text` is.
    ///
    /// # Errors
    /// When it is none, or of another version.
    pub fn parse(text: &str) -> Result<Self, RecordError> {
        match parse::<VersionText>(text)?.version {
            VERSION => {
                let OneText { id, name, created_ms, frontend, attached, .. } = parse(text)?;
                let volume = VolumeText { id, name, created_ms, frontend, attached, pending: false };
                let volume = VolumeRecord::of_text(volume)?;
                Ok(Self::of_one(volume.name.clone(), volume))
            }
            GROUP_VERSION => {
                let parsed: GroupText = parse(text)?;
                let volumes: Vec<_> =
                    parsed.volumes.into_iter().map(VolumeRecord::of_text).collect::<Result<_, _>>()?;
                let mut seen = BTreeSet::new();
                if let Some(twice) =
                    volumes.iter().find(|v| !seen.insert(v.id.to_string()) | !seen.insert(v.name.to_string()))
                {
                    return Err(wrong("volumes", &twice.name.to_string()));
                }
                let (id, name) = (volume_id(&parsed.id)?, name(&parsed.group)?);
                Ok(Self { id, name, created: WallMs(parsed.created_ms), volumes })
            }
            other => {
                Err(RecordError(format!("version {other} is not known here: known are {VERSION} and {GROUP_VERSION}")))
            }
        }
    }
}

impl VolumeRecord {
    fn text(&self) -> VolumeText {
        VolumeText {
            id: self.id.to_string(),
            name: self.name.to_string(),
            created_ms: self.created.0,
            frontend: self.frontend.into(),
            attached: self.attached.map(Into::into),
            pending: self.pending,
        }
    }

    fn of_text(text: VolumeText) -> Result<Self, RecordError> {
        Ok(Self {
            id: volume_id(&text.id)?,
            name: name(&text.name)?,
            created: WallMs(text.created_ms),
            frontend: text.frontend.into(),
            attached: text.attached.map(Into::into),
            pending: text.pending,
        })
    }
}

impl PeerRecord {
    /// The record as text.
    ///
    /// # Errors
    /// When the text cannot be made.
    pub fn to_text(&self) -> Result<String, RecordError> {
        text(&PeerText {
            version: VERSION,
            name: self.name.to_string(),
            site_id: self.site.map(|site| site.to_string()),
            address: self.address.to_string(),
            own_ca: self.own_ca,
            of_config: self.of_config,
        })
    }

    /// The record that `text` is.
    ///
    /// # Errors
    /// When it is none, or of another version.
    pub fn parse(text: &str) -> Result<Self, RecordError> {
        let parsed: PeerText = parse(text)?;
        versioned(parsed.version)?;
        let site = |text: String| SiteId::parse(&text).filter(|id| !id.is_nil()).ok_or_else(|| wrong("site_id", &text));
        Ok(Self {
            name: name(&parsed.name)?,
            site: parsed.site_id.map(site).transpose()?,
            address: HostPort::parse(&parsed.address).ok_or_else(|| wrong("address", &parsed.address))?,
            own_ca: parsed.own_ca,
            of_config: parsed.of_config,
        })
    }
}

/// The name of a volume that can have no other: its identity.
pub(super) fn name_of(id: VolumeId) -> Name {
    Name::parse(&id.to_string()).expect("hexadecimal digits and dashes are a name")
}

/// A value as text.
pub(super) fn text<T: Serialize>(value: &T) -> Result<String, RecordError> {
    toml::to_string(value).map_err(|error| RecordError(error.to_string()))
}

fn parse<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, RecordError> {
    toml::from_str(text).map_err(|error| RecordError(error.message().to_owned()))
}

fn versioned(version: u32) -> Result<(), RecordError> {
    match version {
        VERSION => Ok(()),
        other => Err(RecordError(format!("version {other} is not known here: known is {VERSION}"))),
    }
}

fn volume_id(text: &str) -> Result<VolumeId, RecordError> {
    VolumeId::parse(text).filter(|id| !id.is_nil()).ok_or_else(|| wrong("id", text))
}

fn name(text: &str) -> Result<Name, RecordError> {
    Name::parse(text).map_err(|error| RecordError(error.to_string()))
}

fn wrong(key: &str, value: &str) -> RecordError {
    RecordError(format!("{key} = {value:?} cannot be"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> VolumeRecord {
        VolumeRecord {
            id: VolumeId([1; 16]),
            name: Name::parse("pg").unwrap(),
            created: WallMs(1_700_000_000_000),
            frontend: FrontendKind::Auto,
            attached: Some(FrontendKind::Nbd),
            pending: false,
        }
    }

    fn copy() -> CopyRecord {
        CopyRecord::of_one(volume().name, volume())
    }

    fn group() -> CopyRecord {
        let wal = VolumeRecord {
            id: VolumeId([2; 16]),
            name: Name::parse("wal").unwrap(),
            frontend: FrontendKind::Fuse,
            attached: None,
            pending: true,
            ..volume()
        };
        CopyRecord { name: Name::parse("db").unwrap(), volumes: vec![volume(), wal], ..copy() }
    }

    /// What version 1 looks like on disk, for good.
    const VOLUME_V1: &str = r#"version = 1
id = "01010101-0101-0101-0101-010101010101"
name = "pg"
created_ms = 1700000000000
frontend = "auto"
attached = "nbd"
"#;

    /// What version 2 looks like on disk, for good.
    const GROUP_V2: &str = r#"version = 2
id = "01010101-0101-0101-0101-010101010101"
group = "db"
created_ms = 1700000000000

[[volumes]]
id = "01010101-0101-0101-0101-010101010101"
name = "pg"
created_ms = 1700000000000
frontend = "auto"
attached = "nbd"

[[volumes]]
id = "02020202-0202-0202-0202-020202020202"
name = "wal"
created_ms = 1700000000000
frontend = "fuse"
pending = true
"#;

    #[test]
    fn records_survive_their_text() {
        assert_eq!(copy().to_text().unwrap(), VOLUME_V1);
        assert_eq!(CopyRecord::parse(VOLUME_V1).unwrap(), copy());
        assert_eq!(group().to_text().unwrap(), GROUP_V2);
        assert_eq!(CopyRecord::parse(GROUP_V2).unwrap(), group());
        let peer = PeerRecord {
            name: Name::parse("b").unwrap(),
            site: Some(SiteId([3; 16])),
            address: HostPort::parse("b:9740").unwrap(),
            own_ca: true,
            of_config: false,
        };
        let learnt = PeerRecord { of_config: true, own_ca: false, ..peer.clone() };
        for peer in [PeerRecord { site: None, ..peer.clone() }, peer, learnt] {
            assert_eq!(PeerRecord::parse(&peer.to_text().unwrap()).unwrap(), peer);
        }
    }

    #[test]
    fn every_frontend_has_a_word_of_its_own() {
        for (kind, word) in [(FrontendKind::Fuse, "fuse"), (FrontendKind::NbdDevice, "nbd-device")] {
            let record = CopyRecord::of_one(volume().name, VolumeRecord { attached: Some(kind), ..volume() });
            let text = record.to_text().unwrap();
            assert!(text.contains(&format!("attached = \"{word}\"")), "{text}");
            assert_eq!(CopyRecord::parse(&text).unwrap(), record);
        }
    }

    #[test]
    fn any_identity_is_a_name() {
        for byte in [0, 0x7f, 0xff] {
            assert_eq!(CopyRecord::unknown(VolumeId([byte; 16])).name.as_str(), VolumeId([byte; 16]).to_string());
        }
    }

    #[test]
    fn damaged_and_newer_texts_are_refused() {
        for (from, to) in [
            ("version = 1", "version = 3"),
            ("name = \"pg\"", "name = \"../pg\""),
            ("id = \"01", "id = \"zz"),
            ("created_ms = 17", "created_ms = true"),
            ("frontend = \"auto\"", "frontend = \"tape\""),
            ("attached", "attacked"),
            (VOLUME_V1, ""),
        ] {
            assert!(CopyRecord::parse(&VOLUME_V1.replacen(from, to, 1)).is_err(), "{to}");
        }
        for (from, to) in
            [("\"02", "\"01"), ("group = \"db\"", "group = \"../db\""), ("\"wal\"", "\"pg\""), ("\"02", "\"zz")]
        {
            let text = GROUP_V2.replace("02020202-0202-0202-0202-020202020202", "02010101-0101-0101-0101-010101010101");
            assert!(CopyRecord::parse(&text.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
