//! What an operator may ask of one copy of a group of volumes, and what the copy answers. Every verb is idempotent and ends: it never waits
//! for an unreachable peer.

use crate::config::{Mode, Paused, Policy};
use crate::status::Status;
use crate::types::{Lsn, SiteId, VolumeId, WallMs};

/// A verb on one copy of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Become Primary.
    Promote {
        /// A human states that the other site is stopped and will not serve before it has been in contact; recorded.
        assert_peer_fenced: Option<Assertion>,
        /// Bound of the accepted loss, for a copy that is not in S.
        max_loss_bytes: Option<u64>,
        /// Bound of the accepted loss in seconds.
        max_loss_seconds: Option<u64>,
        /// Accept that the loss cannot be known.
        allow_unproven: bool,
    },
    /// Stop serving: drain, sync, become Secondary. Refused while devices are attached unless `force` (queued I/O then fails).
    Demote {
        /// Fail queued I/O instead of refusing.
        force: bool,
    },
    /// Hand the role of the primary over to the peer: stop serving, bring it up, and let it serve. Asked at the primary.
    Switchover {
        /// The peer. This site itself: nothing to do where it is the primary.
        to: SiteId,
        /// As of a demotion.
        force: bool,
    },
    /// Change the policy online (mode included). What is not yet possible (a peer that is behind) becomes wanted.
    SetPolicy(Policy),
    /// Pause what is named here, over restarts: shipping (at the primary, while the peer is not in S), or the floor.
    Pause(Paused),
    /// End the pause of what is named.
    Resume(Paused),
    /// Name the peer site of a local volume, or `None` to forget the peer (only when it is not in S).
    SetPeer(Option<SiteId>),
    /// The peer is gone for good or known to be stopped: leave it out of S by a recorded human decision.
    DropPeer(Assertion),
    /// Grow a volume to so many bytes (a multiple of 512). Shrinking is refused.
    Resize {
        /// Which of the group's.
        volume: VolumeId,
        /// New size in bytes. The base was grown before.
        size: u64,
    },
    /// One volume more for the group, of zeros: whatever its base holds.
    AddVolume {
        /// A new identity.
        volume: VolumeId,
        /// Size in bytes, a multiple of 512. The base was made before.
        size: u64,
    },
    /// One volume less: its place in the group is nobody's from now on. Its base comes to hold what the volume held, and is the
    /// shell's once [`crate::event::Output::Layout`] does not name it any more. Refused for the last volume.
    RemoveVolume {
        /// Which of the group's.
        volume: VolumeId,
    },
    /// Compare both copies without stopping I/O; answered when done, with [`VerbOk::Verified`].
    Verify,
    /// Drain the log into the base, sync, mark it clean, stop serving for good: the base then mounts as it is.
    Release,
    /// Fail all queued I/O so that an unmount can finish.
    AbortIo,
    /// Give up this copy's own diverged suffix (it stays sealed in a branch) and take the peer's content anew.
    Reseed,
    /// Advance the floor as far as allowed, now; answered when the base holds it.
    Drain,
    /// Close: sync the log, write a clean superblock. The node accepts nothing afterwards.
    Close,
}

/// A human's word, recorded in K's history and shown in status for good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assertion {
    /// Who says it.
    pub who: String,
    /// Why.
    pub why: String,
    /// When, by the wall clock.
    pub at: WallMs,
}

/// What a verb achieved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VerbOk {
    /// Done; the status afterwards.
    Done(Box<Status>),
    /// Promoted, with what this promotion may have lost.
    Promoted {
        /// `lossless`, `lossy` or `unproven`.
        class: PromotionClass,
        /// Where the new generation forks.
        fork: Lsn,
        /// Bytes of log that the old primary was known to have beyond the fork.
        lost_bytes: u64,
        /// Milliseconds that the opened state is known to lie behind.
        lost_ms: u64,
    },
    /// The other site serves.
    SwitchedOver {
        /// Which.
        site: SiteId,
        /// For how many milliseconds nobody served, as this site saw it: from its last answer until it heard of the first that can
        /// be given there. Zero when that site was the primary already.
        pause_ms: u64,
    },
    /// Both copies were compared.
    Verified {
        /// Blocks compared.
        blocks: u64,
        /// Position at which they are equal or were found different.
        lsn: Lsn,
        /// Blocks (ranges) that differ, at most 64 of them.
        differing: Vec<crate::types::BlockRange>,
    },
}

