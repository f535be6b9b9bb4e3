//! What a volume's directory says of it besides the core's own files: `volume.toml`, and a peer's file in the state directory.
//! Everything the agent must remember is in these small files; they are replaced whole and durably.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidemark_core::types::VolumeId;

use crate::crashsafe;

/// Name of the file in a volume's directory.
pub const VOLUME_FILE: &str = "volume.toml";

/// A volume's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: String,
    /// Its group.
    pub group: String,
    /// The base image when it is not `base.img` beside the log.
    pub base: Option<PathBuf>,
    /// The base was there before the volume.
    pub adopted: bool,
    /// Moment of creation, ms since 1970.
    pub created_ms: u64,
    /// `auto`, `nbd` or `fuse`.
    pub frontend: String,
    /// The frontend that is to be open, reopened after a restart.
    #[serde(default)]
    pub attached: Option<String>,
}

impl VolumeRecord {
    /// Stands in for a record that cannot be read.
    pub fn unknown(id: VolumeId) -> Self {
        Self {
            name: id.to_string(),
            id: id.to_string(),
            group: String::new(),
            base: None,
            adopted: false,
            created_ms: 0,
            frontend: "auto".into(),
            attached: None,
        }
    }
}

/// A peer's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerRecord {
    /// Its name here.
    pub name: String,
    /// Its site, once known.
    pub site_id: Option<String>,
    /// Its control address.
    pub address: String,
    /// Its authority, PEM.
    pub ca_pem: Option<String>,
}

/// Reads a record.
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    let text = crashsafe::read(path)?.ok_or(io::ErrorKind::NotFound)?;
    toml::from_str(&text).map_err(|error: toml::de::Error| io::Error::new(io::ErrorKind::InvalidData, error.message()))
}

/// Writes a record whole and durably, with the directories above it.
pub fn write<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    write_text(path, &text_of(record)?)
}

/// A record as it is written.
pub fn text_of<T: Serialize>(record: &T) -> io::Result<String> {
    toml::to_string(record).map_err(|error| io::Error::other(error.to_string()))
}

/// Writes a small file whole and durably, with the directories above it.
pub fn write_text(path: &Path, text: &str) -> io::Result<()> {
    crashsafe::create_dir(path.parent().unwrap_or(Path::new(".")))?;
    crashsafe::replace(path, &[text])
}

pub(super) use crashsafe::remove;
