//! Two sites with a witness between them: who serves after a site or its peer is lost, without a person.
//!
//! Times are short and the machine may be busy: nothing here promises how long something takes, only that it comes, and in which
//! order.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tidemark_tests::agents::{Cli, NewVolume, Plan, Site, TwoSites, VolumeView, WitnessKind, WitnessPlan};
use tidemark_tests::verifier::Nbd;
use tidemark_tests::verifier::nbd::Command;

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
const NAME: &str = "pg";
const WITNESS: WitnessPlan = WitnessPlan { kind: WitnessKind::File, lease: Duration::from_secs(1) };

fn sites(name: &str, witness: Option<WitnessPlan>) -> Result<TwoSites> {
    let log_level = "info,tidemark_agent::witness=debug".to_owned();
    let mut sites = TwoSites::new(&Plan { name: format!("failover-{name}"), witness, log_level, ..Plan::default() })?;
    sites.start()?;
    Ok(sites)
}

/// A volume at A with its copy at B, whose K relies on A's lease.
fn create(sites: &TwoSites, auto_failover: &'static str) -> Result<()> {
    let options = vec!["--on-peer-loss", "witness", "--peer-loss", "1s", "--auto-failover", auto_failover];
    sites.create(&NewVolume { name: NAME, size: "64Mi", mode: "sync", options })?;
    sites.a.cli().wait_for(NAME, "arbitrated volume", PATIENCE, VolumeView::is_arbitrated)?;
    sites.b.cli().wait_for(NAME, "arbitrated copy", PATIENCE, VolumeView::is_arbitrated)?;
    Ok(())
}

fn client(cli: &Cli) -> Result<Nbd> {
    let socket = cli.attach(NAME, "nbd")?.nbd_socket()?;
    Ok(Nbd::connect(&socket, NAME, PATIENCE)?)
}

/// Writes block `number`, durable wherever the policy asks for it when this returns.
fn write(nbd: &mut Nbd, number: u8) -> Result<()> {
    Ok(nbd.write(u64::from(number) * BLOCK as u64, &[number; BLOCK], true)?)
}

/// Checks that blocks 1 to `count` are there.
fn check(nbd: &mut Nbd, count: u8) -> Result<()> {
    for number in 1..=count {
        let mut block = [0; BLOCK];
        nbd.read(u64::from(number) * BLOCK as u64, &mut block)?;
        ensure!(block == [number; BLOCK], "block {number} is lost");
    }
    Ok(())
}

fn wait_for_role(site: &Site, role: &str) -> Result<VolumeView> {
    site.cli().wait_for(NAME, role, PATIENCE, |view| view.role() == role)
}

/// Both copies are equal and every flush waits for both.
fn wait_until_whole(primary: &Site) -> Result<VolumeView> {
    let whole = |view: &VolumeView| view.is_protected() && view.sync_sites() == 2;
    primary.cli().wait_for(NAME, "two sites in S", PATIENCE, whole)
}

/// Block 1 was acknowledged by A alone, and A is gone; B, down before that, is still down.
fn left_out(name: &str) -> Result<TwoSites> {
    let mut sites = sites(name, Some(WITNESS))?;
    create(&sites, "true")?;
    let mut nbd = client(&sites.a.cli())?;
    sites.b.kill();
    let alone = write(&mut nbd, 1);
    told(&sites, alone)?;
    sites.a.kill();
    Ok(sites)
}

fn told<T>(sites: &TwoSites, result: Result<T>) -> Result<T> {
    result.with_context(|| sites.logs())
}

/// A dies with nine writes acknowledged; B takes over by itself, has them and takes a tenth; A comes back, and both are whole.
fn lose_a_and_get_it_back(sites: &mut TwoSites) -> Result<Nbd> {
    sites.a.kill();
    let taken = wait_for_role(&sites.b, "primary");
    told(sites, taken)?;
    let mut nbd = client(&sites.b.cli())?;
    check(&mut nbd, 9)?;
    write(&mut nbd, 10)?;
    sites.a.start(&sites.stage)?;
    let whole = wait_until_whole(&sites.b);
    told(sites, whole)?;
    Ok(nbd)
}

#[test]
fn a_site_that_is_killed_is_replaced_without_a_word_and_comes_back_as_the_follower() -> Result<()> {
    let mut sites = sites("auto", Some(WITNESS))?;
    create(&sites, "true")?;
    let mut nbd = client(&sites.a.cli())?;
    (1..=9).try_for_each(|number| write(&mut nbd, number))?;
    let nbd = lose_a_and_get_it_back(&mut sites)?;
    let follower = sites.a.cli().show(NAME)?;
    ensure!(follower.role() == "secondary" && follower.copy() == "current", "{}", follower.summary());
    ensure!(sites.b.cli().verify(NAME)?, "the copies differ");

    // And back, as somebody wants it: nothing fails back by itself.
    drop(nbd);
    let b = sites.b.cli();
    let refused = b.switchover(NAME, "a", &[]).expect_err("it is attached").to_string();
    ensure!(refused.contains("--detach"), "{refused}");
    let switched = b.switchover(NAME, "a", &["--detach"]);
    let switched = told(&sites, switched)?;
    ensure!(switched["pauseMs"].as_u64().is_some_and(|ms| ms > 0), "{switched}");
    check(&mut client(&sites.a.cli())?, 10)
}

