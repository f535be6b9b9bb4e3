//! What a back-end has to offer: one linearizable compare-and-swap of a small value under a name.
//!
//! A back-end is thin. It knows no K, no lease and no time but the deadline that it is given; [`super::Witness`] decides what an
//! unclear outcome means, and what a value says.

use std::error::Error;
use std::time::Instant;

use bytes::Bytes;
use tidemark_core::format::FormatError;
use tidemark_core::format::witness::{Cell, MAX_CELL_BYTES};
use tidemark_core::group::witness::{Regression, Revision};

/// A value with its age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The value; at most [`tidemark_core::format::witness::MAX_CELL_BYTES`].
    pub bytes: Bytes,
    /// Names this value: no other value of the cell ever has it.
    pub revision: Revision,
}

/// The end of a compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The new value is durable, at this revision.
    Committed(Revision),
    /// The cell did not hold what was expected; nothing was changed. What it holds.
    Conflict(Option<Stored>),
}

/// A linearizable store of cells.
///
/// Both calls end by `deadline`. A call that is dropped may still take effect later, once, and only on the cell as it was
/// expected.
#[tonic::async_trait]
pub trait Store: Send + Sync + 'static {
    /// What kind it is: a word.
    fn backend(&self) -> &'static str;

    /// Where it is, for people.
    fn place(&self) -> String;

    /// True when the kind alone does not say that the condition of a change is kept: it is tried before anything is changed.
    fn has_to_prove_itself(&self) -> bool {
        false
    }

    /// The newest value of `cell`; `None`: it does not exist.
    ///
    /// # Errors
    /// [`WitnessError`]; nothing changed.
    async fn read(&self, cell: Cell, deadline: Instant) -> Result<Option<Stored>, WitnessError>;

    /// Replaces the value of revision `expected` by `value`; `None` expects that the cell does not exist. The nothing-changed of a
    /// conflict is about this attempt: a back-end that tries more than once may meet its own value.
    ///
    /// # Errors
    /// [`WitnessError`]; after [`WitnessError::Unavailable`] the value may be there, or come yet.
    async fn cas(
        &self,
        cell: Cell,
        expected: Option<&Revision>,
        value: Bytes,
        deadline: Instant,
    ) -> Result<Swap, WitnessError>;
}

/// Why a witness cannot be relied on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WitnessError {
    /// It did not answer, or not for certain. To be tried again, later; a change has to be looked for first.
    #[error("the witness is unavailable: {0}")]
    Unavailable(String),
    /// It answers, and refuses: its configuration or this agent's is wrong. Trying again does not help.
    #[error("the witness refuses: {0}")]
    Refused(String),
    /// The cell holds something that no agent of this version wrote.
    #[error("the witness holds something else in {cell}: {source}")]
    Corrupt {
        /// The cell.
        cell: Cell,
        /// What is wrong.
        source: FormatError,
    },
    /// The cell went back in time: the witness was restored or wiped.
    #[error("the witness forgot: {cell}: {source}")]
    Regressed {
        /// The cell.
        cell: Cell,
        /// How.
        source: Regression,
    },
}

impl WitnessError {
    /// Every [`Self::kind`].
    pub const KINDS: [&str; 4] = ["unavailable", "refused", "corrupt", "regressed"];

    /// A stable word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Refused(_) => "refused",
            Self::Corrupt { .. } => "corrupt",
            Self::Regressed { .. } => "regressed",
        }
    }
}

/// Refuses a value that no cell has, before anything is sent.
pub(super) fn bounded(value: &Bytes) -> Result<(), WitnessError> {
    if value.len() <= MAX_CELL_BYTES {
        return Ok(());
    }
    Err(WitnessError::Refused(format!("{} bytes are more than a cell holds ({MAX_CELL_BYTES})", value.len())))
}

/// `error` and what lies below it, the outermost first.
pub(super) fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    const MAX_CAUSES: usize = 16;
    std::iter::successors(Some(error), |&error| {
        // An input/output error shows the error that it wraps to those who ask for it alone.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        wrapped.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source())
    })
    .take(MAX_CAUSES)
}

/// An unavailability because of `error`.
pub(super) fn unavailable(what: &str, error: &dyn std::fmt::Display) -> WitnessError {
    WitnessError::Unavailable(format!("{what}: {error}"))
}
