//! What the catalogue counts: its index is rebuilt or fails without a volume being lost, and a person should know.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::catalogue::{Finding, Rebuilt};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// What the catalogue counts. Clones count together.
#[derive(Clone, Debug)]
pub struct CatalogueMetrics {
    rebuilds: Family<ReasonLabel, Counter>,
    write_errors: Counter,
    findings: Family<KindLabel, Gauge>,
}

impl Default for CatalogueMetrics {
    /// Every label is there from the start, at zero.
    fn default() -> Self {
        let new = Self { rebuilds: Family::default(), write_errors: Counter::default(), findings: Family::default() };
        for reason in Rebuilt::REASONS {
            drop(new.rebuilds.get_or_create(&ReasonLabel { reason }));
        }
        new.found(&[]);
        new
    }
}

impl CatalogueMetrics {
    /// The index was made anew.
    pub fn rebuilt(&self, why: &Rebuilt) {
        self.rebuilds.get_or_create(&ReasonLabel { reason: why.reason() }).inc();
    }

    /// The index could not be written.
    pub fn write_failed(&self) {
        self.write_errors.inc();
    }

    /// What was found at start, instead of what was found before.
    pub fn found(&self, findings: &[Finding]) {
        for kind in Finding::KINDS {
            let count = findings.iter().filter(|finding| finding.kind() == kind).count();
            self.findings.get_or_create(&KindLabel { kind }).set(count as i64);
        }
    }

    /// Adds everything to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Times that the index of the catalogue was made anew, by reason";
        registry.register("catalogue_rebuilds", help, self.rebuilds.clone());
        let help = "Writes to the index of the catalogue that failed; the next start mends it";
        registry.register("catalogue_write_errors", help, self.write_errors.clone());
        let help = "What the last start found that is not as it should be, by kind";
        registry.register("catalogue_findings", help, self.findings.clone());
    }
}
