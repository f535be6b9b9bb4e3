//! Seeding, the side of the copy that is seeded; see [`crate::ship::seed`] for what makes it right.

use crate::event::{DiskOp, FileRef};
use crate::format::crc32;
use crate::format::frame::chain_origin;
use crate::format::superblock::CopyFlag;
use crate::layout::Layout;
use crate::node::Node;
use crate::node::meta::AfterSuperblock;
use crate::outbox::Route;
use crate::planted::{Planted, planted};
use crate::ship::seed::Seeded;
use crate::ship::{BaseBlocks, ChainEntry, Message, Refusal, SeedBegin};
use crate::timeline::History;
use crate::types::{BLOCK, BlockRange, Boundary, Lsn, Nanos, Nonce, Position};

/// A log that is being seeded waits this long for room: a slot may be on its way.
const ROOM_MS: u64 = 5_000;
/// Base writes of a seeding under way at once.
const WRITES_IN_FLIGHT: usize = 16;

impl Node {
    /// Live frames are taken while being seeded: only in the last pass.
    pub(super) fn takes_live_frames(&self) -> bool {
        self.seeded.as_ref().is_some_and(|s| s.is_last && s.ready)
    }

    pub(super) fn is_seed_beginning(&self) -> bool {
        self.seeded.as_ref().is_some_and(|s| !s.ready)
    }

    pub(super) fn on_seed_begin(&mut self, now: Nanos, begin: SeedBegin) -> Option<Message> {
        let SeedBegin { resync, pass, last, .. } = begin;
        let again = Message::SeedBegin(begin);
        let in_s = self.k.has(self.site) && self.flag() == CopyFlag::Complete;
        if self.leads() || in_s || self.k.primary == Some(self.site) {
            self.refuse(Refusal::State);
            return None;
        }
        if pass > 1 && self.seeded.as_ref().is_none_or(|s| s.resync != resync || s.pass + 1 != pass) {
            self.hang_up(Refusal::State);
            return None;
        }
        if let Some(from) = begin.from.filter(|_| pass == 1) {
            if !self.may_take_difference(from) {
                self.hang_up(Refusal::State);
                return None;
            }
            let waits = self.superblock.paused.floor || self.sealing.is_some();
            if waits || !self.base_has_come_to(now, from) {
                return Some(again);
            }
        }
        // Writes of an earlier seeding may still be on their way to the base: they must not land on this one's.
        let quiet = self.log.is_quiet()
            && self.floor.is_idle()
            && self.reads.len() == 0
            && self.catch_up.is_none()
            && self.seed_ops == 0;
        if !quiet || !self.superblock_file.is_idle() || self.sealing.is_some() {
            return Some(again);
        }
        let is_new = pass == 1 && begin.from.is_none();
        if !self.fits_base(now) || (is_new && self.seals_before_seeding()) {
            return Some(again);
        }
        self.link_refused = None;
        if let Some(link) = &mut self.link {
            link.strayed = false;
        }
        self.seeded = Some(Seeded::new(&begin));
        if pass == 1 {
            self.seeding_began_here = true;
            self.end_views("the copy is seeded anew");
            self.forget_copy(resync, begin.from);
            self.after_superblock(now, AfterSuperblock::SeedBegun);
        } else if last {
            self.take_layout();
            let from = self.superblock.floor;
            self.restart_log(begin.live_from);
            if self.superblock.is_difference {
                // What the base is still to be brought up to date from, should this pass not end.
                self.superblock.floor = from;
            }
            self.after_superblock(now, AfterSuperblock::SeedBegun);
        }
        None
    }

    /// True when there are bases for what the primary's volumes hold; else they are made first.
    fn fits_base(&mut self, now: Nanos) -> bool {
        let Some(layout) = self.leaders_layout() else { return true };
        let has_room = self.space.has_room(&layout);
        if !has_room && self.space.growing.as_ref() != Some(&layout) {
            self.make_room(now, layout);
        }
        has_room
    }

    fn leaders_layout(&self) -> Option<Layout> {
        self.link.as_ref().and_then(|l| l.hello.as_ref()).map(|h| h.layout.clone())
    }

    /// While a copy is seeded its volumes are the primary's. The shell is told when the superblock says so: until then it may be
    /// opened as what it was.
    fn take_layout(&mut self) {
        if let Some(layout) = self.leaders_layout().filter(|layout| self.space.has_room(layout)) {
            self.space.layout = layout.clone();
            self.superblock.layout = layout;
        }
    }

