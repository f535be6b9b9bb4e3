//! Random identities without a random source: a keyed counter, seeded by the shell.

/// A deterministic stream of 128-bit values.
#[derive(Clone, Debug)]
pub struct Rng {
    key: [u8; 32],
    counter: u64,
}

impl Rng {
    /// Seeded by 256 random bits (the simulator: by its own seed).
    pub fn new(seed: [u8; 32]) -> Self {
        Self { key: seed, counter: 0 }
    }

    /// The next 128 bits; never all zero, which means "none" in every identity.
    pub fn id(&mut self) -> [u8; 16] {
        self.counter += 1;
        let hash = blake3::keyed_hash(&self.key, &self.counter.to_le_bytes());
        let mut out = [0; 16];
        out.copy_from_slice(&hash.as_bytes()[..16]);
        out[0] |= 1;
        out
    }
}
