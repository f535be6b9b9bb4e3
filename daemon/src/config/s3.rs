//! A witness in an object store.

use std::fmt;
use std::path::PathBuf;

use super::Name;
use super::section::Section;
use super::value::KeyPrefix;

/// A witness in an object store with the API of S3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Witness {
    /// Where the store is; `None`: at Amazon, in the region.
    pub endpoint: Option<S3Endpoint>,
    /// The bucket.
    pub bucket: Name,
    /// Begins the name of every object.
    pub prefix: String,
    /// The region, which signatures name.
    pub region: String,
    /// A file with the keys; `None`: they are in the environment.
    pub credentials: Option<PathBuf>,
    /// The authority of the store's certificate; `None`: any that the system trusts.
    pub ca: Option<PathBuf>,
    /// The bucket is the first part of the path and not of the host's name.
    pub path_style: bool,
}

/// The address of an object store: `https://host`, or `https://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Endpoint {
    /// With TLS.
    pub is_secure: bool,
    /// The host, and the port where it is not the scheme's own.
    authority: String,
}

impl S3Endpoint {
    /// What an endpoint looks like.
    pub(super) const SYNTAX: &str = "https://host or https://host:port (or http://, with the explicit insecure = true)";

    /// Checks `text`.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let is_secure = match scheme {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let is_fine = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        let host = authority.rsplit_once(':').filter(|_| !authority.ends_with(']'));
        let port = host.is_none_or(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
        let fits = (1..=255).contains(&authority.len()) && authority.chars().all(is_fine) && port;
        fits.then(|| Self { is_secure, authority: authority.to_owned() })
    }

    /// Where a request for `bucket` goes.
    pub fn url(&self, bucket: &Name, path_style: bool) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        match path_style {
            true => format!("{scheme}://{}", self.authority),
            false => format!("{scheme}://{bucket}.{}", self.authority),
        }
    }
}

impl fmt::Display for S3Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority)
    }
}

pub(super) fn read(section: &mut Section<'_>) -> Option<S3Witness> {
    let endpoint: Option<S3Endpoint> = section.get("endpoint");
    let (bucket, region) = (section.need("bucket"), section.or("region", "us-east-1".to_owned()));
    let KeyPrefix(prefix) = section.or("prefix", KeyPrefix("/tidemark/".to_owned()));
    let (credentials, ca) = (section.get("credentials"), section.get("ca"));
    // A store of one's own seldom has a name in the DNS for each bucket.
    let path_style = section.or("path_style", endpoint.is_some());
    let is_plain = endpoint.as_ref().is_some_and(|endpoint| !endpoint.is_secure);
    match section.or("insecure", false) {
        true if !is_plain => section.conflict("insecure", "true contradicts an endpoint with TLS: remove it"),
        false if is_plain => section.conflict("endpoint", "http:// needs the explicit insecure = true"),
        _ => {}
    }
    if is_plain && ca.is_some() {
        section.conflict("ca", "says nothing without TLS: remove it, or use https://");
    }
    Some(S3Witness { endpoint, bucket: bucket?, prefix, region, credentials, ca, path_style })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_scheme_with_a_host_and_nothing_more() {
        let bucket = Name::parse("b").unwrap();
        for (text, in_path, in_name) in [
            ("https://s3.example", "https://s3.example", "https://b.s3.example"),
            ("http://10.0.0.1:7070", "http://10.0.0.1:7070", "http://b.10.0.0.1:7070"),
            ("https://[fd00::1]", "https://[fd00::1]", "https://b.[fd00::1]"),
        ] {
            let endpoint = S3Endpoint::parse(text).unwrap();
            assert_eq!((endpoint.url(&bucket, true), endpoint.url(&bucket, false)), (in_path.into(), in_name.into()));
        }
        for text in ["s3.example", "ftp://s", "https://", "https://s/b", "https://u:p@s", "https://s:0", "https://s:x"]
        {
            assert_eq!(S3Endpoint::parse(text), None, "{text}");
        }
    }
}
