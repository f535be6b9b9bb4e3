//! Runs the fuzz corpora of the peer protocol and of the admin requests on a stable compiler, with a bound on memory. One test
//! alone in its process, so that the memory it sees is its own.

use std::path::{Path, PathBuf};

use tidemark_agent::{control, peer};

/// Most memory that both corpora may take at any moment, MiB.
const LIMIT_MIB: u64 = 256;

/// The peak of this process's resident memory, MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("process status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("peak memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

fn corpus(name: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(name);
    let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<_> = files.map(|file| file.expect("corpus entry").path()).collect();
    files.sort();
    assert!(files.len() >= 9, "the corpus {name} is there: {} inputs", files.len());
    files
}

#[test]
fn the_corpora_do_no_harm_in_bounded_memory() {
    let (mut understood, mut malformed, mut records) = (0, 0, 0);
    for path in corpus("peer") {
        eprintln!("{}", path.display());
        let done = peer::exercise::exercise(&std::fs::read(&path).expect("corpus file"));
        (understood, malformed, records) =
            (understood + done.understood, malformed + done.malformed, records + done.records);
        let peak = peak_mib();
        assert!(peak < LIMIT_MIB, "{}: {peak} MiB", path.display());
    }
    assert!(understood > 100 && malformed > 0 && records > 100, "{understood}, {malformed}, {records}");
    let passed = corpus("admin").into_iter().filter(|path| {
        eprintln!("{}", path.display());
        control::exercise::exercise(&std::fs::read(path).expect("corpus file"))
    });
    assert!(passed.count() >= 9, "good requests are let through");
    assert!(peak_mib() < LIMIT_MIB);
}