#[test]
fn a_switchover_hands_the_volume_over_and_back_or_leaves_it_where_it_is() -> Result<()> {
    let mut sites = sites("switchover", None)?;
    sites.create(&NewVolume { name: NAME, size: "64Mi", mode: "sync", options: vec![] })?;
    let (a, b) = (sites.a.cli(), sites.b.cli());
    write(&mut client(&a)?, 1)?;
    for (from, to, site) in [(&a, &b, "b"), (&b, &a, "a")] {
        let plan = from.json(&["switchover", NAME, "--to", site, "--detach", "--plan"])?;
        ensure!(plan["steps"].to_string().contains("becomes the primary"), "{plan}");
        let switched = from.switchover(NAME, site, &["--detach"]);
        let switched = told(&sites, switched)?;
        println!("switchover to {site}: nobody served for {} ms", switched["pauseMs"]);
        ensure!(from.switchover(NAME, site, &[])?["pauseMs"] == 0, "it is there already");
        check(&mut client(to)?, 1)?;
    }
    sites.b.kill();
    let refused = a.switchover(NAME, "b", &["--force"]).expect_err("B is gone").to_string();
    ensure!(refused.contains("cannot take over"), "{refused}");
    ensure!(a.show(NAME)?.role() == "primary", "A serves as before");
    Ok(())
}

#[test]
fn a_switchover_goes_on_when_an_agent_is_killed_between_its_steps() -> Result<()> {
    let mut sites = sites("handing", None)?;
    sites.create(&NewVolume { name: NAME, size: "64Mi", mode: "sync", options: vec![] })?;
    write(&mut client(&sites.a.cli())?, 1)?;
    sites.a.cli().detach(NAME)?;
    // It stands still, and hears neither that A was demoted nor that it is to take over.
    sites.b.freeze();
    let asked = in_the_dark(&sites.a, "b")?;
    sites.a.kill();
    asked.join().expect("it ends").expect_err("its agent is gone");
    sites.b.thaw();
    sites.a.start(&sites.stage)?;
    let heir = wait_for_role(&sites.b, "primary");
    told(&sites, heir)?;
    check(&mut client(&sites.b.cli())?, 1)?;
    sites.b.cli().detach(NAME)?;
    wait_until_whole(&sites.b)?;
    // Back, and this time the one that is to take over dies.
    sites.a.freeze();
    let asked = in_the_dark(&sites.b, "a")?;
    sites.a.kill();
    sites.a.start(&sites.stage)?;
    let heir = wait_for_role(&sites.a, "primary");
    told(&sites, heir)?;
    asked.join().expect("it ends")?;
    check(&mut client(&sites.a.cli())?, 1)
}

/// Asks for a switchover whose other site stands still, and waits until nobody is the primary.
fn in_the_dark(from: &Site, to: &'static str) -> Result<std::thread::JoinHandle<Result<serde_json::Value>>> {
    let cli = from.cli();
    let asked = std::thread::spawn(move || cli.switchover(NAME, to, &[]));
    wait_for_role(from, "secondary")?;
    Ok(asked)
}

#[test]
fn what_a_failed_switchover_detached_is_attached_again() -> Result<()> {
    let sites = sites("again", None)?;
    sites.create(&NewVolume { name: NAME, size: "64Mi", mode: "async", options: vec![] })?;
    let a = sites.a.cli();
    a.wait_for(NAME, "followed volume", PATIENCE, VolumeView::is_streaming)?;
    let mut nbd = client(&a)?;
    write(&mut nbd, 1)?;
    // It does not make durable what is written from now on.
    sites.b.freeze();
    write(&mut nbd, 2)?;
    drop(nbd);
    let failed = a.switchover(NAME, "b", &["--detach"]).expect_err("B stands still").to_string();
    ensure!(failed.contains("serves again"), "{failed}");
    let view = a.show(NAME)?;
    ensure!(view.role() == "primary" && view.attachment().is_some(), "{}", view.summary());
    check(&mut client(&a)?, 2)?;
    sites.b.thaw();
    Ok(())
}

