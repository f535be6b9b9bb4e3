//! The stream of one volume between two agents, as the shard sees it: messages of the core in and out, conversion at the edge.
//!
//! Nothing is queued on the way in: [`Inbound`] reads straight from the HTTP/2 stream, whose window is the bound. On the way
//! out the core's own windows are the bound; [`MAX_QUEUED_BYTES`] is the limit that a bug or a stuck peer runs into.
//! Both halves are used on the thread that owns the connection, so that no message crosses threads.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tidemark_core::ship::{Hello, Message};
use tidemark_core::types::VolumeId;
use tidemark_proto::peer::Envelope;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel};
use tokio_stream::Stream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::convert::{self, Malformed};
use super::refusal::PeerRefusal;
use super::tls::PeerIdentity;
use super::transport::{Fault, PeerConnection, Transport};

/// The most bytes that may wait to be sent on one stream.
pub const MAX_QUEUED_BYTES: usize = 64 << 20;
/// What a message without a payload counts as.
const SMALL_MESSAGE_BYTES: usize = 256;
/// How long the first message of a stream may take.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream to the peer's copy of a volume.
#[derive(Debug)]
pub struct PeerStream {
    /// Who is at the other end, as its certificate proves; `None` without TLS. [`Hello`] cannot claim another.
    pub identity: Option<PeerIdentity>,
    /// Address of the other end.
    pub remote: SocketAddr,
    /// What it says.
    pub inbound: Inbound,
    /// What we say.
    pub outbound: Outbound,
}

/// How a stream ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamEnd {
    /// The other end closed in order.
    #[error("closed by the peer")]
    Closed,
    /// It sent something that cannot be understood.
    #[error("malformed message: {0}")]
    Malformed(#[from] Malformed),
    /// It is not who it says, or its certificate is refused.
    #[error("peer refused: {0}")]
    Refused(PeerRefusal),
    /// It refuses us.
    #[error("the peer refused this agent: {0}")]
    RefusedUs(PeerRefusal),
    /// Its first message is not Hello, or is late.
    #[error("the peer did not say hello")]
    NoHello,
    /// It has no copy of the volume.
    #[error("the peer has no copy of this volume")]
    NoVolume,
    /// It sent more in one message than the limit.
    #[error("message above {} bytes", convert::MAX_ENCODED_BYTES)]
    TooLarge,
    /// The connection broke, or the other end reported a failure of its own.
    #[error("connection lost: {0}")]
    Lost(String),
}

/// Why a message was not taken for sending.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The stream has ended; [`Inbound`] says how.
    #[error("the stream has ended")]
    Closed,
    /// More than [`MAX_QUEUED_BYTES`] wait already: close the stream.
    #[error("more than {MAX_QUEUED_BYTES} bytes wait to be sent")]
    Full,
}

impl PeerStream {
    /// Ends the stream with a reason that the other end can read.
    pub fn refuse(self, end: &StreamEnd) {
        self.outbound.end(status_of(end));
    }
}

// ---- in -------------------------------------------------------------------------------------------------------------

/// The receiving half. Dropping it ends the stream.
pub struct Inbound {
    streaming: Streaming<Envelope>,
    connection: PeerConnection,
    transport: Transport,
    /// Read before the stream was handed over.
    first: Option<Message>,
    /// Once the stream has ended it stays so.
    ended: Option<StreamEnd>,
    answer: Answer,
}

/// How a fault is told to the other end.
enum Answer {
    /// A server ends its half with a status.
    Status(WeakUnboundedSender<Outgoing>),
    /// A client can only reset; it keeps the connection alive and knows what TLS had against it.
    Reset { fault: Fault, _channel: Channel },
}

impl Inbound {
    pub(super) fn of_server(
        streaming: Streaming<Envelope>,
        connection: PeerConnection,
        transport: Transport,
        outbound: &Outbound,
    ) -> Self {
        let answer = Answer::Status(outbound.queue.downgrade());
        Self { streaming, connection, transport, first: None, ended: None, answer }
    }

    pub(super) fn of_client(
        streaming: Streaming<Envelope>,
        connection: PeerConnection,
        transport: Transport,
        fault: Fault,
        channel: Channel,
    ) -> Self {
        let answer = Answer::Reset { fault, _channel: channel };
        Self { streaming, connection, transport, first: None, ended: None, answer }
    }

