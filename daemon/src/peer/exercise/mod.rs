//! Drives the peer protocol over arbitrary bytes: from encoded messages through the conversion into a copy of a volume on a
//! disk in memory. What the fuzz target, its corpus and the tests run; whatever a peer with a valid certificate can reach is
//! reached here, without a socket.
//!
//! The first byte chooses which copy it is (bits 0 and 1, see [`golden`]) and whether its disk answers late (bit 2). The rest is
//! a list of steps: one byte for the kind, two for the length (little-endian), then so many bytes.
//!
//! | kind | step | bytes |
//! |---|---|---|
//! | 0 | a message | an encoded envelope; one that cannot be understood ends the stream, as in the agent |
//! | 1 | a frame that continues the log, with the right hashes | descriptors of 16 bytes |
//! | 2 | a greeting | the true one, encoded, with bytes changed: places (two bytes) and masks |
//! | 3 | time passes | milliseconds (two bytes) |
//! | 4 | a new stream and the true greeting | |
//! | 5 | a request of a frontend | kind, first sector, sectors |
//! | 6 | a verb | which |
//! | 7 | the disk answers what it holds back | |
//!
//! Checked on the way: the invariants of the copy after each step; it comes to rest; what it sends fits the wire; and what it
//! left on its disk opens again.

mod copy;
mod golden;

use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message as _;
use tidemark_core::event::{ConnId, Input, Request, RequestId, VerbId};
use tidemark_core::format::codec::Reader;
use tidemark_core::format::frame::FrameHeader;
use tidemark_core::format::record::{DESCRIPTOR_BYTES, Descriptor};
use tidemark_core::log::frames::{FrameContext, Record, build};
use tidemark_core::ship::{Append, Hello, Message};
use tidemark_core::types::{BLOCK, Boundary, ByteRange};
use tidemark_core::verb::Verb;
use tidemark_proto::peer::Envelope;

use super::convert;
use copy::Copy;
use golden::{Golden, SECRET, SLOT_BYTES, VOLUME};

/// Steps of one input; more tell nothing new.
const MAX_STEPS: usize = 256;
/// Payload blocks of one made frame.
const MAX_BLOCKS: u32 = 16;

/// What an exercise did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Done {
    /// Messages that were understood.
    pub understood: u32,
    /// Messages that were not.
    pub malformed: u32,
    /// Messages that the copy sent.
    pub sent: u32,
    /// Records that the copy has at the end.
    pub records: u64,
}

/// Runs one input; panics when something is not as it must be.
pub fn exercise(input: &[u8]) -> Done {
    let Some((&conditions, steps)) = input.split_first() else { return Done::default() };
    let golden = Golden::of(conditions & 3);
    let mut exercise = Exercise {
        copy: golden.open(conditions & 4 != 0),
        hello: golden.greeting.clone(),
        end: golden.greeting.tail,
        conn: ConnId(0),
        next_id: 0,
        done: Done::default(),
    };
    exercise.reconnect();
    for (kind, bytes) in Steps(steps).take(MAX_STEPS) {
        exercise.step(kind, bytes);
        exercise.copy.check();
    }
    exercise.end()
}

/// Inputs to begin with: the true conversations of every kind of copy, on a quick disk and on a late one, and each other step.
pub fn seeds() -> Vec<Vec<u8>> {
    let talks = golden::conversations();
    let talk = |(which, messages): &(u8, Vec<Message>), late: u8| {
        let mut input = vec![which | late];
        for (number, message) in messages.iter().enumerate() {
            push_step(&mut input, 0, &convert::to_wire(message.clone()).encode_to_vec());
            let request = [(number % 5) as u8, (number * 9) as u8, 0, 9, 0];
            push_step(&mut input, if number % 4 == 3 { 7 } else { 5 }, &request);
        }
        input
    };
    let steps = (0..4).map(|which| {
        let mut input = vec![which];
        for kind in 1..7 {
            push_step(&mut input, kind, &[kind, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        }
        input
    });
    talks.iter().map(|t| talk(t, 0)).chain(talks.iter().map(|t| talk(t, 4))).chain(steps).collect()
}

/// Adds a step to an input; what is too long for one is left out.
fn push_step(input: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    if let Ok(len) = u16::try_from(bytes.len()) {
        input.push(kind);
        input.extend(len.to_le_bytes());
        input.extend(bytes);
    }
}

struct Steps<'a>(&'a [u8]);

impl<'a> Iterator for Steps<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[kind, low, high], rest) = self.0.split_first_chunk::<3>()?;
        let len = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (bytes, rest) = rest.split_at(len);
        self.0 = rest;
        Some((kind, bytes))
    }
}

struct Exercise {
    copy: Copy,
    /// What the peer truly says first.
    hello: Hello,
    /// Where the copy's log ends, as far as is known from outside.
    end: Boundary,
    conn: ConnId,
    next_id: u64,
    done: Done,
}

