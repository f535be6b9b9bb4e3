//! Groups of several volumes on real agents: one log, one primary, one order of writes.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tidemark_tests::agents::{Cli, NewVolume, Plan, Refused, Site, TwoSites, VolumeView};
use tidemark_tests::verifier::Nbd;
use tidemark_tests::verifier::nbd::Command;

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
/// Not a multiple of 4096: the second volume begins behind a part of a block.
const DATA_BYTES: u64 = (64 << 20) + 512;

fn sites(name: &str) -> Result<TwoSites> {
    let mut sites = TwoSites::new(&Plan { name: format!("groups-{name}"), ..Plan::default() })?;
    sites.start()?;
    Ok(sites)
}

/// The group "pg" of the volumes "data" and "wal", primary at A, both copies equal.
fn pair(name: &str) -> Result<TwoSites> {
    let sites = sites(name)?;
    let size = DATA_BYTES.to_string();
    let options = vec!["--group", "pg"];
    sites.create(&NewVolume { name: "data", size: &size, mode: "sync", options })?;
    join(&sites.a.cli(), "wal", "32Mi")?;
    Ok(sites)
}

fn join(cli: &Cli, name: &str, size: &str) -> Result<()> {
    cli.json(&["volume", "create", name, "--group", "pg", "--size", size]).map(drop)
}

fn client(cli: &Cli, name: &str) -> Result<Nbd> {
    let socket = cli.attach(name, "nbd")?.nbd_socket()?;
    Ok(Nbd::connect(&socket, name, PATIENCE)?)
}

fn write(nbd: &mut Nbd, number: u64) -> Result<()> {
    let mut block = [number as u8; BLOCK];
    block[..8].copy_from_slice(&number.to_le_bytes());
    Ok(nbd.write(number * BLOCK as u64, &block, false)?)
}

/// The number in a block; 0: nothing was written there.
fn read(nbd: &mut Nbd, number: u64) -> Result<u64> {
    let mut block = [0; BLOCK];
    nbd.read(number * BLOCK as u64, &mut block)?;
    Ok(u64::from_le_bytes(block[..8].try_into()?))
}

fn refused<T>(result: Result<T>) -> Result<String> {
    let error = result.err().context("it was not refused")?;
    let refused = error.downcast_ref::<Refused>().with_context(|| format!("{error:#}"))?;
    Ok(refused.reason.clone())
}

fn told<T>(sites: &TwoSites, result: Result<T>) -> Result<T> {
    result.with_context(|| sites.logs())
}

fn names(site: &Site) -> Result<Vec<String>> {
    let list = site.cli().json(&["volume", "list"])?;
    let volumes = list.pointer("/volumes").and_then(|volumes| volumes.as_array()).context("no list")?;
    Ok(volumes.iter().filter_map(|volume| Some(volume.get("name")?.as_str()?.to_owned())).collect())
}

fn promote(site: &Site) -> Result<()> {
    site.cli().promote_fenced("pg", "test: site a was lost", &[]).map(drop)
}

#[test]
fn after_the_loss_of_a_site_every_volume_is_there_and_the_order_of_writes_between_them_too() -> Result<()> {
    let mut sites = pair("order")?;
    let played = order(&mut sites);
    told(&sites, played)
}

fn order(sites: &mut TwoSites) -> Result<()> {
    let cli = sites.a.cli();
    let (mut data, mut wal) = (client(&cli, "data")?, client(&cli, "wal")?);
    // Each write begins when the one before it is answered, on the other volume.
    const WRITES: u64 = 600;
    for number in 1..=WRITES {
        write(if number % 2 == 0 { &mut data } else { &mut wal }, number)?;
        if number == WRITES / 2 {
            wal.plain(Command::Flush, 0, 0)?; // of the one: the other's writes before it are durable too
        }
    }
    sites.a.kill();
    promote(&sites.b)?;
    let cli = sites.b.cli();
    let (mut data, mut wal) = (client(&cli, "data")?, client(&cli, "wal")?);
    let mut last = 0;
    for number in 1..=WRITES {
        let found = read(if number % 2 == 0 { &mut data } else { &mut wal }, number)?;
        ensure!(found == 0 || found == number, "block {number} holds {found}");
        ensure!(found == 0 || last == number - 1, "write {number} is there and write {} is not", last + 1);
        last = last.max(found);
    }
    ensure!(last >= WRITES / 2, "only {last} writes are there, and {} were flushed", WRITES / 2);
    ensure!(cli.show("data")?.number("/sizeBytes") == DATA_BYTES);
    Ok(())
}

