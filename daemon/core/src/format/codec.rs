//! Little-endian reading and writing with bounds.

use crate::types::{Boundary, Chain, Epoch, GenId, Incarnation, Lsn, Position};

/// Why bytes could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// The magic is another one: not this structure.
    #[error("{0}: not such a structure (magic)")]
    Magic(&'static str),
    /// Written by a newer version.
    #[error("{what}: version {found} is not supported (newest known: {known})")]
    Version {
        /// The structure.
        what: &'static str,
        /// Version found.
        found: u16,
        /// Newest version this code reads.
        known: u16,
    },
    /// The checksum is wrong.
    #[error("{0}: checksum mismatch")]
    Checksum(&'static str),
    /// The keyed hash is wrong: another volume's, or stale, or forged.
    #[error("{0}: keyed hash mismatch")]
    Hash(&'static str),
    /// Ends too early.
    #[error("{0}: truncated")]
    Truncated(&'static str),
    /// A field has a value that it cannot have.
    #[error("{0}: field {1} is out of range")]
    Field(&'static str, &'static str),
}

/// Appends to a byte vector.
#[derive(Default)]
pub struct Writer {
    /// What was written so far.
    pub buf: Vec<u8>,
}

impl Writer {
    /// An empty writer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { buf: Vec::with_capacity(capacity) }
    }

    /// One byte.
    pub fn u8(&mut self, v: u8) {
        self.buf.push(v);
    }

    /// Two bytes.
    pub fn u16(&mut self, v: u16) {
        self.buf.extend_from_slice(&v.to_le_bytes());
    }

    /// Four bytes.
    pub fn u32(&mut self, v: u32) {
        self.buf.extend_from_slice(&v.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, v: u64) {
        self.buf.extend_from_slice(&v.to_le_bytes());
    }

    /// Raw bytes.
    pub fn bytes(&mut self, v: &[u8]) {
        self.buf.extend_from_slice(v);
    }

    /// `len` zero bytes.
    pub fn zeros(&mut self, len: usize) {
        self.buf.resize(self.buf.len() + len, 0);
    }

    /// A string of at most `max` bytes, cut at a character boundary, with a two-byte length.
    pub fn text(&mut self, text: &str, max: usize) {
        let mut end = text.len().min(max);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.u16(end as u16);
        self.bytes(&text.as_bytes()[..end]);
    }

    /// Major, minor.
    pub fn epoch(&mut self, e: Epoch) {
        self.u32(e.major);
        self.u32(e.minor);
    }

    /// Generation, incarnation, lsn: 28 bytes.
    pub fn position(&mut self, p: Position) {
        self.bytes(&p.generation.0);
        self.u32(p.incarnation.0);
        self.u64(p.lsn.0);
    }

    /// Position and chain: 60 bytes.
    pub fn boundary(&mut self, b: Boundary) {
        self.position(b.position);
        self.bytes(&b.chain.0);
    }

    /// Overwrites four bytes at `at`.
    pub fn patch_u32(&mut self, at: usize, v: u32) {
        self.buf[at..at + 4].copy_from_slice(&v.to_le_bytes());
    }
}

/// Reads from a byte slice; every read is bounds-checked.
pub struct Reader<'a> {
    buf: &'a [u8],
    at: usize,
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `buf`; `what` names the structure in errors.
    pub fn new(what: &'static str, buf: &'a [u8]) -> Self {
        Self { buf, at: 0, what }
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let end = self.at.checked_add(len).ok_or(FormatError::Truncated(self.what))?;
        let out = self.buf.get(self.at..end).ok_or(FormatError::Truncated(self.what))?;
        self.at = end;
        Ok(out)
    }

    /// A fixed array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Skips reserved bytes.
    pub fn skip(&mut self, len: usize) -> Result<(), FormatError> {
        self.bytes(len).map(|_| ())
    }

    /// A string with a two-byte length of at most `max`.
    pub fn text(&mut self, max: usize) -> Result<String, FormatError> {
        let len = self.u16()? as usize;
        if len > max {
            return Err(FormatError::Field(self.what, "text length"));
        }
        String::from_utf8(self.bytes(len)?.to_vec()).map_err(|_| FormatError::Field(self.what, "text"))
    }

    /// A count of at most `max`.
    pub fn count(&mut self, name: &'static str, max: usize) -> Result<usize, FormatError> {
        let n = self.u32()? as usize;
        if n > max { Err(FormatError::Field(self.what, name)) } else { Ok(n) }
    }

    /// Major, minor.
    pub fn epoch(&mut self) -> Result<Epoch, FormatError> {
        Ok(Epoch { major: self.u32()?, minor: self.u32()? })
    }

    /// Generation, incarnation, lsn.
    pub fn position(&mut self) -> Result<Position, FormatError> {
        Ok(Position { generation: GenId(self.array()?), incarnation: Incarnation(self.u32()?), lsn: Lsn(self.u64()?) })
    }

    /// Position and chain.
    pub fn boundary(&mut self) -> Result<Boundary, FormatError> {
        Ok(Boundary { position: self.position()?, chain: Chain(self.array()?) })
    }

    /// A field error of this structure.
    pub fn field(&self, name: &'static str) -> FormatError {
        FormatError::Field(self.what, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_past_the_end_is_an_error_and_not_a_panic() {
        let mut r = Reader::new("x", &[1, 2, 3]);
        assert_eq!(r.u16(), Ok(0x0201));
        assert_eq!(r.u32(), Err(FormatError::Truncated("x")));
        assert_eq!(r.bytes(usize::MAX), Err(FormatError::Truncated("x")));
    }

    #[test]
    fn text_is_cut_at_a_character_boundary() {
        let mut w = Writer::default();
        w.text("aä", 2);
        assert_eq!(Reader::new("x", &w.buf).text(2).unwrap(), "a");
    }
}
