//! Records that only the damaged copy had: acknowledged in mode async, never shipped, and not readable any more when the other
//! site has taken over. Such a copy must not follow the newer history as if nothing had been lost.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::VOLUME;
use super::damage::Damage;
use super::table::oldest_segment;
use crate::agents::{NewVolume, Plan, TwoSites, VolumeView};
use crate::verifier::Nbd;
use crate::verifier::nbd::Command;

const PATIENCE: Duration = Duration::from_secs(40);
const WRITES: u64 = 64;
const BYTES: usize = 32 << 10;
/// After this the base holds what both have: what is lost then is what only A had.
const FLOOR_PAUSE: Duration = Duration::from_millis(500);

/// Plays it; the copy at A refuses as diverged until an operator gives it up.
///
/// # Errors
/// What did not hold.
pub fn play(keep: bool) -> Result<()> {
    let mut sites = TwoSites::new(&Plan { name: "alone".to_owned(), ..Plan::default() })?;
    if keep {
        sites.stage.keep();
    }
    lose_what_only_a_had(&mut sites).with_context(|| sites.logs())
}

fn lose_what_only_a_had(sites: &mut TwoSites) -> Result<()> {
    sites.start()?;
    let view =
        sites.create(&NewVolume { name: VOLUME, size: "16Mi", mode: "async", options: vec!["--log-size", "16Mi"] })?;
    let socket = sites.a.cli().attach(VOLUME, "nbd")?.nbd_socket()?;
    let mut connection = Nbd::connect(&socket, VOLUME, PATIENCE)?;
    write_flushed(&mut connection)?;
    sites.a.cli().wait_for(VOLUME, "record at B", PATIENCE, |view| view.backlog_bytes() == 0)?;
    std::thread::sleep(FLOOR_PAUSE);
    sites.b.kill();
    write_flushed(&mut connection)?;
    sites.a.kill();
    let file = oldest_segment(&view.directory())?;
    Damage::Flip { file, at: 41 }.inflict(&view.directory())?;

    sites.b.start(&sites.stage)?;
    sites.b.cli().wait_for(VOLUME, "copy at B opened", PATIENCE, |view| !["", "opening"].contains(&view.copy()))?;
    sites.b.cli().promote_fenced(VOLUME, "test: site a is down", &["--allow-unproven"])?;
    sites.a.start(&sites.stage)?;
    let diverged = |view: &VolumeView| view.copy() == "diverged";
    let view = sites.a.cli().wait_for(VOLUME, "diverged copy at A", PATIENCE, diverged)?;
    ensure!(view.copy_reason().contains("acknowledged here"), "the reason is {:?}", view.copy_reason());
    sites.a.cli().json(&["reseed", VOLUME, "--yes"])?;
    sites.b.cli().wait_for(VOLUME, "whole copy at A", PATIENCE, VolumeView::is_streaming)?;
    Ok(())
}

fn write_flushed(connection: &mut Nbd) -> Result<()> {
    for at in 0..WRITES {
        connection.write(at * BYTES as u64, &[0xa5; BYTES], false)?;
    }
    Ok(connection.plain(Command::Flush, 0, 0)?)
}
