//! What is measured: its name, what its acknowledgements mean, how it is reached, what it costs.

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use tidemark_tests::agents::Cli;

use crate::fio::Endpoint;
use crate::job::Job;

/// The targets, in the order of the tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, ValueEnum)]
pub enum Name {
    /// A file, no server: what the disk gives.
    Raw,
    /// nbdkit without storage: what the protocol costs.
    NbdkitNull,
    /// nbdkit on a file: one copy.
    NbdkitFile,
    /// qemu-storage-daemon on a file: one copy.
    Qsd,
    /// qemu quorum over a local file and a remote export: two copies.
    Quorum,
    /// Tidemark, `sync`, `ackOn flush`.
    Sync,
    /// Tidemark, `receive`, `ackOn write`.
    Write,
    /// Tidemark, `async`.
    Async,
    /// Tidemark, `sync`, without TLS between the sites; only for 128k.
    SyncPlain,
}

impl Name {
    /// As in the tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Raw => "raw file",
            Self::NbdkitNull => "nbdkit null",
            Self::NbdkitFile => "nbdkit file",
            Self::Qsd => "qemu-sd, one copy",
            Self::Quorum => "qemu quorum",
            Self::Sync => "tidemark sync",
            Self::Write => "tidemark write",
            Self::Async => "tidemark async",
            Self::SyncPlain => "tidemark sync, no TLS",
        }
    }

    /// What an answer to WRITE and to FLUSH means there.
    pub fn semantics(self) -> &'static str {
        match self {
            Self::Raw => "WRITE: disk has it; FLUSH: disk is durable",
            Self::NbdkitNull => "WRITE, FLUSH: nothing",
            Self::NbdkitFile => "WRITE: page cache has it; FLUSH: disk is durable",
            Self::Qsd => "WRITE: disk has it; FLUSH: disk is durable",
            Self::Quorum => "WRITE: both disks have it; FLUSH: both durable",
            Self::Sync | Self::SyncPlain => "WRITE: local log has it; FLUSH: both logs durable",
            Self::Write => "WRITE: both logs have it; FLUSH: local durable, peer has it",
            Self::Async => "WRITE: local log has it; FLUSH: local log durable",
        }
    }

    /// Whether `job` is run on it.
    pub fn takes(self, job: Job) -> bool {
        self != Self::SyncPlain || job == Job::Seq128
    }

    /// Whether it needs the agent.
    pub fn is_tidemark(self) -> bool {
        matches!(self, Self::Sync | Self::Write | Self::Async | Self::SyncPlain)
    }
}

/// A target that runs.
#[derive(Debug)]
pub struct Target {
    /// Which.
    pub name: Name,
    /// Where the load goes.
    pub endpoint: Endpoint,
    /// Its processes; none for a file.
    pub roots: Vec<i32>,
    /// Both sites and the volume's name, where there is a log to drain.
    pub log: Option<(Vec<Cli>, String)>,
    /// Resident memory before any load, in bytes.
    pub idle_bytes: u64,
}

impl Target {
    /// Waits until the base images at every site hold everything.
    ///
    /// # Errors
    /// When an agent refuses.
    pub fn drain(&self) -> Result<()> {
        let Some((sites, volume)) = &self.log else { return Ok(()) };
        for site in sites {
            site.json(&["--timeout", "2m", "drain", volume]).with_context(|| {
                let status =
                    site.show(volume).map_or_else(|error| error.to_string(), |view| view.0["status"].to_string());
                format!("{volume} does not drain; its status is {status}")
            })?;
        }
        Ok(())
    }
}
