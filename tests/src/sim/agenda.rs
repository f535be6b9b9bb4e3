//! What will happen, by time; of what is due at the same time, what was put in first.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

#[derive(Debug)]
struct Due<E>(u64, u64, E);

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl<E> Eq for Due<E> {}
impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Due<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// The queue of a world.
#[derive(Debug)]
pub struct Agenda<E> {
    queue: BinaryHeap<Reverse<Due<E>>>,
    order: u64,
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { queue: BinaryHeap::new(), order: 0 }
    }
}

impl<E> Agenda<E> {
    /// Something is to happen at that time, in nanoseconds.
    pub fn put(&mut self, when: u64, ev: E) {
        self.order += 1;
        self.queue.push(Reverse(Due(when, self.order, ev)));
    }

    /// What happens next, and when.
    pub fn pop(&mut self) -> Option<(u64, E)> {
        self.queue.pop().map(|Reverse(Due(when, _, ev))| (when, ev))
    }
}
