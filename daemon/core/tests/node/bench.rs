//! Copies of a volume on disks in memory, wired to each other: what is asked for is done at once, unless a test says otherwise.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemark_core::config::{Mode, Policy};
use tidemark_core::event::{
    ConnId, DiskDone, DiskError, DiskOp, DiskResult, DiskToken, Event, FileRef, HoldId, Input, Output, Request,
    RequestError, RequestId, Slot, VerbId,
};
use tidemark_core::group::lease::Terms;
use tidemark_core::layout::Layout;
use tidemark_core::node::{CreateKind, CreateParams, Held, Node, OpenParams};
use tidemark_core::plan::Plan;
use tidemark_core::ship::{Hello, Message};
use tidemark_core::status::Status;
use tidemark_core::types::{
    BLOCK, BootId, ByteRange, GenId, GroupId, Nanos, NodeId, Nonce, Secret, SiteId, VolumeId, WallMs,
};
use tidemark_core::verb::{Assertion, Verb, VerbError, VerbOk};

use crate::witness::Witness;

/// The two sites.
pub const A: usize = 0;
/// The other one.
pub const B: usize = 1;
/// Bytes of the volume.
pub const SIZE: u64 = 1 << 20;
/// Bytes of a slot of the log: a segment takes a handful of writes.
pub const SLOT_BYTES: u64 = 64 << 10;

/// The volume that names the log.
pub const VOLUME: VolumeId = VolumeId([7; 16]);

/// What becomes of a disk operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is done at once.
    Done,
    /// It fails at once and changes nothing.
    Fails,
    /// As `Fails`, for want of space.
    FindsNoSpace,
    /// It does not end; a kill ends it without effect.
    Hangs,
    /// It is done when the test says so.
    Later,
}

/// A site: its files, and the copy that runs there.
pub struct Copy {
    site: usize,
    /// What it has on its disk.
    pub files: BTreeMap<FileRef, Vec<u8>>,
    node: Option<Node>,
    /// Decides about each operation of the disk.
    pub fate: fn(&DiskOp) -> Fate,
    /// Operations that are done later.
    late: Vec<(DiskToken, DiskOp)>,
    /// Verbs that ended.
    pub ended: Vec<(VerbId, Result<VerbOk, VerbError>)>,
    /// Requests that were answered.
    pub replies: Vec<RequestId>,
    /// First byte of what was read last.
    last_read: Option<u8>,
    /// Codes of the alarms of this opening.
    pub alarms: Vec<&'static str>,
    /// The terms of its lease, where there is a witness.
    pub lease: Option<Terms>,
    /// Bytes of the bases that were made for a group, and what the copy says that the base is composed of.
    pub bases: BTreeMap<VolumeId, u64>,
    composed: Option<Layout>,
    /// What a base that is made for a further volume holds.
    pub fills_new_bases_with: u8,
    /// Requests that were refused.
    pub refused: Vec<RequestId>,
    /// Its last greeting.
    pub said: Option<Box<Hello>>,
    /// Answers to who asked for a view, and views that ended.
    pub held: Vec<(HoldId, Result<Box<Held>, VerbError>)>,
    /// Views that ended, and what the base held then.
    pub ended_views: Vec<(HoldId, Vec<u8>)>,
}

/// Two sites and the stream between them.
pub struct Pair {
    /// The sites.
    pub copies: [Copy; 2],
    /// Time, the same at both.
    pub now: Nanos,
    streams: u64,
    connected: bool,
    /// Messages to this site are lost, though the stream stands.
    pub deaf: [bool; 2],
    /// The witness, and what each site knows of it.
    pub witness: Witness,
    asked: u64,
}

pub(crate) fn site_id(site: usize) -> SiteId {
    SiteId([site as u8 + 1; 16])
}

pub(crate) fn node_id(site: usize) -> NodeId {
    NodeId([site as u8 + 1; 16])
}

/// A word of a human that the other site is stopped.
pub fn assertion() -> Assertion {
    Assertion { who: "test".into(), why: "the other site is stopped".into(), at: WallMs(1) }
}

