//! An object store that does not keep what it is asked: puts reach the real one without their condition.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use tidemark_agent::witness::{Store, Stored, Swap};
use tidemark_core::format::witness::{Cell, MAX_CELL_BYTES};
use tidemark_core::group::witness::Revision;
use tidemark_core::types::NodeId;

use crate::TIMEOUT;

/// What it does not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `If-Match`.
    IgnoresTag,
    /// `If-None-Match`.
    IgnoresAbsence,
    /// It looks at both, and writes a little later, whatever happened in between.
    ComparesFirst,
}

struct Way {
    real: Box<dyn Store>,
    fault: Fault,
}

/// A server with this fault in front of `real`; its port.
pub async fn untrue(real: Box<dyn Store>, fault: Fault) -> u16 {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = Router::new().fallback(answer).with_state(Arc::new(Way { real, fault }));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    port
}

async fn answer(State(way): State<Arc<Way>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let cell = cell(parts.uri.path());
    if parts.method == Method::GET {
        return object(way.read(cell).await);
    }
    let body = to_bytes(body, MAX_CELL_BYTES).await.unwrap();
    if !way.lets_through(cell, &parts.headers).await {
        return status(StatusCode::PRECONDITION_FAILED);
    }
    loop {
        let now = way.read(cell).await.map(|stored| stored.revision);
        let put = way.real.cas(cell, now.as_ref(), body.clone(), Instant::now() + TIMEOUT).await.unwrap();
        if let Swap::Committed(revision) = put {
            return Response::builder().header("etag", revision.to_string()).body(Body::empty()).unwrap();
        }
    }
}

impl Way {
    async fn read(&self, cell: Cell) -> Option<Stored> {
        self.real.read(cell, Instant::now() + TIMEOUT).await.unwrap()
    }

    /// As far as the server looks.
    async fn lets_through(&self, cell: Cell, headers: &HeaderMap) -> bool {
        let now = self.read(cell).await.map(|stored| stored.revision);
        let wanted = headers.get("if-match").map(|tag| Revision::Tagged(tag.to_str().unwrap().into()));
        match self.fault {
            Fault::IgnoresTag => wanted.is_some() || now.is_none(),
            Fault::IgnoresAbsence => wanted.is_none() || wanted == now,
            Fault::ComparesFirst => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                wanted == now
            }
        }
    }
}

/// The cell that `path` ends with.
fn cell(path: &str) -> Cell {
    let (kind, id) = path.rsplit('/').next().and_then(|name| name.split_once('-')).unwrap();
    let node = NodeId(std::array::from_fn(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).unwrap()));
    if kind == "probe" { Cell::Probe(node) } else { Cell::Lease(node) }
}

fn object(stored: Option<Stored>) -> Response<Body> {
    let Some(Stored { bytes, revision }) = stored else { return status(StatusCode::NOT_FOUND) };
    let modified = "Thu, 01 Jan 2026 00:00:00 GMT";
    let response = Response::builder().header("etag", revision.to_string()).header("last-modified", modified);
    response.body(Body::from(bytes)).unwrap()
}

fn status(status: StatusCode) -> Response<Body> {
    Response::builder().status(status).body(Body::empty()).unwrap()
}
