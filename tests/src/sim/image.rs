//! A sparse file in memory, by 4 KiB pages.

use bytes::{Bytes, BytesMut};

/// Bytes of a page.
pub const PAGE: usize = 4096;

type Page = Box<[u8; PAGE]>;

/// A sparse file: pages that were never written read as zeros.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pages: Vec<Option<Page>>,
    len: u64,
}

impl Image {
    /// A file of `len` bytes, all zeros.
    pub fn zeroed(len: u64) -> Self {
        let mut pages = Vec::new();
        pages.resize_with(len.div_ceil(PAGE as u64) as usize, || None);
        Self { pages, len }
    }

    /// A file with that content.
    pub fn of(data: &[u8]) -> Self {
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
        self.pages.resize_with(len.div_ceil(PAGE as u64) as usize, || None);
        self.len = len;
    }

    fn page(&mut self, index: usize) -> &mut Page {
        self.pages[index].get_or_insert_with(|| Box::new([0; PAGE]))
    }

    /// Overwrites bytes.
    pub fn write(&mut self, offset: u64, mut data: &[u8]) {
        debug_assert!(offset + data.len() as u64 <= self.len);
        let (mut index, mut at) = ((offset as usize) / PAGE, (offset as usize) % PAGE);
        while !data.is_empty() {
            let n = data.len().min(PAGE - at);
            self.page(index)[at..at + n].copy_from_slice(&data[..n]);
            data = &data[n..];
            (index, at) = (index + 1, 0);
        }
    }

    /// Makes a range zero; whole pages become holes.
    pub fn zero(&mut self, offset: u64, len: u64) {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (index, within) = ((at as usize) / PAGE, (at as usize) % PAGE);
            let n = (end - at).min((PAGE - within) as u64) as usize;
            if n == PAGE {
                self.pages[index] = None;
            } else if let Some(page) = &mut self.pages[index] {
                page[within..within + n].fill(0);
            }
            at += n as u64;
        }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, len: usize) -> Bytes {
        static HOLE: [u8; PAGE] = [0; PAGE];
        let mut out = BytesMut::with_capacity(len);
        let (mut index, mut at) = ((offset as usize) / PAGE, (offset as usize) % PAGE);
        while out.len() < len {
            let n = (len - out.len()).min(PAGE - at);
            let page = self.pages[index].as_deref().unwrap_or(&HOLE);
            out.extend_from_slice(&page[at..at + n]);
            (index, at) = (index + 1, 0);
        }
        out.freeze()
    }

    /// The page at `index`, unless it is a hole.
    pub fn page_at(&self, index: usize) -> Option<&[u8; PAGE]> {
        self.pages.get(index).and_then(|p| p.as_deref())
    }

    /// Takes over one page of another image.
    pub fn copy_page(&mut self, index: usize, from: &Self) {
        if let Some(page) = self.pages.get_mut(index) {
            *page = from.pages.get(index).cloned().flatten();
        }
    }

    /// Indices of pages that are not holes.
    pub fn allocated(&self) -> impl Iterator<Item = usize> + '_ {
        self.pages.iter().enumerate().filter(|(_, p)| p.is_some()).map(|(i, _)| i)
    }

    /// Flips one bit, if the page exists.
    pub fn flip(&mut self, page: usize, bit: usize) {
        if let Some(Some(p)) = self.pages.get_mut(page) {
            p[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_holes_are_zeros() {
        let mut image = Image::zeroed(10_000);
        image.write(4000, &[7; 200]);
        let out = image.read(3999, 202);
        assert_eq!((out[0], out[1], out[200], out[201]), (0, 7, 7, 0));
        image.zero(4096, 4096);
        assert_eq!(image.read(4096, 1)[0], 0);
        assert_eq!(image.read(4095, 1)[0], 7);
        assert_eq!(image.allocated().collect::<Vec<_>>(), vec![0]);
    }
}
