//! The witness of this agent, and which policies need one.

use std::sync::Arc;
use std::time::Duration;

use tidemark_core::config::{OnPeerLoss, Policy};

use super::Agent;
use super::lease::LeaseBoard;
use crate::control::{EngineError, PolicyPatch, WitnessInfo};
use crate::witness::{Witness, WitnessError};

/// The witness, and what this agent holds there.
#[derive(Clone)]
pub struct Arbiter {
    /// The way to it.
    pub witness: Arc<Witness>,
    /// The agent's lease.
    pub lease: LeaseBoard,
}

impl Arbiter {
    pub(super) fn info(&self) -> WitnessInfo {
        WitnessInfo {
            backend: self.witness.backend(),
            place: self.witness.place(),
            fault: self.witness.fault(),
            lease_span: Duration::from_nanos(self.lease.terms().span_ns),
            lease: self.lease.held(),
        }
    }
}

impl Agent {
    /// Whether `policy`, made by `patch`, has the witness that it names. One that was set before and is not named stays: what
    /// else is changed does not depend on it.
    pub(super) fn may_arbitrate(&self, patch: &PolicyPatch, policy: &Policy) -> Result<(), EngineError> {
        if !patch.names_arbitration() {
            return Ok(());
        }
        match policy.on_peer_loss {
            OnPeerLoss::Witness if self.arbiter.is_none() => Err(no_arbiter()),
            OnPeerLoss::Suspend if policy.auto_failover => {
                let text = "true needs onPeerLoss witness: without an arbiter only a person may decide".to_owned();
                Err(EngineError::Invalid { field: "autoFailover", text })
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn no_arbiter() -> EngineError {
    let text = "this agent has no witness: add a section [witness] to its configuration".to_owned();
    EngineError::Refused { reason: "no-witness", text }
}

/// An unreliable witness, as a refusal.
pub(super) fn no_witness(error: &WitnessError) -> EngineError {
    let reason = match error {
        WitnessError::Unavailable(_) => "witness-unavailable",
        WitnessError::Refused(_) => "witness-refused",
        WitnessError::Corrupt { .. } => "witness-corrupt",
        WitnessError::Regressed { .. } => "witness-regressed",
    };
    EngineError::Refused { reason, text: error.to_string() }
}
