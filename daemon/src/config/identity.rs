//! Who this agent is, for good: the ids of its site and node.
//!
//! `<state_dir>/identity.toml` is written once, at the first start, from the configuration or at random. Afterwards a
//! configuration that says otherwise is refused: a copy's log, its configuration K and its peers all name these ids, and an
//! agent that changed them would look like a stranger to its own data.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidemark_core::types::{NodeId, SiteId};

use super::Config;
use crate::crashsafe;

/// The ids of this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its site.
    pub site: SiteId,
    /// Its host.
    pub node: NodeId,
}

/// Why the agent does not know who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The file is damaged.
    #[error(
        "{}: {why}; restore it, or write site_id and node_id as other nodes and `volume list` of the peer know them",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The configuration names another id than the one this agent has used so far.
    #[error("{key} = {configured} contradicts {stored} in {}: an agent never changes its identity", path.display())]
    Changed {
        /// `site.id` or `node.id`.
        key: &'static str,
        /// What the configuration says.
        configured: String,
        /// What the agent has used so far.
        stored: String,
        /// The identity file.
        path: PathBuf,
    },
    /// The kernel gives no random numbers.
    #[error("no random numbers for a new identity: {0}")]
    Random(getrandom::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    site_id: String,
    node_id: String,
}

impl Identity {
    /// Reads the ids of this agent; at the first start makes and stores them.
    pub fn load_or_create(config: &Config) -> Result<Self, IdentityError> {
        match Self::load(config)? {
            Some(stored) => Ok(stored),
            None => Self::create(config, &path(config)),
        }
    }

    /// Reads the ids of this agent; `None` when it was never started.
    pub fn load(config: &Config) -> Result<Option<Self>, IdentityError> {
        let path = path(config);
        read(&path)?.map(|stored| stored.checked_against(config, &path)).transpose()
    }

    fn create(config: &Config, path: &Path) -> Result<Self, IdentityError> {
        let site = config.site.id.map_or_else(|| random().map(SiteId), Ok)?;
        let node = config.node.id.map_or_else(|| random().map(NodeId), Ok)?;
        let text = format!(
            "# The identity of this agent, made at its first start. Never edited, never copied to another host.\n\
             site_id = \"{site}\"\nnode_id = \"{node}\"\n"
        );
        let io = |source| IdentityError::Io { path: path.to_owned(), source };
        crashsafe::create_dir(&config.state_dir).map_err(io)?;
        crashsafe::replace(path, &[text]).map_err(io)?;
        Ok(Self { site, node })
    }

    fn checked_against(self, config: &Config, path: &Path) -> Result<Self, IdentityError> {
        let same = |key, configured: Option<String>, stored: String| match configured {
            Some(configured) if configured != stored => {
                Err(IdentityError::Changed { key, configured, stored, path: path.to_owned() })
            }
            _ => Ok(()),
        };
        same("site.id", config.site.id.map(|id| id.to_string()), self.site.to_string())?;
        same("node.id", config.node.id.map(|id| id.to_string()), self.node.to_string())?;
        Ok(self)
    }
}

fn path(config: &Config) -> PathBuf {
    config.state_dir.join("identity.toml")
}

fn read(path: &Path) -> Result<Option<Identity>, IdentityError> {
    let damaged = |why: String| IdentityError::Damaged { path: path.to_owned(), why };
    let text = crashsafe::read(path).map_err(|source| IdentityError::Io { path: path.to_owned(), source })?;
    let Some(text) = text else { return Ok(None) };
    let stored: Stored = toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
    let site = SiteId::parse(&stored.site_id).filter(|id| !id.is_nil());
    let node = NodeId::parse(&stored.node_id).filter(|id| !id.is_nil());
    match (site, node) {
        (Some(site), Some(node)) => Ok(Some(Identity { site, node })),
        _ => Err(damaged("site_id or node_id is no UUID".to_owned())),
    }
}

/// A random (version 4) UUID.
pub fn random() -> Result<[u8; 16], IdentityError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(IdentityError::Random)?;
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::super::tests::minimal;
    use super::*;

    fn config(dir: &Path, more: &str) -> Config {
        minimal(&format!("state_dir = {:?}\n", dir.join("state")), more)
    }

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "");
        let first = Identity::load_or_create(&config).unwrap();
        assert!(!first.site.is_nil() && !first.node.is_nil());
        assert_eq!(Identity::load_or_create(&config).unwrap(), first);
    }

    #[test]
    fn a_configured_id_is_taken_and_a_changed_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let id = |digit: &str| format!("[node]\nid = \"{}\"\n", digit.repeat(32));
        let first = Identity::load_or_create(&config(dir.path(), &id("1"))).unwrap();
        assert_eq!(first.node, NodeId([0x11; 16]));
        let error = Identity::load_or_create(&config(dir.path(), &id("2"))).unwrap_err();
        assert!(matches!(error, IdentityError::Changed { key: "node.id", .. }), "{error}");
    }

    #[test]
    fn a_damaged_identity_is_never_replaced_by_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "");
        Identity::load_or_create(&config).unwrap();
        let path = config.state_dir.join("identity.toml");
        for text in ["", "site_id = \"x\"\nnode_id = \"y\"\n", "\u{0}\u{0}", "site_id = 1"] {
            std::fs::write(&path, text).unwrap();
            let error = Identity::load_or_create(&config).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{text:?}: {error}");
        }
    }
}
