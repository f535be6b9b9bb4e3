//! What one connection may expect, and what it cannot do to others.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tidemark_agent::frontend::memory::{Answers, MemoryTarget};
use tidemark_agent::frontend::nbd::{BindError, Options, bind_unix, serve_transmission, socket_path};
use tidemark_core::event::RequestError;
use tokio::io::AsyncWriteExt;

use crate::client::{Client, DISC, READ};
use crate::server::{Local, on_shard, until};

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i % 251) as u8 ^ seed).collect()
}

#[test]
fn answers_come_in_the_order_of_the_volume() {
    on_shard(async || {
        let server = Local::new(Answers::Held);
        let mut client = server.client().await;
        for cookie in 1..=3 {
            client.write(cookie, cookie * 4096, &[1; 4096]).await;
        }
        until(|| server.target.held() == 3).await;
        while server.target.release(false) {}
        for cookie in [3, 2, 1] {
            assert_eq!(client.reply().await, (cookie, 0));
        }
    });
}

#[test]
fn payloads_of_every_size_arrive_as_they_were_sent() {
    on_shard(async || {
        let server = Local::new(Answers::AtOnce);
        let mut client = server.client().await;
        let sizes = [512, 4096, 4608, 32 << 10, 128 << 10, 300 << 10, 5 << 20, 512, 32 << 20, 1 << 20];
        for (cookie, size) in sizes.into_iter().enumerate() {
            let (cookie, data) = (cookie as u64, pattern(size, cookie as u8));
            client.write(cookie, 512, &data).await;
            assert_eq!(client.reply().await, (cookie, 0));
            client.request(READ, cookie, 512, size as u32, &[]).await;
            assert_eq!(client.reply().await, (cookie, 0));
            assert!(client.data(size).await == data, "{size} bytes come back");
        }
    });
}

#[test]
fn pipelined_writes_of_mixed_sizes_are_not_mixed_up() {
    on_shard(async || {
        let server = Local::new(Answers::AtOnce);
        let mut client = server.client().await;
        let sizes: Vec<usize> = (0..60).map(|i| [512, 4096, 70_144, 131_072, 1024][i % 5]).collect();
        let mut offset = 0;
        for (cookie, size) in sizes.iter().enumerate() {
            client.write(cookie as u64, offset, &pattern(*size, cookie as u8)).await;
            offset += *size as u64;
        }
        for cookie in 0..sizes.len() {
            assert_eq!(client.reply().await, (cookie as u64, 0));
        }
        client.request(READ, 99, 0, offset as u32, &[]).await;
        assert_eq!(client.reply().await, (99, 0));
        for (cookie, size) in sizes.iter().enumerate() {
            assert!(client.data(*size).await == pattern(*size, cookie as u8), "write {cookie}");
        }
    });
}

#[test]
fn no_more_than_128_requests_are_taken_in_at_once() {
    on_shard(async || {
        let server = Local::new(Answers::Held);
        let mut client = server.client().await;
        for cookie in 0..200 {
            client.flush(cookie).await;
        }
        until(|| server.target.held() == 128).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(server.target.held(), 128);
        for cookie in 0..200 {
            until(|| server.target.held() > 0).await;
            server.target.release(true);
            assert_eq!(client.reply().await, (cookie, 0));
        }
    });
}

#[test]
fn no_more_than_32_mib_of_data_are_taken_in_at_once() {
    on_shard(async || {
        let server = Local::new(Answers::Held);
        let (mut read, write) = server.client().await.stream.into_split();
        let sender = tokio::task::spawn_local(async move {
            let mut client = Client { stream: tokio::io::join(tokio::io::empty(), write) };
            let data = vec![3; 1 << 20];
            for cookie in 0..40 {
                client.write(cookie, 0, &data).await;
            }
        });
        until(|| server.target.held() == 32).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(server.target.held(), 32);
        let mut client = Client { stream: tokio::io::join(&mut read, tokio::io::sink()) };
        for cookie in 0..40 {
            until(|| server.target.held() > 0).await;
            server.target.release(true);
            assert_eq!(client.reply().await, (cookie, 0));
        }
        sender.await.expect("all was sent");
    });
}

#[test]
fn a_client_that_does_not_read_its_answers_is_not_read_from() {
    on_shard(async || {
        let server = Local::new(Answers::AtOnce);
        let mut client = server.client().await;
        let taken = || server.options.metrics.requests.get();
        for cookie in 0..64 {
            client.request(READ, cookie, 0, 1 << 20, &[]).await;
        }
        until(|| taken() >= 32).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(taken() < 40, "{} reads of 1 MiB taken in", taken());
        for cookie in 0..64 {
            assert_eq!(client.reply().await, (cookie, 0));
            client.data(1 << 20).await;
        }
    });
}

#[test]
fn a_request_that_the_volume_drops_is_answered() {
    on_shard(async || {
        let server = Local::new(Answers::Held);
        let mut client = server.client().await;
        client.flush(7).await;
        until(|| server.target.held() == 1).await;
        server.target.forget();
        assert_eq!(client.reply().await, (7, 108));
    });
}

#[test]
fn errors_of_the_volume_have_their_numbers() {
    on_shard(async || {
        let server = Local::new(Answers::AtOnce);
        let mut client = server.client().await;
        for (error, number) in [(RequestError::Io, 5), (RequestError::Invalid, 22), (RequestError::NotServing, 108)] {
            server.target.set_failing(Some(error));
            client.write(1, 0, &[0; 512]).await;
            assert_eq!(client.reply().await, (1, number));
            client.request(READ, 2, 0, 512, &[]).await;
            assert_eq!(client.reply().await, (2, number));
        }
        assert_eq!(server.options.metrics.errors.get(), 6);
    });
}

