//! A set of blocks: one bit for each, in chunks that exist only where the set has something.
//!
//! Memory: 4 KiB for each 128 MiB of space in which some blocks are in the set and some are not, so at most 32 MiB for each TiB;
//! next to nothing where all of them are.

use std::collections::BTreeMap;

/// Blocks of a chunk.
pub const CHUNK_BLOCKS: u64 = 32 * 1024;
/// Words of the bits of a chunk, the lowest block first.
pub const CHUNK_WORDS: usize = (CHUNK_BLOCKS / 64) as usize;

/// A set of blocks. It is exact: what was not put in is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSet {
    chunks: BTreeMap<u64, Chunk>,
    blocks: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    Full,
    /// Some are in, some are not: the bits, and how many are set.
    Part(Box<[u64; CHUNK_WORDS]>, u64),
}

impl Chunk {
    fn count(&self) -> u64 {
        match self {
            Self::Full => CHUNK_BLOCKS,
            Self::Part(_, count) => *count,
        }
    }

    fn bits(&self) -> Box<[u64; CHUNK_WORDS]> {
        match self {
            Self::Full => Box::new([u64::MAX; CHUNK_WORDS]),
            Self::Part(bits, _) => bits.clone(),
        }
    }

    /// The first block at or above `from` that is in the set, or that is not.
    fn next(&self, from: u64, is_in: bool) -> Option<u64> {
        let Self::Part(bits, _) = self else { return is_in.then_some(from) };
        let mut skip = from % 64;
        for (at, word) in bits.iter().enumerate().skip((from / 64) as usize) {
            let word = (if is_in { *word } else { !*word }) >> skip << skip;
            if word != 0 {
                return Some(at as u64 * 64 + u64::from(word.trailing_zeros()));
            }
            skip = 0;
        }
        None
    }
}

/// What the set has of a chunk.
#[derive(Debug)]
pub enum Content<'a> {
    /// All of it.
    Full,
    /// These.
    Part(&'a [u64; CHUNK_WORDS]),
}

impl BlockSet {
    /// Adds `[start, end)`.
    pub fn insert(&mut self, start: u64, end: u64) {
        self.change(start, end, true);
    }

    /// Takes `[start, end)` out.
    fn remove(&mut self, start: u64, end: u64) {
        self.change(start, end, false);
    }

    fn change(&mut self, start: u64, end: u64, is_in: bool) {
        let mut at = start;
        while at < end {
            let (number, from) = (at / CHUNK_BLOCKS, at % CHUNK_BLOCKS);
            let to = CHUNK_BLOCKS.min(from + (end - at));
            self.change_chunk(number, from, to, is_in);
            at += to - from;
        }
    }

    fn change_chunk(&mut self, number: u64, from: u64, to: u64, is_in: bool) {
        let before = self.chunks.get(&number).map_or(0, Chunk::count);
        let after = match to - from {
            CHUNK_BLOCKS if is_in => self.put(number, Chunk::Full),
            CHUNK_BLOCKS => self.forget(number),
            _ if before == if is_in { CHUNK_BLOCKS } else { 0 } => before,
            _ => self.change_bits(number, from, to, is_in),
        };
        self.blocks = self.blocks - before + after;
    }

    fn put(&mut self, number: u64, chunk: Chunk) -> u64 {
        let count = chunk.count();
        self.chunks.insert(number, chunk);
        count
    }

    fn forget(&mut self, number: u64) -> u64 {
        self.chunks.remove(&number);
        0
    }

    fn change_bits(&mut self, number: u64, from: u64, to: u64, is_in: bool) -> u64 {
        let chunk = self.chunks.entry(number).or_insert_with(|| Chunk::Part(Box::new([0; CHUNK_WORDS]), 0));
        if *chunk == Chunk::Full {
            *chunk = Chunk::Part(chunk.bits(), CHUNK_BLOCKS);
        }
        let Chunk::Part(bits, count) = chunk else { return CHUNK_BLOCKS };
        for at in from / 64..to.div_ceil(64) {
            let (low, high) = (from.max(at * 64) - at * 64, to.min(at * 64 + 64) - at * 64);
            let mask = u64::MAX >> (64 - (high - low)) << low;
            let word = &mut bits[at as usize];
            let before = u64::from(word.count_ones());
            *word = if is_in { *word | mask } else { *word & !mask };
            *count = *count - before + u64::from(word.count_ones());
        }
        match *count {
            0 => self.forget(number),
            CHUNK_BLOCKS => self.put(number, Chunk::Full),
            count => count,
        }
    }

    /// The first block of the set at or above `at`.
    fn first_from(&self, at: u64) -> Option<u64> {
        let begins = at / CHUNK_BLOCKS;
        self.chunks.range(begins..).find_map(|(number, chunk)| {
            let from = if *number == begins { at % CHUNK_BLOCKS } else { 0 };
            chunk.next(from, true).map(|block| number * CHUNK_BLOCKS + block)
        })
    }

    /// Where the run of blocks ends that `start` is in, or `limit`.
    fn end_of(&self, start: u64, limit: u64) -> u64 {
        let mut at = start;
        while at < limit {
            let Some(chunk) = self.chunks.get(&(at / CHUNK_BLOCKS)) else { return at };
            let first = at / CHUNK_BLOCKS * CHUNK_BLOCKS;
            match chunk.next(at % CHUNK_BLOCKS, false) {
                Some(block) => return limit.min(first + block),
                None => at = first + CHUNK_BLOCKS,
            }
        }
        limit
    }

