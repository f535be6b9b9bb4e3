//! One connection in the transmission phase: a single task that reads requests, hands them to the volume and writes replies.
//!
//! It decides when to read (while there is room) and when to write (once per wakeup, everything that ended); what the bytes
//! mean is decided in [`super::decode`] and [`super::reply`]. Nothing here is shared with another thread: completions run on
//! the same thread and leave their replies in a queue beside the task.
//!
//! Invariants: every admitted request is answered exactly once, also when the volume drops it; replies are never mixed; what a
//! client can make us hold is bounded by [`Room`].

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use tidemark_core::event::{ReplyData, Request, RequestError};
use tidemark_core::types::ByteRange;

use super::decode::{Command, Decoder, Room, Step};
use super::error::ConnectionError;
use super::handshake::Negotiated;
use super::metrics::NbdMetrics;
use super::payload::Payloads;
use super::proto::{Errno, MAX_PAYLOAD_BYTES};
use super::reply::Replies;
use super::stage::Stage;
use super::wire::Wire;
use crate::frontend::{Allocation, BlockTarget};

/// What one connection may have under way: requests, and bytes of data.
pub const ROOM: Room = Room { requests: 128, bytes: MAX_PAYLOAD_BYTES as usize };
/// How long the answers of a client that said goodbye are waited for.
const LINGER: Duration = Duration::from_secs(10);
/// Rounds of reading and writing in one poll, before other tasks of the thread have their turn.
const ROUNDS: usize = 4;

/// The replies of a connection and how to wake its task.
struct Outbox {
    replies: RefCell<Replies>,
    waker: RefCell<Option<Waker>>,
    awake: Cell<bool>,
    metrics: NbdMetrics,
}

