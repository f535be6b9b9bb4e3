//! A volume as a block device, with the settings that an agent has by default, over the death of the agent.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tidemark_tests::agents::{Attachment, NewVolume, Plan, TwoSites};
use tidemark_tests::devices::loops_of;

const PATIENCE: Duration = Duration::from_secs(30);
const TEXT: &[u8; 512] = &[0x5a; 512];

fn write(device: &Path) -> Result<()> {
    let mut file = OpenOptions::new().write(true).open(device)?;
    file.write_all(TEXT)?;
    Ok(file.sync_all()?)
}

#[test]
fn an_agent_that_was_killed_finds_its_device_dead_and_serves_a_new_one_under_the_same_name() -> Result<()> {
    let mut sites = TwoSites::new(&Plan { name: "fuse".to_owned(), ..Plan::default() })?;
    sites.start()?;
    sites.create(&NewVolume { name: "disk", size: "16Mi", mode: "sync", options: vec!["--log-size", "16Mi"] })?;
    let Attachment { device, .. } = sites.a.cli().attach("disk", "fuse")?;
    let run_dir = fs::canonicalize(sites.a.state_dir())?.parent().context("the site's directory")?.join("run");
    let link = run_dir.join("dev/disk");
    ensure!(Some(fs::read_link(&link)?) == device, "the device has a name that stays");
    write(&link)?;
    ensure!(loops_of(&run_dir).len() == 1);

    sites.a.kill();
    sites.a.start(&sites.stage)?;
    let view = sites.a.cli().wait_for("disk", "device", PATIENCE, |view| view.attachment().is_some())?;
    ensure!(Some(fs::read_link(&link)?) == view.attachment().and_then(|a| a.device), "it has its name again");
    ensure!(loops_of(&run_dir).len() == 1, "the dead one is gone");
    let mut read = [0; 512];
    OpenOptions::new().read(true).open(&link)?.read_exact(&mut read)?;
    ensure!(&read == TEXT, "what was synced is there");
    write(&link)?;

    sites.a.cli().detach("disk")?;
    ensure!(loops_of(&run_dir).is_empty(), "a loop device is left");
    ensure!(fs::symlink_metadata(&link).is_err(), "a link is left");
    Ok(())
}
