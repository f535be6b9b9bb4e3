//! The first 4 KiB of a log slot in use: which place in the log it holds. Frames follow back to back.

use bytes::Bytes;

use crate::format::codec::{FormatError, Reader, Writer};
use crate::types::{BLOCK, Boundary, Secret, VolumeId};

/// `TMSG`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TMSG");
/// Newest version written and read.
pub const VERSION: u16 = 1;
/// Bytes of the header; the first frame starts here.
pub const HEADER_BYTES: usize = BLOCK;

const USED: usize = 136;

/// A segment's header.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 4 | magic `TMSG` |
/// | 4 | 2 | version |
/// | 6 | 2 | reserved |
/// | 8 | 16 | volume |
/// | 24 | 8 | sequence number: +1 for each segment of this copy |
/// | 32 | 8 | slot length in bytes |
/// | 40 | 60 | boundary before the first frame: generation, incarnation, lsn, chain |
/// | 100 | 4 | reserved |
/// | 104 | 32 | blake3 keyed with the volume's secret over bytes 0..104 |
///
/// A later segment whose boundary lies inside an earlier one *cuts* it there: what the earlier one holds beyond was sealed or
/// never acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// The volume.
    pub volume: VolumeId,
    /// Order of the segments of this copy.
    pub sequence: u64,
    /// Bytes of the slot.
    pub slot_bytes: u64,
    /// Where the log stood before the first frame.
    pub start: Boundary,
}

impl SegmentHeader {
    /// One block.
    pub fn encode(&self, secret: &Secret) -> Bytes {
        let mut w = Writer::with_capacity(BLOCK);
        w.u32(MAGIC);
        w.u16(VERSION);
        w.u16(0);
        w.bytes(&self.volume.0);
        w.u64(self.sequence);
        w.u64(self.slot_bytes);
        w.boundary(self.start);
        w.zeros(4);
        let hash = blake3::keyed_hash(&secret.0, &w.buf);
        w.bytes(hash.as_bytes());
        debug_assert_eq!(w.buf.len(), USED);
        w.zeros(BLOCK - USED);
        Bytes::from(w.buf)
    }

    /// Decodes and checks the header at the start of `buf`.
    pub fn decode(buf: &[u8], secret: &Secret) -> Result<Self, FormatError> {
        let used = buf.get(..USED).ok_or(FormatError::Truncated("segment"))?;
        let mut r = Reader::new("segment", used);
        if r.u32()? != MAGIC {
            return Err(FormatError::Magic("segment"));
        }
        let version = r.u16()?;
        if version != VERSION {
            return Err(FormatError::Version { what: "segment", found: version, known: VERSION });
        }
        if blake3::keyed_hash(&secret.0, &used[..104]).as_bytes()[..] != used[104..136] {
            return Err(FormatError::Hash("segment"));
        }
        r.skip(2)?;
        Ok(Self { volume: VolumeId(r.array()?), sequence: r.u64()?, slot_bytes: r.u64()?, start: r.boundary()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Chain, GenId, Incarnation, Lsn, Position};

    #[test]
    fn a_header_survives_its_encoding_and_no_flipped_byte_does() {
        let secret = Secret([1; 32]);
        let h = SegmentHeader {
            volume: VolumeId([2; 16]),
            sequence: 9,
            slot_bytes: 1 << 20,
            start: Boundary {
                position: Position { generation: GenId([3; 16]), incarnation: Incarnation(4), lsn: Lsn(5) },
                chain: Chain([6; 32]),
            },
        };
        let bytes = h.encode(&secret);
        assert_eq!(SegmentHeader::decode(&bytes, &secret).unwrap(), h);
        for at in 0..USED {
            let mut bad = bytes.to_vec();
            bad[at] ^= 0x40;
            assert!(SegmentHeader::decode(&bad, &secret).is_err(), "byte {at}");
        }
    }
}
