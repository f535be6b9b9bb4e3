//! A copy of a volume on a disk in memory.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use prost::Message as _;
use tidemark_core::event::{DiskDone, DiskError, DiskOp, DiskResult, DiskToken, FileRef, Input, Output, Slot};
use tidemark_core::node::{Node, OpenParams};
use tidemark_core::ship::Message;
use tidemark_core::status::Status;
use tidemark_core::types::{BootId, ByteRange, Epoch, Nanos, NodeId, SiteId, WallMs};

use super::golden::{SLOT_BYTES, VOLUME};
use crate::peer::convert::{self, MAX_ENCODED_BYTES};

/// The disk is full beyond so many bytes.
const DISK_BYTES: usize = 8 << 20;
/// A copy that has more to do than this after one step does not come to rest.
const MAX_OUTPUTS: u32 = 100_000;
/// Recent frames in memory.
const TAIL_BYTES: u64 = 256 << 10;

/// Files by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(pub BTreeMap<FileRef, Vec<u8>>);

impl Disk {
    fn run(&mut self, op: DiskOp) -> DiskResult {
        match op {
            DiskOp::Write { file, offset, bufs, .. } => self.write(file, offset as usize, &bufs.concat()),
            DiskOp::Read { file, offset, len } => {
                let content = self.0.get(&file).ok_or(DiskError::Missing)?;
                let range = offset as usize..offset as usize + len as usize;
                let found = content.get(range).ok_or(DiskError::Short)?;
                Ok(DiskDone::Read(Bytes::copy_from_slice(found)))
            }
            DiskOp::Sync { .. } => Ok(DiskDone::Done),
            DiskOp::Zero { file, offset, len, .. } => self.write(file, offset as usize, &vec![0; len as usize]),
            DiskOp::Prepare { slot, len } => self.put(FileRef::Log(slot), vec![0; len as usize]),
            DiskOp::Remove { slot } => {
                self.0.remove(&FileRef::Log(slot));
                Ok(DiskDone::Done)
            }
            DiskOp::Replace { file, data } => self.put(file, data.concat()),
            DiskOp::Grow { layout } if layout.size() > DISK_BYTES as u64 => Err(DiskError::NoSpace),
            DiskOp::Grow { layout } => {
                let base = self.0.entry(FileRef::Base).or_default();
                base.resize(base.len().max(layout.size() as usize), 0);
                Ok(DiskDone::Done)
            }
            DiskOp::Map { range } => Ok(DiskDone::Mapped(vec![ByteRange::new(range.offset, range.len)])),
        }
    }

    fn write(&mut self, file: FileRef, offset: usize, data: &[u8]) -> DiskResult {
        let content = self.0.get_mut(&file).ok_or(DiskError::Missing)?;
        let place = content.get_mut(offset..offset + data.len());
        place
            .unwrap_or_else(|| panic!("a write of {} bytes at {offset} of {file:?}", data.len()))
            .copy_from_slice(data);
        Ok(DiskDone::Done)
    }

    fn put(&mut self, file: FileRef, content: Vec<u8>) -> DiskResult {
        let used: usize = self.0.values().map(Vec::len).sum();
        if used + content.len() > DISK_BYTES {
            return Err(DiskError::NoSpace);
        }
        self.0.insert(file, content);
        Ok(DiskDone::Done)
    }

    fn file(&self, file: FileRef) -> Bytes {
        self.0.get(&file).map(|content| Bytes::copy_from_slice(content)).unwrap_or_default()
    }

    fn slots(&self) -> Vec<(Slot, u64)> {
        let slot = |(file, content): (&FileRef, &Vec<u8>)| match file {
            FileRef::Log(slot) => Some((*slot, content.len() as u64)),
            _ => None,
        };
        self.0.iter().filter_map(slot).collect()
    }
}

/// A running copy.
pub(super) struct Copy {
    node: Node,
    disk: Disk,
    who: (SiteId, NodeId),
    now: Nanos,
    /// Operations are held back until they are asked for.
    is_late: bool,
    held: VecDeque<(DiskToken, DiskOp)>,
    /// Messages sent so far.
    pub sent: u32,
    /// Those that nobody has taken yet, where they are kept.
    pub outbox: Option<Vec<Message>>,
}

