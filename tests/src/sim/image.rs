//! A sparse file in memory, by 4 KiB pages. A page that is written whole is shared with the buffer that it came from, and with
//! every other image that holds it: most bytes are never copied.

use bytes::{Bytes, BytesMut};

/// Bytes of a page.
pub const PAGE: usize = 4096;

static HOLE: [u8; PAGE] = [0; PAGE];

/// A sparse file: pages that were never written read as zeros.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pages: Vec<Option<Bytes>>,
    len: u64,
    flat: Flat,
}

impl Image {
    /// A file of `len` bytes, all zeros.
    pub fn zeroed(len: u64) -> Self {
        Self { pages: vec![None; len.div_ceil(PAGE as u64) as usize], len, flat: Flat::default() }
    }

    /// A file with that content.
    pub fn of(data: &Bytes) -> Self {
        let mut out = Self::zeroed(data.len() as u64);
        out.write(0, data);
        out
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes it `len` bytes long; the new bytes are zeros.
    pub fn grow(&mut self, len: u64) {
        self.pages.resize(len.div_ceil(PAGE as u64) as usize, None);
        self.len = len;
        self.flat = Flat::default();
    }

    /// Changes part of a page: in place where nobody shares it.
    fn alter(&mut self, index: usize, change: impl FnOnce(&mut [u8])) {
        let mut page = match self.pages[index].take().map(Bytes::try_into_mut) {
            Some(Ok(own)) => own,
            Some(Err(shared)) => BytesMut::from(&shared[..]),
            None => BytesMut::zeroed(PAGE),
        };
        change(&mut page);
        self.set(index, Some(page.freeze()));
    }

    fn set(&mut self, index: usize, page: Option<Bytes>) {
        self.pages[index] = page;
        self.flat.forget(index);
    }

    /// Overwrites bytes.
    pub fn write(&mut self, offset: u64, data: &Bytes) {
        debug_assert!(offset + data.len() as u64 <= self.len);
        let mut done = 0;
        while done < data.len() {
            let (index, within) = page_of(offset + done as u64);
            let n = (data.len() - done).min(PAGE - within);
            if n == PAGE {
                self.set(index, Some(data.slice(done..done + n)));
            } else {
                self.alter(index, |page| page[within..within + n].copy_from_slice(&data[done..done + n]));
            }
            done += n;
        }
    }

    /// Makes a range zero; whole pages become holes.
    pub fn zero(&mut self, offset: u64, len: u64) {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (index, within) = page_of(at);
            let n = (end - at).min((PAGE - within) as u64) as usize;
            if n == PAGE {
                self.set(index, None);
            } else if self.pages[index].is_some() {
                self.alter(index, |page| page[within..within + n].fill(0));
            }
            at += n as u64;
        }
    }

    /// Gives bytes; within one page they are shared.
    pub fn read(&self, offset: u64, len: usize) -> Bytes {
        self.read_with(offset, len, &mut Spares::default())
    }

    /// As [`Image::read`], in a spare buffer where one is needed and free.
    pub fn read_with(&self, offset: u64, len: usize, spares: &mut Spares) -> Bytes {
        let (first, within) = page_of(offset);
        if within + len <= PAGE {
            let page = self.pages.get(first).and_then(|p| p.as_ref());
            return page.map_or(Bytes::from_static(&HOLE[..len]), |p| p.slice(within..within + len));
        }
        spares.fill(len, |out| {
            while out.len() < len {
                let (index, within) = page_of(offset + out.len() as u64);
                let n = (len - out.len()).min(PAGE - within);
                let page = self.pages[index].as_deref().unwrap_or(&HOLE);
                out.extend_from_slice(&page[within..within + n]);
            }
        })
    }

    /// As [`Image::read_with`], out of a flat copy that the image keeps of its beginning: what is read again and again costs only
    /// what changed in between.
    pub fn read_flat(&mut self, offset: u64, len: usize, spares: &mut Spares) -> Bytes {
        let (first, within) = page_of(offset);
        let last = (offset as usize + len).div_ceil(PAGE);
        match self.flat.refresh(&self.pages, first, last) {
            Some(flat) => flat.slice(first * PAGE + within..first * PAGE + within + len),
            None => self.read_with(offset, len, spares),
        }
    }

