//! A witness in an object store with conditional puts, as S3 has them: each cell is one object, its revision the object's entity tag.
//!
//! A tag is the hash of a content, and no two values of a cell are equal (each has a nonce), so a tag names one value. One request
//! is sent for each call and none is repeated here: what a lost answer meant is found out by reading, above.
//!
//! That a store has puts does not say that it looks at their condition, nor that it does both in one step. Before an agent changes
//! anything it therefore tries the store with a cell of its own (see [`Store::has_to_prove_itself`]).

mod credentials;

use std::error::Error as StdError;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    Certificate, ClientOptions, Error, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    PutResult, RetryConfig, UpdateVersion,
};
use tidemark_core::format::FormatError;
use tidemark_core::format::witness::{Cell, MAX_CELL_BYTES};
use tidemark_core::group::witness::Revision;

use super::store::{Store, Stored, Swap, WitnessError, bounded, causes, unavailable};
use crate::config::S3Witness;

/// A connection that is not there by then will not come.
const CONNECT: Duration = Duration::from_secs(2);
/// Longer than any call may take: the deadline of a call ends it before.
const ANSWER: Duration = Duration::from_secs(60);
/// The longest entity tag: the memory of the witness holds no longer ones.
const MAX_TAG_BYTES: usize = 256;
/// Of what a store says about a failure, for people.
const MAX_REASON_CHARS: usize = 240;

/// The store.
pub struct S3 {
    store: AmazonS3,
    /// Begins the name of every object.
    prefix: String,
    place: String,
}

impl S3 {
    /// Over the bucket of `config`; connects to nothing yet.
    ///
    /// # Errors
    /// [`WitnessError::Refused`] when the credentials or the authority's certificate cannot be used.
    pub fn new(config: &S3Witness) -> Result<Self, WitnessError> {
        // The client takes the process's provider of cryptography; another part of the agent may have named it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let endpoint = config.endpoint.as_ref().map(ToString::to_string);
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(config.bucket.as_str())
            .with_region(&config.region)
            .with_virtual_hosted_style_request(!config.path_style)
            .with_credentials(credentials::provider(config.credentials.as_deref())?)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_client_options(client_options(config)?);
        if let Some(endpoint) = &config.endpoint {
            builder = builder.with_endpoint(endpoint.url(&config.bucket, config.path_style));
        }
        let store = builder.build().map_err(|error| refused(&error))?;
        let bucket = &config.bucket;
        let place = format!("{bucket} at {}", endpoint.unwrap_or_else(|| format!("S3 in {}", config.region)));
        Ok(Self { store, prefix: config.prefix.clone(), place })
    }

    fn path(&self, cell: Cell) -> Result<Path, WitnessError> {
        Path::parse(format!("{}{cell}", self.prefix)).map_err(|error| refused(&error))
    }

