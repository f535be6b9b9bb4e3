//! The network between two agents.
//!
//! Translates gRPC into messages of the core and back, and decides only who may speak: every connection is authenticated by
//! a certificate that names site and node, and what a message claims must equal it. What is said is the core's.
//!
//! Two listeners (docs/protocol.md): the *control* listener of the agent carries liveness and short calls on a thread of its
//! own, the *data* listener of a shard carries one stream per volume on that shard's runtime, so that no frame crosses a thread.

mod backoff;
mod client;
pub mod control;
pub mod convert;
pub mod exercise;
mod heartbeat;
mod listener;
mod refusal;
mod server;
pub mod site;
mod stream;
pub mod tls;
mod transport;

pub use backoff::{Backoff, FIRST_RETRY, LAST_RETRY, SECOND_RETRY};
pub use client::{CONNECT_TIMEOUT, ConnectError, PeerAddress, connect_stream};
pub use heartbeat::{BEAT, HealthBoard, Heartbeats, PeerHealth, Pulse, SILENCE, first_contact, keep_beating};
pub use listener::ServeError;
pub use refusal::{OnRefusal, PeerRefusal, Refusals};
pub use server::{StreamAcceptor, serve_data};
pub use stream::{HELLO_TIMEOUT, Inbound, MAX_QUEUED_BYTES, Outbound, PeerStream, SendError, StreamEnd};
pub use tls::{OwnFiles, PeerIdentity, PeerTrust, Tls, TlsError};
pub use transport::{HANDSHAKE_TIMEOUT, HandshakeError, Transport};

#[cfg(test)]
mod control_tests;
#[cfg(test)]
mod site_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
