//! Records: what happened to which blocks. A record's number is its frame's `first_lsn` plus its place in the frame.

use crate::format::codec::{FormatError, Reader, Writer};
use crate::types::BlockRange;

/// Bytes of a descriptor in a frame header.
pub const DESCRIPTOR_BYTES: usize = 16;
/// Descriptor flag: a reader that does not know the kind may skip the record.
pub const FLAG_IGNORABLE: u8 = 1;

/// What a record is. Numbers are on disk and never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// New content of the blocks; payload: the blocks.
    Write,
    /// The blocks read as zeros and their space may be given back.
    Discard,
    /// The blocks read as zeros.
    Zero,
    /// A cut proposed (reserved for groups of several volumes).
    Mark,
    /// A cut made (reserved).
    MarkCommit,
    /// A new incarnation begins; payload: one block, [`crate::format::config::Fork`].
    Fork,
    /// A configuration; payload: one block with K.
    Config,
    /// An opaque entry of the metadata log (reserved).
    Meta,
    /// The volume's size in bytes becomes `lba` (a byte count, not a block address); no payload. Of a group of one volume.
    Resize,
    /// The group's volumes become those of the payload, [`crate::layout::Layout`] and zeros.
    Layout,
    /// A kind this version does not know.
    Unknown(u8),
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Write => 1,
            Self::Discard => 2,
            Self::Zero => 3,
            Self::Mark => 4,
            Self::MarkCommit => 5,
            Self::Fork => 6,
            Self::Config => 7,
            Self::Meta => 8,
            Self::Resize => 9,
            Self::Layout => 10,
            Self::Unknown(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Write,
            2 => Self::Discard,
            3 => Self::Zero,
            4 => Self::Mark,
            5 => Self::MarkCommit,
            6 => Self::Fork,
            7 => Self::Config,
            8 => Self::Meta,
            9 => Self::Resize,
            10 => Self::Layout,
            other => Self::Unknown(other),
        }
    }

    /// True when the record changes what a read returns: an incarnation without such a record is empty.
    pub fn is_data(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::Zero | Self::Resize | Self::Layout | Self::Meta)
    }
}

/// A record's descriptor: 16 bytes.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 1 | kind |
/// | 1 | 1 | flags: bit 0 ignorable |
/// | 2 | 2 | reserved |
/// | 4 | 4 | blocks of the range |
/// | 8 | 8 | first block (RESIZE: the new size in bytes) |
///
/// A WRITE's payload is its range; FORK, CONFIG, LAYOUT, META, MARK and MARKCOMMIT use the block count as the length of their
/// payload and have no address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// What it is.
    pub kind: Kind,
    /// Flag bits.
    pub flags: u8,
    /// Blocks of the range or of the payload.
    pub blocks: u32,
    /// First block of the range.
    pub lba: u64,
}

impl Descriptor {
    /// A record over a range.
    pub fn over(kind: Kind, range: BlockRange) -> Self {
        Self { kind, flags: 0, blocks: range.count.0, lba: range.lba.0 }
    }

    /// True when the record can be taken: its kind is known here, or its writer says that it may be skipped. Otherwise the volume
    /// is refused: what it changes would be served as if it had not happened.
    pub fn is_understood(&self) -> bool {
        !matches!(self.kind, Kind::Unknown(_)) || self.flags & FLAG_IGNORABLE != 0
    }

    /// The range that the record changes, for WRITE, DISCARD and ZERO.
    pub fn range(&self) -> Option<BlockRange> {
        match self.kind {
            Kind::Write | Kind::Discard | Kind::Zero => Some(BlockRange::new(self.lba, self.blocks)),
            _ => None,
        }
    }

    /// Blocks of payload that follow the header for this record.
    pub fn payload_blocks(&self) -> u32 {
        match self.kind {
            Kind::Discard | Kind::Zero | Kind::Resize => 0,
            _ => self.blocks,
        }
    }

    /// Appends the 16 bytes.
    pub fn encode(&self, w: &mut Writer) {
        w.u8(self.kind.code());
        w.u8(self.flags);
        w.u16(0);
        w.u32(self.blocks);
        w.u64(self.lba);
    }

    /// Reads the 16 bytes.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let kind = Kind::from_code(r.u8()?);
        let flags = r.u8()?;
        r.skip(2)?;
        let d = Self { kind, flags, blocks: r.u32()?, lba: r.u64()? };
        match d.range() {
            Some(_) if d.blocks == 0 => Err(r.field("blocks")),
            Some(_) if d.lba.checked_add(u64::from(d.blocks)).is_none() => Err(r.field("lba")),
            _ => Ok(d),
        }
    }
}
