//! Every byte on disk. The only module that knows offsets, magics and checksums; `docs/formats.md` repeats the tables.
//!
//! All integers are little-endian. Reserved bytes are written as zero and ignored when read. A structure carries its own
//! version; the format version is not the product's version.

pub mod branch;
pub mod codec;
pub mod config;
pub mod footer;
pub mod frame;
pub mod record;
pub mod segment;
pub mod superblock;
pub mod twin;
pub mod witness;

pub use codec::FormatError;

use crate::types::BLOCK;

/// CRC-32 (ISO-HDLC) of `data`, the checksum of every block and header.
pub fn crc32(data: &[u8]) -> u32 {
    crc32fast::hash(data)
}

/// CRC-32 of each 4 KiB block of `data`.
///
/// # Panics
/// When `data` is not a whole number of blocks: callers cut it that way.
pub fn block_crcs(data: &[u8]) -> impl Iterator<Item = u32> + '_ {
    assert!(data.len().is_multiple_of(BLOCK), "payloads are whole blocks");
    data.chunks_exact(BLOCK).map(crc32)
}

/// `len` rounded up to whole blocks, in bytes.
pub fn round_up_block(len: usize) -> usize {
    len.div_ceil(BLOCK) * BLOCK
}
