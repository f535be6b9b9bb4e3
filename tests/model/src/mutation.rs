//! A rule that is left out, to see that the checker would notice.

/// What is left out of the rules.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mutation {
    /// Nothing.
    Kept,
    /// R2 b: a flush is answered before it is durable at home.
    FlushBeforeSync,
    /// R2 c: a flush does not wait for the peer.
    FlushWithoutPeer,
    /// R2 c: an acknowledgement counts whatever epoch it is of.
    AckOfAnyEpoch,
    /// R2 c: an acknowledgement counts whatever incarnation it is of.
    AckOfAnyIncarnation,
    /// R3: an append is taken whatever epoch its envelope has.
    AppendOfAnyEpoch,
    /// R3: a newer K is learned from an append.
    AppendCarriesK,
    /// R3: a K that lists the own site is taken though its `s_since` is another.
    ListedWithoutCheck,
    /// R4: the primary goes on alone without asking the witness.
    ShrinkAlone,
    /// R4: an agent goes on alone before it persisted K'.
    SoloBeforePersisted,
    /// R5: nobody verifies that B holds what A holds.
    ExpandUnverified,
    /// R5: L is taken at PREPARE.
    TailAtPrepare,
    /// R5: each agent of B persists K' as soon as it has verified its own volume.
    VerifyEach,
    /// R7: the device opens before its tail is everywhere.
    OpenWithoutRollForward,
    /// R7a: the longer tail of the peer is not fetched, and no incarnation begins.
    SameIncarnation,
    /// R13: a losing suffix is cut without being sealed.
    CutUnsealed,
    /// R15 i: a change is written whatever the cell holds.
    BlindWrite,
    /// R15 i: a promotion is judged on the own K alone.
    JudgedOnCopy,
    /// R15: `s_since` is not compared.
    NoSince,
    /// R15 v: nothing is refused.
    NoBase,
    /// R15 v: each CAS sets `base`, also when the primary stays.
    BaseNotInherited,
    /// R15: two K of one epoch are the same.
    NoNonce,
    /// R15 v: the first agent opens before the others have persisted K.
    OpenBeforeAll,
    /// R15 ii: A hands over before its demotion is durable.
    DemotionNotDurable,
    /// R15 ii: A hands over although B lacks records.
    HandoverUnequal,
    /// R15 iii: the primary weakens S as soon as one agent of the other site has persisted it.
    ReleaseByOne,
    /// R15 iii: the primary persists a smaller S first.
    ReleasePrimaryFirst,
    /// R16: a challenger does not take the lease from its holder.
    NoLeaseBump,
    /// R16: a challenger waits for less than D.
    ShortWait,
    /// R16: a renewal counts from its answer.
    RenewalFromAnswer,
    /// R16: a heartbeat counts from its echo.
    HeartbeatFromEcho,
    /// 3a: a sub-lease counts from its receipt.
    SubLeaseFromReceipt,
    /// R16: the new primary opens though it echoed a heartbeat just now.
    NoOpeningWait,
    /// R16, R17: a renewal counts though K does not name its grant; who restarts needs no CAS.
    ResumeWithoutCas,
    /// R15 ii: the new primary of a HANDOVER serves before a heartbeat was echoed.
    HandoverServesAtOnce,
    /// Decision 13: a HANDOVER begins although the witness was asked for a change.
    HandoverWhileAsking,
    /// R15 ii: a reclaim does not wait.
    ReclaimAtOnce,
    /// 3a: an agent becomes the leader without taking the old leader's lease.
    TakeoverWithoutBump,
}

impl Mutation {
    /// This one.
    pub fn is(self, mutation: Self) -> bool {
        self == mutation
    }
}
