//! What of a base identifies it: its beginning, and that of each further volume, in pieces that are hashed one by one.

use crate::format::superblock::{BASE_SAMPLES, Sample, VOLUME_SAMPLES};
use crate::layout::Layout;
use crate::types::{BLOCK, BlockRange};

/// How much of the base's beginning identifies it.
pub const HEAD_BYTES: u64 = 1 << 20;
/// Bytes of a sample.
pub const SAMPLE_BYTES: u64 = 64 * 1024;
/// So much of the head is sampled block by block. A sample is not compared while the log has newer content of any part of it,
/// and the first blocks of a file system change all the time: one that covered many would hardly ever count.
const FINE_BYTES: u64 = 64 * 1024;
/// How much of each further volume's beginning does: where partition tables and the superblocks of file systems are.
const VOLUME_HEAD_BYTES: u64 = 128 * 1024;
/// Samples of the head.
const HEAD_SAMPLES: usize = FINE_BYTES as usize / BLOCK + ((HEAD_BYTES - FINE_BYTES) / SAMPLE_BYTES) as usize;
/// Extents sampled after an advance: the rest.
pub const EXTENTS: usize = BASE_SAMPLES - HEAD_SAMPLES;
const _: () = assert!(VOLUME_HEAD_BYTES / SAMPLE_BYTES + 1 == VOLUME_SAMPLES as u64, "one for the first block");

/// Hash of a sample.
pub fn sample(offset: u64, data: &[u8]) -> Sample {
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(data).as_bytes()[..16]);
    Sample { offset, len: data.len() as u32, hash }
}

/// The blocks that a sample touches.
pub fn blocks_of(s: &Sample) -> BlockRange {
    let first = s.offset / BLOCK as u64;
    let end = (s.offset + u64::from(s.len)).div_ceil(BLOCK as u64);
    BlockRange::new(first, (end - first) as u32)
}

/// The beginning of a volume in the group's space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// First byte.
    pub start: u64,
    /// Bytes of it that are sampled.
    pub len: u64,
}

/// The heads of a group's volumes. `base_size` are the bytes of the base, which may go on behind a volume that is alone.
pub fn heads(layout: &Layout, base_size: u64) -> Vec<Head> {
    if let [_] = layout.extents() {
        return vec![Head { start: 0, len: HEAD_BYTES.min(base_size) }];
    }
    let firsts = layout.volumes().into_iter().filter_map(|v| layout.of(v).next().copied());
    let limit = |start| if start == 0 { HEAD_BYTES } else { VOLUME_HEAD_BYTES };
    firsts.map(|e| Head { start: e.start, len: e.len.min(limit(e.start)) }).collect()
}

impl Head {
    /// How it is cut into samples, back to back: offset and bytes of each.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let Head { start, len } = *self;
        let fine = if start == 0 { FINE_BYTES } else { BLOCK as u64 }.min(len);
        let small = (0..fine).step_by(BLOCK).map(move |at| (at, (BLOCK as u64).min(fine - at)));
        // Those behind the fine ones end where a multiple of their size does.
        let rough = move |at: u64| (at, (SAMPLE_BYTES - at % SAMPLE_BYTES).min(len - at));
        let next = move |(at, bytes): &(u64, u64)| (at + bytes < len).then(|| rough(at + bytes));
        let large = std::iter::successors((fine < len).then(|| rough(fine)), next);
        small.chain(large).map(move |(at, bytes)| (start + at, bytes))
    }

    /// Samples of the wanted pieces of `data`, which is the base's content from `from` on and begins with a piece.
    pub fn samples(&self, from: u64, data: &[u8], wanted: impl Fn((u64, u64)) -> bool) -> Vec<Sample> {
        let end = from + data.len() as u64;
        let read = self.pieces().filter(|(at, bytes)| *at >= from && at + bytes <= end);
        read.filter(|piece| wanted(*piece))
            .map(|(at, bytes)| sample(at, &data[(at - from) as usize..(at - from + bytes) as usize]))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VolumeId;

    #[test]
    fn samples_cover_the_head_once_and_its_first_blocks_one_by_one() {
        for len in [512, BLOCK, FINE_BYTES as usize, HEAD_BYTES as usize - 512, HEAD_BYTES as usize] {
            let head = Head { start: 0, len: len as u64 };
            let samples = head.samples(0, &vec![7; len], |_| true);
            assert!(samples.len() <= HEAD_SAMPLES);
            let ends = samples.iter().map(|s| s.offset + u64::from(s.len));
            let starts = samples.iter().skip(1).map(|s| s.offset).chain([len as u64]);
            assert!(ends.eq(starts), "{len} bytes");
            assert!(samples.iter().take(FINE_BYTES as usize / BLOCK).all(|s| s.len as usize <= BLOCK));
        }
    }

    #[test]
    fn every_volume_has_a_head_of_its_own() {
        let id = |n| VolumeId([n; 16]);
        let layout = Layout::new([(id(1), 8704), (id(2), 1 << 30), (id(3), 512), (id(2), 4096)]).unwrap();
        let heads = heads(&layout, layout.size());
        assert_eq!(heads.iter().map(|h| h.start).collect::<Vec<_>>(), [0, 12288, 12288 + (1 << 30)]);
        assert_eq!(heads[0].pieces().collect::<Vec<_>>(), [(0, 4096), (4096, 4096), (8192, 512)]);
        let second: Vec<_> = heads[1].pieces().collect();
        assert_eq!(second, [(12288, 4096), (16384, 61440), (12288 + 65536, 65536)]);
        assert_eq!(heads[2].pieces().collect::<Vec<_>>(), [(12288 + (1 << 30), 512)]);
    }
}
