//! Sealing a suffix that the newer history does not have (R13), and going back to where the two parted (R14).
//!
//! The suffix is read and checked, written whole to a branch file, and only then is the log cut: the index is built anew from
//! the segments, because it remembers only the newest place of each block.
//!
//! A copy that an operator gave up is sealed too, before a seeding takes its log apart, whatever may have been acknowledged in it.

use bytes::Bytes;

use crate::event::{DiskDone, DiskOp, DiskResult, FileRef, Slot};
use crate::format::branch::{BranchClass, BranchHead};
use crate::format::frame::FrameHeader;
use crate::format::superblock::{CopyFlag, Cut};
use crate::group;
use crate::log::recovery::{Recovery, Start};
use crate::log::segments::FrameRef;
use crate::node::meta::AfterSuperblock;
use crate::node::{Node, Stage};
use crate::outbox::Route;
use crate::planted::{Planted, planted};
use crate::ship::{Hello, Refusal};
use crate::timeline::Relation;
use crate::types::{BLOCK, Boundary, Lsn, Nanos};
use crate::volume::index::Index;

/// The longest suffix that is sealed by itself, in bytes (it is in memory while it is sealed).
pub const MAX_BRANCH_BYTES: u64 = 256 << 20;
const READ_BYTES: u64 = 4 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Waits until nothing is on its way.
    Quiet,
    Reading,
    Writing,
    Saving,
    /// The log is being recovered up to the cut.
    Cutting,
    /// What was sealed is being removed. A process that dies here, or before the log goes on, finds the cut in the superblock and
    /// does not take for its log what is still there.
    Clearing,
}

/// What a sealing is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// The log goes back to where the histories part.
    Cut,
    /// The copy was given up and is seeded anew. What is longer than one branch becomes several.
    Seed,
}

/// A sealing under way.
#[derive(Debug)]
pub(super) struct Sealing {
    from: Boundary,
    /// What was read reaches to here.
    upto: Boundary,
    class: BranchClass,
    then: Then,
    phase: Phase,
    todo: Vec<(Slot, Vec<FrameRef>)>,
    data: Vec<Bytes>,
    has_data: bool,
}

impl Node {
    /// The peer's newer history parts from this one at `common`.
    pub(super) fn begin_sealing(&mut self, hello: &Hello, common: Lsn) {
        if self.diverged.is_some() {
            return self.refuse(Refusal::Diverged);
        }
        let Some(from) = self.boundary_at(common) else {
            return self.diverge("the histories part inside a frame or below the log");
        };
        if self.floor.at().position.lsn > common || self.superblock.visible_at > common {
            return self.diverge("the base image is already beyond the point where the histories part");
        }
        let lost = self.primary_durable_seen > common && !self.was_primary();
        if lost {
            return self.diverge("the primary came back without records that it had reported as durable");
        }
        let todo = self.suffix(common);
        let bytes: u64 = todo.iter().flat_map(|(_, f)| f).map(|f| u64::from(f.blocks) * BLOCK as u64).sum();
        if bytes > MAX_BRANCH_BYTES {
            return self.diverge("the suffix is too long to be sealed by itself");
        }
        self.seal(hello, from, todo, Then::Cut);
    }

    fn seal(&mut self, hello: &Hello, from: Boundary, todo: Vec<(Slot, Vec<FrameRef>)>, then: Then) {
        let demoted_itself = self.k.primary.is_none() && self.k.proposer == self.node;
        let wrote_it = self.was_primary() || demoted_itself;
        let unacked = !wrote_it || group::suffix_is_unacked(hello.site, &self.k, &hello.config);
        let class = match then {
            _ if !unacked || self.superblock.flag == CopyFlag::Diverged => BranchClass::Acked,
            Then::Cut => BranchClass::Unacked,
            // A copy that was given up may have taken the newer K already, which does not say who wrote the suffix.
            Then::Seed => BranchClass::Unknown,
        };
        let (phase, data) = (Phase::Quiet, Vec::new());
        self.sealing = Some(Sealing { from, upto: from, class, then, phase, todo, data, has_data: false });
    }

    /// Seals what a seeding would throw away: the records of this log that the peer's history lacks (R13). True while that goes
    /// on. What the base holds of them is not sealed, and an alarm says so.
    pub(super) fn seals_before_seeding(&mut self) -> bool {
        self.refresh_hello();
        let end = self.log.end();
        let Some(hello) = self.link.as_ref().and_then(|l| l.hello.clone()) else { return false };
        let common = match self.relation(&hello) {
            _ if self.sealed_upto == Some(end) || matches!(self.superblock.flag, CopyFlag::Seeding(_)) => return false,
            Relation::Common { mine_has_more: false, .. } => return false,
            Relation::Common { common, .. } => common.lsn,
            Relation::Unrelated => Lsn::ZERO,
        };
        let floor = self.floor.at();
        let start = common.max(floor.position.lsn);
        let todo = self.suffix(start);
        if floor.position.lsn > common {
            self.alarm(
                "branch_incomplete",
                "what the base holds of the records that the newer history lacks is not sealed",
            );
        }
        if todo.is_empty() {
            return false;
        }
        let below = || self.log.segments.boundary_below(start);
        let from = self.boundary_at(start).or_else(below).unwrap_or(floor);
        self.seal(&hello, from, todo, Then::Seed);
        true
    }

