//! What is played on the machine's kernel: a replicated volume as `/dev/nbdN` with ext4 on it, over the deaths of its agents.

mod lost;
mod upgrades;
mod waiting;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::agents::{Cli, NewVolume, Plan, Refused, TwoSites};
use crate::process;
use writer::Writer;

const VOLUME: &str = "disk";
/// The machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// The kernel's patience with an agent that answers nothing, and with one that is gone.
const RESEND_AFTER: Duration = Duration::from_secs(3);
const CONFIG: &str = "[nbd_device]\nresend_after = \"3s\"\ndead_timeout = \"60s\"\n";

/// Plays all of it.
///
/// # Errors
/// What does not hold.
pub fn play() -> Result<()> {
    let plan = Plan { name: "kernel".to_owned(), config: CONFIG.to_owned(), ..Plan::default() };
    let mut sites = TwoSites::new(&plan)?;
    let played = acts(&mut sites);
    played.with_context(|| sites.logs())
}

fn say(what: &str) {
    eprintln!("{what}");
}

/// The site is lost in the last one.
fn acts(sites: &mut TwoSites) -> Result<()> {
    sites.start()?;
    sites.create(&NewVolume { name: VOLUME, size: "128Mi", mode: "sync", options: vec!["--log-size", "64Mi"] })?;
    let mut stand = Stand::new(sites)?;
    upgrades::play(&mut stand).context("an agent that is killed, stopped, started")?;
    upgrades::leftover(&mut stand).context("a device that is left")?;
    waiting::suspended(&mut stand).context("a volume that is suspended")?;
    waiting::detached(&mut stand).context("a detach while requests wait")?;
    lost::overtaken(&mut stand).context("a site that is overtaken")?;
    waiting::expired(&mut stand).context("an agent that stays away")?;
    lost::play(&mut stand).context("a site that is lost")
}

/// The sites, and where the file system of the device is mounted.
struct Stand<'a> {
    sites: &'a mut TwoSites,
    /// The name of A's device that stays.
    link: PathBuf,
    mount: PathBuf,
}

impl<'a> Stand<'a> {
    fn new(sites: &'a mut TwoSites) -> Result<Self> {
        let link = sites.a.dir().join("run/dev").join(VOLUME);
        let mount = sites.stage.subdir("mount")?;
        Ok(Self { sites, link, mount })
    }

    fn cli(&self) -> Cli {
        self.sites.a.cli()
    }

    /// Attaches the volume at A and gives its device.
    fn attach(&self) -> Result<PathBuf> {
        let device = self.cli().attach(VOLUME, "auto")?.block_device()?.clone();
        ensure!(device.starts_with("/dev") && name_of(&device).starts_with("nbd"), "auto takes {}", device.display());
        ensure!(fs::read_link(&self.link)? == device, "the device has a name that stays");
        Ok(device)
    }

    /// Attaches and mounts the volume at A, and has files written to the directory `name`.
    fn write(&self, name: &'static str) -> Result<(PathBuf, Writer)> {
        let device = self.attach()?;
        self.mount(&device)?;
        let writer = Writer::start(&self.mount, name)?;
        Ok((device, writer))
    }

    fn mount(&self, device: &Path) -> Result<()> {
        process::checked(Command::new("mount").args(["-t", "ext4"]).arg(device).arg(&self.mount)).map(drop)
    }

    fn unmount(&self) -> Result<()> {
        process::checked(Command::new("umount").arg(&self.mount)).map(drop)
    }

    /// Unmounts, checks the file system, compares both copies, detaches.
    fn close(&self, device: &Path) -> Result<()> {
        self.unmount()?;
        is_sound(&self.link)?;
        let cli = self.cli();
        cli.wait_for(VOLUME, "copies in step", PATIENCE, |view| view.link() == "streaming" && view.is_protected())?;
        ensure!(cli.verify(VOLUME)?, "the copies differ");
        cli.detach(VOLUME)?;
        is_gone(device, &self.link)
    }

    /// Both agents die and only A comes back: nobody tells it whether the other site took over, so its volume is suspended.
    fn restart_alone(&mut self) -> Result<()> {
        self.sites.b.kill();
        self.sites.a.kill();
        self.sites.a.start(&self.sites.stage)?;
        let is_back = |view: &crate::agents::VolumeView| view.attachment().is_some();
        let view = self.cli().wait_for(VOLUME, "device", PATIENCE, is_back)?;
        ensure!(view.role() == "suspended-restart", "alone after a restart it is {}", view.summary());
        Ok(())
    }
}

/// A detach that is not forced is refused at once.
fn refuses_to_detach(cli: &Cli) -> Result<()> {
    let refused = cli.detach(VOLUME).err().context("a mounted device was detached")?;
    let reason = refused.downcast::<Refused>()?.reason;
    ensure!(reason.contains("in use"), "refused with {reason}");
    Ok(())
}

fn is_sound(device: &Path) -> Result<()> {
    let checked = process::checked(Command::new("e2fsck").args(["-f", "-n"]).arg(device));
    checked.map(drop).context("the file system is damaged")
}

fn is_gone(device: &Path, link: &Path) -> Result<()> {
    ensure!(identifier(device).is_empty(), "{} is left", device.display());
    ensure!(fs::symlink_metadata(link).is_err(), "a link is left");
    Ok(())
}

fn identifier(device: &Path) -> String {
    fs::read_to_string(Path::new("/sys/block").join(name_of(device)).join("backend")).unwrap_or_default()
}

fn sectors(device: &Path) -> Result<u64> {
    Ok(fs::read_to_string(Path::new("/sys/block").join(name_of(device)).join("size"))?.trim().parse()?)
}

fn name_of(device: &Path) -> String {
    device.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
