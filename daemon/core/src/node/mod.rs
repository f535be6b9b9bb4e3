//! One copy of one group of volumes at one site: owns the machines, routes inputs to them, collects what they want done. Nothing else
//! knows two machines.
//!
//! `handle` only takes a fact in; the work that follows from several facts at once (building frames, syncs, sending, the
//! floor) happens in `pump`, which `poll_output` runs when nothing else is left to hand out. Handing in a batch of inputs
//! before draining is what makes group commit.

mod acks;
mod advance;
mod arbitration;
mod backlog;
mod changes;
mod contact;
mod demotion;
mod difference;
mod growth;
mod link;
mod members;
mod meta;
mod open;
mod oracle;
mod pauses;
mod plan;
mod promotion;
mod receive;
mod regression;
mod requests;
mod role;
mod seal;
mod seeded;
mod seeding;
mod seedings;
mod sending;
mod space;
mod state;
mod switchover;
mod tracking;
mod verbs;
mod verify;
mod views;
mod volume_reads;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::config::{Config, Policy};
use crate::event::{DiskResult, DiskToken, Event, Input, Output, Request, RequestId, Slot, VerbId};
use crate::floor::Floor;
use crate::format::superblock::{CopyFlag, Superblock};
use crate::group::lease::Terms;
use crate::layout::Layout;
use crate::log::Log;
use crate::log::recovery::Recovery;
use crate::outbox::{Outbox, Route};
use crate::rng::Rng;
use crate::ship::seed::{Seeded, Seeder};
use crate::site::Membership;
use crate::status::{Counters, Role};
use crate::timeline::History;
use crate::types::{BootId, Boundary, GenId, GroupId, Lsn, Nanos, NodeId, Nonce, Secret, SiteId, VolumeId, WallMs};
use crate::verb::VerbError;
use crate::volume::ack::Acks;
use crate::volume::index::Index;
use crate::volume::order::Order;

pub use open::OpenError;
pub use views::{Held, MAX_VIEWS};

/// Bytes of recent frames kept in memory per volume by default, for shipping and for reads of what was just written.
pub const TAIL_BYTES: u64 = 64 << 20;

/// What a new volume copy begins as.
#[derive(Clone, Debug)]
pub enum CreateKind {
    /// The first copy: it is Primary.
    Primary {
        /// Its first generation.
        generation: GenId,
        /// Nonce of its first K.
        nonce: Nonce,
    },
    /// A replica that will be seeded; K is the primary's.
    Replica {
        /// The primary's K.
        config: Config,
    },
    /// The first copy of one more member of a group (see [`crate::site`]): of zeros, or adopted; K is the leader's.
    Member {
        /// The leader's K.
        config: Config,
    },
}

/// How a new volume copy is made.
#[derive(Clone, Debug)]
pub struct CreateParams {
    /// The first volume: it names the log.
    pub volume: VolumeId,
    /// The group.
    pub group: GroupId,
    /// Own site.
    pub site: SiteId,
    /// Own node.
    pub node: NodeId,
    /// The group's secret, the same on every copy.
    pub secret: Secret,
    /// The volumes and their sizes. A replica's may be that of a part: the seeding brings the whole.
    pub layout: Layout,
    /// Bytes of a log slot, a multiple of 4096; the same on every copy.
    pub slot_bytes: u64,
    /// Policy.
    pub policy: Policy,
    /// Peer site, if any.
    pub peer: Option<SiteId>,
    /// First copy or replica.
    pub kind: CreateKind,
    /// The bases hold data already.
    pub adopted: bool,
    /// Which member of the group it is; `None`: the only one of this site.
    pub members: Option<Membership>,
}

/// First content of a new copy's small files.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// The `superblock` file.
    pub superblock: Bytes,
    /// The `config` file.
    pub config: Bytes,
}

/// What a copy is opened with.
#[derive(Clone, Debug)]
pub struct OpenParams {
    /// The volume that names the log expected.
    pub volume: VolumeId,
    /// Own site.
    pub site: SiteId,
    /// Own node.
    pub node: NodeId,
    /// This boot of the kernel.
    pub boot: BootId,
    /// 256 random bits.
    pub rng_seed: [u8; 32],
    /// Wall clock now.
    pub wall: WallMs,
    /// The whole `superblock` file.
    pub superblock: Bytes,
    /// The whole `config` file.
    pub config: Bytes,
    /// Log slots found, with their lengths in bytes.
    pub slots: Vec<(Slot, u64)>,
    /// Contents of the footers found, by number.
    pub footers: Vec<(u32, Bytes)>,
    /// Bytes of the base of each volume that there is one for, also of such as are no part of the group (yet).
    pub bases: Vec<(VolumeId, u64)>,
    /// Bytes of recent frames to keep in memory; [`TAIL_BYTES`] unless memory is short.
    pub tail_bytes: u64,
    /// The terms of the agent's lease at its witness; `None`: it has no witness.
    pub lease: Option<Terms>,
}

