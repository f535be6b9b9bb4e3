//! Birth and recovery of a copy: the small files, the log, the identity of the base, and then the role to begin with.

use bytes::Bytes;

use crate::config::Config;
use crate::event::{DiskDone, DiskOp, DiskResult, Event, FileRef, Output};
use crate::floor::{self, Floor};
use crate::format::FormatError;
use crate::format::config as k_format;
use crate::format::frame::chain_origin;
use crate::format::record::Kind;
use crate::format::superblock::{self, CopyFlag, Sample, Superblock};
use crate::format::twin::TwinKind;
use crate::group;
use crate::log::recovery::{MIN_SLOT_BYTES, Recovered, Recovery, Start, Step};
use crate::log::{Log, Placed, Segments};
use crate::node::arbitration::Arbiter;
use crate::node::members::Site;
use crate::node::meta::{AfterK, TwinFile};
use crate::node::space::Space;
use crate::node::tracking::Tracking;
use crate::node::{CreateKind, CreateParams, LostTail, NewVolume, Node, OpenParams, Stage};
use crate::outbox::{Outbox, Route};
use crate::rng::Rng;
use crate::site::Membership;
use crate::status::{Counters, Role, SuspendReason};
use crate::timeline::History;
use crate::types::{
    BLOCK, BootId, Boundary, ByteRange, Epoch, Lsn, Nanos, NodeId, Nonce, Position, SECTOR, SiteId, VolumeId,
};
use crate::volume::ack::Acks;
use crate::volume::index::Index;
use crate::volume::order::Order;

/// Why a copy cannot even be opened for inspection: nothing is served, nothing is changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The superblock cannot be read.
    #[error("superblock: {0}")]
    Superblock(FormatError),
    /// K cannot be read.
    #[error("configuration: {0}")]
    Config(FormatError),
    /// The files belong to another volume.
    #[error("the files belong to volume {found}, not {expected}")]
    WrongVolume {
        /// Named by the caller.
        expected: VolumeId,
        /// Found in the superblock.
        found: VolumeId,
    },
    /// The files belong to another site.
    #[error("the files belong to another site's copy: {0}")]
    WrongSite(SiteId),
    /// The files belong to the member of a group on another node.
    #[error("the files belong to the member of the group on node {0}")]
    WrongMember(NodeId),
    /// The base of a volume is smaller than the volume, or missing.
    #[error("the base image of volume {volume} has {found} bytes, the volume {expected}")]
    BaseTooSmall {
        /// The volume.
        volume: VolumeId,
        /// Bytes of the volume.
        expected: u64,
        /// Bytes of the base.
        found: u64,
    },
    /// The copy was released: the base is the volume now.
    #[error("the volume was released: its base image is to be used directly")]
    Released,
}

impl Node {
    /// First content of the small files of a new copy. The shell writes and syncs both before it opens the copy.
    ///
    /// # Panics
    /// When size or slot size are not what [`CreateParams`] asks for: the shell validates.
    pub fn create(params: &CreateParams) -> NewVolume {
        let size = params.layout.size();
        assert!(size > 0 && size.is_multiple_of(SECTOR as u64), "size is whole sectors");
        assert!(
            params.slot_bytes >= MIN_SLOT_BYTES && params.slot_bytes.is_multiple_of(BLOCK as u64),
            "slots are whole blocks"
        );
        let (k, flag) = match &params.kind {
            CreateKind::Primary { generation, nonce } => {
                let k = group::genesis(params.site, params.node, *nonce, *generation, params.policy.mode);
                (k, CopyFlag::Complete)
            }
            CreateKind::Replica { config } => (config.clone(), CopyFlag::Seeding(Nonce::NIL)),
            CreateKind::Member { config } => (config.clone(), CopyFlag::Complete),
        };
        let origin = Boundary { position: Position::default(), chain: chain_origin(&params.secret, params.volume) };
        let superblock = Superblock {
            volume: params.volume,
            group: params.group,
            site: params.site,
            node: params.node,
            peer: params.peer,
            secret: params.secret.clone(),
            layout: params.layout.clone(),
            slot_bytes: params.slot_bytes,
            adopted: params.adopted,
            flag,
            is_difference: false,
            floor: origin,
            floor_target: Lsn::ZERO,
            visible_at: Lsn::ZERO,
            durable: Lsn::ZERO,
            clean: true,
            boot: BootId::NIL,
            history: Vec::new(),
            remembered: None,
            fenced: Epoch::default(),
            cut: None,
            branches: 0,
            branch_at: None,
            policy: params.policy,
            forced: Vec::new(),
            paused: Default::default(),
            samples: Vec::new(),
            members: params.members.clone(),
        };
        NewVolume {
            superblock: superblock.kind().file(1, &superblock.encode()),
            config: k_format::FILE.file(1, &k_format::encode_file(&k)),
        }
    }

