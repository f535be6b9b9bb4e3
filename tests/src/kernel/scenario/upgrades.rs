//! The agent goes and comes back, and whoever uses the device waits meanwhile.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::writer::Writer;
use super::{PATIENCE, Stand, VOLUME, identifier, is_gone, refuses_to_detach, say, sectors};
use crate::process;

/// Killed and stopped under a file system in use, and grown.
pub(super) fn play(stand: &mut Stand<'_>) -> Result<()> {
    let device = stand.attach()?;
    say("attached; a file system is made and written to");
    process::checked(Command::new("mkfs.ext4").arg("-q").arg(&stand.link))?;
    stand.mount(&stand.link)?;
    let writer = Writer::start(&stand.mount, "upgrades")?;
    refuses_to_detach(&stand.cli())?;

    say("the agent is killed and comes back");
    stand.sites.a.kill();
    std::thread::sleep(Duration::from_secs(1));
    stand.sites.a.start(&stand.sites.stage)?;
    writer.goes_on()?;
    say("the agent is stopped and comes back");
    stand.sites.a.stop()?;
    stand.sites.a.start(&stand.sites.stage)?;
    writer.goes_on()?;
    let view = stand.cli().wait_for(VOLUME, "device", PATIENCE, |view| view.attachment().is_some())?;
    ensure!(view.attachment().and_then(|a| a.device) == Some(device.clone()), "it is the same device");

    say("the volume grows");
    stand.cli().json(&["volume", "resize", VOLUME, "--size", "192Mi"])?;
    ensure!(sectors(&device)? == 192 * 2048, "the device has {} sectors", sectors(&device)?);
    process::checked(Command::new("resize2fs").arg(&stand.link))?;
    let written = writer.finish()?;
    stand.unmount()?;
    stand.mount(&stand.link)?;
    written.is_in(&stand.mount)?;
    stand.close(&device)
}

/// A device whose volume is to be detached is ended also when the agent died in between.
pub(super) fn leftover(stand: &mut Stand<'_>) -> Result<()> {
    say("a device that its agent left is ended by a detach of the next");
    let device = stand.attach()?;
    stand.sites.a.kill();
    ensure!(!identifier(&device).is_empty(), "the device stays");
    // The device waits for a volume that does not serve yet.
    stand.sites.a.start(&stand.sites.stage)?;
    stand.cli().json(&["volume", "detach", VOLUME, "--force"])?;
    is_gone(&device, &stand.link)
}