/// Where the node is in its life.
#[derive(Debug)]
enum Stage {
    Recovering(Box<Recovery>),
    CheckingBase { left: usize, wrong: bool },
    Running,
    Closing(VerbId),
    Closed,
}

/// Durable records that recovery did not find.
#[derive(Debug)]
struct LostTail {
    /// What is damaged, for people.
    why: &'static str,
    /// The newest record that stands anywhere beyond the damage, or that is known to have been durable.
    end: Lsn,
    /// The incarnations of this copy before its log was cut at the damage.
    history: History,
}

/// A changing request that waits for its turn or for its edge blocks.
#[derive(Debug)]
struct Parked {
    request: Request,
}

/// One copy of one group of volumes.
#[derive(Debug)]
pub struct Node {
    out: Outbox,
    rng: Rng,
    site: SiteId,
    node: NodeId,
    boot: BootId,
    opened_at: Nanos,
    wall: WallMs,
    tail_bytes: u64,
    space: space::Space,
    stage: Stage,
    pumped: bool,
    /// When what the clock decides was last looked at: what was due then waits for a fact, not for the clock.
    looked_at: Nanos,
    /// A step of this pump allows another one at once, without any new fact.
    pump_again: bool,

    superblock: Superblock,
    superblock_file: meta::TwinFile,
    /// Writes and the sync that make the small files durable as they were found; nothing is decided before.
    settling: u8,
    /// A device error ended this opening of the copy.
    failed: bool,
    after_superblock: Vec<(u64, meta::AfterSuperblock)>,
    k: Config,
    k_next: Option<Config>,
    k_file: meta::TwinFile,
    after_k: Vec<meta::AfterK>,

    role: Role,
    opening: Option<role::Opening>,
    log: Log,
    index: Index,
    history: History,
    floor: Floor,
    floor_starts: u64,
    identifying: Option<open::Identifying>,
    floor_retry_at: Option<Nanos>,
    /// When an advance last began that took all there was: what is above the floor came later.
    floor_took_all_at: Nanos,
    draining: Option<Lsn>,
    /// As the superblock says that is durable: the floor does not pass it.
    branch_at: Option<Lsn>,
    holds: Vec<views::Hold>,
    committed: Lsn,
    required: Lsn,
    damage: Option<String>,
    /// What recovery missed; it is missing as long as the log ends below `required`.
    lost_tail: Option<LostTail>,
    /// A K that the log knows and the file of K does not, until it is put back.
    lost_k: Option<Config>,
    /// A version of K does not read: it may have been the newest.
    k_is_damaged: bool,
    diverged: Option<String>,
    primary_durable_seen: Lsn,
    primary_appended_seen: Lsn,
    /// Bytes of its log that the primary did not know to be durable here, when it was last heard.
    primary_backlog_seen: u64,
    primary_heard_at: Option<Nanos>,

    parked: BTreeMap<RequestId, Parked>,
    fills: Vec<(RequestId, Vec<crate::types::BlockRange>)>,
    order: Order,
    acks: Acks,
    held: VecDeque<(RequestId, Request)>,
    waiting_reads: VecDeque<(RequestId, Request)>,
    /// Writes were answered since the waiting reads were last tried.
    reads_may_go: bool,
    reads: volume_reads::Reads,
    full_since: Option<Nanos>,
    /// This follower told its primary that it has no room.
    says_full: bool,

    arbiter: arbitration::Arbiter,
    /// Other members of the group at this site; `None`: there are none.
    members: Option<Box<members::Site>>,
    link: Option<link::Link>,
    catch_up: Option<sending::CatchUp>,
    link_refused: Option<String>,
    seeder: Option<Seeder>,
    seedings: seedings::Seedings,
    tracking: tracking::Tracking,
    seeded: Option<Seeded>,
    /// The seeding that the superblock speaks of began in this opening: nobody else had the base in hand since.
    seeding_began_here: bool,
    /// Base operations of a seeding (of this one or of one that was given up) that have not ended.
    seed_ops: u32,
    change: Option<changes::Change>,
    sealing: Option<seal::Sealing>,
    /// The log was sealed up to its end here, for a seeding.
    sealed_upto: Option<Boundary>,
    verify: Option<verify::Verify>,
    verbs: Vec<verbs::PendingVerb>,
    /// The switchover that one of them is.
    handing: Option<switchover::Handing>,
    /// An operator gave this copy up. Not remembered over a restart: nothing is lost by that, the copy is then again what its files
    /// say (diverged, suspect), keeps what it has and is given up again; a mark that outlived its seeding or its sealing would
    /// throw away what came later.
    reseed_wanted: bool,
    closing_saved: bool,
    /// Was to be closed when a sealing took the log apart: goes on with that afterwards.
    close_after_cut: Option<VerbId>,
    written: backlog::Written,
    growth: pauses::Growth,
    /// It was said that a pause makes the log run short.
    pause_alarmed: bool,
    /// Bytes placed in the log that the floor's pace has not heard of yet.
    appended_bytes: u64,
    counters: Counters,
}

