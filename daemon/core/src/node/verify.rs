//! Comparing both copies without stopping I/O. The primary hashes a range, sends the hash on the ordered stream, and the
//! follower hashes the same range as of that place in the stream. A range that changes meanwhile is asked again. Equal content
//! at any position, with equal logs after it, is equal content at the end.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::event::VerbId;
use crate::node::Node;
use crate::node::volume_reads::Purpose;
use crate::ship::sender::Source;
use crate::ship::{Message, VerifyVerdict};
use crate::types::{BlockRange, Lsn, Nanos};
use crate::verb::{VerbError, VerbOk};

/// Blocks compared at a time.
const RANGE_BLOCKS: u64 = 256;
/// Ranges under way at once.
const IN_FLIGHT: usize = 8;
/// Differences reported.
const MAX_DIFFERING: usize = 64;

/// A comparison under way, on the primary.
#[derive(Debug)]
pub(super) struct Verify {
    verb: VerbId,
    next: u64,
    blocks: u64,
    compared: u64,
    reading: usize,
    again: VecDeque<BlockRange>,
    ready: VecDeque<(BlockRange, Lsn, [u8; 32])>,
    asked: BTreeMap<u64, BlockRange>,
    next_id: u64,
    differing: Vec<BlockRange>,
}

impl Node {
    pub(super) fn judge_verify(&self) -> Result<(), VerbError> {
        self.need_primary("copies are compared at the primary")?;
        let streams = self.link.as_ref().is_some_and(|l| l.sender.source == Source::Stream);
        if !streams || self.seeder.is_some() || !self.ships() {
            let (state, hint) = ("not streaming to its peer".into(), "wait until it is in step".into());
            return Err(VerbError::CopyState { state, hint });
        }
        if self.verify.is_some() {
            return Err(VerbError::Invalid("a comparison is already under way".into()));
        }
        Ok(())
    }

    pub(super) fn begin_verify(&mut self, verb: VerbId) {
        self.verify = Some(Verify {
            verb,
            next: 0,
            blocks: self.space.layout.blocks(),
            compared: 0,
            reading: 0,
            again: VecDeque::new(),
            ready: VecDeque::new(),
            asked: BTreeMap::new(),
            next_id: 1,
            differing: Vec::new(),
        });
    }

    pub(super) fn pump_verify(&mut self, now: Nanos) {
        while let Some(range) = self.next_range() {
            let lsn = self.log.end().position.lsn;
            self.read_blocks(now, vec![range], Purpose::VerifyAsk { lsn });
        }
        while self.ask_next() {}
        self.end_verify();
    }

    fn next_range(&mut self) -> Option<BlockRange> {
        let v = self.verify.as_mut()?;
        if v.reading + v.ready.len() + v.asked.len() >= IN_FLIGHT {
            return None;
        }
        let range = match v.again.pop_front() {
            Some(range) => range,
            None if v.next < v.blocks => {
                let count = RANGE_BLOCKS.min(v.blocks - v.next);
                v.next += count;
                BlockRange::new(v.next - count, count as u32)
            }
            None => return None,
        };
        v.reading += 1;
        Some(range)
    }

    pub(super) fn on_verify_read(&mut self, range: BlockRange, lsn: Lsn, data: Option<Vec<Bytes>>) {
        let Some(v) = &mut self.verify else { return };
        v.reading -= 1;
        match data {
            Some(data) => v.ready.push_back((range, lsn, hash(&data))),
            None => v.differing.push(range),
        }
    }

    /// The range may hold records after `lsn`: the index has one, or the base took the index's past it.
    fn may_be_newer(&self, range: BlockRange, lsn: Lsn) -> bool {
        self.index.newest(range) > lsn || self.floor.at().position.lsn > lsn
    }

    /// Sends a hash once every record that it saw has left, and only if nothing newer touched the range.
    fn ask_next(&mut self) -> bool {
        let Some((range, lsn, hash)) = self.verify.as_ref().and_then(|v| v.ready.front().copied()) else {
            return false;
        };
        let sent = self.link.as_ref().is_some_and(|l| l.sender.next > lsn && l.sender.source != Source::Probe);
        if !sent {
            return false;
        }
        let changed = self.may_be_newer(range, lsn);
        let Some(v) = &mut self.verify else { return false };
        v.ready.pop_front();
        if changed {
            v.again.push_back(range);
            return true;
        }
        let id = v.next_id;
        v.next_id += 1;
        v.asked.insert(id, range);
        self.send(Message::VerifyRange { id, range, lsn, hash });
        true
    }

    pub(super) fn on_verify_verdict(&mut self, id: u64, verdict: VerifyVerdict) {
        let Some(v) = &mut self.verify else { return };
        let Some(range) = v.asked.remove(&id) else { return };
        match verdict {
            VerifyVerdict::Equal => v.compared += u64::from(range.count.0),
            VerifyVerdict::Busy => v.again.push_back(range),
            VerifyVerdict::Different => {
                v.compared += u64::from(range.count.0);
                if v.differing.len() < MAX_DIFFERING {
                    v.differing.push(range);
                }
            }
        }
    }

    fn end_verify(&mut self) {
        let done = self.verify.as_ref().is_some_and(|v| {
            v.next >= v.blocks && v.reading == 0 && v.again.is_empty() && v.ready.is_empty() && v.asked.is_empty()
        });
        if let Some(v) = self.verify.take_if(|_| done) {
            let lsn = self.log.end().position.lsn;
            if !v.differing.is_empty() {
                self.alarm("copies_differ", format!("{} ranges differ between the sites", v.differing.len()));
            }
            let ok = VerbOk::Verified { blocks: v.compared, lsn, differing: v.differing };
            self.out.push(crate::event::Output::Verb(v.verb, Ok(ok)));
        }
    }

    /// Progress of a comparison: blocks compared, blocks in all.
    pub(super) fn verify_progress(&self) -> Option<(u64, u64)> {
        self.verify.as_ref().map(|v| (v.compared, v.blocks))
    }

    pub(super) fn verify_lost(&mut self) {
        if let Some(v) = self.verify.take() {
            let error = VerbError::Interrupted("the connection to the peer was lost".into());
            self.out.push(crate::event::Output::Verb(v.verb, Err(error)));
        }
    }

    // ---- the follower -------------------------------------------------------------------------------------------------

    pub(super) fn on_verify_range(&mut self, now: Nanos, id: u64, range: BlockRange, lsn: Lsn, hash: [u8; 32]) {
        let inside = range.count.0 > 0
            && u64::from(range.count.0) <= RANGE_BLOCKS
            && range.lba.0.checked_add(u64::from(range.count.0)).is_some_and(|end| end <= self.space.layout.blocks());
        if !inside || self.leads() || self.is_no_prefix() || self.log.end().position.lsn < lsn {
            return self.send(Message::VerifyAnswer { id, verdict: VerifyVerdict::Busy });
        }
        self.read_blocks(now, vec![range], Purpose::VerifyAnswer { id, hash, lsn });
    }

    pub(super) fn on_verify_answer_read(
        &mut self,
        range: BlockRange,
        id: u64,
        expected: [u8; 32],
        lsn: Lsn,
        data: Option<Vec<Bytes>>,
    ) {
        let verdict = match data {
            _ if self.may_be_newer(range, lsn) => VerifyVerdict::Busy,
            Some(data) if hash(&data) == expected => VerifyVerdict::Equal,
            _ => VerifyVerdict::Different,
        };
        self.send(Message::VerifyAnswer { id, verdict });
    }
}

fn hash(data: &[Bytes]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for piece in data {
        hasher.update(piece);
    }
    *hasher.finalize().as_bytes()
}
