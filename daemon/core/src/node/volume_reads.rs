//! Reading blocks of the volume: through the index over the base, pieces gathered, checksums compared.
//!
//! A read of a segment pins it. A read of the base counts only when no advance of the floor began while it was under way:
//! otherwise the blocks may have been written meanwhile, and the read is done again.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::event::{DiskDone, DiskOp, DiskResult, FileRef, RequestId, Slot};
use crate::format::crc32;
use crate::node::Node;
use crate::outbox::Route;
use crate::planted::{Planted, planted};
use crate::types::{BLOCK, BlockRange, Lsn, Nanos, Nonce};
use crate::volume::index::{Crcs, Piece, Place};

/// What a finished read is for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// A frontend's read.
    Reply(RequestId),
    /// The edge blocks of a partial write: `head` is followed by `tail` when both are needed.
    Fill(RequestId),
    /// A chunk of just this seeding: what an earlier one read may be older than what the new one has sent.
    Seed { resync: Nonce },
    /// A range of a verification that this side began.
    VerifyAsk { lsn: Lsn },
    /// A range that the peer asks to compare.
    VerifyAnswer { id: u64, hash: [u8; 32], lsn: Lsn },
}

#[derive(Debug)]
enum Source {
    Log { slot: Slot, crcs: Crcs },
    Base,
}

#[derive(Debug)]
struct Part {
    data: Vec<Bytes>,
    len: usize,
    source: Option<Source>,
}

#[derive(Debug)]
struct Job {
    ranges: Vec<BlockRange>,
    purpose: Purpose,
    parts: Vec<Part>,
    left: usize,
    floor_starts: u64,
    again: bool,
    failed: bool,
}

/// The reads under way.
#[derive(Debug, Default)]
pub(super) struct Reads {
    jobs: BTreeMap<u64, Job>,
    next: u64,
}

impl Reads {
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }
}

const ZEROS: &[u8] = &[0; 64 * 1024];

/// `len` zero bytes in pieces of static memory.
pub(super) fn zeros(mut len: usize, out: &mut Vec<Bytes>) {
    while len > 0 {
        let n = len.min(ZEROS.len());
        out.push(Bytes::from_static(&ZEROS[..n]));
        len -= n;
    }
}

impl Node {
    /// Reads ranges of blocks, in order; ends in [`Node::on_read_done`], possibly before this returns.
    pub(super) fn read_blocks(&mut self, now: Nanos, ranges: Vec<BlockRange>, purpose: Purpose) {
        let id = self.reads.next;
        self.reads.next += 1;
        let job = Job {
            ranges,
            purpose,
            parts: Vec::new(),
            left: 0,
            floor_starts: self.floor_starts,
            again: false,
            failed: false,
        };
        self.reads.jobs.insert(id, job);
        self.start_job(now, id);
    }

