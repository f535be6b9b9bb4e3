//! Whether a FLUSH is to be expected behind the next frame.
//!
//! A database that commits writes one piece of its journal and flushes it, again and again. Its FLUSH then costs a second trip to
//! the disk and to the peer, unless the frame was made durable at both with the first. Whoever flushed behind a single frame the
//! last time is expected to do so again. A wrong guess costs one durable write per FLUSH, and no answer depends on one.

/// Frames between the FLUSHes of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Habit {
    /// Frames between the last two FLUSHes that had any before them.
    last: u64,
    /// Frames since the last FLUSH.
    since: u64,
}

impl Habit {
    /// A frame was built.
    pub fn framed(&mut self) {
        self.since += 1;
    }

    /// A FLUSH arrived.
    pub fn flushed(&mut self) {
        if self.since > 0 {
            self.last = std::mem::take(&mut self.since);
        }
    }

    /// True when a FLUSH is likely to follow the next frame.
    pub fn expects_flush(&self) -> bool {
        (self.last, self.since) == (1, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(steps: &str) -> Habit {
        let mut habit = Habit::default();
        for step in steps.chars() {
            if step == 'w' { habit.framed() } else { habit.flushed() }
        }
        habit
    }

    #[test]
    fn a_flush_is_expected_of_who_flushed_behind_a_single_frame() {
        assert!(!after("").expects_flush(), "nothing is known yet");
        assert!(after("wf").expects_flush());
        assert!(after("wfff").expects_flush(), "a flush of nothing says nothing");
        assert!(!after("wwf").expects_flush());
        assert!(after("wwfwf").expects_flush());
    }

    #[test]
    fn a_run_of_frames_is_guessed_at_once_at_most() {
        assert!(!after("wfw").expects_flush());
        assert!(!after("wfwwwwww").expects_flush());
    }
}
