//! Replies on their way out: encoded when a request ends, in any order, gathered into one vectored write per wakeup.
//!
//! A request holds its slot and its bytes from the moment it is admitted until its reply has left through the socket, so a
//! client that does not read its replies stops being read from. Headers of replies lie next to each other in one buffer; data
//! is not copied.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;
use tidemark_core::types::ByteRange;

use super::decode::Room;
use super::meta::{Contexts, MetaContext, context_id};
use super::proto::{
    Errno, MAX_EXTENTS, allocation_flag, put_data_chunk, put_error_chunk, put_hole_chunk, put_simple_reply,
    put_status_chunk,
};
use crate::frontend::Allocation;

/// Slices handed to one vectored write. More would cost stack, and the kernel takes at most 1024.
const MAX_SLICES: usize = 128;
/// Pieces of data below this are copied next to their header: a slice of their own would cost more.
const COPY_BELOW_BYTES: usize = 512;
/// A piece of a READ is looked at for zeros only from this size on.
const HOLE_FROM_BYTES: usize = 4096;
/// Written headers are dropped from the front of their buffer when they reach this.
const COMPACT_BYTES: usize = 64 * 1024;

#[derive(Debug)]
enum Segment {
    /// So many bytes of `heads`.
    Heads(usize),
    Data(Bytes),
}

/// The end of a reply in the stream, and what its request held.
#[derive(Debug)]
struct Mark {
    end: u64,
    held_bytes: usize,
}

/// Replies not yet written, and the room their requests take.
#[derive(Debug)]
pub struct Replies {
    structured: bool,
    contexts: Contexts,
    heads: Vec<u8>,
    heads_written: usize,
    segments: VecDeque<Segment>,
    marks: VecDeque<Mark>,
    queued: u64,
    written: u64,
    room: Room,
}

impl Replies {
    /// Nothing to write; `room` is what the connection may have under way at once.
    pub fn new(structured: bool, contexts: Contexts, room: Room) -> Self {
        Self {
            structured,
            contexts,
            heads: Vec::new(),
            heads_written: 0,
            segments: VecDeque::new(),
            marks: VecDeque::new(),
            queued: 0,
            written: 0,
            room,
        }
    }

    /// What may be admitted now.
    pub fn room(&self) -> Room {
        self.room
    }

    /// A request is under way and holds so many bytes; one of the `put` methods ends it.
    pub fn admit(&mut self, held_bytes: usize) {
        self.room.requests -= 1;
        self.room.bytes -= held_bytes;
    }

    /// True when everything has been written.
    pub fn is_empty(&self) -> bool {
        self.queued == self.written
    }

    /// Ends a request without data, or with an error.
    pub fn put_end(&mut self, cookie: u64, result: Result<(), Errno>, held_bytes: usize) {
        self.put_heads(|out| put_simple_reply(out, cookie, result.err()));
        self.end(held_bytes);
    }

    /// Ends a request whose replies have to be structured when that was agreed on, with an error.
    pub fn put_error(&mut self, cookie: u64, error: Errno, held_bytes: usize) {
        if self.structured {
            self.put_heads(|out| put_error_chunk(out, cookie, error));
            self.end(held_bytes);
        } else {
            self.put_end(cookie, Err(error), held_bytes);
        }
    }

    /// Ends a READ of `range` with its pieces, which make up exactly the range.
    pub fn put_read(&mut self, cookie: u64, range: ByteRange, pieces: Vec<Bytes>, one_chunk: bool) {
        let held_bytes = range.len as usize;
        if !self.structured {
            self.put_heads(|out| put_simple_reply(out, cookie, None));
            pieces.into_iter().for_each(|piece| self.put_data(piece));
        } else if one_chunk || !pieces.iter().any(is_hole) {
            self.put_heads(|out| put_data_chunk(out, cookie, true, range.offset, wire(range.len)));
            pieces.into_iter().for_each(|piece| self.put_data(piece));
        } else {
            self.put_chunks(cookie, range, pieces);
        }
        self.end(held_bytes);
    }

    /// One chunk for each run of pieces that are all zeros, or all not.
    fn put_chunks(&mut self, cookie: u64, range: ByteRange, pieces: Vec<Bytes>) {
        let mut offset = range.offset;
        let mut pieces = pieces.into_iter().map(|piece| (is_hole(&piece), piece)).peekable();
        while let Some((hole, first)) = pieces.next() {
            let mut run = vec![first];
            run.extend(std::iter::from_fn(|| pieces.next_if(|(kind, _)| *kind == hole)).map(|(_, piece)| piece));
            let len = run.iter().map(|piece| piece.len() as u64).sum::<u64>();
            let done = pieces.peek().is_none();
            if hole {
                self.put_heads(|out| put_hole_chunk(out, cookie, done, offset, wire(len)));
            } else {
                self.put_heads(|out| put_data_chunk(out, cookie, done, offset, wire(len)));
                run.into_iter().for_each(|piece| self.put_data(piece));
            }
            offset += len;
        }
    }

