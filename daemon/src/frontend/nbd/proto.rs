//! The numbers and byte layouts of the NBD protocol (fixed newstyle). Pure: decides nothing, touches no socket and allocates
//! only what the caller hands in. All integers are big-endian on the wire.
//!
//! Limits live here too, so that every place that reads input names the same ones.

/// First eight bytes a server sends.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Follows the greeting, and precedes every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Precedes every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Precedes every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Precedes a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Precedes each chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of an option's header: magic, option, length.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of a request's header.
pub const REQUEST_HEADER_BYTES: usize = 28;

/// Longest export name and longest meta context query: the protocol's own limit on strings.
pub const MAX_STRING_BYTES: usize = 4096;
/// Most data an option may carry before it is answered with `TOO_BIG`: an export name and a page of queries.
pub const MAX_OPTION_BYTES: usize = 16 * 1024;
/// Most data of a too big option that is read and dropped; beyond, the connection is closed.
pub const MAX_OPTION_SKIP_BYTES: usize = 1024 * 1024;
/// Most options in one handshake: real clients send fewer than ten, plus one per export they ask about.
pub const MAX_OPTIONS: u32 = 256;
/// Most queries in one meta context option.
pub const MAX_QUERIES: u32 = 64;
/// Most information requests in one INFO or GO.
pub const MAX_INFO_REQUESTS: usize = 64;
/// Most names in an answer to LIST.
pub const MAX_LIST: usize = 4096;
/// Largest payload of a READ or WRITE, as advertised.
pub const MAX_PAYLOAD_BYTES: u32 = 32 * 1024 * 1024;
/// Largest payload of a refused WRITE that is read and dropped; beyond, the connection is closed.
pub const MAX_PAYLOAD_SKIP_BYTES: u32 = 2 * MAX_PAYLOAD_BYTES;
/// Most extents in an answer to BLOCK_STATUS; a client asks again for the rest.
pub const MAX_EXTENTS: usize = 4096;
/// Smallest unit of every request, as advertised.
pub const MIN_BLOCK_BYTES: u32 = 512;
/// The unit that costs no read-fill, as advertised.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// Flags of the server's greeting.
pub mod handshake_flag {
    /// The server answers options one by one.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// The server can leave out the 124 zero bytes after EXPORT_NAME.
    pub const NO_ZEROES: u16 = 2;
}

/// Options a client can ask for in the handshake.
pub mod option {
    /// Choose an export and start, old way: no error can be told.
    pub const EXPORT_NAME: u32 = 1;
    /// End the handshake.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Continue over TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Choose an export and start.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List the meta contexts that match.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose the meta contexts of BLOCK_STATUS.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to an option.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a LIST.
    pub const SERVER: u32 = 2;
    /// One piece of information of an INFO or GO.
    pub const INFO: u32 = 3;
    /// One meta context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    /// The option's data does not parse.
    pub const ERR_INVALID: u32 = 0x8000_0003;
    /// Only after STARTTLS.
    pub const ERR_TLS_REQD: u32 = 0x8000_0005;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    /// The export does not serve now.
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
}

/// Types of information in an INFO reply.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The export's canonical name.
    pub const NAME: u16 = 1;
    /// Block sizes.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export.
pub mod export_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is supported.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is supported.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is supported.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is supported.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF is supported (only with structured replies).
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers what completed on all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Request types.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the data follows the header.
    pub const WRITE: u16 = 1;
    /// Close; not answered.
    pub const DISC: u16 = 2;
    /// Make everything completed before durable.
    pub const FLUSH: u16 = 3;
    /// The content of the range is not needed any more.
    pub const TRIM: u16 = 4;
    /// Make the range read as zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// Describe the range in the chosen meta contexts.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a request.
pub mod command_flag {
    /// Complete only when durable.
    pub const FUA: u16 = 1;
    /// WRITE_ZEROES: keep the space allocated.
    pub const NO_HOLE: u16 = 2;
    /// READ: answer in one chunk.
    pub const DF: u16 = 4;
    /// BLOCK_STATUS: one extent is enough.
    pub const REQ_ONE: u16 = 8;
    /// WRITE_ZEROES: fail rather than be as slow as a write.
    pub const FAST_ZERO: u16 = 16;
}

/// Types of chunks of a structured reply.
pub mod chunk {
    /// Data at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one meta context.
    pub const BLOCK_STATUS: u16 = 5;
    /// The request failed.
    pub const ERROR: u16 = 0x8001;
    /// Flag of the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1;
}

/// Flags of an extent in `base:allocation`.
pub mod allocation_flag {
    /// Takes no space.
    pub const HOLE: u32 = 1;
    /// Reads as zeros.
    pub const ZERO: u32 = 2;
}

