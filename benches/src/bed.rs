//! Starting the targets: files of the same size, all filled, each behind its server on a unix socket.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tidemark_tests::agents::{NewVolume, Plan, TwoSites};
use tidemark_tests::process;
use tidemark_tests::stage::Stage;

use crate::fio::{self, Endpoint};
use crate::target::{Name, Target};
use crate::usage;

/// A server that has no socket after this does not start.
const PATIENCE: Duration = Duration::from_secs(20);

/// Everything that runs; taken down with the value.
#[derive(Debug)]
pub struct Bed {
    size: u64,
    secured: Option<TwoSites>,
    plain: Option<TwoSites>,
    stage: Stage,
}

impl Bed {
    /// An empty bed for devices of `size` bytes.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn new(size: u64) -> Result<Self> {
        Ok(Self { size, secured: None, plain: None, stage: Stage::new("bench")? })
    }

    /// The two sites that the secured Tidemark targets use, once one was started.
    pub fn sites(&mut self) -> Option<&mut TwoSites> {
        self.secured.as_mut()
    }

    /// Starts a target and fills it.
    ///
    /// # Errors
    /// When a program is missing or does not start.
    pub fn start(&mut self, name: Name) -> Result<Target> {
        let (endpoint, roots) = match name {
            Name::Raw => (Endpoint::File(self.image("raw")?), vec![]),
            Name::NbdkitNull => self.nbdkit("null", &["null".into(), format!("size={}", self.size)])?,
            Name::NbdkitFile => {
                let image = self.image("nbdkit")?;
                self.nbdkit("file", &["file".into(), format!("file={}", image.display())])?
            }
            Name::Qsd => self.single()?,
            Name::Quorum => self.quorum()?,
            Name::Sync | Name::Write | Name::Async | Name::SyncPlain => return self.tidemark(name),
        };
        Ok(Target { name, endpoint, idle_bytes: usage::resident_bytes(&roots), roots, log: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.stage.dir().join(name)
    }

    /// A file with every block written.
    fn image(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(&format!("{name}.img"));
        std::fs::File::create(&path)?.set_len(self.size)?;
        fio::fill(&Endpoint::File(path.clone()), self.size)
            .with_context(|| format!("cannot fill {}", path.display()))?;
        Ok(path)
    }

    /// Starts a server that makes the socket `NAME.sock`; its URI and process.
    fn server(&self, name: &str, command: &mut Command) -> Result<(String, i32)> {
        let (socket, log) = (self.path(&format!("{name}.sock")), self.path(&format!("{name}.log")));
        let out = std::fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let mut child = self.stage.spawn(command).context("run hack/setup --bench")?;
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            ensure!(child.try_wait()?.is_none(), "{} ended:\n{}", process::line(command), process::tail(&log));
            ensure!(Instant::now() < deadline, "{} makes no socket:\n{}", process::line(command), process::tail(&log));
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok((format!("nbd+unix:///?socket={}", socket.display()), child.id() as i32))
    }

    fn nbdkit(&self, plugin: &str, args: &[String]) -> Result<(Endpoint, Vec<i32>)> {
        let name = format!("nbdkit-{plugin}");
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U"]).arg(self.path(&format!("{name}.sock"))).args(args);
        let (uri, pid) = self.server(&name, &mut command)?;
        Ok((Endpoint::Nbd(uri), vec![pid]))
    }

    fn single(&self) -> Result<(Endpoint, Vec<i32>)> {
        let image = self.image("qsd")?;
        let (uri, pid) = self.qemu("qsd", &[local("disk", &image)], "disk")?;
        Ok((Endpoint::Nbd(uri), vec![pid]))
    }

    /// The remote child hangs on a unix socket: over TCP qemu's client shows steps of 44 ms, and a ratio to that is void.
    fn quorum(&self) -> Result<(Endpoint, Vec<i32>)> {
        let (here, there) = (self.image("quorum-local")?, self.image("quorum-remote")?);
        let (_, remote) = self.qemu("quorum-remote", &[local("disk", &there)], "disk")?;
        let socket = self.path("quorum-remote.sock");
        let nbd = format!("driver=nbd,node-name=remote,server.type=unix,server.path={},export=", socket.display());
        let quorum = r#"{"driver":"quorum","node-name":"both","vote-threshold":2,"children":["local","remote"]}"#;
        let (uri, front) = self.qemu("quorum", &[local("local", &here), nbd, quorum.to_owned()], "both")?;
        Ok((Endpoint::Nbd(uri), vec![front, remote]))
    }

    fn qemu(&self, name: &str, nodes: &[String], export: &str) -> Result<(String, i32)> {
        let socket = self.path(&format!("{name}.sock"));
        let mut command = Command::new("qemu-storage-daemon");
        for node in nodes {
            command.arg("--blockdev").arg(node);
        }
        command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={}", socket.display()));
        command.arg("--export").arg(format!("type=nbd,id=export,node-name={export},name=,writable=on"));
        self.server(name, &mut command)
    }

    fn tidemark(&mut self, name: Name) -> Result<Target> {
        let (mode, ack_on) = match name {
            Name::Write => ("receive", "write"),
            Name::Async => ("async", "flush"),
            _ => ("sync", "flush"),
        };
        let volume = format!("bench-{mode}");
        // The floor follows closely, so that writing the base is part of what is measured; what it cannot follow at once is the
        // burst, and the drained figures hold what lasts.
        let options = vec!["--ack-on", ack_on, "--retention", "1s", "--log-size", "2Gi"];
        let size = self.size;
        let sites = self.sites_for(name)?;
        sites.create(&NewVolume { name: &volume, size: &size.to_string(), mode, options })?;
        let attachment = sites.a.cli().attach(&volume, "nbd")?;
        let endpoint = Endpoint::Nbd(attachment.nbd_uri.context("an NBD export has a URI")?);
        let roots = vec![sites.a.pid(), sites.b.pid()];
        let idle_bytes = usage::resident_bytes(&roots);
        let log = Some((vec![sites.a.cli(), sites.b.cli()], volume));
        let target = Target { name, endpoint, roots, log, idle_bytes };
        fio::fill(&target.endpoint, size)?;
        target.drain()?;
        Ok(target)
    }

    /// The two sites that `name` needs, started when they do not run yet.
    fn sites_for(&mut self, name: Name) -> Result<&TwoSites> {
        let insecure = name == Name::SyncPlain;
        let place = if insecure { &mut self.plain } else { &mut self.secured };
        if place.is_none() {
            let plan = Plan { name: "bench".to_owned(), insecure, log_level: "warn".to_owned(), ..Plan::default() };
            let mut sites = TwoSites::new(&plan)?;
            sites.start()?;
            *place = Some(sites);
        }
        place.as_ref().context("the sites were just started")
    }
}

fn local(node: &str, image: &Path) -> String {
    format!("driver=file,node-name={node},filename={},aio=io_uring,cache.direct=on", image.display())
}
