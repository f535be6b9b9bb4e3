//! What lost against a newer history is looked at, on real agents.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tidemark_tests::agents::{Cli, NewVolume, Plan, Refused, TwoSites};
use tidemark_tests::proxy::Weather;
use tidemark_tests::verifier::Nbd;

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
const NAME: &str = "pg";

fn client_of(cli: &Cli, volume: &str) -> Result<Nbd> {
    let socket = cli.attach(volume, "nbd")?.nbd_socket()?;
    Ok(Nbd::connect(&socket, volume, PATIENCE)?)
}

fn client(cli: &Cli) -> Result<Nbd> {
    client_of(cli, NAME)
}

fn write(nbd: &mut Nbd, number: u8, byte: u8, fua: bool) -> Result<()> {
    Ok(nbd.write(u64::from(number) * BLOCK as u64, &[byte; BLOCK], fua)?)
}

/// The first bytes of the first four blocks.
fn read(nbd: &mut Nbd) -> Result<[u8; 4]> {
    let mut blocks = [0; 4 * BLOCK];
    nbd.read(0, &mut blocks)?;
    Ok([0, 1, 2, 3].map(|block| blocks[block * BLOCK]))
}

/// Opens a branch of the volume, or what the copy holds now.
fn open(cli: &Cli, number: Option<&str>) -> Result<Nbd> {
    let socket = cli.open_branch(NAME, number)?.nbd_socket()?;
    let export = number.map_or_else(|| format!("{NAME}@present"), |number| format!("{NAME}@branch-{number}"));
    Ok(Nbd::connect(&socket, &export, PATIENCE)?)
}

fn branches(cli: &Cli) -> Result<Vec<Value>> {
    let list = cli.json(&["branch", "list", NAME])?;
    list["branches"].as_array().cloned().context("no branches")
}

fn refused<T>(result: Result<T>) -> Result<String> {
    let error = result.err().context("it was not refused")?;
    let refused = error.downcast_ref::<Refused>().with_context(|| format!("{error:#}"))?;
    Ok(refused.reason.clone())
}

#[test]
fn a_branch_of_which_nothing_was_acknowledged_is_dropped_by_a_word_or_when_its_time_is_over_and_a_record_stays()
-> Result<()> {
    let mut sites = rejoined("branch-drop")?;
    let done = let_go(&mut sites);
    done.with_context(|| sites.logs())
}

fn let_go(sites: &mut TwoSites) -> Result<()> {
    let a = sites.a.cli();
    let metrics = sites.a.metrics()?;
    ensure!(metrics.contains("tidemark_volume_branches_unacked{volume=\"pg\"} 1.0"), "{metrics}");
    ensure!(metrics.contains("tidemark_volume_rescue_branches_unacknowledged{volume=\"pg\"} 0.0"), "{metrics}");
    let view = open(&a, Some("1"))?;
    let drop = ["branch", "drop", NAME, "1", "--reason", "nobody needs it", "--who", "me", "--yes"];
    ensure!(refused(a.json(&drop))?.contains("branch close"), "it is being looked at");
    std::mem::drop(view);
    a.json(&["branch", "close", NAME, "1"])?;
    let plan = a.json(&["branch", "drop", NAME, "1", "--reason", "x", "--plan"])?;
    ensure!(plan["steps"].to_string().contains("is removed") && branches(&a)?.len() == 1, "{plan}");
    a.json(&drop)?;
    let list = a.json(&["branch", "list", NAME])?;
    ensure!(list["branches"].as_array().is_some_and(Vec::is_empty), "{list}");
    let dropped = &list["dropped"][0];
    ensure!(dropped["number"] == 1 && dropped["who"] == "me" && dropped["reason"] == "nobody needs it", "{list}");
    ensure!(a.json(&drop).is_err_and(|error| error.to_string().contains("no branch 1")), "it is there");

    // The record is the copy's, and its log is whole without the branch.
    let directory = a.show(NAME)?.directory();
    sites.a.stop()?;
    let verified = a.json(&["log", "verify", &directory.to_string_lossy()])?;
    ensure!(verified["problems"].as_array().is_none_or(Vec::is_empty), "{verified}");
    Ok(())
}

#[test]
fn a_branch_of_a_group_is_opened_and_exported_volume_by_volume() -> Result<()> {
    let mut sites = TwoSites::new(&Plan { name: "branch-group".to_owned(), link_seed: Some(12), ..Plan::default() })?;
    sites.start()?;
    let done = of_a_group(&sites);
    done.with_context(|| sites.logs())
}

