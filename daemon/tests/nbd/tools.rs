//! The programs that people use, unchanged: libnbd's tools, QEMU's and fio.

use std::path::Path;
use std::process::{Command, Output};

use crate::server::Remote;

const MIB: u64 = 1 << 20;

/// Runs a program and gives what it printed; a missing program or a failure fails the test with its name.
fn run(program: &str, args: &[&str], dir: &Path) -> String {
    let output: Output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program} (packages libnbd-bin, qemu-utils, fio): {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// A file with holes, data and zeros in it.
fn source(dir: &Path, size: u64) -> String {
    let data: Vec<u8> = (0..3 * MIB).map(|i| ((i * 2_654_435_761) >> 13) as u8).collect();
    let path = dir.join("source.img");
    std::fs::write(&path, &data).expect("source");
    std::fs::File::options().write(true).open(&path).and_then(|file| file.set_len(size)).expect("holes");
    path.display().to_string()
}

fn same(a: &str, b: &str) {
    assert!(std::fs::read(a).expect("source") == std::fs::read(b).expect("copy"), "{a} and {b} are equal");
}

#[test]
fn nbdinfo_shows_the_export() {
    let server = Remote::start(64 * MIB);
    let shown = run("nbdinfo", &[&server.uri()], server.dir());
    for line in [
        "export=\"vol\"",
        "export-size: 67108864 (64M)",
        "base:allocation",
        "is_read_only: false",
        "can_df: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(shown.contains(line), "{line} in:\n{shown}");
    }
    let listed = run("nbdinfo", &["--list", &server.uri()], server.dir());
    assert!(listed.contains("export=\"vol\""), "{listed}");
}

#[test]
fn nbdcopy_copies_in_and_out_and_keeps_holes() {
    let server = Remote::start(64 * MIB);
    let (from, to) = (source(server.dir(), 64 * MIB), server.dir().join("copy.img").display().to_string());
    run("nbdcopy", &[&from, &server.uri()], server.dir());
    run("nbdcopy", &[&server.uri(), &to], server.dir());
    same(&from, &to);
    let map = run("nbdinfo", &["--map", &server.uri()], server.dir());
    let last = map.lines().last().unwrap_or_default();
    assert!(last.contains("hole,zero") && map.lines().count() <= 3, "{map}");
}

#[test]
fn qemu_img_converts_in_and_out() {
    let server = Remote::start(64 * MIB);
    let (from, to) = (source(server.dir(), 64 * MIB), server.dir().join("copy.img").display().to_string());
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &from, &server.uri()], server.dir());
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &from, &server.uri()], server.dir());
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &server.uri(), &to], server.dir());
    same(&from, &to);
}

#[test]
fn qemu_io_sees_its_writes_zeroes_and_discards() {
    let server = Remote::start(64 * MIB);
    let commands = [
        "write -P 7 4k 64k",
        "write -f -P 8 512 512",
        "write -z -u 8k 16k",
        "write -z 32k 512",
        "discard 48k 4k",
        "flush",
        "read -P 8 512 512",
        "read -P 7 4k 4k",
        "read -P 0 8k 16k",
        "read -P 0 32k 512",
        "read -P 7 33280 15872",
        "read -P 0 48k 4k",
        "aio_write -P 9 1M 1M",
        "aio_flush",
        "read -P 9 1M 1M",
    ];
    let uri = server.uri();
    let mut args = vec!["-f", "raw", &uri];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let shown = run("qemu-io", &args, server.dir());
    assert!(!shown.contains("Pattern verification failed"), "{shown}");
}

#[test]
fn fio_verifies_its_checksums() {
    let server = Remote::start(64 * MIB);
    for (mode, blocks) in [("randwrite", "512-128k"), ("write", "128k-1m"), ("randrw", "4k-4k")] {
        let uri = format!("--uri={}", server.uri());
        let (mode, blocks) = (format!("--rw={mode}"), format!("--bsrange={blocks}"));
        let args = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            &mode,
            &blocks,
            "--size=32M",
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--verify_state_save=0",
        ];
        run("fio", &args, server.dir());
    }
}