/// What is known of the data that a promotion leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PromotionClass {
    /// This copy was in S: every acknowledged flush is here.
    Lossless,
    /// The copy is a prefix and the loss is bounded by what is known of the old primary.
    Lossy,
    /// Nothing can be proven.
    Unproven,
}

impl std::fmt::Display for PromotionClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lossless => "lossless",
            Self::Lossy => "lossy",
            Self::Unproven => "unproven",
        })
    }
}

/// Why a verb was refused. Each text names the reason and what would lift it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VerbError {
    /// The peer is reachable and is Primary.
    PeerIsPrimary {
        /// The peer.
        site: SiteId,
        /// Its epoch.
        epoch: crate::types::Epoch,
    },
    /// The peer cannot be asked whether it serves.
    PeerUnproven {
        /// The peer.
        site: SiteId,
    },
    /// Every flush waits for the peer.
    PeerInS {
        /// The peer.
        site: SiteId,
    },
    /// The peer cannot take over.
    PeerUnfit {
        /// The peer.
        site: SiteId,
        /// What stands against it.
        why: String,
        /// What would lift it.
        hint: String,
    },
    /// The loss is over the bound, or no bound was given.
    LossTooLarge {
        /// Estimated bytes.
        bytes: u64,
        /// Estimated milliseconds.
        ms: u64,
    },
    /// The loss cannot be estimated and `--allow-unproven` was not given.
    Unproven,
    /// The witness cannot make this copy the primary.
    Unfit(crate::group::arbitrated::Unfit),
    /// The copy's state forbids it.
    CopyState {
        /// The state.
        state: String,
        /// What would lift it.
        hint: String,
    },
    /// The role forbids it.
    Role {
        /// The role.
        role: String,
        /// What would lift it.
        hint: String,
    },
    /// An argument is out of range.
    Invalid(String),
    /// The mode needs a peer.
    NoPeer(Mode),
    /// The verb was ended by something else.
    Interrupted(String),
}

impl VerbError {
    /// Why, without what would lift it.
    pub fn reason(&self) -> String {
        match self {
            Self::PeerIsPrimary { site, epoch } => format!("site {site} is primary at epoch {epoch}"),
            Self::PeerUnproven { site } => {
                format!("site {site} cannot be reached, so nothing proves that it has stopped")
            }
            Self::PeerInS { site } => format!("every flush waits for site {site}"),
            Self::PeerUnfit { site, why, .. } => format!("site {site} cannot take over: {why}"),
            Self::LossTooLarge { bytes, ms } => {
                format!("this copy is not in S: about {bytes} bytes and {ms} ms may be lost")
            }
            Self::Unproven => "what would be lost cannot be proven".into(),
            Self::Unfit(why) => why.to_string(),
            Self::CopyState { state, .. } => format!("the copy is {state}"),
            Self::Role { role, .. } => format!("the volume is {role} here"),
            Self::Invalid(why) => why.clone(),
            Self::NoPeer(mode) => format!("mode {mode:?} needs a peer"),
            Self::Interrupted(why) => format!("ended before it was done: {why}"),
        }
    }

    /// What would lift it; empty where the reason says all there is.
    pub fn lifted_by(&self) -> &str {
        match self {
            Self::PeerIsPrimary { .. } => "demote it first",
            Self::PeerUnproven { .. } => "make sure that it has, then use --assert-peer-fenced --reason TEXT",
            Self::LossTooLarge { .. } => "accept with --max-loss-bytes or --max-loss-seconds",
            Self::Unproven => "accept with --allow-unproven",
            Self::Unfit(_) => {
                "where the primary is gone for good, --assert-peer-fenced --reason TEXT opens this copy with what it has"
            }
            Self::CopyState { hint, .. } | Self::Role { hint, .. } | Self::PeerUnfit { hint, .. } => hint,
            Self::PeerInS { .. } => "set mode async first: `tidemark volume set --mode async`",
            Self::NoPeer(_) => "name one with `tidemark volume set --peer-site`",
            Self::Invalid(_) | Self::Interrupted(_) => "",
        }
    }
}

impl std::fmt::Display for VerbError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let between = match self {
            Self::Unproven | Self::Unfit(_) | Self::LossTooLarge { .. } | Self::PeerUnfit { .. } => "; ",
            _ => ": ",
        };
        match self.lifted_by() {
            "" => f.write_str(&self.reason()),
            lifted_by => write!(f, "{}{between}{lifted_by}", self.reason()),
        }
    }
}

impl std::error::Error for VerbError {}
