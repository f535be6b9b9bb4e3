//! The cells of a witness: every byte that an agent puts there.
//!
//! A cell says which one it is, so that a value that was copied under another name, or by another tool, is found out.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic |
//! | 4 | 2 | version |
//! | 6 | 1 | kind: 1 group, 2 lease, 3 probe |
//! | 7 | 1 | reserved |
//! | 8 | 16 | the group, or the node |
//! | 24 | 4 | length of the content |
//! | 28 | 4 | CRC-32 of bytes 0..28 and the content |
//! | 32 | .. | content: K of a group; lease_gen (8), counter (8), writer (16) and span_ms (8) of a lease or probe |

use std::fmt;

use crate::config::Config;
use crate::format::codec::{FormatError, Reader, Writer};
use crate::format::config;
use crate::types::{GroupId, NodeId, Nonce};

/// The most bytes of a cell: a K with every site is a quarter of it.
pub const MAX_CELL_BYTES: usize = 1024;

const WHAT: &str = "witness cell";
const MAGIC: u32 = u32::from_le_bytes(*b"TMWC");
const VERSION: u16 = 1;
const HEAD: usize = 32;
const LEASE_WITHOUT_SPAN: usize = 32;

/// A place at a witness that holds one value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cell {
    /// K of a group.
    Group(GroupId),
    /// The lease of an agent.
    Lease(NodeId),
    /// Nothing that matters: an agent tries its witness with it.
    Probe(NodeId),
}

impl Cell {
    fn kind(self) -> u8 {
        match self {
            Self::Group(_) => 1,
            Self::Lease(_) => 2,
            Self::Probe(_) => 3,
        }
    }

    fn id(self) -> [u8; 16] {
        match self {
            Self::Group(group) => group.0,
            Self::Lease(node) | Self::Probe(node) => node.0,
        }
    }
}

impl fmt::Display for Cell {
    /// The cell's name at a witness: a word, a dash, 32 hexadecimal digits. Fit for a file, a key and an object.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Group(_) => "group-",
            Self::Lease(_) => "lease-",
            Self::Probe(_) => "probe-",
        })?;
        self.id().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What an agent shows to be alive by, and what a challenger takes from it. Neither number ever falls.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Lease {
    /// Which grant: a challenger that raises it revokes the lease.
    pub lease_gen: u64,
    /// Renewals.
    pub counter: u64,
    /// Drawn anew for every change: whoever lost the answer to its change knows by it that it happened.
    pub writer: Nonce,
    /// How long a renewal lasts for its holder, in milliseconds: a challenger that counts on less waits that long.
    pub span_ms: u64,
}

impl Lease {
    /// Alive still.
    pub fn renewed(self, writer: Nonce) -> Self {
        Self { counter: self.counter + 1, writer, ..self }
    }

    /// Taken from its holder.
    pub fn revoked(self, writer: Nonce) -> Self {
        Self { lease_gen: self.lease_gen + 1, writer, ..self }
    }
}

/// What a cell holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Of [`Cell::Group`].
    Config(Config),
    /// Of [`Cell::Lease`] and [`Cell::Probe`].
    Lease(Lease),
}

impl Content {
    fn fits(&self, cell: Cell) -> bool {
        matches!((self, cell), (Self::Config(_), Cell::Group(_)) | (Self::Lease(_), Cell::Lease(_) | Cell::Probe(_)))
    }
}

/// The bytes of `cell` with `content`.
///
/// # Panics
/// When the content is of another kind of cell: the caller's mistake.
pub fn encode(cell: Cell, content: &Content) -> Vec<u8> {
    assert!(content.fits(cell), "{cell} does not hold {content:?}");
    let mut body = Writer::default();
    match content {
        Content::Config(k) => config::encode(k, &mut body),
        Content::Lease(lease) => {
            body.u64(lease.lease_gen);
            body.u64(lease.counter);
            body.bytes(&lease.writer.0);
            body.u64(lease.span_ms);
        }
    }
    let mut w = Writer::with_capacity(HEAD + body.buf.len());
    w.u32(MAGIC);
    w.u16(VERSION);
    w.u8(cell.kind());
    w.u8(0);
    w.bytes(&cell.id());
    w.u32(body.buf.len() as u32);
    let crc = crc_of(&w.buf, &body.buf);
    w.u32(crc);
    w.bytes(&body.buf);
    assert!(w.buf.len() <= MAX_CELL_BYTES, "a cell is bounded by its fields");
    w.buf
}

