//! The nouns of the domain as types: identities, positions, units.
//!
//! Nothing here decides anything. A bare integer never crosses a module boundary where one of these exists. Arithmetic is
//! defined only where it means something: an [`Lsn`] has a successor, two of them have no sum.

use std::fmt;

/// Bytes of one block, the unit of the log, the index and the checksums.
pub const BLOCK: usize = 4096;
/// Bytes of one sector, the smallest unit a frontend may address.
pub const SECTOR: usize = 512;

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// The identity that no object has: "none" on disk and on the wire.
            pub const NIL: Self = Self([0; 16]);

            /// True for [`Self::NIL`].
            pub fn is_nil(self) -> bool {
                self.0 == [0; 16]
            }

            /// Parses the form that `Display` writes (32 hex digits, dashes ignored).
            pub fn parse(text: &str) -> Option<Self> {
                parse_hex128(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(&self.0, f)
            }
        }
    };
}

id128!(
    /// A volume, the same on every site that holds a copy.
    VolumeId
);
id128!(
    /// A consistency group.
    GroupId
);
id128!(
    /// A failure domain: a cluster, a rack, a node. Not a Kubernetes cluster id.
    SiteId
);
id128!(
    /// An agent's host.
    NodeId
);
id128!(
    /// A generation of a group: changes with the primary site or by a human fence.
    GenId
);
id128!(
    /// One boot of a kernel (`/proc/sys/kernel/random/boot_id`).
    BootId
);
id128!(
    /// A random value that tells two configurations of equal epoch apart.
    Nonce
);

fn parse_hex128(text: &str) -> Option<[u8; 16]> {
    let mut out = [0u8; 16];
    let mut digits = 0;
    for c in text.chars().filter(|c| *c != '-') {
        let value = c.to_digit(16)? as u8;
        let byte = out.get_mut(digits / 2)?;
        *byte = (*byte << 4) | value;
        digits += 1;
    }
    (digits == 32).then_some(out)
}

fn write_uuid(id: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (i, byte) in id.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

/// A volume's secret: keys the hash chain of its log, so that neither a stale frame nor a tenant's data that looks like a
/// frame header can ever verify. 256 bits, made once at the volume's creation, never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A position in a volume's log: the number of a record. The first record has 1; [`Lsn::ZERO`] is "before the first".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before the first record.
    pub const ZERO: Self = Self(0);

    /// The position after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The position before this one; [`Lsn::ZERO`] stays.
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The position `count` records later.
    pub fn advance(self, count: u64) -> Self {
        Self(self.0 + count)
    }

    /// How many records lie in `(earlier, self]`; zero when `earlier` is not earlier.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lsn:{}", self.0)
    }
}

/// Which opening as Primary wrote a record: +1 at every opening, per volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Incarnation(pub u32);

impl Incarnation {
    /// The next opening.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The full name of a record: two records with equal positions are the same record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Position {
    /// Generation that wrote it.
    pub generation: GenId,
    /// Incarnation that wrote it.
    pub incarnation: Incarnation,
    /// Its number.
    pub lsn: Lsn,
}

/// The keyed hash of a log's history up to a frame boundary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Chain(pub [u8; 32]);

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain:{:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// A frame boundary: a position and the chain value there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Boundary {
    /// The last record of the frame.
    pub position: Position,
    /// The chain value after that frame.
    pub chain: Chain,
}

impl Boundary {
    /// The one with the lower lsn.
    pub fn min_by_lsn(self, other: Self) -> Self {
        if other.position.lsn < self.position.lsn { other } else { self }
    }
}

/// The age of a configuration, ordered lexicographically. `major` changes by an arbiter or a recorded human decision,
/// `minor` by joint changes of the current primary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch {
    /// Decisions of an arbiter or a human.
    pub major: u32,
    /// Joint changes within one major.
    pub minor: u32,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch:{self}")
    }
}

/// Address of a 4 KiB block on the volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Lba(pub u64);

/// A number of 4 KiB blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct BlockCount(pub u32);

/// A run of blocks: `[lba, lba + count)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockRange {
    /// First block.
    pub lba: Lba,
    /// How many; never zero in a record.
    pub count: BlockCount,
}

impl BlockRange {
    /// The run that starts at `lba` and has `count` blocks.
    pub fn new(lba: u64, count: u32) -> Self {
        Self { lba: Lba(lba), count: BlockCount(count) }
    }

    /// First block after the run.
    pub fn end(self) -> u64 {
        self.lba.0 + u64::from(self.count.0)
    }

    /// First block.
    pub fn start(self) -> u64 {
        self.lba.0
    }

    /// True when the two share a block.
    pub fn overlaps(self, other: Self) -> bool {
        self.start() < other.end() && other.start() < self.end()
    }

    /// Bytes of the run.
    pub fn bytes(self) -> u64 {
        u64::from(self.count.0) * BLOCK as u64
    }
}

/// A run of bytes on the volume; both ends are multiples of [`SECTOR`] once a request was accepted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl ByteRange {
    /// `[offset, offset + len)`.
    pub fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// First byte after the run; saturates, so that a hostile range stays comparable.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// First block that the run touches.
    pub fn first_block(self) -> u64 {
        self.offset / BLOCK as u64
    }

    /// First block after the last one that the run touches.
    pub fn end_block(self) -> u64 {
        self.end().div_ceil(BLOCK as u64)
    }

    /// True when an edge lies inside a block.
    pub fn is_partial(self) -> bool {
        !self.offset.is_multiple_of(BLOCK as u64) || !self.end().is_multiple_of(BLOCK as u64)
    }
}

/// A moment on the owner's monotonic clock, in nanoseconds from an arbitrary start. Never compared across hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The moment `ms` milliseconds later.
    pub fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Nanoseconds from `earlier` to this moment; zero when it is not earlier.
    pub fn since(self, earlier: Nanos) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The wall clock as milliseconds since 1970, carried for people (ages, RPO in seconds); no decision of safety reads it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct WallMs(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_printing_and_parsing() {
        let id = VolumeId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        assert_eq!(VolumeId::parse(&id.to_string()), Some(id));
        assert_eq!(VolumeId::parse("12"), None);
        assert_eq!(VolumeId::parse(&"0".repeat(33)), None);
        assert_eq!(VolumeId::parse(&"g".repeat(32)), None);
    }

    #[test]
    fn a_hostile_byte_range_does_not_overflow() {
        let range = ByteRange::new(u64::MAX - 1, 4096);
        assert_eq!(range.end(), u64::MAX);
    }

    #[test]
    fn partial_means_an_edge_inside_a_block() {
        assert!(!ByteRange::new(4096, 8192).is_partial());
        assert!(ByteRange::new(4096, 512).is_partial());
        assert!(ByteRange::new(512, 8192 - 512).is_partial());
    }
}
