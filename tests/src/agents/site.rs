//! One site with one agent: its files, its process, its health.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::netns::{Net, Place};
use crate::process;
use crate::stage::Stage;
use crate::volatile::VolatileProgram;

use super::{Cli, Plan, Programs};

/// An agent that does not answer after this is broken.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Above the longest graceful stop that the agents are configured for.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// A site. Its agent is killed when the value is dropped.
#[derive(Debug)]
pub struct Site {
    name: &'static str,
    /// Its node's number, from 1.
    number: usize,
    /// The other nodes of the site.
    mates: Vec<(String, SocketAddr)>,
    ca: PathBuf,
    dir: PathBuf,
    pool: PathBuf,
    address: SocketAddr,
    programs: Programs,
    plan: Plan,
    /// Where its agent runs, when not in the host's own network.
    place: Option<(Net, Place)>,
    child: Option<Child>,
    disk: Option<VolatileProgram>,
}

impl Site {
    pub(super) fn new(
        stage: &Stage,
        programs: &Programs,
        (name, address): (&'static str, SocketAddr),
        plan: &Plan,
        place: Option<(Net, Place)>,
    ) -> Result<Self> {
        Self::node(stage, programs, (name, 1, address), plan, place)
    }

    /// Node `number` of a site of several; its certificates are of the first one's authority.
    pub(super) fn node(
        stage: &Stage,
        programs: &Programs,
        (name, number, address): (&'static str, usize, SocketAddr),
        plan: &Plan,
        place: Option<(Net, Place)>,
    ) -> Result<Self> {
        let ca = stage.dir().join(name).join("ca");
        let dir = stage.subdir(&if number == 1 { name.to_owned() } else { format!("{name}{number}") })?;
        // Beside the site's directory: what is mounted below that belongs to the agent.
        let disk_dir = stage.dir().join(format!("{name}{number}-disk"));
        let disk = plan.on_volatile_disks.then(|| VolatileProgram::start(stage, &disk_dir)).transpose()?;
        let pool = disk.as_ref().map_or_else(|| dir.join("pool"), |disk| disk.path().join("pool"));
        let (programs, plan, mates) = (programs.clone(), plan.clone(), Vec::new());
        Ok(Self { name, number, mates, ca, dir, pool, address, programs, plan, place, child: None, disk })
    }

    /// Another node of the site.
    pub(super) fn add_mate(&mut self, node_id: String, address: SocketAddr) {
        self.mates.push((node_id, address));
    }

    /// The volatile disk under its pool.
    ///
    /// # Panics
    /// When the plan has none.
    pub fn disk(&self) -> &VolatileProgram {
        self.disk.as_ref().expect("the plan has on_volatile_disks")
    }

    /// The power fails under a running agent: what its disk had not made durable is lost in part, chosen by `seed`. For half
    /// of the seeds the agent stands still before, for the others it sees its disk go. It is not killed first: its end would
    /// wait for the requests under way, and so let them be written.
    ///
    /// # Errors
    /// When the disk does not answer.
    ///
    /// # Panics
    /// When the plan has no volatile disks.
    pub fn cut_disk(&self, seed: u64) -> Result<()> {
        if seed.is_multiple_of(2) {
            self.freeze();
        }
        self.disk().cut(seed)
    }

    /// `a` or `b`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its identity: A's is the lower one.
    pub fn site_id(&self) -> String {
        self.uuid("0000-4000-8000-000000000001")
    }

    /// Its node's identity: another one in each stage, as the devices of the host's kernel are told apart by it.
    pub fn node_id(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.dir.hash(&mut hasher);
        let number = hasher.finish();
        self.uuid(&format!("{:04x}-4000-8000-{:012x}", number >> 48, number & ((1 << 48) - 1)))
    }

    fn uuid(&self, rest: &str) -> String {
        format!("{}-{rest}", self.name.repeat(8))
    }

    /// Its control address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its directory: configuration, certificates, state, sockets, log.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its pool: one directory for each volume.
    pub fn pool(&self) -> &Path {
        &self.pool
    }

    /// What its agent keeps beside the volumes: identity, catalogue, peers.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where `/metrics`, `/healthz` and `/readyz` are.
    pub fn metrics_address(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), self.address.port() + self.plan.shards + 1)
    }

    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// Its agent's log.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Directory with node.crt, node.key and ca.crt.
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// Directory of the site's CA.
    pub fn ca(&self) -> PathBuf {
        self.ca.clone()
    }

    /// The command line, speaking to this agent.
    pub fn cli(&self) -> Cli {
        Cli::new(self.programs.cli.clone(), self.dir.join("run/admin.sock"))
    }

    pub(super) fn issue_certificates(&self, ips: &[IpAddr]) -> Result<()> {
        let (site_id, node_id) = (self.site_id(), self.node_id());
        let pki = |args: &[&str]| {
            process::checked(Command::new(&self.programs.cli).arg("pki").args(args)).context("cannot make certificates")
        };
        let (ca, out) = (self.ca(), self.pki());
        let (ca, out) = (ca.to_string_lossy(), out.to_string_lossy());
        if self.number == 1 {
            pki(&["init-ca", "--dir", &ca, "--site-name", self.name, "--site-id", &site_id])?;
        }
        let ips = ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
        pki(&[
            "issue",
            "--ca",
            &ca,
            "--node-name",
            &self.node_name(),
            "--node-id",
            &node_id,
            "--out",
            &out,
            "--ip",
            &ips,
        ])?;
        Ok(())
    }

