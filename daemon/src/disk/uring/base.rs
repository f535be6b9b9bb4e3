//! Reads and writes of a base, which may be the bases of several volumes: one operation where the range lies in one of them, else
//! one for each piece (see [`super::super::joint`]).

use std::collections::VecDeque;

use tidemark_core::event::{DiskDone, DiskToken};
use tidemark_core::types::ByteRange;

use super::super::Error;
use super::super::files::VolumeFiles;
use super::super::joint::take_front;
use super::super::operation::{Op, Submission};
use super::{Ring, VolumeKey, Write, check_range};

impl Ring {
    pub(super) fn queue_base_write(
        &mut self,
        volume: VolumeKey,
        token: DiskToken,
        files: &VolumeFiles,
        Write { offset, bufs, durable, .. }: Write,
    ) -> Result<(), Error> {
        let len: u64 = bufs.iter().map(|piece| piece.len() as u64).sum();
        check_range(files, offset, len)?;
        let range = ByteRange::new(offset, len);
        if let Some((file, at)) = files.base_at(range) {
            let work = self.write_to(file, at, bufs, durable);
            self.lay_up(Op::new(volume, token, work, len));
            return Ok(());
        }
        let pieces = files.base_pieces(range)?;
        let somebodys = pieces.iter().filter(|piece| piece.place.is_some()).count();
        if somebodys == 0 {
            self.end(volume, token, Ok(DiskDone::Done));
            return Ok(());
        }
        let share = self.joints.insert(volume, token, somebodys, None);
        let mut bufs = VecDeque::from(bufs);
        for piece in pieces {
            let data = take_front(&mut bufs, piece.len);
            let Some((file, at)) = piece.place else { continue };
            let work = self.write_to(file, at, data, durable);
            self.lay_up(Op::new(volume, token, work, piece.len).piece_of(share((piece.from - offset) as usize)));
        }
        Ok(())
    }

    /// A write to a base waits for a lull.
    fn lay_up(&mut self, op: Op) {
        let len = op.base_bytes;
        let cell = self.cells.insert(op);
        self.lull.push(Submission { cell, part: 0 }, len);
    }

    /// A read of the base that lies in several volumes', or in nobody's.
    pub(super) fn queue_base_read(
        &mut self,
        volume: VolumeKey,
        token: DiskToken,
        files: &VolumeFiles,
        range: ByteRange,
    ) -> Result<(), Error> {
        let pieces = files.base_pieces(range)?;
        let somebodys = pieces.iter().filter(|piece| piece.place.is_some()).count();
        let target = self.pool.take_zeroed(range.len as usize);
        if somebodys == 0 {
            self.end(volume, token, Ok(DiskDone::Read(target.freeze())));
            return Ok(());
        }
        let share = self.joints.insert(volume, token, somebodys, Some(target));
        for piece in pieces {
            let Some((file, at)) = piece.place else { continue };
            let work = self.read_from(file, at, piece.len as u32);
            let op = Op::new(volume, token, work, 0).piece_of(share((piece.from - range.offset) as usize));
            self.start(op, 1);
        }
        Ok(())
    }
}
