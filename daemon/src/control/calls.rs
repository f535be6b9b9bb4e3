//! How a call runs: to its end, counted, within a deadline.
//!
//! A verb that was started is never dropped half done: when its caller has gone or its deadline has passed it goes on, and the
//! same verb asked again finds what it did. What the caller hears after its deadline is DEADLINE_EXCEEDED.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Request, Status};

use super::engine::EngineError;
use super::refusal::{self, refusal};
use crate::telemetry::AdminMetrics;

/// Calls that run at once, streams included. Enough for every person, driver and coordinator of a node; a flood is refused.
const MAX_CALLS: usize = 256;

/// An answer has to be on its way before the caller's own clock gives up.
const MARGIN: Duration = Duration::from_millis(5);

/// Running calls.
#[derive(Clone)]
pub(super) struct Calls {
    permits: Arc<Semaphore>,
    longest: Duration,
    metrics: AdminMetrics,
}

/// What a call is for: its name, who asks, and until when.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Name of the method.
    pub verb: &'static str,
    /// Who asks.
    pub caller: String,
    /// The caller's own limit.
    pub deadline: Option<Duration>,
}

impl Call {
    /// The call that `request` makes.
    pub fn of<T>(verb: &'static str, request: &Request<T>) -> Self {
        let caller = request.extensions().get::<super::caller::Caller>();
        let deadline = request.metadata().get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
        Self { verb, caller: caller.map_or_else(|| "unknown".to_owned(), ToString::to_string), deadline }
    }
}

impl Calls {
    /// No call runs longer than `longest`.
    pub fn new(longest: Duration, metrics: AdminMetrics) -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_CALLS)), longest, metrics }
    }

    /// Runs `work` to its end and answers within the deadline.
    pub async fn run<T: Send + 'static>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
    ) -> Result<T, Status> {
        let permit = self.admit(&call)?;
        let limit = call.deadline.unwrap_or(self.longest).min(self.longest).saturating_sub(MARGIN);
        let (calls, verb) = (self.clone(), call.clone());
        let task = tokio::spawn(async move {
            let result = work.await.map_err(refusal::status);
            calls.ended(&verb, result.as_ref().err());
            drop(permit);
            result
        });
        match tokio::time::timeout(limit, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                Err(refusal(Code::Internal, "failed", format!("{} ended unexpectedly; see the log", call.verb)))
            }
            Err(_) => {
                self.metrics.call(call.verb, "deadline");
                let text = format!("{} goes on after {limit:?}; ask for the state, or the same again", call.verb);
                Err(refusal(Code::DeadlineExceeded, "deadline", text))
            }
        }
    }

    /// A place among the running calls, held until it is dropped.
    pub fn admit(&self, call: &Call) -> Result<OwnedSemaphorePermit, Status> {
        self.permits.clone().try_acquire_owned().map_err(|_| {
            let status = refusal(Code::ResourceExhausted, "limit", format!("{MAX_CALLS} calls are running already"));
            self.ended(call, Some(&status));
            status
        })
    }

    /// Counts and logs the end of a call.
    pub fn ended(&self, call: &Call, error: Option<&Status>) {
        let reason = error.map_or("ok", refusal::reason);
        self.metrics.call(call.verb, reason);
        match error {
            None if is_question(call.verb) => tracing::debug!(verb = call.verb, caller = call.caller, "answered"),
            None => tracing::info!(verb = call.verb, caller = call.caller, "done"),
            Some(error) => {
                tracing::info!(verb = call.verb, caller = call.caller, reason, "refused: {}", error.message());
            }
        }
    }
}

/// Changes nothing.
fn is_question(verb: &str) -> bool {
    ["Get", "List", "Watch", "Plan", "Explain"].iter().any(|prefix| verb.starts_with(prefix))
}

/// The gRPC header: at most 8 digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_header_has_units() {
        assert_eq!(parse_timeout("30S"), Some(Duration::from_secs(30)));
        assert_eq!(parse_timeout("100m"), Some(Duration::from_millis(100)));
        for text in ["", "S", "30", "30s", "123456789S", "-1S", "é"] {
            assert_eq!(parse_timeout(text), None, "{text:?}");
        }
    }
}
