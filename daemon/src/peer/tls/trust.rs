//! Whose certificates are accepted: each peer site has its own authorities, and a certificate counts only for the site whose
//! authority vouches for it.
//!
//! Host names play no part: the identity is the SAN URI. The verdict is given as one of rustls's own errors, so that the alert
//! that the other end receives names the reason too; [`refusal_of`] turns the error back into a [`PeerRefusal`].

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use tidemark_core::types::{NodeId, SiteId};

use super::PeerIdentity;
use crate::peer::refusal::PeerRefusal;

/// Which end the certificate is presented by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Usage {
    Client,
    Server,
}

/// The authorities of one peer site.
#[derive(Debug)]
struct Anchor {
    /// The only site that they vouch for; `None`: any one, until it is known.
    site: Option<SiteId>,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// The authorities of all known peers.
#[derive(Debug)]
pub(super) struct TrustSet {
    own: PeerIdentity,
    /// The other nodes of the own site that may speak.
    mates: BTreeSet<NodeId>,
    anchors: Vec<Anchor>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl TrustSet {
    /// Trust for `peers` and, where the own site is one of them, for `mates` of it; a store of roots must not be empty.
    pub fn new(
        own: PeerIdentity,
        mates: BTreeSet<NodeId>,
        peers: Vec<(Option<SiteId>, RootCertStore)>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, rustls::server::VerifierBuilderError> {
        let anchor = |(site, roots)| {
            let roots = Arc::new(roots);
            let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider)).build();
            clients.map(|clients| Anchor { site, roots, clients })
        };
        let anchors = peers.into_iter().map(anchor).collect::<Result<_, _>>()?;
        Ok(Self { own, mates, anchors, algorithms: provider.signature_verification_algorithms })
    }

    /// True while a peer with that identity may speak: asked again at every call.
    pub fn allows(&self, identity: PeerIdentity) -> bool {
        self.anchors.iter().any(|anchor| self.vouches(anchor, identity))
    }

    /// Whether an authority may name that node: for the own site only one that is of it, and only nodes that are known.
    fn vouches(&self, anchor: &Anchor, identity: PeerIdentity) -> bool {
        match identity.site == self.own.site {
            true => anchor.site == Some(self.own.site) && self.mates.contains(&identity.node),
            false => anchor.site.is_none_or(|site| site == identity.site),
        }
    }

    fn judge(
        &self,
        usage: Usage,
        chain: (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
    ) -> Result<PeerIdentity, Error> {
        let identity = PeerIdentity::of(chain.0).ok_or(CertificateError::BadEncoding)?;
        let mut worst = Error::from(CertificateError::UnknownIssuer);
        for anchor in &self.anchors {
            match self.verify_chain(anchor, usage, chain, now) {
                Ok(()) if self.vouches(anchor, identity) => return Ok(identity),
                // A real authority vouches for a site that is not its own.
                Ok(()) => worst = CertificateError::ApplicationVerificationFailure.into(),
                // The most telling reason wins: "expired" of the right authority over "unknown" of all others.
                Err(error) if refusal_of(&worst) == PeerRefusal::UnknownCa => worst = error,
                Err(_) => {}
            }
        }
        Err(worst)
    }

    fn verify_chain(
        &self,
        anchor: &Anchor,
        usage: Usage,
        (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
    ) -> Result<(), Error> {
        if usage == Usage::Client {
            return anchor.clients.verify_client_cert(leaf, intermediates, now).map(|_| ());
        }
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &anchor.roots, intermediates, now, self.algorithms.all)
    }
}

/// Judges the certificates of those who dial us.
#[derive(Debug)]
pub(super) struct Dialling(pub Arc<TrustSet>);

impl ClientCertVerifier for Dialling {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A peer has one certificate; which authorities we know is nobody's business.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.judge(Usage::Client, (leaf, intermediates), now).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(never_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.0.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

/// Judges the certificate of the one we dial.
#[derive(Debug)]
pub(super) struct Dialled {
    pub trust: Arc<TrustSet>,
    /// The site that should answer, when it is known.
    pub expected: Option<SiteId>,
}

impl ServerCertVerifier for Dialled {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let identity = self.trust.judge(Usage::Server, (leaf, intermediates), now)?;
        // Who is asked for another site is none of this one.
        if self.expected.map_or(identity.site == self.trust.own.site, |site| site != identity.site) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(never_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

/// The reason behind an error of our own end.
pub(crate) fn refusal_of(error: &Error) -> PeerRefusal {
    match error {
        Error::NoCertificatesPresented => PeerRefusal::NoCertificate,
        Error::InvalidCertificate(error) => refusal_of_certificate(error),
        Error::InvalidMessage(_) => PeerRefusal::Plaintext,
        Error::AlertReceived(_) => PeerRefusal::RefusedUs,
        _ => PeerRefusal::Protocol,
    }
}

fn refusal_of_certificate(error: &CertificateError) -> PeerRefusal {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => PeerRefusal::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => PeerRefusal::NotYetValid,
        CertificateError::Revoked => PeerRefusal::Revoked,
        CertificateError::UnknownIssuer | CertificateError::BadSignature => PeerRefusal::UnknownCa,
        CertificateError::ApplicationVerificationFailure => PeerRefusal::WrongSite,
        _ => PeerRefusal::Malformed,
    }
}

/// What the other end has against us, when it said so by an alert.
pub(crate) fn alert_of(error: &io::Error) -> Option<PeerRefusal> {
    let Error::AlertReceived(alert) = tls_error(error)? else { return None };
    Some(match alert {
        AlertDescription::CertificateRequired => PeerRefusal::NoCertificate,
        AlertDescription::CertificateExpired => PeerRefusal::Expired,
        AlertDescription::CertificateRevoked => PeerRefusal::Revoked,
        AlertDescription::UnknownCA | AlertDescription::DecryptError => PeerRefusal::UnknownCa,
        AlertDescription::AccessDenied => PeerRefusal::WrongSite,
        AlertDescription::BadCertificate
        | AlertDescription::DecodeError
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => PeerRefusal::Malformed,
        _ => PeerRefusal::Protocol,
    })
}

/// The TLS error inside an IO error.
pub(crate) fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Both ends offer TLS 1.3 alone, so rustls never asks; the trait wants an answer nevertheless.
fn never_tls12() -> Error {
    Error::General("TLS 1.2 is not accepted".to_owned())
}
