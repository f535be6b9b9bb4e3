//! One table of the file while it is read: remembers which keys exist, and complains about the rest.
//!
//! Problems are collected, not returned one at a time, so that one run shows everything that is wrong.

use std::cell::RefCell;
use std::fmt;

use toml::{Table, Value};

use super::nearest::nearest;
use super::value::FromValue;

/// The most that one run lists; a file that is no configuration at all would else fill a screen.
const MAX_PROBLEMS: usize = 20;

/// One thing that is wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The key does not exist.
    Unknown {
        /// The key with its sections.
        key: String,
        /// What was probably meant.
        meant: Option<String>,
        /// The keys that exist there.
        allowed: Vec<&'static str>,
    },
    /// The key has to be there.
    Missing {
        /// The key with its sections.
        key: String,
        /// Allowed values.
        allowed: String,
    },
    /// The value is not allowed.
    Value {
        /// The key with its sections.
        key: String,
        /// The value as written.
        value: String,
        /// Allowed values.
        allowed: String,
    },
    /// Two keys, or a key and the rest, do not go together.
    Conflict {
        /// The key with its sections.
        key: String,
        /// Why, and what would help.
        why: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { key, meant: Some(meant), .. } => write!(f, "unknown key {key}: did you mean {meant}?"),
            Self::Unknown { key, meant: None, allowed } => {
                write!(f, "unknown key {key}: allowed here are {}", allowed.join(", "))
            }
            Self::Missing { key, allowed } => write!(f, "{key} is missing: needed is {allowed}"),
            Self::Value { key, value, allowed } => write!(f, "{key} = {value}: allowed is {allowed}"),
            Self::Conflict { key, why } => write!(f, "{key}: {why}"),
        }
    }
}

/// What was found so far.
#[derive(Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// Adds one; beyond [`MAX_PROBLEMS`] it is dropped.
    pub fn add(&self, problem: Problem) {
        let mut list = self.0.borrow_mut();
        if list.len() < MAX_PROBLEMS {
            list.push(problem);
        }
    }

    /// All of them.
    pub fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// One table.
pub(super) struct Section<'p> {
    prefix: String,
    table: Table,
    known: Vec<&'static str>,
    problems: &'p Problems,
}

impl<'p> Section<'p> {
    /// The whole file.
    pub fn root(table: Table, problems: &'p Problems) -> Self {
        Self::new(String::new(), table, problems)
    }

    fn new(prefix: String, table: Table, problems: &'p Problems) -> Self {
        Self { prefix, table, known: Vec::new(), problems }
    }

    /// The value of `key` if it is there and allowed.
    pub fn get<T: FromValue>(&mut self, key: &'static str) -> Option<T> {
        let value = self.take(key)?;
        let parsed = T::from_value(&value);
        if parsed.is_none() {
            self.refuse(key, &value, T::ALLOWED);
        }
        parsed
    }

    /// The value of `key`, or `default` when the key is absent.
    pub fn or<T: FromValue>(&mut self, key: &'static str, default: T) -> T {
        self.get(key).unwrap_or(default)
    }

    /// The value of `key`, which has to be there.
    pub fn need<T: FromValue>(&mut self, key: &'static str) -> Option<T> {
        if !self.table.contains_key(key) {
            self.known.push(key);
            self.missing(key, T::ALLOWED);
            return None;
        }
        self.get(key)
    }

    /// A whole number within `[min, max]`, or `default`.
    pub fn bounded(&mut self, key: &'static str, default: u32, min: u32, max: u32) -> u32 {
        let Some(value) = self.take(key) else { return default };
        let number = u32::from_value(&value).filter(|number| (min..=max).contains(number));
        number.unwrap_or_else(|| {
            self.refuse(key, &value, &format!("a whole number from {min} to {max}"));
            default
        })
    }

    /// The table `[key]`; an empty one when it is absent.
    pub fn section(&mut self, key: &'static str) -> Section<'p> {
        self.optional_section(key).unwrap_or_else(|| Section::new(self.path(key), Table::new(), self.problems))
    }

    /// The table `[key]` if it is there.
    pub fn optional_section(&mut self, key: &'static str) -> Option<Section<'p>> {
        match self.take(key)? {
            Value::Table(table) => Some(Section::new(self.path(key), table, self.problems)),
            other => {
                self.refuse(key, &other, &format!("a section [{}]", self.path(key)));
                None
            }
        }
    }

    /// The tables `[[key]]`, numbered from 0 in messages.
    pub fn list(&mut self, key: &'static str) -> Vec<Section<'p>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let tables = match &value {
            Value::Array(items) => items.iter().map(|item| item.as_table().cloned()).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let Some(tables) = tables else {
            self.refuse(key, &value, &format!("sections [[{}]]", self.path(key)));
            return Vec::new();
        };
        let numbered = tables.into_iter().enumerate();
        numbered.map(|(i, table)| Section::new(format!("{}[{i}]", self.path(key)), table, self.problems)).collect()
    }

    /// Complains that `key` does not go with the rest.
    pub fn conflict(&self, key: &str, why: impl Into<String>) {
        self.problems.add(Problem::Conflict { key: self.path(key), why: why.into() });
    }

    /// Complains that `key` is not there.
    pub fn missing(&self, key: &str, allowed: &str) {
        self.problems.add(Problem::Missing { key: self.path(key), allowed: allowed.to_owned() });
    }

    /// Complains about every key that nobody asked for.
    pub fn finish(self) {
        for key in self.table.keys() {
            let meant = nearest(key, &self.known).map(|meant| self.path(meant));
            let mut allowed = self.known.clone();
            allowed.sort_unstable();
            self.problems.add(Problem::Unknown { key: self.path(key), meant, allowed });
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    fn refuse(&self, key: &str, value: &Value, allowed: &str) {
        let value = shown(value);
        self.problems.add(Problem::Value { key: self.path(key), value, allowed: allowed.to_owned() });
    }

    fn path(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }
}

/// The value as the file has it, cut to a length that fits a line.
fn shown(value: &Value) -> String {
    const MAX_CHARS: usize = 80;
    let text = match value {
        Value::Table(_) => "{..}".to_owned(),
        other => other.to_string(),
    };
    if text.chars().count() <= MAX_CHARS {
        return text;
    }
    text.chars().take(MAX_CHARS).chain("...".chars()).collect()
}
