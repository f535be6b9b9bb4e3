//! Which volumes a group has and where each lies in the group's space of blocks, which has one log.
//!
//! A layout is only ever appended to: what lies somewhere stays there, a volume that grows and is not the last one gets a further
//! extent at the end, and what a removed volume leaves is a hole that nobody gets again. So a place in a log means the same for
//! as long as the group lives.

#[cfg(test)]
mod tests;

use crate::format::codec::{FormatError, Reader, Writer};
use crate::types::{BLOCK, BlockRange, ByteRange, SECTOR, VolumeId};

/// Volumes of a group at one time.
pub const MAX_VOLUMES: usize = 64;
/// Extents of a layout, holes included.
pub const MAX_EXTENTS: usize = 512;
/// Bytes of a group's space, so that no sum of positions overflows.
pub const MAX_BYTES: u64 = 1 << 62;
/// The most bytes that [`Layout::encode`] gives.
pub const MAX_ENCODED: usize = 4 + MAX_VOLUMES * 16 + MAX_EXTENTS * 10;

const HOLE: u16 = u16::MAX;

/// A run of bytes of the group's space that belongs to one volume, or, with the nil id, to none any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The volume; nil: a hole.
    pub volume: VolumeId,
    /// First byte in the group's space, a multiple of 4096.
    pub start: u64,
    /// Bytes, a multiple of 512; of 4096 where the volume goes on in another extent.
    pub len: u64,
}

impl Extent {
    /// First byte after it.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Nobody's.
    pub fn is_hole(&self) -> bool {
        self.volume.is_nil()
    }

    /// The blocks that it touches. The rest of a short last block is nobody's and reads as zeros.
    pub fn ranges(&self) -> impl Iterator<Item = BlockRange> + use<> {
        let (first, end) = (self.start / BLOCK as u64, self.end().div_ceil(BLOCK as u64));
        let starts = (first..end).step_by(u32::MAX as usize);
        starts.map(move |at| BlockRange::new(at, (end - at).min(u64::from(u32::MAX)) as u32))
    }
}

/// A byte of the group's space as a place in its volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Located {
    /// Number of the extent.
    pub extent: usize,
    /// The volume.
    pub volume: VolumeId,
    /// Offset in the volume, in bytes.
    pub offset: u64,
    /// Bytes from here to the end of the extent.
    pub left: u64,
}

/// What a record of the log makes of the layout before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The only volume has so many bytes (RESIZE).
    Size(u64),
    /// The volumes are these (LAYOUT).
    Layout(Layout),
}

impl Change {
    /// The layout after it. A size says nothing where there is more than one extent: no such record is written or taken then.
    pub fn on(&self, before: &Layout) -> Layout {
        match (self, before.extents()) {
            (Self::Size(size), [only]) => Layout::one(only.volume, *size),
            (Self::Size(_), _) => before.clone(),
            (Self::Layout(layout), _) => layout.clone(),
        }
    }
}

/// Why there is no such layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// A size is none.
    #[error("the size of a volume is a multiple of 512 bytes, and not 0")]
    Size,
    /// The space is used up.
    #[error("a group can have {MAX_BYTES} bytes")]
    TooLarge,
    /// One volume more than can be.
    #[error("a group can have {MAX_VOLUMES} volumes")]
    TooManyVolumes,
    /// One extent more than can be.
    #[error("a group can have {MAX_EXTENTS} extents: no further volume can be added or grown in it")]
    TooManyExtents,
    /// The volume is there.
    #[error("volume {0} is in the group")]
    Exists(VolumeId),
    /// The volume is not there.
    #[error("volume {0} is not in the group")]
    Unknown(VolumeId),
    /// A group has at least one volume.
    #[error("volume {0} is the only one of its group")]
    Last(VolumeId),
    /// Smaller than it is.
    #[error("a volume can only grow: it has {0} bytes")]
    Shrinks(u64),
    /// Extents that no group comes to have.
    #[error("the extents are not those of a group")]
    Malformed,
}

