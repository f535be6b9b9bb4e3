//! The data of the handshake's options, parsed. Pure; every string and list is bounded.

use super::proto::{Cursor, MAX_INFO_REQUESTS, MAX_QUERIES, MAX_STRING_BYTES};

/// The data of INFO and GO.
#[derive(PartialEq, Eq, Debug)]
pub struct InfoQuery<'a> {
    /// The export asked for; empty for the default one.
    pub name: &'a str,
    /// The information asked for, see [`super::proto::info`].
    pub requests: Vec<u16>,
}

impl<'a> InfoQuery<'a> {
    /// `None` when the data does not parse to its last byte.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut at = Cursor(data);
        let name = at.string()?;
        let count = usize::from(at.u16()?);
        if count > MAX_INFO_REQUESTS {
            return None;
        }
        let requests = (0..count).map(|_| at.u16()).collect::<Option<Vec<_>>>()?;
        at.is_empty().then_some(Self { name, requests })
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(PartialEq, Eq, Debug)]
pub struct ContextQuery<'a> {
    /// The export asked about.
    pub name: &'a str,
    /// The queries, in order.
    pub queries: Vec<&'a str>,
}

impl<'a> ContextQuery<'a> {
    /// `None` when the data does not parse to its last byte.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut at = Cursor(data);
        let name = at.string()?;
        let count = at.u32()?;
        if count > MAX_QUERIES {
            return None;
        }
        let queries = (0..count).map(|_| at.string()).collect::<Option<Vec<_>>>()?;
        at.is_empty().then_some(Self { name, queries })
    }
}

/// The data of EXPORT_NAME: the name without a length.
pub fn export_name(data: &[u8]) -> Option<&str> {
    if data.len() > MAX_STRING_BYTES {
        return None;
    }
    std::str::from_utf8(data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_needs_every_byte_and_no_more() {
        let data = b"\0\0\0\x01v\0\x02\0\x00\0\x03";
        assert_eq!(InfoQuery::parse(data), Some(InfoQuery { name: "v", requests: vec![0, 3] }));
        assert_eq!(InfoQuery::parse(&data[..data.len() - 1]), None);
        assert_eq!(InfoQuery::parse(&[data.as_slice(), b"\0"].concat()), None);
    }

    #[test]
    fn counts_are_not_believed() {
        assert_eq!(InfoQuery::parse(b"\0\0\0\0\xff\xff"), None);
        assert_eq!(ContextQuery::parse(b"\0\0\0\0\xff\xff\xff\xff"), None);
    }

    #[test]
    fn context_queries_are_read_in_order() {
        let data = b"\0\0\0\x01v\0\0\0\x02\0\0\0\x01a\0\0\0\x00";
        assert_eq!(ContextQuery::parse(data), Some(ContextQuery { name: "v", queries: vec!["a", ""] }));
    }
}
