//! How errors leave the agent: one gRPC code for each kind, a text for people, and two metadata keys for machines.

use tidemark_core::verb::VerbError;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::engine::EngineError;
use super::invalid::Invalid;

/// Metadata key: the stable code of a refusal.
pub const REASON_KEY: &str = "tidemark-reason";
/// Metadata key: the field of a wrong argument.
pub const FIELD_KEY: &str = "tidemark-field";

/// A status with its machine-readable reason.
pub(super) fn refusal(code: Code, reason: &'static str, text: impl Into<String>) -> Status {
    with(Status::new(code, text), REASON_KEY, reason)
}

fn with(mut status: Status, key: &'static str, value: &'static str) -> Status {
    status.metadata_mut().insert(key, MetadataValue::from_static(value));
    status
}

impl From<Invalid> for Status {
    fn from(error: Invalid) -> Self {
        invalid(error.field, error.to_string())
    }
}

fn invalid(field: &'static str, text: String) -> Status {
    with(refusal(Code::InvalidArgument, "invalid", text), FIELD_KEY, field)
}

/// The status of an engine's error.
pub(super) fn status(error: EngineError) -> Status {
    let text = error.to_string();
    let reason = reason_of(&error);
    match error {
        EngineError::Invalid { field, .. } => invalid(field, text),
        other => refusal(code_of(&other), reason, text),
    }
}

fn code_of(error: &EngineError) -> Code {
    match error {
        EngineError::NoVolume(_) | EngineError::NoPeer(_) | EngineError::NoPool(_) | EngineError::NoBranch { .. } => {
            Code::NotFound
        }
        EngineError::Exists(_) => Code::AlreadyExists,
        EngineError::Invalid { .. } | EngineError::Verb(VerbError::Invalid(_)) => Code::InvalidArgument,
        EngineError::Verb(VerbError::Interrupted(_)) => Code::Aborted,
        EngineError::Refused { .. } | EngineError::Verb(_) => Code::FailedPrecondition,
        EngineError::Limit { .. } => Code::ResourceExhausted,
        EngineError::Stopping => Code::Unavailable,
        EngineError::Failed(_) => Code::Internal,
    }
}

/// The stable code of an engine's error.
pub(super) fn reason_of(error: &EngineError) -> &'static str {
    match error {
        EngineError::NoVolume(_) => "no-volume",
        EngineError::NoPeer(_) => "no-peer",
        EngineError::NoPool(_) => "no-pool",
        EngineError::NoBranch { .. } => "no-branch",
        EngineError::Exists(_) => "exists",
        EngineError::Refused { reason, .. } => reason,
        EngineError::Invalid { .. } => "invalid",
        EngineError::Verb(verb) => verb_reason(verb),
        EngineError::Limit { .. } => "limit",
        EngineError::Stopping => "stopping",
        EngineError::Failed(_) => "failed",
    }
}

/// The stable code of a verb's refusal; also the label of its metric.
pub fn verb_reason(error: &VerbError) -> &'static str {
    match error {
        VerbError::PeerIsPrimary { .. } => "peer-is-primary",
        VerbError::PeerUnproven { .. } => "peer-unproven",
        VerbError::PeerInS { .. } => "peer-in-s",
        VerbError::PeerUnfit { .. } => "peer-unfit",
        VerbError::LossTooLarge { .. } => "loss-too-large",
        VerbError::Unproven => "unproven",
        VerbError::Unfit(_) => "unfit",
        VerbError::CopyState { .. } => "copy-state",
        VerbError::Role { .. } => "role",
        VerbError::Invalid(_) => "invalid",
        VerbError::NoPeer(_) => "no-peer-site",
        VerbError::Interrupted(_) => "interrupted",
    }
}

/// The reason code that `status` carries.
pub(super) fn reason(status: &Status) -> &'static str {
    let known = status.metadata().get(REASON_KEY).and_then(|value| value.to_str().ok());
    known.and_then(|text| REASONS.iter().find(|reason| **reason == text).copied()).unwrap_or("other")
}

/// Every reason of this module; an engine's own refusals count as `other` unless they are here, which bounds the metric.
const REASONS: [&str; 38] = [
    "invalid",
    "no-volume",
    "no-peer",
    "no-pool",
    "exists",
    "interrupted",
    "limit",
    "stopping",
    "failed",
    "deadline",
    "permission",
    "peer-is-primary",
    "peer-unproven",
    "peer-in-s",
    "peer-unfit",
    "loss-too-large",
    "unproven",
    "unfit",
    "copy-state",
    "role",
    "no-peer-site",
    "in-use",
    "not-primary",
    "not-attached",
    "attached",
    "frontend-unavailable",
    "no-space",
    "peer-unreachable",
    "from-config",
    "named-by-volume",
    "suspect",
    "no-witness",
    "witness-unavailable",
    "witness-refused",
    "witness-corrupt",
    "witness-regressed",
    "not-empty",
    "peer-left-behind",
];

#[cfg(test)]
mod tests {
    use super::*;
    use tidemark_core::config::Mode;
    use tidemark_core::group::arbitrated::Unfit;
    use tidemark_core::types::{Epoch, SiteId};

    #[test]
    fn every_refusal_of_a_verb_is_counted_by_its_own_reason() {
        let (site, text) = (SiteId([1; 16]), String::new);
        let errors = [
            VerbError::PeerIsPrimary { site, epoch: Epoch::default() },
            VerbError::PeerUnproven { site },
            VerbError::PeerInS { site },
            VerbError::PeerUnfit { site, why: text(), hint: text() },
            VerbError::LossTooLarge { bytes: 1, ms: 1 },
            VerbError::Unproven,
            VerbError::Unfit(Unfit::LeftOut),
            VerbError::CopyState { state: text(), hint: text() },
            VerbError::Role { role: text(), hint: text() },
            VerbError::Invalid(text()),
            VerbError::NoPeer(Mode::Sync),
            VerbError::Interrupted(text()),
        ];
        for error in errors {
            let wanted = verb_reason(&error);
            assert_eq!(reason(&status(error.into())), wanted);
        }
    }

    #[test]
    fn an_unknown_reason_does_not_make_a_new_series() {
        let refused = EngineError::Refused { reason: "never-heard-of", text: String::new() };
        assert_eq!(reason(&status(refused)), "other");
    }
}
