//! Why the other end of a connection is refused, by name: for the log, for metrics, for the error that a person reads.

use crate::lock::lock;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// At most one refusal per this time is logged: whoever knocks all day must not fill the disk. All are counted.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Why the other end of a connection is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PeerRefusal {
    /// It presented no certificate.
    NoCertificate,
    /// Its certificate cannot be parsed, names no single node identity, or is for another purpose.
    Malformed,
    /// Its certificate, or one above it, has expired.
    Expired,
    /// Its certificate, or one above it, is not valid yet.
    NotYetValid,
    /// Its certificate is revoked.
    Revoked,
    /// No authority of a known peer vouches for its certificate.
    UnknownCa,
    /// An authority vouches for it, but it is another site than that authority, the dialled address or the message says.
    WrongSite,
    /// It does not speak TLS at all.
    Plaintext,
    /// It speaks no acceptable version of TLS, or broke its rules.
    Protocol,
    /// It did not finish the handshake in time.
    Timeout,
    /// It refused our certificate.
    RefusedUs,
}

impl PeerRefusal {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::NoCertificate,
        Self::Malformed,
        Self::Expired,
        Self::NotYetValid,
        Self::Revoked,
        Self::UnknownCa,
        Self::WrongSite,
        Self::Plaintext,
        Self::Protocol,
        Self::Timeout,
        Self::RefusedUs,
    ];

    /// The name for metrics, logs and status texts; never changes.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Malformed => "malformed",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::UnknownCa => "unknown_ca",
            Self::WrongSite => "wrong_site",
            Self::Plaintext => "plaintext",
            Self::Protocol => "protocol",
            Self::Timeout => "timeout",
            Self::RefusedUs => "refused_us",
        }
    }

    fn explanation(self) -> &'static str {
        match self {
            Self::NoCertificate => "it presented no certificate",
            Self::Malformed => "its certificate is malformed or names no node",
            Self::Expired => "its certificate has expired",
            Self::NotYetValid => "its certificate is not valid yet",
            Self::Revoked => "its certificate is revoked",
            Self::UnknownCa => "no authority of a known peer vouches for its certificate",
            Self::WrongSite => "it is another site than expected",
            Self::Plaintext => "it does not speak TLS",
            Self::Protocol => "it does not speak an acceptable TLS",
            Self::Timeout => "it did not finish the handshake in time",
            Self::RefusedUs => "it refused our certificate",
        }
    }
}

impl fmt::Display for PeerRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name(), self.explanation())
    }
}

/// Called for every refusal, from any thread.
pub type OnRefusal = Box<dyn Fn(PeerRefusal) + Send + Sync>;

/// Counts refusals and logs them with restraint. One per agent.
pub struct Refusals {
    counts: [AtomicU64; PeerRefusal::ALL.len()],
    on_refusal: OnRefusal,
    last_logged: Mutex<Option<Instant>>,
}

impl Refusals {
    /// Counts; calls `on_refusal` for each.
    pub fn new(on_refusal: OnRefusal) -> Self {
        Self { counts: Default::default(), on_refusal, last_logged: Mutex::new(None) }
    }

    /// How many of that kind there were.
    pub fn count(&self, refusal: PeerRefusal) -> u64 {
        self.counts[refusal as usize].load(Relaxed)
    }

    pub(super) fn record(&self, refusal: PeerRefusal, remote: SocketAddr, detail: &dyn fmt::Display) {
        self.counts[refusal as usize].fetch_add(1, Relaxed);
        (self.on_refusal)(refusal);
        if self.may_log() {
            tracing::warn!(reason = refusal.name(), %remote, %detail, "peer refused");
        }
    }

    fn may_log(&self) -> bool {
        let mut last = lock(&self.last_logged);
        let now = Instant::now();
        let due = last.is_none_or(|last| now.duration_since(last) >= LOG_EVERY);
        if due {
            *last = Some(now);
        }
        due
    }
}

impl Default for Refusals {
    fn default() -> Self {
        Self::new(Box::new(|_| ()))
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").field("counts", &self.counts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_all_is_the_order_of_the_numbers() {
        for (i, refusal) in PeerRefusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, i, "{refusal}");
        }
    }
}
