//! A witness in a real etcd: one member, started here.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidemark_agent::config::{EtcdWitness, HostPort, Security, TlsFiles};
use tidemark_agent::witness::{Etcd, Store, WitnessError};
use tidemark_core::format::witness::Cell;
use tidemark_core::types::NodeId;

use crate::certificates::Pki;
use crate::history::History;
use crate::network::Network;
use crate::program::{PATIENCE, Program};
use crate::{Backend, over};

const CELL: Cell = Cell::Probe(NodeId([5; 16]));

/// One member of its own.
pub struct Server {
    dir: TempDir,
    client: u16,
    peer: u16,
    pki: Option<Pki>,
    program: Program,
}

/// A member that answers: one that listens may still be electing itself.
pub async fn start() -> Server {
    let server = Server::new(None);
    server.witness().read(CELL).await.unwrap();
    server
}

pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

impl Server {
    fn new(pki: Option<Pki>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self { dir, client: free_port(), peer: free_port(), pki, program: Program::default() };
        server.run();
        server
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn run(&mut self) {
        let scheme = if self.pki.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{}", self.client);
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let mut command = Command::new("etcd");
        command.args(["--name", "w", "--log-level", "error", "--data-dir"]).arg(self.data());
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("w={peer}")]);
        if let Some(pki) = &self.pki {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&pki.files.ca);
            command.arg("--cert-file").arg(&pki.files.cert).arg("--key-file").arg(&pki.files.key);
        }
        self.program.run(command, "package etcd-server", &self.dir.path().join("log"), self.client);
    }

    fn address(&self) -> HostPort {
        address(self.client)
    }

    fn config(&self, endpoints: Vec<HostPort>) -> EtcdWitness {
        let security = self.pki.as_ref().map_or(Security::Insecure, |pki| Security::Mutual(pki.files.clone()));
        EtcdWitness { endpoints, prefix: "/t/".to_owned(), security }
    }

    fn over(&self, endpoints: Vec<HostPort>) -> Box<dyn Store> {
        Box::new(Etcd::new(&self.config(endpoints)).unwrap())
    }
}

fn address(port: u16) -> HostPort {
    HostPort::parse(&format!("127.0.0.1:{port}")).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if entry.is_dir() {
            copy(&entry, &to.join(name));
        } else {
            fs::copy(entry, to.join(name)).unwrap();
        }
    }
}

impl Backend for Server {
    fn store(&self) -> Box<dyn Store> {
        self.over(vec![self.address()])
    }

    fn save(&mut self) {
        self.program.stop();
        copy(&self.data(), &self.dir.path().join("saved"));
        self.run();
    }

    fn restore(&mut self) {
        self.program.stop();
        fs::remove_dir_all(self.data()).unwrap();
        copy(&self.dir.path().join("saved"), &self.data());
        self.run();
    }

