//! The boundary of the core: what a shell may tell it, and what it may ask of a shell.
//!
//! One [`crate::node::Node`] is one copy of one group of volumes at one site. A shell calls `handle(now, Input)`, then drains
//! `poll_output()`, and calls `handle(now, Input::Tick)` when `poll_timeout()` has come. Everything is deterministic: the same
//! inputs give the same outputs.
//!
//! Payloads are [`Bytes`]: neither side copies them.

use bytes::Bytes;

use crate::format::witness::{Cell, Content};
use crate::group::witness::{Found, Revision};
use crate::layout::Layout;
use crate::node::Held;
use crate::ship::Message;
use crate::site::SiteMessage;
use crate::types::{Boundary, ByteRange, Lsn, Nanos, SiteId};
use crate::verb::{Verb, VerbError, VerbOk};

/// Names a frontend request until its reply; unique per node while outstanding. Chosen by the shell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// Names a disk operation until its completion; unique per node. Chosen by the core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiskToken(pub u64);

/// Names one established stream to the peer; never reused by the shell within a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// Names a verb until its answer. Chosen by the shell; the two highest are the core's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VerbId(pub u64);

impl VerbId {
    /// What the peer asks for: it is answered.
    pub(crate) const PEER: Self = Self(u64::MAX);
    /// What a switchover asks for that was in vain.
    pub(crate) const BACK: Self = Self(u64::MAX - 1);
}

/// Names a question to the witness until its answer; unique per node while outstanding. Chosen by the core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AskId(pub u64);

/// Names a view until it ends; unique per node while it lasts. Chosen by the shell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HoldId(pub u64);

/// A log slot: one preallocated segment file, reused in turn. `slot-{:06}.seg` on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Slot(pub u32);

/// A file of a volume's copy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FileRef {
    /// A segment of the log.
    Log(Slot),
    /// Which blocks a run of the log changed, by number.
    Footer(u32),
    /// The superblock: two alternating slots of [`crate::format::superblock::SLOT_BYTES`].
    Superblock,
    /// The configuration K that this copy has persisted: two alternating slots.
    Config,
    /// The base: one space, composed of the volumes' base images (plain devices or files without any header) as the last
    /// [`Output::Layout`] says. What belongs to no volume reads as zeros and takes what is written.
    Base,
    /// A sealed suffix, by number.
    Branch(u32),
}

/// What the core asks of the disk. Offsets and lengths are bytes and multiples of 4096, except that the base image may end
/// inside a block (its size is a multiple of 512): the core clamps, the shell does not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskOp {
    /// Writes `bufs` back to back at `offset`, all of it or an error. Unless asked for, not durable before a later
    /// [`DiskOp::Sync`].
    Write {
        /// Where to.
        file: FileRef,
        /// First byte.
        offset: u64,
        /// The pieces, in order. A shell whose device wants alignment copies those that are not aligned.
        bufs: Vec<Bytes>,
        /// The write ends only when it is durable itself (as with FUA), which says nothing of any other. [`DiskError::Io`] is
        /// then as final as that of a sync.
        durable: bool,
    },
    /// Reads exactly `len` bytes, or an error. Reading past the end of a file is [`DiskError::Short`].
    Read {
        /// Where from.
        file: FileRef,
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Makes every write to these files that *completed before this was submitted* durable (a device flush included).
    /// All or an error; never retried by the shell.
    Sync {
        /// The files, without duplicates.
        files: Vec<FileRef>,
    },
    /// Makes the range read as zeros; with `deallocate` it may give the space back.
    Zero {
        /// The base image.
        file: FileRef,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Space may be given back.
        deallocate: bool,
    },
    /// Creates the log slot with exactly `len` bytes, allocated and written with zeros, synced together with its directory.
    /// [`DiskError::NoSpace`] leaves no file behind.
    Prepare {
        /// The slot.
        slot: Slot,
        /// Bytes.
        len: u64,
    },
    /// Removes a log slot's file, and syncs the directory. Missing is success.
    Remove {
        /// The slot.
        slot: Slot,
    },
    /// Replaces a small file by `data` whole and durably (temporary file, sync, rename, directory sync).
    Replace {
        /// [`FileRef::Footer`] or [`FileRef::Branch`].
        file: FileRef,
        /// The new content.
        data: Vec<Bytes>,
    },
    /// Makes the bases hold every volume of `layout`: makes those that are missing, grows those that are too small, and synced. It
    /// may name volumes that are no part of the group yet. A device that is too small answers [`DiskError::NoSpace`].
    Grow {
        /// The volumes.
        layout: Layout,
    },
    /// Which parts of the base image in this range may hold something other than zeros. A device that cannot say answers
    /// with the whole range.
    Map {
        /// The range asked for.
        range: ByteRange,
    },
}

