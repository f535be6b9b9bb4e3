//! What a verb achieved.

use serde::Serialize;
use tidemark_proto::admin as pb;

use super::mirror;
use super::volume::Volume;
use super::word;
use crate::output::{Paint, Report};
use crate::units;

/// What a promotion did.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Promotion {
    pub promotion_class: String,
    pub fork_lsn: u64,
    pub lost_bytes: u64,
    pub lost_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
}

impl From<pb::PromoteResponse> for Promotion {
    fn from(response: pb::PromoteResponse) -> Self {
        Self {
            promotion_class: word(response.promotion_class().as_str_name(), "PROMOTION_CLASS_"),
            fork_lsn: response.fork_lsn,
            lost_bytes: response.lost_bytes,
            lost_ms: response.lost_ms,
            volume: response.volume.map(Into::into),
        }
    }
}

impl Report for Promotion {
    fn table(&self, _: Paint) -> String {
        let at = self.fork_lsn;
        match self.promotion_class.as_str() {
            "lossless" => format!("primary from lsn {at} on; nothing acknowledged was lost"),
            "lossy" => format!(
                "primary from lsn {at} on; lost: {} as the other site last reported, and what it wrote in the {} since",
                units::bytes(self.lost_bytes),
                units::span_ms(self.lost_ms)
            ),
            _ => format!("primary from lsn {at} on; what was lost is not known"),
        }
    }
}

/// What a switchover did.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct SwitchedOver {
    pub primary_site_id: String,
    pub pause_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
}

impl From<pb::SwitchoverResponse> for SwitchedOver {
    fn from(response: pb::SwitchoverResponse) -> Self {
        Self {
            primary_site_id: response.primary_site_id,
            pause_ms: response.pause_ms,
            volume: response.volume.map(Into::into),
        }
    }
}

impl Report for SwitchedOver {
    fn table(&self, _: Paint) -> String {
        let site = &self.primary_site_id;
        match self.pause_ms {
            0 => format!("site {site} is the primary"),
            ms => format!("site {site} is the primary; nobody served for {}", units::span_ms(ms)),
        }
    }
}

mirror! {
    /// A run of bytes.
    ByteRange of ByteRange { offset: u64, length: u64 }
}

/// What a comparison found.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Comparison {
    pub equal: bool,
    pub blocks: u64,
    pub lsn: u64,
    pub differing: Vec<ByteRange>,
}

impl From<pb::VerifyResult> for Comparison {
    fn from(result: pb::VerifyResult) -> Self {
        Self {
            equal: result.equal,
            blocks: result.blocks,
            lsn: result.lsn,
            differing: result.differing.into_iter().map(Into::into).collect(),
        }
    }
}

impl Report for Comparison {
    fn table(&self, _: Paint) -> String {
        let compared = format!("{} blocks compared at lsn {}", self.blocks, self.lsn);
        if self.equal {
            return format!("equal: {compared}");
        }
        let range = |range: &ByteRange| format!("\n  {} bytes at offset {}", range.length, range.offset);
        format!("different: {compared}{}", self.differing.iter().map(range).collect::<String>())
    }
}
