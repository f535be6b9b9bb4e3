//! Would an agent take this certificate? Asked of the same TLS library that the agents use, and of the rules that are ours:
//! one identity, the CA of the same site, the right purposes, a key that fits and that nobody else can read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::{ServerName, UnixTime};

use super::certificate::Certificate;
use super::identity::Identity;
use super::{PkiError, ca, store};

/// What to check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// The certificate.
    pub cert: PathBuf,
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The private key, when it is to be checked too.
    pub key: Option<PathBuf>,
    /// A host name or address that the certificate must be good for.
    pub host: Option<String>,
}

impl Check {
    /// Checks everything and reports all problems at once.
    ///
    /// # Errors
    /// [`PkiError::Unverified`] with every problem; what reading can give.
    pub fn run(&self, now: Timestamp) -> Result<Certificate, PkiError> {
        let cert = Certificate::read(&self.cert)?;
        let ca = Certificate::read(&self.ca)?;
        let mut problems = identity_problems(&cert, &ca);
        problems.extend(chain_problems(&cert, &ca, self.host.as_deref(), now));
        if let Some(key) = &self.key {
            problems.extend(key_problems(&cert, key)?);
        }
        problems.dedup();
        if problems.is_empty() { Ok(cert) } else { Err(PkiError::Unverified { path: self.cert.clone(), problems }) }
    }
}

fn identity_problems(cert: &Certificate, ca: &Certificate) -> Vec<String> {
    let mut problems = Vec::new();
    let Some(identity) = &cert.identity else {
        return vec!["it has no single SAN URI spiffe://tidemark/site/...".to_owned()];
    };
    if ca.identity != Some(Identity::Site(identity.site())) {
        problems.push(format!("{} is not the CA of site {}", ca.path.display(), identity.site()));
    }
    let (server, client) = match identity {
        Identity::Site(_) => (false, false),
        Identity::Node(..) => (true, true),
        Identity::Admin(..) => (false, true),
    };
    if server && !cert.server_auth {
        problems.push("it may not serve (no serverAuth)".to_owned());
    }
    if client && !cert.client_auth {
        problems.push("it may not call (no clientAuth)".to_owned());
    }
    problems
}

fn chain_problems(cert: &Certificate, ca: &Certificate, host: Option<&str>, now: Timestamp) -> Vec<String> {
    let state = ca.validity.state(now);
    if state != "valid" {
        // The TLS library does not look at a trust anchor's dates; people should.
        return vec![format!("its CA is {state} (from {} to {})", ca.validity.not_before, ca.validity.not_after)];
    }
    if cert.is_ca {
        return if cert.der == ca.der { Vec::new() } else { vec!["it is another CA".to_owned()] };
    }
    let moment = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().max(0).unsigned_abs()));
    match tls_verdict(cert, ca, host, moment) {
        Ok(()) => Vec::new(),
        Err(error) => vec![in_words(cert, error, now)],
    }
}

fn tls_verdict(cert: &Certificate, ca: &Certificate, host: Option<&str>, now: UnixTime) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der.clone())?;
    let roots = Arc::new(roots);
    let other = |error: &dyn std::fmt::Display| rustls::Error::General(error.to_string());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
    verifier.build().map_err(|error| other(&error))?.verify_client_cert(&cert.der, &[], now)?;
    let Some(host) = host else { return Ok(()) };
    let host = ServerName::try_from(host.to_owned()).map_err(|error| other(&error))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider());
    verifier.build().map_err(|error| other(&error))?.verify_server_cert(&cert.der, &[], &host, &[], now)?;
    Ok(())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn in_words(cert: &Certificate, error: rustls::Error, now: Timestamp) -> String {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => {
            let (from, to) = (cert.validity.not_before, cert.validity.not_after);
            format!("it is {} (from {from} to {to})", cert.validity.state(now))
        }
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "this CA did not sign it".to_owned()
        }
        other => other.to_string(),
    }
}

fn key_problems(cert: &Certificate, key_path: &Path) -> Result<Vec<String>, PkiError> {
    let mut problems = Vec::new();
    let key = ca::read_key(key_path)?;
    if ca::expect_pair(cert, &key, key_path).is_err() {
        problems.push(format!("{} is not its key", key_path.display()));
    }
    if store::is_exposed(key_path)? {
        problems.push(format!("others can read {} (want mode 0600)", key_path.display()));
    }
    Ok(problems)
}
