//! A site is lost with a file system in use: its device is ended as an operator ends it, and the volume opened at the other site.

use anyhow::{Result, ensure};

use super::writer::Writer;
use super::{Stand, VOLUME, is_gone, is_sound, say};
use crate::devices;

pub(super) fn play(stand: &mut Stand<'_>) -> Result<()> {
    say("site A is lost");
    let device = stand.attach()?;
    stand.mount(&device)?;
    let writer = Writer::start(&stand.mount, "lost")?;
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
