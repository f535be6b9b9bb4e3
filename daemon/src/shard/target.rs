//! One volume of a copy as its frontends see it: requests are moved to where the volume lies in the group's space, and taken apart
//! where it lies in several places. A volume that lies in one place costs a look at the layout.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use tidemark_core::event::{ReplyData, Request, RequestError};
use tidemark_core::layout::{Extent, Layout};
use tidemark_core::types::{ByteRange, VolumeId};

use super::Volume;
use crate::frontend::{Allocation, AllocationCompletion, BlockTarget, Completion, Geometry};

/// A volume of a copy.
pub(super) struct Target {
    copy: Rc<Volume>,
    volume: VolumeId,
}

impl Target {
    pub(super) fn new(copy: Rc<Volume>, volume: VolumeId) -> Self {
        Self { copy, volume }
    }
}

impl BlockTarget for Target {
    fn geometry(&self) -> Geometry {
        let size = self.copy.layout().volume_size(self.volume).unwrap_or(0);
        Geometry { size, ..self.copy.terms() }
    }

    fn submit(&self, request: Request, done: Completion) {
        self.copy.submit_to(self.volume, request, done);
    }

    fn allocation(&self, range: ByteRange, done: AllocationCompletion) {
        let pieces = self.copy.layout().pieces(self.volume, range);
        done(pieces.map(|pieces| self.allocated(range, &pieces)).ok_or(RequestError::Invalid));
    }

    fn is_serving(&self) -> bool {
        self.copy.is_serving()
    }
}

impl Target {
    /// The answers for `pieces` of the group's space, as ranges of the volume from the start of `range` on.
    fn allocated(&self, range: ByteRange, pieces: &[ByteRange]) -> Allocation {
        let (mut out, mut at): (Allocation, u64) = (Vec::new(), range.offset);
        for (found, hole) in pieces.iter().flat_map(|piece| self.copy.allocated(*piece)) {
            match out.last_mut() {
                Some((last, was)) if *was == hole => last.len += found.len,
                _ => out.push((ByteRange::new(at, found.len), hole)),
            }
            at += found.len;
        }
        out
    }
}

/// Moves a request of a volume to where that lies, if that is one place; else gives it back.
pub(super) fn moved(layout: &Layout, volume: VolumeId, request: Request) -> Result<Request, Request> {
    let Some(range) = range_of(&request) else { return Ok(request) }; // a flush is the group's
    let mut at = 0;
    for extent in layout.of(volume) {
        if at <= range.offset && range.end() <= at + extent.len {
            return Ok(with_range(request, ByteRange::new(moved_to(extent, range.offset - at), range.len), None));
        }
        at += extent.len;
    }
    Err(request)
}

fn moved_to(extent: &Extent, offset: u64) -> u64 {
    extent.start + offset
}

/// The requests that one of a volume is in the group's space, where the volume lies in several places.
pub(super) fn parts(layout: &Layout, volume: VolumeId, request: &Request) -> Option<Vec<Request>> {
    let range = range_of(request)?;
    let mut from = 0;
    let part = |piece: ByteRange| {
        let data = match request {
            Request::Write { data, .. } => {
                Some(data.get(from..from + piece.len as usize).map(|_| data.slice(from..from + piece.len as usize))?)
            }
            _ => None,
        };
        from += piece.len as usize;
        Some(with_range(request.clone(), piece, data))
    };
    layout.pieces(volume, range)?.into_iter().map(part).collect()
}

fn range_of(request: &Request) -> Option<ByteRange> {
    match request {
        Request::Read { range } | Request::Write { range, .. } | Request::Zero { range, .. } => Some(*range),
        Request::Flush => None,
    }
}

/// The same request elsewhere; a write with these data, if any are given.
fn with_range(request: Request, range: ByteRange, part: Option<Bytes>) -> Request {
    match request {
        Request::Read { .. } => Request::Read { range },
        Request::Write { data, fua, .. } => Request::Write { range, data: part.unwrap_or(data), fua },
        Request::Zero { discard, fua, .. } => Request::Zero { range, discard, fua },
        Request::Flush => Request::Flush,
    }
}

