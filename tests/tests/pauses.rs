//! What an operator pauses with real agents: it stands over a restart, and nothing is lost by it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tidemark_tests::agents::{Cli, NewVolume, Plan, TwoSites, VolumeView};
use tidemark_tests::verifier::Nbd;

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
const NAME: &str = "logs";

fn write(cli: &Cli, number: u8) -> Result<()> {
    let socket = cli.attach(NAME, "nbd")?.nbd_socket()?;
    let mut nbd = Nbd::connect(&socket, NAME, PATIENCE)?;
    nbd.write(u64::from(number) * BLOCK as u64, &[number; BLOCK], true)?;
    Ok(())
}

fn is_in_step(view: &VolumeView) -> bool {
    view.is_streaming() && view.backlog_bytes() == 0
}

#[test]
fn what_is_paused_stands_over_a_restart_and_goes_on_when_it_is_resumed() -> Result<()> {
    let mut sites = TwoSites::new(&Plan { name: "pauses".to_owned(), ..Plan::default() })?;
    sites.start()?;
    let done = paused(&mut sites);
    done.with_context(|| sites.logs())
}

fn paused(sites: &mut TwoSites) -> Result<()> {
    let a = sites.a.cli();
    sites.create(&NewVolume { name: NAME, size: "16Mi", mode: "sync", options: Vec::new() })?;
    a.wait_for(NAME, "two sites in S", PATIENCE, |view| view.is_protected() && view.sync_sites() == 2)?;
    let refused = a.json(&["pause", NAME, "--ship"]).expect_err("flushes wait for B").to_string();
    ensure!(refused.contains("peer-in-s") && refused.contains("--mode async"), "{refused}");
    a.json(&["volume", "set", NAME, "--mode", "async"])?;
    a.wait_for(NAME, "one site in S", PATIENCE, |view| view.sync_sites() == 1)?;

    write(&a, 1)?;
    a.wait_for(NAME, "follower in step", PATIENCE, is_in_step)?;
    a.json(&["pause", NAME, "--ship", "--floor"])?;
    write(&a, 2)?;
    let drain = a.json(&["drain", NAME]).expect_err("the base stands").to_string();
    ensure!(drain.contains("resume --floor"), "{drain}");
    sites.a.kill();
    sites.a.start(&sites.stage)?;
    a.wait_for(NAME, "primary again", PATIENCE, |view| view.role() == "primary")?;
    write(&a, 3)?;
    let view = a.show(NAME)?;
    ensure!(view.link() == "paused" && view.text("/status/paused/0") == "ship", "{}", view.summary());
    ensure!(!view.is_protected() && view.backlog_bytes() > 0, "{}", view.summary());
    ensure!(view.number("/status/floorLsn") < view.number("/status/durableLsn"), "{}", view.summary());

    a.json(&["resume", NAME])?;
    a.wait_for(NAME, "follower in step again", PATIENCE, is_in_step)?;
    a.json(&["drain", NAME])?;
    ensure!(a.verify(NAME)?, "the copies differ");
    Ok(())
}
