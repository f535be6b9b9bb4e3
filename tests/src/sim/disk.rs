//! The disks of one site: what a node may ask of them, when it ends, and what a crash leaves.
//!
//! A file has two images: what reads see, and what a power cut leaves. A completed write is in the first and *pending* for the
//! second until a sync that was submitted after it succeeds. A power cut keeps any subset of the pending 512 B sectors. Writes
//! in flight at a crash are applied in any part, or not at all. A failed sync drops any subset of what it covered for good.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use tidemark_core::event::{DiskDone, DiskError, DiskOp, DiskResult, DiskToken, FileRef, Slot};
use tidemark_core::layout::Layout;
use tidemark_core::types::{ByteRange, SECTOR};

use crate::sim::faults::{DiskRates, Fault, Fired};
use crate::sim::image::{Image, PAGE, Spares};
use crate::sim::rng::Rng;

const MS: u64 = 1_000_000;

#[derive(Clone, Debug)]
enum Change {
    Bytes(Bytes),
    Zero(u64),
}

impl Change {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(b) => b.len() as u64,
            Self::Zero(len) => *len,
        }
    }

    fn part(&self, from: u64, len: u64) -> Self {
        match self {
            Self::Bytes(b) => Self::Bytes(b.slice(from as usize..(from + len) as usize)),
            Self::Zero(_) => Self::Zero(len),
        }
    }

    fn apply(&self, image: &mut Image, offset: u64) {
        match self {
            Self::Bytes(b) => image.write(offset, b),
            Self::Zero(len) => image.zero(offset, *len),
        }
    }

    /// The sectors of this change, cut apart.
    fn sectors(&self, offset: u64) -> Vec<(u64, Change)> {
        let step = SECTOR as u64;
        (0..self.len().div_ceil(step))
            .map(|i| {
                let at = i * step;
                let n = step.min(self.len() - at);
                let part = match self {
                    Self::Bytes(b) => Self::Bytes(b.slice(at as usize..(at + n) as usize)),
                    Self::Zero(_) => Self::Zero(n),
                };
                (offset + at, part)
            })
            .collect()
    }
}

#[derive(Clone, Debug)]
struct Pending {
    seq: u64,
    offset: u64,
    change: Change,
}

#[derive(Debug, Default)]
struct File {
    seen: Image,
    durable: Image,
    pending: Vec<Pending>,
    /// Pages where the two images may differ.
    dirty: Vec<bool>,
}

impl File {
    fn new(image: Image) -> Self {
        let dirty = vec![false; image.len().div_ceil(PAGE as u64) as usize];
        Self { seen: image.clone(), durable: image, pending: Vec::new(), dirty }
    }

    fn change(&mut self, seq: u64, offset: u64, change: Change) {
        change.apply(&mut self.seen, offset);
        let (first, end) = (offset as usize / PAGE, (offset + change.len()).div_ceil(PAGE as u64) as usize);
        self.dirty[first..end].fill(true);
        self.pending.push(Pending { seq, offset, change });
    }

    fn sync(&mut self, upto: u64) {
        let durable = &mut self.durable;
        self.pending.retain(|p| {
            if p.seq <= upto {
                p.change.apply(durable, p.offset);
            }
            p.seq > upto
        });
    }

    /// What lies in the range now is on the medium; a change that reaches beyond it may be written back as a whole.
    fn sync_range(&mut self, offset: u64, len: u64) {
        let durable = &mut self.durable;
        self.pending.retain(|p| {
            let overlaps = p.offset < offset + len && offset < p.offset + p.change.len();
            if overlaps {
                p.change.apply(durable, p.offset);
            }
            !overlaps
        });
    }

    /// Moves any subset of the sectors of pending changes up to `upto` to the medium and forgets the rest. Answers how many
    /// sectors were kept and lost, and whether one change was torn.
    fn scatter(&mut self, upto: u64, keep_percent: u32, rng: &mut Rng) -> (u64, u64, bool) {
        let (mut kept, mut lost, mut torn) = (0, 0, false);
        for p in std::mem::take(&mut self.pending) {
            if p.seq > upto {
                self.pending.push(p);
                continue;
            }
            let before = (kept, lost);
            for (offset, part) in p.change.sectors(p.offset) {
                if rng.percent(keep_percent) {
                    part.apply(&mut self.durable, offset);
                    kept += 1;
                } else {
                    lost += 1;
                }
            }
            torn |= kept > before.0 && lost > before.1;
        }
        (kept, lost, torn)
    }

