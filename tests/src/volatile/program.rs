//! A volatile disk in a process of its own, as the tests of whole agents use it: it outlives the agent that is killed, and its
//! processor time is not the test's.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, umount2};

use super::control;
use super::disk::Stats;
use crate::agents::beside_this_program;
use crate::process;
use crate::stage::Stage;

const NAME: &str = "volatile-disk";

/// A running `volatile-disk`. Dropping it ends the process and unmounts; what was not durable is lost.
#[derive(Debug)]
pub struct VolatileProgram {
    child: Child,
    dir: PathBuf,
}

impl VolatileProgram {
    /// Starts it in `dir`, with the medium beside the mount point, and waits until it serves.
    ///
    /// # Errors
    /// When the program is not built or cannot mount.
    pub fn start(stage: &Stage, dir: &Path) -> Result<Self> {
        let program = beside_this_program(NAME).with_context(|| format!("{NAME} is not built"))?;
        let path = |name: &str| dir.join(name);
        let mut command = Command::new(program);
        command.arg("--backing").arg(path("medium")).arg("--mount").arg(path("mnt"));
        command.arg("--control").arg(path("control")).stdin(Stdio::null()).stdout(Stdio::piped());
        std::fs::create_dir_all(dir)?;
        let mut started = Self { child: stage.spawn(&mut command)?, dir: dir.to_owned() };
        let stdout = started.child.stdout.take().context("stdout is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "{NAME} in {} does not start", dir.display());
        Ok(started)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// Exactly what is durable.
    pub fn medium(&self) -> PathBuf {
        self.dir.join("medium")
    }

    /// Sends a command of [`control`].
    ///
    /// # Errors
    /// When nobody answers, or with the disk's own words.
    pub fn send(&self, command: &str) -> Result<String> {
        control::request(&self.dir.join("control"), command)
            .with_context(|| format!("{NAME} in {}", self.dir.display()))
    }

    /// Loses power; what survives is chosen by `seed`.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn cut(&self, seed: u64) -> Result<()> {
        self.send(&format!("cut {seed}")).map(drop)
    }

    /// Makes syncs of files take `delay`.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn set_sync_delay(&self, delay: std::time::Duration) -> Result<()> {
        self.send(&format!("slow {}", delay.as_millis())).map(drop)
    }

    /// Counters and sizes.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn stats(&self) -> Result<Stats> {
        Ok(serde_json::from_str(&self.send("stats")?)?)
    }
}

impl Drop for VolatileProgram {
    fn drop(&mut self) {
        process::kill_tree(self.child.id() as i32);
        let _ = self.child.wait(); // it was killed: how it ended is known
        let _ = umount2(&self.path(), MntFlags::MNT_DETACH); // gone already is as good
    }
}