#[test]
fn a_group_is_named_by_itself_or_by_any_of_its_volumes() -> Result<()> {
    let sites = pair("names")?;
    let cli = sites.a.cli();
    let group = cli.json(&["group", "show", "wal"])?;
    ensure!(group.pointer("/volumes/0/name").and_then(|name| name.as_str()) == Some("data"), "{group}");
    let list = cli.json(&["group", "list"])?;
    ensure!(list.pointer("/groups/0/volumes/1/name").and_then(|name| name.as_str()) == Some("wal"), "{list}");
    cli.json(&["volume", "create", "wal", "--group", "pg", "--size", "32Mi"])?; // there already
    let other = cli.json(&["volume", "create", "more", "--group", "pg", "--size", "1Mi", "--mode", "async"]);
    let other = format!("{:#}", other.err().context("another mode was taken")?);
    ensure!(other.contains("the mode sync"), "{other}");
    ensure!(refused(cli.attach("pg", "nbd"))?.contains("name one of data, wal"));
    ensure!(refused(cli.json(&["volume", "release", "data", "--yes"]))?.contains("remove the others first"));
    ensure!(cli.verify("pg")?, "the copies differ");
    cli.demote("wal", &[])?;
    sites.b.cli().promote("data")?;
    ensure!(sites.b.cli().show("wal")?.role() == "primary");
    Ok(())
}

#[test]
fn a_volume_joins_while_the_others_are_written_and_not_while_the_peer_is_away() -> Result<()> {
    let mut sites = pair("join")?;
    let played = joins(&mut sites);
    told(&sites, played)
}

fn joins(sites: &mut TwoSites) -> Result<()> {
    let cli = sites.a.cli();
    let mut data = client(&cli, "data")?;
    let writer = std::thread::spawn(move || -> Result<Nbd> {
        (1..2000).try_for_each(|number| write(&mut data, number))?;
        Ok(data)
    });
    join(&cli, "extra", "8Mi")?;
    let mut data = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    let mut extra = client(&cli, "extra")?;
    write(&mut extra, 7)?;
    data.plain(Command::Flush, 0, 0)?;
    ensure!(cli.verify("pg")?, "the copies differ");
    sites.b.cli().wait_for("extra", "volume that joined", PATIENCE, |view| view.number("/sizeBytes") == 8 << 20)?;
    sites.b.kill();
    cli.wait_for("pg", "lost link", PATIENCE, |view| !view.is_streaming())?;
    let reason = refused(join(&cli, "late", "8Mi"))?;
    ensure!(reason.contains("try again when it is connected"), "{reason}");
    ensure!(names(&sites.a)? == ["data", "extra", "wal"]);
    sites.b.start(&sites.stage)?;
    cli.wait_for("pg", "stream", PATIENCE, VolumeView::is_streaming)?;
    join(&cli, "late", "8Mi")
}

#[test]
fn what_an_attempt_to_add_a_volume_left_when_it_was_killed_is_gone_and_the_next_one_holds_what_is_written() -> Result<()>
{
    let mut sites = pair("left")?;
    let played = left(&mut sites);
    told(&sites, played)
}

fn left(sites: &mut TwoSites) -> Result<()> {
    const LEFT: &str = "6c656674-0000-4000-8000-000000000001";
    let dirs = [&sites.a, &sites.b].map(|site| site.cli().show("pg").map(|view| view.directory()));
    let stage = &sites.stage;
    // Both know it, one has its base and opens that.
    for (number, (site, dir)) in [&mut sites.a, &mut sites.b].into_iter().zip(dirs).enumerate() {
        let dir = dir?;
        site.stop()?;
        let record = dir.join("volume.toml");
        let text = fs::read_to_string(&record)?;
        let volume = format!("id = \"{LEFT}\"\nname = \"late\"\ncreated_ms = 1\nfrontend = \"auto\"\npending = true\n");
        fs::write(&record, format!("{text}\n[[volumes]]\n{volume}"))?;
        if number == 0 {
            fs::File::create_new(dir.join(format!("base-{LEFT}.img")))?.set_len(8 << 20)?;
        }
        site.start(stage)?;
    }
    let cli = sites.a.cli();
    cli.wait_for("pg", "stream at the primary", PATIENCE, |view| view.is_streaming() && view.role() == "primary")?;
    join(&cli, "late", "16Mi")?;
    let view = cli.show("late")?;
    ensure!(view.number("/sizeBytes") == 16 << 20, "{}", view.summary());
    ensure!(!view.base_path().to_string_lossy().contains(LEFT), "the identity of the attempt before was used again");
    let mut late = client(&cli, "late")?;
    write(&mut late, 1234)?;
    late.plain(Command::Flush, 0, 0)?;
    drop(late);
    cli.json(&["drain", "pg", "--timeout", "60s"])?;
    for site in [&sites.a, &sites.b] {
        let bases = bases(&site.cli().show("pg")?.directory())?;
        ensure!(bases.len() == 2 && !bases.iter().any(|base| base.to_string_lossy().contains(LEFT)), "{bases:?}");
    }
    sites.a.kill();
    sites.a.start(&sites.stage)?;
    cli.wait_for("pg", "stream at the primary", PATIENCE, |view| view.is_streaming() && view.role() == "primary")?;
    ensure!(read(&mut client(&cli, "late")?, 1234)? == 1234, "what was drained is not in the base");
    ensure!(cli.verify("pg")?, "the copies differ");
    Ok(())
}

