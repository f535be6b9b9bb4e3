//! The NBD frontend: a server of the fixed newstyle protocol with structured replies over unix sockets and TCP.
//!
//! ```text
//! server -> negotiate -> handshake -> conn -> decode -> outbox -> BlockTarget
//!                                     conn <- reply  <- outbox <-
//! ```
//!
//! What bytes mean is decided in `proto`, `options`, `meta`, `handshake`, `decode`, `reply` and `outbox`, which touch no socket: the same
//! machines run under the fuzzer. `unix`, `wire`, `stage`, `negotiate`, `conn` and `server` move bytes.

mod conn;
mod decode;
mod error;
#[doc(hidden)]
pub mod exercise;
mod export;
mod handover;
mod handshake;
mod meta;
mod metrics;
mod negotiate;
mod options;
mod outbox;
mod payload;
mod proto;
mod reply;
mod server;
mod stage;
mod unix;
mod wire;

pub use error::{BindError, ConnectionError};
pub use export::{Directory, Export, ExportInfo, ExportResolver, SingleExport};
pub use handover::HandOver;
pub use handshake::{Handshake, Negotiated, Outcome, TlsRule};
pub use metrics::NbdMetrics;
pub use proto::ProtocolError;
pub use server::{
    Options, TcpSecurity, bind_unix, serve_handed_over, serve_tcp, serve_transmission, serve_unix, socket_path,
};
