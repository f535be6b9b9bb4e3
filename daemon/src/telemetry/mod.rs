//! What the agent tells about itself: metrics, health, log lines.
//!
//! Decides the names and labels of metrics and the shape of a log line. Measures nothing by itself: components count into the
//! handles that they are given ([`AdminMetrics`], [`CatalogueMetrics`], [`DiskMetrics`], [`PeerMetrics`], [`WitnessMetrics`]), and the states of volumes, pools and peers
//! are read from the engine at each scrape, so that a metric and a status never tell different things.
//!
//! Every name begins with `tidemark_`. Labels are bounded: names of volumes, pools and peers, and fixed words.

mod admin;
mod catalogue;
mod disk;
mod http;
mod logging;
mod peer;
mod snapshot;
#[cfg(test)]
mod tests;
mod witness;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use admin::AdminMetrics;
pub use catalogue::CatalogueMetrics;
pub use disk::{DiskFile, DiskMetrics, DiskVerb};
pub use http::Pages;
pub use logging::{LoggingError, init_logging};
pub use peer::PeerMetrics;
pub use witness::WitnessMetrics;

use crate::control::{Engine, EngineError};
use crate::frontend::nbd::NbdMetrics;

/// Begins every metric's name.
const PREFIX: &str = "tidemark";
/// A scrape that waits longer for the shards fails, which is what an alert should see.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handles for everything that counts, and the text of a scrape.
pub struct Telemetry {
    /// The admin API.
    pub admin: AdminMetrics,
    /// The catalogue.
    pub catalogue: CatalogueMetrics,
    /// Disk operations.
    pub disk: DiskMetrics,
    /// The network between sites.
    pub peers: PeerMetrics,
    /// The NBD servers.
    pub nbd: NbdMetrics,
    /// The witness.
    pub witness: WitnessMetrics,
    registry: Registry,
}

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// The engine does not answer.
    #[error("the agent does not answer: {0}")]
    Engine(#[from] EngineError),
    /// The engine does not answer in time.
    #[error("the agent did not answer within {SCRAPE_TIMEOUT:?}")]
    Timeout,
    /// A metric cannot be written.
    #[error("a metric cannot be written: {0}")]
    Encode(#[from] std::fmt::Error),
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

impl Telemetry {
    /// All counters at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the agent", build);
        let started: Gauge<f64, AtomicU64> = Gauge::default();
        started.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        registry.register("start_time_seconds", "Start of the agent, in seconds since 1970", started);
        let (admin, disk) = (AdminMetrics::default(), DiskMetrics::default());
        let catalogue = CatalogueMetrics::default();
        let (peers, nbd) = (PeerMetrics::default(), NbdMetrics::default());
        let witness = WitnessMetrics::default();
        admin.register(&mut registry);
        catalogue.register(&mut registry);
        disk.register(&mut registry);
        peers.register(&mut registry);
        nbd.register(&mut registry);
        witness.register(&mut registry);
        Self { admin, catalogue, disk, peers, nbd, witness, registry }
    }

    /// One scrape: the counters, and the state of everything that `engine` knows, now.
    ///
    /// # Errors
    /// When the engine does not answer in time.
    pub async fn scrape(&self, engine: &Arc<dyn Engine>) -> Result<String, ScrapeError> {
        let both = async { Ok::<_, EngineError>((engine.agent().await?, engine.volumes().await?)) };
        let answer = tokio::time::timeout(SCRAPE_TIMEOUT, both).await;
        let (agent, volumes) = answer.map_err(|_| ScrapeError::Timeout)??;
        let mut text = self.counters()?;
        let now = snapshot::registry(PREFIX, &agent, &volumes);
        prometheus_client::encoding::text::encode_registry(&mut text, &now)?;
        prometheus_client::encoding::text::encode_eof(&mut text)?;
        Ok(text)
    }

    /// The part of a scrape that needs no engine.
    pub(crate) fn counters(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode_registry(&mut text, &self.registry)?;
        Ok(text)
    }
}
