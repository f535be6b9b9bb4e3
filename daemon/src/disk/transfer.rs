//! One read or write in progress: which memory, how far it got, what to do with the kernel's answer.
//!
//! A write goes out as one vector of its pieces. A piece that direct I/O refuses (address or length) is copied into an aligned
//! buffer together with its unaligned neighbours; all others are written from where they are. Short results go on where they
//! stopped.
//!
//! Invariant: the memory that `vectors()` names is owned by the transfer and neither moved nor freed before the transfer ends.

use std::sync::Arc;

use bytes::Bytes;
use libc::iovec;
use tidemark_core::event::{DiskDone, DiskError, DiskResult};

use super::buffer::{ALIGN, AlignedBuf, Alignment, CLASS_MAX_BYTES, Pool};
use super::data_file::{Channel, DataFile};
use super::disk_error;

/// The most pieces of one system call (`IOV_MAX`); the rest follows as after a short write.
pub(super) const VECTORS_MAX: usize = 1024;
/// Bytes of writes that go to the kernel as one: a device takes so much in little more time than a single block, and more of it at
/// once would only delay the first of them.
const JOINED_BYTES_MAX: u64 = 256 << 10;
/// How often an interrupted or busy transfer is repeated without any progress.
const RETRIES_MAX: u32 = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    Read,
    Write,
}

/// What the kernel's answer means.
#[derive(Debug)]
pub(super) enum Step {
    /// Not finished: submit again.
    Again,
    /// Finished; with the error number of a failure, 0 where there is none.
    Ended(DiskResult, i32),
}

/// A read or write.
pub(super) struct Transfer {
    file: Arc<DataFile>,
    channel: Channel,
    direction: Direction,
    /// A write that ends when it is durable.
    durable: bool,
    /// Of the next byte.
    offset: u64,
    remaining: u64,
    vectors: Vec<iovec>,
    /// The first vector that is not finished.
    next: usize,
    /// The caller's pieces.
    pieces: Vec<Bytes>,
    /// Copies of pieces that were not aligned.
    copies: Vec<AlignedBuf>,
    /// Where a read goes.
    target: Option<AlignedBuf>,
    retries: u32,
}

impl Transfer {
    /// Reads `len` bytes at `offset`. `vectors` is empty memory to use.
    pub fn read(file: Arc<DataFile>, offset: u64, len: u32, pool: &Pool, mut vectors: Vec<iovec>) -> Self {
        let mut target = pool.take(len as usize);
        vectors.push(iovec { iov_base: target.as_mut_ptr().cast(), iov_len: target.len() });
        Self {
            channel: file.channel(offset, u64::from(len)),
            file,
            direction: Direction::Read,
            durable: false,
            offset,
            remaining: u64::from(len),
            vectors,
            next: 0,
            pieces: Vec::new(),
            copies: Vec::new(),
            target: Some(target),
            retries: 0,
        }
    }

    /// Writes `pieces` back to back at `offset`. `vectors` is empty memory to use.
    pub fn write(file: Arc<DataFile>, offset: u64, pieces: Vec<Bytes>, pool: &Pool, mut vectors: Vec<iovec>) -> Self {
        let remaining = pieces.iter().map(|piece| piece.len() as u64).sum();
        let channel = file.channel(offset, remaining);
        let copies = gather(&pieces, file.alignment(channel), pool, &mut vectors);
        Self {
            file,
            channel,
            direction: Direction::Write,
            durable: false,
            offset,
            remaining,
            vectors,
            next: 0,
            pieces,
            copies,
            target: None,
            retries: 0,
        }
    }

    /// True when a write of `len` bytes at `offset` may go with this one, which has not begun.
    pub fn is_continued_by(&self, file: &Arc<DataFile>, offset: u64, len: u64, durable: bool) -> bool {
        self.direction == Direction::Write
            && Arc::ptr_eq(&self.file, file)
            && self.offset + self.remaining == offset
            && self.remaining + len <= JOINED_BYTES_MAX
            && (self.channel, self.durable) == (file.channel(offset, len), durable)
    }

    /// Writes `pieces` behind what there is.
    pub fn join(&mut self, pieces: Vec<Bytes>, pool: &Pool) {
        self.remaining += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        self.copies.extend(gather(&pieces, self.file.alignment(self.channel), pool, &mut self.vectors));
        self.pieces.extend(pieces);
    }

