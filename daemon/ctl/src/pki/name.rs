//! Names that people give to sites, nodes and admins: the rule that the agents have for all names, so that every one of
//! them can be a file name, a part of a URI and a word in a shell without quoting.

use std::fmt;

use serde::Deserialize;

use super::PkiError;

/// The longest name in bytes: a DNS label.
const NAME_BYTES: usize = 63;
/// What X.509 lets a common name hold.
const COMMON_NAME_BYTES: usize = 64;

/// A checked name: lower-case letters, digits, `-` and `.`, first and last one a letter or a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

impl Name {
    /// A name of at most 63 bytes.
    ///
    /// # Errors
    /// [`PkiError::Invalid`].
    pub fn parse(text: &str) -> Result<Self, PkiError> {
        match flaw(text) {
            None => Ok(Self(text.to_owned())),
            Some(why) => {
                Err(PkiError::Invalid { what: "name", value: shortened(text, NAME_BYTES + 1).to_owned(), why })
            }
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn flaw(text: &str) -> Option<&'static str> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if text.is_empty() {
        Some("is empty")
    } else if text.len() > NAME_BYTES {
        Some("has more than 63 characters")
    } else if !text.chars().all(|c| plain(c) || c == '-' || c == '.') || text.contains("..") {
        Some("may hold lower-case letters, digits, '-' and single '.' only")
    } else if !text.starts_with(plain) || !text.ends_with(plain) {
        Some("must start and end with a letter or a digit")
    } else {
        None
    }
}

/// The head of `text` that has at most `limit` bytes.
fn shortened(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// `NAME ID` in at most 64 bytes; the id is always whole.
pub(super) fn name_and_id(name: &Name, id: &impl fmt::Display) -> String {
    let id = id.to_string();
    let room = COMMON_NAME_BYTES.saturating_sub(id.len() + 1);
    format!("{} {id}", shortened(name.as_str(), room))
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = PkiError;

    fn try_from(text: String) -> Result<Self, PkiError> {
        Self::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_in_a_path_a_uri_and_a_shell() {
        for good in ["a", "site-a", "rack1.zone2", "9", &"x".repeat(63)] {
            assert_eq!(Name::parse(good).expect(good).as_str(), good);
        }
        for bad in ["", "-a", "a-", ".", "..", "a..b", "a/b", "a b", "A", "a_b", "ä", "a\n", &"x".repeat(64)] {
            assert!(Name::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_common_name_keeps_the_whole_id_and_fits_x509() {
        let name = Name::parse(&"n".repeat(63)).expect("a valid name");
        let id = tidemark_core::types::SiteId([7; 16]);
        let joined = name_and_id(&name, &id);
        assert_eq!(joined.len(), COMMON_NAME_BYTES);
        assert!(joined.ends_with(&id.to_string()));
    }
}
