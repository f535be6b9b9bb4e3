//! A frame: one group commit. Header (4 KiB-aligned, padded with zeros) with descriptors and per-block checksums, then the
//! payload blocks. No field depends on the segment, so the frame is identical on both sites.

use bytes::Bytes;

use crate::format::codec::{FormatError, Reader, Writer};
use crate::format::record::{DESCRIPTOR_BYTES, Descriptor};
use crate::format::{block_crcs, crc32, round_up_block};
use crate::types::{
    BLOCK, BootId, Boundary, Chain, Epoch, GenId, Incarnation, Lsn, Position, Secret, SiteId, VolumeId,
};

/// `TMFR`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TMFR");
/// Newest version written and read.
pub const VERSION: u16 = 1;
/// Bytes of the fixed part.
pub const FIXED_BYTES: usize = 320;
/// The most records of one frame.
pub const MAX_RECORDS: usize = 2048;
/// The most payload blocks of one frame: 4 MiB, so that one 1 MiB request with its neighbours still fits.
pub const MAX_PAYLOAD_BLOCKS: usize = 1024;
/// The most header bytes of one frame.
pub const MAX_HEADER_BYTES: usize = round_up(FIXED_BYTES + MAX_RECORDS * DESCRIPTOR_BYTES + MAX_PAYLOAD_BLOCKS * 4);
/// Peers whose durable position a frame can carry.
pub const MAX_PEERS: usize = 2;

const CRC_AT: usize = 12;
const CHAIN_AT: usize = 288;

const _: () = assert!(CHAIN_AT + 32 == FIXED_BYTES);
const _: () = assert!(MAX_HEADER_BYTES.is_multiple_of(BLOCK));

const fn round_up(n: usize) -> usize {
    n.div_ceil(BLOCK) * BLOCK
}

/// What kind of frame it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// Records of the volume's history.
    Log,
    /// Blocks of a resync on a replica (reserved: a first seeding writes the base directly).
    Base,
    /// A jump of a resynced replica (reserved).
    Jump,
}

/// What a peer last acknowledged as durable; in every frame, so that the memory survives restarts (R6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PeerDurable {
    /// The peer.
    pub site: SiteId,
    /// Its kernel's boot then.
    pub boot: BootId,
    /// Its durable position, in the frame's generation and incarnation.
    pub lsn: Lsn,
}

/// A frame's header.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 4 | magic `TMFR` |
/// | 4 | 2 | version |
/// | 6 | 1 | kind: 1 log, 2 base, 3 jump |
/// | 7 | 1 | checksum algorithm: 1 CRC-32 |
/// | 8 | 4 | used bytes of the header |
/// | 12 | 4 | CRC-32 of the used bytes with this field zero |
/// | 16 | 16 | volume |
/// | 32 | 16 | generation |
/// | 48 | 4 | incarnation |
/// | 52 | 4 | flags, reserved |
/// | 56 | 8 | first lsn |
/// | 64 | 4 | records |
/// | 68 | 4 | payload blocks |
/// | 72 | 8 | epoch of K at writing (major, minor) |
/// | 80 | 8 | committed |
/// | 88 | 8 | durable at the writer |
/// | 96 | 80 | two peers: site 16, boot 16, durable lsn 8 |
/// | 176 | 2 | cipher id, 0: none |
/// | 178 | 2 | reserved |
/// | 180 | 4 | key epoch |
/// | 184 | 8 | wall clock of the writer in ms since 1970 |
/// | 192 | 64 | reserved |
/// | 256 | 32 | chain before this frame |
/// | 288 | 32 | chain: blake3 keyed with the volume's secret over the used bytes with this field and the CRC zero |
/// | 320 | 16 n | descriptors |
/// | .. | 4 m | CRC-32 of each payload block |
///
/// The previous chain is part of the hashed bytes, so one frame can be checked alone, and a run of frames as a chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Log, base or jump.
    pub kind: FrameKind,
    /// The volume.
    pub volume: VolumeId,
    /// Generation.
    pub generation: GenId,
    /// Incarnation.
    pub incarnation: Incarnation,
    /// Number of the first record.
    pub first: Lsn,
    /// Epoch of K when it was written; for people and for later epochs' history, never for R3.
    pub epoch: Epoch,
    /// Committed position when it was written.
    pub committed: Lsn,
    /// Durable position of the writer when it was written: tells a torn tail from rot.
    pub durable: Lsn,
    /// What peers had acknowledged.
    pub peers: [PeerDurable; MAX_PEERS],
    /// Cipher of the payload, 0: none.
    pub cipher: u16,
    /// Which key.
    pub key_epoch: u32,
    /// Writer's wall clock.
    pub wall_ms: u64,
    /// Chain before.
    pub prev: Chain,
    /// Chain after.
    pub chain: Chain,
    /// The records.
    pub records: Vec<Descriptor>,
    /// CRC-32 of each payload block, in order.
    pub crcs: Vec<u32>,
}

