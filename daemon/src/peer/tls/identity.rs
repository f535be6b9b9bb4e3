//! Who a certificate speaks for: exactly one SAN URI `spiffe://tidemark/site/<site>/node/<node>`.

use std::fmt;

use rustls_pki_types::CertificateDer;
use tidemark_core::types::{NodeId, SiteId};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const PREFIX: &str = "spiffe://tidemark/site/";

/// A node of a site, as its certificate proves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerIdentity {
    /// The site.
    pub site: SiteId,
    /// The node.
    pub node: NodeId,
}

impl PeerIdentity {
    /// Parses exactly what `Display` writes. Every other spelling is no identity, so that there is one text per node.
    pub fn parse(uri: &str) -> Option<Self> {
        let (site, node) = uri.strip_prefix(PREFIX)?.split_once("/node/")?;
        let identity = Self { site: SiteId::parse(site)?, node: NodeId::parse(node)? };
        (identity.to_string() == uri).then_some(identity)
    }

    /// The identity of a certificate; `None` when it cannot be parsed or has no URI or several: whoever reads only one of
    /// two could read the wrong one.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (rest, x509) = X509Certificate::from_der(certificate).ok()?;
        let names = x509.subject_alternative_name().ok()??;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let only = uris.next().filter(|_| rest.is_empty() && uris.next().is_none())?;
        Self::parse(only)
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}/node/{}", self.site, self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_printing_and_parsing() {
        let identity = PeerIdentity { site: SiteId([0xab; 16]), node: NodeId([1; 16]) };
        assert_eq!(PeerIdentity::parse(&identity.to_string()), Some(identity));
    }

    #[test]
    fn another_spelling_is_no_identity() {
        let (site, node) = (SiteId([0xab; 16]), NodeId([1; 16]));
        for uri in [
            format!("spiffe://tidemark/site/{site}"),
            format!("spiffe://tidemark/site/{site}/admin/root"),
            format!("spiffe://tidemark/site/{site}/node/{node}/"),
            format!("spiffe://tidemark/site/{}/node/{node}", site.to_string().to_uppercase()),
            format!("spiffe://tidemark/site/{}/node/{node}", site.to_string().replace('-', "")),
            format!("spiffe://other/site/{site}/node/{node}"),
            String::new(),
        ] {
            assert_eq!(PeerIdentity::parse(&uri), None, "{uri}");
        }
    }
}
