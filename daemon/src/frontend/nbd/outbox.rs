//! Requests under way at the volume, and their answers on the way back to the connection's task.
//!
//! Invariants: every admitted request is answered exactly once, also when the volume drops it; what a client can make us hold is
//! bounded by [`ROOM`]; the task is woken once for all answers that come before it runs.

use std::cell::{Cell, RefCell, RefMut};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tidemark_core::event::{ReplyData, Request, RequestError};
use tidemark_core::types::ByteRange;

use super::decode::{Command, Room};
use super::meta::Contexts;
use super::metrics::NbdMetrics;
use super::proto::{Errno, MAX_PAYLOAD_BYTES};
use super::reply::Replies;
use crate::frontend::{Allocation, BlockTarget};

/// What one connection may have under way: requests, and bytes of data.
pub const ROOM: Room = Room { requests: 128, bytes: MAX_PAYLOAD_BYTES as usize };

/// The replies of a connection and how to wake its task.
pub struct Outbox {
    replies: RefCell<Replies>,
    waker: RefCell<Option<Waker>>,
    awake: Cell<bool>,
    metrics: NbdMetrics,
}

impl Outbox {
    /// Nothing under way; `contexts` as chosen in the handshake.
    pub fn new(structured: bool, contexts: Contexts, metrics: NbdMetrics) -> Rc<Self> {
        let replies = RefCell::new(Replies::new(structured, contexts, ROOM));
        Rc::new(Self { replies, waker: RefCell::default(), awake: Cell::new(true), metrics })
    }

    /// What may be admitted now.
    pub fn room(&self) -> Room {
        self.replies.borrow().room()
    }

    /// True when every admitted request has been answered and the answer has left.
    pub fn is_idle(&self) -> bool {
        self.room() == ROOM
    }

    /// The replies to write. Not to be held over anything that may end a request.
    pub fn replies(&self) -> RefMut<'_, Replies> {
        self.replies.borrow_mut()
    }

    /// The task runs: replies that end from now on need no wakeup, until [`Outbox::sleep`].
    pub fn polled(&self, cx: &Context<'_>) {
        self.awake.set(true);
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// The task goes to sleep: the next reply wakes it.
    pub fn sleep(&self) {
        self.awake.set(false);
    }

    /// Answers a request that never got to the volume.
    pub fn refuse(&self, cookie: u64, error: Errno, chunked: bool) {
        self.metrics.errors.inc();
        self.put(|replies| {
            replies.admit(0);
            if chunked { replies.put_error(cookie, error, 0) } else { replies.put_end(cookie, Err(error), 0) }
        });
    }

    /// Hands a request to the volume; the answer may come before this returns.
    pub fn submit(self: &Rc<Self>, target: &dyn BlockTarget, cookie: u64, command: Command) {
        let held_bytes = command.held_bytes();
        self.metrics.requests.inc();
        self.replies().admit(held_bytes);
        let ticket = Ticket { outbox: self.clone(), cookie, held_bytes, answered: false };
        match command {
            Command::Read { range, one_chunk } => {
                let done = Box::new(move |result| ticket.end_read(range, one_chunk, result));
                target.submit(Request::Read { range }, done);
            }
            Command::Write { range, data, fua } => {
                self.metrics.written_bytes.inc_by(range.len);
                target.submit(Request::Write { range, data, fua }, Box::new(move |result| ticket.end(result)));
            }
            Command::Zero { range, discard, fua } => {
                target.submit(Request::Zero { range, discard, fua }, Box::new(move |result| ticket.end(result)));
            }
            Command::Flush => target.submit(Request::Flush, Box::new(move |result| ticket.end(result))),
            Command::BlockStatus { range, one } => {
                target.allocation(range, Box::new(move |result| ticket.end_status(range, one, result)));
            }
        }
    }

    /// Waits until the volume has answered everything; the answers are for nobody any more.
    pub async fn settled(&self) {
        poll_fn(|cx| self.poll_settled(cx)).await;
    }

    fn poll_settled(&self, cx: &Context<'_>) -> Poll<()> {
        self.polled(cx);
        loop {
            let mut replies = self.replies();
            if replies.is_empty() {
                break;
            }
            let len = replies.gather(|slices| slices.iter().map(|slice| slice.len()).sum());
            replies.wrote(len);
        }
        if self.is_idle() {
            return Poll::Ready(());
        }
        self.sleep();
        Poll::Pending
    }

    /// Queues a reply; the task is woken once for all that end before it runs.
    fn put(&self, put: impl FnOnce(&mut Replies)) {
        put(&mut self.replies());
        if !self.awake.replace(true)
            && let Some(waker) = self.waker.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }
}

/// The right and duty to answer one admitted request.
struct Ticket {
    outbox: Rc<Outbox>,
    cookie: u64,
    held_bytes: usize,
    answered: bool,
}

impl Ticket {
    fn end(mut self, result: Result<ReplyData, RequestError>) {
        self.answered = true;
        match result {
            Ok(_) => self.outbox.put(|replies| replies.put_end(self.cookie, Ok(()), self.held_bytes)),
            Err(error) => {
                self.outbox.metrics.errors.inc();
                self.outbox.put(|replies| replies.put_end(self.cookie, Err(errno(error)), self.held_bytes));
            }
        }
    }

    fn end_read(mut self, range: ByteRange, one_chunk: bool, result: Result<ReplyData, RequestError>) {
        match result {
            Ok(pieces) if length(&pieces) == range.len => {
                self.answered = true;
                self.outbox.metrics.read_bytes.inc_by(range.len);
                self.outbox.put(|replies| replies.put_read(self.cookie, range, pieces, one_chunk));
            }
            Ok(_) => self.fail(Errno::Io),
            Err(error) => self.fail(errno(error)),
        }
    }

    fn end_status(mut self, range: ByteRange, one: bool, result: Result<Allocation, RequestError>) {
        match result {
            Ok(allocation) => {
                self.answered = true;
                self.outbox.put(|replies| replies.put_status(self.cookie, range, &allocation, one));
            }
            Err(error) => self.fail(errno(error)),
        }
    }

    /// Fails in the form of a READ's reply.
    fn fail(&mut self, error: Errno) {
        self.answered = true;
        self.outbox.metrics.errors.inc();
        self.outbox.put(|replies| replies.put_error(self.cookie, error, self.held_bytes));
    }
}

impl Drop for Ticket {
    /// The volume went away with the request: the client must not wait for ever.
    fn drop(&mut self) {
        if !self.answered {
            self.fail(Errno::Shutdown);
        }
    }
}

fn errno(error: RequestError) -> Errno {
    match error {
        RequestError::Invalid => Errno::Inval,
        RequestError::NotServing => Errno::Shutdown,
        RequestError::Io => Errno::Io,
    }
}

fn length(pieces: &[Bytes]) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}
