//! The base of a group: the bases of its volumes laid end to end as one space.
//!
//! The core knows one base per copy. Where the copy holds several volumes each has a base of its own, and a range of the space
//! lies in one of them, in several, or in nobody's: what is rounded up behind a volume, and what a removed one left, reads as
//! zeros and swallows what is written. A copy of one volume has one span without an end, and costs a comparison.
//!
//! A space that cannot be composed is none: whatever asks for a part of it or for its files gets an error, until one can be. A sync
//! of nothing would be taken for a sync of everything.
//!
//! Invariant: spans are ascending and disjoint, and each that names a base lies within it, but for the one without an end.

use std::sync::Arc;

use tidemark_core::layout::Layout;
use tidemark_core::types::{BLOCK, ByteRange, VolumeId};

use super::Error;
use super::data_file::DataFile;
use super::identity::BaseInfo;

/// The base of one volume.
#[derive(Debug)]
pub(super) struct Base {
    /// The volume; nil for that of a copy whose directory is not named after one.
    pub volume: VolumeId,
    /// The open, claimed file or device.
    pub file: Arc<DataFile>,
    /// What it is.
    pub info: BaseInfo,
    /// Its size in bytes as far as it may be used.
    pub size: u64,
}

/// A run of the space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    /// First byte in the space.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Which base; none: nobody's.
    pub base: Option<usize>,
    /// First byte in that base.
    pub at: u64,
}

/// A piece of a range of the space.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Where it begins in the space.
    pub from: u64,
    /// Bytes.
    pub len: u64,
    /// The file that it lies in and its first byte there; none: nobody's.
    pub place: Option<(Arc<DataFile>, u64)>,
}

/// The bases, and the space that they make.
#[derive(Debug)]
pub(super) struct Bases {
    bases: Vec<Base>,
    spans: Vec<Span>,
    size: u64,
    /// Why there is no space: what was last asked for could not be composed.
    broken: Option<String>,
}

impl Span {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

impl Piece {
    /// Its range in the file that it lies in.
    pub fn in_file(&self) -> Option<(&Arc<DataFile>, ByteRange)> {
        self.place.as_ref().map(|(file, at)| (file, ByteRange::new(*at, self.len)))
    }
}

impl Bases {
    /// These bases; the space is all of the first.
    pub fn of(bases: Vec<Base>) -> Self {
        let spans = vec![Span { start: 0, len: u64::MAX, base: Some(0), at: 0 }];
        let mut bases = Self { bases, spans, size: 0, broken: None };
        bases.measure();
        bases
    }

    /// Makes `layout` the space. That of one volume goes on to the end of its base.
    ///
    /// # Errors
    /// [`Error::NoBase`] where a volume has no base, [`Error::Resize`] where that is smaller than the volume: then there is no
    /// space, and whatever asks for a part of it, or for its files, fails.
    pub fn compose(&mut self, layout: &Layout) -> Result<(), Error> {
        let spans = self.spans_of(layout);
        self.spans = spans.as_ref().cloned().unwrap_or_default();
        self.broken = spans.as_ref().err().map(Error::to_string);
        self.measure();
        spans.map(drop)
    }

    fn spans_of(&self, layout: &Layout) -> Result<Vec<Span>, Error> {
        let mut used = vec![0; self.bases.len()];
        let mut spans = Vec::with_capacity(layout.extents().len());
        for extent in layout.extents() {
            let (mut base, mut at) = (None, 0);
            if !extent.is_hole() {
                let volume = extent.volume;
                let number =
                    self.bases.iter().position(|base| base.volume == volume).ok_or(Error::NoBase { volume })?;
                at = used[number];
                let found = &self.bases[number];
                let wanted = at + extent.len;
                if wanted > found.size {
                    return Err(Error::Resize { path: found.file.path().to_owned(), size: found.size, wanted });
                }
                used[number] = wanted;
                base = Some(number);
            }
            spans.push(Span { start: extent.start, len: extent.len, base, at });
        }
        if let [only] = &mut spans[..] {
            only.len = u64::MAX;
        }
        Ok(spans)
    }