    /// Opens a copy: decodes the small files and begins recovery of the log. The copy serves nothing before it is recovered.
    pub fn open(now: Nanos, params: OpenParams) -> Result<Self, OpenError> {
        let files = SmallFiles::decode(&params)?;
        let mut out = Outbox::default();
        let layout = files.superblock.layout.clone();
        out.push(Output::Layout { layout: layout.clone(), base: layout });
        settle(now, superblock::FILE, FileRef::Superblock, files.superblock_counter, &params.superblock, &mut out);
        settle(now, k_format::FILE, FileRef::Config, files.k_counter, &params.config, &mut out);
        let start = files.log_start(params.site);
        let (recovery, step) = Recovery::begin(now, start, params.slots.clone(), &mut out);
        let mut node = Self::opening(now, params, files, recovery, out);
        if let Some(step) = step {
            node.on_recovery_step(now, step);
        }
        Ok(node)
    }

    /// A copy of which nothing is known but its small files.
    fn opening(now: Nanos, params: OpenParams, files: SmallFiles, recovery: Recovery, out: Outbox) -> Self {
        let (sb, k) = (files.superblock, files.k);
        let segments = Segments::new(sb.slot_bytes, Vec::new(), Vec::new(), 1);
        let log = Log::new(sb.volume, sb.secret.clone(), segments, sb.floor, params.tail_bytes);
        let tracking = Tracking::found(sb.volume, sb.floor, params.footers);
        Self {
            out,
            rng: Rng::new(params.rng_seed),
            site: params.site,
            node: params.node,
            boot: params.boot,
            opened_at: now,
            wall: params.wall,
            tail_bytes: params.tail_bytes,
            space: Space::new(sb.layout.clone(), params.bases),
            stage: Stage::Recovering(Box::new(recovery)),
            pumped: false,
            looked_at: now,
            pump_again: false,
            superblock_file: TwinFile::new(files.superblock_counter),
            settling: 3,
            failed: false,
            after_superblock: Vec::new(),
            k,
            k_next: None,
            k_file: TwinFile::new(files.k_counter),
            after_k: Vec::new(),
            role: Role::Secondary,
            opening: None,
            log,
            index: Index::default(),
            history: settled_history(&sb),
            floor: Floor::new(sb.floor),
            floor_starts: 0,
            identifying: None,
            floor_retry_at: None,
            floor_took_all_at: Nanos::default(),
            draining: None,
            committed: sb.floor.position.lsn,
            required: sb.durable,
            damage: None,
            lost_tail: None,
            lost_k: None,
            k_is_damaged: files.k_is_damaged,
            diverged: None,
            primary_durable_seen: Lsn::ZERO,
            primary_appended_seen: Lsn::ZERO,
            primary_backlog_seen: 0,
            primary_heard_at: None,
            parked: Default::default(),
            fills: Vec::new(),
            order: Order::default(),
            acks: Acks::default(),
            held: Default::default(),
            waiting_reads: Default::default(),
            reads_may_go: false,
            reads: Default::default(),
            full_since: None,
            says_full: false,
            arbiter: Arbiter::new(params.lease, sb.group, now),
            members: Site::new(sb.members.clone()),
            link: None,
            catch_up: None,
            link_refused: None,
            seeder: None,
            seedings: Default::default(),
            tracking,
            seeded: None,
            seeding_began_here: false,
            seed_ops: 0,
            change: None,
            sealing: None,
            sealed_upto: None,
            verify: None,
            verbs: Vec::new(),
            handing: None,
            reseed_wanted: false,
            branch_at: sb.branch_at,
            holds: Vec::new(),
            closing_saved: false,
            close_after_cut: None,
            written: Default::default(),
            growth: Default::default(),
            pause_alarmed: false,
            appended_bytes: 0,
            counters: Counters::default(),
            superblock: sb,
        }
    }

    pub(super) fn on_recovery_read(&mut self, now: Nanos, result: DiskResult) {
        let Stage::Recovering(recovery) = &mut self.stage else { return };
        if let Some(step) = recovery.on_read(now, result, &mut self.out) {
            self.on_recovery_step(now, step);
        }
    }

