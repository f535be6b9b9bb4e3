//! One connection in the transmission phase: a single task that reads requests, hands them to the volume and writes replies.
//!
//! It decides when to read (while there is room) and when to write (once per wakeup, everything that ended); what the bytes
//! mean is decided in [`super::decode`] and [`super::reply`]. Nothing here is shared with another thread: completions run on
//! the same thread and leave their replies in the [`Outbox`] beside the task.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::decode::{Command, Decoder, Step};
use super::error::ConnectionError;
use super::negotiate::Ready;
use super::outbox::Outbox;
use super::server::Options;
use super::stage::Stage;
use super::wire::Wire;
use crate::frontend::BlockTarget;

/// How long the answers of a client that said goodbye are waited for.
const LINGER: Duration = Duration::from_secs(10);
/// Rounds of reading and writing in one poll, before other tasks of the thread have their turn.
const ROUNDS: usize = 4;

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
    /// Goes on behind the handshake.
    pub fn new(ready: Ready, target: Rc<dyn BlockTarget>, options: &Options) -> Self {
        let Ready { wire, negotiated, leftover } = ready;
        let has_contexts = !negotiated.contexts.is_empty();
        Self {
            wire,
            stage: Stage::new(&leftover),
            decoder: Decoder::new(negotiated.structured, has_contexts, options.pool.clone()),
            reading: Reading::Open,
            target,
            outbox: Outbox::new(negotiated.structured, negotiated.contexts, options.metrics.clone()),
        }
    }

    /// What is under way, for who outlives the connection.
    pub fn outbox(&self) -> Rc<Outbox> {
        self.outbox.clone()
    }

    /// Serves until the client goes away.
    ///
    /// # Errors
    /// The stream broke, or the client broke the protocol.
    pub async fn run(mut self) -> Result<(), ConnectionError> {
        self.serve().await?;
        // Whoever is gone for good does not need the answers: this ends early with an error, or with the deadline.
        let drained = tokio::time::timeout(LINGER, poll_fn(|cx| self.poll_drain(cx))).await;
        drained.unwrap_or(Ok(()))
    }

    /// As [`Connection::run`], and waits for no answers at the end.
    ///
    /// # Errors
    /// The stream broke, or the client broke the protocol.
    pub async fn serve(&mut self) -> Result<(), ConnectionError> {
        poll_fn(|cx| self.poll_serve(cx)).await
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
                self.outbox.sleep();
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.outbox.polled(cx);
        while !self.outbox.is_idle() {
            if self.poll_write(cx)?.is_pending() {
                self.outbox.sleep();
                return Poll::Pending;
            }
        }
        ready!(self.wire.poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }

    /// Hands everything that has arrived whole to the volume.
    fn serve_staged(&mut self) -> Result<(), ConnectionError> {
        if self.reading == Reading::Ended {
            return Ok(());
        }
        let geometry = self.target.geometry();
        loop {
            let room = self.outbox.room();
            let (taken, step) = self.decoder.step(self.stage.unread(), &geometry, room)?;
            self.stage.take(taken);
            self.reading = match step {
                Step::More if taken > 0 => continue,
                Step::More => Reading::Open,
                Step::Full => Reading::Full,
                Step::Disconnect => Reading::Ended,
                Step::Refused { cookie, error, chunked } => {
                    self.outbox.refuse(cookie, error, chunked);
                    continue;
                }
                Step::Request { cookie, command } => {
                    self.note_payload(&command);
                    self.outbox.submit(self.target.as_ref(), cookie, command);
                    continue;
                }
            };
            return Ok(());
        }
    }

    fn note_payload(&mut self, command: &Command) {
        if let Command::Write { data, .. } = command {
            self.stage.expect_payload(data.len());
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
        let mut replies = self.outbox.replies();
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
