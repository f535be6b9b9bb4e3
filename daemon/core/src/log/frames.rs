//! Packing: waiting records become a frame, as many as fit.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::config::Config;
use crate::format::block_crcs;
use crate::format::codec::{FormatError, Reader, Writer};
use crate::format::config::Fork;
use crate::format::frame::{FIXED_BYTES, FrameHeader, FrameKind, MAX_PEERS, MAX_RECORDS, PeerDurable};
use crate::format::record::{DESCRIPTOR_BYTES, Descriptor, Kind};
use crate::layout::{Change, Layout};
use crate::types::{BLOCK, Boundary, Chain, GenId, Incarnation, Lsn, Secret, SiteId, VolumeId};

/// A frame's payload is at most this: larger groups gain nothing and delay the first of them.
pub const FRAME_BYTES: u64 = 1 << 20;

/// The payload limit for a slot size: a frame never takes more than a quarter of a segment.
pub fn frame_limit(slot_bytes: u64) -> u64 {
    FRAME_BYTES.min(slot_bytes / 4 / BLOCK as u64 * BLOCK as u64).max(BLOCK as u64)
}

/// A record that has a number and no frame yet.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it is.
    pub descriptor: Descriptor,
    /// Its payload, whole blocks; empty for ZERO, DISCARD, RESIZE.
    pub payload: Bytes,
    /// For a FORK: the generation and incarnation that begin with it.
    pub fork: Option<(GenId, Incarnation)>,
}

impl Record {
    /// A record of the running incarnation.
    pub fn new(descriptor: Descriptor, payload: Bytes) -> Self {
        Self { descriptor, payload, fork: None }
    }

    /// The record that makes the group's volumes those of `layout`.
    pub fn layout(layout: &Layout) -> Self {
        let mut w = Writer::default();
        layout.encode(&mut w);
        w.zeros(w.buf.len().next_multiple_of(BLOCK) - w.buf.len());
        let blocks = (w.buf.len() / BLOCK) as u32;
        Self::new(Descriptor { kind: Kind::Layout, flags: 0, blocks, lba: 0 }, w.buf.into())
    }
}

/// What a frame makes of the layout: the last of its records that says so. `payload` are its payload blocks in whole pieces.
/// An error when a LAYOUT is none.
pub fn change_in(header: &FrameHeader, payload: &[Bytes]) -> Result<Option<Change>, FormatError> {
    let (mut change, mut block) = (None, 0usize);
    for record in &header.records {
        let blocks = record.payload_blocks() as usize;
        match record.kind {
            Kind::Resize => change = Some(Change::Size(record.lba)),
            Kind::Layout => {
                let bytes = gather(payload, block * BLOCK, blocks * BLOCK);
                change = Some(Change::Layout(Layout::decode(&mut Reader::new("layout", &bytes))?));
            }
            _ => {}
        }
        block += blocks;
    }
    Ok(change)
}

/// The K under which `site` began an incarnation with this frame, when it did; of a frame whose payload was checked.
pub fn opened_under(header: &FrameHeader, payload: &[Bytes], site: SiteId) -> Option<Config> {
    // A FORK is alone in its frame.
    header.records.first().filter(|record| record.kind == Kind::Fork)?;
    Fork::decode(&gather(payload, 0, BLOCK)).ok().filter(|fork| fork.site == site).map(|fork| fork.config)
}

fn gather(pieces: &[Bytes], mut skip: usize, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    for piece in pieces {
        let from = skip.min(piece.len());
        skip -= from;
        let take = (len - out.len()).min(piece.len() - from);
        out.extend_from_slice(&piece[from..from + take]);
    }
    out
}

/// What a frame says besides its records.
#[derive(Clone, Debug)]
pub struct FrameContext {
    /// Epoch of K.
    pub epoch: crate::types::Epoch,
    /// Committed now.
    pub committed: Lsn,
    /// Durable here now.
    pub durable: Lsn,
    /// What peers acknowledged.
    pub peers: [PeerDurable; MAX_PEERS],
    /// Wall clock, ms since 1970.
    pub wall_ms: u64,
}

