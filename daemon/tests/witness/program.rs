//! A server that a test starts, stops, and starts again.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long one may take to listen, or to be reached again.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Not running at first; ends with the test.
#[derive(Default)]
pub struct Program(Option<Child>);

impl Program {
    /// Runs `command`, which `source` says where to get, with what it says added to `log`, until it listens on `port`.
    pub fn run(&mut self, mut command: Command, source: &str, log: &Path, port: u16) {
        let name = command.get_program().display().to_string();
        let out = fs::File::options().create(true).append(true).open(log).unwrap();
        let spawned = command.stdout(Stdio::null()).stderr(out).spawn();
        self.0 = Some(spawned.unwrap_or_else(|error| panic!("cannot run {name} ({source}): {error}")));
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let said = || fs::read_to_string(log).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "{name} does not listen: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop();
    }
}