/// Error numbers of replies: the protocol's own, equal to Linux's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only.
    Perm = 1,
    /// The data could not be read or written.
    Io = 5,
    /// The request does not make sense: unaligned, empty, out of range, unknown.
    Inval = 22,
    /// A write past the end.
    NoSpace = 28,
    /// Cannot be done the way it was asked for.
    NotSup = 95,
    /// The volume does not serve here any more.
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }
}

/// Why a connection is closed: the other side does not speak the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The client's flags hold bits that were not offered.
    #[error("unknown client flags {0:#x}")]
    ClientFlags(u32),
    /// An option does not start with its magic.
    #[error("bad option magic {0:#x}")]
    OptionMagic(u64),
    /// More than [`MAX_OPTION_SKIP_BYTES`] in one option.
    #[error("option data of {0} bytes")]
    OptionLength(u32),
    /// More than [`MAX_OPTIONS`].
    #[error("too many options in one handshake")]
    TooManyOptions,
    /// A client without fixed newstyle may only send EXPORT_NAME.
    #[error("option {0} from a client without fixed newstyle")]
    NotFixed(u32),
    /// EXPORT_NAME failed, and the protocol has no way to say so.
    #[error("export name refused: {0}")]
    ExportName(&'static str),
    /// Bytes after STARTTLS and before TLS: someone injects plaintext.
    #[error("plaintext after STARTTLS")]
    PlaintextAfterTls,
    /// A request does not start with its magic.
    #[error("bad request magic {0:#x}")]
    RequestMagic(u32),
    /// A WRITE of more than [`MAX_PAYLOAD_SKIP_BYTES`].
    #[error("write payload of {0} bytes")]
    PayloadLength(u32),
}

/// Reads big-endian fields off the front of a slice; every read is checked.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    /// A string of at most [`MAX_STRING_BYTES`], preceded by its length in four bytes.
    pub fn string(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        let bytes = if len <= MAX_STRING_BYTES { self.bytes(len)? } else { return None };
        std::str::from_utf8(bytes).ok()
    }

    /// True when nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The header of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHeader {
    /// Which option, see [`option`].
    pub option: u32,
    /// Bytes of data that follow.
    pub len: u32,
}

impl OptionHeader {
    /// Parses the front of `input`; `None` while it is too short.
    pub fn parse(input: &[u8]) -> Result<Option<Self>, ProtocolError> {
        let mut at = Cursor(input);
        let (Some(magic), Some(option), Some(len)) = (at.u64(), at.u32(), at.u32()) else { return Ok(None) };
        if magic != OPTION_MAGIC {
            return Err(ProtocolError::OptionMagic(magic));
        }
        Ok(Some(Self { option, len }))
    }
}

/// The header of a request, as it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestHeader {
    /// See [`command_flag`].
    pub flags: u16,
    /// See [`command`].
    pub command: u16,
    /// Chosen by the client, returned in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

impl RequestHeader {
    /// Parses the front of `input`; `None` while it is too short.
    pub fn parse(input: &[u8]) -> Result<Option<Self>, ProtocolError> {
        let Some(head) = input.first_chunk::<REQUEST_HEADER_BYTES>() else { return Ok(None) };
        Self::parse_whole(head)
    }

    fn parse_whole(head: &[u8; REQUEST_HEADER_BYTES]) -> Result<Option<Self>, ProtocolError> {
        let mut at = Cursor(head);
        let Some(magic) = at.u32() else { return Ok(None) };
        if magic != REQUEST_MAGIC {
            return Err(ProtocolError::RequestMagic(magic));
        }
        let fields = (at.u16(), at.u16(), at.u64(), at.u64(), at.u32());
        let (Some(flags), Some(command), Some(cookie), Some(offset), Some(len)) = fields else { return Ok(None) };
        Ok(Some(Self { flags, command, cookie, offset, len }))
    }

    /// True when the flag is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Appends the server's greeting.
pub fn put_greeting(out: &mut Vec<u8>) {
    out.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes());
}

/// Appends a reply to an option.
pub fn put_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&wire_len(data.len()).to_be_bytes());
    out.extend_from_slice(data);
}

/// Appends a simple reply; the data of a successful READ follows it.
pub fn put_simple_reply(out: &mut Vec<u8>, cookie: u64, error: Option<Errno>) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.map_or(0, Errno::code).to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

