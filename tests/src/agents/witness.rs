//! The witness of two sites: a directory, or an etcd or an object store of their own.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::netns::{Net, Place};
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
    etcd: Option<Etcd>,
}

/// One member, and where it runs.
#[derive(Clone, Debug)]
struct Etcd {
    dir: PathBuf,
    net: Option<Net>,
    client: u16,
    peer: u16,
}

impl Witness {
    pub(super) fn start(stage: &Stage, net: Option<&Net>, plan: WitnessPlan) -> Result<Self> {
        let etcd = (plan.kind == WitnessKind::Etcd).then(|| Etcd::new(stage, net)).transpose()?;
        let (place, server) = match plan.kind {
            WitnessKind::File => {
                (format!("backend = \"file\"\npath = \"{}\"", stage.subdir("witness")?.display()), None)
            }
            WitnessKind::Etcd => {
                let etcd = etcd.as_ref().context("made above")?;
                let endpoint = format!("{}:{}", etcd.ip(), etcd.client);
                let place = format!("backend = \"etcd\"\nendpoints = [\"{endpoint}\"]\ninsecure = true");
                (place, Some(etcd.start(stage)?))
            }
            WitnessKind::S3 => {
                let (place, child) = start_s3(stage)?;
                (place, Some(child))
            }
        };
        let (lease, timeout) = (plan.lease.as_millis(), (plan.lease / CALLS_PER_LEASE).as_millis());
        let section = format!("[witness]\n{place}\nlease = \"{lease}ms\"\ntimeout = \"{timeout}ms\"\n");
        Ok(Self { section, server, etcd })
    }

    /// It has forgotten everything, as one that was set up anew.
    pub(super) fn wipe(&mut self, stage: &Stage) -> Result<()> {
        let etcd = self.etcd.clone().context("only an etcd is wiped")?;
        self.stop();
        fs::remove_dir_all(etcd.dir.join("data"))?;
        self.server = Some(etcd.start(stage)?);
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.server.take() {
            process::kill_tree(child.id() as i32);
            // It was killed: how it ended is known.
            let _ = child.wait();
        }
    }

    /// The section of an agent's configuration that names it.
    pub(super) fn section(&self) -> &str {
        &self.section
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Etcd {
    fn new(stage: &Stage, net: Option<&Net>) -> Result<Self> {
        let (dir, client, peer) = (stage.subdir("etcd")?, free_port()?, free_port()?);
        Ok(Self { dir, net: net.cloned(), client, peer })
    }

    fn ip(&self) -> IpAddr {
        self.net.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |_| Place::W.ip())
    }

    fn start(&self, stage: &Stage) -> Result<Child> {
        let net = self.net.as_ref();
        let (client, peer) = (self.url(self.client), self.url(self.peer));
        let log = File::create(self.dir.join("log"))?;
        let mut command = net.map_or_else(|| Command::new("etcd"), |net| net.command(Place::W, "etcd"));
        command.args(["--name", "w", "--log-level", "error", "--data-dir"]).arg(self.dir.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.arg("--initial-cluster").arg(format!("w={peer}"));
        let child = stage.spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log));
        let child = child.context("the package etcd-server is needed")?;
        until_it_listens(&self.dir, net, self.client)?;
        Ok(child)
    }

    fn url(&self, port: u16) -> String {
        format!("http://{}:{port}", self.ip())
    }
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
    until_it_listens(&dir, None, port)?;
    let place = format!("endpoint = \"http://127.0.0.1:{port}\"\nbucket = \"cells\"\ninsecure = true");
    Ok((format!("backend = \"s3\"\n{place}\ncredentials = \"{}\"", credentials.display()), child))
}

fn until_it_listens(dir: &Path, net: Option<&Net>, port: u16) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let listens = || match net {
        Some(net) => net.listens(Place::W, port),
        None => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(),
    };
    while !listens() {
        ensure!(Instant::now() < deadline, "the witness does not listen:\n{}", process::tail(&dir.join("log")));
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
