//! What a sector holds: each 512 B sector that the workload writes names the write and its own address in every word, so that
//! one look at a sector says which write it is from, and any mixture, shift or stale copy is seen.

use bytes::{Bytes, BytesMut};
use tidemark_core::types::SECTOR;

/// Number of an operation of the workload, in the order of issue.
pub type OpId = u32;

const WORDS: usize = SECTOR / 8;
const TAG: u64 = 0x5449_4445_0000_0000;

/// What a sector was found to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    /// Zeros only.
    Zero,
    /// Exactly what that operation wrote to this address.
    Op(OpId),
    /// Anything else: never written by the workload.
    Foreign,
}

fn key(op: OpId, sector: u64) -> u64 {
    (u64::from(op) << 32 | sector).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// One sector.
fn sector_of(op: OpId, sector: u64) -> [u8; SECTOR] {
    let mut out = [0; SECTOR];
    let key = key(op, sector);
    let (words, _) = out.as_chunks_mut::<8>();
    words[0] = (TAG | u64::from(op)).to_le_bytes();
    words[1] = sector.to_le_bytes();
    for (i, word) in words.iter_mut().enumerate().skip(2) {
        *word = key.wrapping_add(i as u64).to_le_bytes();
    }
    out
}

/// Appends the payload of a write of `sectors` sectors from `first`.
pub fn append_payload(out: &mut BytesMut, op: OpId, first: u64, sectors: u64) {
    out.reserve(sectors as usize * SECTOR);
    (first..first + sectors).for_each(|sector| out.extend_from_slice(&sector_of(op, sector)));
}

/// The payload of a write of `sectors` sectors from `first`.
pub fn payload(op: OpId, first: u64, sectors: u64) -> Bytes {
    let mut out = BytesMut::new();
    append_payload(&mut out, op, first, sectors);
    out.freeze()
}

/// Says what a sector holds.
pub fn read_sector(data: &[u8], sector: u64) -> Value {
    let (words, _) = data.as_chunks::<8>();
    let words: &[[u8; 8]; WORDS] = words.try_into().expect("a sector");
    let word = |i: usize| u64::from_le_bytes(words[i]);
    let tag = word(0);
    if tag == 0 {
        return if data == [0; SECTOR] { Value::Zero } else { Value::Foreign };
    }
    let op = tag as u32;
    let key = key(op, sector);
    // All words, without looking whether one was wrong already: this is where most of the time of a scan goes.
    let wrong = (2..WORDS).fold(0, |wrong, i| wrong | word(i) ^ key.wrapping_add(i as u64));
    let right = tag & !0xffff_ffff == TAG && word(1) == sector && wrong == 0;
    if right { Value::Op(op) } else { Value::Foreign }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_names_its_write_and_its_address() {
        let data = payload(7, 40, 2);
        assert_eq!(read_sector(&data[..SECTOR], 40), Value::Op(7));
        assert_eq!(read_sector(&data[SECTOR..], 41), Value::Op(7));
        assert_eq!(read_sector(&data[..SECTOR], 41), Value::Foreign);
        assert_eq!(read_sector(&[0; SECTOR], 3), Value::Zero);
    }

    #[test]
    fn a_flipped_bit_or_a_mixture_is_foreign() {
        let mut data = payload(7, 40, 1).to_vec();
        data[300] ^= 4;
        assert_eq!(read_sector(&data, 40), Value::Foreign);
        let mut mixed = payload(7, 40, 1).to_vec();
        mixed[256..].copy_from_slice(&payload(8, 40, 1)[256..]);
        assert_eq!(read_sector(&mixed, 40), Value::Foreign);
    }
}
