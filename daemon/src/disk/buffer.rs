//! Aligned, recycled memory for disk I/O, and what alignment a file wants of it.
//!
//! A [`Pool`] keeps freed blocks per size class, so that a steady load allocates nothing. A buffer may be frozen into [`Bytes`],
//! which travel to other threads and are dropped there: the free lists are therefore behind a mutex each, held for a push or a
//! pop only and hardly ever contended.
//!
//! Invariants:
//! 1. A block is owned by exactly one [`AlignedBuf`] or one free list, never both.
//! 2. All `capacity` bytes of a block are initialised from its allocation on (zeros at first, old content when recycled).
//! 3. A free list holds blocks of its own class only, at most [`cache_limit`] of them.
//!
//! Old content is visible to whoever takes a buffer: they overwrite it, or ask for [`Pool::take_zeroed`].
#![allow(unsafe_code)] // the allocator's interface is raw pointers; statx has no safe wrapper

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use crate::lock::lock;
use bytes::Bytes;
use tidemark_core::floor::BATCH_BYTES;

/// Alignment of every buffer in memory, and the granule of its capacity: a page, which satisfies every device.
pub const ALIGN: usize = 4096;
/// Capacity of the largest class: a frame with 1 MiB of payload and its header. Larger buffers are possible but not kept.
pub const CLASS_MAX_BYTES: usize = (1 << 20) + (64 << 10);
/// Size classes: 4 KiB, 8 KiB, ... 512 KiB, and the largest.
const CLASSES: usize = 9;
/// Bytes kept per class: enough for 32 requests of 128 KiB in flight.
const CACHE_BYTES: usize = 4 << 20;
/// Pieces of [`Pool::copy_of`]: what a short last one wastes of its class is little beside the others.
const COPY_BYTES: usize = 64 << 10;
/// Blocks kept per class at least, so that eight large writes in flight and their copies do not allocate either.
const CACHE_BLOCKS_MIN: usize = 16;
/// Blocks kept of the largest class: the floor reads the log by them, and lets go of all that an advance took at once.
const CACHE_BLOCKS_LARGEST: usize = (BATCH_BYTES >> 20) as usize + 4;

/// How many free blocks a class keeps.
fn cache_limit(class: usize) -> usize {
    let least = if class + 1 < CLASSES { CACHE_BLOCKS_MIN } else { CACHE_BLOCKS_LARGEST };
    (CACHE_BYTES / class_bytes(class)).max(least)
}

/// Capacity of a class.
fn class_bytes(class: usize) -> usize {
    if class + 1 < CLASSES { ALIGN << class } else { CLASS_MAX_BYTES }
}

/// The smallest class that holds `len` bytes, if any.
fn class_of(len: usize) -> Option<usize> {
    let class = len.max(ALIGN).next_power_of_two().trailing_zeros() - ALIGN.trailing_zeros();
    (len <= CLASS_MAX_BYTES).then_some((class as usize).min(CLASSES - 1))
}

/// A piece of memory of its own.
struct Block {
    start: NonNull<u8>,
    /// Multiple of [`ALIGN`], not zero.
    capacity: usize,
}

// SAFETY: a block is plain memory without affinity to a thread, and its only owner hands it on (invariant 1).
unsafe impl Send for Block {}
// SAFETY: a shared reference to a block gives read access only.
unsafe impl Sync for Block {}

impl Block {
    fn new(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size above zero: capacities are multiples of ALIGN and not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, capacity }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGN).expect("a capacity is below isize::MAX and ALIGN is a power of two")
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `start` came from the allocator with this very layout, and nobody else owns it (invariant 1).
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// The free lists.
#[derive(Default)]
struct Shelves {
    classes: [Mutex<Vec<Block>>; CLASSES],
}

impl Shelves {
    fn take(&self, class: usize) -> Option<Block> {
        lock(&self.classes[class]).pop()
    }

    fn give_back(&self, block: Block) {
        let Some(class) = class_of(block.capacity).filter(|class| class_bytes(*class) == block.capacity) else {
            return;
        };
        let mut shelf = lock(&self.classes[class]);
        if shelf.len() < cache_limit(class) {
            shelf.push(block);
        }
    }
}

