//! A volume in memory, for tests and for measuring frontends by themselves. Not durable, of course.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use tidemark_core::event::{ReplyData, Request, RequestError};
use tidemark_core::types::{BLOCK, ByteRange};

use super::{Allocation, AllocationCompletion, BlockTarget, Completion, Geometry};

/// Blocks by number; those that are missing are holes.
type Blocks = BTreeMap<u64, Bytes>;

/// When requests are answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answers {
    /// Before `submit` returns.
    AtOnce,
    /// When the test calls [`MemoryTarget::release`].
    Held,
}

/// A volume in memory that keeps its requests in order.
pub struct MemoryTarget {
    state: RefCell<State>,
    held: RefCell<VecDeque<Box<dyn FnOnce()>>>,
    answers: Answers,
}

struct State {
    geometry: Geometry,
    blocks: Blocks,
    serving: bool,
    failing: Option<RequestError>,
    flushes: u64,
    discards: u64,
}

impl MemoryTarget {
    /// An empty volume of `size` bytes.
    pub fn new(size: u64, answers: Answers) -> Self {
        let geometry = Geometry { size, write_through: false, read_only: false };
        let state = State { geometry, blocks: Blocks::new(), serving: true, failing: None, flushes: 0, discards: 0 };
        Self { state: RefCell::new(state), held: RefCell::default(), answers }
    }

    /// Changes what is advertised.
    pub fn set_read_only(&self, read_only: bool) {
        self.state.borrow_mut().geometry.read_only = read_only;
    }

    /// Starts or stops serving.
    pub fn set_serving(&self, serving: bool) {
        self.state.borrow_mut().serving = serving;
    }

    /// From now on every request fails like this.
    pub fn set_failing(&self, error: Option<RequestError>) {
        self.state.borrow_mut().failing = error;
    }

    /// Flushes and writes with FUA so far.
    pub fn flushes(&self) -> u64 {
        self.state.borrow().flushes
    }

    /// Zeroing requests that allowed to give space back so far.
    pub fn discards(&self) -> u64 {
        self.state.borrow().discards
    }

    /// Requests that wait for [`MemoryTarget::release`].
    pub fn held(&self) -> usize {
        self.held.borrow().len()
    }

    /// Answers one held request: the oldest, or the newest; false when there is none.
    pub fn release(&self, oldest: bool) -> bool {
        let mut held = self.held.borrow_mut();
        let next = if oldest { held.pop_front() } else { held.pop_back() };
        drop(held);
        next.map(|answer| answer()).is_some()
    }

    /// Forgets all held requests without an answer.
    pub fn forget(&self) {
        let held = std::mem::take(&mut *self.held.borrow_mut());
        drop(held);
    }

    fn answer(&self, answer: impl FnOnce() + 'static) {
        match self.answers {
            Answers::AtOnce => answer(),
            Answers::Held => self.held.borrow_mut().push_back(Box::new(answer)),
        }
    }
}

impl BlockTarget for MemoryTarget {
    fn geometry(&self) -> Geometry {
        self.state.borrow().geometry.clone()
    }

    fn submit(&self, request: Request, done: Completion) {
        let result = self.state.borrow_mut().apply(request);
        self.answer(move || done(result));
    }

    fn allocation(&self, range: ByteRange, done: AllocationCompletion) {
        let state = self.state.borrow();
        let result = state.failing.map_or_else(|| Ok(state.allocation(range)), Err);
        drop(state);
        self.answer(move || done(result));
    }

    fn is_serving(&self) -> bool {
        self.state.borrow().serving
    }
}

impl State {
    fn apply(&mut self, request: Request) -> Result<ReplyData, RequestError> {
        if !self.serving {
            return Err(RequestError::NotServing);
        }
        if let Some(error) = self.failing {
            return Err(error);
        }
        match request {
            Request::Read { range } => Ok(self.read(range)),
            Request::Write { range, data, fua } => {
                assert_eq!(range.len, data.len() as u64, "data fits its range");
                assert_eq!(data.as_ptr().align_offset(BLOCK), 0, "payloads are aligned");
                self.flushes += u64::from(fua);
                each_block(range, |block, within, at| self.write_block(block, within, data.slice(at)));
                Ok(ReplyData::new())
            }
            Request::Zero { range, discard, fua } => {
                self.flushes += u64::from(fua);
                self.discards += u64::from(discard);
                each_block(range, |block, within, _| self.zero_block(block, within, discard));
                Ok(ReplyData::new())
            }
            Request::Flush => {
                self.flushes += 1;
                Ok(ReplyData::new())
            }
        }
    }

    fn read(&self, range: ByteRange) -> ReplyData {
        static ZEROS: [u8; BLOCK] = [0; BLOCK];
        let mut pieces = ReplyData::new();
        each_block(range, |block, within, _| {
            let whole = self.blocks.get(&block).cloned().unwrap_or(Bytes::from_static(&ZEROS));
            pieces.push(whole.slice(within));
        });
        pieces
    }

    fn write_block(&mut self, block: u64, within: std::ops::Range<usize>, data: Bytes) {
        if within.len() == BLOCK {
            self.blocks.insert(block, data);
            return;
        }
        let mut whole = self.blocks.get(&block).map_or_else(|| BytesMut::zeroed(BLOCK), |old| old[..].into());
        whole[within].copy_from_slice(&data);
        self.blocks.insert(block, whole.freeze());
    }

    fn zero_block(&mut self, block: u64, within: std::ops::Range<usize>, discard: bool) {
        if within.len() == BLOCK {
            self.blocks.remove(&block);
        } else if !discard && self.blocks.contains_key(&block) {
            let zeros = Bytes::from(vec![0; within.len()]);
            self.write_block(block, within, zeros);
        }
    }

    fn allocation(&self, range: ByteRange) -> Allocation {
        let mut allocation = Allocation::new();
        each_block(range, |block, within, _| {
            let hole = !self.blocks.contains_key(&block);
            let part = ByteRange::new(block * BLOCK as u64 + within.start as u64, within.len() as u64);
            match allocation.last_mut() {
                Some((last, kind)) if *kind == hole => last.len += part.len,
                _ => allocation.push((part, hole)),
            }
        });
        allocation
    }
}

/// Calls `each` with every block of the range, the part of the block, and the part of the range.
fn each_block(range: ByteRange, mut each: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>)) {
    let mut offset = range.offset;
    while offset < range.end() {
        let start = (offset % BLOCK as u64) as usize;
        let len = (BLOCK - start).min((range.end() - offset) as usize);
        let at = (offset - range.offset) as usize;
        each(offset / BLOCK as u64, start..start + len, at..at + len);
        offset += len as u64;
    }
}
