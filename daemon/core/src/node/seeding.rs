//! Seeding, both sides; see [`crate::ship::seed`] for what makes it right.

use bytes::Bytes;

use crate::blocks::BlockSet;
use crate::event::{DiskDone, DiskOp, DiskResult, FileRef};
use crate::format::frame::chain_origin;
use crate::format::superblock::CopyFlag;
use crate::format::{block_crcs, crc32};
use crate::layout::Layout;
use crate::node::Node;
use crate::node::meta::AfterSuperblock;
use crate::node::volume_reads::{Purpose, joined};
use crate::outbox::Route;
use crate::planted::{Planted, planted};
use crate::ship::seed::{CHUNK_BYTES, MAP_BYTES, Seeded, Seeder};
use crate::ship::sender::Source;
use crate::ship::{BaseBlocks, ChainEntry, Difference, Hello, Message, Refusal, SeedBegin};
use crate::status::Role;
use crate::timeline::History;
use crate::types::{BLOCK, BlockRange, Boundary, ByteRange, Lsn, Nanos, Nonce, Position};

/// A log that is being seeded waits this long for room: a slot may be on its way.
const ROOM_MS: u64 = 5_000;
/// Base writes of a seeding under way at once.
const WRITES_IN_FLIGHT: usize = 16;

impl Node {
    // ---- the primary --------------------------------------------------------------------------------------------------

    /// The peer needs its first content, or lies beyond the reach of the log.
    pub(super) fn want_seeding(&mut self, now: Nanos, hello: &Hello) {
        // A K on its way to the disk may be one that lists the peer.
        if self.role != Role::Primary || !self.ships() || self.is_persisting_k() || !self.tell_k_first(hello) {
            return;
        }
        let epoch = hello.config.epoch;
        if self.seeder.is_some() {
            // K changed meanwhile: live frames carry the one that the peer holds now.
            if let Some(link) = &mut self.link {
                link.sender.confirmed = epoch;
            }
            return;
        }
        if self.k.has(hello.site) {
            if self.takes_back_expand(now, hello) {
                return;
            }
            // A member of S that lost its content: nothing may be acknowledged against it, and nobody else may decide.
            return self.refuse(Refusal::Suspect);
        }
        if self.waits_to_seed(now) {
            return;
        }
        self.link_refused = None;
        let seeder = self.new_seeder(hello);
        if let Some(link) = &mut self.link {
            link.sender.source = Source::Probe;
            link.sender.confirmed = epoch;
        }
        self.send(Message::SeedBegin(seeder.begin()));
        self.seeder = Some(seeder);
    }

    /// By a difference where the peer can take one and what changed is known, else of the whole.
    fn new_seeder(&mut self, hello: &Hello) -> Seeder {
        let resync = self.new_nonce();
        let mut from_log = BlockSet::default();
        for (lba, count, _) in self.index.iter() {
            from_log.insert(lba, lba + count);
        }
        match self.difference_for(hello) {
            Some(from) => {
                let changed = self.tracking.offer(resync, from, from_log);
                Seeder::difference(resync, from, changed)
            }
            None => {
                self.tracking.take_back();
                Seeder::new(resync, self.space.layout.blocks(), from_log)
            }
        }
    }

    /// The log no longer reaches back to where the peer is.
    pub(super) fn peer_out_of_reach(&mut self, now: Nanos) {
        if self.seeder.is_some() || self.seedings.ended_just_now(now) {
            self.seeding_failed(now, "the log was too small for what was written meanwhile");
        }
        if self.seeder.is_none() && self.tracking.may_know() {
            // Only its next greeting says where it is, and whether a difference leads on from there.
            return self.hang_up(Refusal::Gap);
        }
        let unfinished = self.seeder.as_ref().and_then(|s| Some(Difference { from: s.from?, resync: s.resync }));
        if let Some(link) = &mut self.link {
            link.sender.source = Source::Probe;
        }
        // Also a seeding whose live frames are gone before they left: what it sent so far leads nowhere.
        self.seeder = None;
        // Its greeting may be older than the last seeding; and should the next one have to wait, this is what it waits for.
        let Some(hello) = self.link.as_mut().and_then(|l| l.hello.as_mut()) else { return };
        (hello.needs_seed, hello.difference) = (true, unfinished);
        let hello = hello.clone();
        self.want_seeding(now, &hello);
    }

    /// Live frames flow only in the last pass.
    pub(super) fn seeding_blocks_stream(&self) -> bool {
        self.seeder.as_ref().is_some_and(|s| !s.is_last)
    }

    /// Reads and sends what the window allows; ends passes.
    pub(super) fn pump_seeding(&mut self, now: Nanos) {
        self.pump_seeded(now);
        if self.seeder.is_none() || self.role != Role::Primary || !self.ships() {
            return;
        }
        self.map_more(now);
        while self.link.as_ref().is_some_and(|l| l.gate.is_free(now))
            && let Some((resync, range)) = self.next_chunk()
        {
            self.read_blocks(now, vec![range], Purpose::Seed { resync });
        }
        self.end_pass();
    }

    fn map_more(&mut self, now: Nanos) {
        let base = self.space.base_size().min(self.space.layout.size());
        let Some(seeder) = self.seeder.as_mut().filter(|s| !s.mapping && s.todo.blocks() < 16 * 1024) else { return };
        let Some(at) = seeder.mapped_to else { return };
        if at >= base {
            seeder.mapped_to = None;
            return;
        }
        seeder.mapping = true;
        let range = ByteRange::new(at, MAP_BYTES.min(base - at));
        seeder.mapped_to = Some(range.end());
        let resync = seeder.resync;
        self.out.disk(now, Route::SeedMap { resync }, DiskOp::Map { range });
    }

