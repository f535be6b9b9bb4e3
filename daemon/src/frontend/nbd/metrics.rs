//! Counters of the NBD servers of this process. Cheap to clone, shared by all threads.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the NBD servers count. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct NbdMetrics {
    /// Connections open now, in the handshake or serving.
    pub open: Gauge,
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections closed at once because too many were open.
    pub turned_away: Counter,
    /// Connections closed because the client did not speak the protocol.
    pub malformed: Counter,
    /// Handshakes that took too long.
    pub handshake_timeouts: Counter,
    /// TLS handshakes that failed, wrong certificates included.
    pub tls_failures: Counter,
    /// Requests admitted.
    pub requests: Counter,
    /// Requests answered with an error.
    pub errors: Counter,
    /// Bytes of data written by clients.
    pub written_bytes: Counter,
    /// Bytes of data read by clients.
    pub read_bytes: Counter,
}

impl NbdMetrics {
    /// Adds everything to `registry`, below its prefix.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("nbd");
        registry.register("connections", "NBD connections open now", self.open.clone());
        let counters = [
            ("accepted", "NBD connections accepted", &self.accepted),
            ("turned_away", "NBD connections closed because too many were open", &self.turned_away),
            ("malformed", "NBD connections closed because the client broke the protocol", &self.malformed),
            ("handshake_timeouts", "NBD handshakes that took too long", &self.handshake_timeouts),
            ("tls_failures", "NBD connections whose TLS handshake failed", &self.tls_failures),
            ("requests", "NBD requests admitted", &self.requests),
            ("errors", "NBD requests answered with an error", &self.errors),
            ("written_bytes", "Bytes written by NBD clients", &self.written_bytes),
            ("read_bytes", "Bytes read by NBD clients", &self.read_bytes),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
    }
}