/// The volumes of a group laid end to end, each at the next block. At least one volume; two holes are never neighbours, so equal
/// layouts are equal values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    extents: Vec<Extent>,
}

impl Layout {
    /// One volume and nothing else: what every copy was before there were groups of several.
    pub fn one(volume: VolumeId, size: u64) -> Self {
        Self { extents: vec![Extent { volume, start: 0, len: size }] }
    }

    /// These runs in order, each at the first block after the one before; a nil id stands for a hole.
    pub fn new(runs: impl IntoIterator<Item = (VolumeId, u64)>) -> Result<Self, LayoutError> {
        let layout = Self::laid(runs)?;
        layout.check()?;
        Ok(layout)
    }

    fn laid(runs: impl IntoIterator<Item = (VolumeId, u64)>) -> Result<Self, LayoutError> {
        let (mut extents, mut start) = (Vec::new(), 0u64);
        for (volume, len) in runs {
            if len == 0 || !len.is_multiple_of(SECTOR as u64) {
                return Err(LayoutError::Size);
            }
            let end = start.checked_add(len).filter(|end| *end <= MAX_BYTES).ok_or(LayoutError::TooLarge)?;
            if extents.len() == MAX_EXTENTS {
                return Err(LayoutError::TooManyExtents);
            }
            extents.push(Extent { volume, start, len });
            start = round_up(end);
        }
        Ok(Self { extents })
    }

    fn check(&self) -> Result<(), LayoutError> {
        let volumes = self.volumes();
        if volumes.is_empty() || self.extents.windows(2).any(|two| two[0].is_hole() && two[1].is_hole()) {
            return Err(LayoutError::Malformed);
        }
        if volumes.len() > MAX_VOLUMES {
            return Err(LayoutError::TooManyVolumes);
        }
        for volume in volumes {
            let mut short = self.of(volume).filter(|e| !e.len.is_multiple_of(BLOCK as u64));
            if short.next().is_some_and(|e| self.of(volume).next_back() != Some(e)) {
                return Err(LayoutError::Malformed);
            }
        }
        Ok(())
    }

    /// The extents, ascending, without gaps but those inside a block.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Bytes of the group's space: where the last extent ends.
    pub fn size(&self) -> u64 {
        self.extents.last().map_or(0, Extent::end)
    }

    /// Blocks of the group's space.
    pub fn blocks(&self) -> u64 {
        self.size().div_ceil(BLOCK as u64)
    }

    /// True when this is what a version without groups knows: the volume that names the log, and nothing else.
    pub fn is_one(&self, volume: VolumeId) -> bool {
        matches!(&self.extents[..], [only] if only.volume == volume)
    }

    /// Its volumes, in the order in which they came.
    pub fn volumes(&self) -> Vec<VolumeId> {
        let mut volumes = Vec::new();
        for extent in self.extents.iter().filter(|e| !e.is_hole()) {
            if !volumes.contains(&extent.volume) {
                volumes.push(extent.volume);
            }
        }
        volumes
    }

    /// The extents of a volume, in the order of its bytes.
    pub fn of(&self, volume: VolumeId) -> impl DoubleEndedIterator<Item = &Extent> {
        self.extents.iter().filter(move |e| e.volume == volume && !e.is_hole())
    }

    /// What belongs to no volume any more.
    pub fn holes(&self) -> impl Iterator<Item = &Extent> {
        self.extents.iter().filter(|e| e.is_hole())
    }

    /// True when the volume is in the group.
    pub fn has(&self, volume: VolumeId) -> bool {
        self.of(volume).next().is_some()
    }

    /// Bytes of a volume.
    pub fn volume_size(&self, volume: VolumeId) -> Option<u64> {
        self.has(volume).then(|| self.of(volume).map(|e| e.len).sum())
    }

