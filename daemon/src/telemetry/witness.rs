//! How long the witness takes, how often it fails, and whether it is there.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tidemark_core::event::WitnessAnswer;

use crate::witness::WitnessError;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Backend {
    backend: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    backend: &'static str,
    op: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fault {
    backend: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Change {
    outcome: &'static str,
}

#[derive(Clone, Copy, Debug)]
struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    /// 250 µs to 16 s, each bucket double the one before: a file on this host to a store on another continent that hangs.
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(250e-6, 2.0, 17))
    }
}

/// What the witness counts; without one there is no series. Clones count together.
#[derive(Clone, Debug)]
pub struct WitnessMetrics {
    calls: Family<Call, Histogram, Buckets>,
    errors: Family<Fault, Counter>,
    reachable: Family<Backend, Gauge>,
    renewals: Family<Backend, Counter>,
    changes: Family<Change, Counter>,
}

impl Default for WitnessMetrics {
    fn default() -> Self {
        Self {
            calls: Family::new_with_constructor(Buckets),
            errors: Family::default(),
            reachable: Family::default(),
            renewals: Family::default(),
            changes: Family::default(),
        }
    }
}

impl WitnessMetrics {
    /// There is a witness: its errors are there from the start, at zero, so that an alert on an increase sees the first one.
    pub fn begin(&self, backend: &'static str) {
        for kind in WitnessError::KINDS {
            drop(self.errors.get_or_create(&Fault { backend, kind }));
        }
    }

    /// A call ended after `took`, by an answer or a fault.
    pub fn asked(&self, backend: &'static str, op: &'static str, took: Duration, fault: Option<&'static str>) {
        self.calls.get_or_create(&Call { backend, op }).observe(took.as_secs_f64());
        self.reachable.get_or_create(&Backend { backend }).set(i64::from(fault.is_none()));
        if let Some(kind) = fault {
            self.disbelieved(backend, kind);
        }
    }

    /// An answer cannot be relied on.
    pub fn disbelieved(&self, backend: &'static str, kind: &'static str) {
        self.errors.get_or_create(&Fault { backend, kind }).inc();
    }

    /// The agent's own lease was granted or renewed.
    pub fn renewed(&self, backend: &'static str) {
        self.renewals.get_or_create(&Backend { backend }).inc();
    }

    /// A change of a group's configuration was made, was not as another one was faster, or it is not known which.
    pub fn change_ended(&self, answer: &WitnessAnswer) {
        let outcome = match answer {
            WitnessAnswer::Committed(_) => "won",
            WitnessAnswer::Holds(_) => "lost",
            WitnessAnswer::Lost => "unknown",
        };
        self.changes.get_or_create(&Change { outcome }).inc();
    }

    /// Adds everything to `registry`, below its prefix.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("witness");
        registry.register("call_seconds", "Time of calls to the witness, by what they do", self.calls.clone());
        registry.register("errors", "Calls that failed and answers that were not believed", self.errors.clone());
        registry.register("reachable", "1 when the last call to the witness was answered", self.reachable.clone());
        registry.register("lease_renewals", "Renewals of this agent's lease", self.renewals.clone());
        let help = "Changes of a group's configuration that this agent asked for, by what came of them";
        registry.register("group_changes", help, self.changes.clone());
    }
}
