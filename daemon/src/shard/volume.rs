//! A volume on its shard: the core, its files, and who waits for which answer.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tidemark_core::config::AckOn;
use tidemark_core::event::{
    AskId, CloseReason, ConnId, DiskResult, DiskToken, Event, Grant, HoldId, Input, Output, Question, Request,
    RequestError, RequestId, VerbId, WitnessAnswer,
};
use tidemark_core::layout::Layout;
use tidemark_core::node::Node;
use tidemark_core::plan::Plan;
use tidemark_core::ship::Message;
use tidemark_core::status::Status;
use tidemark_core::types::{Boundary, ByteRange, Lsn, Nanos, SiteId, VolumeId};
use tidemark_core::verb::{Verb, VerbError, VerbOk};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::Shard;
use super::holds::{HeldAnswer, Holds};
use super::site::SiteStreams;
use super::target::{self, Parts, Target};
use crate::disk::{Pool, VolumeFiles, VolumeKey};
use crate::frontend::{Allocation, BlockTarget, Completion, Geometry};
use crate::here;
use crate::peer::{Outbound, PeerStream};
use crate::telemetry::{DiskFile, DiskMetrics, DiskVerb};
use crate::witness::Witness;

/// Called with what a core reports, on the shard's thread.
pub type VolumeEvents = Box<dyn Fn(&Event)>;

/// Called when the volumes of a copy are others, on the shard's thread.
pub type LayoutEvents = Box<dyn Fn()>;

/// A copy to open on a shard.
pub struct OpenVolume {
    /// Its identity.
    pub id: VolumeId,
    /// Its core, just opened.
    pub node: Node,
    /// Its files.
    pub files: VolumeFiles,
    /// Where events go.
    pub events: VolumeEvents,
    /// Told of other volumes.
    pub layouts: LayoutEvents,
    /// Where the times of its disk operations go.
    pub disk: DiskMetrics,
    /// The witness, and where it is asked: its connections do not live on a shard.
    pub witness: Option<(Arc<Witness>, Handle)>,
}

/// A copy of a group, with all its volumes, on its shard.
pub struct Volume {
    key: VolumeKey,
    id: VolumeId,
    shard: Weak<Shard>,
    node: RefCell<Node>,
    files: VolumeFiles,
    /// The volumes that are served.
    layout: RefCell<Rc<Layout>>,
    layouts: LayoutEvents,
    requests: RefCell<BTreeMap<RequestId, Completion>>,
    verbs: RefCell<BTreeMap<VerbId, oneshot::Sender<Result<VerbOk, VerbError>>>>,
    streams: RefCell<BTreeMap<ConnId, (Outbound, Rc<Notify>)>>,
    /// To the other members of its group at this site.
    pub(super) site: SiteStreams,
    /// A stream to the peer is being opened.
    dialing: Cell<bool>,
    holds: RefCell<Holds>,
    closed: RefCell<Option<oneshot::Sender<()>>>,
    next_id: Cell<u64>,
    gone: Cell<bool>,
    events: VolumeEvents,
    disk: DiskMetrics,
    witness: Option<(Arc<Witness>, Handle)>,
    /// Disk operations under way and when they began.
    disk_ops: RefCell<BTreeMap<DiskToken, (DiskVerb, DiskFile, Nanos)>>,
    /// When a request was last answered, or a message came whose acknowledgement somebody waits for.
    asked_at: Cell<Nanos>,
}

impl Shard {
    /// Takes a volume in; its recovery begins at once.
    pub fn open(self: &Rc<Self>, open: OpenVolume) -> Rc<Volume> {
        let volume = Rc::new(Volume {
            key: self.new_key(),
            id: open.id,
            layout: RefCell::new(Rc::new(open.node.status(self.now()).layout)),
            layouts: open.layouts,
            shard: Rc::downgrade(self),
            node: RefCell::new(open.node),
            files: open.files,
            requests: RefCell::default(),
            verbs: RefCell::default(),
            streams: RefCell::default(),
            site: SiteStreams::default(),
            dialing: Cell::new(false),
            holds: RefCell::default(),
            closed: RefCell::default(),
            next_id: Cell::new(1),
            gone: Cell::new(false),
            events: open.events,
            disk: open.disk,
            witness: open.witness,
            disk_ops: RefCell::default(),
            asked_at: Cell::default(),
        });
        self.volumes.borrow_mut().insert(volume.key.0, volume.clone());
        volume.told_lease(self.grant());
        self.rouse();
        volume
    }

    /// The copy with this identity.
    pub fn volume(&self, id: VolumeId) -> Option<Rc<Volume>> {
        self.volumes.borrow().values().find(|v| v.id == id).cloned()
    }