#[test]
fn a_site_that_is_killed_is_replaced_by_the_word_of_an_object_store() -> Result<()> {
    let witness = WitnessPlan { kind: WitnessKind::S3, ..WITNESS };
    let mut sites = sites("s3", Some(witness))?;
    create(&sites, "true")?;
    let shown = sites.a.cli().json(&["witness", "show"])?;
    ensure!(shown["backend"] == "s3" && shown["place"].to_string().contains("cells at 127.0.0.1"), "{shown}");
    (1..=9).try_for_each(|number| write(&mut client(&sites.a.cli())?, number))?;
    lose_a_and_get_it_back(&mut sites)?;
    ensure!(sites.a.cli().show(NAME)?.role() == "secondary", "A follows");
    Ok(())
}

#[test]
fn a_primary_without_its_peer_goes_on_once_the_witness_has_left_the_peer_out() -> Result<()> {
    let mut sites = sites("shrink", Some(WITNESS))?;
    create(&sites, "true")?;
    let mut nbd = client(&sites.a.cli())?;
    write(&mut nbd, 1)?;
    sites.b.kill();
    let waited = write(&mut nbd, 2); // waits for the peer until it is left out
    told(&sites, waited)?;
    let alone = sites.a.cli().show(NAME)?;
    ensure!(alone.role() == "primary" && alone.sync_sites() == 1, "{}", alone.summary());
    sites.b.start(&sites.stage)?;
    let whole = wait_until_whole(&sites.a);
    told(&sites, whole)?;
    ensure!(sites.a.cli().verify(NAME)?, "the copies differ");
    Ok(())
}

#[test]
fn a_copy_that_was_left_out_takes_over_neither_by_itself_nor_when_asked_without_a_word() -> Result<()> {
    let mut sites = left_out("left-out")?;
    sites.b.start(&sites.stage)?;
    let refused = sites.b.cli().promote(NAME).expect_err("block 1 is not at B").to_string();
    ensure!(refused.contains("may lack what was acknowledged"), "{refused}");
    std::thread::sleep(WITNESS.lease_wait());
    let view = sites.b.cli().show(NAME)?;
    ensure!(view.role() == "secondary", "{}", view.summary());
    Ok(())
}

#[test]
fn a_copy_that_was_left_out_does_not_take_over_when_the_witness_was_wiped_since() -> Result<()> {
    let mut sites = left_out("wiped")?;
    let witness = sites.stage.dir().join("witness");
    std::fs::remove_dir_all(&witness)?;
    std::fs::create_dir(&witness)?;
    sites.b.start(&sites.stage)?;
    std::thread::sleep(WITNESS.lease_wait() * 2);
    let view = sites.b.cli().show(NAME)?;
    ensure!(view.role() == "secondary", "block 1 is not at B: {}", view.summary());
    Ok(())
}

#[test]
fn a_copy_that_may_not_take_over_by_itself_does_so_when_asked_without_a_word() -> Result<()> {
    let mut sites = sites("promote", Some(WITNESS))?;
    create(&sites, "false")?;
    write(&mut client(&sites.a.cli())?, 1)?;
    sites.a.kill();
    std::thread::sleep(WITNESS.lease_wait());
    ensure!(sites.b.cli().show(NAME)?.role() == "secondary", "nobody asked it to take over");
    let promoted = sites.b.cli().promote(NAME);
    let promoted = told(&sites, promoted)?;
    ensure!(promoted.to_string().contains("lossless"), "{promoted}");
    check(&mut client(&sites.b.cli())?, 1)
}

#[test]
fn a_primary_that_stood_still_while_it_was_replaced_answers_no_read_of_that_time() -> Result<()> {
    // An agent that stands still may hold the lock of a directory.
    let sites = sites("still", Some(WitnessPlan { kind: WitnessKind::Etcd, ..WITNESS }))?;
    create(&sites, "true")?;
    let mut nbd = client(&sites.a.cli())?;
    write(&mut nbd, 1)?;
    sites.a.freeze();
    std::thread::sleep(Duration::from_millis(200)); // every thread of it stands still
    // It is in the agent's socket when the agent wakes up.
    let asked = std::thread::spawn(move || {
        let mut block = [0; BLOCK];
        nbd.read(BLOCK as u64, &mut block).map(|()| block[0])
    });
    let taken = wait_for_role(&sites.b, "primary");
    told(&sites, taken)?;
    client(&sites.b.cli())?.write(BLOCK as u64, &[2; BLOCK], true)?;
    sites.a.thaw();
    let read = asked.join().expect("no panic");
    ensure!(read.is_err(), "A answers with {read:?}");
    let whole = wait_until_whole(&sites.b);
    told(&sites, whole)?;
    ensure!(sites.a.cli().show(NAME)?.role() == "secondary", "A follows");
    Ok(())
}

