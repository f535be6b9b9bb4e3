//! What the admin API counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    verb: &'static str,
    reason: &'static str,
}

/// What the admin API counts. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct AdminMetrics {
    calls: Family<CallLabels, Counter>,
    tls_failures: Counter,
}

impl AdminMetrics {
    /// A call ended: `ok`, or the reason of its refusal.
    pub fn call(&self, verb: &'static str, reason: &'static str) {
        self.calls.get_or_create(&CallLabels { verb, reason }).inc();
    }

    /// A TLS handshake failed.
    pub fn tls_failed(&self) {
        self.tls_failures.inc();
    }

    /// Adds everything to `registry`, below its prefix.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("admin");
        registry.register(
            "calls",
            "Admin calls ended, by verb and reason (ok, or why it was refused)",
            self.calls.clone(),
        );
        registry.register("tls_failures", "Admin connections whose TLS handshake failed", self.tls_failures.clone());
    }
}