    /// The parts of `[start, end)` that are not in the set, ascending.
    pub fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let (mut at, mut out) = (start, Vec::new());
        while at < end {
            let next = self.first_from(at).map_or(end, |next| next.min(end));
            if next > at {
                out.push((at, next));
            }
            at = if next < end { self.end_of(next, end) } else { end };
        }
        out
    }

    /// Blocks in the set.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// True when empty.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Takes up to `max` blocks from the front.
    pub fn take_front(&mut self, max: u64) -> Option<(u64, u64)> {
        let start = self.first_from(0)?;
        let end = self.end_of(start, start.saturating_add(max));
        self.remove(start, end);
        Some((start, end))
    }

    /// Its runs inside one chunk each, ascending.
    pub fn runs_of(&self, number: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (mut at, end) = (number * CHUNK_BLOCKS, (number + 1) * CHUNK_BLOCKS);
        std::iter::from_fn(move || {
            let start = self.first_from(at).filter(|start| *start < end)?;
            at = self.end_of(start, end);
            Some((start, at))
        })
    }

    /// Its chunks by number, ascending.
    pub fn chunks(&self) -> impl Iterator<Item = (u64, Content<'_>)> + '_ {
        self.chunks.iter().map(|(number, chunk)| match chunk {
            Chunk::Full => (*number, Content::Full),
            Chunk::Part(bits, _) => (*number, Content::Part(bits)),
        })
    }

    /// Adds all of another set.
    pub fn add(&mut self, other: &Self) {
        for (number, content) in other.chunks() {
            match content {
                Content::Full => self.insert(number * CHUNK_BLOCKS, (number + 1) * CHUNK_BLOCKS),
                Content::Part(bits) => self.insert_bits(number, bits),
            }
        }
    }

    /// Adds the blocks of a chunk whose bits are set.
    pub fn insert_bits(&mut self, number: u64, bits: &[u64; CHUNK_WORDS]) {
        let before = self.chunks.get(&number).map_or(0, Chunk::count);
        let mut all = self.chunks.get(&number).map_or_else(|| Box::new([0; CHUNK_WORDS]), Chunk::bits);
        all.iter_mut().zip(bits).for_each(|(word, more)| *word |= more);
        let count = all.iter().map(|word| u64::from(word.count_ones())).sum();
        let after = match count {
            0 => return,
            CHUNK_BLOCKS => self.put(number, Chunk::Full),
            _ => self.put(number, Chunk::Part(all, count)),
        };
        self.blocks += after - before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_set_merges_what_touches_and_is_taken_in_order() {
        let mut set = BlockSet::default();
        set.insert(10, 20);
        set.insert(30, 40);
        set.insert(20, 25);
        set.insert(5, 6);
        assert_eq!(set.blocks(), 26);
        set.insert(0, 31);
        assert_eq!(set.blocks(), 40);
        assert_eq!(set.take_front(16), Some((0, 16)));
        assert_eq!(set.take_front(100), Some((16, 40)));
        assert_eq!(set.take_front(1), None);
    }

    #[test]
    fn a_set_is_what_was_put_in_also_over_the_edges_of_its_chunks() {
        let mut rng = crate::rng::Rng::new([7; 32]);
        let (mut set, mut plain) = (BlockSet::default(), vec![false; 3 * CHUNK_BLOCKS as usize]);
        for _ in 0..200 {
            let mut draw = |below: u64| u64::from_le_bytes(rng.id()[..8].try_into().unwrap()) % below;
            let start = draw(3 * CHUNK_BLOCKS);
            let end = (start + draw(CHUNK_BLOCKS)).min(3 * CHUNK_BLOCKS);
            let is_in = draw(3) > 0;
            set.change(start, end, is_in);
            plain[start as usize..end as usize].fill(is_in);
            assert_eq!(set.blocks(), plain.iter().filter(|is_in| **is_in).count() as u64);
        }
        let mut copy = BlockSet::default();
        copy.add(&set);
        assert_eq!(copy, set);
        let gaps: u64 = set.gaps(0, 3 * CHUNK_BLOCKS).iter().map(|(start, end)| end - start).sum();
        assert_eq!(gaps + set.blocks(), 3 * CHUNK_BLOCKS);
        let runs: u64 = (0..3).flat_map(|n| set.runs_of(n)).map(|(start, end)| end - start).sum();
        assert_eq!(runs, set.blocks());
        let mut taken = vec![false; plain.len()];
        while let Some((start, end)) = set.take_front(1000) {
            assert!(end - start <= 1000 && plain[start as usize..end as usize].iter().all(|is_in| *is_in));
            taken[start as usize..end as usize].fill(true);
        }
        assert!(set.is_empty() && set.blocks() == 0 && taken == plain);
    }

    #[test]
    fn a_whole_tebibyte_takes_no_bits() {
        let mut set = BlockSet::default();
        set.insert(0, 1 << 28);
        assert!(set.chunks().all(|(_, content)| matches!(content, Content::Full)));
        assert_eq!((set.blocks(), set.take_front(1 << 30)), (1 << 28, Some((0, 1 << 28))));
    }
}
