//! How fast the stream between two agents is, without disks: 4 KiB appends answered by acks at several depths, and a stream of
//! large appends. Each end has its own thread and current-thread runtime, as a shard has.
//!
//! `cargo run --release -p tidemark-agent --example peer_pingpong [-- PAYLOAD_BYTES DEPTH]`

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tidemark_agent::peer::{
    OwnFiles, PeerAddress, PeerIdentity, PeerStream, PeerTrust, Refusals, StreamAcceptor, Tls, Transport,
    connect_stream, serve_data,
};
use tidemark_core::config::{Config, Mode, Since};
use tidemark_core::ship::{Ack, Append, Hello, Message};
use tidemark_core::types::*;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// How long each row is measured.
const ROW: Duration = Duration::from_secs(2);
/// Payload bytes and depth of each row.
const ROWS: [(usize, u64); 6] = [(4096, 1), (4096, 8), (4096, 32), (4096, 128), (131_072, 8), (1 << 20, 8)];
const EPOCH: Epoch = Epoch { major: 1, minor: 0 };
const DIALLER: PeerIdentity = PeerIdentity { site: SiteId([1; 16]), node: NodeId([1; 16]) };
const LISTENER: PeerIdentity = PeerIdentity { site: SiteId([2; 16]), node: NodeId([2; 16]) };

fn main() -> Fallible<()> {
    println!(
        "{:<10} {:>9} {:>6} {:>12} {:>10} {:>10} {:>14}",
        "security", "payload", "depth", "messages/s", "MiB/s", "us/rtt", "CPU s/100k"
    );
    let directory = tempfile::tempdir()?;
    let (dialler, listener) = secured(directory.path())?;
    for (name, dialler, listener) in [
        ("plain", Transport::insecure(Arc::default()), Transport::insecure(Arc::default())),
        ("mutual TLS", dialler, listener),
    ] {
        let address = start_listener(listener)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        for (payload, depth) in rows()? {
            let row = runtime.block_on(measure(&dialler, address, (payload, depth)))?;
            println!("{name:<10} {payload:>9} {depth:>6} {row}");
        }
    }
    Ok(())
}

/// The row that the arguments name, or all.
fn rows() -> Fallible<Vec<(usize, u64)>> {
    let mut args = std::env::args().skip(1);
    match (args.next(), args.next()) {
        (Some(payload), Some(depth)) => Ok(vec![(payload.parse()?, depth.parse()?)]),
        _ => Ok(ROWS.to_vec()),
    }
}

/// Two transports that trust one CA.
fn secured(directory: &std::path::Path) -> Fallible<(Transport, Transport)> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_file = directory.join("ca.pem");
    fs::write(&ca_file, ca.self_signed(&ca_key)?.pem())?;
    let issuer = Issuer::new(ca, ca_key);
    let transport = |identity: PeerIdentity, peer: PeerIdentity| -> Fallible<Transport> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().as_str().try_into()?)];
        let path = |suffix| directory.join(format!("{}.{suffix}", identity.node));
        fs::write(path("crt"), params.signed_by(&key, &issuer)?.pem())?;
        fs::write(path("key"), key.serialize_pem())?;
        let trust = PeerTrust { site: Some(peer.site), ca: vec![ca_file.clone()] };
        let tls = Tls::load(identity, OwnFiles { cert: path("crt"), key: path("key") }, vec![trust])?;
        Ok(Transport::mutual(tls, Arc::new(Refusals::default())))
    };
    Ok((transport(DIALLER, LISTENER)?, transport(LISTENER, DIALLER)?))
}

/// Answers every append with an ack; those that arrive together with one each, as separate flushes would be.
struct Echo;

impl StreamAcceptor for Echo {
    fn accept(&self, _: VolumeId, stream: PeerStream) {
        tokio::spawn(echo(stream));
    }
}

async fn echo(mut stream: PeerStream) {
    let mut batch = Vec::new();
    while stream.inbound.recv_many(&mut batch, 256).await.is_ok() {
        for message in batch.drain(..) {
            if let Message::Append(append) = message
                && stream.outbound.send(ack(append.header.len() as u64)).is_err()
            {
                return;
            }
        }
    }
}

fn start_listener(transport: Transport) -> Fallible<SocketAddr> {
    let (sender, receiver) = oneshot::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let _ = sender.send(listener.local_addr().expect("an address"));
            serve_data(listener, transport, Arc::new(Echo), std::future::pending()).await.expect("serving");
        });
    });
    Ok(receiver.blocking_recv()?)
}

async fn measure(transport: &Transport, address: SocketAddr, (payload, depth): (usize, u64)) -> Fallible<String> {
    let peer = PeerAddress { host: address.ip().to_string(), port: address.port(), site: Some(LISTENER.site) };
    let mut stream = connect_stream(&peer, address.port(), transport).await?;
    stream.outbound.send(hello())?;
    let content = Bytes::from(vec![0x5a; payload]);
    let header = Bytes::from(vec![1; 192]);
    let append = || {
        let payload = vec![content.clone()];
        Message::Append(Append { epoch: EPOCH, header: header.clone(), payload, sync: false })
    };
    let (mut answers, mut count) = (Vec::new(), 0u64);
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    for _ in 0..depth {
        stream.outbound.send(append())?;
    }
    while start.elapsed() < ROW {
        let got = stream.inbound.recv_many(&mut answers, 256).await?;
        answers.clear();
        count += got as u64;
        for _ in 0..got {
            stream.outbound.send(append())?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate = count as f64 / seconds;
    Ok(format!(
        "{rate:>12.0} {:>10.0} {:>10.1} {:>14.2}",
        rate * payload as f64 / f64::from(1 << 20),
        seconds * 1e6 * depth as f64 / count as f64,
        (cpu_seconds()? - cpu) * 1e5 / count as f64,
    ))
}

fn cpu_seconds() -> Fallible<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}

fn ack(lsn: u64) -> Message {
    Message::Ack(Ack {
        epoch: EPOCH,
        generation: GenId([3; 16]),
        incarnation: Incarnation(1),
        appended: Lsn(lsn),
        durable: Lsn(lsn),
        floor: Lsn(0),
        boot: BootId([4; 16]),
    })
}

fn hello() -> Message {
    let config = Config {
        epoch: EPOCH,
        nonce: Nonce([1; 16]),
        proposer: DIALLER.node,
        since: Since::default(),
        base: Since::default(),
        primary: None,
        leader: DIALLER.node,
        lease_gen: 0,
        member_rev: 0,
        sites: vec![DIALLER.site],
        mode: Mode::Sync,
        generation: GenId([2; 16]),
        forced: false,
        hands_over: false,
    };
    Message::Hello(Box::new(Hello {
        version: 1,
        features: 0,
        volume: VolumeId([7; 16]),
        site: DIALLER.site,
        node: DIALLER.node,
        boot: BootId([3; 16]),
        layout: tidemark_core::layout::Layout::one(VolumeId([7; 16]), 1 << 30),
        config,
        is_primary: true,
        needs_seed: false,
        is_suspect: false,
        history: vec![],
        floor: Boundary::default(),
        tail: Boundary::default(),
        remembered: None,
        difference: None,
    }))
}
