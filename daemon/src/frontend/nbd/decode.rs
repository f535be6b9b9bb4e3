//! The transmission phase as a machine without IO: bytes in, checked commands out.
//!
//! Every request is checked here against the geometry of the export, before its payload is received: a WRITE that is refused
//! costs no memory, its payload is dropped as it arrives. A request is admitted only while the [`Room`] of the connection
//! allows it; until then its header stays in the input.
//!
//! ```text
//! Header -> Payload -> Header     (WRITE)
//! Header -> Skip -> Header        (WRITE that was refused)
//! ```

use bytes::Bytes;
use tidemark_core::types::ByteRange;

use super::payload::{Payload, Payloads};
use super::proto::{
    Errno, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_SKIP_BYTES, MIN_BLOCK_BYTES, ProtocolError, REQUEST_HEADER_BYTES,
    RequestHeader, command, command_flag,
};
use crate::frontend::Geometry;

/// What a connection may still take in before replies have left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Requests.
    pub requests: usize,
    /// Bytes of data, of WRITEs and of replies to READs; at least [`MAX_PAYLOAD_BYTES`] while nothing is under way.
    pub bytes: usize,
}

/// A request that makes sense for the export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Reads the range.
    Read {
        /// What to read.
        range: ByteRange,
        /// The answer has to be one chunk.
        one_chunk: bool,
    },
    /// Writes `data`.
    Write {
        /// Where to.
        range: ByteRange,
        /// Aligned in memory.
        data: Bytes,
        /// Complete only when durable.
        fua: bool,
    },
    /// Makes the range read as zeros.
    Zero {
        /// The range.
        range: ByteRange,
        /// As in [`tidemark_core::event::Request::Zero`].
        discard: bool,
        /// Complete only when durable.
        fua: bool,
    },
    /// Makes everything completed before durable.
    Flush,
    /// Describes the range in the chosen meta contexts.
    BlockStatus {
        /// What to describe.
        range: ByteRange,
        /// One extent is enough.
        one: bool,
    },
}

impl Command {
    /// Bytes of data that it holds in memory until its reply has left.
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::Read { range, .. } | Self::Write { range, .. } => range.len as usize,
            Self::Zero { .. } | Self::Flush | Self::BlockStatus { .. } => 0,
        }
    }
}

/// What came out of a step.
#[derive(PartialEq, Eq, Debug)]
pub enum Step {
    /// Bring more input.
    More,
    /// The next request has to wait until there is more room.
    Full,
    /// A request to serve.
    Request {
        /// Returned in the reply.
        cookie: u64,
        /// What to do.
        command: Command,
    },
    /// A request to answer with an error.
    Refused {
        /// Returned in the reply.
        cookie: u64,
        /// Why.
        error: Errno,
        /// It was a READ: the error takes the form of a READ's reply.
        read: bool,
    },
    /// The client is done: answer what is under way, then close.
    Disconnect,
}

#[derive(Debug)]
enum State {
    Header,
    Payload { cookie: u64, range: ByteRange, fua: bool, payload: Payload },
    Skip { left: usize, cookie: u64, error: Errno },
}

/// One connection's requests.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    structured: bool,
    has_contexts: bool,
    payloads: Payloads,
}

impl Decoder {
    /// Starts at a request boundary. BLOCK_STATUS is refused unless meta contexts were chosen.
    pub fn new(structured: bool, has_contexts: bool, payloads: Payloads) -> Self {
        Self { state: State::Header, structured, has_contexts, payloads }
    }

    /// The payload under way, so that a driver can read into it directly and then call [`Payload::advance`].
    pub fn payload_mut(&mut self) -> Option<&mut Payload> {
        match &mut self.state {
            State::Payload { payload, .. } => Some(payload),
            State::Header | State::Skip { .. } => None,
        }
    }

    /// Takes what it can off the front of `input`, up to one request, and says how many bytes it took.
    ///
    /// # Errors
    /// The client does not speak the protocol; the connection has to be closed.
    pub fn step(&mut self, input: &[u8], geometry: &Geometry, room: Room) -> Result<(usize, Step), ProtocolError> {
        match &mut self.state {
            State::Header => self.on_header(input, geometry, room),
            State::Payload { payload, .. } => {
                let taken = payload.copy_from(input);
                Ok((taken, self.finish_payload()))
            }
            State::Skip { left, .. } => {
                let taken = input.len().min(*left);
                *left -= taken;
                Ok((taken, self.finish_skip()))
            }
        }
    }

    fn on_header(&mut self, input: &[u8], geometry: &Geometry, room: Room) -> Result<(usize, Step), ProtocolError> {
        let Some(header) = RequestHeader::parse(input)? else { return Ok((0, Step::More)) };
        if room.requests == 0 {
            return Ok((0, Step::Full));
        }
        let is_write = header.command == command::WRITE;
        if is_write && header.len > MAX_PAYLOAD_SKIP_BYTES {
            return Err(ProtocolError::PayloadLength(header.len));
        }
        let admitted = self.check(&header, geometry);
        if admitted.as_ref().is_ok_and(|request| request.held_bytes(&header) > room.bytes) {
            return Ok((0, Step::Full));
        }
        let body = &input[REQUEST_HEADER_BYTES..];
        let (taken, step) = match admitted {
            Err(error) if is_write => self.begin_skip(&header, error, body),
            Err(error) => (0, refused(&header, error)),
            Ok(Admitted::Write) => self.begin_payload(&header, body),
            Ok(Admitted::Disconnect) => (0, Step::Disconnect),
            Ok(Admitted::Complete(command)) => (0, Step::Request { cookie: header.cookie, command }),
        };
        Ok((REQUEST_HEADER_BYTES + taken, step))
    }

