//! A sealed suffix: the records that a copy had and the newer history does not. Kept in a file of its own before any block of
//! it is overwritten (R13): a head block, then the frames of the suffix as they stood in the log.

use bytes::Bytes;

use crate::format::codec::{FormatError, Reader, Writer};
use crate::format::crc32;
use crate::types::{BLOCK, Boundary, VolumeId, WallMs};

/// `TMBR`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TMBR");
/// Newest version written and read.
pub const VERSION: u16 = 1;

/// Whether a client may have been told that something in the suffix is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BranchClass {
    /// Nothing in it was acknowledged as durable.
    Unacked,
    /// Something was acknowledged.
    Acked,
    /// Cannot be told.
    Unknown,
}

/// The head of a branch file: magic, version, class, volume, the boundary it leaves, its tail, bytes of frames, wall clock,
/// CRC-32; padded to one block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BranchHead {
    /// The volume.
    pub volume: VolumeId,
    /// Acknowledged or not.
    pub class: BranchClass,
    /// Last common record: the suffix begins after it.
    pub from: Boundary,
    /// Its last record.
    pub tail: Boundary,
    /// Bytes of frames that follow.
    pub bytes: u64,
    /// When it was sealed.
    pub sealed_at: WallMs,
}

impl BranchHead {
    /// One block.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(BLOCK);
        w.u32(MAGIC);
        w.u16(VERSION);
        w.u8(match self.class {
            BranchClass::Unacked => 1,
            BranchClass::Acked => 2,
            BranchClass::Unknown => 3,
        });
        w.u8(0);
        w.bytes(&self.volume.0);
        w.boundary(self.from);
        w.boundary(self.tail);
        w.u64(self.bytes);
        w.u64(self.sealed_at.0);
        let crc = crc32(&w.buf);
        w.u32(crc);
        w.zeros(BLOCK - w.buf.len());
        Bytes::from(w.buf)
    }

    /// Decodes and checks.
    pub fn decode(buf: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("branch", buf);
        if r.u32()? != MAGIC {
            return Err(FormatError::Magic("branch"));
        }
        let version = r.u16()?;
        if version != VERSION {
            return Err(FormatError::Version { what: "branch", found: version, known: VERSION });
        }
        let class = match r.u8()? {
            1 => BranchClass::Unacked,
            2 => BranchClass::Acked,
            3 => BranchClass::Unknown,
            _ => return Err(r.field("class")),
        };
        r.skip(1)?;
        let head = Self {
            volume: VolumeId(r.array()?),
            class,
            from: r.boundary()?,
            tail: r.boundary()?,
            bytes: r.u64()?,
            sealed_at: WallMs(r.u64()?),
        };
        let body = Reader::new("branch", buf).bytes(160)?;
        if r.u32()? == crc32(body) { Ok(head) } else { Err(FormatError::Checksum("branch")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_its_encoding() {
        let head = BranchHead {
            volume: VolumeId([1; 16]),
            class: BranchClass::Acked,
            from: Boundary::default(),
            tail: Boundary::default(),
            bytes: 8192,
            sealed_at: WallMs(3),
        };
        assert_eq!(BranchHead::decode(&head.encode()).unwrap(), head);
        let mut bad = head.encode().to_vec();
        bad[100] ^= 1;
        assert!(BranchHead::decode(&bad).is_err());
    }
}
