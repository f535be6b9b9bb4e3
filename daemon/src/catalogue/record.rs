//! What is kept about a volume and about a peer, and its text. The text is the same in its own file and in the index.
//!
//! A fact stands in one file: what the superblock says (group, adopted or not) and where the base is (the link or image beside
//! the superblock) is not repeated here.

use serde::{Deserialize, Serialize};
use tidemark_core::types::{SiteId, VolumeId, WallMs};

use crate::config::{HostPort, Name};
use crate::control::FrontendKind;

/// Of both texts. A newer one is refused, not guessed at.
const VERSION: u32 = 1;

/// What the agent itself keeps of a volume: `<volume directory>/volume.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Identity; also the name of its directory.
    pub id: VolumeId,
    /// Its name, unique in this agent.
    pub name: Name,
    /// Moment of creation.
    pub created: WallMs,
    /// What an attach with `auto` takes.
    pub frontend: FrontendKind,
    /// The frontend to open again after a restart; none: detached.
    pub attached: Option<FrontendKind>,
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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeText {
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

impl VolumeRecord {
    /// Stands in for the record of `id` that cannot be read, under a name made of the id.
    pub(super) fn unknown(id: VolumeId) -> Self {
        let frontend = FrontendKind::Auto;
        Self { id, name: name_of(id), created: WallMs(0), frontend, attached: None }
    }

    /// The record as text.
    ///
    /// # Errors
    /// When the text cannot be made.
    pub fn to_text(&self) -> Result<String, RecordError> {
        text(&VolumeText {
            version: VERSION,
            id: self.id.to_string(),
            name: self.name.to_string(),
            created_ms: self.created.0,
            frontend: self.frontend.into(),
            attached: self.attached.map(Into::into),
        })
    }

    /// The record that `text` is.
    ///
    /// # Errors
    /// When it is none, or of another version.
    pub fn parse(text: &str) -> Result<Self, RecordError> {
        let parsed: VolumeText = parse(text)?;
        versioned(parsed.version)?;
        Ok(Self {
            id: VolumeId::parse(&parsed.id).filter(|id| !id.is_nil()).ok_or_else(|| wrong("id", &parsed.id))?,
            name: name(&parsed.name)?,
            created: WallMs(parsed.created_ms),
            frontend: parsed.frontend.into(),
            attached: parsed.attached.map(Into::into),
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
        }
    }

    /// What version 1 looks like on disk, for good.
    const VOLUME_V1: &str = r#"version = 1
id = "01010101-0101-0101-0101-010101010101"
name = "pg"
created_ms = 1700000000000
frontend = "auto"
attached = "nbd"
"#;

    #[test]
    fn records_survive_their_text() {
        assert_eq!(volume().to_text().unwrap(), VOLUME_V1);
        assert_eq!(VolumeRecord::parse(VOLUME_V1).unwrap(), volume());
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
            let record = VolumeRecord { attached: Some(kind), ..volume() };
            let text = record.to_text().unwrap();
            assert!(text.contains(&format!("attached = \"{word}\"")), "{text}");
            assert_eq!(VolumeRecord::parse(&text).unwrap(), record);
        }
    }

    #[test]
    fn any_identity_is_a_name() {
        for byte in [0, 0x7f, 0xff] {
            assert_eq!(VolumeRecord::unknown(VolumeId([byte; 16])).name.as_str(), VolumeId([byte; 16]).to_string());
        }
    }

    #[test]
    fn damaged_and_newer_texts_are_refused() {
        for (from, to) in [
            ("version = 1", "version = 2"),
            ("name = \"pg\"", "name = \"../pg\""),
            ("id = \"01", "id = \"zz"),
            ("created_ms = 17", "created_ms = true"),
            ("frontend = \"auto\"", "frontend = \"tape\""),
            ("attached", "attacked"),
            (VOLUME_V1, ""),
        ] {
            assert!(VolumeRecord::parse(&VOLUME_V1.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
