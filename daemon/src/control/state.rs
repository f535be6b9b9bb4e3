//! States in words: a stable code for machines, a text and, where something is not normal, the reason for people.
//!
//! The codes are part of the API and of the metrics; the texts may change.

use tidemark_core::status::{CopyState, LinkState, Role, Status, SuspendReason};

use super::engine::PeerHealth;

/// One aspect of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateText {
    /// Stable, kebab-case.
    pub code: &'static str,
    /// In words.
    pub text: String,
    /// Why, and what would change it; empty when normal.
    pub reason: String,
    /// Needs nobody's attention.
    pub normal: bool,
}

impl StateText {
    fn normal(code: &'static str, text: &str) -> Self {
        Self { code, text: text.to_owned(), reason: String::new(), normal: true }
    }

    fn because(code: &'static str, text: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { code, text: text.into(), reason: reason.into(), normal: false }
    }
}

/// Every code of [`role`].
pub const ROLE_CODES: [&str; 10] = [
    "secondary",
    "primary",
    "fenced",
    "suspended-no-sync-peer",
    "suspended-lease-lost",
    "suspended-user",
    "suspended-log-full",
    "suspended-restart",
    "suspended-opening",
    "suspended-failed",
];

/// Every code of [`copy`].
pub const COPY_CODES: [&str; 8] =
    ["opening", "seeding", "catching-up", "current", "stale", "diverged", "suspect", "failed"];

/// Every code of [`link`].
pub const LINK_CODES: [&str; 8] =
    ["no-peer", "disconnected", "handshaking", "catching-up", "seeding", "streaming", "paused", "refused"];

/// The role of a copy.
pub fn role(role: &Role) -> StateText {
    match role {
        Role::Secondary => StateText::normal("secondary", "secondary"),
        Role::Primary => StateText::normal("primary", "primary"),
        Role::Fenced(epoch) => StateText::because(
            "fenced",
            "fenced: all input/output fails",
            format!("epoch {epoch} names another site as primary; detach here and use the volume there"),
        ),
        Role::Suspended(reason) => suspended(*reason),
    }
}

fn suspended(reason: SuspendReason) -> StateText {
    let (code, why) = match reason {
        SuspendReason::NoSyncPeer => (
            "suspended-no-sync-peer",
            "a peer whose durability counts has to be brought up to date first and is not reachable; restore the link, or decide that it stays out with drop-peer",
        ),
        SuspendReason::LeaseLost => (
            "suspended-lease-lost",
            "neither the witness nor the peer has answered for as long as a lease lasts, so the other site may have taken over; goes on by itself when either answers",
        ),
        SuspendReason::User => ("suspended-user", "an operator asked for it; promote lifts it"),
        SuspendReason::LogFull => (
            "suspended-log-full",
            "the log has no space; free space in the pool, raise logSize, or bring back the peer that holds the log",
        ),
        SuspendReason::Restart => (
            "suspended-restart",
            "restarted, and nobody has confirmed that no other site took over; where a witness decides it does so by itself, else restore the link to the peer, or promote with --assert-peer-fenced --reason TEXT",
        ),
        SuspendReason::Opening => (
            "suspended-opening",
            "being promoted or rolling forward; ends by itself where copy and link name no obstacle",
        ),
        SuspendReason::Failed => {
            ("suspended-failed", "the local log failed; promote the other site, then repair this one")
        }
    };
    StateText::because(code, "suspended: all input/output is queued", why)
}

/// How good a copy is.
pub fn copy(copy: &CopyState) -> StateText {
    match copy {
        CopyState::Current => StateText::normal("current", "current"),
        CopyState::Opening => StateText::because("opening", "opening", "recovery of the log runs; ends by itself"),
        CopyState::Seeding { done, total, by_difference: true } => {
            let text = format!("seeding, difference: {done} of {total} bytes");
            StateText::because("seeding", text, "what changed while it was away is on its way; ends by itself")
        }
        CopyState::Seeding { done, total, by_difference: false } => {
            let text = format!("seeding: {done} of {total} bytes");
            StateText::because("seeding", text, "the first content is on its way; ends by itself")
        }
        CopyState::CatchingUp => {
            StateText::because("catching-up", "catching up", "a prefix of the primary, behind; ends by itself")
        }
        CopyState::Stale => {
            StateText::because("stale", "stale", "was left out of S or has no link; restore the link to the peer")
        }
        CopyState::Diverged { reason } => StateText::because("diverged", "diverged: keeps records of its own", reason),
        CopyState::Suspect { reason } => StateText::because("suspect", "suspect: not to be trusted", reason),
        CopyState::Failed { reason } => StateText::because("failed", "failed", reason),
    }
}

