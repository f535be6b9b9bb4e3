//! What real agents make of requests that must not do what they say: refused by name, and nothing has changed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tidemark_tests::agents::{Cli, NewVolume, Plan, Site, TwoSites};
use tidemark_tests::process;

const PATIENCE: Duration = Duration::from_secs(30);
const SMALL: [&str; 4] = ["--size", "16Mi", "--log-size", "16Mi"];

fn sites(name: &str) -> Result<TwoSites> {
    TwoSites::new(&Plan { name: name.to_owned(), ..Plan::default() })
}

fn create(cli: &Cli, name: &str, more: &[&str]) -> Result<Value> {
    cli.json(&[&["volume", "create", name], SMALL.as_slice(), more].concat())
}

/// Fails unless `result` is an error that says every one of `words`.
fn refused<T>(result: Result<T>, words: &[&str]) -> Result<()> {
    let Err(error) = result else { bail!("not refused; wanted: {words:?}") };
    let text = format!("{error:#}");
    words.iter().try_for_each(|word| {
        ensure!(text.contains(word), "{word:?} is not in: {text}");
        Ok(())
    })
}

fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn append(site: &Site, lines: &str) -> Result<()> {
    let mut file = File::options().append(true).open(site.config_path())?;
    Ok(file.write_all(lines.as_bytes())?)
}

#[test]
fn a_primary_whose_peer_has_a_copy_goes_only_by_force() -> Result<()> {
    let mut sites = sites("admin-delete")?;
    sites.start()?;
    sites.create(&NewVolume { name: "pg", size: "16Mi", mode: "sync", options: vec!["--log-size", "16Mi"] })?;
    let (a, b) = (sites.a.cli(), sites.b.cli());
    refused(a.json(&["volume", "delete", "pg", "--yes"]), &["peer-left-behind", "promote it there", "force"])?;
    ensure!(a.show("pg")?.role() == "primary", "the volume is as it was");
    b.json(&["volume", "delete", "pg", "--yes"]).context("a copy that is not the primary goes as ever")?;
    a.json(&["volume", "delete", "pg", "--force", "--yes"])?;
    create(&a, "alone", &[])?;
    a.json(&["volume", "delete", "alone", "--yes"]).context("a volume without a peer goes as ever")?;
    Ok(())
}

#[test]
fn no_site_has_more_volumes_than_its_limit() -> Result<()> {
    let mut sites = sites("admin-limit")?;
    // The last section of the configuration is [limits].
    append(&sites.b, "volumes = 1\npeers = 1\n")?;
    sites.start()?;
    let (a, b) = (sites.a.cli(), sites.b.cli());
    create(&b, "first", &[])?;
    refused(create(&b, "second", &[]), &["no more than 1 volumes", "limits.volumes"])?;
    let site_id = "99999999-0000-4000-8000-000000000001";
    let far = ["peer", "add", "far", "--site-id", site_id, "--address", "127.0.0.9:1"];
    refused(b.json(&far), &["no more than 1 peers", "limits.peers"])?;
    create(&a, "third", &["--peer-site", "b"])?;
    eventually("the reason why B makes no copy", || {
        Ok(a.json(&["peer", "list"])?.to_string().contains("limits.volumes"))
    })?;
    b.json(&["volume", "delete", "first", "--yes"])?;
    a.wait_for("third", "copy once there is room", PATIENCE, |view| view.is_streaming()).map(drop)
}

