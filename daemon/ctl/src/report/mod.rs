//! The answers of the agent as values that can be printed: JSON and YAML field by field, tables by what people look for.
//!
//! The names here are the stable interface of `-o json` and `-o yaml`: the API's names in lowerCamel, enumerations as
//! kebab-case words, absent values left out.

pub mod agent;
pub mod branch;
pub mod group;
pub mod log;
pub mod outcome;
pub mod plan;
pub mod policy;
pub mod status;
pub mod volume;

use jiff::Timestamp;
use serde::Serialize;
use tidemark_proto::admin as pb;

/// A report with the same fields as its message.
macro_rules! mirror {
    ($(#[$doc:meta])* $name:ident of $message:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Debug, serde::Serialize)]
        #[serde(rename_all = "camelCase")]
        #[allow(missing_docs, reason = "the fields are documented at the message")]
        pub struct $name { $(pub $field: $type),* }

        impl From<tidemark_proto::admin::$message> for $name {
            fn from(message: tidemark_proto::admin::$message) -> Self {
                Self { $($field: message.$field.into()),* }
            }
        }
    };
}
pub(crate) use mirror;

mirror! {
    /// One aspect of a state.
    State of State { code: String, text: String, reason: String, normal: bool }
}
mirror! {
    /// A position in a log.
    Position of Position { generation: String, incarnation: u32, lsn: u64 }
}

/// `mode-async` and the like to `async`: the word of an enumeration's value.
fn word(name: &str, prefix: &str) -> String {
    let word = name.strip_prefix(prefix).unwrap_or(name);
    if word == "UNSPECIFIED" { String::new() } else { word.to_ascii_lowercase().replace('_', "-") }
}

fn mode(value: i32) -> String {
    pb::Mode::try_from(value).map_or_else(|_| value.to_string(), |mode| word(mode.as_str_name(), "MODE_"))
}

fn frontend(value: i32) -> String {
    let name = |frontend: pb::Frontend| word(frontend.as_str_name(), "FRONTEND_");
    pb::Frontend::try_from(value).map_or_else(|_| value.to_string(), name)
}

/// A moment in milliseconds as text; empty for none.
fn moment(ms: i64) -> String {
    match (ms, Timestamp::from_millisecond(ms)) {
        (0, _) | (_, Err(_)) => String::new(),
        (_, Ok(moment)) => moment.to_string(),
    }
}

/// The text of a state, with its reason when it has one.
fn explained(state: &State) -> String {
    match state.reason.as_str() {
        "" => state.text.clone(),
        reason => format!("{} ({reason})", state.text),
    }
}

/// Yes or no.
fn yes_no(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

/// Something that has nothing to say but that it was done.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    /// What was done, for people.
    pub done: String,
}

impl crate::output::Report for Done {
    fn table(&self, _: crate::output::Paint) -> String {
        self.done.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enumerations_are_words() {
        assert_eq!(mode(pb::Mode::Sync.into()), "sync");
        assert_eq!(mode(0), "");
        assert_eq!(frontend(pb::Frontend::Fuse.into()), "fuse");
        assert_eq!(mode(99), "99", "a value of a newer agent is shown as it is");
        assert_eq!(word("DISPOSAL_NOT_YET", "DISPOSAL_"), "not-yet");
    }
}