    /// A volume of the copy with this identity, for a frontend.
    pub fn target(&self, copy: VolumeId, volume: VolumeId) -> Option<Rc<dyn BlockTarget>> {
        let copy = self.volume(copy)?;
        copy.layout().has(volume).then(|| Rc::new(Target::new(copy, volume)) as Rc<dyn BlockTarget>)
    }

    /// Every copy of this shard.
    pub fn all(&self) -> Vec<Rc<Volume>> {
        self.volumes.borrow().values().cloned().collect()
    }
}

impl Volume {
    /// Its name on the ring.
    pub fn key(&self) -> VolumeKey {
        self.key
    }

    /// Its identity.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Its files.
    pub fn files(&self) -> &VolumeFiles {
        &self.files
    }

    /// True when it is closed and nothing of it is on its way to the disk.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Its status now.
    pub fn status(&self) -> Status {
        self.node.borrow().status(self.now())
    }

    /// What a verb would do now.
    ///
    /// # Errors
    /// What the verb itself would answer now.
    pub fn plan(&self, verb: &Verb) -> Result<Plan, VerbError> {
        self.node.borrow().plan(self.now(), verb)
    }

    /// Progress of a comparison: blocks compared, blocks in all.
    pub fn verify_status(&self) -> Option<(u64, u64)> {
        self.node.borrow().verify_status()
    }

    fn now(&self) -> Nanos {
        self.shard.upgrade().map_or(Nanos(1), |s| s.now())
    }