/// The bases of further volumes of a copy.
fn bases(dir: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let is_base = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("base-"));
    Ok(paths.into_iter().filter(is_base).collect())
}

#[test]
fn a_volume_whose_addition_was_interrupted_keeps_its_base_until_it_is_known_not_to_join() -> Result<()> {
    let mut sites = pair("interrupted")?;
    let played = interrupted(&mut sites);
    told(&sites, played)
}

fn interrupted(sites: &mut TwoSites) -> Result<()> {
    let cli = sites.a.cli();
    let dir = cli.show("pg")?.directory();
    // The peer stops answering when the base is there: where it has answered already, the next one is tried.
    for number in 0..30 {
        let name = format!("late{number}");
        let before = bases(&dir)?;
        let (adding, added) = (sites.a.cli(), name.clone());
        let adder = std::thread::spawn(move || join(&adding, &added, "8Mi"));
        let until = Instant::now() + PATIENCE;
        while bases(&dir)?.len() == before.len() && Instant::now() < until {
            std::thread::yield_now();
        }
        sites.b.freeze();
        let ended = adder.join().map_err(|_| anyhow::anyhow!("the adder panicked"));
        let after = bases(&dir)?;
        sites.b.thaw();
        let Err(why) = ended? else { continue };
        ensure!(format!("{why:#}").contains("ended before it was done"), "{why:#}");
        ensure!(after.len() == before.len() + 1, "the base is gone, and its record may come");
        cli.wait_for("pg", "stream", PATIENCE, VolumeView::is_streaming)?;
        join(&cli, &name, "8Mi")?;
        ensure!(bases(&dir)?.len() == before.len() + 1, "what the attempt before left is there still");
        write(&mut client(&cli, &name)?, 3)?;
        ensure!(cli.verify("pg")?, "the copies differ");
        return Ok(());
    }
    anyhow::bail!("no addition was interrupted")
}

#[test]
fn sizes_names_and_content_outlive_a_restart_of_both_agents_and_the_loss_of_the_catalogue() -> Result<()> {
    let mut sites = pair("restart")?;
    let played = restart(&mut sites);
    told(&sites, played)
}

fn restart(sites: &mut TwoSites) -> Result<()> {
    let cli = sites.a.cli();
    let (mut data, mut wal) = (client(&cli, "data")?, client(&cli, "wal")?);
    // The first volume is not the last one: what it grows by lies behind the other.
    let grown = DATA_BYTES + (16 << 20);
    cli.json(&["volume", "resize", "data", "--size", &grown.to_string()])?;
    let behind = DATA_BYTES.div_ceil(BLOCK as u64);
    for number in [1, behind - 1, behind, behind + 7] {
        write(&mut data, number)?;
    }
    // Over the end of what there was: taken apart and put together again.
    data.write((behind - 1) * BLOCK as u64, &[9; 3 * BLOCK], true)?;
    write(&mut wal, 3)?;
    wal.plain(Command::Flush, 0, 0)?;
    drop((data, wal));
    cli.json(&["drain", "pg", "--timeout", "60s"])?;
    for site in [&mut sites.a, &mut sites.b] {
        site.stop()?;
        let _ = fs::remove_dir_all(site.state_dir().join("catalogue"));
        site.start(&sites.stage)?;
    }
    let cli = sites.a.cli();
    cli.wait_for("pg", "stream", PATIENCE, VolumeView::is_streaming)?;
    ensure!(cli.verify("pg")?, "the copies differ");
    cli.demote("pg", &["--force"])?;
    sites.b.cli().promote("pg")?;
    let (mut data, mut wal) = (client(&sites.b.cli(), "data")?, client(&sites.b.cli(), "wal")?);
    let mut over = [0; 3 * BLOCK];
    data.read((behind - 1) * BLOCK as u64, &mut over)?;
    ensure!(over == [9; 3 * BLOCK], "what was written over the end of an extent is not there");
    for number in [1, behind + 7] {
        ensure!(read(&mut data, number)? == number);
    }
    ensure!(read(&mut wal, 3)? == 3);
    ensure!(sites.b.cli().show("data")?.number("/sizeBytes") == grown);
    Ok(())
}

#[test]
fn a_volume_that_is_removed_goes_from_both_sites_and_the_others_stay() -> Result<()> {
    let sites = pair("remove")?;
    let played = remove(&sites);
    told(&sites, played)
}

