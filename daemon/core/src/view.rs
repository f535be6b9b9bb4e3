//! What a copy held at one position, block by block: which blocks are in its base, and where the others lie.
//!
//! Pure: it is told of frames one after the other, and says where to read. Sources are numbered by who reads them. Nothing is
//! skipped: a frame that does not continue what is there, or is not understood, is an error.

use bytes::Bytes;

use crate::event::Slot;
use crate::floor;
use crate::format::FormatError;
use crate::format::frame::FrameHeader;
use crate::layout::Layout;
use crate::log::frames::change_in;
use crate::types::{BLOCK, BlockRange, Boundary, ByteRange, Lsn, VolumeId};
use crate::volume::index::{Crcs, Index, Place};

/// Why a frame is no part of the picture.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ViewError {
    /// It does not follow.
    #[error("a frame does not continue lsn {0}")]
    Gap(Lsn),
    /// It says something that this version does not know.
    #[error("the frame after lsn {0} holds a record of an unknown kind")]
    Unknown(Lsn),
    /// Its layout cannot be read.
    #[error(transparent)]
    Layout(#[from] FormatError),
}

/// Where a run of bytes is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nowhere: zeros.
    Zeros,
    /// In the base of this volume, from this byte on.
    Base(VolumeId, u64),
    /// In a source, whole blocks from this one on, with their checksums.
    Source(u32, u32, Crcs),
}

/// A run of bytes of the group's space. One in a source is whole blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Where it lies in the space.
    pub range: ByteRange,
    /// Where it is read.
    pub found: Found,
}

/// The picture.
#[derive(Debug)]
pub struct Picture {
    end: Boundary,
    /// What the base is composed of.
    base: Layout,
    layout: Layout,
    index: Index,
}

impl Picture {
    /// A base that holds exactly the content at `floor`, of these volumes.
    pub fn of_base(floor: Boundary, base: Layout) -> Self {
        Self { end: floor, layout: base.clone(), base, index: Index::default() }
    }

    /// The next frame: its payload begins at `block` of `source`. The payload itself, in whole pieces, is needed only where the frame
    /// changes the volumes ([`Picture::needs_payload`]).
    ///
    /// # Errors
    /// [`ViewError`]; the picture is then what it was.
    pub fn add(&mut self, frame: &FrameHeader, payload: &[Bytes], source: u32, block: u32) -> Result<(), ViewError> {
        let before = self.end.position.lsn;
        if !frame.follows(&self.end) {
            return Err(ViewError::Gap(before));
        }
        if !frame.is_understood() {
            return Err(ViewError::Unknown(before));
        }
        if let Some(change) = change_in(frame, payload)? {
            self.layout = change.on(&self.layout);
        }
        floor::apply(&mut self.index, frame, Slot(source), block);
        self.end = frame.boundary();
        Ok(())
    }

    /// True for a frame that says in its payload which volumes there are.
    pub fn needs_payload(frame: &FrameHeader) -> bool {
        frame.records.iter().any(|record| record.kind == crate::format::record::Kind::Layout)
    }

    /// The last record that is in it.
    pub fn end(&self) -> Boundary {
        self.end
    }

    /// The volumes that there were.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Ranges that are not in the base.
    pub fn ranges(&self) -> usize {
        self.index.len()
    }

    /// Where these blocks of the space are read, in order and without gaps.
    pub fn runs(&self, blocks: BlockRange) -> Vec<Run> {
        let mut out = Vec::new();
        for piece in self.index.lookup(blocks) {
            let range = ByteRange::new(piece.lba * BLOCK as u64, u64::from(piece.count) * BLOCK as u64);
            match piece.found {
                None => self.base_runs(range, &mut out),
                Some((_, Place::Zero)) => out.push(Run { range, found: Found::Zeros }),
                Some((_, Place::Log { slot, block, crcs })) => {
                    out.push(Run { range, found: Found::Source(slot.0, block, crcs) });
                }
            }
        }
        out
    }

