//! A certificate as this program understands one: read from PEM, every field that matters by name.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};
use x509_parser::x509::X509Name;

use super::identity::Identity;
use super::validity::Validity;
use super::{PkiError, store};

/// A parsed certificate. Nothing in it has been verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// Where it was read.
    pub path: PathBuf,
    /// Its bytes.
    pub der: CertificateDer<'static>,
    /// Who it speaks for; `None` when it has no identity of ours, or more than one URI.
    pub identity: Option<Identity>,
    /// Name of the subject, for people.
    pub common_name: String,
    /// Name of the site, for people.
    pub organisation: String,
    /// Common name of the issuer.
    pub issuer: String,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// When it is valid.
    pub validity: Validity,
    /// Serial number in hex.
    pub serial: String,
    /// Hash of the public key in hex, as written in the certificate.
    pub key_id: String,
    /// The same of the issuer's key.
    pub issuer_key_id: String,
    /// True when it may sign certificates.
    pub is_ca: bool,
    /// May serve.
    pub server_auth: bool,
    /// May call.
    pub client_auth: bool,
    /// The public key as SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
}

impl Certificate {
    /// Reads the first certificate of a PEM file.
    ///
    /// # Errors
    /// As [`store::read`]; [`PkiError::Malformed`].
    pub fn read(path: &Path) -> Result<Self, PkiError> {
        Self::parse(path, &store::read(path)?)
    }

    /// Parses the first certificate of a PEM text that came from `path`.
    ///
    /// # Errors
    /// [`PkiError::Malformed`].
    pub fn parse(path: &Path, pem: &str) -> Result<Self, PkiError> {
        let malformed = |why: String| PkiError::Malformed { path: path.to_owned(), expected: "a PEM certificate", why };
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        let (_, x509) = X509Certificate::from_der(&der).map_err(|error| malformed(error.to_string()))?;
        let validity = validity_of(&x509).ok_or_else(|| malformed("its validity is out of range".to_owned()))?;
        let mut parsed = Self {
            path: path.to_owned(),
            identity: None,
            common_name: first(x509.subject().iter_common_name()),
            organisation: first(x509.subject().iter_organization()),
            issuer: common_name(x509.issuer()),
            dns: Vec::new(),
            ips: Vec::new(),
            validity,
            serial: hex(x509.raw_serial()),
            key_id: String::new(),
            issuer_key_id: String::new(),
            is_ca: x509.is_ca(),
            server_auth: false,
            client_auth: false,
            spki: x509.public_key().raw.to_vec(),
            der: der.clone(),
        };
        for extension in x509.extensions() {
            parsed.take_extension(extension.parsed_extension());
        }
        Ok(parsed)
    }

    fn take_extension(&mut self, extension: &ParsedExtension<'_>) {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => self.take_names(&names.general_names),
            ParsedExtension::SubjectKeyIdentifier(id) => self.key_id = hex(id.0),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                self.issuer_key_id = id.key_identifier.as_ref().map(|id| hex(id.0)).unwrap_or_default();
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                self.server_auth = usage.server_auth || usage.any;
                self.client_auth = usage.client_auth || usage.any;
            }
            _ => {}
        }
    }

    fn take_names(&mut self, names: &[GeneralName<'_>]) {
        let mut uris = Vec::new();
        for name in names {
            match name {
                GeneralName::DNSName(name) => self.dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => self.ips.extend(ip(bytes)),
                GeneralName::URI(uri) => uris.push(*uri),
                _ => {}
            }
        }
        // Two identities are none: whoever reads only one of them could read the wrong one.
        self.identity = match uris.as_slice() {
            [uri] => Identity::parse(uri),
            _ => None,
        };
    }

    /// The identity, or the reason why there is none.
    ///
    /// # Errors
    /// [`PkiError::Malformed`].
    pub fn expect_identity(&self) -> Result<&Identity, PkiError> {
        self.identity.as_ref().ok_or_else(|| PkiError::Malformed {
            path: self.path.clone(),
            expected: "a Tidemark certificate",
            why: "it has no single SAN URI spiffe://tidemark/site/...".to_owned(),
        })
    }
}

fn validity_of(x509: &X509Certificate<'_>) -> Option<Validity> {
    let at = |seconds: i64| Timestamp::from_second(seconds).ok();
    Some(Validity {
        not_before: at(x509.validity().not_before.timestamp())?,
        not_after: at(x509.validity().not_after.timestamp())?,
    })
}

fn common_name(name: &X509Name<'_>) -> String {
    first(name.iter_common_name())
}

fn first<'a, 'b: 'a>(mut attributes: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'b>>) -> String {
    attributes.next().and_then(|attribute| attribute.as_str().ok()).unwrap_or_default().to_owned()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