#[test]
fn a_primary_that_neither_witness_nor_peer_answers_holds_everything_until_one_does() -> Result<()> {
    let mut sites = sites("freeze", Some(WITNESS))?;
    create(&sites, "false")?;
    let mut nbd = client(&sites.a.cli())?;
    write(&mut nbd, 1)?;
    let (witness, hidden) = (sites.stage.dir().join("witness"), sites.stage.dir().join("hidden"));
    std::fs::rename(&witness, &hidden)?;
    sites.b.kill();
    let frozen = wait_for_role(&sites.a, "suspended-lease-lost");
    told(&sites, frozen)?;
    let state = sites.a.cli().json(&["witness", "show"])?;
    ensure!(state["reachable"] == false && state["leaseLeftMs"] == 0, "{state}");
    std::fs::rename(&hidden, &witness)?;
    let mut block = [0; BLOCK];
    nbd.read(BLOCK as u64, &mut block)?; // was held until then
    nbd.plain(Command::Flush, 0, 0)?;
    ensure!(block == [1; BLOCK], "another block");
    let state = sites.a.cli().json(&["witness", "show"])?;
    ensure!(state["reachable"] == true && state["leaseGen"].as_u64() > Some(0), "{state}");
    Ok(())
}

#[test]
fn an_agent_that_is_killed_and_comes_back_in_time_serves_again_under_a_new_grant() -> Result<()> {
    let mut sites = sites("resume", Some(WITNESS))?;
    create(&sites, "false")?;
    let grant = |view: &VolumeView| view.number("/status/config/leaseGen");
    let before = grant(&sites.a.cli().show(NAME)?);
    write(&mut client(&sites.a.cli())?, 1)?;
    sites.a.kill();
    sites.a.start(&sites.stage)?;
    let resumed = sites.a.cli().wait_for(NAME, "newer grant", PATIENCE, |view| {
        view.role() == "primary" && view.sync_sites() == 2 && grant(view) > before
    });
    told(&sites, resumed)?;
    check(&mut client(&sites.a.cli())?, 1)
}

#[test]
fn a_policy_that_stops_asking_the_witness_takes_it_out_of_k_at_both_sites() -> Result<()> {
    let sites = sites("disarm", Some(WITNESS))?;
    create(&sites, "false")?;
    let mut nbd = client(&sites.a.cli())?;
    sites.a.cli().json(&["volume", "set", NAME, "--on-peer-loss", "suspend"])?;
    for site in [&sites.a, &sites.b] {
        let disarmed = site.cli().wait_for(NAME, "K without a witness", PATIENCE, |view| !view.is_arbitrated());
        told(&sites, disarmed)?;
    }
    write(&mut nbd, 1)?;
    sites.a.cli().json(&["volume", "set", NAME, "--on-peer-loss", "witness"])?;
    sites.a.cli().wait_for(NAME, "arbitrated volume", PATIENCE, VolumeView::is_arbitrated)?;
    write(&mut nbd, 2)
}

#[test]
fn a_witness_that_was_put_back_while_the_agent_was_down_is_not_believed() -> Result<()> {
    let mut sites = sites("put-back", Some(WITNESS))?;
    create(&sites, "false")?;
    let witness = sites.stage.dir().join("witness");
    let lease = witness.join(format!("lease-{}", sites.a.node_id().replace('-', "")));
    let before = std::fs::read(&lease)?;
    std::thread::sleep(WITNESS.lease * 3); // renewed meanwhile, and remembered
    sites.a.stop()?;
    std::fs::write(&lease, before)?;
    sites.a.start(&sites.stage)?;
    // The agent asks for other cells, too: what it says last may be about one of these.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = sites.a.cli().json(&["witness", "show"])?;
        ensure!(state["leaseGen"] == 0 && Instant::now() < deadline, "{state}");
        if state["fault"].to_string().contains("the witness forgot") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_policy_that_needs_a_witness_is_refused_by_an_agent_without_one() -> Result<()> {
    let sites = sites("policy", None)?;
    let cli = sites.a.cli();
    sites.create(&NewVolume { name: NAME, size: "16Mi", mode: "sync", options: Vec::new() })?;
    let refused = |args: &[&str], wanted: &str| {
        let error = cli.json(&[&["volume", "set", NAME], args].concat()).expect_err("no witness").to_string();
        ensure!(error.contains(wanted), "{args:?}: {error}");
        Ok(())
    };
    refused(&["--on-peer-loss", "witness"], "add a section [witness]")?;
    refused(&["--auto-failover", "true"], "needs onPeerLoss witness")?;
    refused(&["--on-peer-loss", "continue"], "continue does not act yet")?;
    refused(&["--peer-loss", "100ms"], "allowed are 500 to 600000 milliseconds")?;
    let error = cli.json(&["witness", "show"]).expect_err("there is none").to_string();
    ensure!(error.contains("no witness"), "{error}");
    let set = cli.json(&["volume", "set", NAME, "--peer-loss", "2s", "--auto-failover", "false"])?;
    ensure!(set.to_string().contains("2000"), "{set}");
    Ok(())
}
