//! Operations on the base that are several to the kernel, because their range lies in the bases of several volumes: each piece is
//! an operation of its own, and the whole ends with the last of them.
//!
//! Rare: only where a range reaches over the end of a volume.

use std::collections::VecDeque;

use bytes::Bytes;
use tidemark_core::event::{DiskDone, DiskError, DiskResult, DiskToken};

use super::buffer::AlignedBuf;
use super::uring::{Completion, VolumeKey};

/// Of which operation something is a piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// The operation.
    joint: usize,
    /// Where the piece begins in it.
    at: usize,
}

/// An operation in pieces.
struct Joint {
    volume: VolumeKey,
    token: DiskToken,
    left: usize,
    failed: Option<DiskError>,
    /// What a read gives; zeros where nobody's pieces are.
    target: Option<AlignedBuf>,
}

/// The operations in pieces.
#[derive(Default)]
pub(super) struct Joints {
    joints: Vec<Option<Joint>>,
}

impl Joints {
    /// An operation of `pieces` pieces, at least one; a read has a `target` of zeros.
    pub fn insert(
        &mut self,
        volume: VolumeKey,
        token: DiskToken,
        pieces: usize,
        target: Option<AlignedBuf>,
    ) -> impl Fn(usize) -> Share + use<> {
        let made = Some(Joint { volume, token, left: pieces, failed: None, target });
        let free = self.joints.iter().position(Option::is_none);
        let joint = free.unwrap_or_else(|| {
            self.joints.push(None);
            self.joints.len() - 1
        });
        self.joints[joint] = made;
        move |at| Share { joint, at }
    }

    /// A piece has ended: the end of the operation, when it was the last.
    pub fn on_ended(&mut self, share: Share, result: DiskResult) -> Option<Completion> {
        let slot = &mut self.joints[share.joint];
        let joint = slot.as_mut().expect("an operation ends with its last piece");
        match (result, &mut joint.target) {
            (Err(error), _) => drop(joint.failed.get_or_insert(error)),
            (Ok(DiskDone::Read(data)), Some(target)) => target[share.at..][..data.len()].copy_from_slice(&data),
            (Ok(_), _) => {}
        }
        joint.left -= 1;
        if joint.left > 0 {
            return None;
        }
        let Joint { volume, token, failed, target, .. } = slot.take()?;
        let done = target.map_or(DiskDone::Done, |target| DiskDone::Read(target.freeze()));
        Some((volume, token, failed.map_or(Ok(done), Err)))
    }
}

/// Takes the first `len` bytes off `bufs`, without copying.
pub(super) fn take_front(bufs: &mut VecDeque<Bytes>, len: u64) -> Vec<Bytes> {
    let mut left = len as usize;
    let mut taken = Vec::new();
    while left > 0
        && let Some(mut front) = bufs.pop_front()
    {
        if front.len() > left {
            bufs.push_front(front.split_off(left));
        }
        left -= front.len();
        taken.push(front);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_off_the_front_is_all_of_it_in_order() {
        let mut bufs: VecDeque<Bytes> = [&b"abc"[..], b"defg", b"h"].into_iter().map(Bytes::from_static).collect();
        assert_eq!(take_front(&mut bufs, 5).concat(), b"abcde");
        assert_eq!(take_front(&mut bufs, 2).concat(), b"fg");
        assert_eq!(take_front(&mut bufs, 1).concat(), b"h");
        assert!(bufs.is_empty());
    }

    #[test]
    fn an_operation_ends_with_its_last_piece_and_with_the_first_error() {
        let mut joints = Joints::default();
        let shares = joints.insert(VolumeKey(1), DiskToken(2), 3, None);
        assert_eq!(joints.on_ended(shares(0), Ok(DiskDone::Done)), None);
        assert_eq!(joints.on_ended(shares(1), Err(DiskError::NoSpace)), None);
        let ended = joints.on_ended(shares(2), Err(DiskError::Io));
        assert_eq!(ended, Some((VolumeKey(1), DiskToken(2), Err(DiskError::NoSpace))));
    }
}