fn remove(sites: &TwoSites) -> Result<()> {
    let cli = sites.a.cli();
    let mut wal = client(&cli, "wal")?;
    write(&mut wal, 5)?;
    let kept = refused(cli.json(&["volume", "delete", "data", "--yes"]))?;
    ensure!(kept.contains("--purge"), "{kept}");
    cli.json(&["volume", "delete", "data", "--purge", "--yes"])?;
    for site in [&sites.a, &sites.b] {
        site.cli().wait_for("pg", "group of one", PATIENCE, |view| view.number("/sizeBytes") == 32 << 20)?;
        ensure!(names(site)? == ["wal"], "{:?}", names(site)?);
    }
    ensure!(read(&mut wal, 5)? == 5);
    join(&cli, "data", "8Mi")?;
    let mut data = client(&cli, "data")?;
    ensure!(read(&mut data, 1)? == 0, "what the removed volume held is read again");
    ensure!(cli.verify("pg")?, "the copies differ");
    Ok(())
}

#[test]
fn a_plan_is_of_the_volume_that_it_names_or_of_the_whole_group_and_changes_nothing() -> Result<()> {
    let sites = pair("plan")?;
    let played = plans(&sites);
    told(&sites, played)
}

fn plans(sites: &TwoSites) -> Result<()> {
    let cli = sites.a.cli();
    let plan = |args: &[&str]| cli.json(&[args, &["--plan"]].concat());
    let removal = plan(&["volume", "delete", "wal", "--purge"])?;
    ensure!(removal["steps"].to_string().contains("leaves its group"), "{removal}");
    let growth = plan(&["volume", "resize", "data", "--size", "96Mi"])?;
    ensure!(growth["steps"].to_string().contains("bytes in all"), "{growth}");
    for name in ["pg", "data", "wal"] {
        let demotion = plan(&["demote", name])?;
        ensure!(demotion["refusal"].is_null(), "{demotion}");
    }
    // What the verb itself refuses, its plan does.
    for args in [
        ["volume", "delete", "wal", "--yes"].as_slice(),
        &["volume", "release", "wal", "--yes"],
        &["volume", "resize", "wal", "--size", "1Mi"],
        &["group", "delete", "pg", "--yes"],
    ] {
        let reason = refused(plan(args))?;
        ensure!(reason.contains(&format!("{} {} would be refused", args[0], args[1])), "{args:?}: {reason}");
        ensure!(cli.json(args).is_err(), "{args:?} was done");
    }
    ensure!(refused(plan(&["volume", "resize", "pg", "--size", "96Mi"]))?.contains("name one of data, wal"));
    // One volume that is attached stands against what is done with all of them, by whatever name.
    cli.attach("data", "nbd")?;
    for name in ["pg", "data", "wal"] {
        let explained = cli.json(&["explain", name])?;
        for verb in ["demote", "group delete"] {
            let verbs = explained["verbs"].as_array().context("no verbs")?;
            let told =
                verbs.iter().find(|told| told["verb"] == verb).with_context(|| format!("{verb}: {explained}"))?;
            ensure!(told["refusal"]["code"] == "in-use", "{name}: {told}");
        }
        let all = cli.json(&["branch", "list", name])?;
        ensure!(all["branches"].as_array().is_some_and(Vec::is_empty), "{all}");
    }
    ensure!(plan(&["volume", "delete", "wal", "--purge"]).is_ok(), "wal is not attached");
    for site in [&sites.a, &sites.b] {
        ensure!(names(site)? == ["data", "wal"], "a plan was carried out");
    }
    ensure!(cli.show("data")?.number("/sizeBytes") == DATA_BYTES);
    Ok(())
}

#[test]
fn a_second_volumes_base_that_was_changed_behind_its_back_is_suspect() -> Result<()> {
    let mut sites = pair("suspect")?;
    let played = suspect(&mut sites);
    told(&sites, played)
}

fn suspect(sites: &mut TwoSites) -> Result<()> {
    let cli = sites.a.cli();
    let mut wal = client(&cli, "wal")?;
    write(&mut wal, 0)?;
    wal.plain(Command::Flush, 0, 0)?;
    drop(wal);
    cli.json(&["drain", "pg", "--timeout", "60s"])?;
    let base = cli.show("wal")?.base_path();
    sites.a.stop()?;
    fs::File::options().write(true).open(base)?.write_all_at(&[0xee; BLOCK], 0)?;
    sites.a.start(&sites.stage)?;
    let seen = |view: &VolumeView| view.copy() == "suspect" || view.role() != "primary";
    let view = sites.a.cli().wait_for("pg", "copy that is found out", PATIENCE, seen)?;
    ensure!(view.role() != "primary", "{}", view.summary());
    Ok(())
}