    fn power_cut(&mut self, keep_percent: u32, rng: &mut Rng) -> (u64, bool) {
        let (_, lost, torn) = self.scatter(u64::MAX, keep_percent, rng);
        for (index, dirty) in self.dirty.iter_mut().enumerate() {
            if std::mem::take(dirty) {
                self.seen.copy_page(index, &self.durable);
            }
        }
        (lost, torn)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Well,
    Fails(DiskError),
    Elsewhere(u64),
    Never,
}

#[derive(Debug)]
struct InFlight {
    token: DiskToken,
    op: DiskOp,
    fate: Fate,
    /// For a sync: the newest completed write at its submission.
    upto: u64,
    /// For a read that executes at its submission.
    early: Option<DiskResult>,
}

/// What the world has to do about a submitted operation.
#[derive(Clone, Copy, Debug)]
pub struct Submitted {
    /// Names the operation for [`Disk::complete`].
    pub id: u64,
    /// When it ends, in nanoseconds from now; `None`: never.
    pub after: Option<u64>,
}

/// How a site goes down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// The process dies: what was completed stays readable.
    Kill,
    /// The power fails: what was not synced is lost in any subset.
    Power,
}

/// The disks of one site.
#[derive(Debug, Default)]
pub struct Disk {
    files: BTreeMap<FileRef, File>,
    in_flight: BTreeMap<u64, InFlight>,
    next_id: u64,
    seq: u64,
    full_until: u64,
    spares: Spares,
    /// What the base is composed of, where it is of several volumes: the rest keeps nothing.
    composed: Option<Layout>,
}

fn protected_only(file: FileRef) -> bool {
    // A lost or misdirected write to the base is found by scrub only; one to K would be a rollback that a single copy cannot
    // notice. Neither is promised here.
    matches!(file, FileRef::Log(_) | FileRef::Footer(_) | FileRef::Superblock)
}

impl Disk {
    /// Puts a file there, durably.
    pub fn put(&mut self, file: FileRef, content: Image) {
        self.files.insert(file, File::new(content));
    }

    /// Removes everything.
    pub fn wipe(&mut self) {
        self.files.clear();
        self.in_flight.clear();
        self.composed = None;
    }

    /// The content of a file as reads see it.
    pub fn content(&self, file: FileRef) -> Option<Bytes> {
        self.files.get(&file).map(|f| f.seen.read(0, f.seen.len() as usize))
    }

    /// The image that reads see.
    pub fn seen(&self, file: FileRef) -> Option<&Image> {
        self.files.get(&file).map(|f| &f.seen)
    }

    /// The image that a power cut would leave if every pending write were lost.
    pub fn durable(&self, file: FileRef) -> Option<&Image> {
        self.files.get(&file).map(|f| &f.durable)
    }

    /// The log slots with their lengths, ascending.
    pub fn slots(&self) -> Vec<(Slot, u64)> {
        let slot = |(file, f): (&FileRef, &File)| match file {
            FileRef::Log(slot) => Some((*slot, f.seen.len())),
            _ => None,
        };
        self.files.iter().filter_map(slot).collect()
    }

    /// The footers, whole, by number.
    pub fn footers(&self) -> Vec<(u32, Bytes)> {
        let footer = |(file, f): (&FileRef, &File)| match file {
            FileRef::Footer(number) => Some((*number, f.seen.read(0, f.seen.len() as usize))),
            _ => None,
        };
        self.files.iter().filter_map(footer).collect()
    }

    /// Grows the base image.
    pub fn grow_base(&mut self, len: u64) {
        if let Some(f) = self.files.get_mut(&FileRef::Base)
            && f.seen.len() < len
        {
            f.seen.grow(len);
            f.durable.grow(len);
            f.dirty.resize(len.div_ceil(PAGE as u64) as usize, false);
        }
    }

    /// The base is composed of these volumes from now on.
    pub fn compose(&mut self, layout: Layout) {
        self.composed = Some(layout);
    }

