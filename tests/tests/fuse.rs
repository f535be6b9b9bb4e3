//! A volume as a loop device on a FUSE file, over the death and the stop of the agent that it dies with.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tidemark_tests::agents::{Attachment, NewVolume, Plan, TwoSites};
use tidemark_tests::devices::loops_of;
use tidemark_tests::process;

const PATIENCE: Duration = Duration::from_secs(30);
const TEXT: &[u8; 512] = &[0x5a; 512];

/// Two sites, with `config` for their agents, and a volume `disk` of `size` with as large a log, of which both copies are equal.
fn two_sites(size: &str, config: &str) -> Result<TwoSites> {
    let mut sites = TwoSites::new(&Plan { name: "fuse".to_owned(), config: config.to_owned(), ..Plan::default() })?;
    sites.start()?;
    sites.create(&NewVolume { name: "disk", size, mode: "sync", options: vec!["--log-size", size] })?;
    Ok(sites)
}

fn write(device: &Path) -> Result<()> {
    let mut file = OpenOptions::new().write(true).open(device)?;
    file.write_all(TEXT)?;
    Ok(file.sync_all()?)
}

#[test]
fn an_agent_that_was_killed_finds_its_device_dead_and_serves_a_new_one_under_the_same_name() -> Result<()> {
    let mut sites = two_sites("16Mi", "")?;
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

/// Two sites with a volume that is mounted at A.
struct Mounted {
    sites: TwoSites,
    link: PathBuf,
    mount: PathBuf,
}

impl Mounted {
    fn new(config: &str) -> Result<Self> {
        let sites = two_sites("32Mi", config)?;
        sites.a.cli().attach("disk", "fuse")?;
        let (link, mount) = (sites.a.dir().join("run/dev/disk"), sites.stage.subdir("mount")?);
        process::checked(Command::new("mkfs.ext4").arg("-q").arg(&link))?;
        let mounted = Self { sites, link, mount };
        mounted.mount()?;
        Ok(mounted)
    }

    fn mount(&self) -> Result<()> {
        process::checked(Command::new("mount").args(["-t", "ext4"]).arg(&self.link).arg(&self.mount)).map(drop)
    }

    fn unmount(&self) -> Result<()> {
        process::checked(Command::new("umount").arg(&self.mount)).map(drop)
    }

    fn restart(&mut self) -> Result<()> {
        self.sites.a.start(&self.sites.stage)?;
        self.sites.a.cli().wait_for("disk", "device", PATIENCE, |view| view.attachment().is_some()).map(drop)
    }
}

#[test]
fn a_graceful_stop_serves_a_mounted_device_until_it_is_unmounted() -> Result<()> {
    let mut mounted = Mounted::new("[fuse]\nunmount_wait = \"60s\"\n")?;
    process::signal(mounted.sites.a.pid(), Signal::SIGTERM);
    std::thread::sleep(Duration::from_secs(1));
    let mut file = File::create(mounted.mount.join("file"))?;
    file.write_all(TEXT)?;
    file.sync_all().context("the device works while it is mounted")?;
    drop(file);
    ensure!(mounted.sites.a.is_ready(), "verbs are answered meanwhile");
    let log = fs::read_to_string(mounted.sites.a.log_path())?;
    let told = log.lines().find(|line| line.contains("the agent stops when this device is unmounted"));
    let point = mounted.mount.display().to_string();
    ensure!(told.is_some_and(|line| line.contains(&point)), "nobody is told what it waits for: {log}");

    let begun = Instant::now();
    mounted.unmount()?;
    mounted.sites.a.stop()?;
    ensure!(begun.elapsed() < Duration::from_secs(20), "it stopped {:?} after the unmount", begun.elapsed());
    mounted.restart()?;
    mounted.mount()?;
    ensure!(fs::read(mounted.mount.join("file"))? == TEXT);
    mounted.unmount()
}

#[test]
fn a_stop_that_waited_in_vain_has_the_file_system_write_out_what_it_holds_first() -> Result<()> {
    let mut mounted = Mounted::new("[fuse]\nunmount_wait = \"1s\"\n")?;
    // Not synced by anybody: the kernel keeps it for seconds.
    fs::write(mounted.mount.join("file"), TEXT)?;
    mounted.sites.a.stop()?;
    mounted.unmount()?;
    mounted.restart()?;
    mounted.mount()?;
    ensure!(fs::read(mounted.mount.join("file"))? == TEXT);
    mounted.unmount()
}

#[test]
fn a_detach_that_waits_for_a_suspended_volume_can_be_forced() -> Result<()> {
    let mut sites = two_sites("16Mi", "")?;
    sites.a.cli().attach("disk", "fuse")?;
    // Alone after a restart, A queues: it does not know whether B took over.
    sites.b.kill();
    sites.a.kill();
    sites.a.start(&sites.stage)?;
    let cli = sites.a.cli();
    let view = cli.wait_for("disk", "device", PATIENCE, |view| view.attachment().is_some())?;
    ensure!(view.role() == "suspended-restart", "{}", view.summary());
    let device = view.attachment().and_then(|attachment| attachment.device).context("a device")?;
    // Stays in the page cache: a whole page needs no read, and nobody closes the device.
    let open = OpenOptions::new().write(true).open(&device)?;
    open.write_all_at(&[0x5a; 4096], 0)?;

    let waiting = std::thread::spawn({
        let cli = cli.clone();
        move || cli.detach("disk")
    });
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!waiting.is_finished(), "the cache is written out before a detach");
    let begun = Instant::now();
    cli.json(&["volume", "detach", "disk", "--force"])?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "forced after {:?}", begun.elapsed());
    ensure!(waiting.join().is_ok_and(|waited| waited.is_err()), "what was to be written out was not");
    ensure!(cli.show("disk")?.attachment().is_none());
    Ok(())
}
