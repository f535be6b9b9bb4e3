//! The runs: which model to which bounds, and which of them finds which rule that is left out.

use crate::check::{Limits, Outcome, check};
use crate::config::{Groups, Joint, Kind, Scope};
use crate::mutation::Mutation;

/// A model and its bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bounds {
    /// Configurations and acknowledgements.
    Groups(Scope),
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
];

/// For `hack/test --deep`.
pub const DEEP: &[Case] = &[
    case("one", "one agent a site, three majors", Scope { majors: 3, losses: 0, ..ONE }),
    case("one-writes", "one agent a site, two writes", Scope { writes: 2, restarts: 2, ..ONE }),
    case("one-late", "proposals that arrive late", Scope { late: true, ..ONE }),
    case("two", "two agents a site", Scope { minors: 2, ..TWO }),
    case("two-restart", "two agents a site, restarts", Scope { restarts: 1, losses: 1, ..TWO }),
    case("two-alone", "two agents a site, B joins S", Scope { both: false, minors: 2, ..TWO }),
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
    hunt(Mutation::OpenBeforeAll, TWO),
    Hunt { is_small: false, ..hunt(Mutation::ReleaseByOne, RELEASES) },
    hunt(Mutation::ReleasePrimaryFirst, ONE),
    covered(Mutation::DemotionNotDurable, QUIET, "R2; what may be read is the model of leases"),
    hunt(Mutation::HandoverUnequal, WRITES),
];

impl Bounds {
    /// Runs it, with `mutation` left out.
    pub fn run(self, mutation: Mutation, limits: Limits) -> Outcome {
        match self {
            Self::Groups(scope) => check(Groups { scope, mutation }, limits),
        }
    }

    /// In words.
    pub fn describe(self) -> String {
        match self {
            Self::Groups(scope) => scope.describe(),
        }
    }
}
