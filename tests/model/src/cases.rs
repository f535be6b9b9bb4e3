//! The runs: which model to which bounds, and which of them finds which rule that is left out.

use crate::check::{Limits, Outcome, check};
use crate::config::{Groups, Joint, Kind, Scope};
use crate::lease::{self, Leases};
use crate::mutation::Mutation;

/// A model and its bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bounds {
    /// Configurations and acknowledgements.
    Groups(Scope),
    /// Leases.
    Leases(lease::Scope),
}

/// A run.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// How far.
    pub bounds: Bounds,
    /// Small enough for the unit tests.
    pub is_small: bool,
}

const fn case(name: &'static str, about: &'static str, scope: Scope) -> Case {
    Case { name, about, bounds: Bounds::Groups(scope), is_small: false }
}

const fn lease_case(name: &'static str, about: &'static str, scope: lease::Scope) -> Case {
    Case { name, about, bounds: Bounds::Leases(scope), is_small: false }
}

const JOINTS: &[Joint] = &[Joint::Expand, Joint::Release, Joint::Handover];
const KINDS: &[Kind] = &[Kind::Resume, Kind::Shrink, Kind::Promote, Kind::Withdraw];
const ALL_KINDS: &[Kind] = &[Kind::Resume, Kind::Shrink, Kind::Promote, Kind::Withdraw, Kind::Lazy];

/// One agent a site: what is written, shipped, synced and acknowledged in separate steps.
const ONE: Scope = Scope {
    agents: 1,
    majors: 2,
    minors: 2,
    writes: 1,
    restarts: 1,
    losses: 1,
    both: true,
    joints: JOINTS,
    kinds: ALL_KINDS,
    late: false,
    coarse: false,
};

/// Two agents a site: K, with writes that are durable at once.
const TWO: Scope = Scope { agents: 2, minors: 1, restarts: 0, losses: 0, kinds: KINDS, coarse: true, ..ONE };

/// Leases: one agent a site, renewals alone.
const LEASES: lease::Scope =
    lease::Scope { agents: 1, majors: 2, minors: 0, restarts: 0, beats: false, shrinks: false, handover: false };
const BEATS: lease::Scope = lease::Scope { beats: true, ..LEASES };
const SHRINKS: lease::Scope = lease::Scope { shrinks: true, ..LEASES };
const RESUMES: lease::Scope = lease::Scope { restarts: 1, ..LEASES };
const HANDOVERS: lease::Scope = lease::Scope { handover: true, minors: 1, ..LEASES };
const SUB_LEASES: lease::Scope = lease::Scope { agents: 2, ..LEASES };

/// The runs of every day: less than a minute on one core.
pub const FAST: &[Case] = &[
    case("one", "one agent a site", ONE),
    case("one-alone", "the same, B joins S", Scope { both: false, ..ONE }),
    Case {
        is_small: true,
        ..case(
            "one-writes",
            "one agent a site, two writes, no joint changes",
            Scope { writes: 2, restarts: 2, joints: &[], losses: 0, ..ONE },
        )
    },
    case("two", "two agents a site", TWO),
    case("two-alone", "the same, B joins S", Scope { both: false, ..TWO }),
    lease_case("lease", "leases and heartbeats", BEATS),
    lease_case("lease-resume", "leases, restarts", RESUMES),
];

/// For `hack/test --deep`.
pub const DEEP: &[Case] = &[
    case("one", "one agent a site, three majors", Scope { majors: 3, losses: 0, ..ONE }),
    case("one-writes", "one agent a site, two writes", Scope { writes: 2, restarts: 2, ..ONE }),
    case("one-late", "proposals that arrive late", Scope { late: true, ..ONE }),
    case("two", "two agents a site", Scope { minors: 2, ..TWO }),
    case("two-restart", "two agents a site, restarts", Scope { restarts: 1, losses: 1, ..TWO }),
    case("two-alone", "two agents a site, B joins S", Scope { both: false, minors: 2, ..TWO }),
    lease_case("lease-handover", "leases, HANDOVER and reclaim, shrinks", lease::Scope { shrinks: true, ..HANDOVERS }),
    lease_case(
        "lease-all",
        "leases, heartbeats, shrinks, restarts",
        lease::Scope { beats: true, restarts: 1, ..SHRINKS },
    ),
    lease_case("lease-sub", "two agents at A: sub-leases, takeovers of the leader", SUB_LEASES),
    lease_case("lease-three", "leases, three majors", lease::Scope { majors: 3, ..SHRINKS }),
];

/// Where a rule that is left out is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Hunt {
    /// The rule.
    pub mutation: Mutation,
    /// Where.
    pub bounds: Bounds,
    /// `None`: it has to be found. Else why it is not.
    pub covered: Option<&'static str>,
    /// Found after a few thousand states; else a million, too many for the unit tests.
    pub is_small: bool,
}