    /// Part of the base is another device's from now on, full of one byte.
    pub fn refill_base(&mut self, offset: u64, len: u64, byte: u8) {
        if let Some(f) = self.files.get_mut(&FileRef::Base) {
            let len = len.min(f.seen.len().saturating_sub(offset));
            f.sync_range(offset, len);
            for image in [&mut f.seen, &mut f.durable] {
                match byte {
                    0 => image.zero(offset, len),
                    byte => image.write(offset, &vec![byte; len as usize].into()),
                }
            }
        }
    }

    /// The parts of a range of a file that are kept.
    fn kept(&self, file: FileRef, offset: u64, len: u64) -> Vec<(u64, u64)> {
        let Some(layout) = self.composed.as_ref().filter(|_| file == FileRef::Base) else { return vec![(offset, len)] };
        let of_volumes = layout.extents().iter().filter(|e| !e.is_hole());
        let parts = of_volumes.map(|e| (e.start.max(offset), e.end().min(offset + len)));
        parts.filter(|(from, to)| from < to).map(|(from, to)| (from, to - from)).collect()
    }

    /// How many operations have not ended.
    pub fn outstanding(&self) -> usize {
        self.in_flight.len()
    }

    /// Takes an operation: decides its fate and its end. An error says how the node broke the contract of [`DiskOp`].
    pub fn submit(&mut self, token: DiskToken, op: DiskOp, now: u64, env: &mut Env<'_>) -> Result<Submitted, String> {
        self.contract(&op)?;
        let fate = self.fate(&op, now, env);
        let mut after = Some(env.latency(&op));
        if fate == Fate::Well && env.rng.ppm(env.rates.hang) {
            env.fired.hit(Fault::Hang);
            after = None;
        } else if env.rng.ppm(env.rates.late) {
            env.fired.hit(Fault::Late);
            after = Some(env.rng.between(50 * MS, 6_000 * MS));
        }
        let early = (matches!(op, DiskOp::Read { .. }) && env.rng.percent(50)).then(|| self.read(&op));
        self.next_id += 1;
        self.in_flight.insert(self.next_id, InFlight { token, op, fate, upto: self.seq, early });
        Ok(Submitted { id: self.next_id, after })
    }

    fn contract(&self, op: &DiskOp) -> Result<(), String> {
        let (file, offset, len) = match op {
            DiskOp::Write { file, offset, bufs, .. } => (*file, *offset, bufs.iter().map(|b| b.len() as u64).sum()),
            DiskOp::Zero { file, offset, len, .. } => (*file, *offset, *len),
            DiskOp::Read { file, offset, len } => {
                let aligned = offset.is_multiple_of(4096) && u64::from(*len).is_multiple_of(512) && *len > 0;
                return if aligned { Ok(()) } else { Err(format!("unaligned read: {file:?} {offset}+{len}")) };
            }
            DiskOp::Prepare { len, .. } if !len.is_multiple_of(4096) => return Err(format!("odd slot length {len}")),
            _ => return Ok(()),
        };
        let Some(f) = self.files.get(&file) else { return Err(format!("write to missing {file:?}")) };
        let size = f.seen.len();
        let tail = file == FileRef::Base && len.is_multiple_of(512);
        if offset + len > size {
            return Err(format!("write past the end of {file:?}: {offset}+{len} of {size}"));
        }
        if len == 0 || !offset.is_multiple_of(4096) || !(len.is_multiple_of(4096) || tail) {
            return Err(format!("unaligned write: {file:?} {offset}+{len}"));
        }
        Ok(())
    }

