//! What is kept about a volume and about a peer, and its text. The text is the same in its own file and in the index.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidemark_core::types::{GroupId, SiteId, VolumeId, WallMs};

use crate::config::{HostPort, Name};
use crate::control::FrontendKind;

/// Of both texts. A newer one is refused, not guessed at.
const VERSION: u32 = 1;

/// What an agent knows of one of its volumes without opening it: `<volume directory>/volume.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Identity; also the name of its directory.
    pub id: VolumeId,
    /// Its name, unique in this agent.
    pub name: Name,
    /// Its group.
    pub group: GroupId,
    /// Base image; relative to the volume's directory when it lies in it, so that a pool can be mounted elsewhere.
    pub base: PathBuf,
    /// The base was there before the volume.
    pub adopted: bool,
    /// Moment of creation.
    pub created: WallMs,
    /// What an attach with `auto` takes.
    pub frontend: FrontendKind,
    /// The frontend to open again after a restart; none: detached.
    pub attached: Option<FrontendKind>,
}

/// A site made known by a verb: `<state_dir>/peers/<name>.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Its name, unique in this agent.
    pub name: Name,
    /// Its identity, once known.
    pub site: Option<SiteId>,
    /// Its control address.
    pub address: HostPort,
    /// It has an authority of its own, in `<state_dir>/peers/<name>.crt`.
    pub own_ca: bool,
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
    group: String,
    base: PathBuf,
    adopted: bool,
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
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FrontendText {
    Auto,
    Nbd,
    Fuse,
}

impl From<FrontendKind> for FrontendText {
    fn from(kind: FrontendKind) -> Self {
        match kind {
            FrontendKind::Auto => Self::Auto,
            FrontendKind::Nbd => Self::Nbd,
            FrontendKind::Fuse => Self::Fuse,
        }
    }
}

impl From<FrontendText> for FrontendKind {
    fn from(text: FrontendText) -> Self {
        match text {
            FrontendText::Auto => Self::Auto,
            FrontendText::Nbd => Self::Nbd,
            FrontendText::Fuse => Self::Fuse,
        }
    }
}

impl VolumeRecord {
    /// The base as a path that can be opened, for a volume in `dir`.
    pub fn base_in(&self, dir: &Path) -> PathBuf {
        dir.join(&self.base)
    }

    /// The record as text.
    pub fn to_text(&self) -> Result<String, RecordError> {
        text(&VolumeText {
            version: VERSION,
            id: self.id.to_string(),
            name: self.name.to_string(),
            group: self.group.to_string(),
            base: self.base.clone(),
            adopted: self.adopted,
            created_ms: self.created.0,
            frontend: self.frontend.into(),
            attached: self.attached.map(Into::into),
        })
    }

    /// The record that `text` is.
    pub fn parse(text: &str) -> Result<Self, RecordError> {
        let parsed: VolumeText = parse(text)?;
        versioned(parsed.version)?;
        Ok(Self {
            id: VolumeId::parse(&parsed.id).filter(|id| !id.is_nil()).ok_or_else(|| wrong("id", &parsed.id))?,
            name: name(&parsed.name)?,
            group: GroupId::parse(&parsed.group).ok_or_else(|| wrong("group", &parsed.group))?,
            base: parsed.base,
            adopted: parsed.adopted,
            created: WallMs(parsed.created_ms),
            frontend: parsed.frontend.into(),
            attached: parsed.attached.map(Into::into),
        })
    }
}

impl PeerRecord {
    /// The record as text.
    pub fn to_text(&self) -> Result<String, RecordError> {
        text(&PeerText {
            version: VERSION,
            name: self.name.to_string(),
            site_id: self.site.map(|site| site.to_string()),
            address: self.address.to_string(),
            own_ca: self.own_ca,
        })
    }

    /// The record that `text` is.
    pub fn parse(text: &str) -> Result<Self, RecordError> {
        let parsed: PeerText = parse(text)?;
        versioned(parsed.version)?;
        let site = |text: &String| SiteId::parse(text).filter(|id| !id.is_nil()).ok_or_else(|| wrong("site_id", text));
        Ok(Self {
            name: name(&parsed.name)?,
            site: parsed.site_id.as_ref().map(site).transpose()?,
            address: HostPort::parse(&parsed.address).ok_or_else(|| wrong("address", &parsed.address))?,
            own_ca: parsed.own_ca,
        })
    }
}

fn text<T: Serialize>(value: &T) -> Result<String, RecordError> {
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
            group: GroupId([2; 16]),
            base: "base.img".into(),
            adopted: false,
            created: WallMs(1_700_000_000_000),
            frontend: FrontendKind::Auto,
            attached: Some(FrontendKind::Nbd),
        }
    }

    /// What version 1 looks like on disk, for good.
    const VOLUME_V1: &str = r#"version = 1
id = "01010101-0101-0101-0101-010101010101"
name = "pg"
group = "02020202-0202-0202-0202-020202020202"
base = "base.img"
adopted = false
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
        };
        assert_eq!(PeerRecord::parse(&peer.to_text().unwrap()).unwrap(), peer);
    }

    #[test]
    fn an_own_base_moves_with_its_directory_and_an_adopted_one_does_not() {
        assert_eq!(volume().base_in(Path::new("/p/v")), Path::new("/p/v/base.img"));
        let adopted = VolumeRecord { base: "/dev/sdz".into(), ..volume() };
        assert_eq!(adopted.base_in(Path::new("/p/v")), Path::new("/dev/sdz"));
    }

    #[test]
    fn damaged_and_newer_texts_are_refused() {
        for (from, to) in [
            ("version = 1", "version = 2"),
            ("name = \"pg\"", "name = \"../pg\""),
            ("id = \"01", "id = \"zz"),
            ("adopted = false", "adopted = 3"),
            ("frontend = \"auto\"", "frontend = \"tape\""),
            ("base", "bass"),
            (VOLUME_V1, ""),
        ] {
            assert!(VolumeRecord::parse(&VOLUME_V1.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
