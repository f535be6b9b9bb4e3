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

use super::payload::Payload;
use super::proto::{
    Errno, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_SKIP_BYTES, MIN_BLOCK_BYTES, ProtocolError, REQUEST_HEADER_BYTES,
    RequestHeader, command, command_flag,
};
use crate::disk::Pool;
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
        /// Its answer would have been structured: the error is, too, where structured replies were agreed on.
        chunked: bool,
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
pub struct Decoder {
    state: State,
    structured: bool,
    has_contexts: bool,
    pool: Pool,
}

impl Decoder {
    /// Starts at a request boundary; payloads go to buffers of `pool`. BLOCK_STATUS is refused unless meta contexts were chosen.
    pub fn new(structured: bool, has_contexts: bool, pool: Pool) -> Self {
        Self { state: State::Header, structured, has_contexts, pool }
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
        let mut payload = Payload::new(self.pool.take(header.len as usize));
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
                Step::Refused { cookie, error, chunked: false }
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
    let chunked = matches!(header.command, command::READ | command::BLOCK_STATUS);
    Step::Refused { cookie: header.cookie, error, chunked }
}

#[cfg(test)]
mod tests {
    use super::super::proto::REQUEST_MAGIC;
    use super::*;

    const SIZE: u64 = 1 << 20;
    const ROOM: Room = Room { requests: 4, bytes: 64 * 1024 };

    fn geometry() -> Geometry {
        Geometry { size: SIZE, write_through: false, read_only: false }
    }

    fn decoder() -> Decoder {
        Decoder::new(true, true, Pool::new())
    }

