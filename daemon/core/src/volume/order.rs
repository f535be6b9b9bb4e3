//! Which changing requests may run: no lost update between two requests that share a block.
//!
//! A request whose edge lies inside a block reads that block first and holds its whole range until its record has a number;
//! every other changing request that overlaps a held block, or an earlier waiting request, waits in arrival order, so that
//! overlapping requests take effect as they came. Requests of whole blocks that meet nobody never enter this table for longer
//! than one call.

use std::collections::VecDeque;

use crate::event::RequestId;
use crate::types::BlockRange;

#[derive(Clone, Copy, Debug)]
struct Held {
    id: RequestId,
    range: BlockRange,
}

/// The table of held blocks and waiting requests.
#[derive(Default, Debug)]
pub struct Order {
    held: Vec<Held>,
    waiting: VecDeque<Held>,
}

impl Order {
    /// A request over `range` arrives. True: it may run now. False: it waits, and [`Order::release`] will name it.
    pub fn arrive(&mut self, id: RequestId, range: BlockRange) -> bool {
        let free = !self.conflicts(range, self.waiting.len());
        if !free {
            self.waiting.push_back(Held { id, range });
        }
        free
    }

    /// A running request holds `range` until [`Order::release`].
    pub fn hold(&mut self, id: RequestId, range: BlockRange) {
        self.held.push(Held { id, range });
    }

    /// The request ended or has its number: gives back the waiting requests that may run now, in order. The caller runs each
    /// before the next, as each may hold blocks again.
    pub fn release(&mut self, id: RequestId) {
        self.held.retain(|h| h.id != id);
    }

    /// The next waiting request that may run now.
    pub fn next_ready(&mut self) -> Option<RequestId> {
        let at = (0..self.waiting.len()).find(|i| !self.conflicts(self.waiting[*i].range, *i))?;
        self.waiting.remove(at).map(|w| w.id)
    }

    /// Forgets a waiting request (I/O was aborted).
    pub fn forget_all(&mut self) {
        self.held.clear();
        self.waiting.clear();
    }

    /// Requests waiting.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn conflicts(&self, range: BlockRange, before: usize) -> bool {
        self.held.iter().any(|h| h.range.overlaps(range))
            || self.waiting.iter().take(before).any(|w| w.range.overlaps(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_requests_run_in_arrival_order() {
        let mut order = Order::default();
        let (a, b, c, d) = (RequestId(1), RequestId(2), RequestId(3), RequestId(4));
        assert!(order.arrive(a, BlockRange::new(0, 1)));
        order.hold(a, BlockRange::new(0, 1));
        assert!(!order.arrive(b, BlockRange::new(0, 4)));
        assert!(!order.arrive(c, BlockRange::new(3, 1)), "behind b, though nobody holds block 3");
        assert!(order.arrive(d, BlockRange::new(9, 1)));
        assert_eq!(order.next_ready(), None);
        order.release(a);
        assert_eq!(order.next_ready(), Some(b));
        order.hold(b, BlockRange::new(0, 4));
        assert_eq!(order.next_ready(), None, "c came after b");
        order.release(b);
        assert_eq!(order.next_ready(), Some(c));
        assert_eq!(order.next_ready(), None);
    }
}
