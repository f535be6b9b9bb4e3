//! What a connection has to know about the volumes it may serve, and where they live.

use std::rc::Rc;

use super::handover::HandOver;
use super::proto::export_flag;
use crate::frontend::BlockTarget;

/// An export as the handshake describes it. Plain data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Its canonical name: the volume's.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// False when the volume does not serve here; then it can be listed and not opened.
    pub serving: bool,
}

impl ExportInfo {
    /// Describes `target` under `name`.
    pub fn of(name: &str, target: &dyn BlockTarget) -> Self {
        let geometry = target.geometry();
        Self { name: name.to_owned(), size: geometry.size, read_only: geometry.read_only, serving: target.is_serving() }
    }

    /// The transmission flags to advertise. CAN_MULTI_CONN holds because a flush covers everything that completed on any
    /// connection of the volume.
    pub fn transmission_flags(&self, structured: bool) -> u16 {
        use export_flag::*;
        let common = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | CAN_MULTI_CONN;
        let read_only = if self.read_only { READ_ONLY } else { 0 };
        let df = if structured { SEND_DF } else { 0 };
        common | read_only | df
    }
}

/// The exports as the handshake sees them; no IO, so that it can run on any thread and in a fuzz target.
pub trait Directory {
    /// The export of this name; the empty name asks for the default export, if there is one.
    fn describe(&self, name: &str) -> Option<ExportInfo>;

    /// The names to list.
    fn list(&self) -> Vec<String>;
}

/// Where an export is served.
pub enum Export {
    /// On this thread.
    Here {
        /// Its canonical name.
        name: String,
        /// The volume.
        target: Rc<dyn BlockTarget>,
    },
    /// On another shard: the negotiated connection is moved there, and continues with [`super::serve_handed_over`].
    Elsewhere {
        /// What the other shard last said about it.
        info: ExportInfo,
        /// Takes the connection to the other shard.
        send: Box<dyn FnOnce(HandOver)>,
    },
}

/// Finds exports for the connections of one listener. Called on the listener's thread, never while a request is under way.
pub trait ExportResolver {
    /// The export of this name; the empty name asks for the default export, which exists when there is only one volume.
    fn resolve(&self, name: &str) -> Option<Export>;

    /// The names to list.
    fn list(&self) -> Vec<String>;
}

impl Directory for dyn ExportResolver + '_ {
    fn describe(&self, name: &str) -> Option<ExportInfo> {
        Some(match self.resolve(name)? {
            Export::Here { name, target } => ExportInfo::of(&name, target.as_ref()),
            Export::Elsewhere { info, .. } => info,
        })
    }

    fn list(&self) -> Vec<String> {
        ExportResolver::list(self)
    }
}

/// The resolver of a listener that serves one volume: its name and the empty name are accepted.
pub struct SingleExport {
    name: String,
    target: Rc<dyn BlockTarget>,
}

impl SingleExport {
    /// Serves `target` as `name`.
    pub fn new(name: impl Into<String>, target: Rc<dyn BlockTarget>) -> Self {
        Self { name: name.into(), target }
    }
}

impl ExportResolver for SingleExport {
    fn resolve(&self, name: &str) -> Option<Export> {
        let known = name.is_empty() || name == self.name;
        known.then(|| Export::Here { name: self.name.clone(), target: self.target.clone() })
    }

    fn list(&self) -> Vec<String> {
        vec![self.name.clone()]
    }
}
