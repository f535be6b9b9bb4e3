//! A disk that can lose power: mounts a directory so that what was not synced can be cut away. See `volatile` in the library.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use tidemark_tests::volatile::{Names, VolatileDisk, control};

/// Mounts BACKING at MOUNT. The backing directory holds exactly what is durable; commands come over the CONTROL socket:
/// cut SEED, stats, eio on|write|sync|off, enospc on [BYTES]|off, slow MS, hang on|off, quit.
#[derive(Parser)]
struct Options {
    /// The medium.
    #[arg(long, value_name = "DIR")]
    backing: PathBuf,
    /// Where to mount it.
    #[arg(long, value_name = "DIR")]
    mount: PathBuf,
    /// The socket for commands.
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// Whether creations, renames and removals can be lost until their directory is synced.
    #[arg(long, value_enum, default_value_t = NamesOption::Strict)]
    names: NamesOption,
}

#[derive(Clone, Copy, ValueEnum)]
enum NamesOption {
    Strict,
    Durable,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let names = match options.names {
        NamesOption::Strict => Names::Strict,
        NamesOption::Durable => Names::Durable,
    };
    // Before any thread starts, so that all of them leave these signals to the one that waits for them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("cannot block signals")?;
    let disk = VolatileDisk::mount(&options.backing, &options.mount, names)
        .with_context(|| format!("cannot mount {} at {}", options.backing.display(), options.mount.display()))?;
    let server = disk.serve_control(options.control.clone()).context("cannot listen for commands")?;
    println!("ready");
    let socket = options.control;
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            let _ = control::request(&socket, "quit");
        }
    });
    server.wait_for_quit();
    drop(server);
    disk.unmount().context("cannot write to the medium")
}
