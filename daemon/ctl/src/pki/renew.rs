//! A certificate anew: same identity and names, later end.
//!
//! The key stays unless the caller wants a new one. With a new key two files change, and no file system replaces two files
//! at once: the key is written first, and a renewal always signs for the key that lies beside the certificate, so running
//! it again after a crash in between mends the pair.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rcgen::SubjectPublicKeyInfo;

use super::PkiError;
use super::ca::{self, Authority};
use super::certificate::Certificate;
use super::identity::Identity;
use super::leaf::Leaf;
use super::store::{self, Existing, NewFile};
use super::validity::Validity;

/// What a renewal is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Renewal {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key; by default the certificate's name with `.key`.
    pub key: Option<PathBuf>,
    /// New life in days; by default as long as the old one.
    pub days: Option<u32>,
    /// A new key as well.
    pub rekey: bool,
    /// Do nothing when more than this is left.
    pub if_within: Option<Duration>,
}

/// What a renewal did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Renewed {
    /// The certificate that lies there now.
    pub certificate: Certificate,
    /// False when it still had long enough to live.
    pub renewed: bool,
    /// True when it has a new key.
    pub rekeyed: bool,
}

impl Renewal {
    /// Renews, signed by `ca`.
    ///
    /// # Errors
    /// [`PkiError::Mismatch`] when the certificate is of another site; what reading, signing and writing can give.
    pub fn run(&self, ca: &Authority, now: Timestamp) -> Result<Renewed, PkiError> {
        let old = Certificate::read(&self.cert)?;
        let identity = self.expect_ours(&old, ca)?;
        if self.if_within.is_some_and(|span| !old.validity.ends_within(now, span)) {
            return Ok(Renewed { certificate: old, renewed: false, rekeyed: false });
        }
        let validity = Validity::from_now(now, self.days.unwrap_or_else(|| old_days(&old)))?;
        let (files, rekeyed) = match identity {
            Identity::Site(_) => (vec![self.cert_file(self.renewed_ca(ca, validity)?)], false),
            Identity::Node(..) | Identity::Admin(..) => self.renewed_leaf(&old, ca, (validity, now))?,
        };
        store::write_all(&files, Existing::Replace)?;
        Ok(Renewed { certificate: Certificate::read(&self.cert)?, renewed: true, rekeyed })
    }

    fn expect_ours(&self, old: &Certificate, ca: &Authority) -> Result<Identity, PkiError> {
        let identity = old.expect_identity()?;
        if identity.site() == ca.site.site_id {
            return Ok(identity.clone());
        }
        let why = "the certificate is another site's";
        Err(PkiError::Mismatch { left: self.cert.clone(), right: ca.certificate.path.clone(), why })
    }

    fn renewed_ca(&self, ca: &Authority, validity: Validity) -> Result<String, PkiError> {
        if self.rekey {
            let why = "a CA with a new key is a new CA: make one with `tidemark pki init-ca --site-id` and trust both";
            return Err(PkiError::Invalid { what: "argument", value: "--rekey".to_owned(), why });
        }
        ca.sign_itself(validity)
    }

    fn renewed_leaf(
        &self,
        old: &Certificate,
        ca: &Authority,
        (validity, now): (Validity, Timestamp),
    ) -> Result<(Vec<NewFile>, bool), PkiError> {
        let leaf = Leaf::of(old)?;
        let key_path = self.key_path();
        if self.rekey {
            let key = ca::new_key()?;
            let cert = self.cert_file(ca.sign(&leaf, &key, validity, now)?);
            return Ok((vec![NewFile::secret(key_path, key.serialize_pem()), cert], true));
        }
        let pem = if self.key.is_some() || key_path.exists() {
            ca.sign(&leaf, &ca::read_key(&key_path)?, validity, now)?
        } else {
            // The key may be on the node only: sign for the public key that the old certificate names.
            let public = SubjectPublicKeyInfo::from_der(&old.spki).map_err(PkiError::crypto("read the public key"))?;
            ca.sign(&leaf, &public, validity, now)?
        };
        Ok((vec![self.cert_file(pem)], false))
    }

    fn cert_file(&self, pem: String) -> NewFile {
        NewFile::public(self.cert.clone(), pem)
    }

    fn key_path(&self) -> PathBuf {
        self.key.clone().unwrap_or_else(|| key_beside(&self.cert))
    }
}

/// Where the key of a certificate lies by convention.
pub fn key_beside(cert: &Path) -> PathBuf {
    cert.with_extension("key")
}

fn old_days(old: &Certificate) -> u32 {
    let seconds = old.validity.not_after.as_second() - old.validity.not_before.as_second();
    u32::try_from(seconds / super::validity::DAY_SECONDS).unwrap_or(1).clamp(1, super::validity::MAX_DAYS)
}
