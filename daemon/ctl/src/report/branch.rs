//! One sealed branch with what it changed.

use serde::Serialize;

use super::volume::Branch;
use crate::offline::export::Exported;
use crate::output::{self, Paint, Report};
use crate::units;

/// A run of bytes.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub length: u64,
}

/// A branch and what it changed.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BranchContent {
    /// The branch.
    pub branch: Branch,
    /// The ranges that it changed, ascending.
    pub changed: Vec<Extent>,
    /// Bytes in them.
    pub changed_bytes: u64,
    /// The file that holds them now; it says nothing of any other range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exported_to: Option<String>,
}

impl BranchContent {
    /// Of a branch that was read.
    pub fn new(branch: Branch, content: Exported, exported_to: Option<String>) -> Self {
        let extent = |(offset, length)| Extent { offset, length };
        let changed: Vec<Extent> = content.extents.into_iter().map(extent).collect();
        let changed_bytes = changed.iter().map(|extent| extent.length).sum();
        Self { branch, changed, changed_bytes, exported_to }
    }
}

impl Report for BranchContent {
    fn table(&self, _: Paint) -> String {
        let lsn = |position: &Option<super::Position>| position.as_ref().map(|p| p.lsn.to_string()).unwrap_or_default();
        let what = format!("{} in {} ranges", units::bytes(self.changed_bytes), self.changed.len());
        let mut pairs = vec![
            ("branch", self.branch.number.to_string()),
            ("class", self.branch.branch_class.clone()),
            ("fork", lsn(&self.branch.fork)),
            ("end", lsn(&self.branch.end)),
            ("sealed", super::moment(self.branch.sealed_ms)),
            ("file", self.branch.path.clone()),
            ("changed", what),
        ];
        let exported = |to: &String| format!("{to} (these ranges only; the rest is a hole and not the volume's)");
        pairs.extend(self.exported_to.as_ref().map(|to| ("exported to", exported(to))));
        let ranges = self.changed.iter().map(|extent| format!("\n  {} bytes at {}", extent.length, extent.offset));
        output::fields(&pairs) + &ranges.collect::<String>()
    }
}
