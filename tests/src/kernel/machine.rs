//! The virtual machine: made of what is on this host, booted, watched over its serial line.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Boot;
use super::guest::{RESULT, fill};
use crate::process;
use crate::stage::Stage;

const QEMU: &str = "qemu-system-x86_64";
/// Room for what is played, in bytes; the file has holes.
const DISK_BYTES: u64 = 8 << 30;

/// Boots the machine and waits for its result.
///
/// # Errors
/// When it cannot be made, is stuck, or what it plays does not hold.
pub fn boot(options: &Boot) -> Result<()> {
    let stage = Stage::new("kernel")?;
    let version = version_in(&options.kernel)?;
    let initial = stage.dir().join("initial.cpio");
    fill(&stage, options, &version, &initial)?;
    let disk = stage.dir().join("disk");
    File::create(&disk)?.set_len(DISK_BYTES)?;
    eprintln!("booting Linux {version}");
    let kernel = options.kernel.join("boot").join(format!("vmlinuz-{version}"));
    let mut command = Command::new(QEMU);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3G", "-no-reboot"]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-append", "console=ttyS0 panic=-1 quiet"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(&initial);
    command.arg("-drive").arg(format!("if=none,id=disk,format=raw,cache=unsafe,file={}", disk.display()));
    command.args(["-device", "nvme,serial=disk,drive=disk"]);
    let errors = File::create(stage.dir().join("qemu.log"))?;
    let child = stage.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors))?;
    let status = watch(child, Duration::from_secs(options.patience));
    let status = status.with_context(|| process::tail(&stage.dir().join("qemu.log")))?;
    ensure!(status == "0", "what is played in the machine does not hold");
    Ok(())
}

fn version_in(package: &Path) -> Result<String> {
    let modules = package.join("lib/modules");
    let found = fs::read_dir(&modules).with_context(|| format!("no kernel in {}", package.display()))?.flatten().next();
    let name = found.map(|entry| entry.file_name().to_string_lossy().into_owned());
    name.with_context(|| format!("{} is empty", modules.display()))
}

/// Shows what the machine says and returns its result.
fn watch(mut child: Child, patience: Duration) -> Result<String> {
    let serial = child.stdout.take().context("the serial line")?;
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(serial).split(b'\n').map_while(Result::ok) {
            if say.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    let result = await_result(&said, Instant::now() + patience);
    process::kill_tree(child.id() as i32);
    child.wait()?;
    result
}

fn await_result(said: &mpsc::Receiver<String>, deadline: Instant) -> Result<String> {
    loop {
        match said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some((_, status)) = line.split_once(RESULT) {
                    return Ok(status.to_owned());
                }
                eprintln!("| {line}");
            }
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("the machine is stuck"),
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the machine ended without a result"),
        }
    }
}
