//! What a CA signs: the certificate of a node (server and client at once) or of an admin (client only).
//!
//! Directory of a node: `node.crt`, `node.key`, `node.toml`, `site.toml` and a copy of `ca.crt`. Of an admin: `NAME.crt`,
//! `NAME.key` and a copy of `ca.crt`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};
use serde::Deserialize;
use tidemark_core::types::NodeId;

use super::ca::{self, Authority, CA_CERT, Site};
use super::certificate::Certificate;
use super::identity::Identity;
use super::name::Name;
use super::store::{self, Existing, NewFile};
use super::validity::Validity;
use super::{PkiError, random_id};

/// A node's certificate in its directory.
pub const NODE_CERT: &str = "node.crt";
/// Its private key.
pub const NODE_KEY: &str = "node.key";
/// Names and ids of the node and its site.
pub const NODE_FILE: &str = "node.toml";
/// The most DNS names, and the most addresses, of one certificate.
const MAX_NAMES: usize = 64;
/// Names that no admin can have: NAME.crt and NAME.key mean something else.
const RESERVED: [&str; 2] = ["ca", "node"];

/// What is known of a leaf before it is signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaf {
    identity: Identity,
    organisation: String,
    common_name: String,
    dns: Vec<String>,
    ips: Vec<IpAddr>,
}

impl Leaf {
    /// The leaf of a node. `dns` and `ips` are where peers and admins dial it.
    ///
    /// # Errors
    /// [`PkiError::Invalid`] for a name that is none, or for too many.
    pub fn node(site: &Site, node: &Node, dns: &[String], ips: &[IpAddr]) -> Result<Self, PkiError> {
        Self {
            identity: Identity::Node(site.site_id, node.node_id),
            organisation: site.site_name.as_str().to_owned(),
            common_name: node.node_name.as_str().to_owned(),
            dns: dns.to_vec(),
            ips: ips.to_vec(),
        }
        .checked()
    }

    /// The leaf of an admin.
    ///
    /// # Errors
    /// [`PkiError::Invalid`] for a name whose files would be taken for the CA's or the node's.
    pub fn admin(site: &Site, name: &Name) -> Result<Self, PkiError> {
        if RESERVED.contains(&name.as_str()) {
            let why = "its files would be taken for those of the CA or the node";
            return Err(PkiError::Invalid { what: "name", value: name.to_string(), why });
        }
        Ok(Self {
            identity: Identity::Admin(site.site_id, name.clone()),
            organisation: site.site_name.as_str().to_owned(),
            common_name: name.as_str().to_owned(),
            dns: Vec::new(),
            ips: Vec::new(),
        })
    }

    /// The leaf that `certificate` was signed from.
    ///
    /// # Errors
    /// [`PkiError::Malformed`] when it is not a leaf of ours.
    pub fn of(certificate: &Certificate) -> Result<Self, PkiError> {
        Ok(Self {
            identity: certificate.expect_identity()?.clone(),
            organisation: certificate.organisation.clone(),
            common_name: certificate.common_name.clone(),
            dns: certificate.dns.clone(),
            ips: certificate.ips.clone(),
        })
    }

    fn checked(self) -> Result<Self, PkiError> {
        if self.dns.len() > MAX_NAMES || self.ips.len() > MAX_NAMES {
            let value = self.dns.len().max(self.ips.len()).to_string();
            return Err(PkiError::Invalid { what: "number of names", value, why: "at most 64 of each kind" });
        }
        for name in &self.dns {
            if rustls_pki_types::DnsName::try_from(name.as_str()).is_err() {
                return Err(PkiError::Invalid { what: "DNS name", value: name.clone(), why: "is not a host name" });
            }
        }
        Ok(self)
    }

    /// Who it speaks for.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn params(&self) -> Result<CertificateParams, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = ca::subject(&self.organisation, &self.common_name);
        params.subject_alt_names = self.names()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = self.purposes();
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn names(&self) -> Result<Vec<SanType>, PkiError> {
        let mut names = vec![ca::uri(&self.identity)?];
        for dns in &self.dns {
            let dns = Ia5String::try_from(dns.clone()).map_err(PkiError::crypto("write a DNS name"))?;
            names.push(SanType::DnsName(dns));
        }
        names.extend(self.ips.iter().copied().map(SanType::IpAddress));
        Ok(names)
    }