#[test]
fn changes_of_a_policy_at_once_are_all_kept() -> Result<()> {
    let mut sites = sites("admin-policy")?;
    sites.a.start(&sites.stage)?;
    let cli = sites.a.cli();
    create(&cli, "v", &[])?;
    for round in 1..=12u64 {
        let changes = [
            ("--retention", format!("{round}m"), "/policy/retentionMs", round * 60_000),
            ("--rpo-target", format!("{round}s"), "/policy/rpoTargetMs", round * 1000),
            ("--disk-timeout", format!("{round}s"), "/policy/diskTimeoutMs", round * 1000),
            ("--log-size", format!("{}Mi", 16 + round), "/policy/logSizeBytes", (16 + round) << 20),
            ("--bandwidth", format!("{round}Mi"), "/policy/bandwidthBytes", round << 20),
        ];
        std::thread::scope(|scope| {
            let set = |option: &'static str, value: String| {
                let cli = cli.clone();
                scope.spawn(move || cli.json(&["volume", "set", "v", option, &value]))
            };
            let sets: Vec<_> = changes.iter().map(|(option, value, ..)| set(option, value.clone())).collect();
            sets.into_iter().try_for_each(|set| set.join().expect("it ran").map(drop))
        })?;
        let view = cli.show("v")?;
        for (option, _, pointer, wanted) in &changes {
            let found = view.number(pointer);
            ensure!(found == *wanted, "round {round}: {option} is {found} instead of {wanted} in {}", view.0);
        }
    }
    Ok(())
}

#[test]
fn the_same_create_again_finds_the_volume_and_another_is_told_what_differs() -> Result<()> {
    let mut sites = sites("admin-create")?;
    sites.start()?;
    let cli = sites.a.cli();
    let more = ["--mode", "sync", "--peer-site", "b"];
    let ids = std::thread::scope(|scope| {
        let create = || create(&cli, "v", &more);
        let all: Vec<_> = (0..4).map(|_| scope.spawn(create)).collect();
        let id = |made: Value| made.pointer("/id").cloned().context("an id");
        all.into_iter().map(|made| id(made.join().expect("it ran")?)).collect::<Result<Vec<_>>>()
    })?;
    ensure!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let size = ["volume", "create", "v", "--size", "32Mi", "--mode", "sync", "--peer-site", "b"];
    refused(cli.json(&size), &["exists", "its size is 16777216 bytes"])?;
    refused(create(&cli, "v", &["--peer-site", "b"]), &["its mode is sync"])?;
    refused(create(&cli, "v", &[]), &["its peer is site"])?;
    refused(create(&cli, "v", &["--peer-site", "b", "--mode", "sync", "--retention", "5m"]), &["its retention"])?;
    cli.wait_for("v", "protected volume", PATIENCE, |view| view.is_protected())?;
    refused(create(&sites.b.cli(), "v", &["--mode", "sync", "--peer-site", "a"]), &["is its primary"])
}

/// A loop device on a file of zeros, but for `byte` at its beginning.
fn device(dir: &Path, name: &str, byte: u8) -> Result<(PathBuf, PathBuf)> {
    let file = dir.join(name);
    fs::write(&file, [&[byte], vec![0; (32 << 20) - 1].as_slice()].concat())?;
    let device = process::checked(Command::new("losetup").args(["--show", "-f"]).arg(&file))?;
    Ok((PathBuf::from(device.trim()), file))
}

#[test]
fn a_new_volume_shows_nothing_that_its_base_held_before() -> Result<()> {
    let mut sites = sites("admin-base")?;
    sites.a.start(&sites.stage)?;
    let (cli, dir) = (sites.a.cli(), sites.a.dir().to_owned());
    let with = |base: &Path| create(&cli, "v", &["--base", &base.to_string_lossy()]);

    let file = dir.join("there.img");
    fs::write(&file, "somebody's")?;
    refused(with(&file), &["exists already", "adopt"])?;
    ensure!(fs::read(&file)? == b"somebody's", "the file is as it was");

    let (used, _) = device(&dir, "used", 7)?;
    refused(with(&used), &["not-empty", "adopt", "blkdiscard -z"])?;
    let (zeros, _) = device(&dir, "zeros", 0)?;
    let larger = ["volume", "create", "v", "--size", "64Mi", "--log-size", "16Mi", "--base", &zeros.to_string_lossy()];
    refused(cli.json(&larger), &["has only 33554432 bytes"])?;
    ensure!(fs::read_dir(sites.a.pool())?.count() == 0, "nothing was made");

    cli.json(&["volume", "adopt", "kept", &used.to_string_lossy(), "--log-size", "16Mi"])?;
    let again = ["volume", "adopt", "again", &used.to_string_lossy(), "--log-size", "16Mi"];
    refused(cli.json(&again), &["in use"]).context("it is claimed by now")?;
    with(&zeros).context("the name is free, and a device of zeros will do")?;
    with(&zeros).context("and again")?;
    cli.json(&["volume", "delete", "v", "--yes"])?;
    let fresh = dir.join("fresh.img");
    with(&fresh)?;
    ensure!(fs::metadata(&fresh)?.len() == 16 << 20, "the base is there");
    Ok(())
}

