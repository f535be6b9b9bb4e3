//! The file in which an agent remembers its witness: every byte of it.
//!
//! | bytes | field |
//! |---|---|
//! | 4 | magic |
//! | 2 | version |
//! | 2 | reserved |
//! | 4 | CRC-32 of the rest |
//! | 4 | number of cells |
//!
//! and for each cell:
//!
//! | bytes | field |
//! |---|---|
//! | 1 | kind: 1 group, 2 lease |
//! | 16 | the group, or the node |
//! | 8 | turn of its last change |
//! | 1 | revision: 1 counted, 2 tagged |
//! | 8, or 2 and its length | the count, or the tag |
//! | 1 | went back: 0 no, 1 wiped, 2 revision, 3 value, 4 rewritten |
//! | 16 | with 2: the revision seen, and that found |
//! | 2 | length of the value |
//! | .. | the value as at the witness |

use std::collections::BTreeMap;

use tidemark_core::format::codec::{Reader, Writer};
use tidemark_core::format::witness::{self as cells, Cell, MAX_CELL_BYTES};
use tidemark_core::format::{FormatError, crc32};
use tidemark_core::group::witness::{Found, Regression, Revision};
use tidemark_core::types::{GroupId, NodeId};

use super::memory::{Kept, MAX_CELLS};

const WHAT: &str = "memory of the witness";
const MAGIC: u32 = u32::from_le_bytes(*b"TMWM");
const VERSION: u16 = 1;
const HEAD: usize = 12;
/// The longest tag that a back-end gives a value.
const MAX_TAG_BYTES: usize = 256;
/// The most bytes of a file.
pub(super) const MAX_BYTES: usize = HEAD + 4 + MAX_CELLS * (64 + MAX_TAG_BYTES + MAX_CELL_BYTES);

pub(super) fn encode(kept: &BTreeMap<Cell, Kept>) -> Vec<u8> {
    let mut body = Writer::default();
    body.u32(kept.len() as u32);
    kept.iter().for_each(|(cell, kept)| put(&mut body, *cell, kept));
    let mut file = Writer::with_capacity(HEAD + body.buf.len());
    file.u32(MAGIC);
    file.u16(VERSION);
    file.zeros(2);
    file.u32(crc32(&body.buf));
    file.bytes(&body.buf);
    file.buf
}

/// # Errors
/// [`FormatError`].
pub(super) fn decode(file: &[u8]) -> Result<BTreeMap<Cell, Kept>, FormatError> {
    let mut r = Reader::new(WHAT, file);
    if r.u32()? != MAGIC {
        return Err(FormatError::Magic(WHAT));
    }
    let version = r.u16()?;
    r.skip(2)?;
    if r.u32()? != crc32(&file[HEAD..]) {
        return Err(FormatError::Checksum(WHAT));
    }
    if version != VERSION {
        return Err(FormatError::Version { what: WHAT, found: version, known: VERSION });
    }
    let count = r.count("cells", MAX_CELLS)?;
    (0..count).map(|_| take(&mut r)).collect()
}

fn put(w: &mut Writer, cell: Cell, kept: &Kept) {
    let (kind, id) = match cell {
        Cell::Group(group) => (1, group.0),
        Cell::Lease(node) | Cell::Probe(node) => (2, node.0),
    };
    w.u8(kind);
    w.bytes(&id);
    w.u64(kept.turn);
    match &kept.found.revision {
        Revision::Counted(count) => {
            w.u8(1);
            w.u64(*count);
        }
        Revision::Tagged(tag) => {
            w.u8(2);
            w.text(tag, MAX_TAG_BYTES);
        }
    }
    put_regression(w, kept.suspect);
    let value = cells::encode(cell, &kept.found.content);
    w.u16(value.len() as u16);
    w.bytes(&value);
}

fn put_regression(w: &mut Writer, suspect: Option<Regression>) {
    match suspect {
        None => w.u8(0),
        Some(Regression::Wiped) => w.u8(1),
        Some(Regression::Revision { seen, found }) => {
            w.u8(2);
            w.u64(seen);
            w.u64(found);
        }
        Some(Regression::Value) => w.u8(3),
        Some(Regression::Rewritten) => w.u8(4),
    }
}

fn take(r: &mut Reader<'_>) -> Result<(Cell, Kept), FormatError> {
    let (kind, id) = (r.u8()?, r.array()?);
    let cell = match kind {
        1 => Cell::Group(GroupId(id)),
        2 => Cell::Lease(NodeId(id)),
        _ => return Err(r.field("kind")),
    };
    let turn = r.u64()?;
    let revision = match r.u8()? {
        1 => Revision::Counted(r.u64()?),
        2 => Revision::Tagged(r.text(MAX_TAG_BYTES)?.into()),
        _ => return Err(r.field("revision")),
    };
    let suspect = match r.u8()? {
        0 => None,
        1 => Some(Regression::Wiped),
        2 => Some(Regression::Revision { seen: r.u64()?, found: r.u64()? }),
        3 => Some(Regression::Value),
        4 => Some(Regression::Rewritten),
        _ => return Err(r.field("regression")),
    };
    let len = r.u16()?.into();
    let content = cells::decode(cell, r.bytes(len)?)?;
    Ok((cell, Kept { found: Found { content, revision }, suspect, turn }))
}
