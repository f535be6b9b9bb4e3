//! A witness in etcd: each cell is one key, its revision the key's `mod_revision`; a change is one transaction, a read is
//! linearizable.
//!
//! Every endpoint is asked in turn until one answers, beginning with the one that did last. That a change may thus be asked for
//! twice is harmless: both expect one revision, so the second meets the first one's value.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tidemark_core::format::witness::{Cell, MAX_CELL_BYTES};
use tidemark_core::group::witness::Revision;
use tidemark_proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use tidemark_proto::etcd::kv_client::KvClient;
use tidemark_proto::etcd::{
    Compare, KeyValue, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse, request_op, response_op,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::store::{Store, Stored, Swap, WitnessError, bounded, causes, unavailable};
use crate::config::{EtcdWitness, HostPort, Security, TlsFiles};
use crate::lock::lock;

/// The largest answer that is read: one cell with what etcd says about it, with room.
const MAX_ANSWER_BYTES: usize = 16 * MAX_CELL_BYTES;
/// An idle connection is asked whether it lives, so that a call does not find out.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A connection that is not there by then is tried anew: the kernel alone would wait longer from try to try.
const CONNECT: Duration = Duration::from_secs(2);

/// The store.
pub struct Etcd {
    endpoints: Vec<HostPort>,
    prefix: String,
    security: Security,
    /// The endpoint that answered last.
    last: AtomicUsize,
    connected: Mutex<Connected>,
}

/// A channel to each endpoint, made of the certificates as they were then. A channel connects when it is used, and again when it
/// was lost.
struct Connected {
    changed: [Option<SystemTime>; 3],
    channels: Vec<KvClient<Channel>>,
}

impl Etcd {
    /// Over the endpoints of `config`; connects to none yet.
    ///
    /// # Errors
    /// [`WitnessError::Refused`] when the certificates cannot be used.
    pub fn new(config: &EtcdWitness) -> Result<Self, WitnessError> {
        let connected = connect(&config.endpoints, &config.security)?;
        Ok(Self {
            endpoints: config.endpoints.clone(),
            prefix: config.prefix.clone(),
            security: config.security.clone(),
            last: AtomicUsize::new(0),
            connected: Mutex::new(connected),
        })
    }

    fn key(&self, cell: Cell) -> Bytes {
        Bytes::from(format!("{}{cell}", self.prefix))
    }

    /// The channels, made anew when the certificates have changed; ones that cannot be used leave the old channels in force.
    fn channels(&self) -> Vec<KvClient<Channel>> {
        let mut connected = lock(&self.connected);
        let changed = changed(&self.security);
        if changed != connected.changed {
            connected.changed = changed;
            match connect(&self.endpoints, &self.security) {
                Ok(anew) => *connected = anew,
                Err(error) => tracing::warn!(%error, "changed certificates cannot be used; the old ones stay in force"),
            }
        }
        connected.channels.clone()
    }

    /// The first answer that an endpoint gives; when none does, a refusal counts more than silence. Each endpoint gets its share of
    /// the time that is left, so that a silent one leaves some for the others.
    async fn ask<T, F: Future<Output = Result<T, Status>> + Send>(
        &self,
        deadline: Instant,
        call: impl Fn(KvClient<Channel>, Duration) -> F + Send,
    ) -> Result<T, WitnessError> {
        let channels = self.channels();
        let (count, first) = (channels.len(), self.last.load(Ordering::Relaxed));
        let (mut why, mut is_refused) = (Vec::new(), false);
        for tried in 0..count {
            let index = (first + tried) % count;
            let left = deadline.saturating_duration_since(Instant::now()) / (count - tried) as u32;
            let answer = tokio::time::timeout(left, call(channels[index].clone(), left)).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
                Ok(answer) => {
                    self.last.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(status) => {
                    why.push(format!("{}: {}", self.endpoints[index], innermost(&status)));
                    is_refused |= is_refusal(&status);
                }
            }
        }
        let why = why.join("; ");
        Err(if is_refused { WitnessError::Refused(why) } else { WitnessError::Unavailable(why) })
    }
}

#[tonic::async_trait]
impl Store for Etcd {
    fn backend(&self) -> &'static str {
        "etcd"
    }

    fn place(&self) -> String {
        self.endpoints.iter().map(HostPort::as_str).collect::<Vec<_>>().join(",")
    }

    async fn read(&self, cell: Cell, deadline: Instant) -> Result<Option<Stored>, WitnessError> {
        let range = RangeRequest { key: self.key(cell), limit: 1 };
        let asked = |mut kv: KvClient<Channel>, left| {
            let request = within(range.clone(), left);
            async move { kv.range(request).await }
        };
        let answer = self.ask(deadline, asked).await?.into_inner();
        stored(answer.kvs)
    }

    async fn cas(
        &self,
        cell: Cell,
        expected: Option<&Revision>,
        value: Bytes,
        deadline: Instant,
    ) -> Result<Swap, WitnessError> {
        bounded(&value)?;
        let txn = transaction(self.key(cell), expected, value)?;
        let asked = |mut kv: KvClient<Channel>, left| {
            let request = within(txn.clone(), left);
            async move { kv.txn(request).await }
        };
        swapped(self.ask(deadline, asked).await?.into_inner())
    }
}