    fn fate(&mut self, op: &DiskOp, now: u64, env: &mut Env<'_>) -> Fate {
        let (rng, rates, fired) = (&mut *env.rng, env.rates, &mut *env.fired);
        let mut roll = |ppm: u32, fault: Fault| {
            let hit = rng.ppm(ppm);
            if hit {
                fired.hit(fault);
            }
            hit
        };
        match op {
            DiskOp::Read { .. } if roll(rates.eio_read, Fault::EioRead) => Fate::Fails(DiskError::Io),
            DiskOp::Write { .. } | DiskOp::Zero { .. } if roll(rates.eio_write, Fault::EioWrite) => {
                Fate::Fails(DiskError::Io)
            }
            DiskOp::Sync { .. } | DiskOp::Write { durable: true, .. } if roll(rates.failed_sync, Fault::FailedSync) => {
                Fate::Fails(DiskError::Io)
            }
            DiskOp::Write { file, .. } if protected_only(*file) && roll(rates.lost, Fault::LostWrite) => Fate::Never,
            DiskOp::Write { file, offset, bufs, .. }
                if protected_only(*file) && roll(rates.misdirected, Fault::Misdirected) =>
            {
                let len: u64 = bufs.iter().map(|b| b.len() as u64).sum();
                let blocks = self.files.get(file).map_or(0, |f| f.seen.len().saturating_sub(len) / 4096);
                let elsewhere = env.rng.below(blocks + 1) * 4096;
                if elsewhere == *offset { Fate::Never } else { Fate::Elsewhere(elsewhere) }
            }
            DiskOp::Prepare { .. } => {
                if now >= self.full_until && roll(rates.no_space, Fault::NoSpace) {
                    self.full_until = now + env.rng.log_between(MS, 2_000 * MS);
                }
                if now < self.full_until { Fate::Fails(DiskError::NoSpace) } else { Fate::Well }
            }
            _ => Fate::Well,
        }
    }

    /// The volumes that an operation under way makes room for.
    pub fn room_asked(&self, id: u64) -> Option<Layout> {
        match &self.in_flight.get(&id)?.op {
            DiskOp::Grow { layout } => Some(layout.clone()),
            _ => None,
        }
    }

    /// Ends an operation: makes it happen and says with what result. `None` when a crash ended it before.
    pub fn complete(&mut self, id: u64, rng: &mut Rng) -> Option<(DiskToken, DiskResult)> {
        let ended = self.in_flight.remove(&id)?;
        let token = ended.token;
        Some((token, self.perform(ended, rng)))
    }

    fn perform(&mut self, ended: InFlight, rng: &mut Rng) -> DiskResult {
        if let Fate::Fails(error) = ended.fate {
            self.fail(&ended, rng);
            return Err(error);
        }
        match ended.op {
            DiskOp::Read { .. } => ended.early.unwrap_or_else(|| self.read(&ended.op)),
            DiskOp::Write { file, offset, bufs, durable } => {
                let at = match ended.fate {
                    Fate::Never => return Ok(DiskDone::Done),
                    Fate::Elsewhere(other) => other,
                    _ => offset,
                };
                self.write(file, at, &bufs);
                if let Some(f) = self.files.get_mut(&file).filter(|_| durable) {
                    f.sync_range(at, bufs.iter().map(|b| b.len() as u64).sum());
                }
                Ok(DiskDone::Done)
            }
            DiskOp::Zero { file, offset, len, .. } => {
                self.change(file, offset, Change::Zero(len));
                Ok(DiskDone::Done)
            }
            DiskOp::Sync { files } => {
                for file in files {
                    self.files.get_mut(&file).ok_or(DiskError::Missing)?.sync(ended.upto);
                }
                Ok(DiskDone::Done)
            }
            DiskOp::Map { range } => Ok(DiskDone::Mapped(self.map(range, rng))),
            other => {
                self.whole_file(other);
                Ok(DiskDone::Done)
            }
        }
    }

    fn whole_file(&mut self, op: DiskOp) {
        match op {
            DiskOp::Grow { layout } => self.grow_base(layout.size()),
            DiskOp::Prepare { slot, len } => self.put(FileRef::Log(slot), Image::zeroed(len)),
            DiskOp::Remove { slot } => {
                self.files.remove(&FileRef::Log(slot));
            }
            DiskOp::Replace { file, data } => self.put(file, Image::of(&data.concat().into())),
            _ => {}
        }
    }

    fn write(&mut self, file: FileRef, offset: u64, bufs: &[Bytes]) {
        let mut at = offset;
        for buf in bufs {
            self.change(file, at, Change::Bytes(buf.clone()));
            at += buf.len() as u64;
        }
    }

    fn change(&mut self, file: FileRef, offset: u64, change: Change) {
        self.seq += 1;
        // The file may have been removed meanwhile: the write went to an unlinked inode.
        let kept = self.kept(file, offset, change.len());
        if let Some(f) = self.files.get_mut(&file)
            && offset + change.len() <= f.seen.len()
        {
            for (at, len) in kept {
                f.change(self.seq, at, change.part(at - offset, len));
            }
        }
    }

