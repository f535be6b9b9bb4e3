//! The command line as a test uses it: JSON out, refusals as values, waiting with a limit.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process;

use super::view::{Attachment, VolumeView};

/// Exit code of a verb that the state does not allow.
const REFUSED: i32 = 3;

/// The kernel tells an agent at once that its peer's process died; the agent may be busy.
const NOTICE_PATIENCE: Duration = Duration::from_secs(5);

/// Exit code of a comparison that found a difference.
const DIFFERENT: i32 = 1;

/// `tidemark`, speaking to one agent.
#[derive(Clone, Debug)]
pub struct Cli {
    program: PathBuf,
    socket: PathBuf,
}

/// A verb was refused: the state does not allow it. Found in an error with `downcast_ref`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The reason as printed.
    pub reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused: {}", self.reason)
    }
}

impl std::error::Error for Refused {}

/// A volume to be made.
#[derive(Clone, Debug)]
pub struct NewVolume<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its size, such as `1Gi`.
    pub size: &'a str,
    /// `sync`, `receive` or `async`.
    pub mode: &'a str,
    /// More options, such as `--ack-on write`.
    pub options: Vec<&'a str>,
}

impl NewVolume<'_> {
    pub(super) fn is_sync(&self) -> bool {
        self.mode == "sync"
    }
}

impl Cli {
    pub(super) fn new(program: PathBuf, socket: PathBuf) -> Self {
        Self { program, socket }
    }

    /// Runs a verb and returns what it prints as JSON; null when it prints nothing.
    ///
    /// # Errors
    /// [`Refused`] when the state does not allow it; else what went wrong.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command.arg("--agent").arg(format!("unix://{}", self.socket.display())).args(["--output", "json"]).args(args);
        let output = command.output().with_context(|| format!("cannot run {}", process::line(&command)))?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match output.status.code() {
            Some(0) if out.trim().is_empty() => Ok(Value::Null),
            Some(0) => {
                serde_json::from_str(&out).with_context(|| format!("no JSON from {}: {out}", process::line(&command)))
            }
            Some(DIFFERENT) if args.first() == Some(&"verify") && out.contains("equal") => {
                Ok(serde_json::from_str(&out)?)
            }
            Some(REFUSED) => Err(Refused { reason: err.trim().to_owned() }.into()),
            _ => bail!("{} ended with {}: {}", process::line(&command), output.status, err.trim()),
        }
    }

    /// `volume create`.
    ///
    /// # Errors
    /// As [`Cli::json`].
    pub fn create(&self, volume: &NewVolume<'_>) -> Result<VolumeView> {
        let peer = if self.socket.components().any(|part| part.as_os_str() == "a") { "b" } else { "a" };
        let mut args = vec!["volume", "create", volume.name, "--size", volume.size, "--mode", volume.mode];
        args.extend(["--pool", "main", "--peer-site", peer]);
        args.extend(&volume.options);
        Ok(VolumeView(self.json(&args)?))
    }

    /// `volume show`.
    ///
    /// # Errors
    /// As [`Cli::json`].
    pub fn show(&self, volume: &str) -> Result<VolumeView> {
        Ok(VolumeView(self.json(&["volume", "show", volume])?))
    }

    /// `volume attach`; `frontend` is `nbd`, `nbd-device`, `fuse` or `auto`.
    ///
    /// # Errors
    /// As [`Cli::json`].
    pub fn attach(&self, volume: &str, frontend: &str) -> Result<Attachment> {
        Attachment::read(&self.json(&["volume", "attach", volume, "--frontend", frontend])?)
    }

    /// `volume detach`.
    ///
    /// # Errors
    /// As [`Cli::json`].
    pub fn detach(&self, volume: &str) -> Result<()> {
        self.json(&["volume", "detach", volume]).map(drop)
    }

    /// `branch open`: of a branch, or without a number of what the copy holds now, over NBD.
    ///
    /// # Errors
    /// As [`Cli::json`].
    pub fn open_branch(&self, volume: &str, number: Option<&str>) -> Result<Attachment> {
        let args = [&["branch", "open", volume, "--frontend", "nbd"], number.as_slice()].concat();
        Attachment::read(&self.json(&args)?)
    }

    /// `promote`, when nothing has to be asserted.
    ///
    /// # Errors
    /// As [`Cli::json`].
    pub fn promote(&self, volume: &str) -> Result<Value> {
        self.json_when_settled(&["promote", volume])
    }

    /// `demote`, with `options` such as `--force`.
    ///
    /// # Errors
    /// As [`Cli::json`].
    pub fn demote(&self, volume: &str, options: &[&str]) -> Result<Value> {
        self.json_when_settled(&[&["demote", volume], options].concat())
    }

    /// `switchover` to a site, with `options` such as `--detach`.
    ///
    /// # Errors
    /// As [`Cli::json`].
    pub fn switchover(&self, volume: &str, to: &str, options: &[&str]) -> Result<Value> {
        self.json_when_settled(&[&["switchover", volume, "--to", to], options].concat())
    }

    /// As [`Cli::json`]; a copy that is just changing its configuration is asked again, as it says.
    fn json_when_settled(&self, args: &[&str]) -> Result<Value> {
        let deadline = Instant::now() + NOTICE_PATIENCE;
        loop {
            match self.json(args) {
                Err(error) if error.to_string().contains("try again in a moment") && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }

    /// `promote --assert-peer-fenced`: the other site is down, says the caller. `options` bound an accepted loss. An agent that
    /// has not noticed yet that its peer died is asked again.
    ///
    /// # Errors
    /// As [`Cli::json`].
    pub fn promote_fenced(&self, volume: &str, reason: &str, options: &[&str]) -> Result<Value> {
        let args = [&["promote", volume, "--assert-peer-fenced", "--reason", reason], options].concat();
        let deadline = Instant::now() + NOTICE_PATIENCE;
        loop {
            match self.json(&args) {
                Err(error) if error.to_string().contains("peer-is-primary") && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }

    /// `verify`: true when both copies are equal.
    ///
    /// # Errors
    /// As [`Cli::json`], but different copies are no error.
    pub fn verify(&self, volume: &str) -> Result<bool> {
        let result = self.json(&["verify", volume])?;
        result.pointer("/equal").and_then(Value::as_bool).with_context(|| format!("verify printed {result}"))
    }

    /// Asks for the volume's status until `done` or until `patience` is over.
    ///
    /// # Errors
    /// With the last status when it does not come.
    pub fn wait_for(
        &self,
        volume: &str,
        what: &str,
        patience: Duration,
        done: impl Fn(&VolumeView) -> bool,
    ) -> Result<VolumeView> {
        let deadline = Instant::now() + patience;
        loop {
            let view = self.show(volume)?;
            if done(&view) {
                return Ok(view);
            }
            if Instant::now() > deadline {
                bail!("volume {volume} after {patience:?}: no {what}; its status is {}", view.summary());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
