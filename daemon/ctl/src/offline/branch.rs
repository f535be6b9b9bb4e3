//! A sealed branch: its head, then the frames of the suffix, one after the other.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tidemark_core::format::branch::BranchHead;
use tidemark_core::format::codec::Reader;
use tidemark_core::format::frame::{FIXED_BYTES, FrameHeader, MAX_HEADER_BYTES};
use tidemark_core::format::record::Kind;
use tidemark_core::format::superblock::{self, Superblock};
use tidemark_core::layout::Layout;
use tidemark_core::types::{BLOCK, BlockRange, Secret, VolumeId};

use super::OfflineError;
use super::copy::{Numbered, read_small};

/// The superblock of the copy in `dir`: the secret with which its records are keyed, and its layout. A branch file never changes, so an
/// agent that has the copy open is not in the way.
///
/// # Errors
/// [`OfflineError`] when there is no readable superblock.
pub fn superblock_of(dir: &Path) -> Result<Superblock, OfflineError> {
    let path = dir.join("superblock");
    if !path.exists() {
        return Err(OfflineError::NoCopy { path: dir.to_owned() });
    }
    let unusable = |source| OfflineError::Superblock { path: path.clone(), source };
    let file = read_small(&path)?;
    let twin = superblock::FILE.decode(&file).map_err(unusable)?;
    Superblock::decode(twin.content).map_err(unusable)
}

/// What a branch did to a run of blocks.
#[derive(Debug)]
pub enum Change {
    /// They hold this.
    Data(BlockRange, Vec<u8>),
    /// They read as zeros.
    Zeros(BlockRange),
    /// The volume had so many bytes from then on.
    Size(u64),
    /// The group had these volumes from then on.
    Layout(Layout),
}

/// Checks a branch file from end to end; `Err` says what is wrong with it.
pub(super) fn check(file: &Numbered, volume: VolumeId, secret: &Secret) -> Result<(), String> {
    walk(&file.path, Some(volume), secret, |_| Ok(()))
}

/// Reads a branch file from end to end, checking everything; `each` sees its changes in the order in which they were made.
///
/// # Errors
/// What is wrong with it, or with what `each` did.
pub fn walk(
    path: &Path,
    volume: Option<VolumeId>,
    secret: &Secret,
    mut each: impl FnMut(Change) -> Result<(), String>,
) -> Result<(), String> {
    let handle = File::open(path).map_err(|error| error.to_string())?;
    let len = handle.metadata().map_err(|error| error.to_string())?.len();
    let head = BranchHead::decode(&read(&handle, 0, BLOCK)?).map_err(|error| error.to_string())?;
    if volume.is_some_and(|volume| head.volume != volume) {
        return Err(format!("it belongs to volume {}", head.volume));
    }
    let stop = (BLOCK as u64).saturating_add(head.bytes);
    if stop > len {
        return Err(format!("it has {len} bytes where its head promises {stop}"));
    }
    let (mut at, mut end) = (BLOCK as u64, head.from);
    while at < stop {
        let (frame, payload) = frame(&handle, at, stop, secret).map_err(|why| format!("frame at byte {at}: {why}"))?;
        if !frame.follows(&end) {
            return Err(format!("frame at byte {at}: it does not continue lsn {}", end.position.lsn));
        }
        at += frame.total_bytes() as u64;
        end = frame.boundary();
        changes(&frame, &payload, &mut each)?;
    }
    if end == head.tail { Ok(()) } else { Err(format!("it ends at lsn {}, not at its tail", end.position.lsn)) }
}

fn changes(
    frame: &FrameHeader,
    payload: &[u8],
    each: &mut impl FnMut(Change) -> Result<(), String>,
) -> Result<(), String> {
    let mut from = 0;
    for record in &frame.records {
        let bytes = record.payload_blocks() as usize * BLOCK;
        let data = payload.get(from..from + bytes).ok_or("a record is longer than its frame")?;
        from += bytes;
        match (record.kind, record.range()) {
            (Kind::Write, Some(range)) => each(Change::Data(range, data.to_vec()))?,
            (Kind::Zero | Kind::Discard, Some(range)) => each(Change::Zeros(range))?,
            (Kind::Resize, _) => each(Change::Size(record.lba))?,
            (Kind::Layout, _) => {
                let layout = Layout::decode(&mut Reader::new("layout", data));
                each(Change::Layout(layout.map_err(|error| error.to_string())?))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn frame(file: &File, at: u64, stop: u64, secret: &Secret) -> Result<(FrameHeader, Vec<u8>), String> {
    let room = usize::try_from(stop - at).unwrap_or(usize::MAX);
    if room < FIXED_BYTES {
        return Err("truncated".to_owned());
    }
    let bytes = read(file, at, room.min(MAX_HEADER_BYTES))?;
    let header = FrameHeader::decode(&bytes, secret).map_err(|error| error.to_string())?;
    if header.total_bytes() > room {
        return Err("truncated".to_owned());
    }
    let payload = read(file, at + header.padded_bytes() as u64, header.payload_bytes())?;
    if !header.matches([payload.as_slice()]) {
        return Err("wrong checksum".to_owned());
    }
    Ok((header, payload))
}

fn read(file: &File, at: u64, len: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).map_err(|error| error.to_string())?;
    Ok(bytes)
}
