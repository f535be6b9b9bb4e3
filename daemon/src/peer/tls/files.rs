//! The PEM files of TLS: reading with a limit, and noticing that one changed.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{OwnFiles, PeerIdentity, PeerTrust, TlsError};

/// The largest PEM file that is read: hundreds of certificates.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// The certificate that this agent presents.
pub(super) struct OwnCertificate {
    pub identity: PeerIdentity,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl OwnCertificate {
    pub fn read(files: &OwnFiles) -> Result<Self, TlsError> {
        let chain = read_certificates(&files.cert)?;
        let identity = chain.first().and_then(PeerIdentity::of);
        let identity = identity.ok_or_else(|| TlsError::NoIdentity { path: files.cert.clone() })?;
        let not_after = chain.first().map_or(0, not_after);
        let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
            .map_err(|error| malformed(&files.key, "private key", &error))?;
        Ok(Self { identity, chain, key, not_after })
    }
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnCertificate({})", self.identity)
    }
}

/// The authorities of all files together; never empty.
pub(super) fn read_roots(paths: &[PathBuf]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for path in paths {
        for certificate in read_certificates(path)? {
            roots.add(certificate).map_err(|error| malformed(path, "authority", &error))?;
        }
    }
    Ok(roots)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(malformed(path, "certificate", &"it has none")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(malformed(path, "certificate", &error)),
    }
}

fn not_after(certificate: &CertificateDer<'static>) -> i64 {
    X509Certificate::from_der(certificate).map_or(0, |(_, x509)| x509.validity().not_after.timestamp())
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_PEM_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_PEM_BYTES {
        return Err(TlsError::TooLarge { path: path.to_owned(), limit: MAX_PEM_BYTES });
    }
    Ok(bytes)
}

fn malformed(path: &Path, expected: &'static str, why: &dyn fmt::Display) -> TlsError {
    TlsError::Malformed { path: path.to_owned(), expected, why: why.to_string() }
}

/// What tells one version of a file from the next: inode, size, modification time with nanoseconds; `None` when it is absent.
type Stamp = Option<(u64, u64, i64, i64)>;

/// The versions of all files.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Stamps(Vec<Stamp>);

impl Stamps {
    pub fn take(files: &OwnFiles, peers: &[PeerTrust]) -> Self {
        let authorities = peers.iter().flat_map(|peer| &peer.ca);
        Self([&files.cert, &files.key].into_iter().chain(authorities).map(|path| stamp(path)).collect())
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}
