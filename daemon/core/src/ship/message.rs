//! What two copies of a volume say to each other, in order, on one bidirectional stream. Both ends speak the same language;
//! who may say what follows from the roles. Shells translate to protobuf and back and decide nothing.

use bytes::Bytes;

use crate::config::{Config, Policy, Since};
use crate::format::round_up_block;
use crate::layout::Layout;
use crate::types::{
    BlockRange, BootId, Boundary, Epoch, GenId, Incarnation, Lsn, NodeId, Nonce, Position, SiteId, VolumeId, WallMs,
};

/// Feature bits offered in [`Hello`]; a feature is used only when both ends offer it.
pub type Features = u64;
/// Knows groups of several volumes: their layouts in messages, and LAYOUT records.
pub const FEATURE_LAYOUT: Features = 1;
/// Takes over when its peer asks for that ([`Message::HandOver`]).
pub const FEATURE_HANDOVER: Features = 2;
/// The most bytes of a reason that one copy gives the other in words.
pub const MAX_REASON_BYTES: usize = 1024;

/// The most a peer may put into one message, enforced by the shell before the core sees it: a frame and its header.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// First message in each direction.
    Hello(Box<Hello>),
    /// A frame of the log, primary to secondary (or, in answer to [`Message::FetchTail`], the other way).
    Append(Append),
    /// Make everything up to `lsn` durable and acknowledge it.
    Sync {
        /// The newest K that the receiver confirmed.
        epoch: Epoch,
        /// Wanted durable position.
        lsn: Lsn,
    },
    /// Positions of the sender's copy.
    Ack(Ack),
    /// When idle: what is committed now, and that the sender lives.
    Committed {
        /// Epoch of the sender's K.
        epoch: Epoch,
        /// The committed position.
        committed: Lsn,
        /// The primary's appended position.
        appended: Lsn,
        /// The primary's wall clock when it sent this.
        at: WallMs,
        /// Bytes of the log that the receiver had not reported as durable.
        backlog: u64,
    },
    /// "Send me what you have beyond this" (R7a): a primary that reopens asks its peer.
    FetchTail {
        /// The asker's tail.
        from: Boundary,
    },
    /// End of the answer to [`Message::FetchTail`].
    TailEnd,
    /// Start of a pass of a seeding.
    SeedBegin(SeedBegin),
    /// Blocks of the base while seeding.
    Base(BaseBlocks),
    /// End of a pass. In the last pass the copy becomes visible when it is durable up to `visible_at`.
    SeedEnd {
        /// Which seeding.
        resync: Nonce,
        /// Pass number.
        pass: u32,
        /// Highest `as_of` of any block sent; meaningful in the last pass.
        visible_at: Lsn,
        /// The primary's chain list up to `live_from`, for later comparisons; meaningful in the last pass.
        history: Vec<ChainEntry>,
    },
    /// The receiver of a seeding got this far.
    SeedAck {
        /// Which seeding.
        resync: Nonce,
        /// Pass number.
        pass: u32,
        /// Bytes of [`Message::Base`] processed in this pass (window).
        bytes: u64,
        /// The pass is complete and durable; in the last pass: the copy is visible.
        done: bool,
    },
    /// EXPAND (R5): join S. `tail` is what the receiver must have durable before it may persist K.
    Expand {
        /// The new K.
        config: Config,
        /// The proposer's durable tail.
        tail: Boundary,
    },
    /// RELEASE and every weakening, HANDOVER, and a K that does not list the receiver in S (REJOIN).
    Adopt {
        /// The new K.
        config: Config,
        /// What kind of step it is.
        step: AdoptStep,
        /// For a handover: the tail that the receiver must have durable.
        tail: Boundary,
    },
    /// Answer to [`Message::Expand`] and [`Message::Adopt`].
    ConfigAnswer {
        /// Epoch of the K answered.
        epoch: Epoch,
        /// Its nonce.
        nonce: Nonce,
        /// Persisted, or why not.
        result: Result<(), Refusal>,
    },
    /// A refusal of something received (R3).
    Refused(Refusal),
    /// The sender's K is newer than what the receiver's messages carry (FENCED), or the receiver's is (NEEDCONFIG).
    Fenced(Config),
    /// The policy of the primary, followed by the secondary.
    Policy(Policy),
    /// The volumes as the primary wants them to be: is there room? Answered by [`Message::GrowAnswer`].
    Grow {
        /// New size of the group's space in bytes.
        size: u64,
        /// The volumes; `None`: the only one, of that size.
        layout: Option<Layout>,
    },
    /// What the peer has room for.
    GrowAnswer {
        /// Size in bytes that the base of an only volume can hold now.
        size: u64,
        /// There is room for these volumes.
        layout: Option<Layout>,
    },
    /// Compare this range: the receiver hashes it as of the stream position of this message.
    VerifyRange {
        /// Names the question.
        id: u64,
        /// Blocks.
        range: BlockRange,
        /// Position at which the sender read it; unchanged in the sender's log up to here.
        lsn: Lsn,
        /// blake3 of the content.
        hash: [u8; 32],
    },
    /// Answer to [`Message::VerifyRange`].
    VerifyAnswer {
        /// The question.
        id: u64,
        /// Equal, different, or "changed while I read: ask again".
        verdict: VerifyVerdict,
    },
    /// The primary asks whether its peer still holds the same K; answered by [`Message::Confirmed`] where it does, else by
    /// nothing.
    Confirm {
        /// The sender's K.
        k: Since,
        /// Given back as it is.
        stamp: u64,
        /// How long the sender counts on the answer, in milliseconds.
        span_ms: u64,
    },
    /// Answer to [`Message::Confirm`].
    Confirmed {
        /// That of the question.
        stamp: u64,
        /// The sender proposed a K at the witness and does not know what became of it.
        undecided: bool,
    },
    /// The sender was demoted and asks the receiver to become the primary, under this K without one. Answered by
    /// [`Message::HandedOver`].
    HandOver {
        /// The sender's K; the receiver's as well.
        k: Since,
    },
    /// Answer to [`Message::HandOver`], as soon as the sender serves or knows that it will not.
    HandedOver {
        /// It serves; or why not, in at most [`MAX_REASON_BYTES`].
        result: Result<(), String>,
    },
    /// The sender gives up the role of primary for good reason and closes in order.
    Goodbye,
}

