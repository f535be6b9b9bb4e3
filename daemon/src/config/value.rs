//! The types that a key of the file may have, each with the words for "allowed is ...".

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tidemark_core::types::{NodeId, SiteId};
use toml::Value;

use super::units;
use super::{LogFormat, Name, S3Endpoint};

/// A value of the file as a type.
pub(super) trait FromValue: Sized {
    /// Completes the sentence "allowed is ...".
    const ALLOWED: &'static str;

    /// `None` when the value is not allowed.
    fn from_value(value: &Value) -> Option<Self>;
}

/// A host name or address with a port, resolved when it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort(String);

impl HostPort {
    /// Completes the sentence "allowed is ...".
    pub const SYNTAX: &'static str = "host:port, such as b.example:9740 or [fd00::2]:9740";

    /// Checks `text`: a host without blanks, a port from 1 to 65535.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let bare = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?,
            None => (!host.contains(':')).then_some(host)?,
        };
        let host_ok = !bare.is_empty() && bare.len() <= 253 && bare.chars().all(is_host_char);
        (host_ok && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| Self(text.to_owned()))
    }

    /// `host:port`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_host_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '%')
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Mode bits of a socket, written as an octal text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketMode(pub u32);

/// A listener that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listen(pub Option<SocketAddr>);

/// The kind of a witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BackendKind {
    Etcd,
    File,
    S3,
}

/// Begins keys of others' stores: printable, without blanks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyPrefix(pub String);

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub u64);

/// A log filter: levels, or `module=level`, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogLevel(pub String);

impl LogLevel {
    /// A lone word that is no level would be taken for a module and switch its log on in full.
    fn parse(text: &str) -> Option<Self> {
        let is_level = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
        let is_module =
            |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c));
        let mut parts = text.split(',').map(|part| match part.split_once('=') {
            Some((module, level)) => is_module(module) && is_level(level),
            None => is_level(part),
        });
        parts.all(|fine| fine).then(|| Self(text.to_owned()))
    }
}

/// Implements [`FromValue`] for a type written as a TOML string.
macro_rules! from_text {
    ($type:ty, $allowed:expr, $parse:expr) => {
        impl FromValue for $type {
            const ALLOWED: &'static str = $allowed;

            fn from_value(value: &Value) -> Option<Self> {
                let parse: fn(&str) -> Option<Self> = $parse;
                parse(value.as_str()?)
            }
        }
    };
}

from_text!(
    Name,
    "a name of 1 to 63 lower-case letters, digits, '-' or '.', beginning and ending with a letter or digit",
    |text| { Name::parse(text).ok() }
);
from_text!(SiteId, "a UUID that is not nil", |text| SiteId::parse(text).filter(|id| !id.is_nil()));
from_text!(NodeId, "a UUID that is not nil", |text| NodeId::parse(text).filter(|id| !id.is_nil()));
from_text!(PathBuf, "an absolute path", |text| Some(PathBuf::from(text)).filter(|path| path.is_absolute()));
from_text!(SocketAddr, "address:port, such as 0.0.0.0:9740 or [::]:9740", |text| text.parse().ok());
from_text!(HostPort, HostPort::SYNTAX, HostPort::parse);
from_text!(S3Endpoint, S3Endpoint::SYNTAX, S3Endpoint::parse);
from_text!(Duration, units::DURATION_SYNTAX, units::duration);
from_text!(SocketMode, "octal mode bits as a text, such as \"0600\" or \"0660\"", |text| {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).map(SocketMode)
});
from_text!(Listen, "address:port, such as 127.0.0.1:9750, or \"off\"", |text| match text {
    "off" => Some(Listen(None)),
    text => text.parse().ok().map(|address| Listen(Some(address))),
});
from_text!(LogLevel, "error, warn, info, debug, trace, off, or a list such as info,module=debug", LogLevel::parse);
from_text!(LogFormat, "\"text\" or \"json\"", |text| match text {
    "text" => Some(LogFormat::Text),
    "json" => Some(LogFormat::Json),
    _ => None,
});

from_text!(BackendKind, "\"etcd\", \"s3\" or \"file\"", |text| match text {
    "etcd" => Some(BackendKind::Etcd),
    "file" => Some(BackendKind::File),
    "s3" => Some(BackendKind::S3),
    _ => None,
});
from_text!(KeyPrefix, "1 to 128 letters, digits, '/', '-', '_', '.' or ':'", |text| {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || "/-_.:".contains(c);
    ((1..=128).contains(&text.len()) && text.chars().all(is_fine)).then(|| KeyPrefix(text.to_owned()))
});

/// The most members of a cluster that are worth asking.
const MAX_ENDPOINTS: usize = 16;

impl FromValue for Vec<HostPort> {
    const ALLOWED: &'static str = "a list of 1 to 16 texts host:port, each once";

    fn from_value(value: &Value) -> Option<Self> {
        let list = value.as_array()?.iter().map(HostPort::from_value).collect::<Option<Self>>()?;
        let is_distinct = list.iter().enumerate().all(|(i, one)| !list[..i].contains(one));
        (is_distinct && (1..=MAX_ENDPOINTS).contains(&list.len())).then_some(list)
    }
}

impl FromValue for String {
    const ALLOWED: &'static str = "a text that is not empty";

    fn from_value(value: &Value) -> Option<Self> {
        value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    }
}

impl FromValue for Size {
    const ALLOWED: &'static str = units::BYTES_SYNTAX;

    fn from_value(value: &Value) -> Option<Self> {
        let number = value.as_integer().and_then(|number| number.try_into().ok());
        number.or_else(|| units::bytes(value.as_str()?)).map(Self)
    }
}

impl FromValue for bool {
    const ALLOWED: &'static str = "true or false";

    fn from_value(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl FromValue for u32 {
    const ALLOWED: &'static str = "a whole number from 0 to 4294967295";

    fn from_value(value: &Value) -> Option<Self> {
        value.as_integer().and_then(|number| number.try_into().ok())
    }
}

impl FromValue for Vec<String> {
    const ALLOWED: &'static str = "a list of texts";

    fn from_value(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(String::from_value).collect()
    }
}

impl FromValue for Vec<u32> {
    const ALLOWED: &'static str = "a list of whole numbers";

    fn from_value(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(u32::from_value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_need_both_parts() {
        for text in ["b.example:9740", "10.0.0.2:1", "[fd00::2]:9740", "localhost:65535"] {
            assert!(HostPort::parse(text).is_some(), "{text}");
        }
        for text in ["b.example", ":9740", "b:0", "b:65536", "fd00::2:9740", "a b:1", "[fd00::2:9740", "http://x:1", ""]
        {
            assert!(HostPort::parse(text).is_none(), "{text}");
        }
    }
}
