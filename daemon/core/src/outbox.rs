//! What the machines of a node want done, and whose disk operation is whose. Machines write here; the node alone reads.

use std::collections::{BTreeMap, VecDeque};

use crate::event::{DiskOp, DiskToken, Output, Slot};
use crate::types::{BlockRange, Nanos, Nonce};

/// Whose completion it is. The node carries it to that machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// A frame (or a segment's header) was written to the log.
    Frame,
    /// A sync of the log.
    LogSync,
    /// A slot was prepared.
    Prepare {
        /// The slot.
        slot: Slot,
    },
    /// A dropped slot's file was removed.
    Remove {
        /// The slot.
        slot: Slot,
    },
    /// A footer is whole and durable.
    Footer,
    /// Recovery reads a slot.
    Recovery,
    /// Part of a frontend read or of the read-fill of a partial write.
    Read {
        /// Which assembly.
        job: u64,
        /// Which part of it.
        part: usize,
    },
    /// The sender reads old frames.
    CatchUp,
    /// The sender reads blocks of the volume for seeding.
    SeedMap {
        /// The seeding.
        resync: Nonce,
    },
    /// The receiver writes seeded blocks to the base.
    SeedWrite {
        /// Blocks of this write; none for the zeroing before the first pass.
        range: BlockRange,
    },
    /// The receiver syncs its base at the end of a pass.
    SeedSync,
    /// The floor reads a segment.
    FloorRead,
    /// The floor writes the base.
    FloorWrite,
    /// The floor syncs the base.
    FloorSync,
    /// The superblock was written.
    SuperblockWrite,
    /// The superblock was synced.
    SuperblockSync,
    /// K was written.
    ConfigWrite,
    /// K was synced.
    ConfigSync,
    /// A small file is written again as it was found.
    SettleWrite,
    /// The small files are synced as they were found.
    SettleSync,
    /// The suffix is read for sealing.
    BranchRead,
    /// The branch file is whole and durable.
    BranchWrite,
    /// A sample of the base is read to check its identity.
    Sample {
        /// Which sample.
        at: usize,
    },
    /// The beginning of a volume is read back after an advance of the floor.
    FloorHead {
        /// Which of those that are read.
        number: usize,
    },
    /// The beginning of a volume is read to know its base from now on.
    Identify {
        /// Which of the group's.
        number: usize,
    },
    /// Bases were made or grown.
    Grow,
    /// A boundary's header is read (unused slots etc.): nobody waits.
    Ignore,
}

/// What a worker does one after the other for all volumes of a shard may take so many times as long as a read or a write: each
/// waits for those before it.
const SLOW: u64 = 10;

/// True for what waits behind others of its kind.
fn is_slow(op: &DiskOp) -> bool {
    match op {
        DiskOp::Prepare { .. }
        | DiskOp::Remove { .. }
        | DiskOp::Replace { .. }
        | DiskOp::Zero { .. }
        | DiskOp::Map { .. } => true,
        DiskOp::Read { .. } | DiskOp::Write { .. } | DiskOp::Sync { .. } | DiskOp::Grow { .. } => false,
    }
}

/// Operations under way, oldest first: tokens are handed out in order.
type UnderWay = BTreeMap<DiskToken, (Route, Nanos)>;

/// The outbox of a node.
#[derive(Default, Debug)]
pub struct Outbox {
    outputs: VecDeque<Output>,
    routes: UnderWay,
    /// The same of operations that are slow.
    slow: UnderWay,
    next_token: u64,
}

impl Outbox {
    /// Queues an output.
    pub fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Queues a disk operation whose completion goes to `route`.
    pub fn disk(&mut self, now: Nanos, route: Route, op: DiskOp) -> DiskToken {
        self.next_token += 1;
        let token = DiskToken(self.next_token);
        if is_slow(&op) { &mut self.slow } else { &mut self.routes }.insert(token, (route, now));
        self.outputs.push_back(Output::Disk(token, op));
        token
    }

    /// The next output.
    pub fn pop(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes the route of an operation that ended; `None` for one that is unknown.
    pub fn take_route(&mut self, token: DiskToken) -> Option<Route> {
        self.routes.remove(&token).or_else(|| self.slow.remove(&token)).map(|(route, _)| route)
    }

    /// When the oldest operation still outstanding began.
    pub fn oldest(&self) -> Option<Nanos> {
        began(&self.routes).into_iter().chain(began(&self.slow)).min()
    }

    /// When the first operation will have been outstanding for too long, where a read or a write may take `limit_ms`.
    pub fn overdue_at(&self, limit_ms: u64) -> Option<Nanos> {
        let quick = began(&self.routes).map(|at| at.after_ms(limit_ms));
        let slow = began(&self.slow).map(|at| at.after_ms(limit_ms.saturating_mul(SLOW)));
        quick.into_iter().chain(slow).min()
    }

    /// Operations outstanding.
    pub fn outstanding(&self) -> usize {
        self.routes.len() + self.slow.len()
    }
}

fn began(under_way: &UnderWay) -> Option<Nanos> {
    under_way.values().next().map(|(_, at)| *at)
}
