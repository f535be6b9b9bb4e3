//! Who may speak: on the unix socket root, the agent's own user and the configured ones; over TCP the admins of this site,
//! by the one SAN URI of their certificate. Decided anew for every call.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use tidemark_core::types::SiteId;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo};
use tonic::{Code, Request, Status};

use super::refusal::refusal;
use crate::config::AdminConfig;

/// Who makes a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// A process of this host.
    Local {
        /// Its user.
        uid: u32,
    },
    /// The holder of a certificate.
    Certificate {
        /// The identity in it.
        uri: String,
    },
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid } => write!(f, "uid {uid}"),
            Self::Certificate { uri } => f.write_str(uri),
        }
    }
}

/// The rule.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    uids: Arc<BTreeSet<u32>>,
    /// Empty: every admin of the site.
    uris: Arc<BTreeSet<String>>,
    admin_prefix: Arc<str>,
}

impl Gate {
    /// The rule of `config` at `site`.
    pub fn new(config: &AdminConfig, site: SiteId) -> Self {
        let own = nix::unistd::geteuid().as_raw();
        Self {
            uids: Arc::new(config.allow_uids.iter().copied().chain([0, own]).collect()),
            uris: Arc::new(config.tcp.iter().flat_map(|tcp| tcp.allow.iter().cloned()).collect()),
            admin_prefix: format!("spiffe://tidemark/site/{site}/admin/").into(),
        }
    }

    /// Lets `request` pass with its [`Caller`] attached, or refuses.
    pub fn check(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let extensions = request.extensions();
        let caller = if let Some(unix) = extensions.get::<UdsConnectInfo>() {
            self.local(unix)?
        } else if let Some(tls) = extensions.get::<TlsConnectInfo<TcpConnectInfo>>() {
            self.certificate(tls)?
        } else {
            return Err(denied("the connection says nothing of its other end"));
        };
        request.extensions_mut().insert(caller);
        Ok(request)
    }

    fn local(&self, unix: &UdsConnectInfo) -> Result<Caller, Status> {
        let uid = unix.peer_cred.map(|credentials| credentials.uid());
        match uid {
            Some(uid) if self.uids.contains(&uid) => Ok(Caller::Local { uid }),
            Some(uid) => Err(denied(format!("uid {uid} may not administer this agent: see admin.allow_uids"))),
            None => Err(denied("the kernel does not say whose process this is")),
        }
    }

    fn certificate(&self, tls: &TlsConnectInfo<TcpConnectInfo>) -> Result<Caller, Status> {
        let chain = tls.peer_certs().ok_or_else(|| denied("there is no certificate"))?;
        let uri = chain
            .first()
            .and_then(|leaf| san_uri(leaf))
            .ok_or_else(|| denied("the certificate has no single SAN URI"))?;
        if self.admits(&uri) { Ok(Caller::Certificate { uri }) } else { Err(self.stranger(&uri)) }
    }

    fn admits(&self, uri: &str) -> bool {
        match self.uris.is_empty() {
            true => uri.strip_prefix(&*self.admin_prefix).is_some_and(|name| !name.is_empty() && !name.contains('/')),
            false => self.uris.contains(uri),
        }
    }

    fn stranger(&self, uri: &str) -> Status {
        let allowed = match self.uris.is_empty() {
            true => format!("{}NAME is allowed", self.admin_prefix),
            false => "see admin.allow".to_owned(),
        };
        denied(format!("{uri} may not administer this agent: {allowed}"))
    }
}

fn denied(text: impl Into<String>) -> Status {
    refusal(Code::PermissionDenied, "permission", text)
}

/// The one SAN URI of a certificate; none when there are several.
fn san_uri(der: &[u8]) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let uri = uris.next()?;
    uris.next().is_none().then_some(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(allow: &[&str]) -> Gate {
        Gate {
            uids: Arc::default(),
            uris: Arc::new(allow.iter().map(|uri| (*uri).to_owned()).collect()),
            admin_prefix: "spiffe://tidemark/site/x/admin/".into(),
        }
    }

    #[test]
    fn every_admin_of_the_site_passes_and_nobody_else() {
        let gate = gate(&[]);
        assert!(gate.admits("spiffe://tidemark/site/x/admin/ann"));
        for uri in [
            "spiffe://tidemark/site/y/admin/ann",
            "spiffe://tidemark/site/x/node/n",
            "spiffe://tidemark/site/x/admin/",
            "spiffe://tidemark/site/x/admin/a/b",
            "",
        ] {
            assert!(!gate.admits(uri), "{uri}");
        }
    }

    #[test]
    fn a_list_of_names_admits_only_those() {
        let gate = gate(&["spiffe://tidemark/site/x/admin/bob"]);
        assert!(gate.admits("spiffe://tidemark/site/x/admin/bob"));
        assert!(!gate.admits("spiffe://tidemark/site/x/admin/ann"));
    }
}
