//! A volume as the command line prints it, read by name: a test names the few fields that it means.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// What `volume show` printed.
#[derive(Clone, PartialEq, Debug)]
pub struct VolumeView(pub Value);

impl VolumeView {
    /// A text by its path; empty when it is not there.
    pub fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number by its path; zero when it is not there. 64-bit numbers may be printed as text.
    pub fn number(&self, pointer: &str) -> u64 {
        let value = self.0.pointer(pointer);
        value.and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok())).unwrap_or_default()
    }

    /// Code of the role: `primary`, `secondary`, `suspended-restart`, ...
    pub fn role(&self) -> &str {
        self.text("/status/role/code")
    }

    /// Code of the copy's state: `current`, `catching-up`, ...
    pub fn copy(&self) -> &str {
        self.text("/status/copy/code")
    }

    /// Code of the link's state: `streaming`, `disconnected`, ...
    pub fn link(&self) -> &str {
        self.text("/status/link/code")
    }

    /// Its content is whole and the peer's frames flow: nothing is being seeded or caught up.
    pub fn is_streaming(&self) -> bool {
        self.copy() == "current" && self.link() == "streaming"
    }

    /// A loss of this site would lose no acknowledged flush.
    pub fn is_protected(&self) -> bool {
        self.text("/status/protection/code") == "protected"
    }

    /// The witness decides when the sites do not see each other.
    pub fn is_arbitrated(&self) -> bool {
        self.number("/status/config/leaseGen") > 0
    }

    /// Sites whose durability a flush needs.
    pub fn sync_sites(&self) -> usize {
        self.0.pointer("/status/config/sites").and_then(Value::as_array).map_or(0, Vec::len)
    }

    /// Bytes that went to the peer since the copy was opened: frames, and base blocks.
    pub fn sent_bytes(&self) -> u64 {
        self.number("/status/counters/shippedBytes") + self.number("/status/counters/seededBytes")
    }

    /// Age of the oldest record that the peer does not have durable.
    pub fn rpo_ms(&self) -> u64 {
        self.number("/status/rpoMs")
    }

    /// Why the role is not normal; empty when it is.
    pub fn role_reason(&self) -> &str {
        self.text("/status/role/reason")
    }

    /// Why the copy is not in order; empty when it is.
    pub fn copy_reason(&self) -> &str {
        self.text("/status/copy/reason")
    }

    /// Bytes of log that the peer does not have durable.
    pub fn backlog_bytes(&self) -> u64 {
        self.number("/status/backlogBytes")
    }

    /// Why the copy is not open; empty when it is.
    pub fn open_error(&self) -> &str {
        self.text("/openError")
    }

    /// The volume's directory in the pool.
    pub fn directory(&self) -> PathBuf {
        PathBuf::from(self.text("/directory"))
    }

    /// The base image.
    pub fn base_path(&self) -> PathBuf {
        PathBuf::from(self.text("/basePath"))
    }

    /// How it is attached; `None` when it is not, or not yet again.
    pub fn attachment(&self) -> Option<Attachment> {
        Attachment::read(&self.0).ok()
    }

    /// Every state with its reason, for messages.
    pub fn summary(&self) -> String {
        let state = |name: &str| {
            let at = |field: &str| self.text(&format!("/status/{name}/{field}")).to_owned();
            format!("{name} {} {}", at("code"), at("reason"))
        };
        let states = ["role", "copy", "link", "protection"].map(|name| state(name).trim_end().to_owned());
        format!("{} {}", states.join(", "), self.text("/openError"))
    }
}

/// An open frontend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// Its kind as the command line writes it: `nbd`, `nbd-device` or `fuse`.
    pub frontend: String,
    /// The block device; `None` for NBD.
    pub device: Option<PathBuf>,
    /// The NBD export's URI; `None` for a block device.
    pub nbd_uri: Option<String>,
}

impl Attachment {
    pub(super) fn read(printed: &Value) -> Result<Self> {
        let text = |field: &str| {
            let found = ["", "/attachment"].iter().find_map(|prefix| printed.pointer(&format!("{prefix}/{field}")));
            found.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let attachment = Self {
            frontend: text("frontend").unwrap_or_default(),
            device: text("devicePath").map(PathBuf::from),
            nbd_uri: text("nbdUri"),
        };
        let any = attachment.device.is_some() || attachment.nbd_uri.is_some();
        any.then_some(attachment).with_context(|| format!("an attachment without device and without URI: {printed}"))
    }

    /// The block device.
    ///
    /// # Errors
    /// When it is an NBD export.
    pub fn block_device(&self) -> Result<&PathBuf> {
        self.device.as_ref().context("the frontend is no block device")
    }

    /// The unix socket of the NBD export.
    ///
    /// # Errors
    /// When it is a block device.
    pub fn nbd_socket(&self) -> Result<PathBuf> {
        let uri = self.nbd_uri.as_deref().context("the frontend is no NBD export")?;
        let (_, socket) = uri.split_once("socket=").with_context(|| format!("no socket in {uri}"))?;
        Ok(PathBuf::from(socket))
    }
}