    /// Waits for a message, then appends it and all that are ready, at most `limit`, to `into`. Returns how many. Nothing is
    /// lost when the future is dropped.
    ///
    /// # Errors
    /// How the stream ended, after everything before that was delivered; the same again at every later call.
    pub async fn recv_many(&mut self, into: &mut Vec<Message>, limit: usize) -> Result<usize, StreamEnd> {
        poll_fn(|cx| self.poll_many(cx, into, limit)).await
    }

    /// Waits for one message.
    ///
    /// # Errors
    /// As [`Self::recv_many`].
    pub async fn recv(&mut self) -> Result<Message, StreamEnd> {
        poll_fn(|cx| self.poll_one(cx)).await
    }

    /// As [`Self::recv_many`], for those who poll.
    pub fn poll_many(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Vec<Message>,
        limit: usize,
    ) -> Poll<Result<usize, StreamEnd>> {
        let mut count = 0;
        while count < limit {
            match self.poll_one(cx) {
                Poll::Ready(Ok(message)) => into.push(message),
                Poll::Ready(Err(end)) if count == 0 => return Poll::Ready(Err(end)),
                Poll::Pending if count == 0 => return Poll::Pending,
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
            count += 1;
        }
        Poll::Ready(Ok(count))
    }

    fn poll_one(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, StreamEnd>> {
        if let Some(message) = self.first.take() {
            return Poll::Ready(Ok(message));
        }
        if let Some(end) = &self.ended {
            return Poll::Ready(Err(end.clone()));
        }
        let received = ready!(Pin::new(&mut self.streaming).poll_next(cx));
        Poll::Ready(self.understand(received).inspect_err(|end| self.end(end)))
    }

    fn understand(&self, received: Option<Result<Envelope, Status>>) -> Result<Message, StreamEnd> {
        let envelope = received.ok_or(StreamEnd::Closed)?.map_err(|status| self.end_of(&status))?;
        let message = convert::from_wire(envelope)?;
        if let Message::Hello(hello) = &message {
            self.check_claim(hello)?;
        }
        Ok(message)
    }

    /// What Hello claims must be what the certificate proves.
    fn check_claim(&self, hello: &Hello) -> Result<(), StreamEnd> {
        let claimed = PeerIdentity { site: hello.site, node: hello.node };
        match self.connection.identity {
            Some(proven) if proven != claimed => {
                let detail = format_args!("{proven} claims to be {claimed}").to_string();
                let refusal = self.transport.refuse(PeerRefusal::WrongSite, self.connection.remote, &detail);
                Err(StreamEnd::Refused(refusal))
            }
            _ => Ok(()),
        }
    }

    fn end_of(&self, status: &Status) -> StreamEnd {
        match &self.answer {
            Answer::Reset { fault, .. } => end_of_status(status, fault),
            Answer::Status(_) => end_of_status(status, &Fault::default()),
        }
    }

    fn end(&mut self, end: &StreamEnd) {
        self.ended = Some(end.clone());
        if let (Answer::Status(queue), false) = (&self.answer, *end == StreamEnd::Closed)
            && let Some(queue) = queue.upgrade()
        {
            // The other half may have ended before.
            let _ = queue.send(Outgoing::End(Box::new(status_of(end))));
        }
    }

    /// Waits for Hello and keeps it as the first message to be received. Returns the volume that it names.
    pub(super) async fn await_hello(&mut self) -> Result<VolumeId, StreamEnd> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, self.recv()).await.map_err(|_| StreamEnd::NoHello)??;
        let Message::Hello(hello) = &first else { return Err(StreamEnd::NoHello) };
        let volume = hello.volume;
        self.first = Some(first);
        Ok(volume)
    }
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound")
            .field("connection", &self.connection)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

// ---- out ------------------------------------------------------------------------------------------------------------

/// The sending half. Dropping it ends our half in order, after what was sent.
#[derive(Debug)]
pub struct Outbound {
    queue: UnboundedSender<Outgoing>,
    queued: Arc<AtomicUsize>,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every entry is a message: boxing each would cost an allocation per frame"
)]
enum Outgoing {
    Message(Message),
    End(Box<Status>),
}

