//! The catalogue of a real agent: an index that may be lost in any way, over files that say everything.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tidemark_tests::agents::{NewVolume, Plan, TwoSites};
use tidemark_tests::dice::Dice;

const PATIENCE: Duration = Duration::from_secs(30);
const ALONE: [&str; 6] = ["--size", "16Mi", "--log-size", "16Mi", "--frontend", "nbd"];

/// A volume as it is listed.
#[derive(PartialEq, Eq, Debug)]
struct Listed {
    name: String,
    directory: String,
    attached: bool,
    fault: String,
}

/// All volumes at A.
fn listed(sites: &TwoSites) -> Result<Vec<Listed>> {
    let list = sites.a.cli().json(&["volume", "list"])?;
    let volumes = list.as_array().or_else(|| list.pointer("/volumes")?.as_array()).context("a list of volumes")?;
    let text = |volume: &Value, at: &str| volume.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let one = |volume: &Value| Listed {
        name: text(volume, "/name"),
        directory: text(volume, "/directory"),
        attached: volume.pointer("/attachment").is_some_and(|attachment| !attachment.is_null()),
        fault: text(volume, "/openError"),
    };
    Ok(volumes.iter().map(one).collect())
}

/// An agent with two volumes, one of them attached, and a peer added by a verb, stopped; and what it had listed.
fn stopped_with_two_volumes(name: &str) -> Result<(TwoSites, Vec<Listed>)> {
    let mut sites = TwoSites::new(&Plan { name: name.to_owned(), ..Plan::default() })?;
    sites.start()?;
    sites.create(&NewVolume { name: "pg", size: "16Mi", mode: "sync", options: vec!["--log-size", "16Mi"] })?;
    sites.a.cli().json(&[&["volume", "create", "logs"], ALONE.as_slice()].concat())?;
    sites.a.cli().attach("pg", "nbd")?;
    let far = ["peer", "add", "far", "--site-id", "99999999-0000-4000-8000-000000000001", "--address", "127.0.0.9:1"];
    sites.a.cli().json(&far)?;
    let all = listed(&sites)?;
    ensure!(all.len() == 2 && all.iter().filter(|volume| volume.attached).count() == 1, "{all:?}");
    sites.a.stop()?;
    Ok((sites, all))
}

fn index_dir(sites: &TwoSites) -> PathBuf {
    sites.a.state_dir().join("catalogue")
}

/// Starts A and demands everything that it knew, and a flush on the attached volume.
fn has_everything(sites: &mut TwoSites, all: &[Listed]) -> Result<()> {
    sites.a.start(&sites.stage)?;
    let done =
        |view: &tidemark_tests::agents::VolumeView| view.is_protected() && view.0.pointer("/attachment").is_some();
    sites.a.cli().wait_for("pg", "volume served and attached again", PATIENCE, done)?;
    ensure!(listed(sites)? == all, "{:?} instead of {all:?}", listed(sites)?);
    let peers = sites.a.cli().json(&["peer", "list"])?.to_string();
    ensure!(peers.contains("\"far\""), "{peers}");
    Ok(())
}

fn rebuilds(sites: &TwoSites, reason: &str) -> Result<bool> {
    let line = format!("tidemark_catalogue_rebuilds_total{{reason=\"{reason}\"}} 1");
    Ok(sites.a.metrics()?.contains(&line))
}

#[test]
fn an_agent_whose_catalogue_was_deleted_starts_with_everything() -> Result<()> {
    let (mut sites, all) = stopped_with_two_volumes("catalogue-deleted")?;
    fs::remove_dir_all(index_dir(&sites))?;
    has_everything(&mut sites, &all)?;
    ensure!(rebuilds(&sites, "missing")?, "the rebuild is not counted");
    ensure!(fs::read_to_string(sites.a.log_path())?.contains("was not there"), "the rebuild is not in the log");
    sites.a.stop()?;
    has_everything(&mut sites, &all)?;
    ensure!(!rebuilds(&sites, "missing")?, "it is rebuilt once");
    Ok(())
}

