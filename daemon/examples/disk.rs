//! The disk shell without an agent: makes a volume in a temporary directory, prepares a log slot, writes it in frames with a
//! sync after each eighth, reads it back and compares. Says nothing when all is well.

use std::error::Error;
use std::path::Path;

use bytes::Bytes;
use tidemark_agent::disk::{
    Bell, Completion, FileOptions, NewBase, NewFiles, Pool, Ring, RingOptions, VolumeFiles, VolumeKey,
};
use tidemark_core::event::{DiskDone, DiskOp, DiskToken, FileRef, Slot};

const VOLUME: VolumeKey = VolumeKey(0);
const SLOT: FileRef = FileRef::Log(Slot(1));
const FRAME_BYTES: usize = 64 * 1024;
const FRAMES: u64 = 256;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("tidemark-disk-example-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let outcome = exercise(&dir.join("volume")).await;
    std::fs::remove_dir_all(&dir)?;
    outcome
}

async fn exercise(dir: &Path) -> Result<(), Box<dyn Error>> {
    let small = || Bytes::from_static(&[0; 65536]);
    let new = NewFiles { superblock: small(), config: small(), others: Vec::new(), log: None };
    let options = FileOptions { allow_buffered: true };
    let files = VolumeFiles::create(dir, &NewBase::Image { size: 1 << 20 }, &new, options)?;
    let mut ring = Ring::new(Pool::new(), RingOptions::default())?;
    let bell = ring.bell()?;

    let len = FRAMES * FRAME_BYTES as u64;
    ring.queue(VOLUME, DiskToken(0), DiskOp::Prepare { slot: Slot(1), len }, &files);
    settle(&mut ring, &bell).await?;
    for frame in 0..FRAMES {
        let bufs = vec![content(&ring, frame)];
        ring.queue(
            VOLUME,
            DiskToken(frame),
            DiskOp::Write { file: SLOT, offset: offset(frame), bufs, durable: false },
            &files,
        );
        if frame % 8 == 7 {
            settle(&mut ring, &bell).await?;
            ring.queue(VOLUME, DiskToken(frame), DiskOp::Sync { files: vec![SLOT] }, &files);
        }
    }
    settle(&mut ring, &bell).await?;
    for frame in 0..FRAMES {
        let read = DiskOp::Read { file: SLOT, offset: offset(frame), len: FRAME_BYTES as u32 };
        ring.queue(VOLUME, DiskToken(frame), read, &files);
    }
    for (_, DiskToken(frame), result) in settle(&mut ring, &bell).await? {
        assert_eq!(result, Ok(DiskDone::Read(content(&ring, frame))), "frame {frame}");
    }
    Ok(())
}

fn offset(frame: u64) -> u64 {
    frame * FRAME_BYTES as u64
}

fn content(ring: &Ring, frame: u64) -> Bytes {
    let mut buf = ring.pool().take(FRAME_BYTES);
    buf.fill(frame as u8);
    buf.freeze()
}

/// Submits and waits until everything ended well.
async fn settle(ring: &mut Ring, bell: &Bell) -> Result<Vec<Completion>, Box<dyn Error>> {
    let mut done = Vec::new();
    ring.submit()?;
    ring.reap(&mut done)?;
    while ring.in_flight(VOLUME) > 0 {
        bell.rung().await?;
        ring.reap(&mut done)?;
    }
    match done.iter().find_map(|(_, _, result)| result.as_ref().err()) {
        Some(error) => Err((*error).into()),
        None => Ok(done),
    }
}
