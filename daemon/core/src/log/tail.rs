//! The newest frames in memory: what the sender ships and reads serve without touching the disk. Bounded by bytes; a frame
//! that is still on its way to the disk is never dropped.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::event::Slot;
use crate::format::frame::FrameHeader;
use crate::types::{BLOCK, Boundary, Lsn};

/// A frame in memory.
#[derive(Clone, Debug)]
pub struct TailFrame {
    /// First record.
    pub first: Lsn,
    /// Boundary after it.
    pub end: Boundary,
    /// Slot it lies in.
    pub slot: Slot,
    /// Block number in the slot of its first payload block.
    pub payload_block: u32,
    /// Header, padded.
    pub header: Bytes,
    /// Used bytes of the header.
    pub used: usize,
    /// Payload pieces.
    pub payload: Vec<Bytes>,
    /// Bytes in all.
    pub bytes: u64,
}

impl TailFrame {
    /// A frame as it was placed.
    pub fn new(header: &FrameHeader, slot: Slot, payload_block: u32, bytes: Bytes, payload: Vec<Bytes>) -> Self {
        Self {
            first: header.first,
            end: header.boundary(),
            slot,
            payload_block,
            used: header.used_bytes(),
            bytes: (bytes.len() + header.payload_bytes()) as u64,
            header: bytes,
            payload,
        }
    }

    /// Appends the blocks `[block, block + count)` of the slot, as pieces, to `out`.
    pub fn slice(&self, block: u32, count: u32, out: &mut Vec<Bytes>) {
        let mut skip = (block - self.payload_block) as usize * BLOCK;
        let mut want = count as usize * BLOCK;
        for piece in &self.payload {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let take = want.min(piece.len() - skip);
            out.push(piece.slice(skip..skip + take));
            want -= take;
            skip = 0;
            if want == 0 {
                return;
            }
        }
        unreachable!("the index names only blocks that the frame has");
    }
}

/// The newest frames.
#[derive(Debug)]
pub struct Tail {
    frames: VecDeque<TailFrame>,
    bytes: u64,
    limit: u64,
}

impl Tail {
    /// At most about `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { frames: VecDeque::new(), bytes: 0, limit }
    }

    /// Adds the newest frame.
    pub fn push(&mut self, frame: TailFrame) {
        self.bytes += frame.bytes;
        self.frames.push_back(frame);
    }

    /// Drops the oldest frames over the limit that are written (`<= appended`).
    pub fn trim(&mut self, appended: Lsn) {
        while self.bytes > self.limit && self.frames.front().is_some_and(|f| f.end.position.lsn <= appended) {
            if let Some(f) = self.frames.pop_front() {
                self.bytes -= f.bytes;
            }
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
    }

    /// The frame that holds `lsn`.
    pub fn holding(&self, lsn: Lsn) -> Option<&TailFrame> {
        let at = self.frames.partition_point(|f| f.end.position.lsn < lsn);
        self.frames.get(at).filter(|f| f.first <= lsn)
    }

    /// Bytes of the frames held from `lsn` on, as far as they are below `limit`: beyond it, at least that much.
    pub fn bytes_from(&self, lsn: Lsn, limit: u64) -> u64 {
        let mut bytes = 0;
        for frame in self.frames.iter().rev().take_while(|f| f.end.position.lsn >= lsn) {
            bytes += frame.bytes;
            if bytes >= limit {
                break;
            }
        }
        bytes
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Frames held.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// True when no frame is held.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}