    /// The same write, ending only when it is durable.
    pub fn durable(self, durable: bool) -> Self {
        Self { durable, ..self }
    }

    /// The write itself is to be durable when it ends ...
    pub fn with_dsync(&self) -> bool {
        self.durable && self.file.keeps_dsync()
    }

    /// ... or is, as its file system does not promise that, to be followed by a sync.
    pub fn sync_after(&self) -> bool {
        self.durable && !self.file.keeps_dsync()
    }

    pub fn file(&self) -> &Arc<DataFile> {
        &self.file
    }

    pub fn channel(&self) -> Channel {
        self.channel
    }

    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Offset of the next byte in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The memory still to be transferred, at most [`VECTORS_MAX`] pieces of it.
    pub fn vectors(&self) -> &[iovec] {
        let rest = &self.vectors[self.next..];
        &rest[..rest.len().min(VECTORS_MAX)]
    }

    /// The vectors' memory, emptied, for the next transfer.
    pub fn into_vectors(self) -> Vec<iovec> {
        let mut vectors = self.vectors;
        vectors.clear();
        vectors
    }

    /// Takes the kernel's answer: bytes transferred, or a negative error number.
    pub fn on_result(&mut self, result: i32) -> Step {
        match result {
            1.. => self.on_progress(u64::from(result.unsigned_abs())),
            0 if self.direction == Direction::Read => Step::Ended(Err(DiskError::Short), 0),
            0 => Step::Ended(Err(DiskError::Io), libc::EIO), // a write of something that writes nothing
            _ => self.on_failure(-result),
        }
    }

    fn on_progress(&mut self, bytes: u64) -> Step {
        assert!(bytes <= self.remaining, "the kernel transfers no more than it was asked to");
        self.retries = 0;
        self.offset += bytes;
        self.remaining -= bytes;
        self.skip(bytes as usize);
        if self.remaining == 0 {
            return Step::Ended(Ok(self.result()), 0);
        }
        // A direct read that stops inside a sector has met the end of the file; going on from there would be refused.
        let at_end = self.direction == Direction::Read && !self.file.alignment(self.channel).allows(0, bytes);
        if at_end { Step::Ended(Err(DiskError::Short), 0) } else { Step::Again }
    }

    fn on_failure(&mut self, errno: i32) -> Step {
        match errno {
            libc::EINTR | libc::EAGAIN if self.retries < RETRIES_MAX => {
                self.retries += 1;
                Step::Again
            }
            libc::EINVAL if self.may_go_buffered() => {
                self.channel = Channel::Buffered;
                Step::Again
            }
            _ => Step::Ended(Err(disk_error(errno)), errno),
        }
    }

    /// The device wants more alignment than was known, and the range is the odd end of a base image.
    fn may_go_buffered(&self) -> bool {
        let is_odd = !(self.offset | self.remaining).is_multiple_of(ALIGN as u64);
        is_odd && self.channel == Channel::Main && self.file.fallback().is_some()
    }

    fn result(&mut self) -> DiskDone {
        self.target.take().map_or(DiskDone::Done, |target| DiskDone::Read(target.freeze()))
    }

    fn skip(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let vector = &mut self.vectors[self.next];
            let part = vector.iov_len.min(bytes);
            vector.iov_base = vector.iov_base.wrapping_byte_add(part);
            vector.iov_len -= part;
            bytes -= part;
            self.next += usize::from(vector.iov_len == 0);
        }
    }
}

/// Fills `vectors` with the bytes of `pieces` in order, copying what `alignment` does not accept; returns the copies.
///
/// The total length must be acceptable. A run of copied pieces ends only where an aligned length allows it.
fn gather(pieces: &[Bytes], alignment: Alignment, pool: &Pool, vectors: &mut Vec<iovec>) -> Vec<AlignedBuf> {
    let mut copier = Copier { pool, copies: Vec::new(), used: 0, left: pieces.iter().map(Bytes::len).sum() };
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        let may_break = alignment.allows(0, copier.used as u64);
        if may_break && alignment.accepts(piece) {
            copier.seal(vectors);
            vectors.push(iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() });
        } else {
            copier.copy(piece, vectors);
        }
        copier.left -= piece.len();
    }
    copier.seal(vectors);
    copier.copies
}

