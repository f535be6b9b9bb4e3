//! Drives a [`Handshake`] over a stream, TLS included.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::error::ConnectionError;
use super::export::ExportResolver;
use super::handshake::{Handshake, Negotiated, Outcome, TlsRule};
use super::proto::{MAX_OPTION_BYTES, OPTION_HEADER_BYTES, ProtocolError};
use super::wire::Wire;

/// One option must fit whole.
const INPUT_BYTES: usize = MAX_OPTION_BYTES + OPTION_HEADER_BYTES;

/// A connection behind its handshake.
pub struct Ready {
    /// The stream, now TLS where that was required.
    pub wire: Wire,
    /// What was agreed on.
    pub negotiated: Negotiated,
    /// What arrived behind the handshake.
    pub leftover: Vec<u8>,
}

/// Runs the handshake; `None` when the client ended it.
///
/// # Errors
/// The stream broke, TLS failed, or the client broke the protocol.
pub async fn negotiate(
    mut wire: Wire,
    exports: &dyn ExportResolver,
    tls: Option<Arc<ServerConfig>>,
) -> Result<Option<Ready>, ConnectionError> {
    let mut out = Vec::new();
    let rule = if tls.is_some() { TlsRule::Required } else { TlsRule::Off };
    let mut handshake = Handshake::new(rule, &mut out);
    let mut input = Vec::new();
    loop {
        let (taken, outcome) = handshake.step(&input, exports, &mut out)?;
        input.drain(..taken);
        write_all(&mut wire, &out).await?;
        out.clear();
        match outcome {
            Outcome::More if taken > 0 => {}
            Outcome::More => {
                if !read_some(&mut wire, &mut input).await? {
                    return Ok(None);
                }
            }
            Outcome::Start(negotiated) => return Ok(Some(Ready { wire, negotiated, leftover: input })),
            Outcome::Aborted => return Ok(None),
            Outcome::StartTls => {
                if !input.is_empty() {
                    return Err(ProtocolError::PlaintextAfterTls.into());
                }
                wire = start_tls(wire, tls.clone()).await?;
                handshake.tls_established();
            }
        }
    }
}

async fn start_tls(wire: Wire, tls: Option<Arc<ServerConfig>>) -> Result<Wire, ConnectionError> {
    match (wire, tls) {
        (Wire::Tcp(socket), Some(config)) => {
            let stream = TlsAcceptor::from(config).accept(socket).await.map_err(ConnectionError::Tls)?;
            Ok(Wire::Tls(Box::new(stream)))
        }
        (_, _) => Err(ConnectionError::Tls(io::ErrorKind::Unsupported.into())),
    }
}

/// Appends what arrives to `input`; false at the end of the stream.
async fn read_some(wire: &mut Wire, input: &mut Vec<u8>) -> io::Result<bool> {
    let old = input.len();
    assert!(old < INPUT_BYTES, "an option that fits is always taken");
    input.resize(INPUT_BYTES, 0);
    let len = poll_fn(|cx| wire.poll_read(cx, &mut input[old..])).await?;
    input.truncate(old + len);
    Ok(len > 0)
}

async fn write_all(wire: &mut Wire, mut out: &[u8]) -> io::Result<()> {
    while !out.is_empty() {
        let len = poll_fn(|cx| wire.poll_write(cx, &[IoSlice::new(out)])).await?;
        if len == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        out = &out[len..];
    }
    poll_fn(|cx| wire.poll_flush(cx)).await
}
