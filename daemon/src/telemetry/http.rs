//! The pages for machines: `/metrics`, `/healthz` (the shards answer) and `/readyz` (volumes were opened, and no stop began).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;

use super::{SCRAPE_TIMEOUT, Telemetry};
use crate::control::Engine;

/// Connections at once; the next waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// A connection ends after this time, whatever it does: nobody holds a place by saying nothing.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
/// After a stop, for a scrape that runs.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The media type of the text that a scrape gives.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The bound listener of the pages.
pub struct Pages {
    listener: TcpListener,
}

#[derive(Clone)]
struct Shown {
    telemetry: Arc<Telemetry>,
    engine: Arc<dyn Engine>,
    ready: watch::Receiver<bool>,
}

impl Pages {
    /// The pages on `listener`.
    pub fn new(listener: TcpListener) -> Self {
        Self { listener }
    }

    /// Serves until `stop` ends. `ready` turns true when volumes are open, and false again when the agent stops.
    pub async fn serve(
        self,
        telemetry: Arc<Telemetry>,
        engine: Arc<dyn Engine>,
        ready: watch::Receiver<bool>,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let (stopped, mut was_stopped) = watch::channel(false);
        let stop = async move {
            stop.await;
            stopped.send_replace(true);
        };
        let routes = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .with_state(Shown { telemetry, engine, ready });
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let listener = Limited { listener: self.listener, places };
        let server = axum::serve(listener, routes).with_graceful_shutdown(stop).into_future();
        let grace = async {
            // A sender that is gone has stopped, too.
            let _ = was_stopped.wait_for(|stopped| *stopped).await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            ended = server => ended,
            () = grace => Ok(()),
        }
    }
}

async fn metrics(State(shown): State<Shown>) -> Response {
    match shown.telemetry.scrape(&shown.engine).await {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

async fn healthz(State(shown): State<Shown>) -> (StatusCode, String) {
    match tokio::time::timeout(SCRAPE_TIMEOUT, shown.engine.volumes()).await {
        Ok(Ok(_)) => (StatusCode::OK, "ok\n".to_owned()),
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the shards do not answer\n".to_owned()),
    }
}

async fn readyz(State(shown): State<Shown>) -> (StatusCode, &'static str) {
    match *shown.ready.borrow() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n"),
    }
}

/// A listener with a bound on connections and on their age.
struct Limited {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl axum::serve::Listener for Limited {
    type Io = Aged;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Aged, SocketAddr) {
        loop {
            let place = self.places.clone().acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let end = Box::pin(tokio::time::sleep(CONNECTION_AGE));
                    return (Aged { stream, end, _place: place }, from);
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed on the metrics listener");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends at [`CONNECTION_AGE`] and holds its place until it closes.
struct Aged {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Aged {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Aged {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
