//! What a verb would do, told without doing it; and what a promotion of a copy would be, at any time.
//!
//! Both come from the very judgement that the verbs themselves begin with (`node/oracle.rs`, `node/plan.rs`): what is predicted
//! here cannot differ from what is done.

use crate::types::Lsn;
use crate::verb::{PromotionClass, VerbError, VerbOk};

/// What opening a copy leaves behind, as far as this copy can know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loss {
    /// What is known at all. The two numbers say something of a lossy promotion only.
    pub class: PromotionClass,
    /// Bytes of log that the old primary was known to have beyond this copy, when it was last heard.
    pub bytes: u64,
    /// Milliseconds since then: what was written in that time is not in the bytes.
    pub ms: u64,
}

impl Loss {
    /// Every acknowledged flush is here.
    pub const NOTHING: Self = Self { class: PromotionClass::Lossless, bytes: 0, ms: 0 };
    /// Nobody can tell.
    pub const UNKNOWN: Self = Self { class: PromotionClass::Unproven, bytes: 0, ms: 0 };

    /// The answer of a promotion that left this behind and forked at `fork`.
    pub fn promoted(self, fork: Lsn) -> VerbOk {
        VerbOk::Promoted { class: self.class, fork, lost_bytes: self.bytes, lost_ms: self.ms }
    }
}

/// Something that a verb would wait for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wait {
    /// For what.
    pub what: &'static str,
    /// For how long at most, in milliseconds; then the verb ends with a reason.
    pub at_most_ms: u64,
}

/// What a verb would do now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What would happen, in order, in words. Never empty: where there is nothing to do it says so.
    pub steps: Vec<String>,
    /// What would be lost; of a promotion whose judgement can be given now.
    pub loss: Option<Loss>,
    /// What it would wait for, in order.
    pub waits: Vec<Wait>,
}

impl Plan {
    /// What a verb waits for that comes while a copy is being opened: only then it is judged.
    pub const RECOVERY: &str = "the recovery of the log";

    /// A plan of these steps, which waits for nothing.
    pub fn of<S: Into<String>>(steps: impl IntoIterator<Item = S>) -> Self {
        Self { steps: steps.into_iter().map(Into::into).collect(), loss: None, waits: Vec::new() }
    }

    /// The same, and it waits.
    #[must_use]
    pub fn waiting(mut self, what: &'static str, at_most_ms: u64) -> Self {
        self.waits.push(Wait { what, at_most_ms });
        self
    }
}

/// What a promotion of this copy would be now (MODEL 12).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Promotable {
    /// What it would lose; `None`: it is impossible, whatever anybody says.
    pub loss: Option<Loss>,
    /// It takes a person's word that the other site is stopped (R19).
    pub needs_word: bool,
    /// It would wait for so many milliseconds at most: where a witness arbitrates, for the other site's lease.
    pub waits_ms: u64,
    /// What stands against a promotion that says nothing else: each names what would lift it. Empty: `promote` just does it.
    pub blockers: Vec<VerbError>,
}

impl Promotable {
    /// `lossless`, `lossy`, `unproven` or `impossible`.
    pub fn class(&self) -> &'static str {
        match self.loss.map(|loss| loss.class) {
            Some(PromotionClass::Lossless) => "lossless",
            Some(PromotionClass::Lossy) => "lossy",
            Some(PromotionClass::Unproven) => "unproven",
            None => "impossible",
        }
    }
}
