//! Planted bugs: places where the core can be told to break one of its own rules, so that the simulator proves that it would
//! notice. Exists only with the feature `__planted`; without it [`planted`] is `false` at compile time and costs nothing.
//!
//! The switch is global to the process: one bug at a time, for every node, from [`plant`] until the next call.

/// A rule that the core can be told to break.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Planted {
    /// The primary completes a flush, and counts its own log as durable, before its own sync has succeeded.
    AckBeforeSyncAtPrimary = 1,
    /// The secondary acknowledges as durable what it has only written.
    AckBeforeSyncAtSecondary,
    /// Recovery skips the chain and identity checks of a frame, so that a stale frame of a recycled segment is accepted.
    StaleFrameAccepted,
    /// The floor may pass `committed`, up to `appended`.
    FloorAboveCommitted,
    /// Two overlapping writes below 4 KiB do not wait for each other: the later fills from content without the earlier.
    LostSubBlockUpdate,
    /// A BASE block of a seeding replaces newer content.
    BaseOverNewer,
    /// A primary that reopens serves before its tail is durable at every member of S (R7).
    ServeBeforeRollForward,
    /// A read does not pin its segment, so that the segment may be recycled below it, and its checksum is not looked at.
    ReadFromRecycledSegment,
    /// A flush waits for the local disk alone, whatever S says.
    FlushIgnoresPeer,
    /// An opening as Primary writes no FORK record and keeps the incarnation.
    SkipForkRecord,
    /// A promotion keeps the old generation, so that two histories carry the same name.
    PromoteWithoutFork,
    /// A segment is reused before the superblock has recorded the floor that frees it.
    TrimBeforeSuperblock,
    /// The floor advances without a sync of the base.
    FloorWithoutBaseSync,
    /// A write completes before its frame is written to the log.
    AckWriteBeforeAppend,
    /// The checksums of payload read from the log are not compared.
    SkipPayloadCrc,
    /// Out-of-order completions: `appended` takes the highest written frame and not the highest gap-free one.
    AppendedOverGap,
    /// A failed sync is taken as a success.
    IgnoreFailedSync,
    /// A peer joins S without the check that it holds the primary's durable tail (R5).
    ExpandWithoutCheck,
    /// FLUSH forgets the request that completed last.
    FlushCoversTooLittle,
    /// A discard is forgotten by the index: reads show the old content.
    DiscardNotIndexed,
    /// `durable` takes what is appended when the sync *ends*, not what was when it was submitted.
    DurableAtSyncEnd,
    /// A write that is durable itself is taken as a sync of all that was written before it.
    DurableWriteCoversAll,
    /// A log that is cut keeps the volumes that the cut took away.
    LayoutKeptByACut,
    /// The base of a volume that was removed is given up before the superblock has left it.
    BaseGivenUpTooEarly,
    /// A difference leaves out what is zeros, as a first content may.
    ZerosLeftOut,
    /// The floor moves before the footer with what that changed is durable, and an opening does not miss it.
    FooterNotAwaited,
    /// A difference that broke off is taken up by a primary of another opening, which may lack what was sent of it.
    DifferenceOfAnotherOpening,
    /// A difference is written over a base that does not hold the copy's own log, which goes.
    LogLostToDifference,
    /// A primary goes on without its peer on its own decision, not by the witness's (R4).
    ShrinkWithoutWitness,
    /// A primary serves on when its lease is over.
    ServeWithoutLease,
    /// A follower takes over without waiting for the primary's lease to end.
    TakeOverAtOnce,
    /// A follower waits, and does not take the lease that it waited for.
    TakeOverWithoutRevoking,
    /// A promotion is judged on what the copy knows, not on what the witness holds.
    PromoteWithoutWitness,
    /// What the peer confirmed counts from when the answer came, not from when the question was sent.
    ConfirmedFromAnswer,
    /// A lease under another grant than K names lets a primary serve.
    AnyGrantServes,
    /// A renewal counts from when its answer came, not from when it was sent.
    RenewedFromAnswer,
    /// A member verifies what its peer had before that stopped answering alone (R5).
    TailAtPrepare,
    /// A site joins S when its leader has verified its own part.
    VerifyByOne,
    /// A site answers a change of S when its leader has persisted it, the other members not yet.
    AnswerBeforeAll,
    /// A member opens before all have persisted the K that makes their site the primary.
    OpenBeforeAll,
    /// A member serves without a sub-lease of its leader.
    ServeWithoutSubLease,
    /// A sub-lease counts from when the answer came, not from when it was asked for.
    SubLeaseFromAnswer,
}