impl Outbound {
    pub(super) fn pair() -> (Self, OutgoingQueue) {
        let (queue, receiver) = unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        (Self { queue, queued: Arc::clone(&queued) }, OutgoingQueue { receiver, queued, ended: false })
    }

    /// Takes a message for sending; messages sent in one go leave together.
    ///
    /// # Errors
    /// [`SendError`]; the message is then lost, as everything is that is under way when a stream ends.
    pub fn send(&self, message: Message) -> Result<(), SendError> {
        let bytes = weight(&message);
        if self.queued.load(Relaxed) + bytes > MAX_QUEUED_BYTES {
            return Err(SendError::Full);
        }
        self.queued.fetch_add(bytes, Relaxed);
        self.queue.send(Outgoing::Message(message)).map_err(|_| SendError::Closed)
    }

    /// Bytes taken but not yet handed to the connection.
    pub fn queued_bytes(&self) -> usize {
        self.queued.load(Relaxed)
    }

    pub(super) fn end(&self, status: Status) {
        // Nobody listens any more: as ended as it can be.
        let _ = self.queue.send(Outgoing::End(Box::new(status)));
    }
}

/// What a message counts as in the queue.
fn weight(message: &Message) -> usize {
    let payload = match message {
        Message::Append(append) => append.header.len() + append.payload.iter().map(Bytes::len).sum::<usize>(),
        Message::Base(base) => base.data.len(),
        _ => 0,
    };
    SMALL_MESSAGE_BYTES + payload
}

/// Feeds the connection from the queue.
pub(super) struct OutgoingQueue {
    receiver: UnboundedReceiver<Outgoing>,
    queued: Arc<AtomicUsize>,
    ended: bool,
}

impl OutgoingQueue {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Envelope, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.receiver.poll_recv(cx)) {
            Some(Outgoing::Message(message)) => {
                self.queued.fetch_sub(weight(&message), Relaxed);
                Some(Ok(convert::to_wire(message)))
            }
            Some(Outgoing::End(status)) => {
                self.ended = true;
                Some(Err(*status))
            }
            None => None,
        })
    }
}

/// The answers of a server.
pub struct Answers(pub(super) OutgoingQueue);

impl Stream for Answers {
    type Item = Result<Envelope, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll(cx)
    }
}

/// The requests of a client, which has no status to end with.
pub(super) struct Requests(pub OutgoingQueue);

impl Stream for Requests {
    type Item = Envelope;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Envelope>> {
        self.0.poll(cx).map(|item| item.and_then(Result::ok))
    }
}

// ---- statuses -------------------------------------------------------------------------------------------------------

/// How an end is told to the other side (docs/protocol.md).
pub(super) fn status_of(end: &StreamEnd) -> Status {
    let code = match end {
        StreamEnd::Closed => Code::Ok,
        StreamEnd::Malformed(_) | StreamEnd::NoHello => Code::InvalidArgument,
        StreamEnd::Refused(refusal) => return refused_status(*refusal),
        StreamEnd::RefusedUs(_) => Code::Unauthenticated,
        StreamEnd::NoVolume => Code::NotFound,
        StreamEnd::TooLarge => Code::ResourceExhausted,
        StreamEnd::Lost(_) => Code::Unavailable,
    };
    Status::new(code, end.to_string())
}

/// The status of a refusal; its text begins with the name of the reason.
pub(super) fn refused_status(refusal: PeerRefusal) -> Status {
    Status::permission_denied(refusal.to_string())
}

/// The refusal behind a status of the other end.
pub(super) fn refusal_of_status(status: &Status) -> Option<PeerRefusal> {
    if status.code() != Code::PermissionDenied {
        return None;
    }
    let name = status.message().split(':').next().unwrap_or_default();
    PeerRefusal::ALL.into_iter().find(|refusal| refusal.name() == name)
}

/// How the stream ended, from the status and from what TLS noticed.
pub(super) fn end_of_status(status: &Status, fault: &Fault) -> StreamEnd {
    if let Some(refusal) = fault.refused_us().or_else(|| refusal_of_status(status)) {
        return StreamEnd::RefusedUs(refusal);
    }
    match status.code() {
        Code::Ok => StreamEnd::Closed,
        Code::NotFound => StreamEnd::NoVolume,
        Code::OutOfRange => StreamEnd::TooLarge,
        code => StreamEnd::Lost(format!("{}: {}", code.description(), status.message())),
    }
}