impl Node {
    /// Takes one fact in.
    pub fn handle(&mut self, now: Nanos, input: Input) {
        self.pumped = false;
        if matches!(self.stage, Stage::Closed) {
            return self.refuse_closed(input);
        }
        match input {
            Input::Request(id, request) => {
                // What comes after the lease has ended is not served, whenever the clock is looked at next.
                self.watch_authority(now);
                self.on_request(now, id, request);
            }
            Input::Disk(token, result) => self.on_disk(now, token, result),
            Input::PeerUp { conn, site } => self.on_peer_up(now, conn, site),
            Input::PeerMessage(conn, message) => self.on_peer_message(now, conn, message),
            Input::PeerDown(conn) => self.on_peer_down(conn),
            Input::SiteUp { conn, member } => self.on_site_up(conn, member),
            Input::SiteMessage(conn, message) => self.on_site_message(now, conn, message),
            Input::SiteDown(conn) => self.on_site_down(now, conn),
            Input::Verb(id, verb) => self.on_verb(now, id, verb),
            Input::Witness(id, answer) => self.on_witness(now, id, answer),
            Input::Lease(grant) => self.on_lease(grant),
            Input::Hold(id, at) => self.on_hold(id, at),
            Input::LetGo(id) => self.on_let_go(id),
            Input::KeepBranches { sealed, first } => self.on_keep_branches(now, sealed, first),
            Input::Tick => {}
        }
    }

    fn refuse_closed(&mut self, input: Input) {
        match input {
            Input::Request(id, _) => {
                self.out.push(Output::Reply(id, Err(crate::event::RequestError::NotServing)));
            }
            Input::Verb(id, _) => {
                let error = VerbError::Interrupted("the copy is closed".into());
                self.out.push(Output::Verb(id, Err(error)));
            }
            Input::Hold(id, _) => self.out.push(Output::Held(id, Err(plan::closed()))),
            _ => {}
        }
    }

    /// The next thing to do. Ends with `None` when everything that can be decided is decided.
    pub fn poll_output(&mut self, now: Nanos) -> Option<Output> {
        if let Some(output) = self.out.pop() {
            return Some(output);
        }
        if !self.pumped {
            self.pumped = true;
            self.pump(now);
            if std::mem::take(&mut self.pump_again) {
                self.pump(now);
            }
        }
        self.out.pop()
    }

    /// Everything that follows from the facts taken in.
    fn pump(&mut self, now: Nanos) {
        self.looked_at = now;
        self.watch_disk(now);
        if !matches!(self.stage, Stage::Running | Stage::Closing(_)) {
            return self.expire_waiting_for_recovery(now);
        }
        if self.failed {
            // Nothing more is written here: what the files hold may not even be known, when it is recovery that failed.
            self.end_views("the copy has failed");
            self.pump_verbs(now);
            return self.pump_closing(now);
        }
        self.pump_tell(now);
        self.pump_seed_again(now);
        self.pump_log(now);
        self.pump_members(now);
        self.pump_arbiter(now);
        self.pump_change(now);
        self.pump_opening(now);
        self.pump_fills(now);
        self.pump_log(now);
        self.pump_sender(now);
        self.pump_acks(now);
        self.pump_receiver(now);
        self.pump_seeding(now);
        self.pump_sealing(now);
        self.pump_verify(now);
        self.pump_views();
        self.pump_floor(now);
        self.pump_verbs(now);
        self.pump_members(now);
        self.pump_closing(now);
    }

    /// An operation that has been outstanding for too long counts as failed (R9).
    fn watch_disk(&mut self, now: Nanos) {
        let limit_ms = self.superblock.policy.disk_timeout_ms;
        if !self.failed && self.out.overdue_at(limit_ms).is_some_and(|at| now >= at) {
            self.fail_copy(&format!("the disk has not answered for {limit_ms} ms"));
        }
    }

