//! What the peer is not known to have durable: how much, and since when. Status shows it as the RPO, and it is what a follower hears
//! that it may lack.

use std::collections::VecDeque;

use crate::node::Node;
use crate::types::{BLOCK, Lsn, Nanos};

/// Samples of "when was it written" kept for the RPO.
const MAX_WRITTEN: usize = 4096;

/// Frames, oldest first.
#[derive(Debug, Default)]
pub(super) struct Written {
    frames: VecDeque<Frame>,
    /// Bytes of all frames ever noted here.
    total: u64,
}

/// A frame, or several of which the older are no longer told apart.
#[derive(Clone, Copy, Debug)]
struct Frame {
    last: Lsn,
    /// When the first of them was placed.
    at: Nanos,
    /// Bytes of all that came before them.
    before: u64,
}

impl Written {
    fn note(&mut self, last: Lsn, at: Nanos, bytes: u64) {
        self.frames.push_back(Frame { last, at, before: self.total });
        self.total += bytes;
        if self.frames.len() > MAX_WRITTEN {
            self.thin();
        }
    }

    /// Pairs of the older half become one: what is said of them is never too little, and memory is bounded.
    fn thin(&mut self) {
        let newer = self.frames.split_off(MAX_WRITTEN / 2);
        let older: Vec<Frame> = self.frames.drain(..).collect();
        let merged = older.chunks(2).map(|pair| Frame { last: pair[pair.len() - 1].last, ..pair[0] });
        self.frames.extend(merged.chain(newer));
    }

    fn forget(&mut self, known: Lsn) {
        while self.frames.front().is_some_and(|frame| frame.last <= known) {
            self.frames.pop_front();
        }
    }

    /// Bytes that are left, and since when.
    fn left(&self) -> Option<(u64, Nanos)> {
        self.frames.front().map(|frame| (self.total - frame.before, frame.at))
    }

    pub fn clear(&mut self) {
        self.frames.clear();
    }
}

impl Node {
    /// A frame was placed in the log.
    pub(super) fn note_written(&mut self, now: Nanos, last: Lsn, bytes: u64) {
        self.written.note(last, now, bytes);
    }

    /// The log was read: what it holds and the peer was never heard to have counts from now on.
    pub(super) fn count_recovered(&mut self, now: Nanos) {
        self.written.clear();
        let known = self.superblock.remembered.map_or(Lsn::ZERO, |peer| peer.position.lsn);
        let frames = self.log.segments.live().flat_map(|segment| &segment.frames);
        for frame in frames.filter(|frame| frame.last > known) {
            self.written.note(frame.last, now, u64::from(frame.blocks) * BLOCK as u64);
        }
    }

    pub(super) fn forget_written(&mut self) {
        let known = match &self.link {
            Some(link) if self.superblock.peer.is_some() => link.sender.durable(),
            _ if self.superblock.peer.is_some() => return,
            _ => self.log.durable(),
        };
        self.written.forget(known);
    }

    /// Bytes and age, in milliseconds, of what the peer is not known to have durable.
    pub(super) fn backlog(&self, now: Nanos) -> (u64, u64) {
        if self.superblock.peer.is_none() || self.k.primary != Some(self.site) {
            return (0, 0);
        }
        match self.written.left() {
            Some((bytes, since)) => (bytes + self.log.pending_bytes(), now.since(since) / 1_000_000),
            None => (self.log.pending_bytes(), 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_never_said_to_be_less_than_it_is() {
        let mut written = Written::default();
        let frames = 3 * MAX_WRITTEN as u64;
        for n in 1..=frames {
            written.note(Lsn(n), Nanos(n), 10);
        }
        assert!(written.frames.len() <= MAX_WRITTEN);
        for known in 0..frames {
            written.forget(Lsn(known));
            let (bytes, since) = written.left().expect("the newest is missing");
            assert!(bytes >= (frames - known) * 10, "{known}: {bytes}");
            assert!(since <= Nanos(known + 1), "{known}: {since:?}");
        }
        written.forget(Lsn(frames));
        assert!(written.left().is_none());
    }
}