/// What the bytes of `cell` say.
///
/// # Errors
/// [`FormatError`]; also when they are those of another cell.
pub fn decode(cell: Cell, bytes: &[u8]) -> Result<Content, FormatError> {
    let mut r = Reader::new(WHAT, bytes);
    if r.u32()? != MAGIC {
        return Err(FormatError::Magic(WHAT));
    }
    let version = r.u16()?;
    let (kind, _reserved, id) = (r.u8()?, r.u8()?, r.array()?);
    let len = r.count("length", MAX_CELL_BYTES - HEAD)?;
    let crc = r.u32()?;
    let body = r.bytes(len)?;
    if crc_of(&bytes[..HEAD - 4], body) != crc {
        return Err(FormatError::Checksum(WHAT));
    }
    if version != VERSION {
        return Err(FormatError::Version { what: WHAT, found: version, known: VERSION });
    }
    if bytes.len() != HEAD + len {
        return Err(r.field("length"));
    }
    if (kind, id) != (cell.kind(), cell.id()) {
        return Err(r.field("cell"));
    }
    let mut r = Reader::new(WHAT, body);
    match cell {
        Cell::Group(_) => config::decode(&mut r).map(Content::Config),
        Cell::Lease(_) | Cell::Probe(_) => {
            let (lease_gen, counter, writer) = (r.u64()?, r.u64()?, Nonce(r.array()?));
            // An agent of before did not say.
            let span_ms = if body.len() > LEASE_WITHOUT_SPAN { r.u64()? } else { 0 };
            Ok(Content::Lease(Lease { lease_gen, counter, writer, span_ms }))
        }
    }
}

fn crc_of(head: &[u8], content: &[u8]) -> u32 {
    let mut h = crc32fast::Hasher::new();
    h.update(head);
    h.update(content);
    h.finalize()
}

/// A cell in a file: the store's own revision in front, since a file has none.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 4 | magic |
/// | 4 | 4 | CRC-32 of the rest |
/// | 8 | 8 | revision: +1 at every change, the first is 1 |
/// | 16 | .. | the cell |
pub mod file {
    use super::{FormatError, Reader, Writer};
    use crate::format::crc32;

    /// The most bytes of a file.
    pub const MAX_FILE_BYTES: usize = super::MAX_CELL_BYTES + 16;

    const WHAT: &str = "witness file";
    const MAGIC: u32 = u32::from_le_bytes(*b"TMWF");

    /// The file's bytes.
    pub fn encode(revision: u64, cell: &[u8]) -> Vec<u8> {
        let mut rest = Writer::with_capacity(8 + cell.len());
        rest.u64(revision);
        rest.bytes(cell);
        let mut w = Writer::with_capacity(8 + rest.buf.len());
        w.u32(MAGIC);
        w.u32(crc32(&rest.buf));
        w.bytes(&rest.buf);
        w.buf
    }

    /// The revision and the cell.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(file: &[u8]) -> Result<(u64, &[u8]), FormatError> {
        let mut r = Reader::new(WHAT, file);
        if r.u32()? != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        let crc = r.u32()?;
        if crc32(&file[8..]) != crc {
            return Err(FormatError::Checksum(WHAT));
        }
        let revision = r.u64()?;
        Ok((revision, &file[16..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use crate::group::genesis;
    use crate::types::{GenId, SiteId};
    use proptest::prelude::*;

    const LEASE: Cell = Cell::Lease(NodeId([0xab; 16]));

    fn lease() -> Content {
        Content::Lease(Lease { lease_gen: 3, counter: 77, writer: Nonce([9; 16]), span_ms: 10_000 })
    }

    #[test]
    fn the_bytes_of_a_lease_stay_as_they_are() {
        let hex: String = encode(LEASE, &lease()).iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = concat!(
            "544d574301000200abababababababababababababababab28000000f17934a9",
            "03000000000000004d00000000000000090909090909090909090909090909091027000000000000"
        );
        assert_eq!(hex, golden);
        assert_eq!(LEASE.to_string(), format!("lease-{}", "ab".repeat(16)));
    }

    #[test]
    fn a_configuration_comes_back_from_its_cell_and_from_no_other() {
        let k = genesis(SiteId([1; 16]), NodeId([2; 16]), Nonce([3; 16]), GenId([4; 16]), Mode::Sync);
        let (cell, other) = (Cell::Group(GroupId([5; 16])), Cell::Group(GroupId([6; 16])));
        let bytes = encode(cell, &Content::Config(k.clone()));
        assert_eq!(decode(cell, &bytes), Ok(Content::Config(k)));
        assert_eq!(decode(other, &bytes), Err(FormatError::Field(WHAT, "cell")));
        assert_eq!(decode(Cell::Lease(NodeId([5; 16])), &bytes), Err(FormatError::Field(WHAT, "cell")));
    }

    proptest! {
        #[test]
        fn no_damage_to_a_cell_goes_unnoticed(at in 0usize..64, bit in 0u8..8, cut in 0usize..64) {
            let good = encode(LEASE, &lease());
            let mut flipped = good.clone();
            flipped[at] ^= 1 << bit;
            prop_assert!(decode(LEASE, &flipped).is_err());
            prop_assert!(decode(LEASE, &good[..cut]).is_err());
            let mut longer = good;
            longer.push(0);
            prop_assert!(decode(LEASE, &longer).is_err());
        }

        #[test]
        fn no_damage_to_a_file_goes_unnoticed(at in 0usize..80, bit in 0u8..8, cut in 0usize..80) {
            let good = file::encode(7, &encode(LEASE, &lease()));
            prop_assert_eq!(file::decode(&good).map(|(revision, _)| revision), Ok(7));
            let mut flipped = good.clone();
            flipped[at] ^= 1 << bit;
            prop_assert!(file::decode(&flipped).is_err());
            prop_assert!(file::decode(&good[..cut]).is_err());
        }
    }
}