/// What a disk operation gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskDone {
    /// Write, sync, zero, prepare, remove or replace succeeded.
    Done,
    /// The bytes read.
    Read(Bytes),
    /// Ranges of the base that may hold data, ascending, within the range asked for.
    Mapped(Vec<ByteRange>),
}

/// Why a disk operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiskError {
    /// The device or file system reported an error.
    #[error("input/output error")]
    Io,
    /// No space (ENOSPC, EDQUOT).
    #[error("no space left")]
    NoSpace,
    /// Fewer bytes than asked for, or past the end of the file.
    #[error("short read or write")]
    Short,
    /// The file does not exist.
    #[error("no such file")]
    Missing,
}

/// The result of a disk operation.
pub type DiskResult = Result<DiskDone, DiskError>;

/// A frontend's request. Ranges are bytes of the group's space, multiples of 512, inside one extent of its layout; the core
/// refuses others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Reads the range.
    Read {
        /// What to read.
        range: ByteRange,
    },
    /// Writes `data` (exactly `range.len` bytes).
    Write {
        /// Where to.
        range: ByteRange,
        /// The bytes; best 4096-aligned in memory.
        data: Bytes,
        /// Force unit access: complete only when durable (R2).
        fua: bool,
    },
    /// Makes the range read as zeros.
    Zero {
        /// The range.
        range: ByteRange,
        /// DISCARD: edges below 4 KiB may be left as they are, and space may be given back.
        discard: bool,
        /// Force unit access.
        fua: bool,
    },
    /// R2: everything completed before is durable wherever the policy asks for it.
    Flush,
}

/// What a successful request gives: for a read the pieces that make up the range in order, else nothing.
pub type ReplyData = Vec<Bytes>;

/// Why a request failed; a frontend maps it to its own error numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// Outside the volume, unaligned, or data of another length (EINVAL).
    #[error("invalid range or length")]
    Invalid,
    /// The copy does not serve: not Primary, fenced, or I/O was aborted (EIO; ESHUTDOWN in NBD).
    #[error("the volume does not serve input/output here")]
    NotServing,
    /// The data could not be read or written (EIO).
    #[error("input/output error")]
    Io,
}

/// What the core asks of the witness: one cell, read or changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// The cell.
    pub cell: Cell,
    /// What it is to become; `None`: it is only read.
    pub change: Option<CellChange>,
}

/// A change of a cell, made only where the cell is as expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CellChange {
    /// The revision that it was read at; `None`: it did not exist.
    pub expected: Option<Revision>,
    /// The new value. The same value may be asked for again as long as it is not known what became of it.
    pub content: Content,
}

/// What the witness answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WitnessAnswer {
    /// The change was made and is durable.
    Committed(Revision),
    /// The cell holds this: the answer to a read, or to a change that was not made and will not be.
    Holds(Option<Found>),
    /// Nothing certain: the change may have been made or be made yet.
    Lost,
}

/// The agent's own lease, as the witness has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The grant that is held.
    pub lease_gen: u64,
    /// When its newest renewal was *sent*, on the clock of the node that is told.
    pub sent: Nanos,
}