/// The stream to the peer.
pub fn link(link: &LinkState) -> StateText {
    match link {
        LinkState::NoPeer => StateText::normal("no-peer", "local volume: nothing is replicated"),
        LinkState::Streaming => StateText::normal("streaming", "streaming"),
        LinkState::Disconnected => {
            StateText::because("disconnected", "disconnected", "there is no stream to the peer; see the peer's health")
        }
        LinkState::Handshaking => {
            StateText::because("handshaking", "handshaking", "histories are compared; ends by itself")
        }
        LinkState::CatchingUp => {
            StateText::because("catching-up", "catching up", "the peer receives older records; ends by itself")
        }
        LinkState::Seeding => {
            StateText::because("seeding", "seeding", "the peer receives its first content; ends by itself")
        }
        LinkState::Paused => {
            StateText::because("paused", "paused", "an operator paused shipping; `tidemark resume --ship` lifts it")
        }
        LinkState::Refused(reason) => StateText::because("refused", "refused", reason),
    }
}

/// Whether a loss of this site would lose an acknowledged flush.
pub fn protection(status: &Status) -> StateText {
    if status.protected {
        return StateText::normal("protected", "protected");
    }
    StateText::because("not-protected", "not protected", &status.not_protected_because)
}

/// Whether a peer answers.
pub fn health(health: &PeerHealth) -> StateText {
    match health {
        PeerHealth::Up => StateText::normal("up", "up"),
        PeerHealth::Unknown => StateText::because("unknown", "unknown", "not asked yet"),
        PeerHealth::Down(reason) => StateText::because("down", "down", reason),
        PeerHealth::Refused(reason) => StateText::because("refused", "refused", reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemark_core::types::Epoch;

    fn roles() -> Vec<Role> {
        use SuspendReason::*;
        let suspended = [NoSyncPeer, LeaseLost, User, LogFull, Restart, Opening, Failed].map(Role::Suspended);
        [Role::Secondary, Role::Primary, Role::Fenced(Epoch::default())].into_iter().chain(suspended).collect()
    }

    #[test]
    fn every_state_that_is_not_normal_has_a_reason() {
        let why = || "because".to_owned();
        let copies = [
            CopyState::Opening,
            CopyState::Seeding { done: 1, total: 2, by_difference: true },
            CopyState::CatchingUp,
            CopyState::Current,
            CopyState::Stale,
            CopyState::Diverged { reason: why() },
            CopyState::Suspect { reason: why() },
            CopyState::Failed { reason: why() },
        ];
        let links = [
            LinkState::NoPeer,
            LinkState::Disconnected,
            LinkState::Handshaking,
            LinkState::CatchingUp,
            LinkState::Seeding,
            LinkState::Streaming,
            LinkState::Paused,
            LinkState::Refused(why()),
        ];
        let roles: Vec<StateText> = roles().iter().map(role).collect();
        let copies: Vec<StateText> = copies.iter().map(copy).collect();
        let links: Vec<StateText> = links.iter().map(link).collect();
        assert_eq!(roles.iter().map(|state| state.code).collect::<Vec<_>>(), ROLE_CODES);
        assert_eq!(copies.iter().map(|state| state.code).collect::<Vec<_>>(), COPY_CODES);
        assert_eq!(links.iter().map(|state| state.code).collect::<Vec<_>>(), LINK_CODES);
        for state in roles.into_iter().chain(copies).chain(links) {
            assert_eq!(state.normal, state.reason.is_empty(), "{state:?}");
        }
    }
}
