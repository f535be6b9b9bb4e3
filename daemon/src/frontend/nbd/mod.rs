//! The NBD frontend: a server of the fixed newstyle protocol with structured replies over unix sockets and TCP.
//!
//! ```text
//! server -> negotiate -> handshake (no IO) -> conn -> decode (no IO) -> BlockTarget
//!                                                   <- reply (no IO) <-
//! ```
//!
//! What bytes mean is decided in `proto`, `options`, `meta`, `handshake`, `decode` and `reply`, which touch no socket: the same
//! machines run under the fuzzer. `wire`, `stage`, `negotiate`, `conn` and `server` move bytes.

mod conn;
mod decode;
mod error;
mod export;
mod handover;
mod handshake;
mod meta;
mod metrics;
mod negotiate;
mod options;
mod payload;
mod proto;
mod reply;
mod server;
mod stage;
mod wire;

pub use error::{BindError, ConnectionError};
pub use export::{Directory, Export, ExportInfo, ExportResolver, SingleExport};
pub use handover::HandOver;
pub use handshake::{Handshake, Negotiated, Outcome, TlsRule};
pub use metrics::NbdMetrics;
pub use proto::ProtocolError;
pub use server::{Options, TcpSecurity, bind_unix, serve_handed_over, serve_tcp, serve_unix, socket_path};
