//! A volume's log as a list of record numbers. A number is given once: two logs with the same numbers hold the same history, whatever
//! generation and incarnation wrote it.

use tidemark_core::types::{Boundary, Chain, GenId, Incarnation, Lsn, Position};

/// The longest log of the models.
pub const LONGEST: usize = 4;

/// Records in the order of their lsn, numbered from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Log {
    ids: [u8; LONGEST],
    len: u8,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.records()).finish()
    }
}

impl Log {
    /// In one piece.
    pub fn packed(&self) -> [u8; LONGEST] {
        self.ids
    }

    /// Its records.
    pub fn records(&self) -> &[u8] {
        &self.ids[..usize::from(self.len)]
    }

    /// The lsn of the last one.
    pub fn len(&self) -> u8 {
        self.len
    }

    /// No record.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends one; false when there is no room.
    #[must_use]
    pub fn push(&mut self, id: u8) -> bool {
        let has_room = usize::from(self.len) < LONGEST;
        if has_room {
            self.ids[usize::from(self.len)] = id;
            self.len += 1;
        }
        has_room
    }

    /// Drops what lies above `len`.
    pub fn truncate(&mut self, len: u8) {
        for id in &mut self.ids[usize::from(len.min(self.len))..] {
            *id = 0;
        }
        self.len = self.len.min(len);
    }

    /// Up to `len`.
    pub fn upto(&self, len: u8) -> Self {
        let mut log = *self;
        log.truncate(len);
        log
    }

    /// How many records both begin with.
    pub fn common(&self, with: &Self) -> u8 {
        self.records().iter().zip(with.records()).take_while(|(a, b)| a == b).count() as u8
    }

    /// `other` continues this one, or is equal.
    pub fn is_prefix_of(&self, other: &Self) -> bool {
        self.common(other) == self.len
    }

    /// The record at `lsn`; 0: none.
    pub fn at(&self, lsn: u8) -> u8 {
        if lsn == 0 { 0 } else { self.records().get(usize::from(lsn) - 1).copied().unwrap_or(0) }
    }

    /// Its records as a set of bits.
    pub fn set(&self) -> u8 {
        self.records().iter().fold(0, |set, id| set | bit(*id))
    }

    /// The position `len` as the core has it; two are equal when everything below them is.
    pub fn boundary(&self, len: u8) -> Boundary {
        let mut chain = Chain([0; 32]);
        for (byte, id) in chain.0.iter_mut().zip(self.upto(len).records()) {
            *byte = *id;
        }
        let position = Position { generation: GenId([1; 16]), incarnation: Incarnation(1), lsn: Lsn(len.into()) };
        Boundary { position, chain }
    }
}

/// A record in a set.
pub fn bit(id: u8) -> u8 {
    1 << (id - 1)
}
