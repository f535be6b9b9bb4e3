//! The volatile disk as a program of its own, as the demo and the tests of whole agents use it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, umount2};
use tidemark_tests::volatile::control;

struct Program {
    child: Child,
    dir: PathBuf,
}

impl Program {
    fn start(dir: &Path) -> Self {
        let path = |name: &str| dir.join(name);
        let mut child = Command::new(env!("CARGO_BIN_EXE_volatile-disk"))
            .arg("--backing")
            .arg(path("medium"))
            .arg("--mount")
            .arg(path("mnt"))
            .arg("--control")
            .arg(path("control"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        Self { child, dir: dir.to_owned() }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("mnt/file")
    }

    fn send(&self, command: &str) -> String {
        control::request(&self.dir.join("control"), command).expect(command)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = umount2(&self.dir.join("mnt"), MntFlags::MNT_DETACH);
    }
}

fn write_synced(path: &Path, content: &[u8]) {
    let file = File::create(path).expect("created");
    file.write_all_at(content, 0).expect("written");
    file.sync_all().expect("synced");
    File::open(path.parent().expect("directory")).expect("opened").sync_all().expect("synced");
}

#[test]
fn the_program_serves_cuts_ends_in_order_and_comes_back_after_it_was_killed() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: needs root");
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut program = Program::start(dir.path());
    write_synced(&program.file(), b"synced");
    fs::write(program.dir.join("mnt/other"), b"not synced").expect("written");
    program.send("cut 12");
    assert_eq!(fs::read(program.file()).expect("read"), b"synced");

    // Killed without a word: the mount stays behind, dead, and the next start replaces it.
    program.child.kill().expect("killed");
    program.child.wait().expect("ended");
    std::mem::forget(program);
    let mut program = Program::start(dir.path());
    assert_eq!(fs::read(program.file()).expect("read"), b"synced");
    fs::write(program.dir.join("mnt/last"), b"kept by an orderly end").expect("written");
    program.send("quit");
    assert!(program.child.wait().expect("ended").success());
    assert_eq!(fs::read(dir.path().join("medium/last")).expect("on the medium"), b"kept by an orderly end");
    assert!(!program.file().exists(), "unmounted");
}