    /// Where a range of a volume lies in the group's space, in order: more than one piece where the volume has more than one
    /// extent. `None` when the range is not inside the volume.
    pub fn pieces(&self, volume: VolumeId, range: ByteRange) -> Option<Vec<ByteRange>> {
        let size = self.volume_size(volume)?;
        range.offset.checked_add(range.len).filter(|end| *end <= size)?;
        let (mut pieces, mut at) = (Vec::new(), 0);
        for extent in self.of(volume) {
            let (from, to) = (range.offset.max(at), range.end().min(at + extent.len));
            if from < to {
                pieces.push(ByteRange::new(extent.start + (from - at), to - from));
            }
            at += extent.len;
        }
        Some(pieces)
    }

    /// Whose the byte at `offset` of the group's space is; `None` in a hole, behind the end of a volume in its last block, and
    /// behind the group.
    pub fn locate(&self, offset: u64) -> Option<Located> {
        let number = self.at(offset)?;
        let extent = self.extents[number];
        let within = offset - extent.start;
        if extent.is_hole() || within >= extent.len {
            return None;
        }
        let before = self.extents[..number].iter().filter(|e| e.volume == extent.volume).map(|e| e.len).sum::<u64>();
        Some(Located { extent: number, volume: extent.volume, offset: before + within, left: extent.len - within })
    }

    /// The extent with the last start at or before `offset`.
    fn at(&self, offset: u64) -> Option<usize> {
        self.extents.partition_point(|e| e.start <= offset).checked_sub(1)
    }

    /// True when the range is part of one extent of a volume: what a request may ask for.
    pub fn holds(&self, range: ByteRange) -> bool {
        self.locate(range.offset).is_some_and(|at| range.len <= at.left)
    }

    /// True when an extent ends at `end`: nothing lies behind it in its last block.
    pub fn ends_at(&self, end: u64) -> bool {
        let number = self.extents.partition_point(|e| e.end() < end);
        self.extents.get(number).is_some_and(|e| e.end() == end)
    }

    /// This layout with one volume grown to `size` bytes: in its last extent where that is the last one of the group or has room in
    /// its last block, else in a new one.
    pub fn grown(&self, volume: VolumeId, size: u64) -> Result<Self, LayoutError> {
        let present = self.volume_size(volume).ok_or(LayoutError::Unknown(volume))?;
        let more = size.checked_sub(present).ok_or(LayoutError::Shrinks(present))?;
        let last = self.extents.iter().rposition(|e| e.volume == volume).ok_or(LayoutError::Unknown(volume))?;
        let mut runs = self.runs();
        let room = match self.extents.get(last + 1) {
            Some(next) => next.start - self.extents[last].end(),
            None => u64::MAX,
        };
        runs[last].1 = runs[last].1.checked_add(more.min(room)).ok_or(LayoutError::TooLarge)?;
        if more > room {
            runs.push((volume, more - room));
        }
        Self::new(runs)
    }

    /// This layout with one volume more.
    pub fn added(&self, volume: VolumeId, size: u64) -> Result<Self, LayoutError> {
        if volume.is_nil() {
            return Err(LayoutError::Malformed);
        }
        if self.has(volume) {
            return Err(LayoutError::Exists(volume));
        }
        let mut runs = self.runs();
        runs.push((volume, size));
        Self::new(runs)
    }

    /// This layout without one of its volumes: what was its is a hole.
    pub fn without(&self, volume: VolumeId) -> Result<Self, LayoutError> {
        if !self.has(volume) {
            return Err(LayoutError::Unknown(volume));
        }
        let mut extents: Vec<Extent> = Vec::with_capacity(self.extents.len());
        for extent in &self.extents {
            let volume = if extent.volume == volume { VolumeId::NIL } else { extent.volume };
            match extents.last_mut().filter(|last| last.is_hole() && volume.is_nil()) {
                Some(last) => last.len = extent.end() - last.start,
                None => extents.push(Extent { volume, ..*extent }),
            }
        }
        let layout = Self { extents };
        if layout.volumes().is_empty() {
            return Err(LayoutError::Last(volume));
        }
        Ok(layout)
    }

