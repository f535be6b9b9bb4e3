//! A site is lost with a file system in use: its device is ended, by an operator or by its own agent when that returns, and the volume
//! opened at the other site.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{PATIENCE, Stand, VOLUME, identifier, is_gone, is_sound, say};
use crate::devices;

pub(super) fn play(stand: &mut Stand<'_>) -> Result<()> {
    say("site A is lost");
    let (device, writer) = stand.write("lost")?;
    stand.sites.a.kill();
    devices::end_kernel_devices(stand.sites.a.dir())?;
    let (written, _) = writer.fails()?;
    is_gone(&device, &stand.link)?;

    let cli = stand.sites.b.cli();
    cli.promote_fenced(VOLUME, "the scenario killed site a", &[])?;
    let device = cli.attach(VOLUME, "auto")?;
    ensure!(device.frontend == "nbd-device", "at B it is {}", device.frontend);
    let device = device.block_device()?;
    stand.mount(device)?;
    written.is_in(&stand.mount)?;
    stand.unmount()?;
    is_sound(device)?;
    cli.detach(VOLUME)?;
    is_gone(device, &stand.sites.b.dir().join("run/dev").join(VOLUME))
}

/// Site A is taken for lost and the other one opened, while A's kernel keeps the device: what waits there belongs to a history that
/// nobody goes on with, and fails as soon as the agent of A learns so.
pub(super) fn overtaken(stand: &mut Stand<'_>) -> Result<()> {
    say("site B is opened while the device of site A waits");
    let (device, writer) = stand.write("overtaken")?;
    stand.sites.a.kill();
    let b = stand.sites.b.cli();
    b.promote_fenced(VOLUME, "the scenario killed the agent of site a", &[])?;
    stand.sites.a.start(&stand.sites.stage)?;
    let back = Instant::now();
    let (written, _) = writer.fails()?;
    ensure!(back.elapsed() < PATIENCE / 2, "that took {:?}: the kernel's own patience", back.elapsed());
    stand.unmount()?;
    ensure!(identifier(&device).is_empty(), "{} is left", device.display());

    let a = stand.cli();
    b.wait_for(VOLUME, "copies in step", PATIENCE, |view| view.link() == "streaming" && view.is_protected())?;
    b.json(&["demote", VOLUME])?;
    a.promote(VOLUME)?;
    let device = stand.attach()?;
    stand.mount(&device)?;
    written.is_in(&stand.mount)?;
    stand.close(&device)
}