const fn hunt(mutation: Mutation, scope: Scope) -> Hunt {
    Hunt { mutation, bounds: Bounds::Groups(scope), covered: None, is_small: true }
}

const fn covered(mutation: Mutation, scope: Scope, by: &'static str) -> Hunt {
    Hunt { mutation, bounds: Bounds::Groups(scope), covered: Some(by), is_small: false }
}

const fn lease_hunt(mutation: Mutation, scope: lease::Scope) -> Hunt {
    Hunt { mutation, bounds: Bounds::Leases(scope), covered: None, is_small: scope.is_small() }
}

const WRITES: Scope = Scope { writes: 2, losses: 0, ..ONE };
const QUIET: Scope = Scope { losses: 0, kinds: KINDS, ..ONE };
const ALONE: Scope = Scope { both: false, majors: 3, restarts: 0, losses: 0, ..ONE };
const MAJORS: Scope = Scope { majors: 3, minors: 1, restarts: 0, losses: 0, ..ONE };

/// A change of primary that was judged before a HANDOVER, and is made after the RELEASE that followed its reclaim.
const RELEASES: Scope = Scope {
    majors: 3,
    minors: 2,
    joints: &[Joint::Release, Joint::Handover],
    kinds: &[Kind::Resume, Kind::Promote],
    ..TWO
};

/// Every rule that is left out.
pub const HUNTS: &[Hunt] = &[
    hunt(Mutation::FlushBeforeSync, ONE),
    hunt(Mutation::FlushWithoutPeer, ONE),
    covered(Mutation::AckOfAnyEpoch, QUIET, "the receiver takes no append of an epoch that is not its own (R3)"),
    hunt(Mutation::AckOfAnyIncarnation, WRITES),
    hunt(Mutation::AppendOfAnyEpoch, ONE),
    hunt(Mutation::AppendCarriesK, ONE),
    hunt(Mutation::ListedWithoutCheck, ONE),
    hunt(Mutation::ShrinkAlone, ONE),
    hunt(Mutation::SoloBeforePersisted, ONE),
    hunt(Mutation::ExpandUnverified, ALONE),
    hunt(Mutation::TailAtPrepare, ALONE),
    hunt(Mutation::VerifyEach, Scope { both: false, ..TWO }),
    hunt(Mutation::OpenWithoutRollForward, ONE),
    hunt(Mutation::SameIncarnation, WRITES),
    hunt(Mutation::CutUnsealed, ONE),
    hunt(Mutation::BlindWrite, ONE),
    hunt(Mutation::JudgedOnCopy, MAJORS),
    hunt(Mutation::NoSince, ALONE),
    hunt(Mutation::NoBase, ONE),
    hunt(Mutation::BaseNotInherited, MAJORS),
    covered(
        Mutation::NoNonce,
        QUIET,
        "no two K of one epoch meet here: it takes two sites that decided on a person's word",
    ),
    hunt(Mutation::OpenBeforeAll, TWO),
    Hunt { is_small: false, ..hunt(Mutation::ReleaseByOne, RELEASES) },
    hunt(Mutation::ReleasePrimaryFirst, ONE),
    lease_hunt(Mutation::DemotionNotDurable, lease::Scope { shrinks: true, ..HANDOVERS }),
    hunt(Mutation::HandoverUnequal, WRITES),
    lease_hunt(Mutation::NoLeaseBump, SHRINKS),
    lease_hunt(Mutation::ShortWait, LEASES),
    lease_hunt(Mutation::RenewalFromAnswer, LEASES),
    lease_hunt(Mutation::HeartbeatFromEcho, BEATS),
    lease_hunt(Mutation::SubLeaseFromReceipt, SUB_LEASES),
    lease_hunt(Mutation::NoOpeningWait, BEATS),
    lease_hunt(Mutation::ResumeWithoutCas, RESUMES),
    lease_hunt(Mutation::HandoverServesAtOnce, HANDOVERS),
    lease_hunt(Mutation::HandoverWhileAsking, lease::Scope { shrinks: true, beats: true, ..HANDOVERS }),
    lease_hunt(Mutation::ReclaimAtOnce, lease::Scope { beats: true, ..HANDOVERS }),
    lease_hunt(Mutation::TakeoverWithoutBump, lease::Scope { majors: 3, ..SUB_LEASES }),
];

impl Bounds {
    /// Runs it, with `mutation` left out.
    pub fn run(self, mutation: Mutation, limits: Limits) -> Outcome {
        match self {
            Self::Groups(scope) => check(Groups { scope, mutation }, limits),
            Self::Leases(scope) => check(Leases { scope, mutation }, limits),
        }
    }

    /// In words.
    pub fn describe(self) -> String {
        match self {
            Self::Groups(scope) => scope.describe(),
            Self::Leases(scope) => scope.describe(),
        }
    }
}