    fn runs(&self) -> Vec<(VolumeId, u64)> {
        self.extents.iter().map(|e| (e.volume, e.len)).collect()
    }

    /// True when this layout can have come of `older` by volumes that were added, grown and removed. Every layout extends itself.
    pub fn extends(&self, older: &Self) -> bool {
        let fate = |e: &Extent| {
            let mine = self.extents[self.at(e.start)?];
            if mine.is_hole() {
                return (mine.end() >= e.end()).then_some(false);
            }
            (mine.volume == e.volume && mine.start == e.start && mine.len >= e.len).then_some(true)
        };
        let of_one = |volume| {
            let mut fates = older.of(volume).map(fate);
            let first = fates.next().flatten();
            first.is_some() && fates.all(|f| f == first)
        };
        older.holes().all(|hole| fate(hole) == Some(false)) && older.volumes().into_iter().all(of_one)
    }

    /// This layout with what it removed of `older` still in place: what the base has to be composed of while its content is
    /// that of the older one. Without effect when this one does not extend it. It may end earlier in the last block.
    pub fn with_removed_of(&self, older: &Self) -> Self {
        if !self.extends(older) {
            return self.clone();
        }
        let mut extents: Vec<Extent> = Vec::new();
        for extent in &self.extents {
            if !extent.is_hole() {
                extents.push(*extent);
                continue;
            }
            let mut at = extent.start;
            let within = |e: &&Extent| !e.is_hole() && e.start >= extent.start && e.start < extent.end();
            for removed in older.extents.iter().filter(within) {
                if at < removed.start {
                    extents.push(Extent { volume: VolumeId::NIL, start: at, len: removed.start - at });
                }
                extents.push(*removed);
                at = round_up(removed.end());
            }
            if at < extent.end() {
                extents.push(Extent { volume: VolumeId::NIL, start: at, len: extent.end() - at });
            }
        }
        Self { extents }
    }

    /// The blocks that belong to no volume here and did in `older`.
    pub fn removed_since(&self, older: &Self) -> Vec<BlockRange> {
        let mut ranges = Vec::new();
        for extent in older.extents.iter().filter(|e| !e.is_hole() && self.locate(e.start).is_none()) {
            ranges.extend(extent.ranges());
        }
        ranges
    }

    /// Appends the layout: the number of volumes and of extents (2 bytes each), the volumes (16 bytes each), and for each extent
    /// the number of its volume (2 bytes; `0xffff`: a hole) and its length (8 bytes). Starts follow from lengths.
    pub fn encode(&self, w: &mut Writer) {
        let volumes = self.volumes();
        w.u16(volumes.len() as u16);
        w.u16(self.extents.len() as u16);
        for volume in &volumes {
            w.bytes(&volume.0);
        }
        for extent in &self.extents {
            w.u16(volumes.iter().position(|v| *v == extent.volume).map_or(HOLE, |at| at as u16));
            w.u64(extent.len);
        }
    }

    /// Reads what [`Layout::encode`] wrote. What no group comes to have is an error.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (volumes, extents) = (usize::from(r.u16()?), usize::from(r.u16()?));
        if volumes > MAX_VOLUMES || extents > MAX_EXTENTS {
            return Err(r.field("layout"));
        }
        let volumes = (0..volumes).map(|_| Ok(VolumeId(r.array()?))).collect::<Result<Vec<_>, FormatError>>()?;
        let mut runs = Vec::with_capacity(extents);
        for _ in 0..extents {
            let (number, len) = (r.u16()?, r.u64()?);
            let volume = match number {
                HOLE => Some(VolumeId::NIL),
                number => volumes.get(usize::from(number)).copied().filter(|v| !v.is_nil()),
            };
            runs.push((volume.ok_or_else(|| r.field("extent"))?, len));
        }
        let layout = Self::new(runs).map_err(|_| r.field("layout"))?;
        if layout.volumes() != volumes {
            return Err(r.field("volumes"));
        }
        Ok(layout)
    }
}

fn round_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK as u64)
}
