//! A small file of two alternating slots, so that a torn write never destroys the last good version.
//!
//! | offset in a slot | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic of the content |
//! | 4 | 2 | version of the content |
//! | 6 | 2 | reserved |
//! | 8 | 8 | counter: the higher valid one is in force; slot = counter mod 2 |
//! | 16 | 4 | length of the content |
//! | 20 | 4 | CRC-32 of bytes 0..20 and the content |
//! | 24 | .. | content, then zeros |

use bytes::Bytes;

use crate::format::codec::{FormatError, Reader, Writer};

const HEAD: usize = 24;

/// What a twin file holds: names its magic, version and slot size.
#[derive(Clone, Copy, Debug)]
pub struct TwinKind {
    /// For errors.
    pub name: &'static str,
    /// First bytes.
    pub magic: u32,
    /// Newest version: the one written, unless another is asked for. Older ones are read.
    pub version: u16,
    /// Bytes of one slot.
    pub slot_bytes: usize,
}

impl TwinKind {
    /// The same, written as an older version: a content that the older one can say stays readable for those who know only that.
    pub const fn written_as(self, version: u16) -> Self {
        Self { version, ..self }
    }

    /// Encodes one slot.
    ///
    /// # Panics
    /// When the content does not fit: contents are bounded by their own limits.
    pub fn encode(&self, counter: u64, content: &[u8]) -> Bytes {
        assert!(HEAD + content.len() <= self.slot_bytes, "{} outgrew its slot: {} bytes", self.name, content.len());
        let mut w = Writer::with_capacity(self.slot_bytes);
        w.u32(self.magic);
        w.u16(self.version);
        w.u16(0);
        w.u64(counter);
        w.u32(content.len() as u32);
        let crc = crc_of(&w.buf, content);
        w.u32(crc);
        w.bytes(content);
        w.zeros(self.slot_bytes - w.buf.len());
        Bytes::from(w.buf)
    }

    /// Where the slot for `counter` lies in the file.
    pub fn offset(&self, counter: u64) -> u64 {
        (counter % 2) * self.slot_bytes as u64
    }

    /// The whole file with one version in it.
    pub fn file(&self, counter: u64, content: &[u8]) -> Bytes {
        let mut out = vec![0; 2 * self.slot_bytes];
        let at = self.offset(counter) as usize;
        out[at..at + self.slot_bytes].copy_from_slice(&self.encode(counter, content));
        Bytes::from(out)
    }

    fn decode_slot<'a>(&self, slot: &'a [u8]) -> Result<(u64, &'a [u8]), FormatError> {
        let mut r = Reader::new(self.name, slot);
        if r.u32()? != self.magic {
            return Err(FormatError::Magic(self.name));
        }
        let version = r.u16()?;
        r.skip(2)?;
        let counter = r.u64()?;
        let len = r.count("length", self.slot_bytes - HEAD)?;
        let crc = r.u32()?;
        let content = r.bytes(len)?;
        if crc_of(&slot[..20], content) != crc {
            return Err(FormatError::Checksum(self.name));
        }
        if version == 0 || version > self.version {
            return Err(FormatError::Version { what: self.name, found: version, known: self.version });
        }
        Ok((counter, content))
    }

    /// The newest valid version of a file: its counter, its content, and whether the *other* slot is damaged (neither valid
    /// nor empty).
    pub fn decode<'a>(&self, file: &'a [u8]) -> Result<Twin<'a>, FormatError> {
        let first = file.get(..self.slot_bytes).ok_or(FormatError::Truncated(self.name))?;
        let second = file.get(self.slot_bytes..2 * self.slot_bytes).ok_or(FormatError::Truncated(self.name))?;
        let (a, b) = (self.decode_slot(first), self.decode_slot(second));
        for slot in [&a, &b] {
            // A newer version must never be read past by falling back to the older slot.
            if let Err(e @ FormatError::Version { .. }) = slot {
                return Err(e.clone());
            }
        }
        match (a, b) {
            (Ok(x), Ok(y)) => {
                let (counter, content) = if x.0 > y.0 { x } else { y };
                Ok(Twin { counter, content, other_damaged: false })
            }
            (Ok((counter, content)), Err(_)) => Ok(Twin { counter, content, other_damaged: !is_empty(second) }),
            (Err(_), Ok((counter, content))) => Ok(Twin { counter, content, other_damaged: !is_empty(first) }),
            (Err(e), Err(_)) => Err(e),
        }
    }
}

/// A decoded twin file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Twin<'a> {
    /// The counter in force.
    pub counter: u64,
    /// Its content.
    pub content: &'a [u8],
    /// The other slot holds something that does not verify: a torn write, or rot of a *newer* version.
    pub other_damaged: bool,
}

fn is_empty(slot: &[u8]) -> bool {
    slot.iter().all(|b| *b == 0)
}

fn crc_of(head: &[u8], content: &[u8]) -> u32 {
    let mut h = crc32fast::Hasher::new();
    h.update(head);
    h.update(content);
    h.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: TwinKind = TwinKind { name: "test", magic: 0x1234, version: 1, slot_bytes: 4096 };

    #[test]
    fn the_newer_slot_wins_and_a_torn_one_falls_back() {
        let mut file = KIND.file(1, b"one").to_vec();
        assert_eq!(KIND.decode(&file).unwrap().content, b"one");
        file[..4096].copy_from_slice(&KIND.encode(2, b"two"));
        assert_eq!(KIND.decode(&file).unwrap().content, b"two");
        file[30] ^= 1;
        file[25] ^= 1;
        let twin = KIND.decode(&file).unwrap();
        assert_eq!((twin.content, twin.other_damaged), (&b"one"[..], true));
    }

    #[test]
    fn a_newer_version_is_refused_and_not_skipped() {
        let mut file = KIND.file(1, b"one").to_vec();
        let newer = TwinKind { version: 2, ..KIND };
        file[..4096].copy_from_slice(&newer.encode(2, b"two"));
        assert!(matches!(KIND.decode(&file), Err(FormatError::Version { found: 2, .. })));
    }

    #[test]
    fn two_bad_slots_are_an_error() {
        assert!(KIND.decode(&[0; 8192]).is_err());
        assert!(KIND.decode(&[0; 100]).is_err());
    }
}
