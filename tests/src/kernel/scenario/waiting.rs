//! Requests that nobody answers: they wait as long as somebody may come, and fail when it is certain that nobody does.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{PATIENCE, RESEND_AFTER, Stand, VOLUME, identifier, is_sound, refuses_to_detach, say};

/// A suspended volume queues: the kernel grows impatient, and nothing fails.
pub(super) fn suspended(stand: &mut Stand<'_>) -> Result<()> {
    say("the volume is suspended and comes back");
    let (device, writer) = stand.write("suspended")?;
    stand.restart_alone()?;
    writer.waits(4 * RESEND_AFTER)?;
    stand.sites.b.start(&stand.sites.stage)?;
    writer.goes_on()?;
    let written = writer.finish()?;
    stand.unmount()?;
    stand.mount(&device)?;
    written.is_in(&stand.mount)?;
    stand.close(&device)
}

/// What waits does not hold up a detach: it is refused at once, or fails what waits.
pub(super) fn detached(stand: &mut Stand<'_>) -> Result<()> {
    say("the volume is suspended and detached");
    let (device, writer) = stand.write("detached")?;
    stand.restart_alone()?;
    writer.waits(RESEND_AFTER)?;
    let begun = Instant::now();
    refuses_to_detach(&stand.cli())?;
    ensure!(begun.elapsed() < PATIENCE / 4, "the refusal took {:?}", begun.elapsed());
    stand.cli().json(&["volume", "detach", VOLUME, "--force"])?;
    let (written, _) = writer.fails()?;

    stand.sites.b.start(&stand.sites.stage)?;
    stand.cli().wait_for(VOLUME, "primary", PATIENCE, |view| view.role() == "primary")?;
    let dead = device;
    let device = stand.attach()?;
    ensure!(device != dead, "the device whose file system is still mounted stays dead");
    stand.unmount()?;
    ensure!(identifier(&dead).is_empty(), "{} is left", dead.display());
    stand.mount(&device)?;
    written.is_in(&stand.mount)?;
    stand.close(&device)
}

/// Shorter than the test's patience.
const DEAD_TIMEOUT: Duration = Duration::from_secs(8);

/// An agent that stays away for longer than was agreed: what waits fails, and the device serves again when it does come back.
pub(super) fn expired(stand: &mut Stand<'_>) -> Result<()> {
    say("the agent stays away for too long");
    stand.sites.a.stop()?;
    let config = stand.sites.a.config_path();
    let (old, new) = ("dead_timeout = \"60s\"", format!("dead_timeout = \"{}s\"", DEAD_TIMEOUT.as_secs()));
    fs::write(&config, fs::read_to_string(&config)?.replace(old, &new))?;
    stand.sites.a.start(&stand.sites.stage)?;
    stand.cli().wait_for(VOLUME, "primary", PATIENCE, |view| view.role() == "primary")?;
    let (_, writer) = stand.write("expired")?;
    let killed = Instant::now();
    stand.sites.a.kill();
    let (written, _) = writer.fails()?;
    let waited = killed.elapsed();
    // The kernel counts from the first request that it cannot send.
    ensure!(waited >= DEAD_TIMEOUT - Duration::from_secs(1), "it failed after {waited:?} already");

    stand.sites.a.start(&stand.sites.stage)?;
    let view = stand.cli().wait_for(VOLUME, "device", PATIENCE, |view| view.attachment().is_some())?;
    let device = view.attachment().and_then(|attachment| attachment.device).context("a device")?;
    stand.unmount()?;
    stand.mount(&device)?;
    written.is_in(&stand.mount)?;
    stand.unmount()?;
    is_sound(&device)?;
    stand.mount(&device)?;
    stand.close(&device)
}
