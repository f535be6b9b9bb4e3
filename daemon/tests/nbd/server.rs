//! Servers for the tests.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;
use tidemark_agent::frontend::memory::{Answers, MemoryTarget};
use tidemark_agent::frontend::nbd::{Options, SingleExport, bind_unix, serve_unix};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::client::Client;

/// Runs a test on the kind of runtime that a shard has.
pub fn on_shard(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let test = async { tokio::time::timeout(Duration::from_secs(60), test()).await.expect("the test ends in time") };
    LocalSet::new().block_on(&runtime, test);
}

/// Lets other tasks run until `done`.
pub async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A volume served on a unix socket of this thread.
pub struct Local {
    pub target: Rc<MemoryTarget>,
    pub options: Options,
    pub path: PathBuf,
    pub listener: tokio::task::JoinHandle<()>,
    _dir: TempDir,
}

impl Local {
    pub fn new(answers: Answers) -> Self {
        Self::with(answers, Options::default())
    }

    pub fn with(answers: Answers, options: Options) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("nbd.sock");
        let target = Rc::new(MemoryTarget::new(64 << 20, answers));
        let exports = Rc::new(SingleExport::new("vol", target.clone()));
        let listener = bind_unix(&path).expect("socket");
        let listener = tokio::task::spawn_local(serve_unix(listener, exports, options.clone()));
        Self { target, options, path, listener, _dir: dir }
    }

    pub async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.expect("connection")
    }

    pub async fn client(&self) -> Client<UnixStream> {
        Client::start(self.connect().await, "vol").await
    }
}

/// A volume served by a thread of its own, for clients that are programs.
pub struct Remote {
    dir: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Remote {
    pub fn start(size: u64) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let path = dir.path().join("nbd.sock");
        let thread = std::thread::spawn(move || {
            on_runtime(async move {
                let target = Rc::new(MemoryTarget::new(size, Answers::AtOnce));
                let exports = Rc::new(SingleExport::new("vol", target));
                let listener = bind_unix(&path).expect("socket");
                ready.send(()).expect("the test waits");
                tokio::select! {
                    () = serve_unix(listener, exports, Options::default()) => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().expect("the server starts");
        Self { dir, stop: Some(stop), thread: Some(thread) }
    }

    /// For files of the test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///vol?socket={}", self.dir.path().join("nbd.sock").display())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server panicked");
        }
    }
}

/// Blocks on `future` on a runtime like a shard's.
pub fn on_runtime(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    LocalSet::new().block_on(&runtime, future);
}
