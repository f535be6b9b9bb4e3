//! Drives the protocol machines over arbitrary bytes against a volume in memory: what the fuzz target, its corpus and the
//! property tests run. Whatever a hostile client can reach is reached here, without a socket.
//!
//! The first two bytes of the input choose the conditions, the rest is what the client sends:
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | bit 0: TLS is required; bit 1: the export is read-only; bit 2: it does not serve; bit 3: requests fail; bit 4: answers come late, newest first |
//! | 1 | size of the pieces in which the bytes arrive; 0: all at once |
//!
//! Checked on the way: a machine takes only what it was given, and always something of a whole message; every admitted request
//! is answered once, with its cookie and in the right form; room is given back in full.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::rc::Rc;

use tidemark_core::event::RequestError;

use super::decode::{Decoder, Step};
use super::export::{Directory, ExportInfo};
use super::handshake::{Handshake, Negotiated, Outcome, TlsRule};
use super::metrics::NbdMetrics;
use super::outbox::Outbox;
use super::proto::{
    CHUNK_MAGIC, Cursor, MAX_OPTION_BYTES, OPTION_HEADER_BYTES, ProtocolError, REQUEST_HEADER_BYTES,
    SIMPLE_REPLY_MAGIC, chunk,
};
use crate::disk::Pool;
use crate::frontend::BlockTarget;
use crate::frontend::memory::{Answers, MemoryTarget};

/// Size of the volume, with a short last block.
const VOLUME_BYTES: u64 = (1 << 20) + 512;
/// Replies are written in pieces of this size, to meet every boundary.
const WRITE_BYTES: usize = 9973;

/// How an exercise ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The input was over.
    InputOver,
    /// The client said goodbye, in the handshake or after it.
    Goodbye,
    /// The client broke the protocol.
    Refused(ProtocolError),
}

/// Runs one input; panics when something is not as it must be.
pub fn exercise(input: &[u8]) -> End {
    let Some((&[conditions, piece], stream)) = input.split_first_chunk::<2>() else { return End::InputOver };
    let piece = if piece == 0 { usize::MAX } else { usize::from(piece) };
    Exercise::new(conditions, piece, stream).run()
}

/// The client's bytes, arriving piece by piece.
struct Arrival<'a> {
    stream: &'a [u8],
    piece: usize,
    start: usize,
    end: usize,
}

impl<'a> Arrival<'a> {
    fn unread(&self) -> &'a [u8] {
        &self.stream[self.start..self.end]
    }

    fn take(&mut self, len: usize) {
        self.start += len;
        assert!(self.start <= self.end, "a machine took what it was not given");
    }

    /// False at the end of the stream.
    fn more(&mut self) -> bool {
        let old = self.end;
        self.end = self.end.saturating_add(self.piece).min(self.stream.len());
        self.end > old
    }
}

struct Exercise<'a> {
    arrival: Arrival<'a>,
    target: MemoryTarget,
    tls: TlsRule,
}

impl<'a> Exercise<'a> {
    fn new(conditions: u8, piece: usize, stream: &'a [u8]) -> Self {
        let has = |bit: u8| conditions & (1 << bit) != 0;
        let answers = if has(4) { Answers::Held } else { Answers::AtOnce };
        let target = MemoryTarget::new(VOLUME_BYTES, answers);
        target.set_read_only(has(1));
        target.set_serving(!has(2));
        target.set_failing(has(3).then_some(RequestError::Io));
        let tls = if has(0) { TlsRule::Required } else { TlsRule::Off };
        Self { arrival: Arrival { stream, piece, start: 0, end: 0 }, target, tls }
    }

    fn run(mut self) -> End {
        match self.handshake() {
            Ok(negotiated) => self.transmission(negotiated),
            Err(end) => end,
        }
    }

    fn handshake(&mut self) -> Result<Negotiated, End> {
        let mut out = Vec::new();
        let mut handshake = Handshake::new(self.tls, &mut out);
        loop {
            out.clear();
            let unread = self.arrival.unread();
            let step = handshake.step(unread, &Only(&self.target), &mut out);
            let (taken, outcome) = step.map_err(End::Refused)?;
            self.arrival.take(taken);
            match outcome {
                Outcome::Start(negotiated) => return Ok(negotiated),
                Outcome::Aborted => return Err(End::Goodbye),
                Outcome::StartTls if !self.arrival.unread().is_empty() => {
                    return Err(End::Refused(ProtocolError::PlaintextAfterTls));
                }
                Outcome::StartTls => handshake.tls_established(),
                Outcome::More if taken > 0 => {}
                Outcome::More => {
                    assert!(unread.len() < MAX_OPTION_BYTES + OPTION_HEADER_BYTES, "an option that fits is taken");
                    if !self.arrival.more() {
                        return Err(End::InputOver);
                    }
                }
            }
        }
    }

