//! What the primary says about its RPO, asked again and again until it is killed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::agents::Cli;

/// Often enough for a tight bound, seldom enough not to be a load.
const INTERVAL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Before the question was sent: the answer is no older.
    asked: Instant,
    rpo: Duration,
}

/// Asks in a thread of its own.
#[derive(Debug)]
pub(super) struct Sampler {
    last: Arc<Mutex<Option<Sample>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Sampler {
    pub fn start(cli: Cli, volume: &'static str) -> Self {
        let (last, stop) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (last, stop) = (Arc::clone(&last), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    // The agent dies in the middle of a question at some point: the last answer counts.
                    if let Ok(view) = cli.show(volume) {
                        let rpo = Duration::from_millis(view.rpo_ms());
                        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Sample { asked, rpo });
                    }
                    std::thread::sleep(INTERVAL);
                }
            }
        });
        Self { last, stop, thread }
    }

    /// The reported bound of what a loss at `killed` can cost: the last reported RPO and the time since. `None` when there
    /// never was an answer.
    pub fn bound_at(self, killed: Instant) -> Option<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        // A panic in there was printed.
        let _ = self.thread.join();
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.map(|sample| sample.rpo + killed.saturating_duration_since(sample.asked))
    }
}
