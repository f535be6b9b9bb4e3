//! `tidemark log` over a copy that the core wrote.

mod copy;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use copy::SECRET;
use serde_json::Value;
use tidemark_core::blocks::BlockSet;
use tidemark_core::format::branch::{BranchClass, BranchHead};
use tidemark_core::format::footer::Footer;
use tidemark_core::format::frame::FrameHeader;
use tidemark_core::format::segment::SegmentHeader;
use tidemark_core::types::{BLOCK, WallMs};

fn log(verb: &str, dir: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(["log", verb]).arg(dir).args(flags).output().expect("it starts")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn problems(dir: &Path) -> String {
    let output = log("verify", dir, &["-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    json(&output)["problems"].to_string()
}

fn copy_in(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    copy::written(&path, 40);
    path
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("readable");
    bytes[at] ^= 0x20;
    fs::write(path, bytes).expect("written");
}

fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for sub in ["", "log", "branch"] {
        for entry in fs::read_dir(dir.join(sub)).expect("readable") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                files.push((path.clone(), fs::read(path).expect("readable")));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn a_sound_copy_is_shown_and_verified_without_a_change() {
    let dir = tempfile::tempdir().expect("a directory");
    let copy = copy_in(dir.path(), "copy");
    let before = content(&copy);
    let output = log("inspect", &copy, &["--frames", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let shown = json(&output);
    assert_eq!(shown["volume"], "01010101-0101-0101-0101-010101010101");
    assert_eq!(shown["flag"], "complete");
    assert_eq!(shown["recordsAboveFloor"]["write"], 40);
    assert_eq!(shown["payloadBytesAboveFloor"].as_u64().expect("a number") / 4096, 40 * 16 + 1, "the FORK's block too");
    assert!(shown["segments"].as_array().expect("a list").len() >= 3, "{shown}");
    assert_eq!(shown["frames"].as_array().expect("a list").len() as u64, shown["framesAboveFloor"]);
    let table = log("inspect", &copy, &["--frames"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("40 write"), "{table:?}");

    let output = log("verify", &copy, &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("sound: "), "{output:?}");
    assert!(content(&copy) == before, "something was written");
}

#[test]
fn a_copy_whose_process_died_was_not_closed_cleanly() {
    let dir = tempfile::tempdir().expect("a directory");
    let (closed, died) = (copy_in(dir.path(), "closed"), dir.path().join("died"));
    copy::unclosed(&died, 40);
    for (copy, clean) in [(closed, true), (died, false)] {
        let output = log("inspect", &copy, &["-o", "json"]);
        assert_eq!(json(&output)["cleanClose"], clean, "{output:?}");
    }
}

#[test]
fn a_log_elsewhere_is_read_and_one_that_is_missing_is_no_empty_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let (copy, elsewhere) = (copy_in(dir.path(), "copy"), dir.path().join("elsewhere"));
    fs::rename(copy.join("log"), &elsewhere).expect("moved");
    std::os::unix::fs::symlink(&elsewhere, copy.join("log")).expect("linked");
    fs::write(copy.join("log-identity"), "this log").expect("written");
    fs::write(elsewhere.join("identity"), "this log").expect("written");
    let shown = json(&log("inspect", &copy, &["-o", "json"]));
    assert_eq!(shown["recordsAboveFloor"]["write"], 40);
    fs::write(elsewhere.join("identity"), "that log").expect("written");
    let foreign = log("verify", &copy, &[]);
    fs::remove_dir_all(&elsewhere).expect("removed");
    for output in [foreign, log("inspect", &copy, &[])] {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("elsewhere is not there, or is not this copy's"), "{said}");
    }
}

/// Adds a footer and a branch to a copy, made of its first segment.
fn add_footer_and_branch(copy: &Path) -> (PathBuf, PathBuf) {
    let segment = fs::read(first_segment(copy)).expect("readable");
    let header = SegmentHeader::decode(&segment, &SECRET).expect("a segment");
    let frame = FrameHeader::decode(&segment[BLOCK..], &SECRET).expect("a frame");
    let bytes = frame.total_bytes();
    let mut blocks = BlockSet::default();
    blocks.insert(0, 16);
    let footer =
        Footer { volume: header.volume, start: header.start, end: frame.boundary(), tails: vec![header.start], blocks };
    let head = BranchHead {
        volume: header.volume,
        class: BranchClass::Unacked,
        from: header.start,
        tail: frame.boundary(),
        bytes: bytes as u64,
        sealed_at: WallMs(1),
    };
    let (footer_path, branch_path) = (copy.join("log/footer-000001"), copy.join("branch/branch-0001"));
    fs::write(&footer_path, footer.encode()).expect("written");
    fs::write(&branch_path, [&head.encode(), &segment[BLOCK..BLOCK + bytes]].concat()).expect("written");
    (footer_path, branch_path)
}

fn first_segment(copy: &Path) -> PathBuf {
    let entries = fs::read_dir(copy.join("log")).expect("readable").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.extension().is_some_and(|end| end == "seg")).min().expect("a segment")
}

#[test]
fn every_damaged_file_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let copy = copy_in(dir.path(), "copy");
    let (footer, branch) = add_footer_and_branch(&copy);
    let output = log("verify", &copy, &["-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!((&json(&output)["footers"], &json(&output)["branches"]), (&1.into(), &1.into()));

    for (path, at, want) in [
        (footer.clone(), 40, "footer-000001: footer: checksum mismatch"),
        (branch.clone(), 40, "branch-0001: branch: checksum mismatch"),
        (branch.clone(), 2 * BLOCK + 1, "branch-0001: frame at byte 4096"),
        (first_segment(&copy), 300_000, "was durable once"),
        (first_segment(&copy), 30, "was durable once"),
    ] {
        flip(&path, at);
        let found = problems(&copy);
        assert!(found.contains(want), "{want} is not in {found}");
        flip(&path, at);
    }
    let bytes = fs::read(&branch).expect("readable");
    fs::write(&branch, &bytes[..bytes.len() - BLOCK]).expect("written");
    assert!(problems(&copy).contains("where its head promises"));
    fs::write(&branch, bytes).expect("written");
    fs::write(copy.join("config"), [0; 8192]).expect("written");
    assert!(problems(&copy).contains("config: "));
}

#[test]
fn what_is_no_copy_or_in_use_or_unreadable_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(log("verify", dir.path(), &[]).status.code(), Some(4));
    assert_eq!(log("verify", &dir.path().join("none"), &[]).status.code(), Some(4));

    let copy = copy_in(dir.path(), "copy");
    let agent = fs::File::open(&copy).expect("readable");
    agent.lock().expect("locked");
    let output = log("inspect", &copy, &["-o", "json"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"refused\""), "{output:?}");
    drop(agent);

    fs::write(copy.join("superblock"), [0; 65536]).expect("written");
    assert_eq!(log("verify", &copy, &[]).status.code(), Some(1));
}
