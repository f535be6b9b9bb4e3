//! What the network between sites counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::peer::{PeerRefusal, Refusals};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// What the network between sites counts. Clones count together.
#[derive(Clone, Debug)]
pub struct PeerMetrics {
    refusals: Family<ReasonLabel, Counter>,
}

impl Default for PeerMetrics {
    /// Every reason is there from the start, at zero: an alert on an increase then sees the first one.
    fn default() -> Self {
        let refusals: Family<ReasonLabel, Counter> = Family::default();
        for refusal in PeerRefusal::ALL {
            drop(refusals.get_or_create(&ReasonLabel { reason: refusal.name() }));
        }
        Self { refusals }
    }
}

impl PeerMetrics {
    /// The refusals of a transport, counted here.
    pub fn refusals(&self) -> Refusals {
        let metrics = self.clone();
        Refusals::new(Box::new(move |refusal| metrics.refused(refusal)))
    }

    /// A connection was refused.
    pub fn refused(&self, refusal: PeerRefusal) {
        self.refusals.get_or_create(&ReasonLabel { reason: refusal.name() }).inc();
    }

    /// Adds everything to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Connections between sites that were refused, by reason";
        registry.register("peer_refusals", help, self.refusals.clone());
    }
}
