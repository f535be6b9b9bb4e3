//! Runs the fuzz corpus of the NBD frontend on a stable compiler, with a bound on memory. One test alone in its process, so
//! that the memory it sees is its own.

use std::path::Path;

use tidemark_agent::frontend::nbd::exercise::{End, exercise};

/// Most memory the whole corpus may take at any moment, MiB.
const LIMIT_MIB: u64 = 256;

/// The peak of this process's resident memory, MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("process status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("peak memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

#[test]
fn the_corpus_does_no_harm_in_bounded_memory() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/nbd");
    let files = std::fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
    let (mut run, mut goodbyes, mut refused) = (0, 0, 0);
    for file in files {
        let path = file.expect("corpus entry").path();
        let input = std::fs::read(&path).expect("corpus file");
        match exercise(&input) {
            End::Goodbye => goodbyes += 1,
            End::Refused(_) => refused += 1,
            End::InputOver => {}
        }
        run += 1;
        let peak = peak_mib();
        assert!(peak < LIMIT_MIB, "{}: {peak} MiB", path.display());
    }
    assert!(run >= 20 && goodbyes > 0 && refused > 0, "the corpus is there: {run} inputs, {goodbyes}, {refused}");
}
