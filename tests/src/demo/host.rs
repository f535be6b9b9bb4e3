//! What the demonstration needs of the host, checked before anything is started: one message names all that is missing.

use std::path::Path;

use anyhow::{Result, bail};
use nix::unistd::geteuid;

use crate::{agents, ledger};

/// Programs that are run by name.
const PROGRAMS: [&str; 4] = ["mkfs.ext4", "mount", "losetup", "e2fsck"];

/// What was found.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// PostgreSQL.
    pub postgres: ledger::Programs,
}

impl Host {
    pub fn check() -> Result<Self> {
        let mut missing = Vec::new();
        if !geteuid().is_root() {
            missing.push("root: mounting and loop devices need it".to_owned());
        }
        for device in ["/dev/fuse", "/dev/loop-control"] {
            if !Path::new(device).exists() {
                missing.push(format!("{device}: load the kernel module, or allow the device in this container"));
            }
        }
        for program in PROGRAMS {
            if !is_on_path(program) {
                missing.push(format!("{program}: run hack/setup --demo"));
            }
        }
        missing.extend(agents::Programs::find().err().map(|error| format!("{error:#}")));
        missing.extend(super::ensure_space(&std::env::temp_dir()).err().map(|error| format!("{error:#}")));
        match (ledger::Programs::find(), missing.is_empty()) {
            (Ok(postgres), true) => Ok(Self { postgres }),
            (postgres, _) => {
                missing.extend(postgres.err().map(|error| format!("{error:#}")));
                bail!("this host lacks\n  {}", missing.join("\n  "))
            }
        }
    }
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(program).is_file())
}