/// A source of aligned buffers. Clones share the same memory.
#[derive(Clone, Default)]
pub struct Pool {
    shelves: Arc<Shelves>,
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer of `len` bytes with unspecified content. Above [`CLASS_MAX_BYTES`] it is allocated and freed each time.
    pub fn take(&self, len: usize) -> AlignedBuf {
        let block = match class_of(len) {
            Some(class) => self.shelves.take(class).unwrap_or_else(|| Block::new(class_bytes(class))),
            None => Block::new(len.next_multiple_of(ALIGN)),
        };
        AlignedBuf { block: ManuallyDrop::new(block), len, shelves: Arc::clone(&self.shelves) }
    }

    /// A buffer of `len` zeros.
    pub fn take_zeroed(&self, len: usize) -> AlignedBuf {
        let mut buf = self.take(len);
        buf.fill(0);
        buf
    }

    /// The bytes of `pieces`, one behind the other, in buffers of their own. What they were in is free for other things then.
    pub fn copy_of(&self, pieces: &[Bytes]) -> Vec<Bytes> {
        let mut left: usize = pieces.iter().map(Bytes::len).sum();
        let mut from = pieces.iter().flat_map(|piece| piece.chunks(COPY_BYTES)).peekable();
        let mut rest: &[u8] = &[];
        let mut copies = Vec::with_capacity(left.div_ceil(COPY_BYTES));
        while left > 0 {
            let mut buf = self.take(left.min(COPY_BYTES));
            let mut to = &mut buf[..];
            while !to.is_empty() {
                if rest.is_empty() {
                    rest = from.next().unwrap_or_default();
                }
                let len = rest.len().min(to.len());
                to[..len].copy_from_slice(&rest[..len]);
                (rest, to) = (&rest[len..], &mut to[len..]);
            }
            left -= buf.len();
            copies.push(buf.freeze());
        }
        copies
    }

    /// How many free blocks are kept, over all classes.
    pub fn cached_blocks(&self) -> usize {
        self.shelves.classes.iter().map(|class| lock(class).len()).sum()
    }
}

/// A buffer at an address that is a multiple of [`ALIGN`]; goes back to its pool when dropped.
pub struct AlignedBuf {
    block: ManuallyDrop<Block>,
    len: usize,
    shelves: Arc<Shelves>,
}

impl AlignedBuf {
    /// The most that [`Self::resize`] can make of it, in bytes.
    pub fn capacity(&self) -> usize {
        self.block.capacity
    }

