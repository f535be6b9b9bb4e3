//! What lost against a newer history is looked at, on real agents.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tidemark_tests::agents::{Cli, NewVolume, Plan, Refused, TwoSites};
use tidemark_tests::proxy::Weather;
use tidemark_tests::verifier::Nbd;

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
const NAME: &str = "pg";

fn client(cli: &Cli) -> Result<Nbd> {
    let socket = cli.attach(NAME, "nbd")?.nbd_socket()?;
    Ok(Nbd::connect(&socket, NAME, PATIENCE)?)
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