/// Copies unaligned pieces behind each other into buffers of at most [`CLASS_MAX_BYTES`].
struct Copier<'a> {
    pool: &'a Pool,
    /// The last one is being filled while `used` is not zero.
    copies: Vec<AlignedBuf>,
    used: usize,
    /// Bytes of this and all later pieces.
    left: usize,
}

impl Copier<'_> {
    fn copy(&mut self, mut piece: &[u8], vectors: &mut Vec<iovec>) {
        let mut left = self.left;
        while !piece.is_empty() {
            if self.used == 0 {
                self.copies.push(self.pool.take(left.min(CLASS_MAX_BYTES)));
            }
            let Some(buf) = self.copies.last_mut() else { return };
            let part = piece.len().min(buf.len() - self.used);
            buf[self.used..][..part].copy_from_slice(&piece[..part]);
            piece = &piece[part..];
            left -= part;
            self.used += part;
            if self.used == buf.len() {
                self.seal(vectors);
            }
        }
    }

    /// Ends the run that is being copied, if any.
    fn seal(&mut self, vectors: &mut Vec<iovec>) {
        let Some(buf) = self.copies.last_mut().filter(|_| self.used > 0) else { return };
        vectors.push(iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: self.used });
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECTOR: Alignment = Alignment { memory: 512, offset: 512 };

    /// `len` bytes that start `skew` bytes behind an aligned address.
    fn piece(pool: &Pool, skew: usize, len: usize, seed: u8) -> Bytes {
        let mut buf = pool.take(skew + len);
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = seed.wrapping_add(i as u8);
        }
        buf.freeze().slice(skew..)
    }

    fn lengths(pieces: &[Bytes]) -> (Vec<usize>, usize) {
        let mut vectors = Vec::new();
        let copies = gather(pieces, SECTOR, &Pool::new(), &mut vectors);
        (vectors.iter().map(|vector| vector.iov_len).collect(), copies.len())
    }

    #[test]
    fn aligned_pieces_are_not_copied() {
        let pool = Pool::new();
        let pieces = [piece(&pool, 0, 4096, 1), piece(&pool, 512, 8192, 2)];
        assert_eq!(lengths(&pieces), (vec![4096, 8192], 0));
    }

    #[test]
    fn unaligned_neighbours_share_one_copy() {
        let pool = Pool::new();
        let pieces =
            [piece(&pool, 0, 4096, 1), piece(&pool, 3, 100, 2), piece(&pool, 0, 3996, 3), piece(&pool, 0, 4096, 4)];
        assert_eq!(lengths(&pieces), (vec![4096, 4096, 4096], 1));
    }

    #[test]
    fn an_aligned_piece_behind_half_a_sector_is_copied_too() {
        let pool = Pool::new();
        let pieces = [piece(&pool, 0, 256, 1), piece(&pool, 0, 512, 2), piece(&pool, 0, 256, 3)];
        assert_eq!(lengths(&pieces), (vec![1024], 1));
    }

    #[test]
    fn long_copies_are_cut_at_the_largest_class() {
        let pool = Pool::new();
        let pieces = [piece(&pool, 1, 2 * CLASS_MAX_BYTES + 512, 1)];
        assert_eq!(lengths(&pieces), (vec![CLASS_MAX_BYTES, CLASS_MAX_BYTES, 512], 3));
    }

    proptest! {
        #[test]
        fn whatever_the_pieces_the_vectors_are_aligned_and_complete(
            shapes in proptest::collection::vec((0usize..3, 0usize..3000), 0..20),
        ) {
            let pool = Pool::new();
            let mut pieces: Vec<_> =
                shapes.iter().enumerate().map(|(i, (skew, len))| piece(&pool, skew * 256, *len, i as u8)).collect();
            let total: usize = pieces.iter().map(Bytes::len).sum();
            pieces.push(piece(&pool, 0, total.next_multiple_of(512) - total, 9));
            let mut vectors = Vec::new();
            let _copies = gather(&pieces, SECTOR, &pool, &mut vectors);
            for vector in &vectors {
                prop_assert!(vector.iov_len > 0 && vector.iov_len.is_multiple_of(512));
                prop_assert!(vector.iov_base.addr().is_multiple_of(512));
            }
            let covered: usize = vectors.iter().map(|vector| vector.iov_len).sum();
            prop_assert_eq!(covered, total.next_multiple_of(512));
        }
    }
}