    /// Ends a BLOCK_STATUS of `range`: one chunk for each chosen context.
    pub fn put_status(&mut self, cookie: u64, range: ByteRange, allocation: &Allocation, one: bool) {
        let extents = extents(range, allocation, if one { 1 } else { MAX_EXTENTS });
        if extents.is_empty() {
            return self.put_error(cookie, Errno::Io, 0);
        }
        let contexts = std::mem::take(&mut self.contexts);
        for (place, context) in contexts.iter().enumerate() {
            let done = place + 1 == contexts.len();
            match context {
                MetaContext::Allocation => {
                    self.put_heads(|out| put_status_chunk(out, cookie, done, context_id(place), &extents));
                }
            }
        }
        self.contexts = contexts;
        self.end(0);
    }

    fn put_heads(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        let before = self.heads.len();
        put(&mut self.heads);
        self.grew_heads(self.heads.len() - before);
    }

    fn grew_heads(&mut self, len: usize) {
        self.queued += len as u64;
        match self.segments.back_mut() {
            Some(Segment::Heads(bytes)) => *bytes += len,
            _ => self.segments.push_back(Segment::Heads(len)),
        }
    }

    fn put_data(&mut self, piece: Bytes) {
        if piece.len() < COPY_BELOW_BYTES {
            self.heads.extend_from_slice(&piece);
            return self.grew_heads(piece.len());
        }
        self.queued += piece.len() as u64;
        self.segments.push_back(Segment::Data(piece));
    }

    fn end(&mut self, held_bytes: usize) {
        self.marks.push_back(Mark { end: self.queued, held_bytes });
    }

    /// Calls `write` with the front of what is to be written.
    pub fn gather<R>(&self, write: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut head = self.heads_written;
        let mut count = 0;
        for (slot, segment) in slices.iter_mut().zip(&self.segments) {
            *slot = match segment {
                Segment::Heads(len) => {
                    head += len;
                    IoSlice::new(&self.heads[head - len..head])
                }
                Segment::Data(piece) => IoSlice::new(piece),
            };
            count += 1;
        }
        write(&slices[..count])
    }

    /// So many bytes have left; gives the room of the replies that have left whole back.
    pub fn wrote(&mut self, len: usize) {
        self.written += len as u64;
        assert!(self.written <= self.queued, "more written than queued");
        self.drop_segments(len);
        self.compact();
        while self.marks.front().is_some_and(|mark| mark.end <= self.written) {
            if let Some(mark) = self.marks.pop_front() {
                self.room.requests += 1;
                self.room.bytes += mark.held_bytes;
            }
        }
    }

    fn drop_segments(&mut self, mut len: usize) {
        while len > 0 {
            let Some(front) = self.segments.front_mut() else { return };
            let taken = match front {
                Segment::Heads(bytes) => {
                    let taken = len.min(*bytes);
                    *bytes -= taken;
                    self.heads_written += taken;
                    taken
                }
                Segment::Data(piece) => {
                    let taken = len.min(piece.len());
                    *piece = piece.slice(taken..);
                    taken
                }
            };
            len -= taken;
            if matches!(front, Segment::Heads(0)) || matches!(front, Segment::Data(piece) if piece.is_empty()) {
                self.segments.pop_front();
            }
        }
    }

    fn compact(&mut self) {
        if self.heads_written == self.heads.len() {
            self.heads.clear();
            self.heads_written = 0;
        } else if self.heads_written >= COMPACT_BYTES {
            self.heads.drain(..self.heads_written);
            self.heads_written = 0;
        }
    }
}

/// The extents of an allocation (which is gapless) inside `range`, neighbours of the same kind merged, at most `limit`.
fn extents(range: ByteRange, allocation: &Allocation, limit: usize) -> Vec<(u32, u32)> {
    let mut extents: Vec<(u32, u32)> = Vec::new();
    let mut start = range.offset;
    for (part, hole) in allocation {
        let end = part.end().min(range.end());
        if end <= start {
            continue;
        }
        let (len, flags) = (wire(end - start), if *hole { allocation_flag::HOLE | allocation_flag::ZERO } else { 0 });
        let full = extents.len() == limit;
        match extents.last_mut() {
            Some(last) if last.1 == flags => last.0 += len,
            _ if full => break,
            _ => extents.push((len, flags)),
        }
        start = end;
    }
    extents
}

/// True for zeros that are worth a chunk of their own.
fn is_hole(piece: &Bytes) -> bool {
    piece.len() >= HOLE_FROM_BYTES && piece[..8] == [0; 8] && is_zero(piece)
}

