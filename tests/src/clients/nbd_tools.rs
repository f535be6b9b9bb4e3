//! NBD clients.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::agents::{NewVolume, Plan, TwoSites};
use crate::dice::Dice;
use crate::process;

const VOLUME: &str = "tools";
const SIZE: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// How long `fio` may take at most.
const FIO_PATIENCE: Duration = Duration::from_secs(300);

/// Copies in and out, byte for byte, and a verified load.
pub(super) fn run() -> Result<()> {
    let mut sites = TwoSites::new(&Plan { name: "tools".to_owned(), ..Plan::default() })?;
    let socket = served(&mut sites)?;
    let done = use_tools(&sites, &uri(&socket, VOLUME)).and_then(|()| expect_equal(&sites));
    done.with_context(|| sites.logs())
}

fn served(sites: &mut TwoSites) -> Result<PathBuf> {
    sites.start()?;
    let (size, options) = (SIZE.to_string(), vec!["--log-size", "64Mi"]);
    sites.create(&NewVolume { name: VOLUME, size: &size, mode: "sync", options })?;
    sites.a.cli().attach(VOLUME, "nbd")?.nbd_socket()
}

fn uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

fn use_tools(sites: &TwoSites, uri: &str) -> Result<()> {
    let file = |name: &str| sites.stage.dir().join(name);
    let info: Value = serde_json::from_str(&process::checked(Command::new("nbdinfo").args(["--json", uri]))?)?;
    let size = info.pointer("/exports/0/export-size").and_then(Value::as_u64);
    ensure!(size == Some(SIZE), "nbdinfo says {size:?} bytes");
    eprintln!("nbdinfo: {SIZE} bytes");

    let contents = [image(1), image(2)];
    for (name, content) in ["one", "two"].iter().zip(&contents) {
        fs::write(file(name), content)?;
    }
    process::checked(Command::new("nbdcopy").arg("--flush").arg(file("one")).arg(uri))?;
    process::checked(Command::new("nbdcopy").arg(uri).arg(file("one.out")))?;
    ensure!(fs::read(file("one.out"))? == contents[0], "nbdcopy brought something else back");
    eprintln!("nbdcopy: in and out, equal");

    let convert = |args: &[&str]| process::checked(Command::new("qemu-img").arg("convert").args(args));
    let (two, out) = (file("two").display().to_string(), file("two.out").display().to_string());
    convert(&["-n", "-f", "raw", "-O", "raw", &two, uri])?;
    convert(&["-f", "raw", "-O", "raw", uri, &out])?;
    ensure!(fs::read(&out)? == contents[1], "qemu-img brought something else back");
    process::checked(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw", &two, uri]))?;
    eprintln!("qemu-img: in, out and compared, equal");

    process::checked(&mut fio(sites.stage.dir(), uri))?;
    eprintln!("fio: written and verified");
    Ok(())
}

/// Noise with holes: clients skip zeros, or ask for zeros to be written.
fn image(seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut content = vec![0; SIZE as usize];
    for piece in content.chunks_exact_mut(64 << 10) {
        if dice.happens(0.5) {
            piece.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&dice.number().to_le_bytes()));
        }
    }
    content
}

/// Writes all of the export at random and reads it back by checksums.
fn fio(dir: &Path, uri: &str) -> Command {
    let mut fio = Command::new("fio");
    fio.current_dir(dir).args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=32"]);
    fio.args(["--size=64M", "--verify=crc32c", "--verify_fatal=1", "--output-format=terse"]);
    fio.arg(format!("--uri={uri}"));
    fio
}

fn expect_equal(sites: &TwoSites) -> Result<()> {
    let cli = sites.a.cli();
    cli.wait_for(VOLUME, "copies in step", PATIENCE, |view| view.link() == "streaming" && view.is_protected())?;
    ensure!(cli.verify(VOLUME)?, "the copies differ");
    Ok(())
}

/// `fio` sees none of the kills: the daemon between reconnects and sends again what was not answered.
pub(super) fn reconnect(kills: u32) -> Result<()> {
    let mut sites = TwoSites::new(&Plan { name: "reconnect".to_owned(), ..Plan::default() })?;
    let socket = served(&mut sites)?;
    let between = sites.stage.dir().join("between.sock");
    let _daemon = Killed(storage_daemon(&sites, &socket, &between)?);
    let done = load_under_kills(&mut sites, &uri(&between, VOLUME), kills).and_then(|()| expect_equal(&sites));
    done.with_context(|| sites.logs())
}

/// A process that ends with its value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        process::kill_tree(self.0.id() as i32);
        let _ = self.0.wait(); // it was killed: how it ended is known
    }
}

fn storage_daemon(sites: &TwoSites, server: &Path, listen: &Path) -> Result<Child> {
    let mut daemon = Command::new("qemu-storage-daemon");
    let client = format!(
        "driver=nbd,node-name=remote,server.type=unix,server.path={},export={VOLUME},reconnect-delay=60",
        server.display()
    );
    daemon.args(["--blockdev", &client]);
    daemon.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", listen.display())]);
    daemon.args(["--export", &format!("type=nbd,id=e,node-name=remote,name={VOLUME},writable=on")]);
    let child = sites.stage.spawn(daemon.stdin(Stdio::null()))?;
    let deadline = Instant::now() + PATIENCE;
    while !listen.exists() {
        ensure!(Instant::now() < deadline, "qemu-storage-daemon does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(child)
}

fn load_under_kills(sites: &mut TwoSites, uri: &str, kills: u32) -> Result<()> {
    let mut dice = Dice::new(Dice::fresh_seed());
    let mut done = 0;
    while done < kills {
        let mut load = sites.stage.spawn(fio(sites.stage.dir(), uri).stdin(Stdio::null()).stdout(Stdio::null()))?;
        while done < kills && load.try_wait()?.is_none() {
            std::thread::sleep(dice.between(Duration::from_millis(200), Duration::from_millis(1500)));
            let TwoSites { a, b, stage, .. } = sites;
            let victim = if dice.happens(0.5) { a } else { b };
            victim.kill();
            victim.start(stage)?;
            done += 1;
        }
        let status = process::wait_timeout(&mut load, FIO_PATIENCE)?;
        if status.is_none() {
            process::kill_tree(load.id() as i32);
        }
        let status = status.context("fio is stuck")?;
        ensure!(status.success(), "fio ended with {status} after {done} kills");
    }
    eprintln!("fio through qemu-storage-daemon: {done} kills, verified");
    Ok(())
}