    pub(super) fn on_recovery_step(&mut self, now: Nanos, step: Step) {
        match step {
            Step::More(placed) => self.replay(placed),
            Step::Done(placed, recovered) => {
                self.replay(placed);
                self.on_log_recovered(now, *recovered);
            }
            Step::Failed(why) => {
                self.stage = Stage::Running;
                self.fail_copy(why);
                self.fail_waiting();
            }
        }
    }

    /// Puts recovered frames into index and history.
    fn replay(&mut self, placed: Vec<Placed>) {
        for p in placed {
            self.learn_frame(&p);
        }
    }

    /// What every frame teaches, recovered, built or received: index, history, size, committed.
    pub(super) fn learn_frame(&mut self, p: &Placed) {
        let h = &p.header;
        if h.records.iter().any(|r| r.kind == Kind::Fork) {
            self.history.fork(crate::ship::ChainEntry {
                generation: h.generation,
                incarnation: h.incarnation,
                fork: h.first.prev(),
            });
            self.primary_durable_seen = Lsn::ZERO;
        }
        floor::apply(&mut self.index, h, p.slot, p.payload_block);
        self.learn_layout(p);
        self.primary_durable_seen = self.primary_durable_seen.max(h.durable);
        self.committed = self.committed.max(h.committed);
    }

    fn on_log_recovered(&mut self, now: Nanos, found: Recovered) {
        let Recovered { segments, end, cut_bytes, required, beyond, damage, opened_under } = found;
        self.lost_k = opened_under.filter(|k| self.k_is_damaged && k.epoch > self.k.epoch);
        self.history.cut_after(end.position.lsn);
        let records = end.position.lsn.since(self.floor.at().position.lsn);
        let (volume, secret) = (self.superblock.volume, self.superblock.secret.clone());
        self.log = Log::new(volume, secret, segments, end, self.tail_bytes);
        self.log.after_recovery(now);
        self.required = required;
        // After a cut there is no more to bring into the base.
        self.draining = self.draining.map(|to| to.min(end.position.lsn));
        if self.space.layout.extents().len() > 1 && !self.space.has_room(&self.space.layout) {
            self.fail_copy("the base image of a volume of the group is missing or too small");
        }
        self.tell_layout_recovered();
        if let Some(damage) = damage {
            let history = History::new(self.superblock.history.clone());
            self.lost_tail = Some(LostTail { why: damage, end: beyond, history });
            self.alarm(
                "log_damaged",
                format!("{damage}: records up to {required} were durable, {} found", end.position.lsn),
            );
        }
        if self.flag() == CopyFlag::Diverged {
            self.diverged = Some("kept from an earlier contact".into());
        }
        self.out.push(crate::event::Output::Event(Event::Recovered { records, cut_bytes }));
        self.check_base(now);
    }

    /// Compares the base with what identified it when the floor last moved, except where the log has newer blocks: an
    /// interrupted advance may have written those.
    fn check_base(&mut self, now: Nanos) {
        let samples = self.superblock.samples.clone();
        let mut left = 0;
        let skip = self.flag() != CopyFlag::Complete;
        for (at, s) in samples.iter().enumerate() {
            if skip || self.index.touches(floor::blocks_of(s)) || !self.is_of_a_volume(s) {
                continue;
            }
            left += 1;
            let op = DiskOp::Read { file: FileRef::Base, offset: s.offset, len: s.len };
            self.out.disk(now, Route::Sample { at }, op);
        }
        self.stage = Stage::CheckingBase { left, wrong: false };
        self.base_checked(now);
    }

    /// A volume alone is sampled as far as its base goes; one of several as far as it goes itself.
    fn is_of_a_volume(&self, s: &Sample) -> bool {
        let layout = &self.superblock.layout;
        match layout.extents() {
            [_] => s.offset + u64::from(s.len) <= self.space.base_size(),
            _ => layout.holds(ByteRange::new(s.offset, u64::from(s.len))),
        }
    }

    pub(super) fn on_sample(&mut self, now: Nanos, at: usize, result: DiskResult) {
        let expected = self.superblock.samples[at];
        if result.is_err() {
            // Nothing is known of its content: the device failed, and may read again after a restart.
            self.fail_copy("the base image cannot be read");
        }
        let other = matches!(&result, Ok(DiskDone::Read(data)) if floor::sample(expected.offset, data) != expected);
        if let Stage::CheckingBase { left, wrong } = &mut self.stage {
            *left -= 1;
            *wrong |= other;
        }
        self.base_checked(now);
    }

