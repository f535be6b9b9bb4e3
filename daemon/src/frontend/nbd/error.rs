//! Why connections end.

use super::proto::ProtocolError;

/// Why a connection ended early. Handled (counted, logged) once, by the listener.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The stream broke.
    #[error("connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// The client does not speak the protocol.
    #[error("client broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// The TLS handshake failed: no certificate, a wrong one, or not TLS at all.
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] std::io::Error),
    /// The handshake was not over in time.
    #[error("handshake took too long")]
    HandshakeTimeout,
    /// The volume went away between the end of the handshake and the first request.
    #[error("export {0:?} is gone")]
    Gone(String),
}

/// Why a unix socket for a volume cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The volume's name cannot be a file name.
    #[error("volume name {0:?} cannot be a socket name")]
    Name(String),
    /// Another process answers on the socket.
    #[error("{path}: another process serves this socket", path = .0.display())]
    InUse(std::path::PathBuf),
    /// The system refused.
    #[error("cannot listen on {path}: {source}", path = .path.display())]
    Io {
        /// The socket.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