    /// From now on this copy is nothing until the seeding ends; what its base holds is kept where only a difference comes.
    fn forget_copy(&mut self, resync: Nonce, from: Option<Boundary>) {
        let secret = self.superblock.secret.clone();
        let origin = Boundary { position: Position::default(), chain: chain_origin(&secret, self.superblock.volume) };
        self.superblock.flag = CopyFlag::Seeding(resync);
        self.superblock.is_difference = from.is_some();
        (self.reseed_wanted, self.sealed_upto) = (false, None);
        self.diverged = None;
        self.damage = None;
        self.take_layout();
        self.restart_log(from.unwrap_or(origin));
    }

    fn restart_log(&mut self, at: Boundary) {
        self.log.restart(at);
        self.index.clear();
        self.floor.reset(at);
        self.committed = at.position.lsn;
        self.required = Lsn::ZERO;
        self.primary_durable_seen = Lsn::ZERO;
        self.written.clear();
        self.acks.forget_expected();
        self.tracking = Default::default();
        self.superblock.floor = at;
        self.superblock.floor_target = at.position.lsn;
        self.superblock.samples.clear();
        self.superblock.visible_at = Lsn::ZERO;
        self.superblock.cut = None;
        (self.branch_at, self.superblock.branch_at) = (None, None);
        self.history = History::new(match at.position.lsn {
            Lsn::ZERO => Vec::new(),
            lsn => vec![ChainEntry {
                generation: at.position.generation,
                incarnation: at.position.incarnation,
                fork: lsn.prev(),
            }],
        });
    }

    /// The superblock says "being seeded": now the base may change.
    pub(super) fn on_seed_begun(&mut self, now: Nanos) {
        let Some(seeded) = self.seeded.as_mut() else { return };
        if seeded.pass > 1 || seeded.is_difference {
            seeded.ready = true;
            return self.pump_receiver(now);
        }
        // Also what lies beyond the volume: it may grow, and its last block may be a part of one.
        let len = self.space.base_size();
        let op = DiskOp::Zero { file: FileRef::Base, offset: 0, len, deallocate: true };
        let range = BlockRange::new(0, 0);
        seeded.writing.push(range);
        self.seed_ops += 1;
        self.out.disk(now, Route::SeedWrite { range }, op);
    }

    pub(super) fn on_base_blocks(&mut self, now: Nanos, blocks: BaseBlocks) -> Option<BaseBlocks> {
        let current = self.seeded.as_ref().filter(|s| s.resync == blocks.resync);
        let Some(seeded) = current else {
            self.refuse(Refusal::State);
            return None;
        };
        let busy = seeded.writing.len() >= WRITES_IN_FLIGHT || seeded.writing.iter().any(|w| w.overlaps(blocks.range));
        if !seeded.ready || busy {
            return Some(blocks);
        }
        if blocks.range.end() > self.space.layout.blocks() {
            // It grew meanwhile.
            if !self.fits_base(now) {
                return Some(blocks);
            }
            self.take_layout();
            self.tell_layout();
        }
        if !self.is_whole(&blocks) {
            self.hang_up(Refusal::Payload);
            return None;
        }
        if planted(Planted::BaseOverNewer) {
            self.index.prune(blocks.range, Lsn(u64::MAX));
        }
        self.write_base(now, blocks);
        None
    }

    fn is_whole(&self, blocks: &BaseBlocks) -> bool {
        let end = self.space.layout.blocks();
        let len = blocks.data.len();
        blocks.range.count.0 > 0
            && blocks.range.end() <= end
            && (len == 0 || len as u64 == blocks.range.bytes())
            && len.is_multiple_of(BLOCK)
            && blocks.data.chunks_exact(BLOCK).map(crc32).eq(blocks.crcs.iter().copied())
    }

    fn write_base(&mut self, now: Nanos, blocks: BaseBlocks) {
        let bytes = blocks.range.bytes();
        let offset = blocks.range.start() * BLOCK as u64;
        let len = bytes.min(self.space.layout.size() - offset);
        let op = match blocks.data.is_empty() {
            true => DiskOp::Zero { file: FileRef::Base, offset, len, deallocate: true },
            false => DiskOp::Write {
                file: FileRef::Base,
                offset,
                bufs: vec![blocks.data.slice(..len as usize)],
                durable: false,
            },
        };
        if let Some(seeded) = &mut self.seeded {
            seeded.writing.push(blocks.range);
        }
        self.seed_ops += 1;
        self.out.disk(now, Route::SeedWrite { range: blocks.range }, op);
    }