/// Compares in strides the compiler turns into vector instructions.
fn is_zero(bytes: &[u8]) -> bool {
    let (strides, rest) = bytes.as_chunks::<64>();
    strides.iter().all(|stride| stride == &[0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// A length inside one request: its own length came in 32 bits.
fn wire(len: u64) -> u32 {
    u32::try_from(len).expect("no longer than the request, whose length has 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { requests: 8, bytes: 1 << 20 };

    fn replies(structured: bool) -> Replies {
        Replies::new(structured, vec![MetaContext::Allocation], ROOM)
    }

    /// Lets everything leave, `step` bytes at a time.
    fn drain(replies: &mut Replies, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !replies.is_empty() {
            let bytes: Vec<u8> = replies.gather(|slices| slices.iter().flat_map(|s| s.to_vec()).take(step).collect());
            assert!(!bytes.is_empty());
            replies.wrote(bytes.len());
            all.extend(bytes);
        }
        all
    }

    fn block(fill: u8) -> Bytes {
        vec![fill; 4096].into()
    }

    #[test]
    fn data_and_headers_leave_in_order_whatever_the_socket_takes() {
        let fill = |replies: &mut Replies| {
            for cookie in 0..4 {
                replies.admit(4608);
                let pieces = vec![block(cookie as u8 + 1), vec![9; 100].into(), vec![8; 412].into()];
                replies.put_read(cookie, ByteRange::new(0, 4608), pieces, true);
                replies.admit(0);
                replies.put_end(cookie, Ok(()), 0);
            }
        };
        let mut whole = replies(false);
        fill(&mut whole);
        let expected = drain(&mut whole, usize::MAX);
        assert_eq!(expected.len(), 4 * (16 + 4608 + 16));
        for step in [1, 7, 16, 4097] {
            let mut replies = replies(false);
            fill(&mut replies);
            assert_eq!(drain(&mut replies, step), expected);
            assert_eq!(replies.room(), ROOM);
        }
    }

    #[test]
    fn room_comes_back_when_the_reply_has_left_whole() {
        let mut replies = replies(false);
        replies.admit(512);
        assert_eq!(replies.room(), Room { requests: 7, bytes: (1 << 20) - 512 });
        replies.put_read(1, ByteRange::new(0, 512), vec![vec![1; 512].into()], false);
        replies.wrote(16 + 511);
        assert_eq!(replies.room().requests, 7);
        replies.wrote(1);
        assert_eq!(replies.room(), ROOM);
    }

    #[test]
    fn zeros_become_holes_unless_one_chunk_is_asked_for() {
        let range = ByteRange::new(4096, 5 * 4096);
        let pieces = || vec![block(1), block(0), block(0), block(2), block(0)];
        let mut expected = Vec::new();
        put_data_chunk(&mut expected, 3, false, 4096, 4096);
        expected.extend([1; 4096]);
        put_hole_chunk(&mut expected, 3, false, 2 * 4096, 2 * 4096);
        put_data_chunk(&mut expected, 3, false, 4 * 4096, 4096);
        expected.extend([2; 4096]);
        put_hole_chunk(&mut expected, 3, true, 5 * 4096, 4096);
        let mut chunked = replies(true);
        chunked.admit(5 * 4096);
        chunked.put_read(3, range, pieces(), false);
        assert_eq!(drain(&mut chunked, usize::MAX), expected);

        let mut whole = replies(true);
        whole.admit(5 * 4096);
        whole.put_read(3, range, pieces(), true);
        assert_eq!(drain(&mut whole, usize::MAX).len(), 28 + 5 * 4096);
    }

    #[test]
    fn a_block_that_only_starts_with_zeros_is_data() {
        let mut piece = vec![0; 4096];
        piece[4095] = 1;
        assert!(!is_hole(&piece.into()));
        assert!(is_hole(&block(0)));
        assert!(!is_hole(&vec![0; 512].into()));
    }

    #[test]
    fn extents_are_clipped_and_merged() {
        let part = |offset, len, hole| (ByteRange::new(offset, len), hole);
        let allocation = vec![part(0, 4096, false), part(4096, 4096, false), part(8192, 4096, true)];
        let range = ByteRange::new(512, 8192);
        assert_eq!(extents(range, &allocation, 10), [(7680, 0), (512, 3)]);
        assert_eq!(extents(range, &allocation, 1), [(7680, 0)]);
        assert_eq!(extents(ByteRange::new(1 << 20, 512), &allocation, 1), []);
    }

    #[test]
    fn an_allocation_without_an_answer_is_an_error() {
        let mut replies = replies(true);
        replies.admit(0);
        replies.put_status(1, ByteRange::new(0, 512), &vec![], false);
        let mut expected = Vec::new();
        put_error_chunk(&mut expected, 1, Errno::Io);
        assert_eq!(drain(&mut replies, usize::MAX), expected);
    }

    #[test]
    fn written_headers_do_not_pile_up() {
        let mut replies = replies(false);
        replies.admit(0);
        replies.put_end(0, Ok(()), 0);
        for cookie in 1..100_000 {
            replies.admit(0);
            replies.put_end(cookie, Ok(()), 0);
            replies.wrote(16);
        }
        assert!(replies.heads.len() <= COMPACT_BYTES + 32);
    }
}