/// First message in each direction: who I am and what I have. Enough to compare two histories (R11) and to refuse (R3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Wire version of the sender; versions N and N-1 speak to each other.
    pub version: u32,
    /// Feature bits offered.
    pub features: Features,
    /// The volume that names the log.
    pub volume: VolumeId,
    /// The sender's site; must equal what its certificate proves.
    pub site: SiteId,
    /// The sender's node.
    pub node: NodeId,
    /// Its kernel's boot.
    pub boot: BootId,
    /// The volumes.
    pub layout: Layout,
    /// K as persisted there.
    pub config: Config,
    /// True when it serves or may come to serve without asking anybody (Primary, or Suspended for another reason than Restart).
    pub is_primary: bool,
    /// True when its copy has never been complete (Absent, Seeding) or an operator gave it up: it has nothing to lose.
    pub needs_seed: bool,
    /// True when its copy cannot be trusted. It takes nothing until an operator decides: what lies there may be the only copy
    /// of something, or not even this volume's.
    pub is_suspect: bool,
    /// Its history, oldest first.
    pub history: Vec<ChainEntry>,
    /// What its base holds.
    pub floor: Boundary,
    /// Its durable tail.
    pub tail: Boundary,
    /// Highest durable position of the receiver that the sender remembers, with the boot that acknowledged it (R6).
    pub remembered: Option<Remembered>,
    /// It can take a difference ([`SeedBegin::from`]) from here on; a version that knows none says nothing.
    pub difference: Option<Difference>,
}

/// An entry of a volume's history.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ChainEntry {
    /// Generation.
    pub generation: GenId,
    /// Incarnation.
    pub incarnation: Incarnation,
    /// The last record *before* this incarnation's FORK record.
    pub fork: Lsn,
}

/// A durable acknowledgement once heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remembered {
    /// Position.
    pub position: Position,
    /// Boot.
    pub boot: BootId,
}

/// A frame on the wire: the used header bytes and the payload; the receiver pads the header to the identical frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    /// The newest K that *this receiver* confirmed; never the epoch inside the frame.
    pub epoch: Epoch,
    /// Header bytes up to its used length.
    pub header: Bytes,
    /// Payload blocks, in pieces; a multiple of 4096 in all.
    pub payload: Vec<Bytes>,
    /// Asks for everything up to this frame to be made durable, as [`Message::Sync`] does.
    pub sync: bool,
}

impl Append {
    /// Bytes that the frame takes in a segment, when it is what it says.
    pub fn frame_bytes(&self) -> u64 {
        let payload = self.payload.iter().map(Bytes::len).sum();
        (round_up_block(self.header.len()) + round_up_block(payload)) as u64
    }
}