/// True for a sync of the log.
pub fn is_log_sync(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Sync { files } if files.iter().any(|f| matches!(f, FileRef::Log(_))))
}

/// Opens a copy by such a word, at any loss.
pub fn promote_anyway() -> Verb {
    Verb::Promote {
        assert_peer_fenced: Some(assertion()),
        max_loss_bytes: None,
        max_loss_seconds: None,
        allow_unproven: true,
    }
}

impl Copy {
    fn absent(site: usize) -> Self {
        Self {
            site,
            files: BTreeMap::new(),
            node: None,
            fate: |_| Fate::Done,
            late: Vec::new(),
            ended: Vec::new(),
            replies: Vec::new(),
            last_read: None,
            alarms: Vec::new(),
            lease: None,
            bases: BTreeMap::new(),
            composed: None,
            fills_new_bases_with: 0,
            refused: Vec::new(),
            said: None,
            held: Vec::new(),
            ended_views: Vec::new(),
        }
    }

    fn file(&self, file: FileRef) -> Bytes {
        self.files.get(&file).map(|content| Bytes::copy_from_slice(content)).unwrap_or_default()
    }

    fn slots(&self) -> Vec<(Slot, u64)> {
        let slot = |(file, content): (&FileRef, &Vec<u8>)| match file {
            FileRef::Log(slot) => Some((*slot, content.len() as u64)),
            _ => None,
        };
        self.files.iter().filter_map(slot).collect()
    }

    fn footers(&self) -> Vec<(u32, Bytes)> {
        let footer = |(file, content): (&FileRef, &Vec<u8>)| match file {
            FileRef::Footer(number) => Some((*number, Bytes::copy_from_slice(content))),
            _ => None,
        };
        self.files.iter().filter_map(footer).collect()
    }

    fn place(&mut self, policy: Policy, kind: CreateKind) {
        let params = CreateParams {
            volume: VOLUME,
            group: GroupId([9; 16]),
            site: site_id(self.site),
            node: node_id(self.site),
            secret: Secret([5; 32]),
            layout: Layout::one(VOLUME, SIZE),
            slot_bytes: SLOT_BYTES,
            policy,
            peer: Some(site_id(1 - self.site)),
            kind,
            adopted: false,
            members: None,
        };
        let new = Node::create(&params);
        self.files.retain(|file, _| *file == FileRef::Base);
        self.files.insert(FileRef::Superblock, new.superblock.to_vec());
        self.files.insert(FileRef::Config, new.config.to_vec());
        self.files.entry(FileRef::Base).or_insert_with(|| vec![0; SIZE as usize]);
    }

    fn open(&mut self, now: Nanos) {
        let params = OpenParams {
            volume: VOLUME,
            site: site_id(self.site),
            node: node_id(self.site),
            boot: BootId([9; 16]),
            rng_seed: [now.0 as u8 ^ self.site as u8; 32],
            wall: WallMs(1_700_000_000_000),
            superblock: self.file(FileRef::Superblock),
            config: self.file(FileRef::Config),
            slots: self.slots(),
            footers: self.footers(),
            bases: self.bases(),
            tail_bytes: 256 << 10,
            lease: self.lease,
        };
        self.alarms.clear();
        self.composed = None;
        self.node = Some(Node::open(now, params).unwrap_or_else(|error| panic!("the copy does not open: {error}")));
    }

    fn run(&mut self, op: DiskOp) -> DiskResult {
        match op {
            DiskOp::Write { file, offset, bufs, .. } => self.write(file, offset, &bufs.concat()),
            DiskOp::Zero { file, offset, len, .. } => self.write(file, offset, &vec![0; len as usize]),
            DiskOp::Read { file, offset, len } => {
                let content = self.files.get(&file).ok_or(DiskError::Missing)?;
                let found = content.get(offset as usize..offset as usize + len as usize).ok_or(DiskError::Short)?;
                let nobodys = |at: &u64| file == FileRef::Base && self.is_nobodys(*at);
                let mut found = found.to_vec();
                for sector in (offset..offset + u64::from(len)).step_by(512).filter(nobodys) {
                    found[(sector - offset) as usize..][..512].fill(0);
                }
                Ok(DiskDone::Read(found.into()))
            }
            DiskOp::Map { range } => Ok(DiskDone::Mapped(vec![ByteRange::new(range.offset, range.len)])),
            DiskOp::Prepare { slot, len } => self.put(FileRef::Log(slot), vec![0; len as usize]),
            DiskOp::Replace { file, data } => self.put(file, data.concat()),
            DiskOp::Remove { slot } => {
                self.files.remove(&FileRef::Log(slot));
                Ok(DiskDone::Done)
            }
            DiskOp::Grow { layout } => {
                self.make_room(&layout);
                Ok(DiskDone::Done)
            }
            DiskOp::Sync { .. } => Ok(DiskDone::Done),
        }
    }

