//! The small pieces that every message is made of: identities, positions, ranges.

use bytes::Bytes;
use tidemark_core::layout::{Layout, MAX_EXTENTS};
use tidemark_core::ship::ChainEntry;
use tidemark_core::types::{BLOCK, BlockCount, BlockRange, Boundary, Chain, Epoch, Incarnation, Lba, Lsn, Position};
use tidemark_proto::peer as wire;

use super::Malformed;

/// The most entries of a history in one message: a hundred years of one opening a week.
pub const MAX_HISTORY: usize = 4096;
/// First block that no volume can have: its byte address would not fit into 64 bits.
const LBA_END: u64 = u64::MAX / BLOCK as u64;

/// Requires a message field.
pub(super) fn required<T>(value: Option<T>, field: &'static str) -> Result<T, Malformed> {
    value.ok_or(Malformed::Missing { field })
}

/// Copies an identity or a hash out of the message, so that sixteen bytes do not pin a whole receive buffer.
pub(in crate::peer) fn fixed<const N: usize>(bytes: &Bytes, field: &'static str) -> Result<[u8; N], Malformed> {
    <[u8; N]>::try_from(bytes.as_ref()).map_err(|_| Malformed::Length { field, wanted: N, found: bytes.len() })
}

/// An identity or a hash for the wire.
pub(in crate::peer) fn raw(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Refuses more than `limit` of something.
pub(in crate::peer) fn at_most(found: usize, limit: usize, field: &'static str) -> Result<(), Malformed> {
    if found > limit { Err(Malformed::TooMany { field, limit, found }) } else { Ok(()) }
}

pub(in crate::peer) fn layout_out(layout: &Layout) -> wire::Layout {
    let extents = layout.extents().iter();
    wire::Layout { extents: extents.map(|e| wire::Extent { volume: raw(&e.volume.0), len: e.len }).collect() }
}

pub(in crate::peer) fn layout_in(layout: Option<wire::Layout>) -> Result<Option<Layout>, Malformed> {
    let Some(layout) = layout else { return Ok(None) };
    at_most(layout.extents.len(), MAX_EXTENTS, "extents")?;
    let run = |e: &wire::Extent| Ok((id(&e.volume, "volume")?, e.len));
    let runs = layout.extents.iter().map(run).collect::<Result<Vec<_>, Malformed>>()?;
    Ok(Some(Layout::new(runs)?))
}

pub(super) fn epoch_out(epoch: Epoch) -> Option<wire::Epoch> {
    Some(wire::Epoch { major: epoch.major, minor: epoch.minor })
}

pub(super) fn epoch_in(epoch: Option<wire::Epoch>) -> Result<Epoch, Malformed> {
    let epoch = required(epoch, "epoch")?;
    Ok(Epoch { major: epoch.major, minor: epoch.minor })
}

pub(super) fn position_out(position: Position) -> Option<wire::Position> {
    Some(wire::Position {
        generation: raw(&position.generation.0),
        incarnation: position.incarnation.0,
        lsn: position.lsn.0,
    })
}

pub(super) fn position_in(position: Option<wire::Position>) -> Result<Position, Malformed> {
    let position = required(position, "position")?;
    Ok(Position {
        generation: id(&position.generation, "generation")?,
        incarnation: Incarnation(position.incarnation),
        lsn: Lsn(position.lsn),
    })
}

pub(super) fn boundary_out(boundary: Boundary) -> Option<wire::Boundary> {
    Some(wire::Boundary { position: position_out(boundary.position), chain: raw(&boundary.chain.0) })
}

pub(super) fn boundary_in(boundary: Option<wire::Boundary>) -> Result<Boundary, Malformed> {
    let boundary = required(boundary, "boundary")?;
    Ok(Boundary { position: position_in(boundary.position)?, chain: Chain(fixed(&boundary.chain, "chain")?) })
}

/// A boundary that means something only in some messages: there it is required, elsewhere it may be absent.
pub(super) fn boundary_if(needed: bool, boundary: Option<wire::Boundary>) -> Result<Boundary, Malformed> {
    if boundary.is_none() && !needed { Ok(Boundary::default()) } else { boundary_in(boundary) }
}

pub(super) fn range_out(range: BlockRange) -> Option<wire::BlockRange> {
    Some(wire::BlockRange { lba: range.lba.0, count: range.count.0 })
}

/// A range that is not empty and whose byte addresses fit into 64 bits.
pub(super) fn range_in(range: Option<wire::BlockRange>) -> Result<BlockRange, Malformed> {
    let range = required(range, "range")?;
    let end = range.lba.checked_add(u64::from(range.count));
    if range.count == 0 || end.is_none_or(|end| end > LBA_END) {
        return Err(Malformed::Range { lba: range.lba, count: range.count });
    }
    Ok(BlockRange { lba: Lba(range.lba), count: BlockCount(range.count) })
}

pub(super) fn history_out(history: &[ChainEntry]) -> Vec<wire::ChainEntry> {
    let entry = |e: &ChainEntry| wire::ChainEntry {
        generation: raw(&e.generation.0),
        incarnation: e.incarnation.0,
        fork: e.fork.0,
    };
    history.iter().map(entry).collect()
}

pub(super) fn history_in(history: &[wire::ChainEntry]) -> Result<Vec<ChainEntry>, Malformed> {
    at_most(history.len(), MAX_HISTORY, "history")?;
    let entry = |e: &wire::ChainEntry| {
        Ok(ChainEntry {
            generation: id(&e.generation, "generation")?,
            incarnation: Incarnation(e.incarnation),
            fork: Lsn(e.fork),
        })
    };
    history.iter().map(entry).collect()
}

/// The identities of the domain.
pub(in crate::peer) trait FromBytes {
    fn from_bytes(bytes: [u8; 16]) -> Self;
}

macro_rules! from_bytes {
    ($($name:ident),*) => {
        $(impl FromBytes for tidemark_core::types::$name {
            fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }
        })*
    };
}

from_bytes!(VolumeId, GroupId, SiteId, NodeId, GenId, BootId, Nonce);

/// An identity of a message.
pub(in crate::peer) fn id<T: FromBytes>(bytes: &Bytes, field: &'static str) -> Result<T, Malformed> {
    fixed(bytes, field).map(T::from_bytes)
}
