//! Peers whose site nobody named: who they are is learnt at the first contact, and nobody else is taken for them afterwards.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tidemark_tests::agents::{NewVolume, Plan, Site, TwoSites};

const PATIENCE: Duration = Duration::from_secs(30);
const VOLUME: NewVolume<'static> = NewVolume { name: "pg", size: "16Mi", mode: "sync", options: Vec::new() };

/// Takes what `is_wanted` says out of a site's configuration.
fn without(site: &Site, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
    let text = fs::read_to_string(site.config_path())?;
    let kept: Vec<&str> = text.lines().filter(|line| !is_wanted(line)).collect();
    ensure!(kept.len() < text.lines().count(), "nothing to take out of {text}");
    Ok(fs::write(site.config_path(), kept.join("\n"))?)
}

/// The peer that `site` has, as it lists it.
fn peer(site: &Site) -> Result<Value> {
    let list = site.cli().json(&["peer", "list"])?;
    let peers = list.as_array().or_else(|| list.pointer("/peers")?.as_array()).context("a list of peers")?;
    peers.first().cloned().context("a peer")
}

fn wait_for_peer(site: &Site, what: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let peer = peer(site)?.to_string();
        if peer.contains(what) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no {what:?} in {peer}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn peers_of_the_configuration_that_name_no_site_learn_each_other_for_good() -> Result<()> {
    let mut sites = TwoSites::new(&Plan { name: "peers-config".to_owned(), ..Plan::default() })?;
    for site in [&sites.a, &sites.b] {
        // Nor who the agent itself is: that says its certificate.
        without(site, |line| line.starts_with("site_id") || line.starts_with("id = "))?;
    }
    sites.a.start(&sites.stage)?;
    let early = sites.a.cli().create(&VOLUME).expect_err("nobody knows who B is").to_string();
    ensure!(early.contains("peer-unreachable") && early.contains("first contact"), "{early}");
    sites.b.start(&sites.stage)?;
    wait_for_peer(&sites.a, &sites.b.site_id())?;
    wait_for_peer(&sites.b, &sites.a.site_id())?;
    sites.a.cli().create(&VOLUME)?;
    sites.a.cli().wait_for("pg", "protected volume", PATIENCE, |view| view.is_protected())?;

    sites.a.stop()?;
    sites.b.stop()?;
    sites.a.start(&sites.stage)?;
    ensure!(peer(&sites.a)?.to_string().contains(&sites.b.site_id()), "it is kept without a contact");
    without(&sites.a, |line| line.starts_with("[[peers]]") || line.starts_with("name = \"b\""))
        .and_then(|()| without(&sites.a, |line| line.starts_with("address") || line.contains("b/ca/ca.crt")))?;
    sites.a.stop()?;
    sites.a.start(&sites.stage)?;
    let list = sites.a.cli().json(&["peer", "list"])?.to_string();
    ensure!(!list.contains(&sites.b.site_id()), "what was learnt of a peer makes it none: {list}");
    Ok(())
}

#[test]
fn a_peer_that_is_added_without_its_site_id_is_the_first_that_answers_and_no_other() -> Result<()> {
    let plan = Plan { name: "peers-added".to_owned(), insecure: true, ..Plan::default() };
    let mut sites = TwoSites::new(&plan)?;
    for site in [&sites.a, &sites.b] {
        without(site, |line| line.starts_with("[[peers]]") || line.starts_with("address"))?;
        without(site, |line| line.starts_with("site_id") || line == "name = \"a\"" || line == "name = \"b\"")?;
        let text =
            fs::read_to_string(site.config_path())?.replace("[site]", &format!("[site]\nname = \"{}\"", site.name()));
        fs::write(site.config_path(), text)?;
    }
    sites.start()?;
    let add = |to: &Site, name: &str, other: &Site| {
        to.cli().json(&["peer", "add", name, "--address", &other.address().to_string()])
    };
    add(&sites.b, "a", &sites.a)?;
    let added = add(&sites.a, "b", &sites.b)?.to_string();
    ensure!(added.contains(&sites.b.site_id()), "a peer that is there is known at once: {added}");
    sites.a.cli().create(&VOLUME)?;
    sites.a.cli().wait_for("pg", "protected volume", PATIENCE, |view| view.is_protected())?;
    sites.b.stop()?;

    // Another site at the address of B.
    let text = fs::read_to_string(sites.b.config_path())?;
    let other = "cccccccc-0000-4000-8000-000000000001";
    fs::write(sites.b.config_path(), text.replace(&sites.b.site_id(), other))?;
    fs::remove_dir_all(sites.b.state_dir())?;
    fs::remove_dir_all(sites.b.pool())?;
    sites.b.start(&sites.stage)?;
    wait_for_peer(&sites.a, "wrong_site")?;
    sites.a.stop()?;
    sites.a.start(&sites.stage)?;
    wait_for_peer(&sites.a, "wrong_site")?;
    let peer = peer(&sites.a)?.to_string();
    ensure!(peer.contains(&sites.b.site_id()) && !peer.contains(other), "{peer}");
    // The same peer again does not learn anew; only one that was forgotten does.
    ensure!(add(&sites.a, "b", &sites.b)?.to_string().contains(&sites.b.site_id()), "its site was overwritten");
    Ok(())
}
