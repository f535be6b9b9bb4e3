//! How a command ends: the exit code, one sentence, and what to do about it.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use serde::Serialize;
use tonic::{Code, Status};

use crate::offline::OfflineError;
use crate::output::Format;
use crate::pki::PkiError;

/// Metadata key of an agent's error: the stable code of a refusal.
const REASON_KEY: &str = "tidemark-reason";
/// Metadata key of an agent's error: the field of a wrong argument.
const FIELD_KEY: &str = "tidemark-field";
/// How many causes of a transport error are looked at.
const MAX_CAUSES: usize = 8;

/// Exit codes; documented in the help of `tidemark` and stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// The command failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The agent refused: the state does not allow it.
    Refused = 3,
    /// There is no such thing.
    NotFound = 4,
    /// The agent cannot be reached or did not answer in time.
    Unreachable = 5,
}

impl Exit {
    fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::NotFound => "notFound",
            Self::Unreachable => "unreachable",
        }
    }

    fn of(code: Code) -> Self {
        match code {
            Code::FailedPrecondition => Self::Refused,
            Code::NotFound => Self::NotFound,
            Code::InvalidArgument | Code::OutOfRange => Self::Usage,
            // A deadline that the client's own transport ends comes as Cancelled.
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::Unreachable,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments do not fit together.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The agent answered with an error.
    #[error("{message}")]
    Rpc {
        /// How the command ends.
        exit: Exit,
        /// The agent's sentence.
        message: String,
        /// Stable code of a refusal.
        reason: Option<String>,
        /// Field of a wrong argument.
        field: Option<String>,
        /// What to do.
        hint: Option<String>,
    },
    /// The agent did not answer.
    #[error("cannot reach the agent at {agent}: {why}")]
    Unreachable {
        /// Its address.
        agent: String,
        /// What happened.
        why: String,
        /// What to do.
        hint: String,
    },
    /// The command was carried out and what it looked for is not there or not as it should be.
    #[error("{message}")]
    Unsatisfied {
        /// How the command ends.
        exit: Exit,
        /// What was found.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The question was not answered with yes.
    #[error("nothing was done: {0}")]
    NotConfirmed(&'static str),
    /// A local file or terminal could not be used.
    #[error("cannot {verb}: {source}")]
    Local {
        /// What was attempted.
        verb: String,
        /// What the system said.
        source: io::Error,
    },
    /// The output could not be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// The reader of the output has gone.
    #[error("the reader of the output has gone")]
    ClosedPipe,
    /// The output could not be put in the wanted format.
    #[error("cannot format the output: {0}")]
    Format(String),
    /// A PKI verb failed.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A volume copy could not be read offline.
    #[error(transparent)]
    Offline(#[from] OfflineError),
}

impl Failure {
    /// A usage error.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: Some(hint.into()) }
    }

    /// The agent could not be reached because of `error`.
    pub fn unreachable(agent: &str, error: &(dyn Error + 'static)) -> Self {
        if cause::<tonic::TimeoutExpired>(error).is_some() {
            return Self::silent(agent);
        }
        let hint = match cause::<io::Error>(error).map(io::Error::kind) {
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                "is tidemark-agent running there? --agent or TIDEMARK_AGENT names another"
            }
            Some(io::ErrorKind::PermissionDenied) => "the socket is for root and its group only",
            // TLS 1.3 tells a client that it was refused only after the handshake, often as a closed connection.
            _ if agent.starts_with("https:") => {
                "`tidemark pki verify CERT --ca CA` says whether the certificates are good"
            }
            _ => "see --agent",
        };
        Self::Unreachable { agent: agent.to_owned(), why: innermost(error), hint: hint.to_owned() }
    }

    /// The agent did not answer in time.
    pub fn silent(agent: &str) -> Self {
        Self::Unreachable {
            agent: agent.to_owned(),
            why: "no answer in time".to_owned(),
            hint: "raise --timeout when the command needs longer".to_owned(),
        }
    }

    /// What the agent at `agent` answered, or what the transport made of it.
    pub fn from_status(status: &Status, agent: &str) -> Self {
        // A status that was not sent by the agent has a source: the connection broke, or TLS ended it at the first call.
        if let Some(source) = status.source() {
            return Self::unreachable(agent, source);
        }
        let text = |key: &str| status.metadata().get(key).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self::Rpc {
            exit: Exit::of(status.code()),
            message: message(status),
            reason: text(REASON_KEY),
            field: text(FIELD_KEY),
            hint: hint_for(status.code()).map(str::to_owned),
        }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } | Self::NotConfirmed(_) | Self::Pki(PkiError::Invalid { .. }) => Exit::Usage,
            Self::Rpc { exit, .. } | Self::Unsatisfied { exit, .. } => *exit,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Pki(PkiError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Exit::NotFound,
            Self::Local { source, .. } if source.kind() == io::ErrorKind::NotFound => Exit::NotFound,
            Self::Offline(OfflineError::NoCopy { .. }) => Exit::NotFound,
            Self::Offline(OfflineError::InUse { .. }) => Exit::Refused,
            Self::Pki(_) | Self::Offline(_) | Self::Local { .. } => Exit::Failed,
            Self::Output(_) | Self::ClosedPipe | Self::Format(_) => Exit::Failed,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } | Self::Rpc { hint, .. } | Self::Unsatisfied { hint, .. } => hint.clone(),
            Self::Unreachable { hint, .. } => Some(hint.clone()),
            Self::Pki(error) => error.hint(),
            Self::Offline(error) => error.hint().map(str::to_owned),
            Self::NotConfirmed(_) => Some("--yes answers the question in scripts".to_owned()),
            Self::Local { .. } | Self::Output(_) | Self::ClosedPipe | Self::Format(_) => None,
        }
    }

    fn codes(&self) -> (Option<String>, Option<String>) {
        match self {
            Self::Rpc { reason, field, .. } => (reason.clone(), field.clone()),
            _ => (None, None),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::Output(error),
        }
    }
}

fn message(status: &Status) -> String {
    match (status.code(), status.message()) {
        (code, "") => code.description().to_owned(),
        (Code::Unimplemented, text) => format!("the agent does not know this command: {text}"),
        (_, text) => text.to_owned(),
    }
}

fn hint_for(code: Code) -> Option<&'static str> {
    match code {
        Code::NotFound => Some("`tidemark volume list` and `tidemark peer list` show what there is"),
        Code::DeadlineExceeded | Code::Cancelled => Some("raise --timeout when the command needs longer"),
        Code::Unauthenticated | Code::PermissionDenied => {
            Some("the admin API wants a certificate of `tidemark pki issue-client`, or root on the agent's host")
        }
        Code::Unimplemented => Some("are the CLI and the agent of the same version? See `tidemark agent show`"),
        _ => None,
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| <dyn Error>::source(*error)).take(MAX_CAUSES)
}

fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// The text of the innermost cause: the outer ones say "transport error" in many words.
fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorReport {
    error: ErrorBody,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorBody {
    code: &'static str,
    exit_code: u8,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// Tells the user on stderr, in JSON when the output is JSON.
pub fn report(failure: &Failure, format: Format) {
    let text = match format {
        Format::Json => serde_json::to_string(&ErrorReport { error: body(failure) }).unwrap_or_default(),
        Format::Table | Format::Yaml => sentence(failure),
    };
    eprintln!("{text}");
}

fn body(failure: &Failure) -> ErrorBody {
    let (reason, field) = failure.codes();
    ErrorBody {
        code: failure.exit().word(),
        exit_code: failure.exit() as u8,
        message: failure.to_string(),
        reason,
        field,
        hint: failure.hint(),
    }
}

fn sentence(failure: &Failure) -> String {
    match failure.hint() {
        Some(hint) => format!("error: {failure}\nhint: {hint}"),
        None => format!("error: {failure}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_agent_has_its_exit() {
        for (code, exit) in [
            (Code::FailedPrecondition, Exit::Refused),
            (Code::NotFound, Exit::NotFound),
            (Code::InvalidArgument, Exit::Usage),
            (Code::DeadlineExceeded, Exit::Unreachable),
            (Code::Unavailable, Exit::Unreachable),
            (Code::AlreadyExists, Exit::Failed),
            (Code::ResourceExhausted, Exit::Failed),
            (Code::PermissionDenied, Exit::Failed),
            (Code::Internal, Exit::Failed),
        ] {
            assert_eq!(Failure::from_status(&Status::new(code, "x"), "a").exit(), exit, "{code:?}");
        }
    }

    #[test]
    fn a_missing_socket_is_unreachable_and_says_what_to_look_at() {
        let error = io::Error::from(io::ErrorKind::NotFound);
        let failure = Failure::unreachable("unix:///x", &error);
        assert_eq!(failure.exit(), Exit::Unreachable);
        assert!(sentence(&failure).contains("hint: is tidemark-agent running there?"));
    }
}
