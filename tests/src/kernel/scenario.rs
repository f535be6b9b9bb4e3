//! What is played on the machine's kernel: a replicated volume as `/dev/nbdN` with ext4 on it, over the deaths of its agent.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::agents::{Cli, NewVolume, Plan, Refused, TwoSites};
use crate::process;

const VOLUME: &str = "disk";
/// The machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);
const CONFIG: &str = "[nbd_device]\nresend_after = \"3s\"\ndead_timeout = \"60s\"\n";
/// Bytes of one file that the writer makes and syncs.
const FILE_BYTES: usize = 64 * 1024;
/// Files that have to come after an interruption.
const FILES_AFTER: u64 = 10;

/// Plays all of it.
///
/// # Errors
/// What does not hold.
pub fn play() -> Result<()> {
    let plan = Plan { name: "kernel".to_owned(), config: CONFIG.to_owned(), ..Plan::default() };
    let mut sites = TwoSites::new(&plan)?;
    let played = steps(&mut sites);
    played.with_context(|| sites.logs())
}

fn say(what: &str) {
    eprintln!("{what}");
}

fn steps(sites: &mut TwoSites) -> Result<()> {
    sites.start()?;
    sites.create(&NewVolume { name: VOLUME, size: "128Mi", mode: "sync", options: vec!["--log-size", "64Mi"] })?;
    let cli = sites.a.cli();
    let device = cli.attach(VOLUME, "auto")?.block_device()?.clone();
    ensure!(device.starts_with("/dev") && name_of(&device).starts_with("nbd"), "auto takes {}", device.display());
    let link = sites.a.dir().join("run/dev").join(VOLUME);
    ensure!(fs::read_link(&link)? == device, "the device has a name that stays");
    say("attached; a file system is made and written to");
    let mount = sites.stage.subdir("mount")?;
    process::checked(Command::new("mkfs.ext4").arg("-q").arg(&link))?;
    process::checked(Command::new("mount").args(["-t", "ext4"]).arg(&link).arg(&mount))?;
    let writer = Writer::start(&mount);
    writer.wait_for_more(PATIENCE)?;
    refuses_to_detach(&cli)?;

    say("the agent is killed and comes back");
    sites.a.kill();
    std::thread::sleep(Duration::from_secs(1));
    sites.a.start(&sites.stage)?;
    writer.wait_for_more(PATIENCE)?;
    say("the agent is stopped and comes back");
    sites.a.stop()?;
    sites.a.start(&sites.stage)?;
    writer.wait_for_more(PATIENCE)?;
    let view = cli.wait_for(VOLUME, "device", PATIENCE, |view| view.attachment().is_some())?;
    ensure!(view.attachment().and_then(|a| a.device) == Some(device.clone()), "it is the same device");

    say("the volume grows");
    cli.json(&["volume", "resize", VOLUME, "--size", "192Mi"])?;
    ensure!(sectors(&device)? == 192 * 2048, "the device has {} sectors", sectors(&device)?);
    process::checked(Command::new("resize2fs").arg(&link))?;
    let files = writer.finish()?;
    process::checked(Command::new("umount").arg(&mount))?;

    say("everything is read again");
    process::checked(Command::new("mount").args(["-t", "ext4"]).arg(&link).arg(&mount))?;
    for number in 0..files {
        ensure!(fs::read(path_of(&mount, number))? == content(number), "file {number} of {files} is not as written");
    }
    process::checked(Command::new("umount").arg(&mount))?;
    process::checked(Command::new("e2fsck").args(["-f", "-n"]).arg(&link)).context("the file system is damaged")?;
    cli.wait_for(VOLUME, "copies in step", PATIENCE, |view| view.link() == "streaming" && view.is_protected())?;
    ensure!(cli.verify(VOLUME)?, "the copies differ");
    cli.detach(VOLUME)?;
    is_gone(&device, &link)?;
    say(&format!("{files} files written, all of them are there"));
    leftover_is_ended(sites, &device, &link)
}

/// A device whose volume is to be detached is ended also when the agent died in between.
fn leftover_is_ended(sites: &mut TwoSites, device: &Path, link: &Path) -> Result<()> {
    say("a device that its agent left is ended by a detach of the next");
    sites.a.cli().attach(VOLUME, "nbd-device")?;
    sites.a.kill();
    ensure!(!identifier(device).is_empty(), "the device stays");
    // Alone, A does not know whether B took over: the device waits for a volume that does not serve yet.
    sites.a.start(&sites.stage)?;
    sites.a.cli().json(&["volume", "detach", VOLUME, "--force"])?;
    is_gone(device, link)
}

fn refuses_to_detach(cli: &Cli) -> Result<()> {
    let refused = cli.detach(VOLUME).err().context("a mounted device was detached")?;
    let reason = refused.downcast::<Refused>()?.reason;
    ensure!(reason.contains("in use"), "refused with {reason}");
    Ok(())
}

fn is_gone(device: &Path, link: &Path) -> Result<()> {
    ensure!(identifier(device).is_empty(), "{} is left", device.display());
    ensure!(fs::symlink_metadata(link).is_err(), "a link is left");
    Ok(())
}

fn identifier(device: &Path) -> String {
    fs::read_to_string(Path::new("/sys/block").join(name_of(device)).join("backend")).unwrap_or_default()
}

fn sectors(device: &Path) -> Result<u64> {
    Ok(fs::read_to_string(Path::new("/sys/block").join(name_of(device)).join("size"))?.trim().parse()?)
}

fn name_of(device: &Path) -> String {
    device.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn path_of(mount: &Path, number: u64) -> PathBuf {
    mount.join(format!("file-{number}"))
}

fn content(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(FILE_BYTES / 8)
}

/// Makes files and syncs each, until told to stop or until one fails.
struct Writer {
    stop: Arc<AtomicBool>,
    synced: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

/// As many fit.
const MAX_FILES: u64 = 1200;

impl Writer {
    fn start(mount: &Path) -> Self {
        let (stop, synced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (mount, stopped, count) = (mount.to_owned(), stop.clone(), synced.clone());
        let thread = std::thread::spawn(move || {
            for number in 0..MAX_FILES {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let mut file = File::create(path_of(&mount, number))?;
                file.write_all(&content(number))?;
                file.sync_all()?;
                count.store(number + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        Self { stop, synced, thread }
    }

    fn wait_for_more(&self, patience: Duration) -> Result<()> {
        let (begun, before) = (Instant::now(), self.synced.load(Ordering::SeqCst));
        while self.synced.load(Ordering::SeqCst) < before + FILES_AFTER {
            ensure!(!self.thread.is_finished(), "the writer ended: an error, or the machine is too fast for this");
            ensure!(begun.elapsed() < patience, "the writer is stuck");
            std::thread::sleep(Duration::from_millis(20));
        }
        say(&format!("{FILES_AFTER} more files after {} ms", begun.elapsed().as_millis()));
        Ok(())
    }

    /// The number of files that are synced.
    fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().ok().context("the writer panicked")?.context("a write failed")?;
        Ok(self.synced.load(Ordering::SeqCst))
    }
}
