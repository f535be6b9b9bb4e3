//! Says in the log what failed on which file, without letting a failing device fill it.

use std::io;
use std::time::{Duration, Instant};

use tidemark_core::event::DiskError;

use super::operation::Op;

/// Failures are logged at most once per this time; the others are counted.
const INTERVAL: Duration = Duration::from_secs(1);

/// Keeps a failing device from filling the log.
#[derive(Default)]
pub(super) struct Complaints {
    last: Option<Instant>,
    silent: u64,
}

impl Complaints {
    /// An operation failed; `errno` is 0 where the system named no error.
    pub fn raise(&mut self, op: &Op, error: DiskError, errno: i32) {
        if matches!(error, DiskError::Missing | DiskError::Short) {
            return; // an answer rather than a failure: the core knows what it means
        }
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < INTERVAL) {
            self.silent += 1;
            return;
        }
        self.last = Some(now);
        let (what, file, offset) = op.work.describe();
        let path = file.path().display();
        let (volume, silent) = (op.volume.0, std::mem::take(&mut self.silent));
        let cause = io::Error::from_raw_os_error(errno);
        tracing::warn!(volume, what, %path, offset, %cause, silent, "a disk operation failed: {error}");
    }
}