    /// What belonged to no volume when the base was written reads as zeros.
    fn base_runs(&self, range: ByteRange, out: &mut Vec<Run>) {
        let mut at = range.offset;
        let mut put = |from: u64, to: u64, found: Found| {
            if from < to {
                out.push(Run { range: ByteRange::new(from, to - from), found });
            }
        };
        let mut used: Vec<(VolumeId, u64)> = Vec::new();
        for extent in self.base.extents().iter().filter(|extent| !extent.is_hole()) {
            let before = used.iter().filter(|(volume, _)| *volume == extent.volume).map(|(_, len)| len).sum::<u64>();
            used.push((extent.volume, extent.len));
            let (from, to) = (extent.start.max(range.offset), extent.end().min(range.end()));
            if from < to {
                put(at, from, Found::Zeros);
                put(from, to, Found::Base(extent.volume, from - extent.start + before));
                at = to;
            }
        }
        put(at, range.end(), Found::Zeros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::block_crcs;
    use crate::format::frame::{FrameKind, PeerDurable, chain_origin};
    use crate::format::record::{Descriptor, Kind};
    use crate::types::{Chain, Epoch, GenId, Incarnation, Position, Secret};

    const A: VolumeId = VolumeId([1; 16]);
    const B: VolumeId = VolumeId([2; 16]);

    fn secret() -> Secret {
        Secret([3; 32])
    }

    fn origin() -> Boundary {
        Boundary { position: Position::default(), chain: chain_origin(&secret(), A) }
    }

    fn frame(after: Boundary, kind: Kind, lba: u64, blocks: u32, payload: &[u8]) -> FrameHeader {
        let mut header = FrameHeader {
            kind: FrameKind::Log,
            volume: A,
            generation: GenId([4; 16]),
            incarnation: Incarnation(1),
            first: after.position.lsn.next(),
            epoch: Epoch::default(),
            committed: Lsn::ZERO,
            durable: Lsn::ZERO,
            peers: [PeerDurable::default(); 2],
            cipher: 0,
            key_epoch: 0,
            wall_ms: 0,
            prev: after.chain,
            chain: Chain::default(),
            records: vec![Descriptor { kind, flags: 0, blocks, lba }],
            crcs: block_crcs(payload).collect(),
        };
        header.encode(&secret());
        header
    }

    #[test]
    fn newer_blocks_are_read_from_their_source_and_the_others_from_the_base_of_their_volume() {
        let base = Layout::one(A, 8192).added(B, 512).unwrap().grown(A, 16384).unwrap();
        let mut picture = Picture::of_base(origin(), base);
        let payload = vec![9; BLOCK];
        let write = frame(origin(), Kind::Write, 1, 1, &payload);
        picture.add(&write, &[payload.into()], 5, 77).unwrap();
        picture.add(&frame(picture.end(), Kind::Zero, 3, 1, &[]), &[], 5, 79).unwrap();
        let runs: Vec<_> = picture.runs(BlockRange::new(0, 5)).into_iter().map(|run| (run.range, run.found)).collect();
        let Found::Source(5, 77, crcs) = &runs[1].1 else { panic!("{runs:?}") };
        assert_eq!(crcs.at(0), write.crcs[0]);
        let range = |from, len| ByteRange::new(from, len);
        assert_eq!(runs[0], (range(0, 4096), Found::Base(A, 0)));
        assert_eq!(runs[1].0, range(4096, 4096));
        assert_eq!(runs[2], (range(8192, 512), Found::Base(B, 0)));
        assert_eq!(runs[3], (range(8704, 3584), Found::Zeros));
        assert_eq!(runs[4], (range(12288, 4096), Found::Zeros));
        assert_eq!(runs[5], (range(16384, 4096), Found::Base(A, 12288)));
    }

    #[test]
    fn a_frame_that_does_not_continue_the_picture_is_refused() {
        let mut picture = Picture::of_base(origin(), Layout::one(A, 8192));
        let first = frame(origin(), Kind::Zero, 0, 1, &[]);
        let second = frame(first.boundary(), Kind::Zero, 1, 1, &[]);
        assert_eq!(picture.add(&second, &[], 0, 0), Err(ViewError::Gap(Lsn::ZERO)));
        picture.add(&first, &[], 0, 0).unwrap();
        assert_eq!(picture.add(&first, &[], 0, 0), Err(ViewError::Gap(Lsn(1))));
        picture.add(&second, &[], 0, 0).unwrap();
    }

    #[test]
    fn a_volume_that_grew_reads_as_zeros_where_its_base_had_not() {
        let mut picture = Picture::of_base(origin(), Layout::one(A, 4096));
        let grown = frame(origin(), Kind::Resize, 12288, 0, &[]);
        picture.add(&grown, &[], 0, 0).unwrap();
        assert_eq!(picture.layout().volume_size(A), Some(12288));
        let runs = picture.runs(BlockRange::new(0, 3));
        assert_eq!(runs[1], Run { range: ByteRange::new(4096, 8192), found: Found::Zeros });
    }
}