    /// What the composed base holds.
    pub fn base(&self) -> &[u8] {
        &self.files[&FileRef::Base]
    }

    /// What belongs to no volume of a group is kept nowhere.
    fn is_nobodys(&self, at: u64) -> bool {
        let group = self.composed.as_ref().filter(|layout| layout.extents().len() > 1);
        group.is_some_and(|layout| layout.locate(at).is_none())
    }

    /// Of a volume that is alone, all that the base has.
    fn bases(&self) -> Vec<(VolumeId, u64)> {
        let mut bases = self.bases.clone();
        if bases.keys().all(|volume| *volume == VOLUME) {
            bases.insert(VOLUME, self.files.get(&FileRef::Base).map_or(0, |base| base.len() as u64));
        }
        bases.into_iter().collect()
    }

    fn make_room(&mut self, layout: &Layout) {
        for volume in layout.volumes() {
            let bytes = self.bases.entry(volume).or_default();
            *bytes = (*bytes).max(layout.volume_size(volume).unwrap_or(0));
        }
        let fill = self.fills_new_bases_with;
        if let Some(base) = self.files.get_mut(&FileRef::Base) {
            let len = layout.size().next_multiple_of(if layout.extents().len() > 1 { BLOCK as u64 } else { 512 });
            base.resize(base.len().max(len as usize), fill);
        }
    }

    /// The base is composed anew; what left it is given up.
    fn compose(&mut self, layout: &Layout, base: Layout) {
        if layout.extents().len() > 1 {
            self.make_room(layout);
        }
        for volume in base.volumes() {
            let is_there = volume == VOLUME || self.bases.contains_key(&volume);
            assert!(is_there, "the base of {volume} was given up, and the base is to be composed of it");
        }
        if let Some(before) = self.composed.replace(base.clone()) {
            self.bases.retain(|volume, _| base.has(*volume) || !before.has(*volume));
        }
    }

    fn put(&mut self, file: FileRef, content: Vec<u8>) -> DiskResult {
        self.files.insert(file, content);
        Ok(DiskDone::Done)
    }

    fn write(&mut self, file: FileRef, offset: u64, data: &[u8]) -> DiskResult {
        for (sector, piece) in (offset..).step_by(512).zip(data.chunks(512)) {
            if file != FileRef::Base || !self.is_nobodys(sector) {
                let content = self.files.get_mut(&file).ok_or(DiskError::Missing)?;
                content[sector as usize..sector as usize + piece.len()].copy_from_slice(piece);
            }
        }
        Ok(DiskDone::Done)
    }

    /// How the verb ended, if it did.
    pub fn end_of(&self, id: VerbId) -> Option<&Result<VerbOk, VerbError>> {
        self.ended.iter().find(|(ended, _)| *ended == id).map(|(_, result)| result)
    }
}

impl Pair {
    /// A primary at A and a whole copy at B, in mode async.
    pub fn new() -> Self {
        let policy = Policy { mode: Mode::Async, log_bytes: 64 * SLOT_BYTES, ..Policy::default() };
        let mut pair = Self {
            copies: [Copy::absent(A), Copy::absent(B)],
            now: Nanos(1_000_000_000),
            streams: 0,
            connected: false,
            deaf: [false; 2],
            witness: Witness::default(),
            asked: 0,
        };
        pair.copies[A].place(policy, CreateKind::Primary { generation: GenId([3; 16]), nonce: Nonce([4; 16]) });
        pair.start(A);
        let config = pair.status(A).config;
        pair.copies[B].place(policy, CreateKind::Replica { config });
        pair.start(B);
        pair.connect();
        assert_eq!(pair.status(B).appended, pair.status(A).appended, "B is seeded: {:?}", pair.status(B));
        pair
    }