    pub(super) fn on_seed_written(&mut self, now: Nanos, range: BlockRange, ok: bool) {
        self.seed_ops -= 1;
        if !ok {
            self.alarm("base_write_failed", "the base image cannot be written while it is seeded");
            self.seeded = None;
            return self.hang_up(Refusal::Storage);
        }
        let Some(seeded) = &mut self.seeded else { return self.pump_receiver(now) };
        seeded.writing.retain(|w| *w != range);
        seeded.done_bytes += range.bytes();
        if !seeded.ready && seeded.pass == 1 {
            seeded.ready = true;
        }
        let (resync, pass, bytes) = (seeded.resync, seeded.pass, seeded.done_bytes);
        self.send(Message::SeedAck { resync, pass, bytes, done: false });
        self.pump_receiver(now);
    }

    pub(super) fn on_seed_end(&mut self, resync: Nonce, pass: u32, at: Lsn, history: Vec<ChainEntry>) {
        let Some(seeded) = self.seeded.as_mut().filter(|s| s.resync == resync && s.pass == pass) else { return };
        seeded.end = Some(at);
        if seeded.is_last {
            self.history = History::new(history);
        }
    }

    /// The live frames of a last pass found no room in the log, and there is none to be had before the pass ends: it would wait
    /// for ever.
    fn give_up_without_room(&mut self, now: Nanos) {
        let waits = self.takes_live_frames()
            && !self.log.segments.is_clearing()
            && self.link.as_ref().is_some_and(|l| match l.backlog.front() {
                Some(Message::Append(append)) => !self.log.has_room(append.frame_bytes()),
                _ => false,
            });
        let Some(seeded) = self.seeded.as_mut().filter(|s| !s.saving) else { return };
        if !waits {
            seeded.full_since = None;
            return;
        }
        if now >= seeded.full_since.get_or_insert(now).after_ms(ROOM_MS) {
            self.seeded = None;
            self.alarm("log_full", "the log has no room for what is written while this copy is seeded");
            self.hang_up(Refusal::Storage);
        }
    }

    pub(super) fn seeding_timeout(&self) -> Option<Nanos> {
        let gives_up = self.seeded.as_ref().and_then(|s| s.full_since).map(|at| at.after_ms(ROOM_MS));
        [gives_up, self.seedings.timeout()].into_iter().flatten().min()
    }

    /// The receiver's side between messages: sync at the end of a pass, and the moment when the copy becomes visible.
    pub(super) fn pump_seeded(&mut self, now: Nanos) {
        self.give_up_without_room(now);
        let Some(seeded) = self.seeded.as_mut().filter(|s| s.ready && s.writing.is_empty()) else { return };
        let Some(end) = seeded.end else { return };
        if !seeded.syncing && !seeded.synced {
            seeded.syncing = true;
            self.seed_ops += 1;
            self.out.disk(now, Route::SeedSync, DiskOp::Sync { files: vec![FileRef::Base] });
            return;
        }
        if seeded.synced && seeded.is_last && !seeded.saving {
            // A log that this one replaced must not be found once the superblock says that there is one.
            let ready = self.log.durable() >= end && !self.log.segments.is_clearing();
            self.log.want_durable(end);
            self.log.poll_sync(now, &mut self.out);
            if ready {
                seeded.saving = true;
                self.superblock.flag = CopyFlag::Complete;
                self.superblock.visible_at = end;
                (self.superblock.is_difference, self.superblock.floor) = (false, self.floor.at());
                self.after_superblock(now, AfterSuperblock::SeedDone);
            }
        }
    }

    pub(super) fn on_seed_synced(&mut self, now: Nanos, ok: bool) {
        self.seed_ops -= 1;
        if !ok {
            self.seeded = None;
            return self.fail_copy("the base image cannot be synced");
        }
        let Some(seeded) = self.seeded.as_mut().filter(|s| s.syncing) else { return self.pump_receiver(now) };
        (seeded.syncing, seeded.synced) = (false, true);
        if !seeded.is_last {
            let (resync, pass, bytes) = (seeded.resync, seeded.pass, seeded.done_bytes);
            self.send(Message::SeedAck { resync, pass, bytes, done: true });
        }
        self.pump_seeded(now);
    }

    /// The copy is complete.
    pub(super) fn on_seed_done(&mut self, now: Nanos) {
        let Some(seeded) = self.seeded.take() else { return };
        self.send(Message::SeedAck { resync: seeded.resync, pass: seeded.pass, bytes: seeded.done_bytes, done: true });
        let end = self.log.end();
        if let Some(link) = &mut self.link {
            link.told = None;
            link.taken = Some(end);
        }
        self.identify_new_base(now);
        if self.reseed_wanted {
            // It was given up again meanwhile: the peer, which now takes it for whole, is told so once more.
            self.greet();
        }
    }
}