impl Exercise {
    fn step(&mut self, kind: u8, bytes: &[u8]) {
        match kind % 8 {
            0 => self.encoded(bytes),
            1 => self.frame(bytes),
            2 => self.greeting(bytes),
            3 => self.copy.pass(u64::from(u16_at(bytes, 0))),
            4 => self.reconnect(),
            5 => self.request(bytes),
            6 => self.verb(bytes.first().copied().unwrap_or_default()),
            _ => self.copy.answer_disk(),
        }
    }

    /// What the agent does with a message from the network.
    fn encoded(&mut self, bytes: &[u8]) {
        let decoded = Envelope::decode(Bytes::copy_from_slice(bytes)).ok();
        match decoded.and_then(|envelope| convert::from_wire(envelope).ok()) {
            Some(message) => self.message(message),
            None => {
                self.done.malformed += 1;
                self.copy.handle(Input::PeerDown(self.conn));
                self.reconnect();
            }
        }
    }

    fn message(&mut self, message: Message) {
        self.done.understood += 1;
        let frame = match &message {
            Message::Append(append) => FrameHeader::decode(&append.header, &SECRET).ok(),
            _ => None,
        };
        self.end = frame.filter(|header| header.follows(&self.end)).map_or(self.end, |header| header.boundary());
        self.copy.handle(Input::PeerMessage(self.conn, message));
    }

    /// A frame as an honest peer would hash it, whatever it says.
    fn frame(&mut self, bytes: &[u8]) {
        let mut pending: VecDeque<Record> = bytes.chunks_exact(DESCRIPTOR_BYTES).filter_map(record).collect();
        let epoch = self.copy.epoch();
        let lsn = self.end.position.lsn;
        let context = FrameContext { epoch, committed: lsn, durable: lsn, peers: Default::default(), wall_ms: 0 };
        let made = build(&mut pending, SLOT_BYTES - BLOCK as u64, self.end, VOLUME, &SECRET, &context);
        let Some((header, encoded, payload)) = made else { return };
        let append = Append { epoch, header: encoded.slice(..header.used_bytes()), payload, sync: lsn.0 % 2 == 1 };
        self.message(Message::Append(append));
    }

    fn greeting(&mut self, bytes: &[u8]) {
        let mut encoded = convert::to_wire(Message::Hello(Box::new(self.hello.clone()))).encode_to_vec();
        for change in bytes.chunks_exact(3) {
            let at = usize::from(u16_at(change, 0)) % encoded.len();
            encoded[at] ^= change[2];
        }
        self.encoded(&encoded);
    }

    fn reconnect(&mut self) {
        self.copy.handle(Input::PeerDown(self.conn));
        self.conn = ConnId(self.conn.0 + 1);
        self.copy.handle(Input::PeerUp { conn: self.conn, site: self.hello.site });
        self.copy.handle(Input::PeerMessage(self.conn, Message::Hello(Box::new(self.hello.clone()))));
    }

    fn request(&mut self, bytes: &[u8]) {
        let range = ByteRange::new(u64::from(u16_at(bytes, 1)) * 512, u64::from(u16_at(bytes, 3) % 64) * 512);
        let request = match bytes.first().map_or(0, |kind| kind % 5) {
            0 => Request::Write { range, data: Bytes::from(vec![1; range.len as usize]), fua: false },
            1 => Request::Flush,
            2 => Request::Read { range },
            3 => Request::Zero { range, discard: true, fua: false },
            _ => Request::Zero { range, discard: false, fua: true },
        };
        self.next_id += 1;
        self.copy.handle(Input::Request(RequestId(self.next_id), request));
    }

    fn verb(&mut self, which: u8) {
        let verb = match which % 5 {
            0 => Verb::Verify,
            1 => Verb::Drain,
            2 => Verb::Demote { force: true },
            3 => Verb::Reseed,
            _ => Verb::AbortIo,
        };
        self.next_id += 1;
        self.copy.handle(Input::Verb(VerbId(self.next_id), verb));
    }

    fn end(mut self) -> Done {
        self.copy.answer_disk();
        self.copy.check();
        self.done.sent = self.copy.sent;
        self.done.records = self.copy.records();
        self.copy.reopened().check();
        self.done
    }
}

/// A record of the right length for its descriptor; none for what no header can hold.
fn record(bytes: &[u8]) -> Option<Record> {
    let mut descriptor = Descriptor::decode(&mut Reader::new("descriptor", bytes)).ok()?;
    if descriptor.payload_blocks() > 0 {
        descriptor.blocks = descriptor.blocks.min(MAX_BLOCKS);
    }
    let payload = vec![2; descriptor.payload_blocks() as usize * BLOCK];
    Some(Record::new(descriptor, Bytes::from(payload)))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or_default();
    u16::from_le_bytes([byte(at), byte(at + 1)])
}