    pub(super) fn next(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    pub(super) fn tell(&self, input: Input) {
        let now = self.now();
        self.node.borrow_mut().handle(now, input);
        if let Some(shard) = self.shard.upgrade() {
            shard.rouse();
        }
    }

    /// The agent's lease, on the clock of the shard.
    pub(super) fn told_lease(&self, grant: Option<Grant>) {
        self.tell(Input::Lease(grant));
    }

    /// Asks for a verb; the answer comes on the channel.
    pub fn verb(&self, verb: Verb, answer: oneshot::Sender<Result<VerbOk, VerbError>>) {
        let id = VerbId(self.next());
        self.verbs.borrow_mut().insert(id, answer);
        self.tell(Input::Verb(id, verb));
    }

    /// Asks for a view of what this copy holds, or held where a sealed suffix begins. `ended` is set when it ends.
    pub fn hold(&self, at: Option<Boundary>, ended: Arc<AtomicBool>, answer: HeldAnswer) -> HoldId {
        let id = HoldId(self.next());
        self.holds.borrow_mut().insert(id, ended, answer);
        self.tell(Input::Hold(id, at));
        id
    }

    /// Nobody needs that view any more.
    pub fn let_go_of(&self, id: HoldId) {
        self.holds.borrow_mut().let_go(id);
        self.tell(Input::LetGo(id));
    }

    /// Of so many sealed suffixes those that are kept begin at this record or later.
    pub fn keep_branches(&self, sealed: u32, first: Option<Lsn>) {
        self.tell(Input::KeepBranches { sealed, first });
    }

    /// Whether the suffix that begins there could be opened, or what this copy holds.
    ///
    /// # Errors
    /// Why not.
    pub fn may_view(&self, at: Option<Boundary>) -> Result<(), VerbError> {
        self.node.borrow().judge_view(at).map(drop)
    }

    /// Serves a stream to the peer's copy until either end closes it; `site` is the peer that the stream belongs to. To be
    /// spawned on the shard.
    pub async fn serve_peer(self: Rc<Self>, stream: PeerStream, site: SiteId) {
        let conn = ConnId(self.next());
        let PeerStream { mut inbound, outbound, remote, .. } = stream;
        let closed = Rc::new(Notify::new());
        self.streams.borrow_mut().insert(conn, (outbound, closed.clone()));
        self.tell(Input::PeerUp { conn, site });
        let pool = self.shard.upgrade().map(|shard| shard.pool()).unwrap_or_default();
        let mut messages = Vec::new();
        loop {
            let received = tokio::select! {
                received = inbound.recv_many(&mut messages, MESSAGES_AT_ONCE) => received,
                () = closed.notified() => return,
            };
            for message in messages.drain(..) {
                if self.is_hurried(&message) || matches!(message, Message::Sync { .. }) {
                    self.asked_at.set(self.now());
                }
                self.tell(Input::PeerMessage(conn, settled(message, &pool)));
            }
            if let Err(end) = received {
                tracing::info!(volume = %self.id, %remote, %end, "stream to the peer ended");
                break;
            }
        }
        self.streams.borrow_mut().remove(&conn);
        self.tell(Input::PeerDown(conn));
    }

    /// Opens a stream to the peer with `connect` and serves it, unless there is one or one is being opened: a second would only
    /// take the place of the first. To be spawned on the shard.
    pub async fn dial<E>(
        self: Rc<Self>,
        site: SiteId,
        connect: impl Future<Output = Result<PeerStream, E>>,
    ) -> Result<(), E> {
        if !self.streams.borrow().is_empty() || self.dialing.replace(true) {
            return Ok(());
        }
        let connected = connect.await;
        self.dialing.set(false);
        self.serve_peer(connected?, site).await;
        Ok(())
    }

    pub(super) fn on_disk(&self, now: Nanos, token: DiskToken, result: DiskResult) {
        if let Some((verb, file, since)) = self.disk_ops.borrow_mut().remove(&token) {
            self.disk.ended(verb, file, Duration::from_nanos(now.since(since)));
        }
        self.node.borrow_mut().handle(now, Input::Disk(token, result));
    }

    /// Carries out what the core asks for; gives when it wants to look at the clock again.
    pub(super) fn drive(&self, now: Nanos, shard: &Shard) -> Option<Nanos> {
        let due = self.node.borrow().poll_timeout().is_some_and(|at| at <= now);
        if due {
            self.node.borrow_mut().handle(now, Input::Tick);
        }
        // The borrow ends before the output is carried out: a completion may hand in the next request.
        loop {
            let output = self.node.borrow_mut().poll_output(now);
            let Some(output) = output else { break };
            self.carry_out(now, output, shard);
        }
        let node = self.node.borrow();
        self.gone.set(node.is_closed() && shard.ring.borrow().in_flight(self.key) == 0);
        if self.gone.get() {
            self.let_go();
        }
        node.poll_timeout().map(|at| if at <= now { Nanos(now.0 + 1_000_000) } else { at })
    }

    fn let_go(&self) {
        for (_, closed) in std::mem::take(&mut *self.streams.borrow_mut()).into_values() {
            closed.notify_one();
        }
        for (_, done) in std::mem::take(&mut *self.requests.borrow_mut()) {
            done(Err(RequestError::NotServing));
        }
        self.site.end_all();
        self.holds.borrow_mut().end_all();
        if let Some(closed) = self.closed.borrow_mut().take() {
            let _ = closed.send(()); // nobody waits any more: fine
        }
    }

    /// Rings when the volume is closed and its files may be used by others.
    pub fn on_gone(&self, closed: oneshot::Sender<()>) {
        *self.closed.borrow_mut() = Some(closed);
    }

    fn carry_out(&self, now: Nanos, output: Output, shard: &Shard) {
        match output {
            Output::Disk(token, op) => {
                let (verb, file) = DiskVerb::of(&op);
                self.disk_ops.borrow_mut().insert(token, (verb, file, now));
                shard.ring.borrow_mut().queue(self.key, token, op, &self.files);
            }
            Output::Reply(id, result) => {
                let done = self.requests.borrow_mut().remove(&id);
                self.asked_at.set(now);
                if let Some(done) = done {
                    done(result);
                }
            }
            Output::Send(conn, message) => {
                shard.hurry.set(shard.hurry.get() || self.is_hurried(&message));
                if let Some((stream, _)) = self.streams.borrow().get(&conn) {
                    let _ = stream.send(message); // a broken stream reports itself
                }
            }
            Output::Close(conn, reason) => self.close_stream(conn, &reason),
            Output::Verb(id, result) => {
                let answer = self.verbs.borrow_mut().remove(&id);
                if let Some(answer) = answer {
                    let _ = answer.send(result); // the asker went away
                }
            }
            Output::Ask(id, question) => self.ask(id, question, shard),
            Output::Event(event) => (self.events)(&event),
            Output::Held(id, held) => {
                if !self.holds.borrow_mut().on_held(id, held) {
                    self.tell(Input::LetGo(id));
                }
            }
            Output::HoldEnded(id) => self.holds.borrow_mut().on_ended(id),
            Output::Layout { layout, base } => self.lay_out(layout, &base),
            Output::SendSite(conn, message) => self.site.send(conn, message),
        }
    }

    /// Asks the witness, which answers in its time: then the core is told, unless the volume is closed.
    fn ask(&self, id: AskId, question: Question, shard: &Shard) {
        let volume = shard.volumes.borrow().get(&self.key.0).map(Rc::downgrade).unwrap_or_default();
        let asked = self.witness.clone().map(|(witness, runtime)| {
            runtime.spawn(async move { witness.answer(question).await }) // goes on, and is counted, when the volume is gone
        });
        here::spawn(async move {
            let answer = match asked {
                Some(asked) => asked.await.unwrap_or(WitnessAnswer::Lost),
                None => WitnessAnswer::Lost,
            };
            if let Some(volume) = volume.upgrade() {
                volume.tell(Input::Witness(id, answer));
            }
        });
    }

    /// True when a request is under way or the next one is likely to follow at once; at a replica, when its primary's is.
    pub(super) fn is_awaited(&self, now: Nanos) -> bool {
        !self.requests.borrow().is_empty() || now.since(self.asked_at.get()) < ASKED_NS
    }

    /// True for a message whose acknowledgement somebody waits for.
    fn is_hurried(&self, message: &Message) -> bool {
        let is_write_through = || self.node.borrow().ack_on() == AckOn::Write;
        matches!(message, Message::Append(append) if append.sync || is_write_through())
    }

    fn close_stream(&self, conn: ConnId, reason: &CloseReason) {
        let stream = self.streams.borrow_mut().remove(&conn);
        if let Some((_, closed)) = stream {
            closed.notify_one();
            tracing::info!(volume = %self.id, %reason, "stream to the peer closed");
        }
    }
}

impl Volume {
    fn lay_out(&self, layout: Layout, base: &Layout) {
        if let Err(error) = self.files.compose(base) {
            tracing::error!(volume = %self.id, %error, "the base of the group cannot be used");
        }
        *self.layout.borrow_mut() = Rc::new(layout);
        (self.layouts)();
    }

