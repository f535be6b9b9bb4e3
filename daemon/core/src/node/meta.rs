//! The two small files that decide what a copy is: superblock and K. Written slot by slot, synced, and only then believed.

use crate::config::Config;
use crate::event::{ConnId, DiskOp, FileRef, VerbId};
use crate::format::config as k_format;
use crate::format::twin::TwinKind;
use crate::node::Node;
use crate::outbox::{Outbox, Route};
use crate::ship::Refusal;
use crate::types::{Lsn, Nanos};

/// The state of a twin file.
#[derive(Debug)]
pub(super) struct TwinFile {
    counter: u64,
    /// Version asked for, version being written, version durable.
    wanted: u64,
    writing: Option<u64>,
    saved: u64,
    failed: bool,
}

impl TwinFile {
    pub(super) fn new(counter: u64) -> Self {
        Self { counter, wanted: 0, writing: None, saved: 0, failed: false }
    }

    /// Asks for the present content to be saved; gives the version to wait for.
    pub(super) fn want(&mut self) -> u64 {
        self.wanted += 1;
        self.wanted
    }

    pub(super) fn is_saved(&self, version: u64) -> bool {
        self.saved >= version
    }

    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_none() && self.saved == self.wanted
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    fn begin(&mut self) -> bool {
        if self.writing.is_some() || self.saved == self.wanted || self.failed {
            return false;
        }
        self.writing = Some(self.wanted);
        self.counter += 1;
        true
    }

    fn write(&self, now: Nanos, kind: TwinKind, file: FileRef, route: Route, content: &[u8], out: &mut Outbox) {
        let bufs = vec![kind.encode(self.counter, content)];
        out.disk(now, route, DiskOp::Write { file, offset: kind.offset(self.counter), bufs, durable: false });
    }

    fn end(&mut self) {
        if let Some(version) = self.writing.take() {
            self.saved = version;
        }
    }
}

/// What goes on when a version of the superblock is durable.
#[derive(Debug)]
pub(super) enum AfterSuperblock {
    Floor,
    SeedBegun,
    SeedDone,
    Cut,
    Policy(VerbId),
    BranchAt(Option<Lsn>),
    Verb(VerbId),
    Closed,
}

/// What goes on when a K is durable.
#[derive(Debug)]
pub(super) enum AfterK {
    /// A change of the primary's own (see `changes`).
    Change,
    /// The peer's message is answered; `by_all`: when every member of the group has it.
    Answer { conn: ConnId, config: Config, by_all: bool },
    /// Own proposal found at the peer.
    Adopted,
    /// A promotion or a forced decision: open.
    Open,
    /// The witness accepted it.
    Arbitrated,
    /// A K that its file had lost: go on opening.
    PutBack,
    /// A demotion.
    Demoted(VerbId),
    /// The leader of this member's site has it.
    Led,
}

impl Node {
    /// Saves the superblock with the present state; gives the version to wait for.
    pub(super) fn save_superblock(&mut self, now: Nanos) -> u64 {
        let version = self.superblock_file.want();
        self.write_superblock(now);
        version
    }

    pub(super) fn after_superblock(&mut self, now: Nanos, then: AfterSuperblock) {
        let version = self.save_superblock(now);
        self.after_superblock.push((version, then));
    }

    fn write_superblock(&mut self, now: Nanos) {
        if !self.superblock_file.begin() {
            return;
        }
        self.superblock.durable = self.log.durable().max(self.required);
        self.superblock.clean = self.closing_saved;
        self.superblock.boot = self.boot;
        self.superblock.history = self.history.entries().to_vec();
        let content = self.superblock.encode();
        let (kind, file) = (self.superblock.kind(), FileRef::Superblock);
        self.space.on_saving(&self.superblock.layout, self.superblock.floor.position.lsn);
        self.superblock_file.write(now, kind, file, Route::SuperblockWrite, &content, &mut self.out);
    }

    pub(super) fn on_superblock(&mut self, now: Nanos, route: Route, ok: bool) {
        if !ok {
            self.superblock_file.failed = true;
            return self.fail_copy("the superblock cannot be written");
        }
        if route == Route::SuperblockWrite {
            self.out.disk(now, Route::SuperblockSync, DiskOp::Sync { files: vec![FileRef::Superblock] });
            return;
        }
        self.superblock_file.end();
        self.space.on_saved();
        self.tell_layout();
        let (ready, later) = std::mem::take(&mut self.after_superblock)
            .into_iter()
            .partition(|(version, _)| self.superblock_file.is_saved(*version));
        self.after_superblock = later;
        let ready: Vec<(u64, AfterSuperblock)> = ready;
        for (_, then) in ready {
            self.run_after_superblock(now, then);
        }
        self.write_superblock(now);
    }

    fn run_after_superblock(&mut self, now: Nanos, then: AfterSuperblock) {
        match then {
            AfterSuperblock::Floor => self.on_floor_saved(),
            AfterSuperblock::SeedBegun => self.on_seed_begun(now),
            AfterSuperblock::SeedDone => self.on_seed_done(now),
            AfterSuperblock::Cut => self.on_cut_saved(now),
            AfterSuperblock::BranchAt(at) => self.on_branch_at_saved(at),
            AfterSuperblock::Policy(id) => self.on_policy_saved(now, id),
            AfterSuperblock::Verb(id) => self.finish_waiting(now, id),
            AfterSuperblock::Closed => self.on_closed(now),
        }
    }

    /// Persists a new K; it is in force when durable. One at a time.
    pub(super) fn persist_k(&mut self, now: Nanos, config: Config, then: AfterK) {
        assert!(self.k_next.is_none(), "one K is persisted at a time");
        self.k_next = Some(config);
        self.after_k.push(then);
        self.k_file.want();
        self.write_k(now);
    }

    /// True while a new K is on its way to the disk.
    pub(super) fn is_persisting_k(&self) -> bool {
        self.k_next.is_some()
    }

    fn put_in_force(&mut self, now: Nanos, next: Config) {
        // Nobody was asked: the witness accepted what an agent proposed by itself.
        let by_witness = next.epoch.major > self.k.epoch.major && !next.forced;
        let is_automatic = by_witness && next.since != self.k.since;
        if next.primary != Some(self.site) {
            self.end_pause_of_shipping(now);
        }
        self.k = next;
        if self.arbiter.on_new_k(now, is_automatic) {
            let why = "the configuration changed three times of late: a site joins S or takes over by itself only after a \
                       while without a change, or when a person has set the policy or promoted";
            self.alarm("flapping", why);
        }
    }

    fn write_k(&mut self, now: Nanos) {
        let Some(next) = &self.k_next else { return };
        let content = k_format::encode_file(next);
        if self.k_file.begin() {
            self.k_file.write(now, k_format::FILE, FileRef::Config, Route::ConfigWrite, &content, &mut self.out);
        }
    }

    pub(super) fn on_config_file(&mut self, now: Nanos, route: Route, ok: bool) {
        if !ok {
            self.k_file.failed = true;
            self.fail_copy("the configuration cannot be written");
            if self.after_k.iter().any(|then| matches!(then, AfterK::Answer { .. })) {
                // Who asked is not to wait for the answer.
                self.hang_up(Refusal::Storage);
            }
            return;
        }
        if route == Route::ConfigWrite {
            self.out.disk(now, Route::ConfigSync, DiskOp::Sync { files: vec![FileRef::Config] });
            return;
        }
        self.k_file.end();
        if let Some(next) = self.k_next.take() {
            self.put_in_force(now, next);
        }
        for then in std::mem::take(&mut self.after_k) {
            self.run_after_k(now, then);
        }
    }
}