    /// The small files as they were found may be in a cache only: a process died between write and sync. They are written
    /// again in place (a torn write of the same bytes harms nothing) and synced before anything is concluded from them.
    pub(super) fn on_settled(&mut self, now: Nanos, route: Route, ok: bool) {
        if !ok {
            self.fail_copy("superblock or configuration cannot be written");
        }
        self.settling = self.settling.saturating_sub(1);
        if self.settling == 1 && route == Route::SettleWrite {
            let files = vec![FileRef::Superblock, FileRef::Config];
            self.out.disk(now, Route::SettleSync, DiskOp::Sync { files });
        }
        self.base_checked(now);
    }

    fn base_checked(&mut self, now: Nanos) {
        let Stage::CheckingBase { left: 0, wrong } = self.stage else { return };
        if self.settling > 0 || self.is_persisting_k() {
            return;
        }
        if self.close_after_cut.is_none()
            && !self.failed
            && let Some(k) = self.lost_k.take()
        {
            return self.put_back_k(now, k);
        }
        if wrong {
            self.suspect("the base image is not as it was left: mounted, swapped or written by somebody else");
        }
        self.stage = match self.close_after_cut.take() {
            Some(id) => Stage::Closing(id),
            None => Stage::Running,
        };
        self.identify_new_base(now);
        self.count_recovered(now);
        if self.is_cut() {
            return;
        }
        if self.k.primary != Some(self.site) {
            // The pause ended with that, and a crash may have come before the superblock said so.
            self.end_pause_of_shipping(now);
        }
        self.begin_role();
        self.greet();
        self.match_peer(now);
    }

    /// The file of K is older than the log: its newest slot does not read any more, and the one before says nothing of what this
    /// copy has done since. The K of its own last opening was in force here once, and is as new as anything that is left. Nobody is
    /// greeted or served before it is back.
    fn put_back_k(&mut self, now: Nanos, k: Config) {
        self.alarm("configuration_damaged", format!("its newest version is lost; {} is taken from the log", k.epoch));
        self.persist_k(now, k, AfterK::PutBack);
    }

    /// K is back: the copy goes on being opened.
    pub(super) fn on_k_put_back(&mut self, now: Nanos) {
        self.k_is_damaged = false;
        if self.k.primary != Some(self.site) {
            self.fail_waiting();
        }
        self.base_checked(now);
    }

    /// A base that was never identified (new or adopted) is sampled once, so that a swap is noticed from the start.
    pub(super) fn identify_new_base(&mut self, now: Nanos) {
        if !self.superblock.samples.is_empty() || self.flag() != CopyFlag::Complete {
            return;
        }
        let heads = floor::heads(&self.space.layout, self.space.base_size());
        for (number, head) in heads.iter().enumerate() {
            let op = DiskOp::Read { file: FileRef::Base, offset: head.start, len: head.len as u32 };
            self.out.disk(now, Route::Identify { number }, op);
        }
        let left = heads.len();
        self.identifying = Some(Identifying { heads, left, samples: Vec::new(), floor_starts: self.floor_starts });
    }

    pub(super) fn on_identified(&mut self, now: Nanos, number: usize, result: DiskResult) {
        let Some(asked) = self.identifying.as_mut() else { return };
        asked.left -= 1;
        if let (Ok(DiskDone::Read(data)), Some(head)) = (result, asked.heads.get(number)) {
            asked.samples.extend(head.samples(head.start, &data, |_| true));
        }
        let Some(found) = self.identifying.take_if(|asked| asked.left == 0) else { return };
        // The floor may have moved between question and answer only through an advance, which samples by itself.
        let is_new = self.superblock.samples.is_empty() && !found.samples.is_empty();
        if is_new && self.floor.is_idle() && found.floor_starts == self.floor_starts {
            self.superblock.samples = found.samples;
            self.superblock.samples.sort_by_key(|s| s.offset);
            self.save_superblock(now);
        }
    }

    /// Not to be trusted: serves nothing until repaired.
    pub(super) fn suspect(&mut self, why: &str) {
        self.damage = Some(why.into());
        self.superblock.flag = CopyFlag::Suspect;
        self.alarm("suspect", why);
    }

    /// A sync of the log failed: what the device or the kernel threw away cannot be told from what it kept, not even after a
    /// restart. Only a new seeding makes this copy one again.
    pub(super) fn fail_for_good(&mut self, now: Nanos, why: &str) {
        if self.superblock.flag != CopyFlag::Failed {
            self.superblock.flag = CopyFlag::Failed;
            self.save_superblock(now);
        }
        self.fail_copy(why);
    }