#[test]
fn logs_lie_where_the_pool_says_and_a_volume_without_its_log_is_refused_by_name() -> Result<()> {
    let mut sites = sites("admin-log-path")?;
    let logs = sites.a.dir().join("logs");
    let text = fs::read_to_string(sites.a.config_path())?;
    let pool = format!("path = \"{}\"", sites.a.pool().display());
    let text = text.replace(&pool, &format!("{pool}\nlog_path = \"{}\"", logs.display()));
    fs::write(sites.a.config_path(), text)?;
    sites.start()?;
    let cli = sites.a.cli();
    refused(create(&cli, "v", &[]), &["logs is not there", "log_path"])?;
    fs::create_dir(&logs)?;
    sites.create(&NewVolume { name: "v", size: "16Mi", mode: "sync", options: vec!["--log-size", "16Mi"] })?;
    let its_log = |dir: &Path| Ok::<_, anyhow::Error>(fs::read_dir(dir)?.next().context("a log")??.path());
    let log = its_log(&logs)?;
    let is_slot = |path: &Path| path.extension().is_some_and(|end| end == "seg");
    ensure!(fs::read_dir(&log)?.flatten().any(|entry| is_slot(&entry.path())), "no slot in {}", log.display());
    let replica = sites.b.cli().show("v")?.directory().join("log");
    ensure!(replica.is_dir() && !replica.is_symlink(), "each site has its own place");

    sites.a.stop()?;
    let away = sites.a.dir().join("away");
    fs::rename(&log, &away)?;
    sites.a.start(&sites.stage)?;
    let error = cli.show("v")?.open_error().to_owned();
    ensure!(error.contains("log is missing") && error.contains("is its device mounted?"), "{error}");
    sites.a.stop()?;
    fs::create_dir(&log)?;
    sites.a.start(&sites.stage)?;
    let error = cli.show("v")?.open_error().to_owned();
    ensure!(error.contains("is not this volume's log"), "{error}");
    sites.a.stop()?;
    fs::remove_dir(&log)?;
    fs::rename(&away, &log)?;
    sites.a.start(&sites.stage)?;
    cli.wait_for("v", "protected volume", PATIENCE, |view| view.is_protected())?;
    cli.json(&["volume", "delete", "v", "--purge", "--force", "--yes"])?;
    ensure!(fs::read_dir(&logs)?.count() == 0, "the log went with its volume");
    Ok(())
}

#[test]
fn a_resize_that_is_refused_leaves_the_base_as_it_was() -> Result<()> {
    let mut sites = sites("admin-resize")?;
    sites.start()?;
    sites.create(&NewVolume { name: "v", size: "16Mi", mode: "async", options: vec!["--log-size", "16Mi"] })?;
    let bytes = |site: &Site| Ok::<_, anyhow::Error>(fs::metadata(site.cli().show("v")?.base_path())?.len());
    let resize = ["volume", "resize", "v", "--size", "32Mi"];
    refused(sites.b.cli().json(&resize), &["role", "at its primary"])?;
    ensure!(bytes(&sites.b)? == 16 << 20, "the secondary's base grew");
    sites.b.kill();
    sites.a.cli().wait_for("v", "lost peer", PATIENCE, |view| view.link() == "disconnected")?;
    refused(sites.a.cli().json(&resize), &["peer-unreachable", "both copies grow"])?;
    ensure!(bytes(&sites.a)? == 16 << 20, "the primary's base grew");
    sites.b.start(&sites.stage)?;
    sites.a.cli().wait_for("v", "peer", PATIENCE, |view| view.is_streaming())?;
    sites.a.cli().json(&resize)?;
    ensure!((bytes(&sites.a)?, bytes(&sites.b)?) == (32 << 20, 32 << 20), "both bases grew");
    Ok(())
}