    fn transmission(&mut self, negotiated: Negotiated) -> End {
        assert!(self.target.is_serving(), "no transmission with a volume that does not serve");
        let outbox = Outbox::new(negotiated.structured, negotiated.contexts.clone(), NbdMetrics::default());
        let mut decoder = Decoder::new(negotiated.structured, !negotiated.contexts.is_empty(), Pool::new());
        let mut ledger = Ledger::new(negotiated.structured);
        let end = self.requests(&outbox, &mut decoder, &mut ledger);
        while self.target.release(false) {}
        ledger.read_replies(&outbox);
        assert!(outbox.is_idle(), "room is given back in full");
        ledger.check_over();
        end
    }

    fn requests(&mut self, outbox: &Rc<Outbox>, decoder: &mut Decoder, ledger: &mut Ledger) -> End {
        let geometry = self.target.geometry();
        loop {
            let unread = self.arrival.unread();
            let (taken, step) = match decoder.step(unread, &geometry, outbox.room()) {
                Ok(done) => done,
                Err(error) => return End::Refused(error),
            };
            self.arrival.take(taken);
            match step {
                Step::Disconnect => return End::Goodbye,
                Step::Full => {
                    assert!(!outbox.is_idle(), "an idle connection takes any request");
                    self.target.release(false);
                    ledger.read_replies(outbox);
                }
                Step::Refused { cookie, error, chunked } => {
                    ledger.opened(cookie);
                    outbox.refuse(cookie, error, chunked);
                }
                Step::Request { cookie, command } => {
                    ledger.opened(cookie);
                    outbox.submit(&self.target, cookie, command);
                }
                Step::More if taken > 0 => {}
                Step::More => {
                    assert!(unread.len() < REQUEST_HEADER_BYTES, "a whole header is taken");
                    if !self.arrival.more() {
                        return End::InputOver;
                    }
                }
            }
        }
    }
}

/// Requests without an answer, as a client sees them. Simple replies do not tell how much data follows, so without structured
/// replies only their number is known.
struct Ledger {
    structured: bool,
    open: BTreeMap<u64, u32>,
    unread: Vec<u8>,
}

impl Ledger {
    fn new(structured: bool) -> Self {
        Self { structured, open: BTreeMap::new(), unread: Vec::new() }
    }

    fn opened(&mut self, cookie: u64) {
        *self.open.entry(cookie).or_default() += 1;
    }

    fn answered(&mut self, cookie: u64) {
        let open = self.open.get_mut(&cookie).filter(|count| **count > 0);
        *open.expect("an answer belongs to an open request") -= 1;
    }

    /// Lets all replies leave, in small writes.
    fn read_replies(&mut self, outbox: &Rc<Outbox>) {
        let mut replies = outbox.replies();
        while !replies.is_empty() {
            let written = replies.gather(|slices| self.receive(slices));
            replies.wrote(written);
            if self.structured {
                while self.read_reply() {}
            } else {
                self.unread.clear();
            }
        }
    }

    /// Takes the front of what there is to write.
    fn receive(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let mut left = WRITE_BYTES;
        for slice in slices {
            let len = slice.len().min(left);
            self.unread.extend_from_slice(&slice[..len]);
            left -= len;
        }
        WRITE_BYTES - left
    }

    /// Takes one simple reply or one chunk off the front; false while it is incomplete.
    fn read_reply(&mut self) -> bool {
        let mut at = Cursor(&self.unread);
        let Some((last, cookie)) = parse_reply(&mut at) else { return false };
        let rest = at.0.len();
        self.unread.drain(..self.unread.len() - rest);
        if last {
            self.answered(cookie);
        }
        true
    }

    fn check_over(&self) {
        let all_answered = !self.structured || self.open.values().all(|count| *count == 0);
        assert!(all_answered && self.unread.is_empty(), "every request was answered, and nothing else was sent");
    }
}