impl FrameHeader {
    /// True when every record can be taken: see [`Descriptor::is_understood`].
    pub fn is_understood(&self) -> bool {
        self.records.iter().all(Descriptor::is_understood)
    }

    /// Number of the last record.
    pub fn last(&self) -> Lsn {
        self.first.advance(self.records.len() as u64 - 1)
    }

    /// Up to where this frame proves that `site`'s copy was durable. The writer's own position proves nothing about a peer, which
    /// may be behind; a frame that names no peer may be anybody's: then it is the writer's word only where `wrote`, which is
    /// to say that `site` is known to write this generation.
    pub fn durable_at(&self, site: SiteId, wrote: bool) -> Lsn {
        let mut peers = self.peers.iter().filter(|peer| peer.site != SiteId::default());
        let names_others = peers.clone().next().is_some();
        match peers.find(|peer| peer.site == site) {
            Some(own) => own.lsn,
            None if names_others || wrote => self.durable,
            None => Lsn::ZERO,
        }
    }

    /// The position of the last record.
    pub fn end(&self) -> Position {
        Position { generation: self.generation, incarnation: self.incarnation, lsn: self.last() }
    }

    /// The boundary after the frame.
    pub fn boundary(&self) -> Boundary {
        Boundary { position: self.end(), chain: self.chain }
    }

    /// Used bytes of the encoded header.
    pub fn used_bytes(&self) -> usize {
        FIXED_BYTES + self.records.len() * DESCRIPTOR_BYTES + self.crcs.len() * 4
    }

    /// Bytes of the encoded header with its padding.
    pub fn padded_bytes(&self) -> usize {
        round_up_block(self.used_bytes())
    }

    /// Bytes of the payload.
    pub fn payload_bytes(&self) -> usize {
        self.crcs.len() * BLOCK
    }

    /// Bytes of the whole frame, where it is padded: header and payload.
    pub fn total_bytes(&self) -> usize {
        self.padded_bytes() + self.payload_bytes()
    }