    /// This copy wrote its newest records itself.
    pub(super) fn was_primary(&self) -> bool {
        self.k.primary == Some(self.site)
    }

    pub(super) fn diverge(&mut self, why: &str) {
        if self.diverged.as_deref() != Some(why) {
            self.alarm("diverged", why);
        }
        self.diverged = Some(why.into());
        self.refuse(Refusal::Diverged);
    }

    fn suffix(&self, common: Lsn) -> Vec<(Slot, Vec<FrameRef>)> {
        let mut out: Vec<(Slot, Vec<FrameRef>)> = Vec::new();
        let mut bytes = 0;
        for segment in self.log.segments.live() {
            for frame in segment.frames.iter().filter(|f| f.last > common) {
                bytes += u64::from(frame.blocks) * BLOCK as u64;
                match out.last_mut() {
                    Some((slot, frames)) if *slot == segment.slot && bytes <= READ_BYTES => frames.push(*frame),
                    _ => {
                        bytes = u64::from(frame.blocks) * BLOCK as u64;
                        out.push((segment.slot, vec![*frame]));
                    }
                }
            }
        }
        out
    }

    /// Drives the sealing.
    pub(super) fn pump_sealing(&mut self, now: Nanos) {
        let waits = self.sealing.as_ref().is_some_and(|s| s.phase == Phase::Quiet);
        if waits && (self.log.is_full() || self.index_is_full()) {
            // What found no room was never completed, and finds none while the floor waits for the sealing.
            self.log.forget_pending();
        }
        let quiet = self.log.is_quiet()
            && self.floor.is_idle()
            && self.reads.len() == 0
            && self.catch_up.is_none()
            && !self.log.segments.is_clearing()
            // The table of segments is made anew from the slots that it knows.
            && !self.log.segments.is_preparing()
            && self.superblock_file.is_idle();
        let (cleared, durable) = (!self.log.segments.is_clearing(), self.log.durable());
        let Some(sealing) = &mut self.sealing else { return };
        match sealing.phase {
            // What stays is durable before the cut is: an earlier cut ends where the segment that followed it begins.
            Phase::Quiet if quiet && (durable >= sealing.from.position.lsn || sealing.then == Then::Seed) => {
                sealing.phase = Phase::Reading;
                let from = sealing.from.position.lsn;
                self.end_views_beyond(from, "what an open view shows is sealed in a branch, and leaves the log");
                self.read_suffix(now);
            }
            Phase::Clearing if cleared => {
                self.sealing = None;
                self.greet();
                self.match_peer(now);
                // What came meanwhile waits, and the receiver had its turn before.
                self.pump_again = true;
            }
            _ => {}
        }
    }

    fn read_suffix(&mut self, now: Nanos) {
        let Some(sealing) = &mut self.sealing else { return };
        let is_long = sealing.data.iter().map(|d| d.len() as u64).sum::<u64>() >= MAX_BRANCH_BYTES;
        let Some((slot, frames)) = sealing.todo.first().filter(|_| !is_long) else { return self.write_branch(now) };
        let blocks: u32 = frames.iter().map(|f| f.blocks).sum();
        let (file, offset) = (FileRef::Log(*slot), u64::from(frames[0].block) * BLOCK as u64);
        self.out.disk(now, Route::BranchRead, DiskOp::Read { file, offset, len: blocks * BLOCK as u32 });
    }

    pub(super) fn on_branch_read(&mut self, now: Nanos, result: DiskResult) {
        let Ok(DiskDone::Read(data)) = result else { return self.on_suffix_unreadable(now) };
        let secret = self.superblock.secret.clone();
        let Some(sealing) = &mut self.sealing else { return };
        let (_, frames) = sealing.todo.remove(0);
        let mut at = 0;
        let mut rotten = false;
        for frame in frames {
            let bytes = &data[at..at + frame.blocks as usize * BLOCK];
            let header = FrameHeader::decode(bytes, &secret).ok().filter(|h| {
                let payload = bytes.get(h.padded_bytes()..).unwrap_or_default();
                h.chain == frame.chain && h.matches([payload])
            });
            rotten |= header.is_none();
            sealing.has_data |= header.is_none_or(|h| h.records.iter().any(|r| r.kind.is_data()));
            at += frame.blocks as usize * BLOCK;
            sealing.upto = frame.boundary();
        }
        // It is kept as it reads: whoever opens the branch compares again.
        sealing.data.push(data);
        if rotten {
            self.alarm(
                "branch_incomplete",
                "part of the suffix does not read as it was written; it is sealed as it reads",
            );
        }
        self.read_suffix(now);
    }

