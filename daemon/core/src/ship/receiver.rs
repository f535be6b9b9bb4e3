//! The receiving side of a stream: what is refused, in a fixed order (R3), cheapest and most damning first.

use bytes::Bytes;

use crate::format::frame::{FrameHeader, FrameKind};
use crate::format::record::Kind;
use crate::format::round_up_block;
use crate::layout::{Change, Layout};
use crate::log::frames::change_in;
use crate::ship::{Append, Refusal};
use crate::types::{BLOCK, Boundary, Epoch, Lsn, SECTOR, Secret, VolumeId};

/// What a frame is judged against.
#[derive(Clone, Debug)]
pub struct Against<'a> {
    /// The volume.
    pub volume: VolumeId,
    /// Its secret.
    pub secret: &'a Secret,
    /// Epoch of the K persisted here.
    pub epoch: Epoch,
    /// The end of the log here.
    pub end: Boundary,
    /// Durable here.
    pub durable: Lsn,
    /// The volumes here.
    pub layout: &'a Layout,
    /// Size of the base here, in bytes: what an only volume may grow to.
    pub base_size: u64,
    /// The most bytes a frame may take in a segment.
    pub frame_bytes: u64,
}

/// A frame that may be taken.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The header.
    pub header: FrameHeader,
    /// Its bytes, padded to the identical frame.
    pub bytes: Bytes,
    /// The payload pieces, each whole blocks.
    pub payload: Vec<Bytes>,
    /// The volumes that it makes the group's: they need bases.
    pub layout: Option<Layout>,
}

/// Judges a frame. `Ok(None)`: everything in it is here already (sent again after a reconnect): nothing to do.
pub fn judge(append: Append, against: &Against<'_>) -> Result<Option<Accepted>, Refusal> {
    let header = FrameHeader::decode(&append.header, against.secret).map_err(|_| Refusal::Header)?;
    let size = header.total_bytes() as u64;
    if header.used_bytes() != append.header.len() || header.kind != FrameKind::Log || size > against.frame_bytes {
        return Err(Refusal::Header);
    }
    if !header.is_understood() {
        return Err(Refusal::Version);
    }
    if header.volume != against.volume {
        return Err(Refusal::Identity);
    }
    if append.epoch != against.epoch {
        return Err(if append.epoch < against.epoch { Refusal::OldEpoch } else { Refusal::NeedConfig });
    }
    let end = against.end.position;
    if header.first > end.lsn.next() {
        return Err(Refusal::Gap);
    }
    if header.first <= end.lsn {
        let same = header.incarnation == end.incarnation && header.generation == end.generation;
        return if header.boundary() == against.end {
            Ok(None)
        } else if same && header.first <= against.durable {
            Err(Refusal::Rewrite)
        } else {
            Err(Refusal::Gap)
        };
    }
    let payload = whole_blocks(append.payload);
    if !header.matches(payload.iter().map(Bytes::as_ref)) {
        return Err(Refusal::Payload);
    }
    if !header.follows(&against.end) {
        return Err(Refusal::Chain);
    }
    let layout = match change_in(&header, &payload).map_err(|_| Refusal::Header)? {
        Some(Change::Layout(layout)) => Some(layout),
        _ => None,
    };
    judge_content(&header, layout.as_ref(), against)?;
    let bytes = pad(append.header);
    Ok(Some(Accepted { header, bytes, payload, layout }))
}

/// What an honest writer of this volume never writes, and nobody could serve: a frame that names an incarnation which it does not
/// begin, a FORK back, a range or a size beyond what is here.
fn judge_content(header: &FrameHeader, layout: Option<&Layout>, against: &Against<'_>) -> Result<(), Refusal> {
    let end = against.end.position;
    let ascends = match header.records.iter().any(|record| record.kind == Kind::Fork) {
        true => header.records.len() == 1 && header.incarnation > end.incarnation,
        false => header.incarnation == end.incarnation && header.generation == end.generation,
    };
    if !ascends {
        return Err(Refusal::Header);
    }
    let (mut size, mut is_one) = (against.layout.size(), against.layout.extents().len() == 1);
    if layout.is_some_and(|layout| !layout.extends(against.layout)) {
        return Err(Refusal::Size);
    }
    for record in &header.records {
        match (record.kind, record.range()) {
            (Kind::Layout, _) => {
                is_one = false;
                size = layout.map_or(size, Layout::size);
            }
            (Kind::Resize, _) if !is_one || !record.lba.is_multiple_of(SECTOR as u64) => return Err(Refusal::Header),
            (Kind::Resize, _) if record.lba == 0 || record.lba > against.base_size => return Err(Refusal::Size),
            (Kind::Resize, _) => size = record.lba,
            (_, Some(range)) if range.end() > size.div_ceil(BLOCK as u64) => return Err(Refusal::Size),
            _ => {}
        }
    }
    Ok(())
}