/// Positions of the sender's copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack {
    /// Epoch of the sender's K: the ack counts for a flush only when it equals the primary's.
    pub epoch: Epoch,
    /// Generation and incarnation of both positions.
    pub generation: GenId,
    /// Incarnation of both positions.
    pub incarnation: Incarnation,
    /// Written, gap-free.
    pub appended: Lsn,
    /// Synced, gap-free.
    pub durable: Lsn,
    /// The sender's floor.
    pub floor: Lsn,
    /// The boot that holds what is only appended.
    pub boot: BootId,
}

/// Start of a pass of a seeding: forget what you have, blocks follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeedBegin {
    /// Which seeding; a new one replaces the old.
    pub resync: Nonce,
    /// Pass number from 1.
    pub pass: u32,
    /// Bytes that this pass will send, as far as known.
    pub total_bytes: u64,
    /// True for the last pass: live frames follow `live_from` on the same stream.
    pub last: bool,
    /// In the last pass: the boundary after which live frames follow.
    pub live_from: Boundary,
    /// Only the blocks follow that changed since this boundary: what the receiver's base holds there is kept. Sent only to who says
    /// in its [`Hello`] that it can take a difference from just there.
    pub from: Option<Boundary>,
}

/// Where a copy that fell behind can be brought up to date from by what changed since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The copy holds this, apart from what a difference from there has written already.
    pub from: Boundary,
    /// The seeding that has begun to write such a difference and did not end; nil: the copy is whole.
    pub resync: Nonce,
}

/// Blocks of the base while seeding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseBlocks {
    /// Which seeding.
    pub resync: Nonce,
    /// Blocks.
    pub range: BlockRange,
    /// The full position at which they were read.
    pub as_of: Position,
    /// CRC-32 of each block; empty when `data` is empty.
    pub crcs: Vec<u32>,
    /// The content; empty means zeros.
    pub data: Bytes,
}

/// The kind of a configuration step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdoptStep {
    /// K does not list the receiver in S.
    Rejoin,
    /// The receiver leaves S, or the mode is weakened.
    Release,
    /// The receiver becomes primary.
    Handover,
    /// Nothing that matters to acknowledgement changes.
    Same,
}

/// The verdict on one range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VerifyVerdict {
    /// Same content.
    Equal,
    /// Other content.
    Different,
    /// Changed or busy: ask again.
    Busy,
}

/// Why a message or a peer is refused; the order of the variants is the order in which they are judged (R3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, thiserror::Error)]
pub enum Refusal {
    /// The header's checksum is wrong or it cannot be parsed.
    #[error("malformed or corrupt header")]
    Header,
    /// The peer speaks no version or feature in common, or sent a record of a kind that is not known here and may not be
    /// skipped.
    #[error("no common protocol version, or a record of an unknown kind")]
    Version,
    /// Another group, volume or site than agreed.
    #[error("wrong volume or site")]
    Identity,
    /// Of an older epoch.
    #[error("older epoch")]
    OldEpoch,
    /// Of a newer epoch that was not announced.
    #[error("unannounced newer epoch")]
    NeedConfig,
    /// Does not continue the log.
    #[error("gap: does not continue the log")]
    Gap,
    /// Rewrites durable records of the same incarnation.
    #[error("rewrites durable records")]
    Rewrite,
    /// The payload's checksum is wrong.
    #[error("payload checksum mismatch")]
    Payload,
    /// The hash chain does not match: another history.
    #[error("hash chain mismatch")]
    Chain,
    /// The two histories have nothing in common.
    #[error("unrelated history")]
    Unrelated,
    /// Both have records that the other lacks.
    #[error("diverged: both sides have records of their own")]
    Diverged,
    /// The peer came back with less than it once acknowledged, or its copy cannot be trusted.
    #[error("suspect copy: regressed or failed verification")]
    Suspect,
    /// Durable tail below what is asked for.
    #[error("behind the required position")]
    Behind,
    /// Not in a state to do that.
    #[error("not in a state to do that")]
    State,
    /// Sizes differ.
    #[error("volume sizes or the volumes of the group differ")]
    Size,
    /// The log or the disk of the receiver is full or failed.
    #[error("receiver has no space or failed")]
    Storage,
    /// Both sides hold configurations made without an arbiter since they parted.
    #[error("split brain: both sides were promoted without an arbiter")]
    SplitBrain,
}