#[test]
fn a_goodbye_waits_for_the_answers() {
    on_shard(async || {
        let server = Local::new(Answers::Held);
        let mut client = server.client().await;
        client.flush(1).await;
        client.request(DISC, 2, 0, 0, &[]).await;
        until(|| server.target.held() == 1).await;
        server.target.release(true);
        assert_eq!(client.reply().await, (1, 0));
        client.closed().await;
        until(|| server.options.metrics.open.get() == 0).await;
    });
}

#[test]
fn a_client_that_breaks_the_protocol_loses_only_its_own_connection() {
    on_shard(async || {
        let server = Local::new(Answers::AtOnce);
        let (mut good, mut bad) = (server.client().await, server.client().await);
        bad.stream.write_all(&[0xff; 64]).await.expect("garbage");
        bad.closed().await;
        until(|| server.options.metrics.malformed.get() == 1).await;
        good.flush(1).await;
        assert_eq!(good.reply().await, (1, 0));
    });
}

#[test]
fn a_silent_client_is_closed_when_its_time_is_over() {
    on_shard(async || {
        let options = Options { handshake_timeout: Duration::from_millis(500), ..Options::default() };
        let server = Local::with(Answers::AtOnce, options);
        let mut silent = Client::greet(server.connect().await).await;
        silent.closed().await;
        assert_eq!(server.options.metrics.handshake_timeouts.get(), 1);
    });
}

#[test]
fn a_connection_behind_its_handshake_may_be_idle() {
    on_shard(async || {
        let options = Options { handshake_timeout: Duration::from_secs(1), ..Options::default() };
        let server = Local::with(Answers::AtOnce, options);
        let mut client = server.client().await;
        tokio::time::sleep(Duration::from_millis(1200)).await;
        client.flush(1).await;
        assert_eq!(client.reply().await, (1, 0));
    });
}

#[test]
fn connections_beyond_the_limit_are_turned_away_until_one_ends() {
    on_shard(async || {
        let server = Local::with(Answers::AtOnce, Options { max_connections: 2, ..Options::default() });
        let first = server.client().await;
        let _second = server.client().await;
        Client { stream: server.connect().await }.closed().await;
        assert_eq!(server.options.metrics.turned_away.get(), 1);
        drop(first);
        until(|| server.options.metrics.open.get() == 1).await;
        server.client().await;
    });
}

#[test]
fn a_volume_that_does_not_serve_takes_no_sessions() {
    on_shard(async || {
        let server = Local::new(Answers::AtOnce);
        server.target.set_serving(false);
        let mut client = Client::greet(server.connect().await).await;
        assert_eq!(client.go("vol").await, 0x8000_0007);
        server.target.set_serving(true);
        assert_eq!(client.go("").await, 1, "the empty name is the socket's volume");
    });
}

#[test]
fn the_end_of_a_listener_ends_its_connections() {
    on_shard(async || {
        let server = Local::new(Answers::AtOnce);
        let mut client = server.client().await;
        server.listener.abort();
        client.closed().await;
        assert_eq!(server.options.metrics.open.get(), 0);
    });
}

#[test]
fn a_socket_that_a_dead_process_left_is_replaced_and_a_live_one_is_not() {
    on_shard(async || {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = socket_path(dir.path(), "vol").expect("path");
        let first = bind_unix(&path).expect("a new socket, with its directory");
        assert!(matches!(bind_unix(&path), Err(BindError::InUse(_))));
        drop(first);
        assert!(path.exists(), "a socket outlives its listener");
        bind_unix(&path).expect("the dead socket is replaced");
    });
}

#[test]
fn volume_names_are_never_paths() {
    let dir = std::path::Path::new("/run/tidemark");
    for name in ["", ".", "..", "a/b", "../x", "a\0b", &"x".repeat(200)] {
        assert!(socket_path(dir, name).is_err(), "{name:?}");
    }
    assert!(socket_path(dir, "pg-data.1").is_ok());
}

/// What became of a connection that started in the transmission phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Nothing,
    Over,
    Settled,
}

#[test]
fn a_connection_without_a_handshake_is_over_at_once_and_settled_with_its_last_answer() {
    on_shard(async || {
        let target = Rc::new(MemoryTarget::new(64 << 20, Answers::Held));
        let told = Rc::new(Cell::new(Told::Nothing));
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("sockets");
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).expect("non-blocking");
        }
        let (served, over, settled) = (target.clone(), told.clone(), told.clone());
        tokio::task::spawn_local(async move {
            serve_transmission(ours, served, Options::default(), move || over.set(Told::Over)).await;
            settled.set(Told::Settled);
        });
        let mut client = Client { stream: tokio::net::UnixStream::from_std(theirs).expect("stream") };
        for cookie in [7, 8] {
            client.write(cookie, cookie * 4096, &[1; 4096]).await;
        }
        until(|| target.held() == 2).await;
        assert!(target.release(true));
        assert_eq!(client.reply().await.1, 0);
        drop(client);
        until(|| told.get() == Told::Over).await;
        assert!(target.release(true));
        until(|| told.get() == Told::Settled).await;
    });
}