    /// Bytes of the space.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes the size of the space anew, after a base has grown.
    pub fn measure(&mut self) {
        self.size = match self.spans[..] {
            [Span { len: u64::MAX, base: Some(base), .. }] => self.bases.get(base).map_or(0, |base| base.size),
            ref spans => spans.last().map_or(0, Span::end),
        };
    }

    /// Each base.
    pub fn all(&self) -> &[Base] {
        &self.bases
    }

    /// A volume's base.
    pub fn base(&mut self, volume: VolumeId) -> Option<&mut Base> {
        self.bases.iter_mut().find(|base| base.volume == volume)
    }

    /// One more.
    pub fn add(&mut self, base: Base) {
        self.bases.push(base);
    }

    /// Lets go of a volume's base; false where a part of it is in the space.
    pub fn let_go(&mut self, volume: VolumeId) -> bool {
        let Some(gone) = self.bases.iter().position(|base| base.volume == volume) else { return true };
        if self.spans.iter().any(|span| span.base == Some(gone)) {
            return false;
        }
        self.bases.remove(gone);
        for span in &mut self.spans {
            span.base = span.base.map(|base| base - usize::from(base > gone));
        }
        true
    }

    /// The files of which something is in the space.
    ///
    /// # Errors
    /// [`Error::NotComposed`].
    pub fn in_space(&self) -> Result<impl Iterator<Item = &Arc<DataFile>>, Error> {
        self.check()?;
        let used = |number: usize| self.spans.iter().any(|span| span.base == Some(number));
        Ok(self.bases.iter().enumerate().filter(move |(number, _)| used(*number)).map(|(_, base)| &base.file))
    }

    /// True where a part of a volume's base is in the space.
    pub fn is_in_space(&self, volume: VolumeId) -> bool {
        let number = self.bases.iter().position(|base| base.volume == volume);
        number.is_some() && self.spans.iter().any(|span| span.base == number)
    }

    fn check(&self) -> Result<(), Error> {
        self.broken.clone().map_or(Ok(()), |why| Err(Error::NotComposed { why }))
    }

    /// The file that all of the range lies in and where; none: it has to be taken apart.
    pub fn whole(&self, range: ByteRange) -> Option<(&Arc<DataFile>, u64)> {
        let span = match &self.spans[..] {
            [only] => only,
            many => &many[many.partition_point(|span| span.end() <= range.offset)..].first().copied()?,
        };
        let fits = span.start <= range.offset && range.end() <= span.end();
        let base = span.base.filter(|_| fits)?;
        Some((&self.bases[base].file, range.offset - span.start + span.at))
    }

    /// The pieces of the range, in order.
    ///
    /// # Errors
    /// [`Error::PastEnd`] when it ends behind the space, [`Error::NotComposed`].
    pub fn pieces(&self, range: ByteRange) -> Result<Vec<Piece>, Error> {
        self.check()?;
        if let Some((file, at)) = self.whole(range) {
            let place = Some((Arc::clone(file), at));
            return Ok(vec![Piece { from: range.offset, len: range.len, place }]);
        }
        // The last block of the space may be a part of one.
        if range.end() > self.size.next_multiple_of(BLOCK as u64) {
            let path = self.bases.last().map(|base| base.file.path().to_owned()).unwrap_or_default();
            return Err(Error::PastEnd { path, end: range.end() });
        }
        let mut pieces = Vec::new();
        let mut at = range.offset;
        let mut put = |from: u64, to: u64, place: Option<(Arc<DataFile>, u64)>| {
            if from < to {
                pieces.push(Piece { from, len: to - from, place });
            }
        };
        let first = self.spans.partition_point(|span| span.end() <= range.offset);
        for span in self.spans[first..].iter().take_while(|span| span.start < range.end()) {
            put(at, span.start.max(at), None);
            let (from, to) = (span.start.max(range.offset), span.end().min(range.end()));
            let base = span.base.map(|base| &self.bases[base]);
            put(from, to, base.map(|base| (Arc::clone(&base.file), from - span.start + span.at)));
            at = to;
        }
        put(at, range.end(), None);
        Ok(pieces)
    }
}