    /// Takes over one page of another image.
    pub fn copy_page(&mut self, index: usize, from: &Self) {
        if index < self.pages.len() {
            self.set(index, from.pages.get(index).cloned().flatten());
        }
    }

    /// Indices of pages that are not holes.
    pub fn allocated(&self) -> impl Iterator<Item = usize> + '_ {
        self.pages.iter().enumerate().filter(|(_, p)| p.is_some()).map(|(i, _)| i)
    }

    /// Flips one bit, if the page exists.
    pub fn flip(&mut self, page: usize, bit: usize) {
        if self.pages.get(page).is_some_and(|p| p.is_some()) {
            self.alter(page, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        }
    }
}

/// The first pages of an image back to back, as far as they were wanted so. Changed only while nobody holds a piece of it.
#[derive(Debug, Default)]
struct Flat {
    bytes: Bytes,
    /// Pages that are as in the image.
    fresh: Vec<bool>,
    /// How often in a row it was held by somebody when it had to be changed.
    held: u32,
}

impl Flat {
    /// So often in a row it is read around who holds the old pages; then a new copy is begun.
    const PATIENCE: u32 = 4;

    fn of(pages: &[Option<Bytes>]) -> Self {
        let mut bytes = BytesMut::with_capacity(pages.len() * PAGE);
        pages.iter().for_each(|page| bytes.extend_from_slice(page.as_deref().unwrap_or(&HOLE)));
        Self { bytes: bytes.freeze(), fresh: vec![true; pages.len()], held: 0 }
    }

    /// The page changed in the image.
    fn forget(&mut self, index: usize) {
        if let Some(fresh) = self.fresh.get_mut(index) {
            *fresh = false;
        }
    }

    /// Brings the pages `first..last` up to date; `None` when somebody holds what would have to change.
    fn refresh(&mut self, pages: &[Option<Bytes>], first: usize, last: usize) -> Option<&Bytes> {
        if self.fresh.len() < last || self.held >= Self::PATIENCE {
            *self = Self::of(&pages[..last.max(self.fresh.len())]);
        }
        if !self.fresh[first..last].iter().all(|fresh| *fresh) {
            match std::mem::take(&mut self.bytes).try_into_mut() {
                Ok(own) => self.bytes = self.copy_stale(own, pages, first, last),
                Err(shared) => {
                    (self.bytes, self.held) = (shared, self.held + 1);
                    return None;
                }
            }
        }
        self.held = 0;
        Some(&self.bytes)
    }

    fn copy_stale(&mut self, mut own: BytesMut, pages: &[Option<Bytes>], first: usize, last: usize) -> Bytes {
        for (index, fresh) in self.fresh.iter_mut().enumerate().take(last).skip(first).filter(|(_, fresh)| !**fresh) {
            let page = pages[index].as_deref().unwrap_or(&HOLE);
            own[index * PAGE..(index + 1) * PAGE].copy_from_slice(page);
            *fresh = true;
        }
        own.freeze()
    }
}

/// A copy of an image begins a flat copy of its own.
impl Clone for Flat {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// Buffers of large reads that may be used again once their reader let go of them: what is read of a disk is soon forgotten, and
/// memory that was just used is the fastest.
#[derive(Debug, Default)]
pub struct Spares(Vec<(usize, Bytes)>);

impl Spares {
    /// Buffers kept at most.
    const KEPT: usize = 8;
    /// Smaller ones are not worth it.
    const SMALLEST: usize = 32 << 10;

