//! The keys and certificates of a site.
//!
//! Decides what a Tidemark certificate looks like (one CA per site, leaves for nodes and for admins, the identity in one
//! SAN URI), where the files lie and in which order they are written. Does not decide who may do what: agents do that from
//! the identity. Invariants: a private key never leaves mode 0600; nothing is overwritten unless the caller said so; a
//! crash leaves each file either whole and old or whole and new; a renewed certificate has the identity of the old one.

pub mod ca;
pub mod certificate;
pub mod identity;
pub mod leaf;
pub mod name;
pub mod renew;
pub mod store;
pub mod validity;
pub mod verify;

use std::path::PathBuf;

/// Why a PKI verb failed. Each text says what was attempted.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        /// What was attempted.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is there and the caller did not say that it may go.
    #[error("{} exists", path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// The file is larger than anything that this program writes.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file is not what it should be.
    #[error("{} is not {expected}: {why}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What was expected.
        expected: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A name, an id, a number of days cannot be used.
    #[error("{what} {value:?}: {why}")]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Two files that belong together do not.
    #[error("{} and {} do not belong together: {why}", left.display(), right.display())]
    Mismatch {
        /// One file.
        left: PathBuf,
        /// The other.
        right: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// The CA can no longer sign.
    #[error("the CA of site {site} expired on {since}")]
    CaExpired {
        /// The site's name.
        site: String,
        /// When.
        since: String,
    },
    /// The checks of `verify` failed.
    #[error("{} is not valid: {}", path.display(), problems.join("; "))]
    Unverified {
        /// Which certificate.
        path: PathBuf,
        /// Everything that is wrong with it.
        problems: Vec<String>,
    },
    /// Signing or key generation failed.
    #[error("cannot {verb}: {source}")]
    Crypto {
        /// What was attempted.
        verb: &'static str,
        /// What the library said.
        source: rcgen::Error,
    },
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

impl PkiError {
    /// What the caller can do about it, if there is one thing.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exists { .. } => Some("choose another directory, or replace it with --force".to_owned()),
            Self::CaExpired { .. } => {
                Some("renew it with `tidemark pki renew CA_DIR/ca.crt --ca CA_DIR`, then distribute ca.crt".to_owned())
            }
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Some("make a CA with `tidemark pki init-ca`, a node's certificate with `tidemark pki issue`".to_owned())
            }
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Some("keys are readable by their owner only: run as that user".to_owned())
            }
            _ => None,
        }
    }

    fn crypto(verb: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |source| Self::Crypto { verb, source }
    }
}

/// Sixteen random bytes as a version 4 UUID.
///
/// # Errors
/// [`PkiError::Random`].
pub fn random_id() -> Result<[u8; 16], PkiError> {
    let mut id: [u8; 16] = random_bytes()?;
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    Ok(id)
}

fn random_bytes<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| PkiError::Random(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
