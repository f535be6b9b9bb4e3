//! A file system with a PostgreSQL on a block device, at one site.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::ledger::{Places, Postgres, Programs, prepare};
use crate::process;
use crate::stage::Stage;

/// Recovery after a short load takes seconds; this is for a host that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

/// Devices of a database: its data, and its write-ahead log where that is on one of its own.
#[derive(Clone, Debug)]
pub(super) struct Devices {
    pub data: PathBuf,
    pub wal: Option<PathBuf>,
}

impl Devices {
    /// One for everything.
    pub fn one(data: &Path) -> Self {
        Self { data: data.to_owned(), wal: None }
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        [("mount", &self.data)].into_iter().chain(self.wal.iter().map(|wal| ("wal", wal)))
    }
}

/// Mounted devices with a running server.
#[derive(Debug)]
pub(super) struct Database {
    pub server: Postgres,
    devices: Devices,
    mounts: Vec<PathBuf>,
}

impl Database {
    /// Makes file systems on `devices` and a new database in them, with the ledger's tables.
    pub fn create(stage: &Stage, programs: &Programs, site: &str, devices: Devices, writers: u32) -> Result<Self> {
        for (_, device) in devices.all() {
            process::checked(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(device))?;
        }
        let mounts = mounted(stage, site, &devices)?;
        let places = places(stage, site, &mounts);
        Postgres::init(programs, &places)?;
        // The one sync that makes the new cluster durable; initdb syncs each of its thousand files.
        for mount in &mounts {
            process::checked(Command::new("sync").arg("-f").arg(mount))?;
        }
        let server = Postgres::start(stage, programs, &places, PATIENCE)?;
        prepare(&mut server.connect()?, writers)?;
        Ok(Self { server, devices, mounts })
    }

    /// Mounts the file systems on `devices` and lets the database in them recover.
    pub fn open(stage: &Stage, programs: &Programs, site: &str, devices: Devices) -> Result<Self> {
        let mounts = mounted(stage, site, &devices)?;
        let places = places(stage, site, &mounts);
        Postgres::relocate(&places)?;
        let server = Postgres::start(stage, programs, &places, PATIENCE)?;
        Ok(Self { server, devices, mounts })
    }

    /// Stops the server, checks every checksum of the database, unmounts, checks the file systems.
    pub fn close_and_check(self, programs: &Programs) -> Result<()> {
        let Self { server, devices, mounts } = self;
        server.stop_and_check(programs)?;
        for mount in &mounts {
            process::checked(Command::new("umount").arg(mount))?;
        }
        for (_, device) in devices.all() {
            process::checked(Command::new("e2fsck").args(["-f", "-n"]).arg(device))
                .context("the file system is damaged")?;
        }
        Ok(())
    }
}

fn mounted(stage: &Stage, site: &str, devices: &Devices) -> Result<Vec<PathBuf>> {
    let mount = |(name, device): (&str, &PathBuf)| {
        let mount = stage.subdir(&format!("{site}-{name}"))?;
        process::checked(Command::new("mount").args(["-t", "ext4", "-o", "noatime"]).arg(device).arg(&mount))?;
        Ok(mount)
    };
    devices.all().map(mount).collect()
}

/// The first mount holds the data, the second the write-ahead log.
fn places(stage: &Stage, site: &str, mounts: &[PathBuf]) -> Places {
    let beside = |name: &str| stage.dir().join(format!("{site}-{name}"));
    let wal = mounts.get(1).map(|mount| mount.join("wal"));
    let places = Places { data: mounts[0].join("data"), wal, socket: beside("socket"), log: beside("postgres.log") };
    // The server writes it as another user; a missing file would be made by root.
    let _ = fs::File::options().create(true).append(true).open(&places.log);
    places
}