    pub(super) fn on_seed_mapped(&mut self, resync: Nonce, result: DiskResult) {
        let Some(seeder) = self.seeder.as_mut().filter(|s| s.mapping && s.resync == resync) else { return };
        seeder.mapping = false;
        match result {
            Ok(DiskDone::Mapped(ranges)) => {
                let found: u64 = ranges.iter().map(|r| r.len).sum();
                for range in ranges {
                    seeder.on_mapped(range.first_block(), range.end_block());
                }
                seeder.done_bytes += MAP_BYTES.saturating_sub(found);
            }
            _ => self.fail_copy("the base image cannot be read"),
        }
    }

    fn next_chunk(&mut self) -> Option<(Nonce, BlockRange)> {
        let blocks = self.space.layout.blocks();
        let seeder = self.seeder.as_mut().filter(|s| s.may_send())?;
        loop {
            let (start, end) = seeder.todo.take_front(CHUNK_BYTES / BLOCK as u64)?;
            let end = end.min(blocks);
            if start < end {
                seeder.reading += 1;
                return Some((seeder.resync, BlockRange::new(start, (end - start) as u32)));
            }
        }
    }

    pub(super) fn on_seed_read(&mut self, now: Nanos, resync: Nonce, range: BlockRange, data: Option<Vec<Bytes>>) {
        let read_at = self.log.end().position;
        let Some(seeder) = self.seeder.as_mut().filter(|s| s.resync == resync) else { return };
        seeder.reading = seeder.reading.saturating_sub(1);
        seeder.visible_at = seeder.visible_at.max(read_at.lsn);
        seeder.done_bytes += range.bytes();
        let on_zeros = seeder.pass == 1 && (seeder.from.is_none() || planted(Planted::ZerosLeftOut));
        let Some(data) = data else { return self.fail_copy("the volume cannot be read for seeding") };
        let data = joined(data);
        for (at, blocks, is_zero) in runs(&data) {
            let range = BlockRange::new(range.start() + at as u64, blocks as u32);
            let piece = data.slice(at * BLOCK..(at + blocks) * BLOCK);
            // The receiver of a first content zeroed its whole base before the first pass.
            if is_zero && on_zeros {
                continue;
            }
            self.send_base(now, resync, range, read_at, if is_zero { Bytes::new() } else { piece });
        }
    }

    fn send_base(&mut self, now: Nanos, resync: Nonce, range: BlockRange, as_of: Position, data: Bytes) {
        let crcs = block_crcs(&data).collect();
        if let Some(seeder) = &mut self.seeder {
            seeder.sent_bytes += range.bytes();
        }
        self.counters.seeded_bytes += data.len() as u64;
        if let Some(link) = &mut self.link {
            link.gate.on_sent(now, data.len() as u64, self.superblock.policy.bandwidth);
        }
        self.send(Message::Base(BaseBlocks { resync, range, as_of, crcs, data }));
    }

    fn end_pass(&mut self) {
        let history = self.history.entries().to_vec();
        let Some(seeder) = self.seeder.as_mut().filter(|s| !s.ended && s.is_drained()) else { return };
        seeder.ended = true;
        let (resync, pass, visible_at) = (seeder.resync, seeder.pass, seeder.visible_at);
        self.send(Message::SeedEnd { resync, pass, visible_at, history });
    }

    pub(super) fn on_seed_ack(&mut self, now: Nanos, resync: Nonce, pass: u32, bytes: u64, done: bool) {
        let end = self.log.end();
        let Some(seeder) = self.seeder.as_mut().filter(|s| s.resync == resync && s.pass == pass) else { return };
        seeder.acked_bytes = bytes.min(seeder.sent_bytes);
        if !done || !seeder.ended {
            return;
        }
        if seeder.is_last {
            return self.on_peer_seeded(now);
        }
        seeder.next_pass(end);
        let begin = seeder.begin();
        self.send(Message::SeedBegin(begin));
        if let Some(link) = self.link.as_mut().filter(|_| begin.last) {
            link.sender.start(end.position.lsn);
        }
    }

    fn on_peer_seeded(&mut self, now: Nanos) {
        self.seeder = None;
        self.tracking.take_back();
        self.seedings.on_ended(now);
        if let Some(hello) = self.link.as_mut().and_then(|l| l.hello.as_mut()) {
            hello.needs_seed = false;
        }
        let policy = self.superblock.policy;
        self.send(Message::Policy(policy));
    }

    // ---- the receiver -------------------------------------------------------------------------------------------------

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
            if !self.base_has_come_to(now, from) {
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
    fn pump_seeded(&mut self, now: Nanos) {
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

/// Runs of zero and of other blocks: `(first, blocks, is_zero)`.
fn runs(data: &[u8]) -> Vec<(usize, usize, bool)> {
    let mut out: Vec<(usize, usize, bool)> = Vec::new();
    for (i, block) in data.chunks_exact(BLOCK).enumerate() {
        let is_zero = block == [0; BLOCK];
        match out.last_mut() {
            Some((_, n, zero)) if *zero == is_zero => *n += 1,
            _ => out.push((i, 1, is_zero)),
        }
    }
    out
}