    /// Writes the configuration with `peer` reachable at `address`.
    pub(super) fn write_config(&self, peer: &Site, address: SocketAddr) -> Result<()> {
        fs::write(self.config_path(), self.config(peer, address)?)?;
        Ok(())
    }

    fn node_name(&self) -> String {
        format!("n{}", self.number)
    }

    fn config(&self, peer: &Site, address: SocketAddr) -> Result<String> {
        let (dir, pki, peer_ca) = (self.dir.display(), self.pki(), peer.ca().join("ca.crt"));
        let mut text = String::new();
        writeln!(text, "state_dir = \"{dir}/state\"\nrun_dir = \"{dir}/run\"")?;
        writeln!(text, "[site]\nname = \"{}\"\nid = \"{}\"", self.name, self.site_id())?;
        for (id, address) in &self.mates {
            writeln!(text, "[[site.nodes]]\nid = \"{id}\"\naddress = \"{address}\"")?;
        }
        writeln!(text, "[node]\nname = \"{}\"\nid = \"{}\"", self.node_name(), self.node_id())?;
        writeln!(text, "[[pool]]\nname = \"main\"\npath = \"{}\"", self.pool.display())?;
        writeln!(text, "[peer]\nlisten = \"{}\"", self.address)?;
        if self.plan.insecure {
            writeln!(text, "insecure = true")?;
        } else {
            let file = |name: &str| pki.join(name).display().to_string();
            let (cert, key, ca) = (file("node.crt"), file("node.key"), file("ca.crt"));
            writeln!(text, "[peer.tls]\ncert = \"{cert}\"\nkey = \"{key}\"\nca = \"{ca}\"")?;
        }
        writeln!(
            text,
            "[[peers]]\nname = \"{}\"\nsite_id = \"{}\"\naddress = \"{address}\"",
            peer.name,
            peer.site_id()
        )?;
        if !self.plan.insecure {
            writeln!(text, "ca = \"{}\"", peer_ca.display())?;
        }
        writeln!(text, "[metrics]\nlisten = \"{}\"", self.metrics_address())?;
        writeln!(text, "[shards]\ncount = {}", self.plan.shards)?;
        writeln!(text, "[log]\nlevel = \"{}\"\n[limits]\nstop_timeout = \"30s\"", self.plan.log_level)?;
        text.push_str(&self.plan.config);
        Ok(text)
    }

    /// Starts the agent and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time; the end of its log is in the message.
    pub fn start(&mut self, stage: &Stage) -> Result<()> {
        ensure!(self.child.is_none(), "agent {} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = match &self.place {
            Some((net, place)) => net.command(*place, &self.programs.agent),
            None => Command::new(&self.programs.agent),
        };
        command.arg("--config").arg(self.config_path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(stage.spawn(&mut command)?);
        self.wait_ready(START_PATIENCE)
    }

    /// Waits until the admin API answers.
    ///
    /// # Errors
    /// When the agent ends or `patience` is over before.
    pub fn wait_ready(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !self.is_ready() {
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                self.child = None;
                bail!("agent {} ended with {status}:\n{}", self.name, self.log_tail());
            }
            ensure!(
                Instant::now() < deadline,
                "agent {} is not ready after {patience:?}:\n{}",
                self.name,
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Whether the admin API answers.
    pub fn is_ready(&self) -> bool {
        self.cli().json(&["--timeout", "5s", "agent", "show"]).is_ok()
    }

    /// The agent's metrics as Prometheus reads them.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn metrics(&self) -> Result<String> {
        http(self.metrics_address(), "/metrics").with_context(|| format!("metrics of agent {}", self.name))
    }

    /// Waits until the agent hears the other site.
    ///
    /// # Errors
    /// When `patience` is over before.
    pub fn wait_for_peer(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let peers = self.cli().json(&["peer", "list"])?;
            if peers.to_string().contains("\"up\"") {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "agent {} does not hear its peer: {peers}\n{}",
                self.name,
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The agent's process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("the agent runs").id() as i32
    }

    /// True between start and kill or stop.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// SIGKILL, and waits for the end. Not running is no error.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        process::kill_tree(child.id() as i32);
        // It was killed: how it ended is known.
        let _ = child.wait();
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it does not end, or not with 0.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        process::signal(child.id() as i32, Signal::SIGTERM);
        let status: Option<ExitStatus> = process::wait_timeout(&mut child, STOP_PATIENCE)?;
        if status.is_none() {
            process::kill_tree(child.id() as i32);
            let _ = child.wait();
        }
        let status = status.with_context(|| format!("agent {} does not stop:\n{}", self.name, self.log_tail()))?;
        ensure!(status.success(), "agent {} stopped with {status}:\n{}", self.name, self.log_tail());
        Ok(())
    }

    /// Freezes the agent: it is there and says nothing.
    pub fn freeze(&self) {
        process::signal(self.pid(), Signal::SIGSTOP);
    }

    /// Ends [`Site::freeze`].
    pub fn thaw(&self) {
        process::signal(self.pid(), Signal::SIGCONT);
    }

    /// The last lines of the agent's log.
    pub fn log_tail(&self) -> String {
        process::tail(&self.log_path())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
    }
}

fn http(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
