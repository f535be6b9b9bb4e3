//! A group with a volume on each of two nodes of a site: it serves, fails over and comes back as one.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tidemark_tests::agents::{FourAgents, Plan, Site, VolumeView, WitnessKind, WitnessPlan};
use tidemark_tests::verifier::Nbd;

const PATIENCE: Duration = Duration::from_secs(90);
const BLOCK: usize = 4096;
const GROUP: &str = "pg";
const SIZE: &str = "64Mi";
const VOLUMES: [&str; 2] = ["data", "wal"];
const WITNESS: WitnessPlan = WitnessPlan { kind: WitnessKind::File, lease: Duration::from_secs(1) };
const OPTIONS: [&str; 8] =
    ["--mode", "sync", "--on-peer-loss", "witness", "--peer-loss", "1s", "--auto-failover", "true"];

fn agents(name: &str) -> Result<FourAgents> {
    let mut four =
        FourAgents::new(&Plan { name: format!("members-{name}"), witness: Some(WITNESS), ..Plan::default() })?;
    four.start()?;
    Ok(four)
}

fn clients(site: &[Site; 2]) -> Result<[Nbd; 2]> {
    let client = |number: usize| -> Result<Nbd> {
        let socket = site[number].cli().attach(VOLUMES[number], "nbd")?.nbd_socket()?;
        Ok(Nbd::connect(&socket, VOLUMES[number], PATIENCE)?)
    };
    Ok([client(0)?, client(1)?])
}

/// Writes block `number` of both volumes, durable at both sites when this returns.
fn write(clients: &mut [Nbd; 2], number: u8) -> Result<()> {
    for (volume, client) in clients.iter_mut().enumerate() {
        client.write(u64::from(number) * BLOCK as u64, &[number + 100 * volume as u8; BLOCK], true)?;
    }
    Ok(())
}

/// Checks that blocks 1 to `count` of both volumes are there.
fn check(clients: &mut [Nbd; 2], count: u8) -> Result<()> {
    for (volume, client) in clients.iter_mut().enumerate() {
        for number in 1..=count {
            let mut block = [0; BLOCK];
            client.read(u64::from(number) * BLOCK as u64, &mut block)?;
            ensure!(block == [number + 100 * volume as u8; BLOCK], "block {number} of {} is lost", VOLUMES[volume]);
        }
    }
    Ok(())
}

#[test]
fn two_volumes_on_two_nodes_fail_over_together_lose_nothing_and_are_handed_back() -> Result<()> {
    let mut four = agents("failover")?;
    four.create(0, (VOLUMES[0], SIZE), GROUP, &OPTIONS)?;
    let alone = four.a[0].cli().wait_for(VOLUMES[0], "opening", PATIENCE, |view| view.role() == "suspended-opening")?;
    ensure!(alone.text("/status/members/worst").contains(&four.a[1].node_id()), "{}", alone.summary());
    four.create(1, (VOLUMES[1], SIZE), GROUP, &OPTIONS)?;
    four.create(1, (VOLUMES[1], SIZE), GROUP, &OPTIONS).context("the same request again")?;
    four.wait_until_whole(&four.a, VOLUMES, PATIENCE)?;
    let mut nbd = clients(&four.a)?;
    (1..=9).try_for_each(|number| write(&mut nbd, number)).with_context(|| four.logs())?;

    four.a.iter_mut().for_each(Site::kill);
    for (agent, volume) in four.b.iter().zip(VOLUMES) {
        let taken = agent.cli().wait_for(volume, "primary", PATIENCE, |view| view.role() == "primary");
        taken.with_context(|| four.logs())?;
    }
    let mut nbd = clients(&four.b)?;
    check(&mut nbd, 9)?;
    write(&mut nbd, 10)?;

    four.start()?;
    four.wait_until_whole(&four.b, VOLUMES, PATIENCE)?;
    for (agent, volume) in four.a.iter().zip(VOLUMES) {
        let view = agent.cli().show(volume)?;
        ensure!(view.role() == "secondary" && view.copy() == "current", "{}", view.summary());
    }

    let refused = four.b[1].cli().switchover(VOLUMES[1], "a", &["--force"]).expect_err("it does not lead").to_string();
    ensure!(refused.contains(&four.b[0].node_id()), "the one that leads is named: {refused}");
    drop(nbd);
    for (agent, volume) in four.b.iter().zip(VOLUMES) {
        agent.cli().json(&["volume", "detach", volume])?;
    }
    let switched = four.b[0].cli().switchover(VOLUMES[0], "a", &[]);
    let switched = switched.with_context(|| four.logs())?;
    println!("switchover back: nobody served for {} ms", switched["pauseMs"]);
    four.wait_until_whole(&four.a, VOLUMES, PATIENCE)?;
    check(&mut clients(&four.a)?, 10)?;
    for (agent, volume) in four.a.iter().zip(VOLUMES) {
        ensure!(agent.cli().verify(volume)?, "the copies of {volume} differ");
    }
    Ok(())
}

#[test]
fn a_member_that_is_gone_is_named_and_no_empty_copy_takes_its_place() -> Result<()> {
    let mut four = agents("gone")?;
    four.create(0, (VOLUMES[0], SIZE), GROUP, &OPTIONS)?;
    four.create(1, (VOLUMES[1], SIZE), GROUP, &OPTIONS)?;
    four.wait_until_whole(&four.a, VOLUMES, PATIENCE)?;
    let is_named = |four: &FourAgents| {
        let node = four.a[1].node_id();
        move |view: &VolumeView| view.text("/status/members/worst").contains(&node)
    };
    let states = four.a[0].cli().show(VOLUMES[0])?;
    ensure!(!is_named(&four)(&states), "all are there: {}", states.summary());
    four.a[1].kill();
    four.a[0].cli().wait_for(VOLUMES[0], "the worst member", PATIENCE, is_named(&four))?;
    std::fs::remove_dir_all(four.a[1].pool())?;
    std::fs::remove_dir_all(four.a[1].state_dir())?;
    four.start()?;
    let refused = four.create(1, (VOLUMES[1], SIZE), GROUP, &OPTIONS).expect_err("it held something").to_string();
    ensure!(refused.contains("was there before"), "{refused}");
    Ok(())
}