/// Pieces as they came when each is whole blocks, else one copy.
fn whole_blocks(pieces: Vec<Bytes>) -> Vec<Bytes> {
    let pieces: Vec<Bytes> = pieces.into_iter().filter(|p| !p.is_empty()).collect();
    if pieces.iter().all(|p| p.len().is_multiple_of(BLOCK)) {
        return pieces;
    }
    let mut joined = pieces.concat();
    joined.resize(round_up_block(joined.len()), 0);
    vec![Bytes::from(joined)]
}

fn pad(header: Bytes) -> Bytes {
    let mut bytes = header.to_vec();
    bytes.resize(round_up_block(header.len()), 0);
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::format::record::{Descriptor, FLAG_IGNORABLE};
    use crate::log::frames::{FrameContext, Record, build};

    const VOLUME: VolumeId = VolumeId([1; 16]);
    /// With a short last block.
    const SIZE: u64 = 8 * BLOCK as u64 + 512;

    fn judged(descriptor: Descriptor) -> Result<bool, Refusal> {
        let (secret, end) = (Secret([4; 32]), Boundary::default());
        let payload = vec![7; descriptor.payload_blocks() as usize * BLOCK];
        let mut pending: VecDeque<_> = [Record::new(descriptor, Bytes::from(payload))].into();
        let context = FrameContext {
            epoch: Epoch::default(),
            committed: Lsn::ZERO,
            durable: Lsn::ZERO,
            peers: Default::default(),
            wall_ms: 0,
        };
        let (header, bytes, payload) = build(&mut pending, 1 << 20, end, VOLUME, &secret, &context).unwrap();
        let append =
            Append { epoch: Epoch::default(), header: bytes.slice(..header.used_bytes()), payload, sync: false };
        let against = Against {
            volume: VOLUME,
            secret: &secret,
            epoch: Epoch::default(),
            end,
            durable: Lsn::ZERO,
            layout: &Layout::one(VOLUME, SIZE),
            base_size: SIZE + 512,
            frame_bytes: 1 << 20,
        };
        judge(append, &against).map(|accepted| accepted.is_some())
    }

    #[test]
    fn a_record_of_an_unknown_kind_is_refused_unless_it_may_be_skipped() {
        let unknown = |flags| Descriptor { kind: Kind::Unknown(77), flags, blocks: 1, lba: 5 };
        assert_eq!(judged(unknown(0)), Err(Refusal::Version));
        assert_eq!(judged(unknown(0xfe)), Err(Refusal::Version));
        assert_eq!(judged(unknown(FLAG_IGNORABLE)), Ok(true));
    }

    #[test]
    fn what_lies_beyond_the_volume_or_its_base_is_refused() {
        let write = |lba, blocks| judged(Descriptor { kind: Kind::Write, flags: 0, blocks, lba });
        assert_eq!((write(0, 9), write(8, 1)), (Ok(true), Ok(true)));
        assert_eq!(
            (write(8, 2), write(9, 1), write(u64::MAX - 1, 1)),
            (Err(Refusal::Size), Err(Refusal::Size), Err(Refusal::Size))
        );
        let resize = |size| judged(Descriptor { kind: Kind::Resize, flags: 0, blocks: 0, lba: size });
        assert_eq!((resize(SIZE), resize(SIZE + 512)), (Ok(true), Ok(true)));
        assert_eq!(
            (resize(SIZE + 1024), resize(0), resize(u64::MAX / 512 * 512)),
            (Err(Refusal::Size), Err(Refusal::Size), Err(Refusal::Size))
        );
        assert_eq!(resize(SIZE - 1), Err(Refusal::Header));
    }

    #[test]
    fn a_fork_that_does_not_ascend_is_refused() {
        let fork = Descriptor { kind: Kind::Fork, flags: 0, blocks: 1, lba: 0 };
        assert_eq!(judged(fork), Err(Refusal::Header));
    }
}