    /// A copy that was given up may be so just because its device does not read: what it does read of its suffix is sealed.
    fn on_suffix_unreadable(&mut self, now: Nanos) {
        let Some(sealing) = &mut self.sealing else { return };
        if sealing.then == Then::Cut {
            self.sealing = None;
            return self.fail_copy("the suffix cannot be read");
        }
        sealing.todo.clear();
        self.alarm("branch_incomplete", "what follows in the suffix cannot be read and is not sealed");
        self.write_branch(now);
    }

    fn write_branch(&mut self, now: Nanos) {
        let (volume, sealed_at) = (self.superblock.volume, self.wall_at(now));
        let Some(sealing) = &mut self.sealing else { return };
        if sealing.then == Then::Seed && (!sealing.has_data || sealing.data.is_empty()) {
            return self.on_sealed_for_seeding(now);
        }
        if sealing.class != BranchClass::Unacked && sealing.has_data && sealing.then == Then::Cut {
            self.sealing = None;
            self.superblock.flag = CopyFlag::Diverged;
            self.save_superblock(now);
            return self.diverge("records that may have been acknowledged here are not in the newer history");
        }
        sealing.phase = Phase::Writing;
        let bytes = sealing.data.iter().map(|d| d.len() as u64).sum();
        let (class, from, tail) = (sealing.class, sealing.from, sealing.upto);
        let head = BranchHead { volume, class, from, tail, bytes, sealed_at };
        let mut data = vec![head.encode()];
        data.append(&mut sealing.data);
        let file = FileRef::Branch(self.superblock.branches + 1);
        self.out.disk(now, Route::BranchWrite, DiskOp::Replace { file, data });
    }

    pub(super) fn on_branch_written(&mut self, now: Nanos, ok: bool) {
        let Some(sealing) = &mut self.sealing else { return };
        if !ok {
            // No room for the branch: nothing was cut, the next contact tries again.
            self.sealing = None;
            self.alarm("branch_not_sealed", "the suffix could not be sealed; it stays where it is");
            return self.hang_up(Refusal::Storage);
        }
        self.superblock.branches += 1;
        if sealing.then == Then::Seed {
            sealing.from = sealing.upto;
            return self.read_suffix(now);
        }
        sealing.phase = Phase::Saving;
        let at = sealing.from.position;
        self.superblock.cut = Some(Cut { at, sequence: self.log.segments.next_sequence() });
        if self.superblock.flag == CopyFlag::Diverged {
            self.superblock.flag = CopyFlag::Complete;
        }
        self.diverged = None;
        self.reseed_wanted = false;
        self.required = self.required.min(at.lsn);
        self.log.forget_durable_above(at.lsn);
        self.keep_branch_at(at.lsn);
        self.after_superblock(now, AfterSuperblock::Cut);
    }

    /// All that could be sealed is: the superblock says so when the seeding has begun, and until then the same is sealed again.
    fn on_sealed_for_seeding(&mut self, now: Nanos) {
        self.sealing = None;
        self.sealed_upto = Some(self.log.end());
        self.match_peer(now);
    }

    /// The branch is safe and the superblock says so: the log is recovered up to the cut.
    pub(super) fn on_cut_saved(&mut self, now: Nanos) {
        let Some(sealing) = &mut self.sealing else { return };
        sealing.phase = Phase::Cutting;
        let start = Start {
            volume: self.superblock.volume,
            site: self.site,
            writes: self.k.written_by(self.site),
            secret: self.superblock.secret.clone(),
            slot_bytes: self.superblock.slot_bytes,
            floor: self.superblock.floor,
            durable: self.superblock.floor.position.lsn,
            discard: false,
            cut: self.superblock.cut,
        };
        let slots = self.log.segments.all_slots();
        let bytes = self.superblock.slot_bytes;
        let slots = slots.into_iter().map(|s| (s, bytes)).collect();
        self.index = Index::default();
        if !planted(Planted::LayoutKeptByACut) {
            self.space.back_to(&self.superblock.layout);
        }
        let (recovery, step) = Recovery::begin(now, start, slots, &mut self.out);
        if let Stage::Closing(id) = self.stage {
            self.close_after_cut = Some(id);
        }
        self.stage = Stage::Recovering(Box::new(recovery));
        if let Some(step) = step {
            self.on_recovery_step(now, step);
        }
    }

    /// True when the recovery that just ended was a cut.
    pub(super) fn is_cut(&mut self) -> bool {
        self.acks.forget_expected();
        let Some(sealing) = &mut self.sealing else { return false };
        sealing.phase = Phase::Clearing;
        true
    }
}
