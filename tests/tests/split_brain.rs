//! Both sites were opened by a person's word while they did not see each other, and meet again.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tidemark_tests::agents::{Cli, NewVolume, Plan, TwoSites, VolumeView};
use tidemark_tests::proxy::Weather;
use tidemark_tests::verifier::Nbd;

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
const NAME: &str = "pg";

fn client(cli: &Cli) -> Result<Nbd> {
    let socket = cli.attach(NAME, "nbd")?.nbd_socket()?;
    Ok(Nbd::connect(&socket, NAME, PATIENCE)?)
}

fn write(nbd: &mut Nbd, number: u8) -> Result<()> {
    Ok(nbd.write(u64::from(number) * BLOCK as u64, &[number; BLOCK], true)?)
}

/// The first byte of a block.
fn read(nbd: &mut Nbd, number: u8) -> Result<u8> {
    let mut block = [0; BLOCK];
    nbd.read(u64::from(number) * BLOCK as u64, &mut block)?;
    ensure!(block == [block[0]; BLOCK], "block {number} is mixed");
    Ok(block[0])
}

fn is_split(view: &VolumeView) -> bool {
    view.link() == "refused" && view.summary().contains("split brain")
}

#[test]
fn two_sites_that_were_both_opened_by_a_word_say_so_keep_both_and_seal_what_the_named_loser_had() -> Result<()> {
    let name = "split-brain".to_owned();
    let mut sites = TwoSites::new(&Plan { name, link_seed: Some(7), ..Plan::default() })?;
    sites.start()?;
    let done = split_and_heal(&sites);
    done.with_context(|| sites.logs())
}

fn split_and_heal(sites: &TwoSites) -> Result<()> {
    let (a, b) = (sites.a.cli(), sites.b.cli());
    sites.create(&NewVolume { name: NAME, size: "16Mi", mode: "sync", options: Vec::new() })?;
    a.wait_for(NAME, "two sites in S", PATIENCE, |view| view.is_protected() && view.sync_sites() == 2)?;
    let mut at_a = client(&a)?;
    write(&mut at_a, 1)?;

    sites.set_link(Weather::down());
    sites.cut_link();
    let foretold = b.wait_for(NAME, "lost link", PATIENCE, |view| view.link() == "disconnected")?;
    ensure!(foretold.text("/status/promotable/promotionClass") == "lossless", "{}", foretold.summary());
    let promoted = b.promote_fenced(NAME, "somebody is wrong about A", &[])?;
    ensure!(promoted.to_string().contains("lossless"), "as foretold: {promoted}");
    let mut at_b = client(&b)?;
    ensure!(read(&mut at_b, 1)? == 1, "what both had promised is lost");
    write(&mut at_b, 2)?;
    a.json(&["drop-peer", NAME, "--reason", "somebody is wrong about B", "--yes"])?;
    write(&mut at_a, 3)?;

    sites.set_link(Weather::default());
    for cli in [&a, &b] {
        cli.wait_for(NAME, "split brain", PATIENCE, is_split)?;
        let explained = cli.json(&["explain", NAME])?.to_string();
        ensure!(explained.contains("split brain"), "{explained}");
    }
    // Nobody was named the winner: both keep what they have, however often they meet.
    std::thread::sleep(Duration::from_secs(2));
    ensure!((read(&mut at_a, 1)?, read(&mut at_a, 2)?, read(&mut at_a, 3)?) == (1, 0, 3), "A has another history");
    ensure!((read(&mut at_b, 1)?, read(&mut at_b, 2)?, read(&mut at_b, 3)?) == (1, 2, 0), "B has another history");
    for cli in [&a, &b] {
        ensure!(cli.json(&["branch", "list", NAME])?["branches"].as_array().is_some_and(Vec::is_empty), "sealed early");
    }

    // Both branches can be looked at where they are, and B's also when it does not serve any more.
    let seen = |cli: &Cli| -> Result<(u8, u8, u8)> {
        let mut view = Nbd::connect(&cli.open_branch(NAME, None)?.nbd_socket()?, &format!("{NAME}@present"), PATIENCE)?;
        Ok((read(&mut view, 1)?, read(&mut view, 2)?, read(&mut view, 3)?))
    };
    ensure!((seen(&a)?, seen(&b)?) == ((1, 0, 3), (1, 2, 0)), "what each of them has is not what is seen");
    b.json(&["branch", "close", NAME])?;

    // A is named the winner, by giving B up.
    drop(at_b);
    b.detach(NAME)?;
    b.demote(NAME, &["--force"])?;
    ensure!(seen(&b)? == (1, 2, 0), "what B has is not what is seen");
    let kept = b.json(&["reseed", NAME, "--yes"]).expect_err("it is being looked at");
    ensure!(kept.to_string().contains("branch close"), "{kept}");
    b.json(&["branch", "close", NAME])?;
    let plan = b.json(&["reseed", NAME, "--plan"])?;
    ensure!(plan["refusal"].is_null(), "{plan}");
    ensure!(is_split(&b.show(NAME)?), "a plan changes nothing");
    b.json(&["reseed", NAME, "--yes"])?;
    a.wait_for(NAME, "two sites in S", PATIENCE, |view| view.is_protected() && view.sync_sites() == 2)?;
    ensure!(a.verify(NAME)?, "the copies differ");
    ensure!((read(&mut at_a, 2)?, read(&mut at_a, 3)?) == (0, 3), "the winner's content changed");

    // What somebody was told is safe goes by a person's word alone.
    let drop = ["branch", "drop", NAME, "1", "--reason", "copied by hand", "--yes"];
    let kept = b.json(&drop).expect_err("block 2 was acknowledged");
    ensure!(kept.to_string().contains("--acknowledge"), "{kept}");
    let metrics = sites.b.metrics()?;
    ensure!(metrics.contains("tidemark_volume_rescue_branches_unacknowledged{volume=\"pg\"} 1.0"), "{metrics}");

    let image = sites.stage.dir().join("branch.img");
    let to = image.to_string_lossy().into_owned();
    let exported = b.json(&["branch", "export", NAME, "1", "--to", &to])?;
    let block_2 = serde_json::json!([{ "offset": 2 * BLOCK, "length": BLOCK }]);
    ensure!(exported["changed"] == block_2, "{exported}");
    ensure!(exported["branch"]["branchClass"] != "unacked", "block 2 was acknowledged: {exported}");
    let bytes = std::fs::read(&image)?;
    ensure!(bytes.len() == 16 << 20 && bytes[2 * BLOCK..3 * BLOCK] == [2; BLOCK], "the loser's block 2 is not kept");
    let again = b.json(&["branch", "export", NAME, "1", "--to", &to]).expect_err("the file is there");
    ensure!(again.to_string().contains("exists"), "{again}");
    b.json(&[&drop[..], &["--acknowledge"]].concat())?;
    ensure!(b.json(&["branch", "list", NAME])?["dropped"][0]["branchClass"] != "unacked", "no record");
    Ok(())
}