    fn read(&mut self, op: &DiskOp) -> DiskResult {
        let DiskOp::Read { file, offset, len } = op else { return Err(DiskError::Io) };
        let kept = self.kept(*file, *offset, u64::from(*len));
        if kept != [(*offset, u64::from(*len))] {
            return self.read_parts(*file, *offset, *len, &kept);
        }
        let f = self.files.get_mut(file).ok_or(DiskError::Missing)?;
        if offset + u64::from(*len) > f.seen.len() {
            return Err(DiskError::Short);
        }
        let (seen, len, spares) = (&mut f.seen, *len as usize, &mut self.spares);
        // The beginning of the base is read at each advance of the floor, and forgotten at once.
        Ok(DiskDone::Read(match file {
            FileRef::Base if len > 256 << 10 => seen.read_flat(*offset, len, spares),
            _ => seen.read_with(*offset, len, spares),
        }))
    }

    /// What belongs to nobody reads as zeros.
    fn read_parts(&mut self, file: FileRef, offset: u64, len: u32, kept: &[(u64, u64)]) -> DiskResult {
        let f = self.files.get(&file).ok_or(DiskError::Missing)?;
        let mut out = BytesMut::zeroed(len as usize);
        for (at, len) in kept {
            let from = (at - offset) as usize;
            out[from..from + *len as usize].copy_from_slice(&f.seen.read(*at, *len as usize));
        }
        Ok(DiskDone::Read(out.freeze()))
    }

    fn map(&self, range: ByteRange, rng: &mut Rng) -> Vec<ByteRange> {
        let Some(f) = self.files.get(&FileRef::Base) else { return Vec::new() };
        if rng.percent(10) {
            return vec![range];
        }
        let mut out: Vec<ByteRange> = Vec::new();
        for page in f.seen.allocated() {
            let start = ((page * PAGE) as u64).max(range.offset);
            let end = ((page + 1) * PAGE) as u64;
            let end = end.min(range.end());
            if start >= end {
                continue;
            }
            match out.last_mut() {
                Some(last) if last.end() == start => last.len += end - start,
                _ => out.push(ByteRange::new(start, end - start)),
            }
        }
        out
    }

    fn fail(&mut self, ended: &InFlight, rng: &mut Rng) {
        match &ended.op {
            DiskOp::Write { .. } | DiskOp::Zero { .. } => self.part(&ended.op, rng),
            DiskOp::Sync { files } => {
                for file in files {
                    if let Some(f) = self.files.get_mut(file) {
                        f.scatter(ended.upto, rng.between(0, 90) as u32, rng);
                    }
                }
            }
            _ => {}
        }
    }

    /// Applies any part of a write.
    fn part(&mut self, op: &DiskOp, rng: &mut Rng) {
        let keep = *rng.pick(&[0, 50, 90, 100]);
        let (file, offset, changes): (_, _, Vec<Change>) = match op {
            DiskOp::Write { file, offset, bufs, .. } => {
                (*file, *offset, bufs.iter().cloned().map(Change::Bytes).collect())
            }
            DiskOp::Zero { file, offset, len, .. } => (*file, *offset, vec![Change::Zero(*len)]),
            _ => return,
        };
        let mut at = offset;
        for change in changes {
            for (offset, part) in change.sectors(at) {
                if rng.percent(keep) {
                    self.change(file, offset, part);
                }
            }
            at += change.len();
        }
    }

    /// The site goes down. Operations in flight end in any part; with the power, what was not synced goes in any subset.
    pub fn crash(&mut self, crash: Crash, rng: &mut Rng, fired: &mut Fired) {
        for (_, ended) in std::mem::take(&mut self.in_flight) {
            self.cut(ended, rng, fired);
        }
        if crash == Crash::Kill {
            return;
        }
        let keep = *rng.pick(&[0, 0, 30, 50, 80, 98, 100]);
        for f in self.files.values_mut() {
            let (lost, torn) = f.power_cut(keep, rng);
            if lost > 0 {
                fired.hit(Fault::LostUnsynced);
            }
            if torn {
                fired.hit(Fault::TornWrite);
            }
        }
    }