    fn purposes(&self) -> Vec<ExtendedKeyUsagePurpose> {
        match self.identity {
            Identity::Node(..) => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Identity::Site(_) | Identity::Admin(..) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

/// A node's name and id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// The id, the same for ever.
    pub node_id: NodeId,
    /// The name, for people.
    pub node_name: Name,
}

impl Node {
    /// A node with a new id.
    ///
    /// # Errors
    /// [`PkiError::Random`].
    pub fn random(node_name: Name) -> Result<Self, PkiError> {
        Ok(Self { node_id: NodeId(random_id()?), node_name })
    }

    /// Reads `node.toml` in `dir`.
    ///
    /// # Errors
    /// As [`store::read_toml`].
    pub fn read(dir: &Path) -> Result<Self, PkiError> {
        let path = dir.join(NODE_FILE);
        let file: NodeToml = store::read_toml(&path, "a node description")?;
        match NodeId::parse(&file.node_id) {
            Some(node_id) => Ok(Self { node_id, node_name: file.node_name }),
            None => {
                let why = "the node id is no UUID".to_owned();
                Err(PkiError::Malformed { path, expected: "a node description", why })
            }
        }
    }

    fn file(&self, site: &Site, dir: &Path) -> NewFile {
        let text = format!(
            "node_id = \"{}\"\nnode_name = \"{}\"\nsite_id = \"{}\"\nsite_name = \"{}\"\n",
            self.node_id, self.node_name, site.site_id, site.site_name
        );
        NewFile::public(dir.join(NODE_FILE), text)
    }
}

/// What `node.toml` holds.
#[derive(Deserialize)]
struct NodeToml {
    node_id: String,
    node_name: Name,
}

/// Signs and writes the files of a node in `dir`.
///
/// # Errors
/// As [`Authority::sign`] and [`store::write_all`].
pub fn issue_node(
    ca: &Authority,
    node: &Node,
    leaf: &Leaf,
    (validity, now): (Validity, Timestamp),
    (dir, existing): (&Path, Existing),
) -> Result<Certificate, PkiError> {
    let pair = Pair { cert: dir.join(NODE_CERT), key: dir.join(NODE_KEY) };
    let mut files = ca_copies(ca, dir, existing)?;
    files.push(node.file(&ca.site, dir));
    issue(ca, leaf, (validity, now), files, (pair, existing))
}

/// Signs and writes the files of an admin in `dir`.
///
/// # Errors
/// As [`issue_node`].
pub fn issue_admin(
    ca: &Authority,
    name: &Name,
    (validity, now): (Validity, Timestamp),
    (dir, existing): (&Path, Existing),
) -> Result<Certificate, PkiError> {
    let pair = Pair { cert: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) };
    let files = ca_copies(ca, dir, existing)?;
    issue(ca, &Leaf::admin(&ca.site, name)?, (validity, now), files, (pair, existing))
}

struct Pair {
    cert: PathBuf,
    key: PathBuf,
}

/// The key goes first and the certificate last: where a certificate lies, everything it needs lies too.
fn issue(
    ca: &Authority,
    leaf: &Leaf,
    (validity, now): (Validity, Timestamp),
    mut files: Vec<NewFile>,
    (pair, existing): (Pair, Existing),
) -> Result<Certificate, PkiError> {
    let key = ca::new_key()?;
    let pem = ca.sign(leaf, &key, validity, now)?;
    let certificate = Certificate::parse(&pair.cert, &pem)?;
    if let Some(dir) = pair.cert.parent() {
        store::make_dir(dir)?;
    }
    files.insert(0, NewFile::secret(pair.key, key.serialize_pem()));
    files.push(NewFile::public(pair.cert, pem));
    store::write_all(&files, existing)?;
    Ok(certificate)
}

/// Copies of the CA's public files for `dir`, without those that lie there already.
///
/// # Errors
/// [`PkiError::Mismatch`] when another CA's certificate lies there and must be kept.
fn ca_copies(ca: &Authority, dir: &Path, existing: Existing) -> Result<Vec<NewFile>, PkiError> {
    let path = dir.join(CA_CERT);
    let copies = vec![ca.site.file(dir), NewFile::public(path.clone(), ca.pem.clone())];
    let mut missing = Vec::new();
    for copy in copies {
        match store::read(&copy.path) {
            Ok(there) if there == copy.content => {}
            Ok(_) if existing == Existing::Keep && copy.path == path => {
                let why = "another CA's certificate lies in the directory";
                return Err(PkiError::Mismatch { left: path, right: ca.certificate.path.clone(), why });
            }
            _ => missing.push(copy),
        }
    }
    Ok(missing)
}