/// The answers to the parts of a request, put together when all are there.
pub(super) struct Parts {
    answers: RefCell<Vec<Option<Result<ReplyData, RequestError>>>>,
    done: RefCell<Option<Completion>>,
}

impl Parts {
    pub(super) fn of(parts: usize, done: Completion) -> Rc<Self> {
        let answers = (0..parts).map(|_| None).collect();
        Rc::new(Self { answers: RefCell::new(answers), done: RefCell::new(Some(done)) })
    }

    /// What to call with the answer to a part.
    pub(super) fn part(self: &Rc<Self>, number: usize) -> Completion {
        let all = Rc::clone(self);
        Box::new(move |answer| all.answered(number, answer))
    }

    fn answered(&self, number: usize, answer: Result<ReplyData, RequestError>) {
        let mut answers = self.answers.borrow_mut();
        answers[number] = Some(answer);
        if answers.iter().any(Option::is_none) {
            return;
        }
        let all: Result<Vec<ReplyData>, RequestError> = answers.drain(..).flatten().collect();
        drop(answers);
        if let Some(done) = self.done.take() {
            done(all.map(|parts| parts.into_iter().flatten().collect()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const A: VolumeId = VolumeId([1; 16]);
    const B: VolumeId = VolumeId([2; 16]);

    /// The first volume lies before and behind the second.
    fn layout() -> Layout {
        Layout::one(A, 8192).added(B, 4096).unwrap().grown(A, 16384).unwrap()
    }

    fn read(offset: u64, len: u64) -> Request {
        Request::Read { range: ByteRange::new(offset, len) }
    }

    #[test]
    fn a_request_is_moved_to_where_its_volume_lies() {
        let layout = layout();
        assert_eq!(moved(&layout, A, read(512, 512)), Ok(read(512, 512)));
        assert_eq!(moved(&layout, B, read(0, 4096)), Ok(read(8192, 4096)));
        assert_eq!(moved(&layout, A, read(8192, 8192)), Ok(read(12288, 8192)));
        assert_eq!(moved(&layout, B, Request::Flush), Ok(Request::Flush));
        for (volume, outside) in [(B, read(4096, 512)), (A, read(16384, 512)), (VolumeId([9; 16]), read(0, 512))] {
            assert_eq!(moved(&layout, volume, outside.clone()), Err(outside.clone()));
            assert_eq!(parts(&layout, volume, &outside), None, "{outside:?}");
        }
    }

    #[test]
    fn a_write_over_the_end_of_an_extent_is_two_with_their_own_data() {
        let data = Bytes::from(vec![1; 1024]).into_iter().enumerate().map(|(i, _)| (i / 512) as u8).collect::<Bytes>();
        let write = Request::Write { range: ByteRange::new(8192 - 512, 1024), data: data.clone(), fua: true };
        let write = moved(&layout(), A, write).unwrap_err();
        let wanted = [(8192 - 512, 0..512), (12288, 512..1024)].map(|(offset, range)| Request::Write {
            range: ByteRange::new(offset, 512),
            data: data.slice(range),
            fua: true,
        });
        assert_eq!(parts(&layout(), A, &write).unwrap(), wanted);
        let short = Request::Write { range: ByteRange::new(8192 - 512, 1024), data: data.slice(..512), fua: false };
        assert_eq!(parts(&layout(), A, &short), None, "data of another length");
    }

    #[test]
    fn the_answers_are_put_together_in_order_and_one_error_is_the_answer() {
        let answer = Rc::new(RefCell::new(None));
        let seen = Rc::clone(&answer);
        let parts = Parts::of(2, Box::new(move |answer| *seen.borrow_mut() = Some(answer)));
        let (first, second) = (parts.part(0), parts.part(1));
        second(Ok(vec![Bytes::from_static(b"b")]));
        assert!(answer.borrow().is_none());
        first(Ok(vec![Bytes::from_static(b"a")]));
        assert_eq!(answer.take().unwrap().unwrap().concat(), b"ab");
        let failed = Rc::new(Cell::new(false));
        let seen = Rc::clone(&failed);
        let parts = Parts::of(2, Box::new(move |answer| seen.set(answer == Err(RequestError::Io))));
        parts.part(0)(Err(RequestError::Io));
        parts.part(1)(Ok(Vec::new()));
        assert!(failed.get());
    }
}
