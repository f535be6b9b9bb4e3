//! The witness of two sites: a directory, or an etcd or an object store of their own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::process;
use crate::stage::Stage;

/// A server that does not listen after this is broken.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of a call to the witness, in thirds of a lease: the longest that is allowed.
const CALLS_PER_LEASE: u32 = 3;

/// What kind of witness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WitnessKind {
    /// A directory that both sites see.
    File,
    /// One member of etcd, from the host's packages.
    Etcd,
    /// A bucket of versitygw over a directory; hack/setup installs it.
    S3,
}

/// The witness that two sites are to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WitnessPlan {
    /// Its kind.
    pub kind: WitnessKind,
    /// How long a renewal of a lease lasts.
    pub lease: Duration,
}

impl WitnessPlan {
    /// What another site waits after the last sign of life before it takes over, as docs/operating.md says.
    pub fn lease_wait(&self) -> Duration {
        self.lease.mul_f64(1.02) + Duration::from_secs(1)
    }
}

/// A witness that runs.
#[derive(Debug)]
pub struct Witness {
    section: String,
    server: Option<Child>,
}

impl Witness {
    pub(super) fn start(stage: &Stage, plan: WitnessPlan) -> Result<Self> {
        let (place, server) = match plan.kind {
            WitnessKind::File => {
                (format!("backend = \"file\"\npath = \"{}\"", stage.subdir("witness")?.display()), None)
            }
            WitnessKind::Etcd => {
                let (address, child) = start_etcd(stage)?;
                (format!("backend = \"etcd\"\nendpoints = [\"{address}\"]\ninsecure = true"), Some(child))
            }
            WitnessKind::S3 => {
                let (place, child) = start_s3(stage)?;
                (place, Some(child))
            }
        };
        let (lease, timeout) = (plan.lease.as_millis(), (plan.lease / CALLS_PER_LEASE).as_millis());
        let section = format!("[witness]\n{place}\nlease = \"{lease}ms\"\ntimeout = \"{timeout}ms\"\n");
        Ok(Self { section, server })
    }

    /// The section of an agent's configuration that names it.
    pub(super) fn section(&self) -> &str {
        &self.section
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if let Some(mut child) = self.server.take() {
            process::kill_tree(child.id() as i32);
            // It was killed: how it ended is known.
            let _ = child.wait();
        }
    }
}

fn start_etcd(stage: &Stage) -> Result<(String, Child)> {
    let dir = stage.subdir("etcd")?;
    let (client, peer) = (free_port()?, free_port()?);
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let log = File::create(dir.join("log"))?;
    let mut command = Command::new("etcd");
    command.args(["--name", "w", "--log-level", "error", "--data-dir"]).arg(dir.join("data"));
    command.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
    command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
    command.arg("--initial-cluster").arg(format!("w={}", url(peer)));
    let child = stage.spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log));
    let child = child.context("the package etcd-server is needed")?;
    until_it_listens(&dir, client)?;
    Ok((format!("127.0.0.1:{client}"), child))
}

/// What an agent's configuration says of it, and the server.
fn start_s3(stage: &Stage) -> Result<(String, Child)> {
    let (key, secret) = ("agent", "a-secret-of-the-tests");
    let (dir, port) = (stage.subdir("s3")?, free_port()?);
    let (buckets, credentials) = (dir.join("buckets"), dir.join("credentials"));
    fs::create_dir_all(buckets.join("cells"))?;
    fs::write(&credentials, format!("aws_access_key_id = {key}\naws_secret_access_key = {secret}\n"))?;
    let mut command = Command::new("versitygw");
    command.args(["--quiet", "--keep-alive", "--port", &format!("127.0.0.1:{port}"), "posix"]).arg(&buckets);
    command.env("ROOT_ACCESS_KEY", key).env("ROOT_SECRET_KEY", secret);
    let log = File::create(dir.join("log"))?;
    let child = stage.spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log));
    let child = child.context("versitygw is needed: hack/setup --test installs it")?;
    until_it_listens(&dir, port)?;
    let place = format!("endpoint = \"http://127.0.0.1:{port}\"\nbucket = \"cells\"\ninsecure = true");
    Ok((format!("backend = \"s3\"\n{place}\ncredentials = \"{}\"", credentials.display()), child))
}

fn until_it_listens(dir: &Path, port: u16) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(Instant::now() < deadline, "the witness does not listen:\n{}", process::tail(&dir.join("log")));
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