    fn start_job(&mut self, now: Nanos, id: u64) {
        let Some(ranges) = self.reads.jobs.get(&id).map(|j| j.ranges.clone()) else { return };
        let pieces: Vec<Piece> = ranges.iter().flat_map(|r| self.index.lookup(*r)).collect();
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let part = self.start_part(now, id, parts.len(), &piece);
            parts.push(part);
        }
        let left = parts.iter().filter(|p| p.source.is_some()).count();
        let floor_starts = self.floor_starts;
        if let Some(job) = self.reads.jobs.get_mut(&id) {
            (job.parts, job.left, job.floor_starts, job.again) = (parts, left, floor_starts, false);
        }
        if left == 0 {
            self.finish_job(now, id);
        }
    }

    fn start_part(&mut self, now: Nanos, job: u64, part: usize, piece: &Piece) -> Part {
        let len = piece.count as usize * BLOCK;
        let mut data = Vec::new();
        let source = match &piece.found {
            None => self.read_base(now, job, part, piece, &mut data),
            Some((_, Place::Zero)) => {
                zeros(len, &mut data);
                None
            }
            Some((lsn, Place::Log { slot, block, crcs })) => match self.log.tail.holding(*lsn) {
                Some(frame) => {
                    frame.slice(*block, piece.count, &mut data);
                    None
                }
                None => {
                    if !planted(Planted::ReadFromRecycledSegment) {
                        self.log.segments.pin(*slot, 1);
                    }
                    let (file, offset) = (FileRef::Log(*slot), u64::from(*block) * BLOCK as u64);
                    self.out.disk(now, Route::Read { job, part }, DiskOp::Read { file, offset, len: len as u32 });
                    Some(Source::Log { slot: *slot, crcs: crcs.clone() })
                }
            },
        };
        Part { data, len, source }
    }

    /// The base may end inside a block, or before it (grown in the log, not yet in the base): the rest is zeros.
    fn read_base(&mut self, now: Nanos, job: u64, part: usize, piece: &Piece, data: &mut Vec<Bytes>) -> Option<Source> {
        let offset = piece.lba * BLOCK as u64;
        let end = (offset + u64::from(piece.count) * BLOCK as u64).min(self.space.base_size());
        if end <= offset {
            zeros(piece.count as usize * BLOCK, data);
            return None;
        }
        let op = DiskOp::Read { file: FileRef::Base, offset, len: (end - offset) as u32 };
        self.out.disk(now, Route::Read { job, part }, op);
        Some(Source::Base)
    }

    pub(super) fn on_read_part(&mut self, now: Nanos, id: u64, part: usize, result: DiskResult) {
        let Some(job) = self.reads.jobs.get_mut(&id) else { return };
        let target = &mut job.parts[part];
        let source = target.source.take();
        job.left -= 1;
        let data = match result {
            Ok(DiskDone::Read(data)) => Some(data),
            _ => None,
        };
        let mut bad_crc = false;
        match (data, source) {
            (Some(data), Some(Source::Log { slot, crcs })) => {
                bad_crc = !crcs_match(&data, &crcs);
                job.failed |= bad_crc;
                target.data = vec![data];
                self.unpin(slot);
            }
            (None, Some(Source::Log { slot, .. })) => {
                job.failed = true;
                self.unpin(slot);
            }
            (Some(data), _) => {
                let missing = target.len - data.len().min(target.len);
                target.data = vec![data];
                zeros(missing, &mut target.data);
                job.again |= job.floor_starts != self.floor_starts;
            }
            (None, _) => job.failed = true,
        }
        if bad_crc {
            self.counters.checksum_errors += 1;
            match self.damage {
                Some(_) => self.alarm("log_rot", "a block of the log does not match its checksum; it is not served"),
                None => self.log_is_rotten("it is not served"),
            }
        }
        if self.reads.jobs.get(&id).is_some_and(|j| j.left == 0) {
            self.finish_job(now, id);
        }
    }

    fn unpin(&mut self, slot: Slot) {
        if !planted(Planted::ReadFromRecycledSegment) {
            self.log.segments.pin(slot, -1);
        }
    }

    fn finish_job(&mut self, now: Nanos, id: u64) {
        if self.reads.jobs.get(&id).is_some_and(|j| j.again && !j.failed) {
            return self.start_job(now, id);
        }
        let Some(job) = self.reads.jobs.remove(&id) else { return };
        let data = job.parts.into_iter().flat_map(|p| p.data).collect();
        self.on_read_done(now, &job.ranges, job.purpose, if job.failed { None } else { Some(data) });
    }

    fn on_read_done(&mut self, now: Nanos, ranges: &[BlockRange], purpose: Purpose, data: Option<Vec<Bytes>>) {
        match purpose {
            Purpose::Reply(id) => self.on_reply_read(id, data),
            Purpose::Fill(id) => self.on_filled(now, id, data),
            Purpose::Seed { resync } => self.on_seed_read(now, resync, ranges[0], data),
            Purpose::VerifyAsk { lsn } => self.on_verify_read(ranges[0], lsn, data),
            Purpose::VerifyAnswer { id, hash, lsn } => self.on_verify_answer_read(ranges[0], id, hash, lsn, data),
        }
    }
}

fn crcs_match(data: &Bytes, crcs: &Crcs) -> bool {
    if planted(Planted::SkipPayloadCrc) || planted(Planted::ReadFromRecycledSegment) {
        return true;
    }
    data.chunks_exact(BLOCK).enumerate().all(|(i, block)| crc32(block) == crcs.at(i as u32))
}

/// The pieces as one; a single one is not copied.
pub(super) fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    match &mut pieces[..] {
        [one] => std::mem::take(one),
        several => several.concat().into(),
    }
}

/// The bytes `[skip, skip + len)` of the pieces.
pub(super) fn trim(pieces: Vec<Bytes>, mut skip: usize, mut len: usize) -> Vec<Bytes> {
    let mut out = Vec::with_capacity(pieces.len());
    for piece in pieces {
        if len == 0 {
            break;
        }
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        let take = len.min(piece.len() - skip);
        out.push(piece.slice(skip..skip + take));
        len -= take;
        skip = 0;
    }
    out
}
