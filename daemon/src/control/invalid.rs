//! A wrong argument, by the name of its field.

use std::fmt::Display;

/// Which field of a request is wrong, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {text}")]
pub(super) struct Invalid {
    /// The field, in the vocabulary of the API.
    pub field: &'static str,
    /// What is wrong and what is allowed.
    pub text: String,
}

/// `field` is wrong because of `text`.
pub(super) fn field(field: &'static str, text: impl Display) -> Invalid {
    Invalid { field, text: text.to_string() }
}