impl Outbox {
    fn polled(&self, cx: &Context<'_>) {
        self.awake.set(true);
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Queues a reply; the task is woken once for all that end before it runs.
    fn put(&self, put: impl FnOnce(&mut Replies)) {
        put(&mut self.replies.borrow_mut());
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

/// Why reading ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reading {
    /// It goes on.
    Open,
    /// The next request waits for room.
    Full,
    /// The client said goodbye, or closed its side.
    Ended,
}

/// A connection that serves one volume.
pub struct Connection {
    wire: Wire,
    stage: Stage,
    decoder: Decoder,
    reading: Reading,
    target: Rc<dyn BlockTarget>,
    outbox: Rc<Outbox>,
}

impl Connection {
    /// Goes on behind the handshake; `leftover` is what arrived after it.
    pub fn new(
        wire: Wire,
        negotiated: Negotiated,
        leftover: &[u8],
        target: Rc<dyn BlockTarget>,
        metrics: NbdMetrics,
    ) -> Self {
        let has_contexts = !negotiated.contexts.is_empty();
        let replies = RefCell::new(Replies::new(negotiated.structured, negotiated.contexts, ROOM));
        Self {
            wire,
            stage: Stage::new(leftover),
            decoder: Decoder::new(negotiated.structured, has_contexts, Payloads),
            reading: Reading::Open,
            target,
            outbox: Rc::new(Outbox { replies, waker: RefCell::default(), awake: Cell::new(true), metrics }),
        }
    }

    /// Serves until the client goes away.
    ///
    /// # Errors
    /// The stream broke, or the client broke the protocol.
    pub async fn run(mut self) -> Result<(), ConnectionError> {
        poll_fn(|cx| self.poll_serve(cx)).await?;
        // Whoever is gone for good does not need the answers: this ends early with an error, or with the deadline.
        let drained = tokio::time::timeout(LINGER, poll_fn(|cx| self.poll_drain(cx))).await;
        drained.unwrap_or(Ok(()))
    }

    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.outbox.polled(cx);
        for _ in 0..ROUNDS {
            self.serve_staged()?;
            let wrote = self.poll_write(cx)?.is_ready();
            if self.reading == Reading::Ended {
                return Poll::Ready(Ok(()));
            }
            let read = self.poll_fill(cx)?.is_ready();
            if !wrote && !read {
                self.outbox.awake.set(false);
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.outbox.polled(cx);
        while !self.is_idle() {
            if self.poll_write(cx)?.is_pending() {
                self.outbox.awake.set(false);
                return Poll::Pending;
            }
        }
        ready!(self.wire.poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }

    fn is_idle(&self) -> bool {
        self.outbox.replies.borrow().room() == ROOM
    }

    /// Hands everything that has arrived whole to the volume.
    fn serve_staged(&mut self) -> Result<(), ConnectionError> {
        if self.reading == Reading::Ended {
            return Ok(());
        }
        let geometry = self.target.geometry();
        loop {
            let room = self.outbox.replies.borrow().room();
            let (taken, step) = self.decoder.step(self.stage.unread(), &geometry, room)?;
            self.stage.take(taken);
            self.reading = match step {
                Step::More if taken > 0 => continue,
                Step::More => Reading::Open,
                Step::Full => Reading::Full,
                Step::Disconnect => Reading::Ended,
                Step::Refused { cookie, error, read } => {
                    self.refuse(cookie, error, read);
                    continue;
                }
                Step::Request { cookie, command } => {
                    self.submit(cookie, command);
                    continue;
                }
            };
            return Ok(());
        }
    }

    fn refuse(&self, cookie: u64, error: Errno, read: bool) {
        self.outbox.metrics.errors.inc();
        self.outbox.put(|replies| {
            replies.admit(0);
            if read { replies.put_error(cookie, error, 0) } else { replies.put_end(cookie, Err(error), 0) }
        });
    }

    fn submit(&mut self, cookie: u64, command: Command) {
        let held_bytes = command.held_bytes();
        self.outbox.metrics.requests.inc();
        self.outbox.replies.borrow_mut().admit(held_bytes);
        let ticket = Ticket { outbox: self.outbox.clone(), cookie, held_bytes, answered: false };
        match command {
            Command::Read { range, one_chunk } => {
                let done = Box::new(move |result| ticket.end_read(range, one_chunk, result));
                self.target.submit(Request::Read { range }, done);
            }
            Command::Write { range, data, fua } => {
                self.stage.expect_payload(data.len());
                self.outbox.metrics.written_bytes.inc_by(range.len);
                self.target.submit(Request::Write { range, data, fua }, Box::new(move |result| ticket.end(result)));
            }
            Command::Zero { range, discard, fua } => {
                self.target.submit(Request::Zero { range, discard, fua }, Box::new(move |result| ticket.end(result)));
            }
            Command::Flush => self.target.submit(Request::Flush, Box::new(move |result| ticket.end(result))),
            Command::BlockStatus { range, one } => {
                self.target.allocation(range, Box::new(move |result| ticket.end_status(range, one, result)));
            }
        }
    }

    /// Reads once: into the payload under way and the stage behind it.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        if self.reading == Reading::Full {
            return Poll::Pending;
        }
        let len = match self.decoder.payload_mut() {
            Some(payload) => {
                let len = ready!(self.wire.poll_read_two(cx, payload.rest_mut(), self.stage.space_mut()))?;
                let direct = len.min(payload.missing());
                payload.advance(direct);
                self.stage.filled(len - direct);
                len
            }
            None => {
                let len = ready!(self.wire.poll_read(cx, self.stage.space_mut()))?;
                self.stage.filled(len);
                len
            }
        };
        if len == 0 {
            self.reading = Reading::Ended;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes once: everything that ended. Ready when something left.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let mut replies = self.outbox.replies.borrow_mut();
        if replies.is_empty() {
            return match self.wire.poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            };
        }
        let wire = &mut self.wire;
        let len = ready!(replies.gather(|slices| wire.poll_write(cx, slices)))?;
        replies.wrote(len);
        Poll::Ready(Ok(()))
    }
}
