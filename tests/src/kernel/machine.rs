//! The virtual machine: made of what is on this host, booted, watched over its serial line.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Boot;
use super::archive::Archive;
use crate::agents::Programs;
use crate::process;
use crate::stage::Stage;

const QEMU: &str = "qemu-system-x86_64";
/// Programs of this host that are run in the machine.
const PROGRAMS: [&str; 10] =
    ["sh", "mount", "umount", "ip", "modprobe", "losetup", "mkfs.ext4", "resize2fs", "e2fsck", "truncate"];
/// Modules that are loaded there, and those that may be part of the kernel instead.
const MODULES: [&str; 2] = ["nbd", "loop"];
const OPTIONAL_MODULES: [&str; 5] = ["ext4", "jbd2", "mbcache", "crc32c_generic", "crc16"];
/// What the machine says with its last line.
const RESULT: &str = "TIDEMARK-RESULT ";

/// The first process. It never ends: the kernel is told to switch off.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin:/sbin HOME=/ TIDEMARK_BIN_DIR=/bin TIDEMARK_STAGE_DIR=/stage
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=1400m tmp /tmp
ip link set lo up
modprobe loop
truncate -s 1300M /tmp/disk
mkfs.ext4 -q /tmp/disk
mount -t ext4 -o loop /tmp/disk /stage
/bin/kernel play
echo "TIDEMARK-RESULT $?"
echo o >/proc/sysrq-trigger
while :; do read -r nothing </dev/kmsg; done
"#;

/// Boots the machine and waits for its result.
///
/// # Errors
/// When it cannot be made, is stuck, or what it plays does not hold.
pub fn boot(options: &Boot) -> Result<()> {
    let stage = Stage::new("kernel")?;
    let version = version_in(&options.kernel)?;
    let initial = stage.dir().join("initial.cpio");
    fill(&stage, options, &version, &initial)?;
    eprintln!("booting Linux {version}");
    let kernel = options.kernel.join("boot").join(format!("vmlinuz-{version}"));
    let mut command = Command::new(QEMU);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3G", "-no-reboot"]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-append", "console=ttyS0 panic=-1 quiet"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(&initial);
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

/// The machine's initial file system: the binaries under test without their debugging information, programs, modules.
fn fill(stage: &Stage, options: &Boot, version: &str, to: &Path) -> Result<()> {
    let mut archive = Archive::create(to)?;
    for dir in ["/proc", "/sys", "/dev", "/tmp", "/stage", "/run", "/etc"] {
        archive.directory(Path::new(dir))?;
    }
    archive.file(Path::new("/init"), 0o755, INIT.as_bytes())?;
    let Programs { agent, cli } = Programs::find()?;
    for (name, program) in [("tidemark-agent", agent), ("tidemark", cli), ("kernel", std::env::current_exe()?)] {
        let stripped = stage.dir().join(name);
        process::checked(Command::new("objcopy").arg("--strip-debug").arg(program).arg(&stripped))?;
        archive.program(&stripped, &Path::new("/bin").join(name))?;
    }
    for name in PROGRAMS {
        archive.program(&on_path(name)?, &Path::new("/bin").join(name))?;
    }
    add_modules(&mut archive, &stage.subdir("modules")?, &options.kernel, version)?;
    archive.finish()
}

/// The modules with a list of what needs what, as `modprobe` reads them.
fn add_modules(archive: &mut Archive, root: &Path, package: &Path, version: &str) -> Result<()> {
    let below = Path::new("lib/modules").join(version);
    let (from, to) = (package.join(&below), root.join(&below));
    fs::create_dir_all(&to)?;
    let mut left: Vec<&str> = MODULES.to_vec();
    let mut dirs = vec![from.join("kernel")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let module = file.split('.').next().unwrap_or_default();
            left.retain(|wanted| *wanted != module);
            if MODULES.contains(&module) || OPTIONAL_MODULES.contains(&module) {
                fs::copy(&path, to.join(&file))?;
            }
        }
    }
    ensure!(left.is_empty(), "Linux {version} has no module {}", left.join(", "));
    for list in ["modules.builtin", "modules.order", "modules.builtin.modinfo"] {
        if from.join(list).exists() {
            fs::copy(from.join(list), to.join(list))?;
        }
    }
    process::checked(Command::new("depmod").arg("-b").arg(root).arg(version))?;
    archive.tree(&to, &Path::new("/").join(&below))
}

fn on_path(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.find_map(|dir| fs::canonicalize(dir.join(name)).ok()).with_context(|| format!("{name}: run hack/setup --test"))
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
