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

/// A mounted device with a running server.
#[derive(Debug)]
pub(super) struct Database {
    pub server: Postgres,
    device: PathBuf,
    mount: PathBuf,
}

impl Database {
    /// Makes a file system on `device` and a new database in it, with the ledger's tables.
    pub fn create(stage: &Stage, programs: &Programs, site: &str, device: &Path, writers: u32) -> Result<Self> {
        process::checked(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(device))?;
        let mount = mounted(stage, site, device)?;
        let places = places(stage, site, &mount);
        Postgres::init(programs, &places)?;
        // The one sync that makes the new cluster durable; initdb syncs each of its thousand files.
        process::checked(Command::new("sync").arg("-f").arg(&mount))?;
        let server = Postgres::start(stage, programs, &places, PATIENCE)?;
        prepare(&mut server.connect()?, writers)?;
        Ok(Self { server, device: device.to_owned(), mount })
    }

    /// Mounts the file system on `device` and lets the database in it recover.
    pub fn open(stage: &Stage, programs: &Programs, site: &str, device: &Path) -> Result<Self> {
        let mount = mounted(stage, site, device)?;
        let server = Postgres::start(stage, programs, &places(stage, site, &mount), PATIENCE)?;
        Ok(Self { server, device: device.to_owned(), mount })
    }

    /// Stops the server, checks every checksum of the database, unmounts, checks the file system.
    pub fn close_and_check(self, programs: &Programs) -> Result<()> {
        let Self { server, device, mount } = self;
        server.stop_and_check(programs)?;
        process::checked(Command::new("umount").arg(&mount))?;
        process::checked(Command::new("e2fsck").args(["-f", "-n"]).arg(&device))
            .context("the file system is damaged")?;
        Ok(())
    }
}

fn mounted(stage: &Stage, site: &str, device: &Path) -> Result<PathBuf> {
    let mount = stage.subdir(&format!("{site}-mount"))?;
    process::checked(Command::new("mount").args(["-t", "ext4", "-o", "noatime"]).arg(device).arg(&mount))?;
    Ok(mount)
}

fn places(stage: &Stage, site: &str, mount: &Path) -> Places {
    let beside = |name: &str| stage.dir().join(format!("{site}-{name}"));
    let places = Places { data: mount.join("data"), socket: beside("socket"), log: beside("postgres.log") };
    // The server writes it as another user; a missing file would be made by root.
    let _ = fs::File::options().create(true).append(true).open(&places.log);
    places
}
