//! From what the kernel asks of the file to what the volume understands. Pure.
//!
//! Decides: which ranges are refused and with what errno, where a read ends, and how a hole punch becomes requests. Does not
//! decide: anything about the data.
//!
//! A hole punch must read back as zeros to the last byte (the loop driver also sends it for "write zeroes"), while the
//! volume may leave the edges of a discard inside a 4 KiB block as they are. So only whole blocks are discarded; the edges are
//! zeroed.

use bytes::Bytes;
use fuser::Errno;
use tidemark_core::event::{Request, RequestError};
use tidemark_core::types::{BLOCK, ByteRange, SECTOR};

/// The range of a read within a volume of `size` bytes: cut at the end, `None` when nothing is left.
pub(super) fn read_range(offset: u64, len: u64, size: u64) -> Result<Option<ByteRange>, Errno> {
    aligned(offset, len)?;
    let len = len.min(size.saturating_sub(offset));
    Ok((len > 0).then_some(ByteRange::new(offset, len)))
}

/// The range of a write or a zeroing; one that leaves the volume is refused whole.
pub(super) fn write_range(offset: u64, len: u64, size: u64) -> Result<ByteRange, Errno> {
    aligned(offset, len)?;
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(ByteRange::new(offset, len)),
        _ => Err(Errno::ENOSPC),
    }
}

fn aligned(offset: u64, len: u64) -> Result<(), Errno> {
    let sector = SECTOR as u64;
    if offset.is_multiple_of(sector) && len.is_multiple_of(sector) { Ok(()) } else { Err(Errno::EINVAL) }
}

/// The requests of a `fallocate` call: at most three, both edges and the middle.
pub(super) fn fallocate(mode: i32, offset: u64, len: u64, size: u64) -> Result<Vec<Request>, Errno> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let range = write_range(offset, len, size)?;
    match mode {
        PUNCH => Ok(punch(range)),
        libc::FALLOC_FL_ZERO_RANGE => Ok(vec![zero(range, false)]),
        mode if mode == libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE => Ok(vec![zero(range, false)]),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn punch(range: ByteRange) -> Vec<Request> {
    let first = range.offset.next_multiple_of(BLOCK as u64);
    let last = range.end() - range.end() % BLOCK as u64;
    if first >= last {
        return vec![zero(range, false)];
    }
    let parts = [(range.offset, first, false), (first, last, true), (last, range.end(), false)];
    let filled = parts.into_iter().filter(|(start, end, _)| start < end);
    filled.map(|(start, end, discard)| zero(ByteRange::new(start, end - start), discard)).collect()
}

fn zero(range: ByteRange, discard: bool) -> Request {
    Request::Zero { range, discard, fua: false }
}

/// The errno of a refused request.
pub(super) fn errno(error: RequestError) -> Errno {
    match error {
        RequestError::Invalid => Errno::EINVAL,
        RequestError::NotServing | RequestError::Io => Errno::EIO,
    }
}

/// Copies a payload so that it begins at a multiple of 4096 in memory, as direct I/O below wants it.
pub(super) fn aligned_copy(data: &[u8]) -> Bytes {
    let mut buffer: Vec<u8> = Vec::with_capacity(data.len() + BLOCK - 1);
    let lead = buffer.as_ptr().align_offset(BLOCK).min(BLOCK - 1);
    buffer.resize(lead, 0);
    buffer.extend_from_slice(data);
    Bytes::from(buffer).slice(lead..)
}

/// The pieces of a read as one slice, without a copy when it is one piece already.
pub(super) fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    match pieces.len() {
        1 => pieces.remove(0),
        _ => Bytes::from(pieces.concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn zeroes(mode: i32, offset: u64, len: u64) -> Vec<(u64, u64, bool)> {
        let requests = fallocate(mode, offset, len, SIZE).expect("accepted");
        let part = |request: Request| match request {
            Request::Zero { range, discard, fua: false } => (range.offset, range.len, discard),
            other => panic!("not a zero: {other:?}"),
        };
        requests.into_iter().map(part).collect()
    }

    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

    #[test]
    fn a_punch_of_whole_blocks_is_one_discard() {
        assert_eq!(zeroes(PUNCH, 4096, 8192), [(4096, 8192, true)]);
    }

    #[test]
    fn the_edges_of_a_punch_inside_a_block_are_zeroed() {
        assert_eq!(zeroes(PUNCH, 3584, 8192), [(3584, 512, false), (4096, 4096, true), (8192, 3584, false)]);
        assert_eq!(zeroes(PUNCH, 4096, 4608), [(4096, 4096, true), (8192, 512, false)]);
        assert_eq!(zeroes(PUNCH, 512, 1024), [(512, 1024, false)]);
        assert_eq!(zeroes(PUNCH, 512, 4096), [(512, 4096, false)]);
    }

    #[test]
    fn zero_range_keeps_its_space() {
        assert_eq!(zeroes(libc::FALLOC_FL_ZERO_RANGE, 4096, 4096), [(4096, 4096, false)]);
    }

    #[test]
    fn preallocation_is_not_offered() {
        assert_eq!(fallocate(0, 0, 4096, SIZE).err().map(i32::from), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn unaligned_ranges_are_invalid() {
        assert_eq!(write_range(1, 512, SIZE).err().map(i32::from), Some(libc::EINVAL));
        assert_eq!(read_range(0, 511, SIZE).err().map(i32::from), Some(libc::EINVAL));
    }

    #[test]
    fn a_read_ends_with_the_volume_and_a_write_may_not_pass_it() {
        assert_eq!(read_range(SIZE - 512, 4096, SIZE).ok().flatten(), Some(ByteRange::new(SIZE - 512, 512)));
        assert_eq!(read_range(SIZE, 4096, SIZE).ok(), Some(None));
        assert_eq!(write_range(SIZE - 512, 1024, SIZE).err().map(i32::from), Some(libc::ENOSPC));
        assert_eq!(write_range(u64::MAX - 511, 512, SIZE).err().map(i32::from), Some(libc::ENOSPC));
    }

    #[test]
    fn a_copied_payload_is_aligned_in_memory() {
        for len in [512, 4096, 1 << 20] {
            let copy = aligned_copy(&vec![7; len]);
            assert_eq!(copy.as_ptr() as usize % BLOCK, 0);
            assert_eq!(copy, vec![7; len]);
        }
    }
}
