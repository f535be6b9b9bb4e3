//! Writes to base images, which are nobody's answer: they wait here and go to the kernel by the batch, few at a time while
//! anything else is under way.

use std::collections::VecDeque;

use super::operation::Submission;

/// Writes in the kernel at once: beside other work so few that the device's queue is left to those who wait for an answer, and as
/// many as the core has under way when there is nothing else.
const WRITES_BUSY: u32 = 4;
const WRITES_IDLE: u32 = 16;
/// Bytes of them from which on no further one goes beside other work.
const BYTES_BUSY: u64 = 1 << 20;

/// What waits, and what of it is in the kernel.
#[derive(Default)]
pub(super) struct Lull {
    waiting: VecDeque<(Submission, u64)>,
    writes: u32,
    bytes: u64,
}

impl Lull {
    /// A write of so many bytes waits.
    pub fn push(&mut self, submission: Submission, bytes: u64) {
        self.waiting.push_back((submission, bytes));
    }

    /// Writes in the kernel.
    pub fn under_way(&self) -> u32 {
        self.writes
    }

    /// Gives waiting writes to `backlog`, once half of those that may be under way have ended: the device works on one half while
    /// the other comes together. `is_busy`: something else is under way.
    pub fn release(&mut self, is_busy: bool, backlog: &mut VecDeque<Submission>) {
        let (most, bytes) = if is_busy { (WRITES_BUSY, BYTES_BUSY) } else { (WRITES_IDLE, u64::MAX) };
        if self.writes > most / 2 {
            return;
        }
        while self.writes < most
            && self.bytes < bytes
            && let Some((submission, len)) = self.waiting.pop_front()
        {
            self.writes += 1;
            self.bytes += len;
            backlog.push_back(submission);
        }
    }

    /// A write of so many bytes has ended.
    pub fn ended(&mut self, bytes: u64) {
        self.writes -= 1;
        self.bytes -= bytes;
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}
