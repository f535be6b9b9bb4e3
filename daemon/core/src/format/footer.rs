//! A footer: which blocks a run of the log changed. It outlives the log's segments, so that a peer that was left behind is brought
//! up to date by the blocks that changed since (`docs/decisions/0018`).
//!
//! A footer is true by itself: between these two boundaries of one history just these blocks changed. Several that follow each other
//! are one, and which of those that are found do, their boundaries say; none has to be removed before others are written.

use bytes::Bytes;

use crate::blocks::{BlockSet, CHUNK_BLOCKS, CHUNK_WORDS, Content};
use crate::format::codec::{FormatError, Reader, Writer};
use crate::format::{crc32, round_up_block};
use crate::types::{Boundary, VolumeId};

/// `TMFT`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TMFT");
/// Newest version written and read. Version 1 was reserved, and never written.
pub const VERSION: u16 = 2;
/// The most places in the log that one footer names.
pub const MAX_TAILS: usize = 8192;
/// The most runs and the most chunks in one footer: of 64 TiB.
pub const MAX_RUNS: usize = 1 << 29;
/// The number of the footer that comes first; those that follow it have the numbers up to [`LAST`].
pub const FIRST: u32 = 0;
/// The last number.
pub const LAST: u32 = 64;
/// Bytes of the bits of a chunk.
const BITS_BYTES: usize = CHUNK_WORDS * 8;
/// Bytes of a run.
const RUN_BYTES: usize = 12;

/// The changed blocks of a run of the log.
///
/// | bytes | field |
/// |---|---|
/// | 4 | magic `TMFT` |
/// | 2 | version |
/// | 2 | reserved |
/// | 8 | bytes before the CRC-32 |
/// | 16 | volume |
/// | 60 | boundary before the first record |
/// | 60 | boundary after the last record |
/// | 4 | number of places |
/// | 60 n | boundaries, ascending |
/// | 4 | number of runs |
/// | 12 n | first block 8, blocks 4; ascending, disjoint |
/// | 4 | number of chunks |
/// | 4104 n | number 8, one bit for each of its 32,768 blocks, in words of 8 bytes, the lowest bit first; ascending |
/// | 4 | CRC-32 of everything before |
///
/// A chunk is written as its runs where those take less room than its bits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Footer {
    /// The volume.
    pub volume: VolumeId,
    /// Before the first record.
    pub start: Boundary,
    /// After the last record.
    pub end: Boundary,
    /// Boundaries at or above the very first start at which the peer may turn out to be; none: as the footer before says.
    pub tails: Vec<Boundary>,
    /// What changed.
    pub blocks: BlockSet,
}

impl Footer {
    /// Whole blocks, padded with zeros.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(4096);
        w.u32(MAGIC);
        w.u16(VERSION);
        w.u16(0);
        w.u64(0);
        w.bytes(&self.volume.0);
        w.boundary(self.start);
        w.boundary(self.end);
        w.u32(self.tails.len() as u32);
        for tail in &self.tails {
            w.boundary(*tail);
        }
        self.encode_blocks(&mut w);
        let used = w.buf.len() as u64;
        w.buf[8..16].copy_from_slice(&used.to_le_bytes());
        let crc = crc32(&w.buf);
        w.u32(crc);
        w.zeros(round_up_block(w.buf.len()) - w.buf.len());
        Bytes::from(w.buf)
    }

    fn encode_blocks(&self, w: &mut Writer) {
        let (mut runs, mut chunks) = (Vec::new(), Vec::new());
        for (number, content) in self.blocks.chunks() {
            let few = self.blocks.runs_of(number).take(BITS_BYTES / RUN_BYTES + 1).count() * RUN_BYTES <= BITS_BYTES;
            match content {
                Content::Part(bits) if !few => chunks.push((number, bits)),
                _ => runs.extend(self.blocks.runs_of(number)),
            }
        }
        w.u32(runs.len() as u32);
        for (start, end) in runs {
            w.u64(start);
            w.u32((end - start) as u32);
        }
        w.u32(chunks.len() as u32);
        for (number, bits) in chunks {
            w.u64(number);
            bits.iter().for_each(|word| w.u64(*word));
        }
    }

    /// Decodes and checks.
    pub fn decode(buf: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("footer", buf);
        if r.u32()? != MAGIC {
            return Err(FormatError::Magic("footer"));
        }
        let version = r.u16()?;
        if version != VERSION {
            return Err(FormatError::Version { what: "footer", found: version, known: VERSION });
        }
        r.skip(2)?;
        // Before anything of it is believed: a count of garbage would be followed for long.
        let used = usize::try_from(r.u64()?).map_err(|_| r.field("length"))?;
        let mut whole = Reader::new("footer", buf);
        let body = whole.bytes(used)?;
        if whole.u32()? != crc32(body) {
            return Err(FormatError::Checksum("footer"));
        }
        let volume = VolumeId(r.array()?);
        let (start, end) = (r.boundary()?, r.boundary()?);
        let tails = (0..r.count("places", MAX_TAILS)?).map(|_| r.boundary()).collect::<Result<_, _>>()?;
        let mut blocks = BlockSet::default();
        for _ in 0..r.count("runs", MAX_RUNS)? {
            let (start, count) = (r.u64()?, r.u32()?);
            let end = start.checked_add(u64::from(count)).ok_or_else(|| r.field("run"))?;
            blocks.insert(start, end);
        }
        for _ in 0..r.count("chunks", MAX_RUNS)? {
            let number = r.u64()?;
            let mut bits = [0; CHUNK_WORDS];
            for word in &mut bits {
                *word = r.u64()?;
            }
            if number >= u64::MAX / CHUNK_BLOCKS {
                return Err(r.field("chunk"));
            }
            blocks.insert_bits(number, &bits);
        }
        Ok(Self { volume, start, end, tails, blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        let mut blocks = BlockSet::default();
        blocks.insert(1, 3);
        blocks.insert(9, 10);
        // Too many to be runs.
        (0..CHUNK_BLOCKS / 2).for_each(|n| blocks.insert(3 * CHUNK_BLOCKS + 2 * n, 3 * CHUNK_BLOCKS + 2 * n + 1));
        blocks.insert(5 * CHUNK_BLOCKS, 7 * CHUNK_BLOCKS);
        let (start, end) = (Boundary::default(), Boundary::default());
        Footer { volume: VolumeId([1; 16]), start, end, tails: vec![start, end], blocks }
    }

    #[test]
    fn a_footer_survives_its_encoding_and_no_flipped_byte_does() {
        let bytes = footer().encode();
        assert_eq!(Footer::decode(&bytes).unwrap(), footer());
        let used = 4 + 4 + 8 + 16 + 120 + 4 + 120 + 4 + 4 * RUN_BYTES + 4 + 8 + BITS_BYTES + 4;
        assert_eq!(bytes.len(), round_up_block(used));
        for at in 0..used {
            let mut bad = bytes.to_vec();
            bad[at] ^= 1;
            assert!(Footer::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_footer_that_ends_early_is_none() {
        let bytes = footer().encode();
        for len in [0, 3, 100, 200, 300, 4000] {
            assert!(Footer::decode(&bytes[..len]).is_err(), "{len}");
        }
    }
}