    fn header(command: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(9u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    }

    fn step(command: u16, flags: u16, offset: u64, len: u32) -> Step {
        decoder().step(&header(command, flags, offset, len), &geometry(), ROOM).unwrap().1
    }

    fn error(command: u16, flags: u16, offset: u64, len: u32) -> Option<Errno> {
        match step(command, flags, offset, len) {
            Step::Refused { error, cookie: 9, .. } => Some(error),
            _ => None,
        }
    }

    fn accepted(command: u16, flags: u16, offset: u64, len: u32) -> Command {
        match step(command, flags, offset, len) {
            Step::Request { command, cookie: 9 } => command,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commands_carry_their_flags() {
        use command_flag::*;
        let range = ByteRange::new(4096, 8192);
        let read = |one_chunk| Command::Read { range, one_chunk };
        assert_eq!(accepted(command::READ, 0, 4096, 8192), read(false));
        assert_eq!(accepted(command::READ, DF | FUA, 4096, 8192), read(true));
        assert_eq!(accepted(command::FLUSH, 0, 0, 0), Command::Flush);
        let zero = |discard, fua| Command::Zero { range, discard, fua };
        assert_eq!(accepted(command::TRIM, FUA, 4096, 8192), zero(true, true));
        assert_eq!(accepted(command::WRITE_ZEROES, 0, 4096, 8192), zero(true, false));
        assert_eq!(accepted(command::WRITE_ZEROES, NO_HOLE, 4096, 8192), zero(false, false));
        let status = |one| Command::BlockStatus { range, one };
        assert_eq!(accepted(command::BLOCK_STATUS, 0, 4096, 8192), status(false));
        assert_eq!(accepted(command::BLOCK_STATUS, REQ_ONE, 4096, 8192), status(true));
    }

    #[test]
    fn zeroing_inside_a_block_never_becomes_a_discard() {
        let zero = accepted(command::WRITE_ZEROES, 0, 512, 4096);
        assert!(matches!(zero, Command::Zero { discard: false, .. }));
    }

    #[test]
    fn bad_places_and_lengths_are_refused() {
        use Errno::*;
        for (command, offset, len, expected) in [
            (command::READ, 1, 512, Inval),
            (command::READ, 0, 511, Inval),
            (command::READ, 0, 0, Inval),
            (command::READ, SIZE, 512, Inval),
            (command::READ, SIZE - 512, 1024, Inval),
            (command::READ, u64::MAX - 511, 512, Inval),
            (command::READ, 0, MAX_PAYLOAD_BYTES + 512, Inval),
            (command::TRIM, SIZE, 512, Inval),
            (command::BLOCK_STATUS, SIZE, 512, Inval),
            (command::WRITE_ZEROES, SIZE, 512, NoSpace),
            (command::WRITE_ZEROES, u64::MAX - 511, 512, NoSpace),
        ] {
            assert_eq!(error(command, 0, offset, len), Some(expected), "{command} {offset} {len}");
        }
    }

    #[test]
    fn unknown_commands_and_flags_are_refused() {
        for (command, flags) in [
            (command::READ, command_flag::NO_HOLE),
            (command::TRIM, command_flag::DF),
            (command::FLUSH, 1 << 15),
            (5, 0),
            (8, 0),
            (u16::MAX, 0),
        ] {
            assert_eq!(error(command, flags, 0, 512), Some(Errno::Inval), "{command} {flags}");
        }
        assert_eq!(error(command::WRITE_ZEROES, command_flag::FAST_ZERO, 0, 512), Some(Errno::NotSup));
    }

    #[test]
    fn what_was_not_agreed_on_is_refused() {
        let mut plain = Decoder::new(false, false, Pool::new());
        for bytes in [header(command::READ, command_flag::DF, 0, 512), header(command::BLOCK_STATUS, 0, 0, 512)] {
            let (_, step) = plain.step(&bytes, &geometry(), ROOM).unwrap();
            assert!(matches!(step, Step::Refused { error: Errno::Inval, .. }));
        }
    }

    #[test]
    fn a_read_only_export_refuses_every_change() {
        let read_only = Geometry { read_only: true, ..geometry() };
        for command in [command::TRIM, command::WRITE_ZEROES] {
            let (_, step) = decoder().step(&header(command, 0, 0, 512), &read_only, ROOM).unwrap();
            assert_eq!(step, Step::Refused { cookie: 9, error: Errno::Perm, chunked: false });
        }
        let mut write = header(command::WRITE, 0, 0, 512);
        write.extend([1; 512]);
        let (taken, step) = decoder().step(&write, &read_only, ROOM).unwrap();
        assert_eq!((taken, step), (540, Step::Refused { cookie: 9, error: Errno::Perm, chunked: false }));
    }

    #[test]
    fn a_payload_arrives_in_any_pieces() {
        let data: Vec<u8> = (0..1024u32).map(|i| i as u8).collect();
        let mut bytes = header(command::WRITE, command_flag::FUA, 512, 1024);
        bytes.extend(&data);
        bytes.extend(header(command::FLUSH, 0, 0, 0));
        for piece in [1, 27, 28, 29, 500, 2000] {
            let (mut decoder, mut at, mut end, mut commands) = (decoder(), 0, 0, Vec::new());
            while at < bytes.len() {
                let (taken, step) = decoder.step(&bytes[at..end], &geometry(), ROOM).unwrap();
                at += taken;
                match step {
                    Step::Request { command, .. } => commands.push(command),
                    Step::More if taken == 0 => end = bytes.len().min(end + piece),
                    Step::More => {}
                    other => panic!("{other:?}"),
                }
            }
            let write = Command::Write { range: ByteRange::new(512, 1024), data: data.clone().into(), fua: true };
            assert_eq!(commands, [write, Command::Flush]);
        }
    }

    #[test]
    fn the_payload_of_a_refused_write_is_dropped() {
        let mut bytes = header(command::WRITE, 0, SIZE, 4096);
        bytes.extend([7; 4096]);
        let mut decoder = decoder();
        assert_eq!(decoder.step(&bytes[..100], &geometry(), ROOM).unwrap(), (100, Step::More));
        assert!(decoder.payload_mut().is_none());
        let refused = Step::Refused { cookie: 9, error: Errno::NoSpace, chunked: false };
        assert_eq!(decoder.step(&bytes[100..], &geometry(), ROOM).unwrap(), (4096 + 28 - 100, refused));
    }

    #[test]
    fn an_absurd_payload_closes() {
        let bytes = header(command::WRITE, 0, 0, MAX_PAYLOAD_SKIP_BYTES + 512);
        let refused = decoder().step(&bytes, &geometry(), ROOM);
        assert_eq!(refused, Err(ProtocolError::PayloadLength(MAX_PAYLOAD_SKIP_BYTES + 512)));
    }

    #[test]
    fn requests_wait_for_room_without_being_taken() {
        let full = Room { requests: 0, bytes: 1 << 20 };
        let flush = header(command::FLUSH, 0, 0, 0);
        assert_eq!(decoder().step(&flush, &geometry(), full).unwrap(), (0, Step::Full));
        let narrow = Room { requests: 1, bytes: 4095 };
        for command in [command::READ, command::WRITE] {
            let bytes = header(command, 0, 0, 4096);
            assert_eq!(decoder().step(&bytes, &geometry(), narrow).unwrap(), (0, Step::Full));
        }
    }
}
