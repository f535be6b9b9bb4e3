//! A site that was cut off for longer than the log lasts, with real agents: it is sent what changed, and no more.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tidemark_tests::agents::{Cli, NewVolume, Plan, TwoSites, VolumeView};
use tidemark_tests::proxy::Weather;
use tidemark_tests::verifier::Nbd;

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const NAME: &str = "data";
/// Of the volume's 96 MiB.
const VOLUME_MIB: u64 = 96;
/// What is overwritten while the link is cut, and how often: three times what the log holds.
const CHANGED_MIB: u64 = 2;
const ROUNDS: u8 = 24;

fn write(nbd: &mut Nbd, mib: u64, byte: u8) -> Result<()> {
    let blocks = (0..MIB / 4096).flat_map(|n| [byte ^ (n % 7) as u8; 4096]).collect::<Vec<u8>>();
    Ok(nbd.write(mib * MIB as u64, &blocks, false)?)
}

fn is_in_step(view: &VolumeView) -> bool {
    view.is_streaming() && view.backlog_bytes() == 0
}

#[test]
fn a_site_that_was_cut_off_for_longer_than_the_log_lasts_is_sent_what_changed() -> Result<()> {
    let plan = Plan { name: "difference".to_owned(), link_seed: Some(7), ..Plan::default() };
    let mut sites = TwoSites::new(&plan)?;
    sites.start()?;
    let done = cut_off(&mut sites);
    done.with_context(|| sites.logs())
}

fn cut_off(sites: &mut TwoSites) -> Result<()> {
    let (a, size) = (sites.a.cli(), format!("{VOLUME_MIB}Mi"));
    sites.create(&NewVolume { name: NAME, size: &size, mode: "async", options: vec!["--log-size", "16Mi"] })?;
    let socket = a.attach(NAME, "nbd")?.nbd_socket()?;
    let mut nbd = Nbd::connect(&socket, NAME, PATIENCE)?;
    for mib in 0..VOLUME_MIB {
        write(&mut nbd, mib, mib as u8 + 1)?;
    }
    nbd.write(0, &[1; 4096], true)?;
    a.wait_for(NAME, "follower in step", PATIENCE, is_in_step)?;

    sites.set_link(Weather { refuse: true, ..Weather::default() });
    sites.cut_link();
    a.wait_for(NAME, "cut off", PATIENCE, |view| !view.is_streaming())?;
    for round in 0..ROUNDS {
        for mib in 0..CHANGED_MIB {
            write(&mut nbd, 40 + mib, round ^ 0x55)?;
        }
    }
    nbd.write(0, &[1; 4096], true)?;
    let before = seeded(&a)?;
    sites.set_link(Weather::default());
    a.wait_for(NAME, "follower in step again", PATIENCE, is_in_step)?;
    let moved = seeded(&a)? - before;
    let changed = CHANGED_MIB * MIB as u64;
    println!("{moved} bytes were sent, {changed} changed, of {VOLUME_MIB} MiB");
    ensure!(moved > 0, "it went by the log: nothing was tried");
    ensure!(moved * 100 <= changed * 105, "{moved} bytes were sent of {changed} that changed");
    let b = sites.b.cli();
    b.wait_for(NAME, "whole again", PATIENCE, |view| view.copy() == "current")?;
    ensure!(a.verify(NAME)?, "the copies differ");
    Ok(())
}

fn seeded(cli: &Cli) -> Result<u64> {
    Ok(cli.show(NAME)?.number("/status/counters/seededBytes"))
}
