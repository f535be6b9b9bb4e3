//! A sealed branch: its head, then the frames of the suffix, one after the other.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use tidemark_core::format::block_crcs;
use tidemark_core::format::branch::BranchHead;
use tidemark_core::format::frame::{FIXED_BYTES, FrameHeader, MAX_HEADER_BYTES};
use tidemark_core::types::{BLOCK, Secret, VolumeId};

use super::copy::Numbered;

/// Checks a branch file from end to end; `Err` says what is wrong with it.
pub(super) fn check(file: &Numbered, volume: VolumeId, secret: &Secret) -> Result<(), String> {
    let handle = File::open(&file.path).map_err(|error| error.to_string())?;
    let head = BranchHead::decode(&read(&handle, 0, BLOCK)?).map_err(|error| error.to_string())?;
    if head.volume != volume {
        return Err(format!("it belongs to volume {}", head.volume));
    }
    let stop = (BLOCK as u64).saturating_add(head.bytes);
    if stop > file.len {
        return Err(format!("it has {} bytes where its head promises {stop}", file.len));
    }
    let (mut at, mut end) = (BLOCK as u64, head.from);
    while at < stop {
        let frame = frame(&handle, at, stop, secret).map_err(|why| format!("frame at byte {at}: {why}"))?;
        if !frame.follows(&end) {
            return Err(format!("frame at byte {at}: it does not continue lsn {}", end.position.lsn));
        }
        at += (frame.padded_bytes() + frame.payload_bytes()) as u64;
        end = frame.boundary();
    }
    if end == head.tail { Ok(()) } else { Err(format!("it ends at lsn {}, not at its tail", end.position.lsn)) }
}

fn frame(file: &File, at: u64, stop: u64, secret: &Secret) -> Result<FrameHeader, String> {
    let room = usize::try_from(stop - at).unwrap_or(usize::MAX);
    if room < FIXED_BYTES {
        return Err("truncated".to_owned());
    }
    let bytes = read(file, at, room.min(MAX_HEADER_BYTES))?;
    let header = FrameHeader::decode(&bytes, secret).map_err(|error| error.to_string())?;
    if header.padded_bytes() + header.payload_bytes() > room {
        return Err("truncated".to_owned());
    }
    let payload = read(file, at + header.padded_bytes() as u64, header.payload_bytes())?;
    if block_crcs(&payload).eq(header.crcs.iter().copied()) { Ok(header) } else { Err("wrong checksum".to_owned()) }
}

fn read(file: &File, at: u64, len: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).map_err(|error| error.to_string())?;
    Ok(bytes)
}