    /// The next moment at which the clock alone changes something.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        let times = [
            self.log.timeout(),
            self.floor_retry_at,
            self.link_timeout(),
            self.verbs.iter().map(|v| v.deadline).min(),
            self.out.overdue_at(self.superblock.policy.disk_timeout_ms),
            self.full_since.map(|at| at.after_ms(requests::FULL_MS)),
            self.retention_due(),
            self.floor.timeout(),
            self.seeding_timeout(),
            self.arbiter_timeout(),
            self.handing_timeout(),
            self.members_timeout(),
        ];
        times.into_iter().flatten().filter(|at| *at > self.looked_at).min()
    }

    fn on_disk(&mut self, now: Nanos, token: DiskToken, result: DiskResult) {
        let Some(route) = self.out.take_route(token) else { return };
        let ok = result.is_ok();
        match route {
            Route::Frame => self.on_frame_written(now, token, result.err()),
            Route::LogSync => self.on_log_synced(token, ok),
            Route::Prepare { slot } => self.log.on_prepared(now, slot, ok),
            Route::Remove { slot } if ok => self.log.segments.on_removed(slot),
            // Its records may be found again: nothing is built on a log that cannot be cleared.
            Route::Remove { .. } => self.fail_copy("a slot of the log cannot be removed"),
            Route::Recovery => self.on_recovery_read(now, result),
            Route::Read { job, part } => self.on_read_part(now, job, part, result),
            Route::CatchUp => self.on_catch_up_read(now, result),
            Route::SeedMap { resync } => self.on_seed_mapped(resync, result),
            Route::SeedWrite { range } => self.on_seed_written(now, range, ok),
            Route::SeedSync => self.on_seed_synced(now, ok),
            Route::FloorRead => self.on_floor_read(now, result),
            Route::FloorWrite => self.on_floor_written(now, result),
            Route::FloorSync => self.on_floor_synced(now, ok),
            Route::SuperblockWrite | Route::SuperblockSync => self.on_superblock(now, route, ok),
            Route::ConfigWrite | Route::ConfigSync => self.on_config_file(now, route, ok),
            Route::SettleWrite | Route::SettleSync => self.on_settled(now, route, ok),
            Route::BranchRead => self.on_branch_read(now, result),
            Route::BranchWrite => self.on_branch_written(now, ok),
            Route::Sample { at } => self.on_sample(now, at, result),
            Route::FloorHead { number } => self.on_floor_head(now, number, result),
            Route::Identify { number } => self.on_identified(now, number, result),
            Route::Grow => self.on_grown(now, ok),
            Route::Footer => self.on_footer_written(now, ok),
            Route::Ignore => {}
        }
    }

    /// What lies on the disk is still being read.
    fn is_recovering(&self) -> bool {
        matches!(self.stage, Stage::Recovering(_) | Stage::CheckingBase { .. })
    }

    fn wall_at(&self, now: Nanos) -> WallMs {
        WallMs(self.wall.0 + now.since(self.opened_at) / 1_000_000)
    }

    fn alarm(&mut self, code: &'static str, detail: impl Into<String>) {
        self.out.push(Output::Event(Event::Alarm { code, detail: detail.into() }));
    }

    fn set_role(&mut self, role: Role) {
        if self.role != role {
            let (from, to) = (format!("{:?}", self.role), format!("{role:?}"));
            self.out.push(Output::Event(Event::Role { from, to, serves: role.serves() }));
            self.role = role;
        }
    }

    /// What the copy is, as far as its files say so: one whose seeding has ended is whole once that is durable.
    fn flag(&self) -> CopyFlag {
        match self.seeded.as_ref().filter(|s| s.saving) {
            _ if self.failed => CopyFlag::Failed,
            Some(seeded) => CopyFlag::Seeding(seeded.resync),
            None => self.superblock.flag,
        }
    }

    /// The copy holds everything that it ever held durable and nothing speaks against it.
    fn is_sound(&self) -> bool {
        self.flag() == CopyFlag::Complete
            && self.diverged.is_none()
            && !self.reseed_wanted
            && self.log.durable() >= self.required
            && self.log.appended() >= self.superblock.visible_at
            && self.log.failure().is_none()
    }

    /// Invariants of the whole; the machines check their own.
    pub fn check(&self) {
        if self.is_recovering() {
            return;
        }
        self.log.check();
        self.index.check();
        self.history.check();
        let floor = self.floor.at().position.lsn;
        assert!(floor <= self.log.end().position.lsn, "I5: the floor is not above the log");
        assert!(
            self.flag() != CopyFlag::Complete || floor <= self.committed.max(self.superblock.floor.position.lsn),
            "I5: floor {floor} above committed {}",
            self.committed
        );
        assert!(self.committed <= self.log.durable().max(self.committed_elsewhere()), "committed is durable");
        if self.role == Role::Primary {
            assert_eq!(self.k.primary, Some(self.site), "I1: a primary is named by its own K");
        }
    }
}
