//! The disk shell on real files. The harness waits as a shard does: on the ring's eventfd through tokio.

mod devices;
mod groups;
mod log_place;
mod ring;
mod volumes;

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidemark_core::event::{DiskDone, DiskOp, DiskResult, DiskToken, FileRef, Slot};
use tidemark_core::types::VolumeId;

use super::*;

/// Nothing in these tests takes longer than this.
const PATIENCE: Duration = Duration::from_secs(60);
const VOLUME: VolumeKey = VolumeKey(7);
/// What the copies of most tests are named after.
const OWN: VolumeId = VolumeId([9; 16]);
/// Base size of most tests: no multiple of 4096.
const BASE_BYTES: u64 = (1 << 20) + 512;
/// The temporary directory may be a tmpfs.
const ANYWHERE: FileOptions = FileOptions { allow_buffered: true };

fn new_files() -> NewFiles {
    let others = vec![("note", "a file of the caller's own".into())];
    NewFiles { superblock: vec![1; 65536].into(), config: vec![2; 65536].into(), others, log: None }
}

fn image(size: u64) -> NewBase {
    NewBase::Image { size }
}

/// A pool directory with one volume in it.
fn volume_at(pool: &Path) -> VolumeFiles {
    VolumeFiles::create(&pool.join(OWN.to_string()), &image(BASE_BYTES), &new_files(), ANYWHERE).unwrap()
}

/// A ring as a shard drives it.
struct Shard {
    ring: Ring,
    runtime: tokio::runtime::Runtime,
    next: u64,
    results: HashMap<DiskToken, DiskResult>,
}

impl Shard {
    fn new(options: RingOptions) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { ring: Ring::new(Pool::new(), options).unwrap(), runtime, next: 0, results: HashMap::new() }
    }

    fn queue(&mut self, files: &VolumeFiles, op: DiskOp) -> DiskToken {
        let token = DiskToken(self.next);
        self.next += 1;
        self.ring.queue(VOLUME, token, op, files);
        token
    }

    /// Submits, and waits until nothing is in flight.
    fn settle(&mut self) {
        let Self { ring, runtime, results, .. } = self;
        ring.submit().unwrap();
        let wait = async {
            let bell = ring.bell().unwrap();
            let mut done = Vec::new();
            loop {
                ring.reap(&mut done).unwrap();
                for (volume, token, result) in done.drain(..) {
                    assert_eq!(volume, VOLUME);
                    assert!(results.insert(token, result).is_none(), "an operation ends once");
                }
                if ring.in_flight(VOLUME) == 0 {
                    return;
                }
                bell.rung().await.unwrap();
            }
        };
        runtime.block_on(async { tokio::time::timeout(PATIENCE, wait).await.expect("the ring wakes its shard") });
    }

    fn run(&mut self, files: &VolumeFiles, op: DiskOp) -> DiskResult {
        let token = self.queue(files, op);
        self.settle();
        self.results.remove(&token).unwrap()
    }

    fn read(&mut self, files: &VolumeFiles, file: FileRef, offset: u64, len: u32) -> Bytes {
        match self.run(files, DiskOp::Read { file, offset, len }) {
            Ok(DiskDone::Read(bytes)) => bytes,
            other => panic!("a read gave {other:?}"),
        }
    }

    fn done(&mut self, files: &VolumeFiles, op: DiskOp) {
        assert_eq!(self.run(files, op), Ok(DiskDone::Done));
    }

    fn write(&mut self, files: &VolumeFiles, file: FileRef, offset: u64, data: Bytes) {
        self.done(files, DiskOp::Write { file, offset, bufs: vec![data], durable: false });
    }
}

/// Bytes that tell their position and seed.
fn pattern(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out.into()
}

/// The same bytes at an address that is a multiple of 4096 plus `skew`.
fn placed(data: &[u8], skew: usize) -> Bytes {
    let mut buf = Pool::new().take(skew + data.len());
    buf[skew..].copy_from_slice(data);
    buf.freeze().slice(skew..)
}

fn tempdir() -> TempDir {
    tempfile::tempdir().unwrap()
}

const SLOT: FileRef = FileRef::Log(Slot(1));