    /// True when `payload`, whole blocks of it in pieces, is what the checksums were made of.
    pub fn matches<'a>(&self, payload: impl IntoIterator<Item = &'a [u8]>) -> bool {
        payload.into_iter().flat_map(block_crcs).eq(self.crcs.iter().copied())
    }

    /// Encodes the header, padded to whole blocks, and sets `chain`.
    pub fn encode(&mut self, secret: &Secret) -> Bytes {
        let mut w = Writer::with_capacity(self.padded_bytes());
        self.encode_fixed(&mut w);
        for d in &self.records {
            d.encode(&mut w);
        }
        for crc in &self.crcs {
            w.u32(*crc);
        }
        self.chain = chain_of(secret, &w.buf);
        w.buf[CHAIN_AT..CHAIN_AT + 32].copy_from_slice(&self.chain.0);
        let crc = crc32(&w.buf);
        w.patch_u32(CRC_AT, crc);
        w.zeros(self.padded_bytes() - self.used_bytes());
        Bytes::from(w.buf)
    }

    fn encode_fixed(&self, w: &mut Writer) {
        w.u32(MAGIC);
        w.u16(VERSION);
        w.u8(match self.kind {
            FrameKind::Log => 1,
            FrameKind::Base => 2,
            FrameKind::Jump => 3,
        });
        w.u8(1);
        w.u32(self.used_bytes() as u32);
        w.u32(0);
        w.bytes(&self.volume.0);
        w.bytes(&self.generation.0);
        w.u32(self.incarnation.0);
        w.u32(0);
        w.u64(self.first.0);
        w.u32(self.records.len() as u32);
        w.u32(self.crcs.len() as u32);
        w.epoch(self.epoch);
        w.u64(self.committed.0);
        w.u64(self.durable.0);
        for peer in &self.peers {
            w.bytes(&peer.site.0);
            w.bytes(&peer.boot.0);
            w.u64(peer.lsn.0);
        }
        w.u16(self.cipher);
        w.u16(0);
        w.u32(self.key_epoch);
        w.u64(self.wall_ms);
        w.zeros(64);
        w.bytes(&self.prev.0);
        w.zeros(32);
        debug_assert_eq!(w.buf.len(), FIXED_BYTES);
    }

    /// How many bytes the header at the start of `buf` uses, judged by magic, version and limits alone. `buf` holds at least
    /// the fixed part.
    pub fn peek_used(buf: &[u8]) -> Result<usize, FormatError> {
        let mut r = Reader::new("frame", buf);
        if r.u32()? != MAGIC {
            return Err(FormatError::Magic("frame"));
        }
        let version = r.u16()?;
        if version != VERSION {
            return Err(FormatError::Version { what: "frame", found: version, known: VERSION });
        }
        r.skip(2)?;
        let used = r.u32()? as usize;
        if (FIXED_BYTES..=MAX_HEADER_BYTES).contains(&used) { Ok(used) } else { Err(r.field("used")) }
    }

    /// Decodes and checks a header: magic, version, limits, checksum, keyed hash. `buf` holds at least the used bytes.
    /// Says nothing about what came before: that is [`FrameHeader::follows`].
    pub fn decode(buf: &[u8], secret: &Secret) -> Result<Self, FormatError> {
        let used = Self::peek_used(buf)?;
        let used_bytes = buf.get(..used).ok_or(FormatError::Truncated("frame"))?;
        let header = Self::decode_checked(used_bytes)?;
        let mut hashed = used_bytes.to_vec();
        hashed[CRC_AT..CRC_AT + 4].fill(0);
        hashed[CHAIN_AT..CHAIN_AT + 32].fill(0);
        if chain_of(secret, &hashed) != header.chain {
            return Err(FormatError::Hash("frame"));
        }
        Ok(header)
    }

    fn decode_checked(used: &[u8]) -> Result<Self, FormatError> {
        let mut zeroed = crc32fast::Hasher::new();
        zeroed.update(&used[..CRC_AT]);
        zeroed.update(&[0; 4]);
        zeroed.update(&used[CRC_AT + 4..]);
        let mut r = Reader::new("frame", used);
        r.skip(6)?;
        let kind = r.u8()?;
        let algorithm = r.u8()?;
        r.skip(4)?;
        if r.u32()? != zeroed.finalize() {
            return Err(FormatError::Checksum("frame"));
        }
        if algorithm != 1 {
            return Err(r.field("checksum algorithm"));
        }
        let kind = match kind {
            1 => FrameKind::Log,
            2 => FrameKind::Base,
            3 => FrameKind::Jump,
            _ => return Err(r.field("kind")),
        };
        Self::decode_body(kind, used.len(), r)
    }

    fn decode_body(kind: FrameKind, used: usize, mut r: Reader<'_>) -> Result<Self, FormatError> {
        let volume = VolumeId(r.array()?);
        let generation = GenId(r.array()?);
        let incarnation = Incarnation(r.u32()?);
        r.skip(4)?;
        let first = Lsn(r.u64()?);
        let records = r.count("records", MAX_RECORDS)?;
        let blocks = r.count("payload blocks", MAX_PAYLOAD_BLOCKS)?;
        if records == 0 || first == Lsn::ZERO || used != FIXED_BYTES + records * DESCRIPTOR_BYTES + blocks * 4 {
            return Err(r.field("records"));
        }
        let epoch = r.epoch()?;
        let committed = Lsn(r.u64()?);
        let durable = Lsn(r.u64()?);
        let mut peers = [PeerDurable::default(); MAX_PEERS];
        for peer in &mut peers {
            *peer = PeerDurable { site: SiteId(r.array()?), boot: BootId(r.array()?), lsn: Lsn(r.u64()?) };
        }
        let cipher = r.u16()?;
        r.skip(2)?;
        let key_epoch = r.u32()?;
        let wall_ms = r.u64()?;
        r.skip(64)?;
        let prev = Chain(r.array()?);
        let chain = Chain(r.array()?);
        let records = (0..records).map(|_| Descriptor::decode(&mut r)).collect::<Result<Vec<_>, _>>()?;
        let crcs = (0..blocks).map(|_| r.u32()).collect::<Result<Vec<_>, _>>()?;
        let sum: u64 = records.iter().map(|d| u64::from(d.payload_blocks())).sum();
        if sum != blocks as u64 {
            return Err(r.field("payload blocks"));
        }
        Ok(Self {
            kind,
            volume,
            generation,
            incarnation,
            first,
            epoch,
            committed,
            durable,
            peers,
            cipher,
            key_epoch,
            wall_ms,
            prev,
            chain,
            records,
            crcs,
        })
    }

    /// True when this frame continues a log that ends at `end`.
    pub fn follows(&self, end: &Boundary) -> bool {
        self.first == end.position.lsn.next() && self.prev == end.chain
    }
}

