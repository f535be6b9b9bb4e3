//! The CA of a site: made once, signs everything else.
//!
//! Directory: `ca.crt`, `ca.key`, `site.toml`. The certificate carries the site's id as SAN URI, so that a peer that is
//! given `ca.crt` alone knows which site it vouches for.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use serde::{Deserialize, Deserializer};
use tidemark_core::types::SiteId;

use super::certificate::Certificate;
use super::identity::Identity;
use super::leaf::Leaf;
use super::name::{Name, name_and_id};
use super::store::{self, Existing, NewFile};
use super::validity::Validity;
use super::{PkiError, random_bytes, random_id};

/// The CA's certificate in its directory, and its copy beside each node's.
pub const CA_CERT: &str = "ca.crt";
/// The CA's private key.
pub const CA_KEY: &str = "ca.key";
/// The site's name and id.
pub const SITE_FILE: &str = "site.toml";

/// A site as `site.toml` has it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// The site's id, the same for ever.
    #[serde(deserialize_with = "site_id")]
    pub site_id: SiteId,
    /// The site's name, for people.
    pub site_name: Name,
}

impl Site {
    /// A site with a new id.
    ///
    /// # Errors
    /// [`PkiError::Random`].
    pub fn random(site_name: Name) -> Result<Self, PkiError> {
        Ok(Self { site_id: SiteId(random_id()?), site_name })
    }

    /// Reads `site.toml` in `dir`.
    ///
    /// # Errors
    /// As [`store::read_toml`].
    pub fn read(dir: &Path) -> Result<Self, PkiError> {
        store::read_toml(&dir.join(SITE_FILE), "a site description")
    }

    pub(super) fn file(&self, dir: &Path) -> NewFile {
        let text = format!("site_id = \"{}\"\nsite_name = \"{}\"\n", self.site_id, self.site_name);
        NewFile::public(dir.join(SITE_FILE), text)
    }
}

/// A CA that can sign.
pub struct Authority {
    /// Its directory.
    pub dir: PathBuf,
    /// Its site.
    pub site: Site,
    /// Its certificate.
    pub certificate: Certificate,
    /// The certificate as PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes the CA of `site` in `dir` and loads it.
    ///
    /// # Errors
    /// [`PkiError::Exists`] when there is one already and `existing` keeps it; [`PkiError::File`]; [`PkiError::Crypto`].
    pub fn create(dir: &Path, site: &Site, validity: Validity, existing: Existing) -> Result<Self, PkiError> {
        store::make_dir(dir)?;
        let key = new_key()?;
        let common_name = name_and_id(&site.site_name, &site.site_id);
        let pem = self_signed(site.site_id, (site.site_name.as_str(), &common_name), &key, validity)?;
        let files = [
            site.file(dir),
            NewFile::secret(dir.join(CA_KEY), key.serialize_pem()),
            NewFile::public(dir.join(CA_CERT), pem),
        ];
        store::write_all(&files, existing)?;
        Self::load(dir)
    }

    /// Loads the CA in `dir`.
    ///
    /// # Errors
    /// [`PkiError::File`], [`PkiError::Malformed`]; [`PkiError::Mismatch`] when its files do not belong together.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let site = Site::read(dir)?;
        let cert_path = dir.join(CA_CERT);
        let pem = store::read(&cert_path)?;
        let certificate = Certificate::parse(&cert_path, &pem)?;
        if certificate.identity != Some(Identity::Site(site.site_id)) || !certificate.is_ca {
            let why = "the certificate is not the CA of this site";
            return Err(PkiError::Mismatch { left: cert_path, right: dir.join(SITE_FILE), why });
        }
        let key = read_key(&dir.join(CA_KEY))?;
        expect_pair(&certificate, &key, &dir.join(CA_KEY))?;
        let issuer = Issuer::from_ca_cert_der(&certificate.der, key).map_err(PkiError::crypto("load the CA"))?;
        Ok(Self { dir: dir.to_owned(), site, certificate, pem, issuer })
    }

    /// Signs `leaf` for the holder of `public`, for at most the CA's own life. Returns PEM.
    ///
    /// # Errors
    /// [`PkiError::CaExpired`] when the CA has expired at `now`; [`PkiError::Crypto`].
    pub fn sign(
        &self,
        leaf: &Leaf,
        public: &impl PublicKeyData,
        validity: Validity,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        if now > self.certificate.validity.not_after {
            return Err(PkiError::CaExpired {
                site: self.site.site_name.to_string(),
                since: self.certificate.validity.not_after.to_string(),
            });
        }
        let mut params = leaf.params()?;
        params.serial_number = Some(serial()?);
        validity.within(self.certificate.validity).write_to(&mut params);
        let signed = params.signed_by(public, &self.issuer).map_err(PkiError::crypto("sign the certificate"))?;
        Ok(signed.pem())
    }

    /// The CA's certificate anew with the same name and key, so that everything it has signed stays valid. Returns PEM.
    ///
    /// # Errors
    /// [`PkiError::Crypto`].
    pub fn sign_itself(&self, validity: Validity) -> Result<String, PkiError> {
        // Issuer and subject have to match byte by byte, so the old certificate's names are kept, whatever site.toml says.
        let names = (self.certificate.organisation.as_str(), self.certificate.common_name.as_str());
        self_signed(self.site.site_id, names, self.issuer.key(), validity)
    }
}

/// A new ECDSA P-256 key.
///
/// # Errors
/// [`PkiError::Crypto`].
pub fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(PkiError::crypto("generate a key"))
}

/// Reads a private key.
///
/// # Errors
/// As [`store::read`]; [`PkiError::Malformed`].
pub fn read_key(path: &Path) -> Result<KeyPair, PkiError> {
    KeyPair::from_pem(&store::read(path)?).map_err(|error| PkiError::Malformed {
        path: path.to_owned(),
        expected: "a private key",
        why: error.to_string(),
    })
}

/// Checks that `key` is the key of `certificate`.
///
/// # Errors
/// [`PkiError::Mismatch`].
pub fn expect_pair(certificate: &Certificate, key: &KeyPair, key_path: &Path) -> Result<(), PkiError> {
    if key.subject_public_key_info() == certificate.spki {
        return Ok(());
    }
    let why = "the key is not the certificate's";
    Err(PkiError::Mismatch { left: certificate.path.clone(), right: key_path.to_owned(), why })
}

fn self_signed(
    site: SiteId,
    (organisation, common_name): (&str, &str),
    key: &KeyPair,
    validity: Validity,
) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(organisation, common_name);
    params.subject_alt_names = vec![uri(&Identity::Site(site))?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    validity.write_to(&mut params);
    let signed = params.self_signed(key).map_err(PkiError::crypto("sign the CA"))?;
    Ok(signed.pem())
}

/// Subject of a certificate: the site as organisation, then the common name.
pub(super) fn subject(organisation: &str, common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, organisation);
    name.push(DnType::CommonName, common_name);
    name
}

pub(super) fn uri(identity: &Identity) -> Result<SanType, PkiError> {
    let text = Ia5String::try_from(identity.to_string()).map_err(PkiError::crypto("write the identity"))?;
    Ok(SanType::URI(text))
}

/// A random positive serial of 16 bytes.
fn serial() -> Result<SerialNumber, PkiError> {
    let mut bytes: [u8; 16] = random_bytes()?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// A site's id in TOML, in its printed form.
pub(super) fn site_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SiteId, D::Error> {
    let text = String::deserialize(deserializer)?;
    SiteId::parse(&text).ok_or_else(|| serde::de::Error::custom("the site id is no UUID"))
}