impl Planted {
    /// Every planted bug.
    pub const ALL: [Self; 42] = [
        Self::AckBeforeSyncAtPrimary,
        Self::AckBeforeSyncAtSecondary,
        Self::StaleFrameAccepted,
        Self::FloorAboveCommitted,
        Self::LostSubBlockUpdate,
        Self::BaseOverNewer,
        Self::ServeBeforeRollForward,
        Self::ReadFromRecycledSegment,
        Self::FlushIgnoresPeer,
        Self::SkipForkRecord,
        Self::PromoteWithoutFork,
        Self::TrimBeforeSuperblock,
        Self::FloorWithoutBaseSync,
        Self::AckWriteBeforeAppend,
        Self::SkipPayloadCrc,
        Self::AppendedOverGap,
        Self::IgnoreFailedSync,
        Self::ExpandWithoutCheck,
        Self::FlushCoversTooLittle,
        Self::DiscardNotIndexed,
        Self::DurableAtSyncEnd,
        Self::DurableWriteCoversAll,
        Self::LayoutKeptByACut,
        Self::BaseGivenUpTooEarly,
        Self::ZerosLeftOut,
        Self::FooterNotAwaited,
        Self::DifferenceOfAnotherOpening,
        Self::LogLostToDifference,
        Self::ShrinkWithoutWitness,
        Self::ServeWithoutLease,
        Self::TakeOverAtOnce,
        Self::TakeOverWithoutRevoking,
        Self::PromoteWithoutWitness,
        Self::ConfirmedFromAnswer,
        Self::AnyGrantServes,
        Self::RenewedFromAnswer,
        Self::TailAtPrepare,
        Self::VerifyByOne,
        Self::AnswerBeforeAll,
        Self::OpenBeforeAll,
        Self::ServeWithoutSubLease,
        Self::SubLeaseFromAnswer,
    ];

    /// True for a rule that only a witness makes matter.
    pub fn needs_witness(self) -> bool {
        self as u8 >= Self::ShrinkWithoutWitness as u8 && !self.needs_members()
    }

    /// True for a rule that only several members a site make matter.
    pub fn needs_members(self) -> bool {
        self as u8 >= Self::TailAtPrepare as u8
    }

    /// True for one that only groups of several volumes bring about.
    pub fn needs_groups(self) -> bool {
        matches!(self, Self::LayoutKeptByACut | Self::BaseGivenUpTooEarly)
    }

    /// The bug of that name, in the spelling of the variant.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| format!("{p:?}") == name)
    }
}

#[cfg(feature = "__planted")]
mod switch {
    use super::Planted;
    use std::sync::atomic::{AtomicU8, Ordering};

    static ACTIVE: AtomicU8 = AtomicU8::new(0);

    /// Plants `bug` in every node of this process, or none.
    pub fn plant(bug: Option<Planted>) {
        ACTIVE.store(bug.map_or(0, |b| b as u8), Ordering::Relaxed);
    }

    /// True while `bug` is planted.
    pub fn planted(bug: Planted) -> bool {
        ACTIVE.load(Ordering::Relaxed) == bug as u8
    }
}

#[cfg(not(feature = "__planted"))]
mod switch {
    use super::Planted;

    /// Always false: no bug can be planted in this build.
    #[inline(always)]
    pub const fn planted(_bug: Planted) -> bool {
        false
    }
}

pub use switch::*;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_is_found_by_its_name() {
        for bug in Planted::ALL {
            assert_eq!(Planted::parse(&format!("{bug:?}")), Some(bug));
        }
        assert_eq!(Planted::parse("Nothing"), None);
        assert_eq!(Planted::ALL.map(|b| b as u8).iter().max(), Some(&(Planted::ALL.len() as u8)));
    }

    #[test]
    fn nothing_is_planted_by_default() {
        assert!(!planted(Planted::AckBeforeSyncAtPrimary));
    }
}
