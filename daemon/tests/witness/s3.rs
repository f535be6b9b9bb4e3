//! A witness in a real object store: versitygw over a directory, started here.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidemark_agent::config::{Name, S3Endpoint, S3Witness};
use tidemark_agent::telemetry::WitnessMetrics;
use tidemark_agent::witness::{S3, Store, Witness, WitnessError};
use tidemark_core::format::witness::Cell;
use tidemark_core::types::NodeId;

use crate::certificates::Pki;
use crate::etcd::free_port;
use crate::history::History;
use crate::network::Network;
use crate::program::{PATIENCE, Program};
use crate::untrue::{Fault, untrue};
use crate::{Backend, over};

const CELL: Cell = Cell::Lease(NodeId([5; 16]));
const KEY: &str = "agent";
const SECRET: &str = "the-secret-of-the-agent";
const BUCKET: &str = "cells";

/// A store of its own with one bucket.
pub struct Server {
    dir: TempDir,
    pub port: u16,
    pki: Option<Pki>,
    program: Program,
}

pub async fn start() -> Server {
    Server::new(None)
}

impl Server {
    fn new(pki: Option<Pki>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self { dir, port: free_port(), pki, program: Program::default() };
        fs::create_dir_all(server.objects()).unwrap();
        fs::write(server.credentials(), credentials(SECRET)).unwrap();
        server.run();
        server
    }

    fn buckets(&self) -> PathBuf {
        self.dir.path().join("buckets")
    }

    fn objects(&self) -> PathBuf {
        self.buckets().join(BUCKET)
    }

    fn saved(&self) -> PathBuf {
        self.dir.path().join("saved")
    }

    fn credentials(&self) -> PathBuf {
        self.dir.path().join("credentials")
    }

    fn run(&mut self) {
        let mut command = Command::new("versitygw");
        command.args(["--quiet", "--keep-alive", "--port", &format!("127.0.0.1:{}", self.port)]);
        command.env("ROOT_ACCESS_KEY", KEY).env("ROOT_SECRET_KEY", SECRET);
        if let Some(pki) = &self.pki {
            command.arg("--cert").arg(&pki.files.cert).arg("--key").arg(&pki.files.key);
        }
        command.arg("posix").arg(self.buckets());
        self.program.run(command, "hack/setup", &self.dir.path().join("log"), self.port);
    }

    /// A client's way to it through `port`.
    pub fn config(&self, port: u16) -> S3Witness {
        let scheme = if self.pki.is_some() { "https" } else { "http" };
        S3Witness {
            endpoint: S3Endpoint::parse(&format!("{scheme}://127.0.0.1:{port}")),
            bucket: Name::parse(BUCKET).unwrap(),
            prefix: "/t/".to_owned(),
            region: "us-east-1".to_owned(),
            credentials: Some(self.credentials()),
            ca: self.pki.as_ref().map(|pki| pki.files.ca.clone()),
            path_style: true,
        }
    }
}

fn credentials(secret: &str) -> String {
    format!("[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {secret}\n")
}

pub fn store(config: &S3Witness) -> Box<dyn Store> {
    Box::new(S3::new(config).unwrap())
}

/// With the attributes, in which the server keeps its tags.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = Command::new("cp").args(["-a", "-T"]).arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

impl Backend for Server {
    fn store(&self) -> Box<dyn Store> {
        store(&self.config(self.port))
    }

    fn save(&mut self) {
        copy(&self.objects(), &self.saved());
    }

    fn restore(&mut self) {
        fs::remove_dir_all(self.objects()).unwrap();
        copy(&self.saved(), &self.objects());
    }

    fn wipe(&mut self) {
        fs::remove_dir_all(self.objects()).unwrap();
        fs::create_dir(self.objects()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_without_any_answer_is_unavailable_and_found_once_the_network_is_back() {
    let server = start().await;
    let network = Network::to(server.port).await;
    let store = store(&server.config(network.port));
    let witness = Witness::over(store, NodeId([6; 16]), Duration::from_secs(1), WitnessMetrics::default());
    witness.probe(NodeId([6; 16])).await.unwrap();
    network.mute(true);
    let (history, began) = (History::default(), Instant::now());
    let outcome = history.replace(&witness, CELL, None).await;
    assert!(matches!(outcome, Err(WitnessError::Unavailable(_))), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "a call ends within twice its time");
    network.mute(false);
    let found = server.witness().read(CELL).await.unwrap();
    assert_eq!(history.check(found.as_ref()), 1, "it had happened");
    let began = Instant::now();
    while witness.read(CELL).await != Ok(found.clone()) {
        assert!(began.elapsed() < PATIENCE, "the connection does not come back");
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
    assert_eq!(witness.read(CELL).await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_keep_the_condition_is_refused_by_what_it_does_and_changed_no_more() {
    for (fault, what) in [
        (Fault::IgnoresTag, "it ignores the condition of a change: "),
        (Fault::IgnoresAbsence, "it ignores the condition of a change that something does not exist"),
        (Fault::ComparesFirst, "it makes several changes of one value at once"),
    ] {
        let server = start().await;
        let port = untrue(server.store(), fault).await;
        let witness = over(store(&server.config(port)));
        let history = History::default();
        let change = history.replace(&witness, CELL, None).await;
        let Err(WitnessError::Refused(why)) = change else { panic!("{fault:?}: {change:?}") };
        assert!(why.starts_with(what), "{fault:?}: {why}");
        assert_eq!(server.witness().read(CELL).await, Ok(None), "{fault:?}: nothing was changed");
        assert!(witness.fault().is_some_and(|shown| shown.contains(&why)), "an answered read does not hide it");
        let check = witness.probe(NodeId([5; 16])).await;
        assert_eq!(check, Err(WitnessError::Refused(why)), "a check says so, too");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_not_there_is_refused_and_is_no_empty_cell() {
    let server = start().await;
    let config = S3Witness { bucket: Name::parse("other").unwrap(), ..server.config(server.port) };
    let witness = over(store(&config));
    let read = witness.read(CELL).await;
    let Err(WitnessError::Refused(why)) = read else { panic!("{read:?}") };
    assert!(why.contains("NoSuchBucket"), "{why}");
    let change = History::default().replace(&witness, CELL, None).await;
    assert!(matches!(change, Err(WitnessError::Refused(_))), "{change:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_keys_are_refused_without_telling_them_and_renewed_ones_taken_while_it_runs() {
    let server = start().await;
    fs::write(server.credentials(), credentials("another-secret")).unwrap();
    let witness = server.witness();
    let read = witness.read(CELL).await;
    let Err(WitnessError::Refused(why)) = read else { panic!("{read:?}") };
    assert!(why.contains("SignatureDoesNotMatch") && !why.contains("another-secret"), "{why}");
    std::thread::sleep(Duration::from_millis(20)); // a file's time has to differ
    fs::write(server.credentials(), credentials(SECRET)).unwrap();
    assert_eq!(witness.read(CELL).await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_known_by_its_certificate() {
    let (server, stranger) = (Server::new(Some(Pki::new())), Pki::new());
    server.witness().probe(NodeId([5; 16])).await.unwrap();
    for ca in [Some(stranger.files.ca.clone()), None] {
        let config = S3Witness { ca, ..server.config(server.port) };
        let read = over(store(&config)).read(CELL).await;
        assert!(matches!(read, Err(WitnessError::Refused(_))), "{read:?}");
    }
}