/// What a shell tells the core.
#[derive(Clone, Debug)]
pub enum Input {
    /// A frontend asks. Answered by exactly one [`Output::Reply`], possibly much later (a suspended volume queues).
    Request(RequestId, Request),
    /// A disk operation ended.
    Disk(DiskToken, DiskResult),
    /// A stream to the peer's copy of this volume is up; `site` is what its certificate proved.
    PeerUp {
        /// The stream.
        conn: ConnId,
        /// Who is at the other end.
        site: SiteId,
    },
    /// A message arrived on a stream.
    PeerMessage(ConnId, Message),
    /// The stream is gone; nothing more comes from it.
    PeerDown(ConnId),
    /// A stream to another member of the group at this site is up; only between its leader and each of the others.
    SiteUp {
        /// The stream.
        conn: ConnId,
        /// Who is at the other end, by what its certificate proved and the list of members says.
        member: usize,
    },
    /// A message of another member arrived.
    SiteMessage(ConnId, SiteMessage),
    /// That stream is gone; nothing more comes from it.
    SiteDown(ConnId),
    /// An operator or a controller asks.
    Verb(VerbId, Verb),
    /// The end of a question to the witness, whatever came of it.
    Witness(AskId, WitnessAnswer),
    /// The agent's lease was granted, renewed or (`None`) lost. Told again whenever it changed.
    Lease(Option<Grant>),
    /// Somebody wants to see what this copy holds, or (where it is given) held at the boundary at which a sealed suffix begins.
    /// Answered by exactly one [`Output::Held`]; what it is made of stays as it is until [`Output::HoldEnded`] or
    /// [`Input::LetGo`].
    Hold(HoldId, Option<Boundary>),
    /// A view that was asked for is not needed any more.
    LetGo(HoldId),
    /// Of so many sealed suffixes those that are kept begin at this record or later: the base need not wait for the others. Without
    /// effect when more were sealed meanwhile.
    KeepBranches {
        /// Suffixes sealed so far, as the status said.
        sealed: u32,
        /// Where the first begins that is kept; none: none is.
        first: Option<Lsn>,
    },
    /// `poll_timeout()` has come, or the shell wants the core to look at the clock.
    Tick,
}

/// What the core asks of a shell.
#[derive(Clone, Debug)]
pub enum Output {
    /// The end of a frontend request.
    Reply(RequestId, Result<ReplyData, RequestError>),
    /// Perform this and answer with [`Input::Disk`].
    Disk(DiskToken, DiskOp),
    /// Send this on the stream, in order. The core bounds what it has outstanding.
    Send(ConnId, Message),
    /// Send this to another member of the group at this site, in order.
    SendSite(ConnId, SiteMessage),
    /// Close the stream; the reason is for the log and the metric.
    Close(ConnId, CloseReason),
    /// The end of a verb.
    Verb(VerbId, Result<VerbOk, VerbError>),
    /// Ask the witness this and answer with [`Input::Witness`]. At most two questions are open at a time.
    Ask(AskId, Question),
    /// The volumes, in order with [`Output::Disk`]: of the superblock as the first output of a copy that is opened, of the log once
    /// that is known, and again whenever one of the two is another.
    Layout {
        /// What is served.
        layout: Layout,
        /// What the base is composed of from the next operation on. A base image is the shell's to give up when its volume was
        /// named here before and is not any more: it then holds what the volume held when it was removed. The second time after an
        /// opening so are all that are not named: [`DiskOp::Grow`] asks again for those that are needed.
        base: Layout,
    },
    /// The answer to [`Input::Hold`].
    Held(HoldId, Result<Box<Held>, VerbError>),
    /// A view has ended. In order with [`Output::Disk`]: what is read for it from here on, or is still being read, may be anything.
    HoldEnded(HoldId),
    /// Something a person should see: a line in the log, a metric.
    Event(Event),
}

/// Why the core closes a stream.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseReason {
    /// A newer stream of the same peer replaced it.
    #[error("replaced by a newer connection")]
    Replaced,
    /// The peer broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// The peer refused or was refused; retried with a backoff.
    #[error("refused: {0}")]
    Refused(crate::ship::Refusal),
    /// The copy is closing.
    #[error("closing")]
    Closing,
}

/// A change of state worth a line in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Recovery of the log ended.
    Recovered {
        /// How many records the log holds above the floor.
        records: u64,
        /// Bytes that were cut as an unfinished tail.
        cut_bytes: u64,
    },
    /// The role changed; names in `Display` form.
    Role {
        /// What it was.
        from: String,
        /// What it is.
        to: String,
        /// Requests are served, or queued until they are; else they fail.
        serves: bool,
    },
    /// The copy's or link's state changed.
    Link {
        /// The new state and its reason.
        state: String,
    },
    /// Something needs a person: a stable code and a sentence.
    Alarm {
        /// Stable code, e.g. `log_full`.
        code: &'static str,
        /// What happened.
        detail: String,
    },
}
