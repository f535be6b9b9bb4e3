//! Content of a sector that names its sector and its write, so that a stale, misplaced or torn one is known by sight.

use crate::dice::Dice;

/// The unit of writes and of what a crash may tear, in bytes.
pub const SECTOR: usize = 512;

const MAGIC: [u8; 8] = *b"verifier";

/// Names a write; later ones have higher numbers. Zero is the state before any.
pub type Number = u64;

/// What a sector turned out to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing but zeros.
    Zeros,
    /// All of this write's sector.
    Write(Number),
    /// What no write put there.
    Garbage,
}

/// Fills `content` with the sectors of write `number` from sector `first` on.
pub fn fill(content: &mut [u8], first: u64, number: Number) {
    for (sector, bytes) in (first..).zip(content.chunks_exact_mut(SECTOR)) {
        fill_sector(bytes, sector, number);
    }
}

fn fill_sector(bytes: &mut [u8], sector: u64, number: Number) {
    let mut dice = Dice::new(sector.rotate_left(32) ^ number);
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&dice.number().to_le_bytes());
    }
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&sector.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
}

/// Reads a sector.
pub fn recognize(bytes: &[u8], sector: u64) -> Found {
    if bytes.iter().all(|byte| *byte == 0) {
        return Found::Zeros;
    }
    let number = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
    let mut whole = [0; SECTOR];
    fill_sector(&mut whole, sector, number);
    if whole == bytes { Found::Write(number) } else { Found::Garbage }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_is_known_by_sight_and_any_changed_byte_makes_it_garbage() {
        let mut content = vec![0; 2 * SECTOR];
        assert_eq!(recognize(&content[..SECTOR], 7), Found::Zeros);
        fill(&mut content, 7, 42);
        assert_eq!(recognize(&content[..SECTOR], 7), Found::Write(42));
        assert_eq!(recognize(&content[SECTOR..], 8), Found::Write(42));
        assert_eq!(recognize(&content[SECTOR..], 7), Found::Garbage, "misplaced");
        for at in 0..SECTOR {
            let mut torn = content[..SECTOR].to_vec();
            torn[at] ^= 1;
            assert_eq!(recognize(&torn, 7), Found::Garbage, "byte {at}");
        }
    }
}