fn of_a_group(sites: &TwoSites) -> Result<()> {
    let (a, b) = (sites.a.cli(), sites.b.cli());
    let (group, size) = (vec!["--group", NAME], (1 << 20) + 512);
    sites.create(&NewVolume { name: "data", size: &size.to_string(), mode: "sync", options: group })?;
    a.json(&["volume", "create", "wal", "--group", NAME, "--size", "1Mi"])?;
    a.wait_for(NAME, "two sites in S", PATIENCE, |view| view.is_protected() && view.sync_sites() == 2)?;
    let (mut data, mut wal) = (client_of(&a, "data")?, client_of(&a, "wal")?);
    write(&mut data, 1, 1, true)?;
    sites.set_link(Weather::down());
    sites.cut_link();
    write(&mut data, 2, 2, false)?;
    write(&mut wal, 3, 3, false)?;
    b.wait_for(NAME, "lost link", PATIENCE, |view| view.link() == "disconnected")?;
    b.promote_fenced(NAME, "test: A is cut off", &[])?;
    write(&mut client_of(&b, "wal")?, 1, 9, true)?;
    sites.set_link(Weather::default());
    b.wait_for(NAME, "two sites in S", PATIENCE, |view| view.is_protected() && view.sync_sites() == 2)?;

    for (name, seen, changed) in [("data", [0, 1, 2, 0], 2), ("wal", [0, 0, 0, 3], 3)] {
        let socket = a.open_branch(name, Some("1"))?.nbd_socket()?;
        let mut view = Nbd::connect(&socket, &format!("{name}@branch-1"), PATIENCE)?;
        ensure!(read(&mut view)? == seen, "{name} is not what it was");
        let image = sites.stage.dir().join(format!("{name}.img"));
        let to = image.to_string_lossy().into_owned();
        let exported = a.json(&["branch", "export", NAME, "1", "--volume", name, "--to", &to])?;
        ensure!(exported["changed"] == json!([{ "offset": changed * BLOCK, "length": BLOCK }]), "{exported}");
        let bytes = std::fs::read(&image)?;
        let block = vec![changed as u8; BLOCK];
        ensure!(
            bytes.len() == if name == "data" { size } else { 1 << 20 } && bytes[changed * BLOCK..][..BLOCK] == block
        );
    }
    let to = sites.stage.dir().join("group.img").to_string_lossy().into_owned();
    let unnamed = a.json(&["branch", "export", NAME, "1", "--to", &to]).expect_err("which volume?");
    ensure!(unnamed.to_string().contains("data, wal"), "{unnamed}");
    Ok(())
}

/// Both sites served block 1; A wrote blocks 2 and 3, which nobody was promised, and B another block 1 after a person promoted it.
/// A has come back and follows.
fn rejoined(name: &str) -> Result<TwoSites> {
    let mut sites = TwoSites::new(&Plan { name: name.to_owned(), link_seed: Some(11), ..Plan::default() })?;
    sites.start()?;
    let done = part_and_rejoin(&sites);
    done.with_context(|| sites.logs())?;
    Ok(sites)
}

fn part_and_rejoin(sites: &TwoSites) -> Result<()> {
    let (a, b) = (sites.a.cli(), sites.b.cli());
    sites.create(&NewVolume { name: NAME, size: "16Mi", mode: "sync", options: Vec::new() })?;
    a.wait_for(NAME, "two sites in S", PATIENCE, |view| view.is_protected() && view.sync_sites() == 2)?;
    let mut at_a = client(&a)?;
    write(&mut at_a, 1, 1, true)?;
    sites.set_link(Weather::down());
    sites.cut_link();
    write(&mut at_a, 2, 2, false)?;
    write(&mut at_a, 3, 3, false)?;
    b.wait_for(NAME, "lost link", PATIENCE, |view| view.link() == "disconnected")?;
    b.promote_fenced(NAME, "test: A is cut off", &[])?;
    write(&mut client(&b)?, 1, 9, true)?;
    sites.set_link(Weather::default());
    b.wait_for(NAME, "two sites in S", PATIENCE, |view| view.is_protected() && view.sync_sites() == 2)?;
    Ok(())
}

#[test]
fn a_sealed_branch_is_opened_read_only_while_its_copy_follows_and_ends_when_that_is_drained() -> Result<()> {
    let sites = rejoined("branch-open")?;
    let done = look(&sites);
    done.with_context(|| sites.logs())
}

fn look(sites: &TwoSites) -> Result<()> {
    let (a, b) = (sites.a.cli(), sites.b.cli());
    let sealed = branches(&a)?;
    ensure!(sealed.len() == 1 && sealed[0]["branchClass"] == "unacked" && sealed[0]["closed"].is_null(), "{sealed:?}");
    let mut branch = open(&a, Some("1"))?;
    ensure!(read(&mut branch)? == [0, 1, 2, 3], "what A had is not what is seen");
    let mut present = open(&a, None)?;
    ensure!(read(&mut present)? == [0, 9, 0, 0], "what A has is not what is seen");
    ensure!(write(&mut branch, 1, 7, true).is_err(), "it was written to");

    let mut branch = open(&a, Some("1"))?;
    write(&mut client(&b)?, 3, 8, true)?;
    ensure!(a.show(NAME)?.is_streaming() || b.show(NAME)?.is_protected(), "A does not follow");
    ensure!(read(&mut branch)? == [0, 1, 2, 3] && read(&mut present)? == [0, 9, 0, 0], "it changed");
    ensure!(
        branches(&a)?[0]["attachment"]["nbdUri"].as_str().is_some_and(|uri| uri.contains("@branch-1")),
        "not listed"
    );
    for number in ["2", "7"] {
        ensure!(
            a.json(&["branch", "open", NAME, number]).is_err_and(|e| e.to_string().contains("no branch")),
            "{number}"
        );
    }

    // The copy goes before what is looked at: a drain is not held up, and what it changes is not shown.
    a.json(&["drain", NAME])?;
    ensure!(read(&mut branch).is_err() && read(&mut present).is_err(), "what is shown may be a mixture");
    let closed = branches(&a)?[0]["closed"].to_string();
    ensure!(closed.contains("branch export"), "{closed}");
    let why = refused(a.open_branch(NAME, Some("1")))?;
    ensure!(why.contains("branch export"), "{why}");
    a.json(&["branch", "close", NAME, "1"])?;
    a.json(&["branch", "close", NAME, "1"])?;
    ensure!(read(&mut open(&a, None)?)? == [0, 9, 0, 8], "what A has is not what is seen");
    ensure!(b.verify(NAME)?, "the copies differ");
    Ok(())
}
