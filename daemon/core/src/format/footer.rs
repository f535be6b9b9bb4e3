//! The footer of a sealed segment: which blocks it changed. Reserved: nothing writes it yet (`docs/decisions/0007`). It is to be
//! written when the segment is sealed and kept after its slot was reused, so that "what changed since" outlives the log. An
//! unreadable footer counts as "everything changed".

use bytes::Bytes;

use crate::format::codec::{FormatError, Reader, Writer};
use crate::format::{crc32, round_up_block};
use crate::types::{BlockRange, Boundary, VolumeId};

/// `TMFT`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TMFT");
/// Newest version written and read.
pub const VERSION: u16 = 1;
/// The most ranges in one footer: more than a full slot of single-block records can hold.
pub const MAX_RANGES: usize = 1 << 20;

/// The changed blocks of a run of the log.
///
/// | bytes | field |
/// |---|---|
/// | 4 | magic `TMFT` |
/// | 2 | version |
/// | 2 | reserved |
/// | 16 | volume |
/// | 8 | sequence of the segment |
/// | 60 | boundary before the first record |
/// | 60 | boundary after the last record |
/// | 4 | number of ranges |
/// | 12 n | first block 8, blocks 4; ascending, disjoint |
/// | 4 | CRC-32 of everything before |
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Footer {
    /// The volume.
    pub volume: VolumeId,
    /// Which segment.
    pub sequence: u64,
    /// Before its first record.
    pub start: Boundary,
    /// After its last record.
    pub end: Boundary,
    /// What changed, ascending and disjoint.
    pub ranges: Vec<BlockRange>,
}

impl Footer {
    /// Whole blocks, padded with zeros.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(160 + self.ranges.len() * 12);
        w.u32(MAGIC);
        w.u16(VERSION);
        w.u16(0);
        w.bytes(&self.volume.0);
        w.u64(self.sequence);
        w.boundary(self.start);
        w.boundary(self.end);
        w.u32(self.ranges.len() as u32);
        for range in &self.ranges {
            w.u64(range.lba.0);
            w.u32(range.count.0);
        }
        let crc = crc32(&w.buf);
        w.u32(crc);
        w.zeros(round_up_block(w.buf.len()) - w.buf.len());
        Bytes::from(w.buf)
    }

    /// Decodes and checks.
    pub fn decode(buf: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("footer", buf);
        if r.u32()? != MAGIC {
            return Err(FormatError::Magic("footer"));
        }
        let version = r.u16()?;
        if version != VERSION {
            return Err(FormatError::Version { what: "footer", found: version, known: VERSION });
        }
        r.skip(2)?;
        let volume = VolumeId(r.array()?);
        let sequence = r.u64()?;
        let (start, end) = (r.boundary()?, r.boundary()?);
        let count = r.count("ranges", MAX_RANGES)?;
        let body = Reader::new("footer", buf).bytes(156 + count * 12)?;
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            ranges.push(BlockRange::new(r.u64()?, r.u32()?));
        }
        if r.u32()? != crc32(body) {
            return Err(FormatError::Checksum("footer"));
        }
        Ok(Self { volume, sequence, start, end, ranges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_survives_its_encoding_and_no_flipped_byte_does() {
        let footer = Footer {
            volume: VolumeId([1; 16]),
            sequence: 3,
            start: Boundary::default(),
            end: Boundary::default(),
            ranges: vec![BlockRange::new(1, 2), BlockRange::new(9, 1)],
        };
        let bytes = footer.encode();
        assert_eq!(Footer::decode(&bytes).unwrap(), footer);
        for at in 0..156 + 24 + 4 {
            let mut bad = bytes.to_vec();
            bad[at] ^= 1;
            assert!(Footer::decode(&bad).is_err() || at == 6 || at == 7, "byte {at}");
        }
    }
}