impl Copy {
    /// Opens the copy of `who` that `disk` holds; everything about it is the same each time.
    pub fn open(disk: Disk, who: (SiteId, NodeId), is_late: bool) -> Self {
        let now = Nanos(1_000_000_000);
        let params = OpenParams {
            volume: VOLUME,
            site: who.0,
            node: who.1,
            boot: BootId([9; 16]),
            rng_seed: [who.0.0[0]; 32],
            wall: WallMs(1_700_000_000_000),
            superblock: disk.file(FileRef::Superblock),
            config: disk.file(FileRef::Config),
            slots: disk.slots(),
            footers: Vec::new(),
            bases: vec![(VOLUME, disk.file(FileRef::Base).len() as u64)],
            tail_bytes: TAIL_BYTES,
            lease: None,
        };
        let node = Node::open(now, params).unwrap_or_else(|error| panic!("the copy does not open: {error}"));
        let mut copy = Self { node, disk, who, now, is_late: false, held: VecDeque::new(), sent: 0, outbox: None };
        copy.settle();
        copy.is_late = is_late;
        copy
    }

    /// The copy as it opens after a kill: what is on the disk stays, what the disk held back is lost.
    pub fn reopened(self) -> Self {
        Self::open(self.disk, self.who, false)
    }

    /// Its files.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Takes an input in and does all that follows.
    pub fn handle(&mut self, input: Input) {
        self.node.handle(self.now, input);
        self.settle();
    }

    /// Lets time pass.
    pub fn pass(&mut self, ms: u64) {
        self.now = self.now.after_ms(ms);
        self.handle(Input::Tick);
    }

    /// Does what the disk holds back.
    pub fn answer_disk(&mut self) {
        let was_late = std::mem::replace(&mut self.is_late, false);
        while let Some((token, op)) = self.held.pop_front() {
            let result = self.disk.run(op);
            self.handle(Input::Disk(token, result));
        }
        self.is_late = was_late;
    }

    fn settle(&mut self) {
        for _ in 0..MAX_OUTPUTS {
            match self.node.poll_output(self.now) {
                None => return,
                Some(Output::Disk(token, op)) if self.is_late => self.held.push_back((token, op)),
                Some(Output::Disk(token, op)) => {
                    let result = self.disk.run(op);
                    self.node.handle(self.now, Input::Disk(token, result));
                }
                Some(Output::Send(_, message)) => self.send(message),
                Some(
                    Output::Reply(..)
                    | Output::Close(..)
                    | Output::Verb(..)
                    | Output::Ask(..)
                    | Output::SendSite(..)
                    | Output::Layout { .. }
                    | Output::Held(..)
                    | Output::HoldEnded(_)
                    | Output::Event(_),
                ) => {}
            }
        }
        panic!("the copy does not come to rest");
    }

    fn send(&mut self, message: Message) {
        self.sent += 1;
        if let Some(outbox) = &mut self.outbox {
            outbox.push(message.clone());
        }
        let envelope = convert::to_wire(message);
        let len = envelope.encoded_len();
        assert!(len <= MAX_ENCODED_BYTES, "a message of {len} bytes is sent");
        let back = convert::from_wire(envelope);
        assert!(back.is_ok(), "what is sent is not understood: {back:?}");
    }

    /// Panics when an invariant does not hold.
    pub fn check(&self) {
        self.node.check();
    }

    /// What it says of itself.
    pub fn status(&self) -> Status {
        self.node.status(self.now)
    }

    /// Epoch of its K.
    pub fn epoch(&self) -> Epoch {
        self.status().config.epoch
    }

    /// Its newest record.
    pub fn records(&self) -> u64 {
        self.status().appended.lsn.0
    }
}

/// Bytes of a log that has room for a few segments.
pub(super) const LOG_BYTES: u64 = 16 * SLOT_BYTES;