fn chain_of(secret: &Secret, used_with_zeroed_fields: &[u8]) -> Chain {
    Chain(*blake3::keyed_hash(&secret.0, used_with_zeroed_fields).as_bytes())
}

/// The chain value before the first frame of a volume.
pub fn chain_origin(secret: &Secret, volume: VolumeId) -> Chain {
    let mut hasher = blake3::Hasher::new_keyed(&secret.0);
    hasher.update(b"tidemark log origin");
    hasher.update(&volume.0);
    Chain(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Kind;
    use crate::types::BlockRange;

    fn header() -> FrameHeader {
        FrameHeader {
            kind: FrameKind::Log,
            volume: VolumeId([7; 16]),
            generation: GenId([8; 16]),
            incarnation: Incarnation(3),
            first: Lsn(42),
            epoch: Epoch { major: 2, minor: 1 },
            committed: Lsn(40),
            durable: Lsn(41),
            peers: [PeerDurable { site: SiteId([1; 16]), boot: BootId([2; 16]), lsn: Lsn(39) }, PeerDurable::default()],
            cipher: 0,
            key_epoch: 0,
            wall_ms: 1,
            prev: Chain([9; 32]),
            chain: Chain::default(),
            records: vec![
                Descriptor::over(Kind::Write, BlockRange::new(5, 2)),
                Descriptor::over(Kind::Discard, BlockRange::new(100, 1_000_000)),
            ],
            crcs: vec![1, 2],
        }
    }

    #[test]
    fn a_frame_proves_of_a_replica_only_what_the_replica_acknowledged() {
        let (replica, writer) = (SiteId([1; 16]), SiteId([3; 16]));
        assert_eq!(header().durable_at(replica, false), Lsn(39));
        assert_eq!(header().durable_at(replica, true), Lsn(39), "promoted, and nothing written yet");
        assert_eq!(header().durable_at(writer, false), Lsn(41));
        let alone = FrameHeader { peers: Default::default(), ..header() };
        assert_eq!(alone.durable_at(writer, true), Lsn(41));
        assert_eq!(alone.durable_at(replica, false), Lsn::ZERO);
    }

    #[test]
    fn a_header_survives_its_encoding() {
        let secret = Secret([5; 32]);
        let mut h = header();
        let bytes = h.encode(&secret);
        assert_eq!(bytes.len(), BLOCK);
        assert_eq!(FrameHeader::decode(&bytes, &secret).unwrap(), h);
        assert_eq!(h.last(), Lsn(43));
    }

    #[test]
    fn every_flipped_bit_of_the_used_bytes_is_found() {
        let secret = Secret([5; 32]);
        let mut h = header();
        let bytes = h.encode(&secret);
        for bit in 0..h.used_bytes() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&bad, &secret).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_of_another_secret_does_not_verify() {
        let bytes = header().encode(&Secret([5; 32]));
        assert_eq!(FrameHeader::decode(&bytes, &Secret([6; 32])), Err(FormatError::Hash("frame")));
    }

    #[test]
    fn a_payload_count_that_disagrees_with_the_records_is_refused() {
        let secret = Secret([5; 32]);
        let mut h = header();
        h.crcs.push(3);
        let bytes = h.encode(&secret);
        assert!(matches!(FrameHeader::decode(&bytes, &secret), Err(FormatError::Field(..))));
    }
}
