//! How a command ends: the exit code, one sentence, and what to do about it.

use std::io;
use std::process::ExitCode;

use serde::Serialize;

use crate::output::Format;
use crate::pki::PkiError;

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
}

impl Failure {
    /// A usage error.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: Some(hint.into()) }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } | Self::Pki(PkiError::Invalid { .. }) => Exit::Usage,
            Self::Output(_) | Self::ClosedPipe | Self::Format(_) | Self::Pki(_) => Exit::Failed,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } => hint.clone(),
            Self::Pki(error) => error.hint(),
            Self::Output(_) | Self::ClosedPipe | Self::Format(_) => None,
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
    hint: Option<String>,
}

/// Tells the user on stderr, in JSON when the output is JSON.
pub fn report(failure: &Failure, format: Format) {
    let exit = failure.exit();
    let body =
        ErrorBody { code: exit.word(), exit_code: exit as u8, message: failure.to_string(), hint: failure.hint() };
    match (format, &body.hint) {
        (Format::Json, _) => {
            let json = serde_json::to_string(&ErrorReport { error: body }).unwrap_or_default();
            eprintln!("{json}");
        }
        (_, Some(hint)) => eprintln!("error: {}\nhint: {hint}", body.message),
        (_, None) => eprintln!("error: {}", body.message),
    }
}
