//! What the demonstration needs of the host, checked before anything is started: one message names all that is missing.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use nix::unistd::geteuid;

use crate::{agents, ledger, process, stage};

/// Programs that are run by name.
const PROGRAMS: [&str; 4] = ["mkfs.ext4", "mount", "losetup", "e2fsck"];

/// What FUSE + loop is made of.
const FUSE_DEVICES: [&str; 2] = ["/dev/fuse", "/dev/loop-control"];

/// What was found.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// PostgreSQL.
    pub postgres: ledger::Programs,
}

impl Host {
    /// What it takes to attach a volume through `frontend`, and all the rest.
    pub fn check(frontend: &str) -> Result<Self> {
        let mut missing = Vec::new();
        if !geteuid().is_root() {
            missing.push("root: mounting and loop devices need it".to_owned());
        }
        if frontend == "fuse" || (frontend == "auto" && !has_kernel_nbd()) {
            for device in FUSE_DEVICES.iter().filter(|device| !Path::new(device).exists()) {
                missing.push(format!("{device}: load the kernel module, or allow the device in this container"));
            }
        }
        for program in PROGRAMS {
            if !is_on_path(program) {
                missing.push(format!("{program}: run hack/setup --demo"));
            }
        }
        missing.extend(agents::Programs::find().err().map(|error| format!("{error:#}")));
        missing.extend(super::ensure_space(&stage::place()).err().map(|error| format!("{error:#}")));
        match (ledger::Programs::find(), missing.is_empty()) {
            (Ok(postgres), true) => Ok(Self { postgres }),
            (postgres, _) => {
                missing.extend(postgres.err().map(|error| format!("{error:#}")));
                bail!("this host lacks\n  {}", missing.join("\n  "))
            }
        }
    }
}

/// The kernel has its NBD client, or would load it.
fn has_kernel_nbd() -> bool {
    let found = process::checked(Command::new("modprobe").args(["--dry-run", "--quiet", "nbd"]));
    Path::new("/sys/module/nbd").exists() || found.is_ok()
}

/// Whether a program is found by name.
pub(super) fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(program).is_file())
}