/// Parses a simple reply without data or a chunk: whether it ends its request, and the cookie.
fn parse_reply(at: &mut Cursor<'_>) -> Option<(bool, u64)> {
    let magic = at.u32()?;
    if magic == SIMPLE_REPLY_MAGIC {
        let (_error, cookie) = (at.u32()?, at.u64()?);
        return Some((true, cookie));
    }
    assert_eq!(magic, CHUNK_MAGIC, "replies start with their magic");
    let (flags, _kind, cookie, len) = (at.u16()?, at.u16()?, at.u64()?, at.u32()?);
    at.bytes(len as usize)?;
    Some((flags & chunk::FLAG_DONE != 0, cookie))
}

/// The one export of the exercise.
struct Only<'a>(&'a MemoryTarget);

impl Directory for Only<'_> {
    fn describe(&self, name: &str) -> Option<ExportInfo> {
        (name.is_empty() || name == "v").then(|| ExportInfo::of("v", self.0))
    }

    fn list(&self) -> Vec<String> {
        vec!["v".to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::frontend::nbd::proto::{OPTION_MAGIC, REQUEST_MAGIC, option};

    fn put_option(stream: &mut Vec<u8>, option: u32, data: &[u8]) {
        stream.extend(OPTION_MAGIC.to_be_bytes());
        stream.extend(option.to_be_bytes());
        stream.extend((data.len() as u32).to_be_bytes());
        stream.extend(data);
    }

    /// A client that knows the protocol up to the first request.
    fn greeted(structured: bool) -> Vec<u8> {
        let mut stream = vec![0, 0, 0, 3];
        if structured {
            put_option(&mut stream, option::STRUCTURED_REPLY, b"");
            put_option(&mut stream, option::SET_META_CONTEXT, b"\0\0\0\x01v\0\0\0\x01\0\0\0\x0fbase:allocation");
        }
        put_option(&mut stream, option::GO, b"\0\0\0\x01v\0\0");
        stream
    }

    /// A request that is likely to be near something interesting, with its payload.
    fn request() -> impl Strategy<Value = Vec<u8>> {
        let place = prop_oneof![0..VOLUME_BYTES + 1024, Just(VOLUME_BYTES - 512), any::<u64>()];
        let len = prop_oneof![0..70_000u32, Just(512), Just(4096), Just(1 << 20), any::<u32>()];
        let aligned = any::<bool>();
        (0..32u16, 0..9u16, any::<u64>(), place, len, aligned).prop_map(
            |(flags, command, cookie, place, len, aligned)| {
                let (place, len) = if aligned { (place & !511, len & !511) } else { (place, len) };
                let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
                bytes.extend(flags.to_be_bytes());
                bytes.extend(command.to_be_bytes());
                bytes.extend(cookie.to_be_bytes());
                bytes.extend(place.to_be_bytes());
                bytes.extend(len.to_be_bytes());
                if command == 1 {
                    bytes.resize(bytes.len() + (len as usize).min(1 << 21), 0xa5);
                }
                bytes
            },
        )
    }

    #[test]
    fn a_goodbye_is_not_an_error() {
        let mut input = vec![0, 0];
        input.extend(greeted(true));
        let mut disconnect = REQUEST_MAGIC.to_be_bytes().to_vec();
        disconnect.extend([0, 0, 0, 2]);
        disconnect.resize(28, 0);
        input.extend(disconnect);
        assert_eq!(exercise(&input), End::Goodbye);
    }

    proptest! {
        #[test]
        fn random_bytes_do_no_harm(input in vec(any::<u8>(), 0..4096)) {
            exercise(&input);
        }

        #[test]
        fn random_bytes_after_the_handshake_do_no_harm(
            conditions in any::<u8>(), piece in any::<u8>(), structured in any::<bool>(),
            garbage in vec(any::<u8>(), 0..1024),
        ) {
            let mut input = vec![conditions, piece];
            input.extend(greeted(structured));
            input.extend(garbage);
            exercise(&input);
        }

        #[test]
        fn every_request_gets_one_answer(
            conditions in any::<u8>(), piece in any::<u8>(), structured in any::<bool>(),
            requests in vec(request(), 0..40),
        ) {
            let mut input = vec![conditions & !5, piece];
            input.extend(greeted(structured));
            requests.iter().for_each(|request| input.extend(request));
            let end = exercise(&input);
            let broken = !matches!(end, End::InputOver | End::Goodbye);
            prop_assert!(!broken || matches!(end, End::Refused(ProtocolError::PayloadLength(_) | ProtocolError::RequestMagic(_))));
        }
    }
}