    /// A device error ended the copy (R9); a restart may find it whole.
    pub(super) fn fail_copy(&mut self, why: &str) {
        let is_news = !std::mem::replace(&mut self.failed, true);
        if self.role.serves() {
            self.set_role(Role::Suspended(SuspendReason::Failed));
        }
        if is_news {
            self.damage = Some(why.into());
            self.alarm("copy_failed", why);
            // A peer whose flushes wait for this copy is to know, and one that may take over.
            self.greet();
        }
        self.opening = None;
        self.verify_lost();
    }

    /// The role to begin with.
    fn begin_role(&mut self) {
        if self.k.primary != Some(self.site) || self.flag() == CopyFlag::Released {
            return;
        }
        let fenced = self.superblock.fenced;
        if self.diverged.is_some() || fenced > self.k.epoch {
            self.set_role(Role::Fenced(fenced.max(self.k.epoch)));
            return self.fail_waiting();
        }
        if self.flag() == CopyFlag::Failed {
            return self.set_role(Role::Suspended(SuspendReason::Failed));
        }
        self.set_role(Role::Suspended(SuspendReason::Restart));
        if self.is_led() {
            return; // its leader says whether it may serve
        }
        let alone = self.k.sites == [self.site];
        let local = self.superblock.peer.is_none();
        // A volume that never served has nothing that another site could have taken over.
        let fresh = self.history.entries().is_empty() && self.log.end().position.lsn == Lsn::ZERO;
        if alone && (local || fresh || self.k.mode == crate::config::Mode::Async) {
            self.begin_opening();
        }
    }
}

/// The beginnings of the volumes are being read, for a base that has no samples.
#[derive(Debug)]
pub(super) struct Identifying {
    heads: Vec<floor::Head>,
    left: usize,
    samples: Vec<Sample>,
    floor_starts: u64,
}

/// The two small files as they were found.
struct SmallFiles {
    superblock: Superblock,
    superblock_counter: u64,
    k: Config,
    k_counter: u64,
    /// The other version of K does not read: it may have been the newer one.
    k_is_damaged: bool,
}

impl SmallFiles {
    fn decode(params: &OpenParams) -> Result<Self, OpenError> {
        let twin = superblock::FILE.decode(&params.superblock).map_err(OpenError::Superblock)?;
        let superblock = Superblock::decode(twin.content).map_err(OpenError::Superblock)?;
        let k_twin = k_format::FILE.decode(&params.config).map_err(OpenError::Config)?;
        let k = k_format::decode_file(k_twin.content).map_err(OpenError::Config)?;
        check_identity(params, &superblock)?;
        Ok(Self {
            superblock,
            superblock_counter: twin.counter,
            k,
            k_counter: k_twin.counter,
            k_is_damaged: k_twin.other_damaged,
        })
    }

    /// What recovery of the log starts from.
    fn log_start(&self, site: SiteId) -> Start {
        let sb = &self.superblock;
        let discard = matches!(sb.flag, CopyFlag::Seeding(_));
        Start {
            volume: sb.volume,
            site,
            writes: self.k.written_by(site),
            secret: sb.secret.clone(),
            slot_bytes: sb.slot_bytes,
            floor: sb.floor,
            durable: if discard { Lsn::ZERO } else { sb.durable },
            discard,
            cut: sb.cut,
        }
    }
}

/// What the base holds of the history: recovery learns the rest from the log, which may have been cut since this was saved.
fn settled_history(sb: &Superblock) -> History {
    let mut history = History::new(sb.history.clone());
    history.cut_after(sb.floor.position.lsn);
    history
}

/// Writes the slot in force of a small file again, in place.
fn settle(now: Nanos, kind: TwinKind, file: FileRef, counter: u64, content: &Bytes, out: &mut Outbox) {
    let offset = kind.offset(counter);
    let slot = content.slice(offset as usize..offset as usize + kind.slot_bytes);
    out.disk(now, Route::SettleWrite, DiskOp::Write { file, offset, bufs: vec![slot], durable: false });
}

fn check_identity(params: &OpenParams, sb: &Superblock) -> Result<(), OpenError> {
    if sb.volume != params.volume {
        return Err(OpenError::WrongVolume { expected: params.volume, found: sb.volume });
    }
    if sb.site != params.site {
        return Err(OpenError::WrongSite(sb.site));
    }
    if let Some(node) = sb.members.as_ref().map(Membership::own).filter(|node| *node != params.node) {
        return Err(OpenError::WrongMember(node));
    }
    if sb.flag == CopyFlag::Released {
        return Err(OpenError::Released);
    }
    let space = Space::new(sb.layout.clone(), params.bases.iter().copied());
    if let Some((volume, expected, found)) = space.lacks(&sb.layout) {
        return Err(OpenError::BaseTooSmall { volume, expected, found });
    }
    Ok(())
}
