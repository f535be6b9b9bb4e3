//! Tasks that stay on their thread.
//!
//! A shard is one thread with a current-thread runtime, and what it owns is not `Send`. A `LocalSet` would take such tasks, but
//! it lies on top of the runtime: each socket or completion that wakes one of its tasks costs a write to the runtime's eventfd
//! and another turn through epoll, several per request. Tasks of the runtime itself cost neither; their type has to promise
//! `Send`, and the promise is kept by a wrapper that panics when it is touched on another thread, which never happens on a
//! current-thread runtime.

use std::future::Future;

use send_wrapper::SendWrapper;
use tokio::task::JoinHandle;

/// `future` as a task of the current-thread runtime that it is called on.
///
/// # Panics
/// On a runtime with several threads, when one of the others polls it.
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    tokio::spawn(SendWrapper::new(future))
}

/// As [`spawn`], for a `JoinSet`.
pub fn bound<F: Future>(future: F) -> SendWrapper<F> {
    SendWrapper::new(future)
}
