//! What is in the machine: its first process, the binaries under test, programs of this host that are run there, modules of its
//! kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::archive::Archive;
use super::{Boot, Piece};
use crate::agents::{self, beside_this_program};
use crate::stage::Stage;
use crate::{ledger, process};

/// Programs of this host that are run in the machine.
const PROGRAMS: [&str; 11] =
    ["sh", "mount", "umount", "ip", "modprobe", "losetup", "mkfs.ext4", "resize2fs", "e2fsck", "sync", "truncate"];
/// Modules that are loaded there, and those that may be part of the kernel instead.
const MODULES: [&str; 2] = ["nbd", "loop"];
const OPTIONAL_MODULES: [&str; 7] = ["ext4", "jbd2", "mbcache", "crc32c_generic", "crc16", "nvme", "nvme-core"];
/// What the machine says with its last line, before the status of what it played.
pub(super) const RESULT: &str = "TIDEMARK-RESULT ";
/// Programs and libraries of PostgreSQL that a new cluster takes.
const POSTGRES_PROGRAMS: [&str; 3] = ["postgres", "initdb", "pg_checksums"];
const POSTGRES_LIBRARIES: [&str; 2] = ["plpgsql.so", "dict_snowball.so"];
/// Users of the machine: the server refuses root.
const USERS: &str = "root:x:0:0::/:/bin/sh\npostgres:x:105:105::/:/bin/sh\n";

/// The first process. It never ends: the kernel is told to switch off.
fn init(piece: Piece) -> String {
    let play = match piece {
        Piece::Scenario => "/bin/kernel play",
        Piece::Demo => "/bin/demo --brief --writers 4 --size 256Mi --frontend auto",
    };
    format!(
        r#"#!/bin/sh
export PATH=/bin:/sbin HOME=/ TIDEMARK_BIN_DIR=/bin TIDEMARK_STAGE_DIR=/stage
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
ip link set lo up
modprobe loop
modprobe -q nvme
mkfs.ext4 -q /dev/nvme0n1
mount -t ext4 /dev/nvme0n1 /stage
{play}
echo "{RESULT}$?"
echo o >/proc/sysrq-trigger
while :; do read -r nothing </dev/kmsg; done
"#
    )
}

/// Writes the machine's initial file system: the binaries under test without their debugging information, programs, modules.
pub(super) fn fill(stage: &Stage, options: &Boot, version: &str, to: &Path) -> Result<()> {
    let mut archive = Archive::create(to)?;
    for dir in ["/proc", "/sys", "/dev", "/tmp", "/stage", "/run", "/etc"] {
        archive.directory(Path::new(dir))?;
    }
    archive.file(Path::new("/init"), 0o755, init(options.play).as_bytes())?;
    let agents::Programs { agent, cli } = agents::Programs::find()?;
    add_stripped(&mut archive, stage, "tidemark-agent", &agent)?;
    add_stripped(&mut archive, stage, "tidemark", &cli)?;
    match options.play {
        Piece::Scenario => add_stripped(&mut archive, stage, "kernel", &std::env::current_exe()?)?,
        Piece::Demo => {
            let demo = beside_this_program("demo").context("demo is not built")?;
            add_stripped(&mut archive, stage, "demo", &demo)?;
            add_postgres(&mut archive)?;
        }
    }
    for name in PROGRAMS {
        archive.program(&on_path(name)?, &Path::new("/bin").join(name))?;
    }
    add_modules(&mut archive, &stage.subdir("modules")?, &options.kernel, version)?;
    archive.finish()
}

fn add_stripped(archive: &mut Archive, stage: &Stage, name: &str, program: &Path) -> Result<()> {
    let stripped = stage.dir().join(name);
    process::checked(Command::new("objcopy").arg("--strip-debug").arg(program).arg(&stripped))?;
    archive.program(&stripped, &Path::new("/bin").join(name))
}

/// The server where it is on this host, and the user that runs it.
fn add_postgres(archive: &mut Archive) -> Result<()> {
    let bin = ledger::Programs::find()?.directory().to_owned();
    let root = bin.parent().context("a directory of a version")?;
    for program in POSTGRES_PROGRAMS {
        archive.program(&bin.join(program), &bin.join(program))?;
    }
    for library in POSTGRES_LIBRARIES.map(|library| root.join("lib").join(library)) {
        archive.program(&library, &library)?;
    }
    let share = Path::new("/usr/share/postgresql").join(root.file_name().unwrap_or_default());
    archive.tree(&share, &share)?;
    archive.file(Path::new("/etc/passwd"), 0o644, USERS.as_bytes())
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