#[test]
fn an_agent_whose_catalogue_is_damaged_starts_with_everything() -> Result<()> {
    let (mut sites, all) = stopped_with_two_volumes("catalogue-damaged")?;
    let mut dice = Dice::new(5);
    let mut told = false;
    for round in 0..4 {
        for entry in fs::read_dir(index_dir(&sites))? {
            let path = entry?.path();
            let mut bytes = fs::read(&path)?;
            let flips = if round == 0 { bytes.len() } else { bytes.len().min(3) };
            for flip in 0..flips {
                let at = if round == 0 { flip } else { dice.below(bytes.len() as u64) as usize };
                bytes[at] ^= 0x5a;
            }
            fs::write(&path, bytes)?;
        }
        has_everything(&mut sites, &all).with_context(|| format!("round {round}"))?;
        told |= rebuilds(&sites, "damaged")?;
        sites.a.stop()?;
    }
    ensure!(told, "no rebuild is counted");
    Ok(())
}

#[test]
fn a_volume_whose_pool_is_gone_keeps_its_name_and_comes_back_with_it() -> Result<()> {
    let (mut sites, all) = stopped_with_two_volumes("catalogue-unmounted")?;
    let elsewhere = sites.a.dir().join("elsewhere");
    fs::rename(sites.a.pool(), &elsewhere)?;
    sites.a.start(&sites.stage)?;
    let missing = listed(&sites)?;
    ensure!(
        missing.len() == 2 && missing.iter().all(|volume| volume.fault.contains("is the pool mounted?")),
        "{missing:?}"
    );
    let again = sites.a.cli().json(&[&["volume", "create", "pg"], ALONE.as_slice()].concat());
    ensure!(again.is_err(), "the name of a missing volume is free");
    sites.a.stop()?;
    fs::remove_dir_all(sites.a.pool())?;
    fs::rename(&elsewhere, sites.a.pool())?;
    has_everything(&mut sites, &all)
}

#[test]
fn a_kill_during_a_create_leaves_a_whole_volume_or_none() -> Result<()> {
    let mut sites = TwoSites::new(&Plan { name: "catalogue-kill".to_owned(), ..Plan::default() })?;
    sites.a.start(&sites.stage)?;
    let mut dice = Dice::new(7);
    let (mut made, mut unmade) = (0, 0);
    for round in 0..24 {
        let (cli, name) = (sites.a.cli(), format!("v{round}"));
        let pause = Duration::from_micros(dice.below(25_000));
        let create = std::thread::spawn({
            let (cli, name) = (cli.clone(), name.clone());
            move || cli.json(&[&["volume", "create", &name], ALONE.as_slice()].concat()).is_ok()
        });
        std::thread::sleep(pause);
        sites.a.kill();
        let answered = create.join().expect("the create ended");
        sites.a.start(&sites.stage)?;
        let all = listed(&sites)?;
        let faulty: Vec<_> = all.iter().filter(|volume| !volume.fault.is_empty()).collect();
        ensure!(faulty.is_empty(), "round {round} left {faulty:?}");
        let there = all.iter().filter(|volume| volume.name == name).count();
        ensure!(there == 1 || (there == 0 && !answered), "round {round}: {there} times, answered {answered}");
        let dirs = fs::read_dir(sites.a.pool())?.count();
        ensure!(dirs == all.len(), "round {round}: {dirs} directories for {} volumes", all.len());
        if there == 1 {
            made += 1
        } else {
            unmade += 1
        }
        if there == 0 {
            cli.json(&[&["volume", "create", &name], ALONE.as_slice()].concat()).context("made after all")?;
        }
    }
    eprintln!("{made} volumes made, {unmade} not");
    ensure!(unmade > 0, "no kill came in time");
    Ok(())
}