    fn wipe(&mut self) {
        self.program.stop();
        fs::remove_dir_all(self.data()).unwrap();
        self.run();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_lost_on_the_network_is_found_through_another_member() {
    let server = start().await;
    let network = Network::to(server.client).await;
    let (muted, direct) = (address(network.port), server.address());
    let history = History::default();
    let witness = over(server.over(vec![muted.clone(), direct]));
    history.replace(&witness, CELL, None).await.unwrap();
    network.mute(true);
    // The first endpoint carries the change there and no answer back; the second meets its value.
    for _ in 0..2 {
        let now = backend_read(&server).await;
        history.replace(&witness, CELL, now.as_ref()).await.unwrap();
    }
    assert_eq!(history.check(backend_read(&server).await.as_ref()), 3);
}

async fn backend_read(server: &Server) -> Option<tidemark_core::group::witness::Found> {
    server.witness().read(CELL).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_without_any_answer_is_unavailable_and_found_once_the_network_is_back() {
    let server = start().await;
    let network = Network::to(server.client).await;
    let store = server.over(vec![address(network.port)]);
    let metrics = tidemark_agent::telemetry::WitnessMetrics::default();
    let witness = tidemark_agent::witness::Witness::over(store, NodeId([6; 16]), Duration::from_secs(1), metrics);
    witness.read(CELL).await.unwrap();
    network.mute(true);
    let (history, began) = (History::default(), Instant::now());
    let outcome = history.replace(&witness, CELL, None).await;
    assert!(matches!(outcome, Err(WitnessError::Unavailable(_))), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "a call ends within twice its time");
    network.mute(false);
    let found = backend_read(&server).await;
    assert_eq!(history.check(found.as_ref()), 1, "it had happened");
    let began = Instant::now();
    while witness.read(CELL).await != Ok(found.clone()) {
        assert!(began.elapsed() < PATIENCE, "the connection does not come back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_are_dead_or_silent_are_passed_over() {
    let server = start().await;
    let silent = Network::to(server.client).await;
    silent.mute(true);
    let endpoints = vec![address(free_port()), address(silent.port), server.address()];
    let metrics = tidemark_agent::telemetry::WitnessMetrics::default();
    let (store, node) = (server.over(endpoints), NodeId([6; 16]));
    let witness = tidemark_agent::witness::Witness::over(store, node, Duration::from_secs(6), metrics);
    for _ in 0..3 {
        witness.probe(NodeId([5; 16])).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_unavailable_and_comes_back() {
    let mut server = start().await;
    let witness = server.witness();
    witness.probe(NodeId([5; 16])).await.unwrap();
    server.program.stop();
    let away = witness.read(CELL).await;
    assert!(matches!(away, Err(WitnessError::Unavailable(_))), "{away:?}");
    server.run();
    let began = Instant::now();
    while let Err(error) = witness.probe(NodeId([5; 16])).await {
        assert!(matches!(error, WitnessError::Unavailable(_)) && began.elapsed() < PATIENCE, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_listens_and_is_no_etcd_is_named() {
    let nothing = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = nothing.local_addr().unwrap().port();
    std::thread::spawn(move || {
        use std::io::Write;
        for stream in nothing.incoming() {
            let _ = stream.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"); // the client may be gone
        }
    });
    let config = EtcdWitness { endpoints: vec![address(port)], prefix: "/t/".to_owned(), security: Security::Insecure };
    let read = over(Box::new(Etcd::new(&config).unwrap())).read(CELL).await;
    let Err(WitnessError::Unavailable(why)) = read else { panic!("{read:?}") };
    assert!(why.contains(&port.to_string()), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_both_sides_want_certificates_of_their_authority() {
    let server = Server::new(Some(Pki::new()));
    server.witness().probe(NodeId([5; 16])).await.unwrap();
    let (good, stranger) = (server.pki.as_ref().unwrap().files.clone(), Pki::new());
    let as_stranger = TlsFiles { ca: good.ca.clone(), ..stranger.files.clone() };
    let of_stranger = TlsFiles { ca: stranger.files.ca.clone(), ..good };
    let read = async |files| {
        let config = EtcdWitness { security: Security::Mutual(files), ..server.config(vec![server.address()]) };
        over(Box::new(Etcd::new(&config).unwrap())).read(CELL).await
    };
    let not_this_server = read(of_stranger).await;
    assert!(matches!(not_this_server, Err(WitnessError::Refused(_))), "{not_this_server:?}");
    // A server that does not accept the client's certificate may close the connection without a word.
    let stranger = read(as_stranger).await;
    assert!(matches!(stranger, Err(WitnessError::Unavailable(_) | WitnessError::Refused(_))), "{stranger:?}");
    let plain = EtcdWitness { security: Security::Insecure, ..server.config(vec![server.address()]) };
    let read = over(Box::new(Etcd::new(&plain).unwrap())).read(CELL).await;
    assert!(matches!(read, Err(WitnessError::Unavailable(_))), "{read:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_refused_does_not_keep_the_others_away() {
    let (good, stranger) = (Server::new(Some(Pki::new())), Server::new(Some(Pki::new())));
    let witness = over(good.over(vec![stranger.address(), good.address()]));
    witness.probe(NodeId([5; 16])).await.unwrap();
    let alone = over(good.over(vec![stranger.address(), address(free_port())])).read(CELL).await;
    assert!(matches!(alone, Err(WitnessError::Refused(_))), "{alone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_certificates_are_taken_while_it_runs() {
    let server = Server::new(Some(Pki::new()));
    let (good, stranger) = (server.pki.as_ref().unwrap().files.clone(), Pki::new());
    let mine = tempfile::tempdir().unwrap();
    let files = TlsFiles { ca: good.ca, cert: mine.path().join("cert"), key: mine.path().join("key") };
    fs::copy(&stranger.files.cert, &files.cert).unwrap();
    fs::copy(&stranger.files.key, &files.key).unwrap();
    let config = EtcdWitness { security: Security::Mutual(files.clone()), ..server.config(vec![server.address()]) };
    let witness = over(Box::new(Etcd::new(&config).unwrap()));
    assert!(witness.read(CELL).await.is_err());
    std::thread::sleep(Duration::from_millis(20)); // a file's time has to differ
    fs::copy(&good.cert, &files.cert).unwrap();
    fs::copy(&good.key, &files.key).unwrap();
    assert_eq!(witness.read(CELL).await, Ok(None));
}

#[test]
fn certificates_that_are_not_there_are_refused_by_name() {
    let path = |name: &str| PathBuf::from("/nonexistent").join(name);
    let files = TlsFiles { cert: path("cert"), key: path("key"), ca: path("ca") };
    let config = EtcdWitness { endpoints: vec![address(1)], prefix: "/".to_owned(), security: Security::Mutual(files) };
    let Err(WitnessError::Refused(why)) = Etcd::new(&config) else { panic!("taken") };
    assert!(why.contains("/nonexistent/"), "{why}");
}