/// Takes records from the front of `pending` that fit into `room` bytes and makes a frame of them: header, its encoding, and
/// the payload pieces. A FORK stands alone in its frame, as it changes the incarnation.
pub fn build(
    pending: &mut VecDeque<Record>,
    room: u64,
    end: Boundary,
    volume: VolumeId,
    secret: &Secret,
    context: &FrameContext,
) -> Option<(FrameHeader, Bytes, Vec<Bytes>)> {
    let count = fitting(pending, room);
    let fork = pending.front()?.fork;
    let (generation, incarnation) = fork.unwrap_or((end.position.generation, end.position.incarnation));
    let mut header = FrameHeader {
        kind: FrameKind::Log,
        volume,
        generation,
        incarnation,
        first: end.position.lsn.next(),
        epoch: context.epoch,
        committed: context.committed,
        durable: context.durable,
        peers: context.peers,
        cipher: 0,
        key_epoch: 0,
        wall_ms: context.wall_ms,
        prev: end.chain,
        chain: Chain::default(),
        records: Vec::with_capacity(count),
        crcs: Vec::new(),
    };
    let mut payload = Vec::with_capacity(count);
    for record in pending.drain(..count) {
        header.crcs.extend(block_crcs(&record.payload));
        header.records.push(record.descriptor);
        if !record.payload.is_empty() {
            payload.push(record.payload);
        }
    }
    let bytes = header.encode(secret);
    Some((header, bytes, payload))
}

fn fitting(pending: &VecDeque<Record>, room: u64) -> usize {
    let (mut count, mut used, mut payload) = (0, FIXED_BYTES, 0usize);
    for record in pending.iter().take(MAX_RECORDS) {
        let is_fork = record.descriptor.kind == Kind::Fork;
        used += DESCRIPTOR_BYTES + record.payload.len() / BLOCK * 4;
        payload += record.payload.len();
        let total = used.div_ceil(BLOCK) * BLOCK + payload;
        if count > 0 && (is_fork || total as u64 > room) {
            break;
        }
        count += 1;
        if is_fork {
            break;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BlockRange, Epoch};

    fn write(lba: u64, blocks: u32) -> Record {
        let payload = Bytes::from(vec![lba as u8; blocks as usize * BLOCK]);
        Record::new(Descriptor::over(Kind::Write, BlockRange::new(lba, blocks)), payload)
    }

    fn context() -> FrameContext {
        FrameContext {
            epoch: Epoch::default(),
            committed: Lsn(0),
            durable: Lsn(0),
            peers: Default::default(),
            wall_ms: 0,
        }
    }

    fn build_one(pending: &mut VecDeque<Record>, room: u64) -> FrameHeader {
        build(pending, room, Boundary::default(), VolumeId([1; 16]), &Secret([2; 32]), &context()).unwrap().0
    }

    #[test]
    fn a_frame_takes_all_that_waits_up_to_its_room() {
        let mut pending: VecDeque<_> = (0..10).map(|i| write(i, 2)).collect();
        let header = build_one(&mut pending, 7 * BLOCK as u64);
        assert_eq!((header.records.len(), header.crcs.len(), pending.len()), (3, 6, 7));
    }

    #[test]
    fn a_fork_stands_alone() {
        let mut pending: VecDeque<_> = [write(0, 1), write(1, 1)].into();
        let mut fork = write(0, 1);
        fork.descriptor.kind = Kind::Fork;
        fork.fork = Some((GenId([9; 16]), Incarnation(4)));
        pending.insert(1, fork);
        assert_eq!(build_one(&mut pending, 1 << 20).records.len(), 1);
        let header = build_one(&mut pending, 1 << 20);
        assert_eq!((header.records.len(), header.incarnation), (1, Incarnation(4)));
        assert_eq!(pending.len(), 1);
    }
}
