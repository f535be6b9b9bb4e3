//! The policy of a volume.

use serde::Serialize;
use tidemark_proto::admin as pb;

use super::{frontend, mode, word, yes_no};
use crate::units;

/// The fields that an agent names; others are left out.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Policy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack_on: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_peer_loss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_loss_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_failover: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpo_target_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpo_guard: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_size_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frontend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index_ranges: Option<u32>,
}

impl From<pb::Policy> for Policy {
    fn from(policy: pb::Policy) -> Self {
        Self {
            mode: policy.mode.map(mode),
            ack_on: policy.ack_on.map(|value| named::<pb::AckOn>(value, |v| v.as_str_name(), "ACK_ON_")),
            on_peer_loss: policy
                .on_peer_loss
                .map(|value| named::<pb::OnPeerLoss>(value, |v| v.as_str_name(), "ON_PEER_LOSS_")),
            peer_loss_ms: policy.peer_loss_ms,
            auto_failover: policy.auto_failover,
            rpo_target_ms: policy.rpo_target_ms,
            rpo_guard: policy.rpo_guard.map(|value| named::<pb::RpoGuard>(value, |v| v.as_str_name(), "RPO_GUARD_")),
            retention_ms: policy.retention_ms,
            log_size_bytes: policy.log_size_bytes,
            bandwidth_bytes: policy.bandwidth_bytes,
            compression: policy
                .compression
                .map(|value| named::<pb::Compression>(value, |v| v.as_str_name(), "COMPRESSION_")),
            frontend: policy.frontend.map(frontend),
            disk_timeout_ms: policy.disk_timeout_ms,
            index_ranges: policy.index_ranges,
        }
    }
}

fn named<E: TryFrom<i32>>(value: i32, name: impl Fn(&E) -> &'static str, prefix: &str) -> String {
    E::try_from(value).map_or_else(|_| value.to_string(), |known| word(name(&known), prefix))
}

impl Policy {
    /// `name: value` pairs for people.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let span = |value: Option<u64>| value.map(units::span_ms).unwrap_or_default();
        let size = |value: Option<u64>| value.map(units::bytes).unwrap_or_default();
        vec![
            ("wanted mode", text(&self.mode)),
            ("ack on", text(&self.ack_on)),
            ("on peer loss", text(&self.on_peer_loss)),
            ("peer loss", span(self.peer_loss_ms)),
            ("auto failover", self.auto_failover.map(yes_no).unwrap_or_default()),
            ("rpo target", span(self.rpo_target_ms)),
            ("rpo guard", text(&self.rpo_guard)),
            ("retention", span(self.retention_ms)),
            ("log size", size(self.log_size_bytes)),
            ("bandwidth", self.bandwidth()),
            ("compression", text(&self.compression)),
            ("frontend", text(&self.frontend)),
            ("disk timeout", span(self.disk_timeout_ms)),
            ("index ranges", self.index_ranges.map(|count| count.to_string()).unwrap_or_default()),
        ]
    }

    fn bandwidth(&self) -> String {
        match self.bandwidth_bytes {
            None => String::new(),
            Some(0) => "unlimited".to_owned(),
            Some(rate) => format!("{}/s", units::bytes(rate)),
        }
    }
}
