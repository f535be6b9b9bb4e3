//! The way to an agent: a unix socket of this host, or mutual TLS over TCP. Nothing else; plaintext TCP is refused.
//!
//! Every call has a deadline: the agent is told it, and the client keeps it itself, so that a command ends even when the
//! agent hangs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tidemark_proto::admin::admin_client::AdminClient;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tonic::{Request, Response, Status, Streaming};

use crate::cli::Global;
use crate::failure::Failure;
use crate::pki::{self, PkiError, store};

/// How much longer than the deadline the client waits, so that the agent's own, better answer wins.
const GRACE: Duration = Duration::from_millis(250);
/// Largest answer: an agent with some thousand volumes.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Where the agent is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A socket of this host.
    Unix(PathBuf),
    /// `https://host:port`.
    Tls(String),
}

impl Target {
    /// Parses `unix:///path` or `https://host:port`.
    ///
    /// # Errors
    /// [`Failure::Usage`].
    pub fn parse(url: &str) -> Result<Self, Failure> {
        let hint = "use unix:///PATH or https://HOST:PORT";
        if let Some(path) = url.strip_prefix("unix://").or_else(|| url.strip_prefix("unix:")) {
            let path = Path::new(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path.to_owned()))
            } else {
                Err(Failure::usage(format!("the socket in --agent {url} has no absolute path"), hint))
            };
        }
        match url.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("https") && uri.port().is_some() => Ok(Self::Tls(url.to_owned())),
            Ok(uri) if uri.scheme_str() == Some("http") => {
                Err(Failure::usage("the admin API is not spoken in plaintext".to_owned(), hint))
            }
            _ => Err(Failure::usage(format!("--agent {url} is no address of an agent"), hint)),
        }
    }
}

/// A connection to one agent.
pub struct Client {
    admin: AdminClient<Channel>,
    agent: String,
    timeout: Duration,
}

impl Client {
    /// Connects within the timeout.
    ///
    /// # Errors
    /// [`Failure::Usage`] for an address that is none or a certificate that is missing, [`Failure::Pki`] for files that
    /// cannot be read, [`Failure::Unreachable`].
    pub async fn connect(global: &Global) -> Result<Self, Failure> {
        let connecting = async {
            match Target::parse(&global.agent)? {
                Target::Unix(path) => connect_unix(path, global).await,
                Target::Tls(url) => connect_tls(&url, global).await,
            }
        };
        let channel = tokio::time::timeout(global.timeout, connecting)
            .await
            .unwrap_or_else(|_| Err(Failure::silent(&global.agent)))?;
        let admin = AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        Ok(Self { admin, agent: global.agent.clone(), timeout: global.timeout })
    }

    /// One call with the deadline.
    ///
    /// # Errors
    /// The agent's error as [`Failure::Rpc`], or [`Failure::Unreachable`].
    pub async fn call<M, R>(
        &mut self,
        message: M,
        rpc: impl AsyncFnOnce(&mut AdminClient<Channel>, Request<M>) -> Result<Response<R>, Status>,
    ) -> Result<R, Failure> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        match tokio::time::timeout(self.timeout + GRACE, rpc(&mut self.admin, request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::from_status(&status, &self.agent)),
            Err(_) => Err(Failure::silent(&self.agent)),
        }
    }

    /// A call whose answer is a stream; the timeout bounds the silence between two messages, not the whole.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn stream<M, R>(
        &mut self,
        message: M,
        rpc: impl AsyncFnOnce(&mut AdminClient<Channel>, Request<M>) -> Result<Response<Streaming<R>>, Status>,
    ) -> Result<Messages<R>, Failure> {
        let answered = tokio::time::timeout(self.timeout, rpc(&mut self.admin, Request::new(message)));
        match answered.await {
            Ok(Ok(response)) => {
                Ok(Messages { stream: response.into_inner(), agent: self.agent.clone(), timeout: self.timeout })
            }
            Ok(Err(status)) => Err(Failure::from_status(&status, &self.agent)),
            Err(_) => Err(Failure::silent(&self.agent)),
        }
    }
}

/// The messages of a stream.
pub struct Messages<R> {
    stream: Streaming<R>,
    agent: String,
    timeout: Duration,
}

impl<R> Messages<R> {
    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn next(&mut self) -> Result<Option<R>, Failure> {
        match tokio::time::timeout(self.timeout, self.stream.message()).await {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(status)) => Err(Failure::from_status(&status, &self.agent)),
            Err(_) => Err(Failure::silent(&self.agent)),
        }
    }
}

async fn connect_unix(path: PathBuf, global: &Global) -> Result<Channel, Failure> {
    // The address is never resolved: the connector below ignores it.
    let endpoint = Endpoint::from_static("http://agent.invalid");
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| Failure::unreachable(&global.agent, &error))
}

async fn connect_tls(url: &str, global: &Global) -> Result<Channel, Failure> {
    let (Some(cert), Some(key), Some(ca)) = (&global.cert, &global.key, &global.ca) else {
        let hint = "name --cert, --key and --ca; `tidemark pki issue-client` makes them";
        return Err(Failure::usage("an agent over https wants a certificate".to_owned(), hint));
    };
    expect_valid(&pki::certificate::Certificate::read(cert)?)?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(store::read(ca)?))
        .identity(Identity::from_pem(store::read(cert)?, store::read(key)?));
    let unreachable = |error| Failure::unreachable(&global.agent, &error);
    let endpoint = Endpoint::from_shared(url.to_owned()).and_then(|endpoint| endpoint.tls_config(tls));
    endpoint.map_err(unreachable)?.connect().await.map_err(unreachable)
}

/// An agent ends the connection of an expired certificate without a word: say it before.
fn expect_valid(certificate: &pki::certificate::Certificate) -> Result<(), PkiError> {
    match certificate.validity.state(jiff::Timestamp::now()) {
        "valid" => Ok(()),
        state => {
            let problems = vec![format!("it is {state}")];
            Err(PkiError::Unverified { path: certificate.path.clone(), problems })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_and_https_are_addresses_of_an_agent() {
        let socket = Target::Unix("/run/tidemark/admin.sock".into());
        assert_eq!(Target::parse("unix:///run/tidemark/admin.sock").expect("valid"), socket);
        assert!(matches!(Target::parse("https://[::1]:9760"), Ok(Target::Tls(_))));
        for bad in ["http://host:1", "https://host", "host:1", "unix://relative", "/run/x.sock", ""] {
            assert!(matches!(Target::parse(bad), Err(Failure::Usage { .. })), "{bad:?} was taken");
        }
    }
}