    /// The volumes that are served.
    pub(super) fn layout(&self) -> Rc<Layout> {
        self.layout.borrow().clone()
    }

    /// What to advertise of any of its volumes.
    pub(super) fn terms(&self) -> Geometry {
        let write_through = self.node.borrow().ack_on() == AckOn::Write;
        Geometry { size: 0, write_through, read_only: false }
    }

    /// Hands a request for one of its volumes to the core.
    pub fn submit_to(&self, volume: VolumeId, request: Request, done: Completion) {
        let moved = target::moved(&self.layout.borrow(), volume, request);
        match moved {
            Ok(request) => self.submit(request, done),
            Err(request) => self.submit_parts(volume, &request, done),
        }
    }

    fn submit_parts(&self, volume: VolumeId, request: &Request, done: Completion) {
        let layout = self.layout();
        match target::parts(&layout, volume, request).filter(|parts| !parts.is_empty()) {
            Some(parts) => {
                let all = Parts::of(parts.len(), done);
                parts.into_iter().enumerate().for_each(|(number, part)| self.submit(part, all.part(number)));
            }
            None => done(Err(RequestError::Invalid)),
        }
    }

    fn submit(&self, request: Request, done: Completion) {
        let id = RequestId(self.next());
        self.requests.borrow_mut().insert(id, done);
        self.tell(Input::Request(id, request));
    }

    pub(super) fn is_serving(&self) -> bool {
        self.node.borrow().role().serves()
    }

    /// Holes of the base that the log does not cover. Without an answer from the file system everything counts as data.
    pub(super) fn allocated(&self, range: ByteRange) -> Allocation {
        let data = self.files.data_ranges(range).unwrap_or_else(|_| vec![range]);
        let node = self.node.borrow();
        let mut out: Allocation = Vec::new();
        let mut put = |from: u64, to: u64, hole: bool| {
            let (from, to) = (from.max(range.offset), to.min(range.end()));
            if from < to {
                match out.last_mut() {
                    Some((last, was)) if *was == hole => last.len += to - from,
                    _ => out.push((ByteRange::new(from, to - from), hole)),
                }
            }
        };
        for (lba, count, in_log) in node.block_states(range) {
            let (mut at, end) = (lba * BLOCK, (lba + count) * BLOCK);
            if let Some(is_zero) = in_log {
                put(at, end, is_zero);
                continue;
            }
            for d in data.iter().filter(|d| d.offset < end && d.end() > lba * BLOCK) {
                put(at, d.offset, true);
                put(d.offset.max(at), d.end().min(end), false);
                at = d.end().min(end);
            }
            put(at, end, true);
        }
        out
    }
}

/// A frame lives on in memory after it was written: its payload moves from the network's buffers, which are used again at
/// once, into memory that the disk takes as it is.
fn settled(mut message: Message, pool: &Pool) -> Message {
    if let Message::Append(append) = &mut message {
        append.payload = pool.copy_of(&append.payload);
    }
    message
}

/// So many nanoseconds after an answer its client is still expected to ask for more: the time that is looked by default.
const ASKED_NS: u64 = 100_000;

/// Messages of a peer handed to the core before the driver runs.
const MESSAGES_AT_ONCE: usize = 256;

const BLOCK: u64 = tidemark_core::types::BLOCK as u64;