    fn begin_payload(&mut self, header: &RequestHeader, input: &[u8]) -> (usize, Step) {
        let mut payload = self.payloads.take(header.len as usize);
        let taken = payload.copy_from(input);
        let fua = header.has(command_flag::FUA);
        self.state = State::Payload { cookie: header.cookie, range: range_of(header), fua, payload };
        (taken, self.finish_payload())
    }

    fn finish_payload(&mut self) -> Step {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Payload { cookie, range, fua, payload } if payload.missing() == 0 => {
                Step::Request { cookie, command: Command::Write { range, data: payload.freeze(), fua } }
            }
            unfinished => {
                self.state = unfinished;
                Step::More
            }
        }
    }

    fn begin_skip(&mut self, header: &RequestHeader, error: Errno, input: &[u8]) -> (usize, Step) {
        let taken = input.len().min(header.len as usize);
        self.state = State::Skip { left: header.len as usize - taken, cookie: header.cookie, error };
        (taken, self.finish_skip())
    }

    fn finish_skip(&mut self) -> Step {
        match self.state {
            State::Skip { left: 0, cookie, error } => {
                self.state = State::Header;
                Step::Refused { cookie, error, read: false }
            }
            _ => Step::More,
        }
    }

    /// Refuses in a fixed order: what it is, how it is asked, whether writes are allowed, shape, place.
    fn check(&self, header: &RequestHeader, geometry: &Geometry) -> Result<Admitted, Errno> {
        if header.command == command::DISC {
            return Ok(Admitted::Disconnect);
        }
        let allowed = self.allowed_flags(header.command).ok_or(Errno::Inval)?;
        if header.flags & !allowed != 0 {
            return Err(Errno::Inval);
        }
        if geometry.read_only && is_change(header.command) {
            return Err(Errno::Perm);
        }
        // Whether zeroing is fast depends on the volume behind: it is never promised.
        if header.has(command_flag::FAST_ZERO) {
            return Err(Errno::NotSup);
        }
        if header.command != command::FLUSH {
            check_range(header, geometry)?;
        }
        Ok(admit(header))
    }

    /// The flags that make sense for a command; `None` for a command that is not served.
    fn allowed_flags(&self, command: u16) -> Option<u16> {
        use command_flag::*;
        match command {
            command::READ if self.structured => Some(FUA | DF),
            command::READ | command::WRITE | command::FLUSH | command::TRIM => Some(FUA),
            command::WRITE_ZEROES => Some(FUA | NO_HOLE | FAST_ZERO),
            command::BLOCK_STATUS if self.has_contexts => Some(FUA | REQ_ONE),
            _ => None,
        }
    }
}

/// A request whose header is in order.
enum Admitted {
    Complete(Command),
    Write,
    Disconnect,
}

impl Admitted {
    fn held_bytes(&self, header: &RequestHeader) -> usize {
        match self {
            Self::Complete(command) => command.held_bytes(),
            Self::Write => header.len as usize,
            Self::Disconnect => 0,
        }
    }
}

fn is_change(command: u16) -> bool {
    matches!(command, command::WRITE | command::TRIM | command::WRITE_ZEROES)
}

/// The command of a header that [`Decoder::check`] has passed.
fn admit(header: &RequestHeader) -> Admitted {
    let (range, fua) = (range_of(header), header.has(command_flag::FUA));
    Admitted::Complete(match header.command {
        command::READ => Command::Read { range, one_chunk: header.has(command_flag::DF) },
        command::TRIM => Command::Zero { range, discard: true, fua },
        command::WRITE_ZEROES => Command::Zero { range, discard: may_discard(header), fua },
        command::BLOCK_STATUS => Command::BlockStatus { range, one: header.has(command_flag::REQ_ONE) },
        command::WRITE => return Admitted::Write,
        _ => Command::Flush,
    })
}

/// A discard may leave the edges inside a block as they are, WRITE_ZEROES may not: it gives space back only for whole blocks.
fn may_discard(header: &RequestHeader) -> bool {
    !range_of(header).is_partial() && !header.has(command_flag::NO_HOLE)
}

fn check_range(header: &RequestHeader, geometry: &Geometry) -> Result<(), Errno> {
    let unit = u64::from(MIN_BLOCK_BYTES);
    let len = u64::from(header.len);
    if len == 0 || !header.offset.is_multiple_of(unit) || !len.is_multiple_of(unit) {
        return Err(Errno::Inval);
    }
    if matches!(header.command, command::READ | command::WRITE) && header.len > MAX_PAYLOAD_BYTES {
        return Err(Errno::Inval);
    }
    let inside = header.offset.checked_add(len).is_some_and(|end| end <= geometry.size);
    match header.command {
        _ if inside => Ok(()),
        command::WRITE | command::WRITE_ZEROES => Err(Errno::NoSpace),
        _ => Err(Errno::Inval),
    }
}

fn range_of(header: &RequestHeader) -> ByteRange {
    ByteRange::new(header.offset, u64::from(header.len))
}

fn refused(header: &RequestHeader, error: Errno) -> Step {
    Step::Refused { cookie: header.cookie, error, read: header.command == command::READ }
}