    /// A buffer of `len` bytes that `fill` filled.
    fn fill(&mut self, len: usize, fill: impl FnOnce(&mut BytesMut)) -> Bytes {
        // The one used last is the one that the processor still has.
        let free = self.0.iter().rposition(|(room, spare)| *room >= len && spare.is_unique());
        let spare = free.map(|at| self.0.remove(at)).and_then(|(_, spare)| spare.try_into_mut().ok());
        let mut out = spare.unwrap_or_else(|| BytesMut::with_capacity(len));
        out.clear();
        fill(&mut out);
        let room = out.capacity();
        let out = out.freeze();
        if room >= Self::SMALLEST {
            // One that is held for long, as the content of a base may be, only takes the place of others.
            if self.0.len() == Self::KEPT
                && let Some(held) = self.0.iter().position(|(_, spare)| !spare.is_unique())
            {
                self.0.remove(held);
            }
            if self.0.len() < Self::KEPT {
                self.0.push((room, out.clone()));
            }
        }
        out
    }
}

/// The page that holds a byte, and where in it.
fn page_of(at: u64) -> (usize, usize) {
    (at as usize / PAGE, at as usize % PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_holes_are_zeros() {
        let mut image = Image::zeroed(10_000);
        image.write(4000, &Bytes::from_static(&[7; 200]));
        let out = image.read(3999, 202);
        assert_eq!((out[0], out[1], out[200], out[201]), (0, 7, 7, 0));
        image.zero(4096, 4096);
        assert_eq!(image.read(4096, 1)[0], 0);
        assert_eq!(image.read(4095, 1)[0], 7);
        assert_eq!(image.allocated().collect::<Vec<_>>(), vec![0]);
    }

    #[test]
    fn a_flat_read_gives_what_is_there_now_and_does_not_change_what_was_read_before() {
        let (mut image, mut spares) = (Image::zeroed(8 * PAGE as u64 + 512), Spares::default());
        let mut held = Vec::new();
        for round in 1..40u8 {
            let page = u64::from(round) % 8 * PAGE as u64;
            image.write(page, &Bytes::from(vec![round; PAGE]));
            image.write(page + 512, &Bytes::from(vec![round + 100; 512]));
            match round % 5 {
                0 => image.zero(page, PAGE as u64),
                1 => image.flip(page as usize / PAGE, 7),
                2 => image.copy_page(page as usize / PAGE, &Image::zeroed(9 * PAGE as u64)),
                _ => {}
            }
            let (from, len) = (u64::from(round % 3) * PAGE as u64, 5 * PAGE + 512);
            let expected = image.read(from, len).to_vec();
            let read = image.read_flat(from, len, &mut spares);
            assert_eq!(read[..], expected[..], "round {round}");
            held.push((read, expected));
            if round % 7 == 0 {
                assert!(held.drain(..).all(|(read, expected)| read[..] == expected[..]));
            }
        }
        image.grow(12 * PAGE as u64);
        assert_eq!(image.read_flat(0, 12 * PAGE, &mut spares), image.read(0, 12 * PAGE));
    }

    #[test]
    fn a_buffer_is_used_again_only_when_nobody_reads_it_any_more() {
        let (mut image, mut spares) = (Image::zeroed(1 << 20), Spares::default());
        image.write(0, &Bytes::from(vec![1; 1 << 20]));
        let (first, len) = (image.read_with(0, 1 << 20, &mut spares), 100_000);
        image.write(0, &Bytes::from(vec![2; 1 << 20]));
        let second = image.read_with(4096, len, &mut spares);
        assert!(first.iter().all(|b| *b == 1) && second.len() == len && second.iter().all(|b| *b == 2));
        let was = first.as_ptr();
        drop(first);
        assert_eq!(image.read_with(0, len, &mut spares).as_ptr(), was);
        assert!(second.iter().all(|b| *b == 2));
    }

    #[test]
    fn an_image_that_shares_a_page_does_not_see_what_another_writes_to_it() {
        let whole = Bytes::from(vec![7; PAGE]);
        let mut image = Image::of(&whole);
        let mut other = image.clone();
        let read = image.read(10, 2);
        image.write(0, &Bytes::from_static(&[1; 512]));
        other.flip(0, 8);
        image.zero(1024, 512);
        assert_eq!((image.read(0, 1)[0], image.read(511, 2)[1], image.read(1024, 1)[0]), (1, 7, 0));
        assert_eq!((other.read(0, 1)[0], other.read(1, 1)[0], other.read(1024, 1)[0]), (7, 6, 7));
        assert!(whole.iter().all(|b| *b == 7) && read[..] == [7, 7]);
    }
}
