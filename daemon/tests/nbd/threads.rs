//! A connection that is accepted on one thread and served on another, where the volume lives.

use std::rc::Rc;

use tidemark_agent::frontend::memory::{Answers, MemoryTarget};
use tidemark_agent::frontend::nbd::{
    Export, ExportInfo, ExportResolver, HandOver, Options, TcpSecurity, serve_handed_over, serve_tcp,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::client::{ACK, Client};
use crate::server::{on_runtime, on_shard};
use crate::tls::{Pki, start_tls, try_io};

/// Knows a volume of another thread.
struct Other {
    shard: UnboundedSender<HandOver>,
}

impl ExportResolver for Other {
    fn resolve(&self, name: &str) -> Option<Export> {
        let shard = self.shard.clone();
        let info = ExportInfo { name: "vol".into(), size: 64 << 20, read_only: false, serving: true };
        let send = Box::new(move |connection| shard.send(connection).expect("the shard runs"));
        (name == "vol").then_some(Export::Elsewhere { info, send })
    }

    fn list(&self) -> Vec<String> {
        vec!["vol".into()]
    }
}

/// A shard of its own thread: serves what it is handed until the sender is gone.
fn shard() -> (UnboundedSender<HandOver>, std::thread::JoinHandle<()>) {
    let (sender, mut connections) = unbounded_channel::<HandOver>();
    let thread = std::thread::spawn(move || {
        on_runtime(async move {
            let target = Rc::new(MemoryTarget::new(64 << 20, Answers::AtOnce));
            while let Some(connection) = connections.recv().await {
                assert_eq!(connection.export(), "vol");
                let served = serve_handed_over(connection, target.clone(), Options::default());
                tokio::task::spawn_local(served);
            }
        });
    });
    (sender, thread)
}

/// Serves on this thread for as long as `test` runs.
fn with_server(security: TcpSecurity, test: impl AsyncFnOnce(u16)) {
    let (sender, thread) = shard();
    on_shard(async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let port = listener.local_addr().expect("address").port();
        let serve = serve_tcp(listener, Rc::new(Other { shard: sender }), security, Options::default());
        let serve = tokio::task::spawn_local(serve);
        test(port).await;
        serve.abort();
        let _ = serve.await;
    });
    thread.join().expect("the shard ends well");
}

#[test]
fn a_plain_connection_moves_to_the_volume() {
    with_server(TcpSecurity::Insecure, async |port| {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connection");
        try_io(&mut Client::start(stream, "vol").await).await;
    });
}

#[test]
fn a_tls_connection_moves_to_the_volume() {
    let pki = Pki::new();
    with_server(pki.server(), async |port| {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connection");
        let mut client = start_tls(stream, &pki.client()).await.expect("TLS");
        assert_eq!(client.go("vol").await, ACK);
        try_io(&mut client).await;
    });
}

#[test]
fn requests_sent_behind_the_handshake_move_along() {
    with_server(TcpSecurity::Insecure, async |port| {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connection");
        let mut client = Client::greet(stream).await;
        let mut message = b"IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x03vol\0\0".to_vec();
        message.extend(b"\x25\x60\x95\x13\0\0\0\x03\0\0\0\0\0\0\0\x05");
        message.extend([0; 12]);
        tokio::io::AsyncWriteExt::write_all(&mut client.stream, &message).await.expect("both at once");
        client.data(2 * 20 + 12 + 14 + 20).await;
        assert_eq!(client.reply().await, (5, 0));
    });
}