    /// The process of a site ends; what its files hold stays.
    pub fn kill(&mut self, site: usize) {
        self.disconnect();
        self.copies[site].late.clear();
        self.copies[site].node = None;
        self.witness.forget(site);
    }

    /// The process of a site starts.
    pub fn start(&mut self, site: usize) {
        let now = self.now;
        self.copies[site].open(now);
        self.settle();
    }

    /// The sites see each other, as far as they are up.
    pub fn connect(&mut self) {
        self.disconnect();
        self.streams += 1;
        self.connected = true;
        for site in [A, B] {
            let up = Input::PeerUp { conn: ConnId(self.streams), site: site_id(1 - site) };
            self.tell(site, up);
        }
        self.settle();
    }

    /// The stream breaks.
    pub fn disconnect(&mut self) {
        if std::mem::take(&mut self.connected) {
            for site in [A, B] {
                self.tell(site, Input::PeerDown(ConnId(self.streams)));
            }
            self.settle();
        }
    }

    pub(crate) fn tell(&mut self, site: usize, input: Input) {
        if let Some(node) = &mut self.copies[site].node {
            node.handle(self.now, input);
        }
    }

    /// The process of a site runs.
    pub(crate) fn is_up(&self, site: usize) -> bool {
        self.copies[site].node.is_some()
    }

