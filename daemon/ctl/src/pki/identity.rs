//! Who a certificate speaks for: one SAN URI per certificate. The site is part of every identity, so a peer can tell
//! another site's node from its own without a directory.

use std::fmt;

use tidemark_core::types::{NodeId, SiteId};

use super::name::Name;

/// What every identity starts with.
const PREFIX: &str = "spiffe://tidemark/site/";

/// Who a certificate speaks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Identity {
    /// The CA of a site.
    Site(SiteId),
    /// An agent's host.
    Node(SiteId, NodeId),
    /// A person or a program that administers the site's agents.
    Admin(SiteId, Name),
}

impl Identity {
    /// Parses exactly what `Display` writes; every other spelling is no identity.
    pub fn parse(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix(PREFIX)?.split('/');
        let site = SiteId::parse(parts.next()?)?;
        let identity = match (parts.next(), parts.next(), parts.next()) {
            (None, None, None) => Self::Site(site),
            (Some("node"), Some(node), None) => Self::Node(site, NodeId::parse(node)?),
            (Some("admin"), Some(name), None) => Self::Admin(site, Name::parse(name).ok()?),
            _ => return None,
        };
        (identity.to_string() == uri).then_some(identity)
    }

    /// The site that vouches for it.
    pub fn site(&self) -> SiteId {
        match self {
            Self::Site(site) | Self::Node(site, _) | Self::Admin(site, _) => *site,
        }
    }

    /// `ca`, `node` or `admin`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Site(_) => "ca",
            Self::Node(..) => "node",
            Self::Admin(..) => "admin",
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.site())?;
        match self {
            Self::Site(_) => Ok(()),
            Self::Node(_, node) => write!(f, "/node/{node}"),
            Self::Admin(_, name) => write!(f, "/admin/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_printing_and_parsing() {
        let site = SiteId([0xab; 16]);
        let name = Name::parse("alice").expect("a valid name");
        for identity in [Identity::Site(site), Identity::Node(site, NodeId([1; 16])), Identity::Admin(site, name)] {
            assert_eq!(Identity::parse(&identity.to_string()), Some(identity));
        }
    }

    #[test]
    fn another_spelling_is_no_identity() {
        let site = SiteId([0xab; 16]);
        for uri in [
            format!("{PREFIX}{}", site.to_string().to_uppercase()),
            format!("{PREFIX}{}", site.to_string().replace('-', "")),
            format!("{PREFIX}{site}/"),
            format!("{PREFIX}{site}/node"),
            format!("{PREFIX}{site}/node/1"),
            format!("{PREFIX}{site}/admin/a/b"),
            format!("{PREFIX}{site}/admin/"),
            format!("{PREFIX}{site}/root/x"),
            format!("spiffe://other/site/{site}"),
            String::new(),
        ] {
            assert_eq!(Identity::parse(&uri), None, "{uri}");
        }
    }
}
