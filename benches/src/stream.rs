//! The bare gRPC stream between two agents, without disks: what the link itself gives on this host.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use tidemark_tests::process;

/// Beside this program: the example that measures it.
const EXAMPLE: &str = "examples/peer_pingpong";

/// The example's table, or `None` when it was not built.
///
/// # Errors
/// When it fails.
pub fn table() -> Result<Option<String>> {
    let own = std::env::current_exe()?;
    let program: PathBuf = own.parent().context("a program lies in a directory")?.join(EXAMPLE);
    if !program.is_file() {
        return Ok(None);
    }
    process::checked(&mut Command::new(program)).map(Some)
}
