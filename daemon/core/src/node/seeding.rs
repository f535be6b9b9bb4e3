//! Seeding, the primary's side; see [`crate::ship::seed`] for what makes it right.

use bytes::Bytes;

use crate::blocks::BlockSet;
use crate::event::{DiskDone, DiskOp, DiskResult};
use crate::format::block_crcs;
use crate::node::Node;
use crate::node::volume_reads::{Purpose, joined};
use crate::outbox::Route;
use crate::planted::{Planted, planted};
use crate::ship::seed::{CHUNK_BYTES, MAP_BYTES, Seeder};
use crate::ship::sender::Source;
use crate::ship::{BaseBlocks, Difference, Hello, Message, Refusal};
use crate::status::Role;
use crate::types::{BLOCK, BlockRange, ByteRange, Nanos, Nonce, Position};
impl Node {
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