    /// Lets time pass.
    pub fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(100) {
            self.now = self.now.after_ms(100);
            for site in [A, B] {
                self.renew(site);
                self.tell(site, Input::Tick);
            }
            self.settle();
        }
    }

    /// Asks a verb; gives its number.
    pub fn verb(&mut self, site: usize, verb: Verb) -> VerbId {
        self.asked += 1;
        let id = VerbId(self.asked);
        self.tell(site, Input::Verb(id, verb));
        self.settle();
        id
    }

    /// Writes one block full of `byte`, which is durable when it is answered; gives the number of the request.
    pub fn write(&mut self, site: usize, block: u64, byte: u8) -> RequestId {
        self.change(site, block, byte, true)
    }

    /// As [`Self::write`], into the volatile cache.
    pub fn write_without_promise(&mut self, site: usize, block: u64, byte: u8) -> RequestId {
        self.change(site, block, byte, false)
    }

    /// The first byte of a block.
    pub fn read(&mut self, site: usize, block: u64) -> u8 {
        self.asked += 1;
        let id = RequestId(self.asked);
        let range = ByteRange::new(block * BLOCK as u64, BLOCK as u64);
        self.tell(site, Input::Request(id, Request::Read { range }));
        self.settle();
        assert!(self.copies[site].replies.contains(&id), "the read is answered: {:?}", self.status(site));
        self.copies[site].last_read.expect("it succeeds")
    }

    /// Makes durable what was answered; gives the number of the request.
    pub fn flush(&mut self, site: usize) -> RequestId {
        self.asked += 1;
        let id = RequestId(self.asked);
        self.tell(site, Input::Request(id, Request::Flush));
        self.settle();
        id
    }

    /// Writes several blocks in one request, into the volatile cache; gives the number of the request.
    pub fn write_blocks(&mut self, site: usize, block: u64, count: usize, byte: u8) -> RequestId {
        self.change_blocks(site, block, count, byte, false)
    }

    fn change(&mut self, site: usize, block: u64, byte: u8, fua: bool) -> RequestId {
        self.change_blocks(site, block, 1, byte, fua)
    }

    fn change_blocks(&mut self, site: usize, block: u64, count: usize, byte: u8, fua: bool) -> RequestId {
        self.asked += 1;
        let id = RequestId(self.asked);
        let bytes = count * BLOCK;
        let range = ByteRange::new(block * BLOCK as u64, bytes as u64);
        let request = Request::Write { range, data: Bytes::from(vec![byte; bytes]), fua };
        self.tell(site, Input::Request(id, request));
        self.settle();
        id
    }

    /// Does the first thing that was to be done later.
    pub fn do_first_late(&mut self, site: usize) {
        if !self.copies[site].late.is_empty() {
            let (token, op) = self.copies[site].late.remove(0);
            let result = self.copies[site].run(op);
            self.tell(site, Input::Disk(token, result));
            self.settle();
        }
    }

    /// Does what was to be done later.
    pub fn do_late(&mut self, site: usize) {
        for (token, op) in std::mem::take(&mut self.copies[site].late) {
            let result = self.copies[site].run(op);
            self.tell(site, Input::Disk(token, result));
        }
        self.settle();
    }

    /// What a copy says of itself.
    pub fn status(&self, site: usize) -> Status {
        self.copies[site].node.as_ref().map(|n| n.status(self.now)).expect("the copy is open")
    }

    /// What a verb would do.
    pub fn plan(&self, site: usize, verb: &Verb) -> Result<Plan, VerbError> {
        self.copies[site].node.as_ref().expect("the site is up").plan(self.now, verb)
    }

    /// Does all that follows from what was told.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if ![A, B].into_iter().any(|site| self.step(site)) {
                return;
            }
        }
        panic!("the copies do not come to rest");
    }

    fn step(&mut self, site: usize) -> bool {
        let Some(node) = &mut self.copies[site].node else { return false };
        let Some(output) = node.poll_output(self.now) else {
            node.check();
            return false;
        };
        match output {
            Output::Disk(token, op) => {
                let copy = &mut self.copies[site];
                let result = match (copy.fate)(&op) {
                    Fate::Done => copy.run(op),
                    Fate::Fails => Err(DiskError::Io),
                    Fate::FindsNoSpace => Err(DiskError::NoSpace),
                    Fate::Hangs => return true,
                    Fate::Later => {
                        copy.late.push((token, op));
                        return true;
                    }
                };
                self.tell(site, Input::Disk(token, result));
            }
            Output::Send(conn, message) => self.send(site, conn, message),
            Output::Close(conn, _) => self.closed(site, conn),
            Output::Verb(id, result) => self.copies[site].ended.push((id, result)),
            Output::Reply(id, result) => {
                let copy = &mut self.copies[site];
                copy.replies.push(id);
                if result == Err(RequestError::Invalid) {
                    copy.refused.push(id);
                }
                copy.last_read = result.ok().and_then(|pieces| pieces.first().and_then(|piece| piece.first().copied()));
            }
            Output::Event(Event::Alarm { code, .. }) => self.copies[site].alarms.push(code),
            Output::Ask(id, question) => {
                let answer = self.witness.ask(site, &question);
                self.tell(site, Input::Witness(id, answer));
            }
            Output::Layout { layout, base } => self.copies[site].compose(&layout, base),
            Output::Held(id, held) => self.copies[site].held.push((id, held)),
            Output::HoldEnded(id) => {
                let base = self.copies[site].base().to_vec();
                self.copies[site].ended_views.push((id, base));
            }
            Output::SendSite(..) | Output::Event(_) => {}
        }
        true
    }

    /// One end closed a stream: the other learns of it, unless it is an old one.
    fn closed(&mut self, site: usize, conn: ConnId) {
        if conn.0 == self.streams && std::mem::take(&mut self.connected) {
            self.tell(1 - site, Input::PeerDown(conn));
        }
    }

    /// The number of the stream.
    pub fn streams(&self) -> u64 {
        self.streams
    }

    /// The stream stands.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    fn send(&mut self, site: usize, conn: ConnId, message: Message) {
        if let Message::Hello(hello) = &message {
            self.copies[site].said = Some(hello.clone());
        }
        if self.connected && conn.0 == self.streams && !self.deaf[1 - site] {
            self.tell(1 - site, Input::PeerMessage(conn, message));
        }
    }

    /// The copy at B is made anew, on the base that is there.
    pub fn replace_b(&mut self) {
        let status = self.status(A);
        self.copies[B].place(status.policy, CreateKind::Replica { config: status.config });
        self.start(B);
        self.connect();
    }
}