    fn cut(&mut self, ended: InFlight, rng: &mut Rng, fired: &mut Fired) {
        match &ended.op {
            DiskOp::Write { .. } | DiskOp::Zero { .. } if ended.fate == Fate::Well => {
                fired.hit(Fault::PartialInFlight);
                self.part(&ended.op, rng);
            }
            DiskOp::Sync { files } if ended.fate == Fate::Well && rng.percent(30) => {
                for file in files {
                    if let Some(f) = self.files.get_mut(file) {
                        f.sync(ended.upto);
                    }
                }
            }
            DiskOp::Prepare { .. } | DiskOp::Remove { .. } | DiskOp::Replace { .. } | DiskOp::Grow { .. }
                if rng.percent(50) =>
            {
                self.whole_file(ended.op);
            }
            _ => {}
        }
    }

    /// Flips a bit on the medium of a random file that may rot. Answers which kind it was.
    pub fn rot(&mut self, rng: &mut Rng) -> Option<Fault> {
        let files: Vec<FileRef> =
            self.files.keys().copied().filter(|f| !matches!(f, FileRef::Base | FileRef::Branch(_))).collect();
        if files.is_empty() {
            return None;
        }
        let file = match rng.below(4) {
            0 => FileRef::Superblock,
            1 => FileRef::Config,
            _ => *rng.pick(&files),
        };
        let f = self.files.get_mut(&file)?;
        let pages: Vec<usize> = f.durable.allocated().collect();
        if pages.is_empty() {
            return None;
        }
        let page = *rng.pick(&pages);
        // The beginning of a page carries headers; elsewhere most bits are payload.
        let bit = if rng.percent(50) { rng.below(512 * 8) } else { rng.below(PAGE as u64 * 8) } as usize;
        f.durable.flip(page, bit);
        f.seen.flip(page, bit);
        Some(match file {
            FileRef::Superblock => Fault::RotSuperblock,
            FileRef::Config => Fault::RotConfig,
            _ => Fault::RotLog,
        })
    }
}

/// What decides about an operation.
pub struct Env<'a> {
    /// Draws.
    pub rng: &'a mut Rng,
    /// How likely what is.
    pub rates: DiskRates,
    /// Usual latency bounds in nanoseconds.
    pub latency_ns: (u64, u64),
    /// Counts.
    pub fired: &'a mut Fired,
}

