//! The two calls that answer more than once. Each is one task with one `select!`; it ends when its listener has gone, when
//! the agent stops, or with its result.

use std::sync::Arc;
use std::time::Duration;

use tidemark_proto::admin as wire;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::answer;
use super::calls::{Call, Calls};
use super::engine::{Answer, Engine, EngineError, Verified, VerifyProgress, VolumeInfo, VolumeKey};
use super::invalid::{Invalid, field};
use super::refusal::status;

/// Between two messages of a watch when its caller names none.
const DEFAULT_INTERVAL_MS: u32 = 1_000;
/// A watch that asked more often would cost the shards more than it shows.
const MIN_INTERVAL_MS: u32 = 100;
/// Longer silence looks like a dead connection.
const MAX_INTERVAL_MS: u32 = 600_000;
/// Between two reports of a comparison.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Messages that wait for a slow listener: one, so that it then sees the newest.
const BACKLOG: usize = 1;

/// The interval of a watch.
pub(super) fn interval(ms: u32) -> Result<Duration, Invalid> {
    let ms = if ms == 0 { DEFAULT_INTERVAL_MS } else { ms };
    match (MIN_INTERVAL_MS..=MAX_INTERVAL_MS).contains(&ms) {
        true => Ok(Duration::from_millis(ms.into())),
        false => Err(field("intervalMs", format!("is {ms}: allowed are {MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}"))),
    }
}

fn ticks(every: Duration) -> Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Ends when the agent stops.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // A sender that is gone has stopped, too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// A watch of some or all volumes.
pub(super) struct Watch {
    pub engine: Arc<dyn Engine>,
    /// Empty: all.
    pub keys: Vec<VolumeKey>,
    pub interval: Duration,
    pub stopping: watch::Receiver<bool>,
}

impl Watch {
    /// Starts the task; `permit` is its place among the calls.
    pub fn start(self, permit: OwnedSemaphorePermit) -> ReceiverStream<Result<wire::WatchStatusResponse, Status>> {
        let (messages, stream) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            self.run(messages).await;
            drop(permit);
        });
        ReceiverStream::new(stream)
    }

    async fn run(self, messages: mpsc::Sender<Result<wire::WatchStatusResponse, Status>>) {
        let mut stopping = self.stopping.clone();
        let mut ticks = ticks(self.interval);
        loop {
            let message = tokio::select! {
                biased;
                () = stopped(&mut stopping) => Err(EngineError::Stopping),
                () = messages.closed() => return,
                _ = ticks.tick() => self.volumes().await,
            };
            let ended = message.is_err();
            if messages.send(message.map(snapshot).map_err(status)).await.is_err() || ended {
                return;
            }
        }
    }

    async fn volumes(&self) -> Result<Vec<VolumeInfo>, EngineError> {
        if self.keys.is_empty() {
            return self.engine.volumes().await;
        }
        let mut volumes = Vec::with_capacity(self.keys.len());
        for key in &self.keys {
            volumes.push(self.engine.volume(key.clone()).await?);
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }
}

fn snapshot(volumes: Vec<VolumeInfo>) -> wire::WatchStatusResponse {
    wire::WatchStatusResponse {
        at_ms: super::service::now().0 as i64,
        volumes: volumes.into_iter().map(answer::volume).collect(),
    }
}

/// A comparison with its progress. Unlike a verb it changes nothing, so it ends when nobody listens.
pub(super) struct Verify {
    pub calls: Calls,
    pub call: Call,
    pub work: Answer<Verified>,
    pub seen: watch::Receiver<VerifyProgress>,
    pub stopping: watch::Receiver<bool>,
}

impl Verify {
    /// Starts the task; `permit` is its place among the calls.
    pub fn start(self, permit: OwnedSemaphorePermit) -> ReceiverStream<Result<wire::VerifyResponse, Status>> {
        let (messages, stream) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            self.run(messages).await;
            drop(permit);
        });
        ReceiverStream::new(stream)
    }

    async fn run(mut self, messages: mpsc::Sender<Result<wire::VerifyResponse, Status>>) {
        let mut ticks = ticks(PROGRESS_INTERVAL);
        let result = loop {
            let progress = tokio::select! {
                biased;
                result = &mut self.work => break result.map_err(status),
                () = messages.closed() => return,
                () = stopped(&mut self.stopping) => break Err(status(EngineError::Stopping)),
                _ = ticks.tick() => self.seen.has_changed().unwrap_or(false).then(|| *self.seen.borrow_and_update()),
            };
            if let Some(progress) = progress
                && messages.send(Ok(answer::verify_progress(progress))).await.is_err()
            {
                return;
            }
        };
        self.calls.ended(&self.call, result.as_ref().err());
        // A listener that left in this very moment misses nothing that was asked of us.
        let _ = messages.send(result.map(answer::verified)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_has_a_default_interval_and_bounds() {
        assert_eq!(interval(0).unwrap(), Duration::from_secs(1));
        assert_eq!(interval(100).unwrap(), Duration::from_millis(100));
        assert_eq!(interval(99).unwrap_err().field, "intervalMs");
        assert_eq!(interval(u32::MAX).unwrap_err().field, "intervalMs");
    }
}
