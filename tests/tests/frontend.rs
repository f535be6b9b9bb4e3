//! Which frontend an attach takes: what the volume says, at each site for itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tidemark_tests::agents::{Cli, NewVolume, Plan, TwoSites};

const PATIENCE: Duration = Duration::from_secs(30);

/// Two sites with a volume `disk`, of which both copies are equal.
fn sites_with_a_disk() -> Result<TwoSites> {
    let mut sites = TwoSites::new(&Plan { name: "frontend".to_owned(), ..Plan::default() })?;
    sites.start()?;
    sites.create(&NewVolume { name: "disk", size: "16Mi", mode: "sync", options: vec!["--log-size", "16Mi"] })?;
    Ok(sites)
}

fn set(cli: &Cli, frontend: &str) -> Result<()> {
    let printed = cli.json(&["volume", "set", "disk", "--frontend", frontend])?;
    let kept = printed.pointer("/policy/frontend").and_then(serde_json::Value::as_str);
    ensure!(kept == Some(frontend), "set to {frontend}, it says {printed}");
    Ok(())
}

fn open_frontend(cli: &Cli) -> Result<String> {
    Ok(cli.show("disk")?.attachment().context("it is attached")?.frontend)
}

#[test]
fn a_frontend_that_is_set_is_what_the_next_attach_takes_and_outlives_the_agent() -> Result<()> {
    let mut sites = sites_with_a_disk()?;
    let cli = sites.a.cli();
    set(&cli, "nbd")?;
    ensure!(cli.attach("disk", "auto")?.frontend == "nbd");

    set(&cli, "fuse")?;
    ensure!(open_frontend(&cli)? == "nbd", "what is open stays open");
    let before = sites.a.pid();
    sites.a.stop()?;
    sites.a.start(&sites.stage)?;
    ensure!(sites.a.pid() != before);
    cli.wait_for("disk", "frontend", PATIENCE, |view| view.attachment().is_some())?;
    ensure!(open_frontend(&cli)? == "nbd", "a restart of the agent changes no frontend under its users");

    cli.detach("disk")?;
    ensure!(cli.attach("disk", "auto")?.frontend == "fuse", "it is kept over the restart");
    cli.detach("disk")?;
    ensure!(cli.attach("disk", "nbd")?.frontend == "nbd", "an attach may name another one");
    Ok(())
}

#[test]
fn the_frontend_of_a_secondary_can_be_set_and_is_its_own() -> Result<()> {
    let mut sites = sites_with_a_disk()?;
    set(&sites.b.cli(), "nbd")?;
    let at_a = sites.a.cli().show("disk")?;
    ensure!(at_a.0.pointer("/policy/frontend") == Some(&"auto".into()), "{:?}", at_a.0);
    sites.a.kill();
    sites.b.cli().promote_fenced("disk", "the test killed it", &[])?;
    ensure!(sites.b.cli().attach("disk", "auto")?.frontend == "nbd");
    Ok(())
}

#[test]
fn attaches_at_the_same_time_all_get_the_one_frontend() -> Result<()> {
    let sites = sites_with_a_disk()?;
    let attach = || {
        let cli = sites.a.cli();
        std::thread::spawn(move || cli.attach("disk", "fuse"))
    };
    let asked: Vec<_> = (0..4).map(|_| attach()).collect();
    let answers: Vec<_> =
        asked.into_iter().map(|thread| thread.join().ok().context("a panic")?).collect::<Result<_>>()?;
    ensure!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    sites.a.cli().detach("disk")
}