impl Env<'_> {
    fn latency(&mut self, op: &DiskOp) -> u64 {
        let (low, high) = self.latency_ns;
        let base = self.rng.log_between(low, high);
        match op {
            DiskOp::Read { .. } => base / 2,
            DiskOp::Sync { .. } => base * 2,
            DiskOp::Prepare { .. } | DiskOp::Replace { .. } => base * 4,
            _ => base,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        disk: Disk,
        rng: Rng,
        fired: Fired,
    }

    impl Bench {
        fn new() -> Self {
            let mut disk = Disk::default();
            disk.put(FileRef::Base, Image::zeroed(65_536));
            Self { disk, rng: Rng::new(1), fired: Fired::default() }
        }

        fn submit(&mut self, op: DiskOp, rates: DiskRates) -> u64 {
            let mut env = Env { rng: &mut self.rng, rates, latency_ns: (1_000, 2_000), fired: &mut self.fired };
            self.disk.submit(DiskToken(1), op, 0, &mut env).unwrap().id
        }

        fn run(&mut self, op: DiskOp, rates: DiskRates) -> DiskResult {
            let id = self.submit(op, rates);
            self.disk.complete(id, &mut self.rng).unwrap().1
        }

        fn base(&self) -> u8 {
            self.disk.content(FileRef::Base).unwrap()[0]
        }
    }

    fn write(byte: u8) -> DiskOp {
        DiskOp::Write { file: FileRef::Base, offset: 0, bufs: vec![Bytes::from(vec![byte; 4096])], durable: false }
    }

    fn sync() -> DiskOp {
        DiskOp::Sync { files: vec![FileRef::Base] }
    }

    #[test]
    fn a_durable_write_is_on_the_medium_when_it_ends_and_takes_no_other_with_it() {
        let mut bench = Bench::new();
        let aside = |byte, offset, durable| DiskOp::Write {
            file: FileRef::Base,
            offset,
            bufs: vec![Bytes::from(vec![byte; 4096])],
            durable,
        };
        for (byte, offset, durable) in [(1, 0, false), (2, 4096, true), (3, 8192, false), (4, 8192, true)] {
            bench.run(aside(byte, offset, durable), DiskRates::default()).unwrap();
        }
        let on_medium = |at: u64| bench.disk.durable(FileRef::Base).unwrap().read(at, 1)[0];
        assert_eq!((on_medium(0), on_medium(4096), on_medium(8192)), (0, 2, 4));
    }

    #[test]
    fn a_sync_covers_only_what_completed_before_it_was_submitted() {
        for seed in 0..50 {
            let mut b = Bench::new();
            b.rng = Rng::new(seed);
            b.run(write(1), DiskRates::default()).unwrap();
            let sync = b.submit(sync(), DiskRates::default());
            b.run(write(2), DiskRates::default()).unwrap();
            b.disk.complete(sync, &mut b.rng).unwrap().1.unwrap();
            assert_eq!(b.disk.durable(FileRef::Base).unwrap().read(0, 1)[0], 1);
            b.disk.crash(Crash::Power, &mut b.rng, &mut b.fired);
            assert!([1, 2].contains(&b.base()), "the synced one survives, the later one may");
        }
    }

    #[test]
    fn a_kill_keeps_what_was_completed_and_a_power_cut_may_not() {
        let mut lost = 0;
        for seed in 0..50 {
            let mut b = Bench::new();
            b.rng = Rng::new(seed);
            b.run(write(1), DiskRates::default()).unwrap();
            b.disk.crash(Crash::Kill, &mut b.rng, &mut b.fired);
            assert_eq!(b.base(), 1);
            b.disk.crash(Crash::Power, &mut b.rng, &mut b.fired);
            lost += u32::from(b.base() == 0);
        }
        assert!(lost > 5 && b_fired_both(lost));
    }

    fn b_fired_both(lost: u32) -> bool {
        lost < 50
    }

    #[test]
    fn what_a_failed_sync_dropped_stays_lost_after_a_later_success() {
        let mut lost = 0;
        for seed in 0..50 {
            let mut b = Bench::new();
            b.rng = Rng::new(seed);
            b.run(write(1), DiskRates::default()).unwrap();
            let failing = DiskRates { failed_sync: 1_000_000, ..DiskRates::default() };
            assert_eq!(b.run(sync(), failing), Err(DiskError::Io));
            b.run(sync(), DiskRates::default()).unwrap();
            b.disk.crash(Crash::Power, &mut b.rng, &mut b.fired);
            lost += u32::from(b.base() == 0);
        }
        assert!(lost > 5);
    }

    #[test]
    fn a_lying_disk_acknowledges_and_does_not_write() {
        let mut b = Bench::new();
        b.disk.put(FileRef::Log(Slot(1)), Image::zeroed(8192));
        let op = DiskOp::Write {
            file: FileRef::Log(Slot(1)),
            offset: 0,
            bufs: vec![Bytes::from(vec![9; 4096])],
            durable: false,
        };
        b.run(op.clone(), DiskRates { lost: 1_000_000, ..DiskRates::default() }).unwrap();
        assert_eq!(b.disk.content(FileRef::Log(Slot(1))).unwrap()[0], 0);
        b.run(op, DiskRates { misdirected: 1_000_000, ..DiskRates::default() }).unwrap();
        assert_eq!((b.fired.count(Fault::LostWrite), b.fired.count(Fault::Misdirected)), (1, 1));
    }

    #[test]
    fn breaking_the_contract_is_reported() {
        let mut b = Bench::new();
        let mut env = Env { rng: &mut b.rng, rates: DiskRates::default(), latency_ns: (1, 2), fired: &mut b.fired };
        let past = DiskOp::Write {
            file: FileRef::Base,
            offset: 65_536,
            bufs: vec![Bytes::from(vec![1; 4096])],
            durable: false,
        };
        assert!(b.disk.submit(DiskToken(1), past, 0, &mut env).unwrap_err().contains("past the end"));
        let odd =
            DiskOp::Write { file: FileRef::Base, offset: 512, bufs: vec![Bytes::from(vec![1; 4096])], durable: false };
        assert!(b.disk.submit(DiskToken(1), odd, 0, &mut env).unwrap_err().contains("unaligned"));
    }
}