fn within<T>(message: T, left: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(left);
    request
}

/// Puts `value` when the key is still at `expected`, else reads it.
fn transaction(key: Bytes, expected: Option<&Revision>, value: Bytes) -> Result<TxnRequest, WitnessError> {
    let (target, union) = match expected {
        None => (CompareTarget::Create, TargetUnion::CreateRevision(0)),
        Some(Revision::Counted(count)) => {
            let revision = i64::try_from(*count).map_err(|error| unavailable("revision", &error))?;
            (CompareTarget::Mod, TargetUnion::ModRevision(revision))
        }
        Some(other) => return Err(WitnessError::Refused(format!("etcd has no revision {other}"))),
    };
    let compare = Compare {
        result: CompareResult::Equal as i32,
        target: target as i32,
        key: key.clone(),
        target_union: Some(union),
    };
    let put = request_op::Request::RequestPut(PutRequest { key: key.clone(), value });
    let range = request_op::Request::RequestRange(RangeRequest { key, limit: 1 });
    let operation = |request| vec![RequestOp { request: Some(request) }];
    Ok(TxnRequest { compare: vec![compare], success: operation(put), failure: operation(range) })
}

fn swapped(answer: TxnResponse) -> Result<Swap, WitnessError> {
    let revision = answer.header.map_or(0, |header| header.revision);
    let result = answer.responses.into_iter().next().and_then(|operation| operation.response);
    match (answer.succeeded, result) {
        (true, Some(response_op::Response::ResponsePut(_))) => Ok(Swap::Committed(counted(revision)?)),
        (false, Some(response_op::Response::ResponseRange(range))) => Ok(Swap::Conflict(stored(range.kvs)?)),
        _ => Err(unintelligible("an answer that does not fit its transaction")),
    }
}

fn stored(kvs: Vec<KeyValue>) -> Result<Option<Stored>, WitnessError> {
    let Some(kv) = kvs.into_iter().next() else { return Ok(None) };
    Ok(Some(Stored { revision: counted(kv.mod_revision)?, bytes: kv.value }))
}

/// Revisions begin at 1.
fn counted(revision: i64) -> Result<Revision, WitnessError> {
    let count = u64::try_from(revision).ok().filter(|count| *count > 0);
    count.map(Revision::Counted).ok_or_else(|| unintelligible("a revision that there is not"))
}

/// What such a server did is not known.
fn unintelligible(what: &str) -> WitnessError {
    WitnessError::Unavailable(format!("the server sends {what}: is it etcd 3?"))
}

/// True when trying again does not help: a permission, a certificate, another program.
fn is_refusal(status: &Status) -> bool {
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented => true,
        _ => refuses_tls(status),
    }
}

/// True when one side does not accept the other's certificate, or speaks no TLS.
fn refuses_tls(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<rustls::Error>())
}

fn innermost(status: &Status) -> String {
    match causes(status).skip(1).last() {
        Some(cause) => cause.to_string(),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

fn changed(security: &Security) -> [Option<SystemTime>; 3] {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    match security {
        Security::Mutual(files) => [&files.cert, &files.key, &files.ca].map(|path| modified(path)),
        Security::Insecure => [None; 3],
    }
}

fn connect(endpoints: &[HostPort], security: &Security) -> Result<Connected, WitnessError> {
    let changed = changed(security);
    let (scheme, tls) = match security {
        Security::Mutual(files) => ("https", Some(client_tls(files)?)),
        Security::Insecure => ("http", None),
    };
    let channels = endpoints.iter().map(|endpoint| channel(&format!("{scheme}://{endpoint}"), tls.as_ref()));
    Ok(Connected { changed, channels: channels.collect::<Result<_, _>>()? })
}

fn channel(url: &str, tls: Option<&ClientTlsConfig>) -> Result<KvClient<Channel>, WitnessError> {
    let refused = |error: tonic::transport::Error| {
        let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        WitnessError::Refused(format!("{url}: {why}"))
    };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(refused)?;
    let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
    let endpoint = endpoint.http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
    let endpoint = match tls {
        Some(tls) => endpoint.tls_config(tls.clone()).map_err(refused)?,
        None => endpoint,
    };
    Ok(KvClient::new(endpoint.connect_lazy()).max_decoding_message_size(MAX_ANSWER_BYTES))
}

fn client_tls(files: &TlsFiles) -> Result<ClientTlsConfig, WitnessError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| WitnessError::Refused(format!("{}: {error}", path.display())))
    };
    let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&files.ca)?)).identity(identity))
}