    /// Changes the used length; bytes that come into view have unspecified content.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    pub fn resize(&mut self, len: usize) {
        assert!(len <= self.block.capacity, "a buffer does not grow beyond its capacity");
        self.len = len;
    }

    /// The used bytes as [`Bytes`], without a copy. The memory returns to the pool with the last clone, on whatever thread.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: `block` is not used again: this is the drop of its only owner.
        let block = unsafe { ManuallyDrop::take(&mut self.block) };
        self.shelves.give_back(block);
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity`, all of it initialised (invariant 2), and `self` owns the block (invariant 1).
        unsafe { std::slice::from_raw_parts(self.block.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(self.block.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for AlignedBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} of {})", self.len, self.block.capacity)
    }
}

/// What direct I/O on a file wants. Both are powers of two in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Alignment {
    /// Of addresses in memory.
    pub memory: usize,
    /// Of offsets and lengths.
    pub offset: u64,
}

impl Alignment {
    /// No demands: a file without O_DIRECT.
    pub const NONE: Self = Self { memory: 1, offset: 1 };
    /// What is assumed of a kernel or file system that does not say: sectors.
    const SECTOR: Self = Self { memory: 512, offset: 512 };

    /// What the kernel says about `file`; `None` when direct I/O on it is not possible.
    pub fn of(file: &File) -> Option<Self> {
        let Some(said) = statx_alignment(file) else { return Some(Self::SECTOR) };
        (said.memory.is_power_of_two() && said.offset.is_power_of_two()).then_some(said)
    }

    /// True when a transfer of `len` bytes at `offset` may go to the file directly.
    pub fn allows(self, offset: u64, len: u64) -> bool {
        (offset | len) & (self.offset - 1) == 0
    }

    /// True when a piece of memory may take part in a direct transfer as it is.
    pub fn accepts(self, piece: &[u8]) -> bool {
        piece.as_ptr().addr() & (self.memory - 1) == 0 && piece.len() as u64 & (self.offset - 1) == 0
    }
}

/// STATX_DIOALIGN (Linux 6.1); `None` where the kernel or the file system does not know it.
fn statx_alignment(file: &File) -> Option<Alignment> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a valid C string, the descriptor is open, and the kernel writes at most one `statx` to `answer`.
    let rc = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, answer.as_mut_ptr())
    };
    // SAFETY: every bit pattern is a valid `statx`, and it was zeroed before the call.
    let answer = unsafe { answer.assume_init() };
    (rc == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0).then_some(Alignment {
        memory: answer.stx_dio_mem_align as usize,
        offset: u64::from(answer.stx_dio_offset_align),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_aligned_and_holds_what_was_asked_for() {
        let pool = Pool::new();
        for len in [0, 1, 512, 4096, 4097, 65536, CLASS_MAX_BYTES, CLASS_MAX_BYTES + 1] {
            let buf = pool.take(len);
            assert_eq!(buf.len(), len);
            assert!(buf.capacity() >= len && buf.capacity().is_multiple_of(ALIGN));
            assert!(buf.as_ptr().addr().is_multiple_of(ALIGN));
        }
    }

    #[test]
    fn a_dropped_buffer_is_used_again() {
        let pool = Pool::new();
        let address = pool.take(5000).as_ptr().addr();
        assert_eq!(pool.cached_blocks(), 1);
        let again = pool.take(8192);
        assert_eq!(again.as_ptr().addr(), address, "the same class");
        assert_eq!(pool.cached_blocks(), 0);
    }

    #[test]
    fn zeroed_means_zeros_even_in_recycled_memory() {
        let pool = Pool::new();
        pool.take(4096).fill(0xee);
        let buf = pool.take_zeroed(4096);
        assert!(buf.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_copy_is_aligned_and_holds_the_same_bytes() {
        let bytes = Bytes::from((0..200_000u32).map(|i| i as u8 ^ (i >> 8) as u8).collect::<Vec<_>>());
        let pieces = [bytes.slice(1..4097), Bytes::new(), bytes.slice(4097..135_169), bytes.slice(135_169..139_265)];
        let copies = Pool::new().copy_of(&pieces);
        assert_eq!(copies.concat(), bytes[1..139_265]);
        assert!(copies.iter().all(|copy| copy.as_ptr().addr().is_multiple_of(ALIGN)));
        assert_eq!(copies.iter().map(Bytes::len).collect::<Vec<_>>(), [COPY_BYTES, COPY_BYTES, 8192]);
    }

    #[test]
    fn the_free_lists_are_bounded() {
        let pool = Pool::new();
        let many: Vec<_> = (0..80).map(|_| pool.take(CLASS_MAX_BYTES)).collect();
        drop(many);
        assert_eq!(pool.cached_blocks(), CACHE_BLOCKS_LARGEST);
        drop(pool.take(CLASS_MAX_BYTES + 1));
        assert_eq!(pool.cached_blocks(), CACHE_BLOCKS_LARGEST, "an oversized buffer is not kept");
    }

    #[test]
    fn frozen_bytes_return_from_another_thread() {
        let pool = Pool::new();
        let mut buf = pool.take(4096);
        buf.fill(7);
        buf.resize(1000);
        let bytes = buf.freeze();
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(pool.cached_blocks(), 0, "a slice keeps the memory");
        let other = pool.clone();
        std::thread::spawn(move || {
            assert_eq!(&slice[..], &[7; 10]);
            drop(slice);
            assert_eq!(other.cached_blocks(), 1);
        })
        .join()
        .unwrap();
        assert_eq!(pool.cached_blocks(), 1);
    }

    #[test]
    fn buffers_are_recycled_by_many_threads_at_once() {
        let pool = Pool::new();
        std::thread::scope(|scope| {
            for seed in 0..4u8 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for round in 0..2000usize {
                        let mut buf = pool.take(4096 << (round % 3));
                        buf.fill(seed);
                        assert!(buf.iter().all(|byte| *byte == seed), "nobody else writes to it");
                    }
                });
            }
        });
    }

    #[test]
    #[should_panic(expected = "does not grow")]
    fn a_buffer_does_not_grow_beyond_its_memory() {
        Pool::new().take(10).resize(4097);
    }

    #[test]
    fn alignment_is_judged_by_address_offset_and_length() {
        let sector = Alignment::SECTOR;
        assert!(sector.allows(512, 1024) && !sector.allows(512, 100) && !sector.allows(1, 512));
        let buf = Pool::new().take(4096);
        assert!(sector.accepts(&buf) && !sector.accepts(&buf[1..513]) && !sector.accepts(&buf[..100]));
        assert!(Alignment::NONE.allows(3, 5) && Alignment::NONE.accepts(&buf[1..4]));
    }
}
