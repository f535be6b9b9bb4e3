//! When an answer may go out (R1, R2).
//!
//! Two queues, both in log order: writes that wait for `appended`, and promises (FLUSH, FUA, every write under `ackOn: write`)
//! that wait for durability wherever K asks for it. This file keeps the queues; what "durable everywhere" means is one number
//! that the node computes from K, so that a promise is judged against one K at a time.

use std::collections::VecDeque;

use crate::event::RequestId;
use crate::planted::{Planted, planted};
use crate::types::{BlockRange, Lsn};
use crate::volume::habit::Habit;

/// A write that has its number.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Highest number of its records.
    pub lsn: Lsn,
    /// The request; `None` for the core's own records.
    pub id: Option<RequestId>,
    /// Its promise: it also waits for R2.
    pub promise: bool,
    /// Blocks, for reads that must wait under `ackOn: write`.
    pub range: BlockRange,
}

/// The queues of answers.
#[derive(Default, Debug)]
pub struct Acks {
    writes: VecDeque<Write>,
    promises: VecDeque<(Lsn, RequestId, Option<BlockRange>)>,
    completed: Lsn,
    habit: Habit,
    /// The end of the newest frame behind which a FLUSH is expected: treated as promised, though nobody waits yet.
    expected: Lsn,
}

impl Acks {
    /// A write got its number.
    pub fn wrote(&mut self, write: Write) {
        debug_assert!(self.writes.back().is_none_or(|w| w.lsn <= write.lsn));
        self.writes.push_back(write);
    }

    /// The volume opens with everything up to `lsn`: reads return it, so a FLUSH covers it as if it had just been written. What
    /// an earlier opening completed beyond that is not part of this history.
    pub fn opened_with(&mut self, lsn: Lsn) {
        self.completed = lsn;
    }

    /// A verb was answered that wrote up to `lsn`: a FLUSH covers what an operator was told as it does what a client was.
    pub fn answered(&mut self, lsn: Lsn) {
        self.completed = self.completed.max(lsn);
    }

    /// A FLUSH arrived: it covers every request whose reply was queued before.
    pub fn flush(&mut self, id: RequestId) -> Lsn {
        self.habit.flushed();
        let lsn = if planted(Planted::FlushCoversTooLittle) { self.completed.prev() } else { self.completed };
        self.promise(lsn, id, None);
        lsn
    }

    /// True when a FLUSH is likely to follow the next frame.
    pub fn expects_flush(&self) -> bool {
        self.habit.expects_flush()
    }

    /// A frame was built that ends at `last`; `expected`: made durable for the FLUSH that is to follow.
    pub fn framed(&mut self, last: Lsn, expected: bool) {
        self.habit.framed();
        if expected {
            self.expected = last;
        }
    }

    /// The log was cut or starts over: the frame of that number may be another one.
    pub fn forget_expected(&mut self) {
        self.expected = Lsn::ZERO;
    }

    /// `id` completes once everything up to `lsn` is durable where K asks for it.
    fn promise(&mut self, lsn: Lsn, id: RequestId, range: Option<BlockRange>) {
        let at = self.promises.iter().rposition(|(l, _, _)| *l <= lsn).map_or(0, |i| i + 1);
        self.promises.insert(at, (lsn, id, range));
    }

    /// `appended` reached `upto`: gives the requests that complete now; promises move to their queue.
    pub fn on_appended(&mut self, upto: Lsn, done: &mut Vec<RequestId>) {
        while let Some(w) = self.writes.front().copied().filter(|w| w.lsn <= upto) {
            self.writes.pop_front();
            match (w.id, w.promise) {
                (Some(id), true) => self.promise(w.lsn, id, Some(w.range)),
                (Some(id), false) => {
                    self.completed = self.completed.max(w.lsn);
                    done.push(id);
                }
                (None, _) => {}
            }
        }
    }

    /// Everything up to `upto` is durable wherever K asks for it: gives the promises that complete now.
    pub fn on_committed(&mut self, upto: Lsn, done: &mut Vec<RequestId>) {
        while let Some((lsn, id, _)) = self.promises.front().copied().filter(|p| p.0 <= upto) {
            self.promises.pop_front();
            self.completed = self.completed.max(lsn);
            done.push(id);
        }
    }

    /// The highest position that a promise waits for, if any.
    pub fn wanted(&self) -> Option<Lsn> {
        self.promises.back().map(|p| p.0)
    }

    /// The highest position that a promise waits for, will wait for once it is appended, or is expected to wait for, if any.
    pub fn newest_promise(&self) -> Option<Lsn> {
        let write = self.writes.iter().rev().find(|w| w.promise).map(|w| w.lsn);
        write.max(self.wanted()).max(Some(self.expected))
    }

    /// True when a promise waits, will wait, or is expected to wait, for one of these positions.
    pub fn is_promised(&self, first: Lsn, last: Lsn) -> bool {
        let within = |lsn: Lsn| first <= lsn && lsn <= last;
        within(self.expected)
            || self.writes.iter().any(|w| w.promise && within(w.lsn))
            || self.promises.iter().any(|p| within(p.0))
    }

    /// True when a write over this range is not acknowledged yet.
    pub fn is_unacknowledged(&self, range: BlockRange) -> bool {
        self.writes.iter().any(|w| w.range.overlaps(range))
            || self.promises.iter().any(|(_, _, r)| r.is_some_and(|r| r.overlaps(range)))
    }

    /// Requests not yet answered.
    pub fn len(&self) -> usize {
        self.writes.len() + self.promises.len()
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.promises.is_empty()
    }

    /// Takes every waiting request out: they will be failed.
    pub fn take_all(&mut self) -> Vec<RequestId> {
        let writes = self.writes.drain(..).filter_map(|w| w.id);
        let all: Vec<_> = writes.chain(self.promises.drain(..).map(|p| p.1)).collect();
        all
    }

    /// The highest number of any request that was answered: what a FLUSH that arrives now must cover.
    pub fn completed(&self) -> Lsn {
        self.completed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(lsn: u64, promise: bool) -> Write {
        Write { lsn: Lsn(lsn), id: Some(RequestId(lsn)), promise, range: BlockRange::new(lsn, 1) }
    }

    #[test]
    fn a_flush_covers_what_was_answered_and_nothing_else() {
        let mut acks = Acks::default();
        let mut done = Vec::new();
        acks.wrote(write(1, false));
        acks.wrote(write(2, false));
        acks.on_appended(Lsn(1), &mut done);
        assert_eq!(done, [RequestId(1)]);
        assert_eq!(acks.flush(RequestId(9)), Lsn(1));
        acks.on_appended(Lsn(2), &mut done);
        acks.on_committed(Lsn(0), &mut done);
        assert_eq!(done.len(), 2, "the flush waits");
        acks.on_committed(Lsn(1), &mut done);
        assert_eq!(done[2], RequestId(9));
    }

    #[test]
    fn a_promised_write_waits_for_both_and_hides_its_blocks_until_then() {
        let mut acks = Acks::default();
        let mut done = Vec::new();
        acks.wrote(write(1, true));
        acks.on_appended(Lsn(1), &mut done);
        assert!(done.is_empty());
        assert!(acks.is_unacknowledged(BlockRange::new(0, 5)));
        assert_eq!(acks.wanted(), Some(Lsn(1)));
        acks.on_committed(Lsn(1), &mut done);
        assert_eq!(done, [RequestId(1)]);
        assert!(!acks.is_unacknowledged(BlockRange::new(0, 5)));
        assert_eq!(acks.completed(), Lsn(1));
    }
}
