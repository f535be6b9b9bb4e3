//! Names that people give to sites, nodes, pools, peers and volumes.

use std::fmt;

/// Lower-case letters, digits, `-` and `.`, beginning and ending with a letter or digit: never a path, never an option, safe
/// in a URI, a file name and a metric label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// A text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name: use 1 to {max} lower-case letters, digits, '-' or '.', beginning and ending with a letter or digit",
    max = Name::MAX_LEN
)]
pub struct NameError(pub String);

impl Name {
    /// The longest name in characters.
    pub const MAX_LEN: usize = 63;

    /// Checks `text`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
        let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let bytes = text.as_bytes();
        let fits = bytes.len() <= Self::MAX_LEN && bytes.iter().all(|c| inner(*c));
        if fits && edge(bytes.first()) && edge(bytes.last()) && !text.contains("..") {
            return Ok(Self(text.to_owned()));
        }
        Err(NameError(text.chars().take(Self::MAX_LEN + 1).collect()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_names() {
        for text in ["a", "pg-data", "db.0", "0", &"x".repeat(63)] {
            assert!(Name::parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn paths_options_and_long_texts_are_not() {
        for text in ["", "-a", "a-", ".", "..", "a..b", "a/b", "../x", "A", "ä", "a b", "a\0", &"x".repeat(64)] {
            assert!(Name::parse(text).is_err(), "{text:?}");
        }
    }
}