fn put_chunk_header(out: &mut Vec<u8>, cookie: u64, kind: u16, done: bool, len: u32) {
    let flags = if done { chunk::FLAG_DONE } else { 0 };
    out.extend_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// Appends the head of a data chunk; `len` bytes of data follow it.
pub fn put_data_chunk(out: &mut Vec<u8>, cookie: u64, done: bool, offset: u64, len: u32) {
    put_chunk_header(out, cookie, chunk::OFFSET_DATA, done, len.saturating_add(8));
    out.extend_from_slice(&offset.to_be_bytes());
}

/// Appends a chunk that says that `len` bytes are zeros.
pub fn put_hole_chunk(out: &mut Vec<u8>, cookie: u64, done: bool, offset: u64, len: u32) {
    put_chunk_header(out, cookie, chunk::OFFSET_HOLE, done, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// Appends the last chunk of a failed request.
pub fn put_error_chunk(out: &mut Vec<u8>, cookie: u64, error: Errno) {
    put_chunk_header(out, cookie, chunk::ERROR, true, 6);
    out.extend_from_slice(&error.code().to_be_bytes());
    out.extend_from_slice(&0u16.to_be_bytes());
}

/// Appends the extents `(length, flags)` of one meta context, at most [`MAX_EXTENTS`].
pub fn put_status_chunk(out: &mut Vec<u8>, cookie: u64, done: bool, context: u32, extents: &[(u32, u32)]) {
    let extents = extents.get(..MAX_EXTENTS).unwrap_or(extents);
    put_chunk_header(out, cookie, chunk::BLOCK_STATUS, done, wire_len(4 + 8 * extents.len()));
    out.extend_from_slice(&context.to_be_bytes());
    for (len, flags) in extents {
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
    }
}

/// A length as the wire has it; everything that is sent is bounded far below.
fn wire_len(len: usize) -> u32 {
    u32::try_from(len).expect("replies are bounded by MAX_LIST and MAX_EXTENTS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greeting_offers_fixed_newstyle_without_zeroes() {
        let mut out = Vec::new();
        put_greeting(&mut out);
        assert_eq!(out, b"NBDMAGICIHAVEOPT\x00\x03");
    }

    #[test]
    fn short_headers_wait_for_more() {
        assert_eq!(OptionHeader::parse(&[0; 15]), Ok(None));
        assert_eq!(RequestHeader::parse(&[0; 27]), Ok(None));
    }

    #[test]
    fn wrong_magic_is_an_error() {
        assert_eq!(OptionHeader::parse(&[0; 16]), Err(ProtocolError::OptionMagic(0)));
        assert_eq!(RequestHeader::parse(&[0; 28]), Err(ProtocolError::RequestMagic(0)));
    }

    #[test]
    fn request_header_has_the_layout_of_the_protocol() {
        let bytes = b"\x25\x60\x95\x13\x00\x01\x00\x02abcdefgh\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x02\x00";
        let header = RequestHeader::parse(bytes).unwrap().unwrap();
        assert_eq!(header.flags, command_flag::FUA);
        assert_eq!(header.command, command::DISC);
        assert_eq!(header.cookie, u64::from_be_bytes(*b"abcdefgh"));
        assert_eq!((header.offset, header.len), (4096, 512));
    }

    #[test]
    fn replies_have_the_layout_of_the_protocol() {
        let mut out = Vec::new();
        put_simple_reply(&mut out, 1, Some(Errno::Inval));
        assert_eq!(out, b"\x67\x44\x66\x98\0\0\0\x16\0\0\0\0\0\0\0\x01");
        out.clear();
        put_data_chunk(&mut out, 1, true, 2, 3);
        assert_eq!(out, b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x0b\0\0\0\0\0\0\0\x02");
        out.clear();
        put_hole_chunk(&mut out, 1, false, 2, 3);
        assert_eq!(out, b"\x66\x8e\x33\xef\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\x0c\0\0\0\0\0\0\0\x02\0\0\0\x03");
        out.clear();
        put_error_chunk(&mut out, 1, Errno::Io);
        assert_eq!(out, b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x01\0\0\0\x06\0\0\0\x05\0\0");
        out.clear();
        put_status_chunk(&mut out, 1, true, 7, &[(512, 3)]);
        assert_eq!(out, b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\0\x01\0\0\0\x0c\0\0\0\x07\0\0\x02\0\0\0\0\x03");
    }

    #[test]
    fn strings_are_bounded_and_checked() {
        assert_eq!(Cursor(b"\0\0\0\x02ab").string(), Some("ab"));
        assert_eq!(Cursor(b"\0\0\0\x03ab").string(), None);
        assert_eq!(Cursor(b"\0\0\0\x01\xff").string(), None);
        let mut long = 4097u32.to_be_bytes().to_vec();
        long.resize(4 + 4097, b'a');
        assert_eq!(Cursor(&long).string(), None);
    }
}
