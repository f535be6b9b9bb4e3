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
    Prepare,
    /// A dropped slot's file was removed.
    Remove {
        /// The slot.
        slot: Slot,
    },
    /// A footer was written: nobody waits.
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
    /// The base was grown.
    Grow,
    /// A boundary's header is read (unused slots etc.): nobody waits.
    Ignore,
}

/// The outbox of a node.
#[derive(Default, Debug)]
pub struct Outbox {
    outputs: VecDeque<Output>,
    routes: BTreeMap<DiskToken, (Route, Nanos)>,
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
        self.routes.insert(token, (route, now));
        self.outputs.push_back(Output::Disk(token, op));
        token
    }

    /// The next output.
    pub fn pop(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes the route of an operation that ended; `None` for one that is unknown.
    pub fn take_route(&mut self, token: DiskToken) -> Option<Route> {
        self.routes.remove(&token).map(|(route, _)| route)
    }

    /// When the oldest operation still outstanding began. Tokens are handed out in order, so the first one is the oldest.
    pub fn oldest(&self) -> Option<Nanos> {
        self.routes.values().next().map(|(_, at)| *at)
    }

    /// Operations outstanding.
    pub fn outstanding(&self) -> usize {
        self.routes.len()
    }
}
