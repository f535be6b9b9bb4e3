//! A PostgreSQL server of the harness: its own data directory, a unix socket, nothing on the network.
//!
//! Durability is on in full (fsync, full page writes, checksums): the point is what survives. The server is a plain child
//! process, so that it can be killed like everything else of a site.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::{User, geteuid};

use crate::process;
use crate::stage::Stage;

use super::wire::{Connection, SqlError};

/// The number in the socket's name; no port is opened.
const PORT: u16 = 5432;
/// A commit that takes longer than this is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// Role and database of the harness.
const NAME: &str = "postgres";

/// Where PostgreSQL's programs are, and as whom they run: the server refuses root.
#[derive(Clone, Debug)]
pub struct Programs {
    bin: PathBuf,
    user: Option<User>,
}

impl Programs {
    /// The newest installed PostgreSQL.
    ///
    /// # Errors
    /// When there is none, or this is root and there is no user `postgres`.
    pub fn find() -> Result<Self> {
        let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
            .filter(|(_, bin)| bin.join("postgres").exists() && bin.join("initdb").exists())
            .collect();
        found.sort();
        let (_, bin) =
            found.pop().context("PostgreSQL is not installed under /usr/lib/postgresql: run hack/setup --demo")?;
        let user = if geteuid().is_root() {
            Some(User::from_name(NAME)?.context("root cannot run PostgreSQL and there is no user postgres")?)
        } else {
            None
        };
        Ok(Self { bin, user })
    }

    /// The directory of the programs.
    pub fn directory(&self) -> &Path {
        &self.bin
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command.current_dir("/").stdin(Stdio::null()).env("LC_ALL", "C.UTF-8").env_remove("PGDATA");
        command
    }

    /// Makes `path` a directory that only the server's user may enter.
    fn own_directory(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        if let Some(user) = &self.user {
            chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        Ok(())
    }
}

/// Where one server keeps its things.
#[derive(Clone, Debug)]
pub struct Places {
    /// The data directory: on the volume.
    pub data: PathBuf,
    /// The directory of the write-ahead log when it is elsewhere: on another volume.
    pub wal: Option<PathBuf>,
    /// The directory of the socket: not on the volume. At most 80 bytes, the limit of unix sockets less the name.
    pub socket: PathBuf,
    /// The server's log: not on the volume.
    pub log: PathBuf,
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    places: Places,
}

impl Postgres {
    /// Makes a new, empty cluster. It is not synced.
    ///
    /// # Errors
    /// What `initdb` says.
    pub fn init(programs: &Programs, places: &Places) -> Result<()> {
        programs.own_directory(&places.data)?;
        let mut command = programs.command("initdb");
        command.args([
            "--no-sync",
            "--auth=trust",
            "--data-checksums",
            "--encoding=UTF8",
            "--no-locale",
            "--username",
            NAME,
            "-D",
        ]);
        command.arg(&places.data);
        if let Some(wal) = &places.wal {
            programs.own_directory(wal)?;
            command.arg("--waldir").arg(wal);
        }
        process::checked(&mut command).context("initdb failed")?;
        Ok(())
    }

    /// Points a cluster that was made elsewhere to where its write-ahead log is here.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub fn relocate(places: &Places) -> Result<()> {
        let Some(wal) = &places.wal else { return Ok(()) };
        let link = places.data.join("pg_wal");
        fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
        symlink(wal, &link).with_context(|| format!("cannot link {}", link.display()))
    }

    /// Starts the server and waits until it answers: after a crash, until it has recovered.
    ///
    /// # Errors
    /// When it ends or does not answer within `patience`; the end of its log is in the message.
    pub fn start(stage: &Stage, programs: &Programs, places: &Places, patience: Duration) -> Result<Self> {
        programs.own_directory(&places.socket)?;
        let log = File::options().create(true).append(true).open(&places.log)?;
        let mut command = programs.command("postgres");
        command.arg("-D").arg(&places.data).stdout(log.try_clone()?).stderr(log);
        for setting in settings(places) {
            command.arg("-c").arg(setting);
        }
        let child = stage.spawn(&mut command)?;
        let mut server = Self { child, places: places.clone() };
        server.wait_ready(patience)?;
        Ok(server)
    }

    fn wait_ready(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let refusal = match self.connect() {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if let Some(status) = self.child.try_wait()? {
                bail!("postgres ended with {status}:\n{}", process::tail(&self.places.log));
            }
            if Instant::now() > deadline {
                bail!("postgres does not answer after {patience:?} ({refusal}):\n{}", process::tail(&self.places.log));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A new connection.
    ///
    /// # Errors
    /// When the server does not take it.
    pub fn connect(&self) -> Result<Connection, SqlError> {
        connect(&self.places.socket)
    }

    /// Where it keeps its things.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The server's process and all of its children.
    pub fn pids(&self) -> Vec<i32> {
        process::tree(self.child.id() as i32)
    }

    /// Ends all of its processes at once, as a power cut would.
    pub fn kill(&mut self) {
        process::kill_tree(self.child.id() as i32);
        // It was killed: how it ended is known.
        let _ = self.child.wait();
    }

    /// Stops it in good order and says whether every checksum in the data directory is right.
    ///
    /// # Errors
    /// When it does not stop, or a checksum is wrong.
    pub fn stop_and_check(mut self, programs: &Programs) -> Result<()> {
        process::signal(self.child.id() as i32, nix::sys::signal::Signal::SIGINT);
        let status = process::wait_timeout(&mut self.child, PATIENCE)?.context("postgres does not stop")?;
        ensure!(status.success(), "postgres stopped with {status}:\n{}", process::tail(&self.places.log));
        let mut check = programs.command("pg_checksums");
        check.arg("--check").arg("-D").arg(&self.places.data);
        process::checked(&mut check).context("the recovered database has wrong checksums")?;
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A connection to the server behind the socket in `directory`.
///
/// # Errors
/// When the server does not take it.
pub fn connect(directory: &Path) -> Result<Connection, SqlError> {
    Connection::open(directory, PORT, NAME, NAME, PATIENCE)
}

fn settings(places: &Places) -> Vec<String> {
    let fixed = [
        "listen_addresses=",
        "fsync=on",
        "synchronous_commit=on",
        "full_page_writes=on",
        // After a crash one sync of the file system instead of one of each file.
        "recovery_init_sync_method=syncfs",
        "max_connections=64",
        "shared_buffers=32MB",
        // Checkpoints happen within a short load, so that the base pages are in play and not only the WAL.
        "checkpoint_timeout=30s",
        "max_wal_size=64MB",
        "min_wal_size=32MB",
        "log_min_messages=log",
    ];
    let mut settings: Vec<String> = fixed.map(str::to_owned).into();
    settings.push(format!("port={PORT}"));
    settings.push(format!("unix_socket_directories={}", places.socket.display()));
    settings
}