    async fn load(&self, cell: Cell) -> Result<Option<Stored>, WitnessError> {
        match self.store.get(&self.path(cell)?).await {
            Ok(got) => stored(cell, got).await.map(Some),
            Err(Error::NotFound { source, .. }) if !is_about_bucket(&*source) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    /// The tag of the new value; `None`: the store says that the cell is not as expected.
    async fn put(&self, path: &Path, mode: PutMode, value: Bytes) -> Result<Option<PutResult>, WitnessError> {
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.store.put_opts(path, PutPayload::from_bytes(value), options).await {
            Ok(put) => Ok(Some(put)),
            Err(Error::Precondition { source, .. } | Error::AlreadyExists { source, .. })
                if !is_about_bucket(&*source) =>
            {
                Ok(None)
            }
            Err(error) => Err(failed(&error)),
        }
    }
}

#[tonic::async_trait]
impl Store for S3 {
    fn backend(&self) -> &'static str {
        "s3"
    }

    fn place(&self) -> String {
        self.place.clone()
    }

    fn has_to_prove_itself(&self) -> bool {
        true
    }

    async fn read(&self, cell: Cell, deadline: Instant) -> Result<Option<Stored>, WitnessError> {
        within(deadline, self.load(cell)).await
    }

    async fn cas(
        &self,
        cell: Cell,
        expected: Option<&Revision>,
        value: Bytes,
        deadline: Instant,
    ) -> Result<Swap, WitnessError> {
        bounded(&value)?;
        let (path, mode) = (self.path(cell)?, condition(expected)?);
        if let Some(put) = within(deadline, self.put(&path, mode, value)).await? {
            return Ok(Swap::Committed(revision(put.e_tag)?));
        }
        let now = within(deadline, self.load(cell)).await?;
        // Two changes that meet are both put off by some stores.
        match now.as_ref().map(|stored| &stored.revision) == expected {
            true => Err(WitnessError::Unavailable("it is busy with another change of the same cell".to_owned())),
            false => Ok(Swap::Conflict(now)),
        }
    }
}

fn condition(expected: Option<&Revision>) -> Result<PutMode, WitnessError> {
    match expected {
        None => Ok(PutMode::Create),
        Some(Revision::Tagged(tag)) => {
            Ok(PutMode::Update(UpdateVersion { e_tag: Some(tag.to_string()), version: None }))
        }
        Some(other) => Err(WitnessError::Refused(format!("an object store has no revision {other}"))),
    }
}

async fn within<T>(deadline: Instant, call: impl Future<Output = Result<T, WitnessError>>) -> Result<T, WitnessError> {
    let silent = |_| Err(WitnessError::Unavailable("no answer".to_owned()));
    tokio::time::timeout_at(deadline.into(), call).await.unwrap_or_else(silent)
}

/// An object that is longer than any cell is not fetched: what is in its place is none either.
async fn stored(cell: Cell, got: GetResult) -> Result<Stored, WitnessError> {
    let revision = revision(got.meta.e_tag.clone())?;
    if got.meta.size > MAX_CELL_BYTES as u64 {
        let source = FormatError::Field("witness cell", "length");
        return Err(WitnessError::Corrupt { cell, source });
    }
    let bytes = got.bytes().await.map_err(|error| failed(&error))?;
    Ok(Stored { bytes, revision })
}

fn revision(tag: Option<String>) -> Result<Revision, WitnessError> {
    let fit = tag.filter(|tag| (1..=MAX_TAG_BYTES).contains(&tag.len()));
    let none = || WitnessError::Refused("it gives objects no entity tag: it cannot be an arbiter".to_owned());
    fit.map(|tag| Revision::Tagged(tag.into())).ok_or_else(none)
}

fn client_options(config: &S3Witness) -> Result<ClientOptions, WitnessError> {
    let is_plain = config.endpoint.as_ref().is_some_and(|endpoint| !endpoint.is_secure);
    let options = ClientOptions::new().with_allow_http(is_plain).with_connect_timeout(CONNECT).with_timeout(ANSWER);
    let Some(path) = &config.ca else { return Ok(options) };
    let named = |error: &dyn std::fmt::Display| WitnessError::Refused(format!("{}: {error}", path.display()));
    let pem = std::fs::read(path).map_err(|error| named(&error))?;
    let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| named(&error))?;
    if authorities.is_empty() {
        return Err(named(&"holds no certificate"));
    }
    let only_these = options.with_no_system_certificates(true);
    Ok(authorities.into_iter().fold(only_these, ClientOptions::with_root_certificate))
}

/// A bucket that does not exist is no absent cell: somebody has to make it, or mend its name.
fn is_about_bucket(error: &(dyn StdError + 'static)) -> bool {
    error.to_string().contains("NoSuchBucket")
}

/// What nobody but the operator can mend is refused, the rest may pass.
fn failed(error: &Error) -> WitnessError {
    let is_refusal = match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } | Error::NotFound { .. } => true,
        Error::Precondition { .. } | Error::AlreadyExists { .. } => true, // a bucket that there is not
        other => causes(other).any(|cause| cause.is::<rustls::Error>()),
    };
    if is_refusal { refused(error) } else { unavailable("object store", &reason(error)) }
}

fn refused(error: &(dyn StdError + 'static)) -> WitnessError {
    WitnessError::Refused(reason(error))
}

/// What a store said, in its own code and words where it has them, on one line.
fn reason(error: &(dyn StdError + 'static)) -> String {
    let text = causes(error).last().map_or_else(|| error.to_string(), ToString::to_string);
    let part = |name: &str| {
        let (_, after) = text.split_once(&format!("<{name}>"))?;
        Some(after.split_once('<')?.0.to_owned())
    };
    let said = match (part("Code"), part("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => text,
    };
    said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_REASON_CHARS).collect()
}
