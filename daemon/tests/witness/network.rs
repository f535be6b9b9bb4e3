//! A network that carries what a client sends and swallows what comes back.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A way to one port of this host. Connections whose answers were swallowed end when it speaks again.
pub struct Network {
    /// Where it begins.
    pub port: u16,
    is_mute: Arc<watch::Sender<bool>>,
}

impl Network {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let network = Self { port: listener.local_addr().unwrap().port(), is_mute: Arc::new(watch::channel(false).0) };
        tokio::spawn(accept(listener, port, network.is_mute.clone()));
        network
    }

    /// From now on answers are swallowed, or carried.
    pub fn mute(&self, is_mute: bool) {
        self.is_mute.send_replace(is_mute);
    }
}

async fn accept(listener: TcpListener, port: u16, is_mute: Arc<watch::Sender<bool>>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { continue };
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        let is_mute = is_mute.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = carry(from_client, to_server) => {}
                () = answer(from_server, to_client, is_mute) => {}
            }
        });
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let _ = tokio::io::copy(&mut from, &mut to).await; // either side may end it
}

async fn answer(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut is_mute: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 << 10];
    let mut swallowed = false;
    loop {
        let len = tokio::select! {
            Ok(len @ 1..) = from.read(&mut buffer) => len,
            Ok(()) = is_mute.changed(), if swallowed => 0,
            else => return,
        };
        match *is_mute.borrow() {
            true => swallowed = true,
            false if swallowed => return,
            false => {}
        }
        if !swallowed && to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}
