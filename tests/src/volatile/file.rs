//! One file: its durable content in the backing file, and the operations that no sync has covered, in order.
//!
//! Decides what a reader sees (the durable content under all operations), what a sync makes durable (every operation so far,
//! except those that a failed sync gave up), and what a cut leaves.
//!
//! At a cut each sector holds one of the versions it had since the last sync: a page cache has no others. Changes of the size
//! are metadata and survive in order; a shrink that survives takes the older versions of the sectors behind it along.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};

use super::extents::{Content, Overlay, RangeSet};
use super::fate::Fate;

/// What a disk writes whole or not at all, in bytes.
pub const SECTOR: u64 = 512;
/// The unit in which space is counted, in bytes.
const BLOCK: u64 = 4096;

#[derive(Debug)]
enum Change {
    Content { range: Range<u64>, content: Content, is_hole: bool },
    Reserve,
    SetLen,
}

#[derive(Debug)]
struct Pending {
    sequence: u64,
    change: Change,
    /// The length after it, when it changed the length.
    len: Option<u64>,
    /// A sync that should have covered it failed; no later one does.
    given_up: bool,
}

impl Pending {
    /// Bytes of data in memory.
    fn bytes(&self) -> u64 {
        match &self.change {
            Change::Content { content: Content::Data(data), .. } => data.len() as u64,
            _ => 0,
        }
    }
}

/// The number of a sector and what it holds.
type Sector = (u64, [u8; SECTOR as usize]);

/// What a cut did to a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Sectors with unsynced writes.
    pub sectors: u64,
    /// Those whose newest version was lost.
    pub lost: u64,
}

/// A file of the disk.
#[derive(Debug)]
pub struct FileData {
    backing: File,
    durable_len: u64,
    len: u64,
    pending: Vec<Pending>,
    pending_bytes: u64,
    /// What readers see over the durable content.
    view: Overlay,
    /// A sync gave something up: the view must go on hiding that the medium has something else, until a cut.
    hides_losses: bool,
    allocated: RangeSet,
}

impl FileData {
    /// The file whose durable content is `backing`.
    ///
    /// # Errors
    /// When it cannot be examined.
    pub fn open(backing: File) -> io::Result<Self> {
        let len = backing.metadata()?.len();
        let allocated = data_ranges(&backing, len)?;
        let view = Overlay::default();
        Ok(Self {
            backing,
            durable_len: len,
            len,
            pending: Vec::new(),
            pending_bytes: 0,
            view,
            hides_losses: false,
            allocated,
        })
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of unsynced data in memory.
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Number of operations that no sync covered.
    pub fn pending_operations(&self) -> usize {
        self.pending.len()
    }

    /// Sequence number of the first of them.
    pub fn first_pending(&self) -> Option<u64> {
        self.pending.first().map(|operation| operation.sequence)
    }

    /// Bytes of space taken.
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated.total()
    }

    /// Bytes of space that a write or a reservation of the range would take in addition.
    pub fn growth(&self, range: Range<u64>) -> u64 {
        self.allocated.missing(whole_blocks(range))
    }

    /// Reads up to `len` bytes; fewer at the end of the file.
    ///
    /// # Errors
    /// When the backing file cannot be read.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let len = (len as u64).min(self.len.saturating_sub(offset)) as usize;
        let mut buffer = vec![0; len];
        self.read_durable(offset, &mut buffer)?;
        self.view.apply(offset, &mut buffer);
        Ok(buffer)
    }

    fn read_durable(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let len = (buffer.len() as u64).min(self.durable_len.saturating_sub(offset)) as usize;
        self.backing.read_exact_at(&mut buffer[..len], offset)
    }

    /// Writes, into memory only.
    pub fn write(&mut self, sequence: u64, offset: u64, data: Bytes) {
        let range = offset..offset + data.len() as u64;
        if range.is_empty() {
            return;
        }
        self.pending_bytes += data.len() as u64;
        self.allocated.insert(whole_blocks(range.clone()));
        let len = (range.end > self.len).then_some(range.end);
        self.change_content(sequence, range, Content::Data(data), len, false);
    }

    /// Makes the range read as zeros, up to the end of the file only; `is_hole` gives the space back.
    pub fn zero(&mut self, sequence: u64, range: Range<u64>, is_hole: bool) {
        let range = range.start..range.end.min(self.len);
        if range.is_empty() {
            return;
        }
        if is_hole {
            self.allocated.remove(range.start.next_multiple_of(BLOCK)..inner_end(&range, self.len));
        } else {
            self.allocated.insert(whole_blocks(range.clone()));
        }
        self.change_content(sequence, range, Content::Zeros, None, is_hole);
    }

    fn change_content(&mut self, sequence: u64, range: Range<u64>, content: Content, len: Option<u64>, is_hole: bool) {
        self.view.cover(range.clone(), content.clone());
        self.record(sequence, Change::Content { range, content, is_hole }, len);
    }

    /// Reserves space; with `extends` the file grows to the end of the range.
    pub fn reserve(&mut self, sequence: u64, range: Range<u64>, extends: bool) {
        let len = (extends && range.end > self.len).then_some(range.end);
        self.allocated.insert(whole_blocks(range));
        self.record(sequence, Change::Reserve, len);
    }

    /// Cuts or extends with zeros.
    pub fn set_len(&mut self, sequence: u64, len: u64) {
        if len < self.len {
            self.view.cover(len..self.len.max(self.durable_len), Content::Zeros);
            self.allocated.remove(len.next_multiple_of(BLOCK)..u64::MAX);
        }
        if len != self.len {
            self.record(sequence, Change::SetLen, Some(len));
        }
    }

    fn record(&mut self, sequence: u64, change: Change, len: Option<u64>) {
        self.len = len.unwrap_or(self.len);
        self.pending.push(Pending { sequence, change, len, given_up: false });
    }

    /// Where data (or, with `hole`, a hole) begins at or after `offset`; `None` past the end. The end of the file is a hole.
    pub fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        if offset >= self.len {
            return None;
        }
        let found = if hole {
            Some(self.allocated.next_outside(offset).min(self.len))
        } else {
            self.allocated.next_inside(offset)
        };
        found.filter(|at| hole || *at < self.len)
    }

    /// Makes every operation so far durable, except what a failed sync gave up.
    ///
    /// # Errors
    /// When the backing file cannot be written; the state of the medium is then unknown, as with a real one.
    pub fn sync(&mut self) -> io::Result<()> {
        self.sync_before(u64::MAX)
    }

    /// Makes the operations with lower sequence numbers durable, except what a failed sync gave up.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn sync_before(&mut self, sequence: u64) -> io::Result<()> {
        let covered = self.pending.partition_point(|operation| operation.sequence < sequence);
        let covered: Vec<_> = self.pending.drain(..covered).collect();
        self.pending_bytes = self.pending.iter().map(Pending::bytes).sum();
        for operation in covered.iter().filter(|operation| !operation.given_up) {
            self.make_durable(operation)?;
        }
        self.durable_len = covered.iter().filter_map(|operation| operation.len).next_back().unwrap_or(self.durable_len);
        self.backing.set_len(self.durable_len)?;
        if self.pending.is_empty() && !self.hides_losses {
            self.view.clear();
        }
        Ok(())
    }

    /// A sync that failed: a later one covers only what comes after it.
    pub fn give_up(&mut self) {
        self.hides_losses |= !self.pending.is_empty();
        self.pending.iter_mut().for_each(|operation| operation.given_up = true);
    }

    fn make_durable(&self, operation: &Pending) -> io::Result<()> {
        match &operation.change {
            Change::Content { range, content: Content::Data(bytes), .. } => {
                self.backing.write_all_at(bytes, range.start)
            }
            Change::Content { range, is_hole, .. } => zero_backing(&self.backing, range, *is_hole),
            Change::Reserve => Ok(()),
            // A shrink that was followed by a longer length has left zeros.
            Change::SetLen => operation.len.map_or(Ok(()), |len| self.backing.set_len(len)),
        }
    }

    /// Loses power. Afterwards the backing file is all there is of this file.
    ///
    /// # Errors
    /// When the backing file cannot be read or written.
    pub fn cut(&mut self, fate: &mut Fate) -> io::Result<Losses> {
        let sizes = self.surviving_sizes(fate);
        let (survivors, losses) = self.surviving_sectors(fate, &sizes)?;
        let shortest = sizes.iter().map(|(_, len)| *len).fold(self.durable_len, u64::min);
        let len = sizes.last().map_or(self.durable_len, |(_, len)| *len);
        self.backing.set_len(shortest)?;
        self.backing.set_len(len)?;
        for (sector, content) in survivors {
            let start = sector * SECTOR;
            let kept = SECTOR.min(len.saturating_sub(start)) as usize;
            self.backing.write_all_at(&content[..kept], start)?;
        }
        Ok(losses)
    }

    /// The changes of the length that had reached the medium: the first few, in order.
    fn surviving_sizes(&self, fate: &mut Fate) -> Vec<(u64, u64)> {
        let sizes: Vec<_> =
            self.pending.iter().filter_map(|operation| Some((operation.sequence, operation.len?))).collect();
        let sequences: Vec<_> = sizes.iter().map(|(sequence, _)| *sequence).collect();
        let survived = fate.version(&sequences);
        sizes.into_iter().take(survived).collect()
    }

    fn surviving_sectors(&self, fate: &mut Fate, sizes: &[(u64, u64)]) -> io::Result<(Vec<Sector>, Losses)> {
        let mut losses = Losses::default();
        let mut survivors = Vec::new();
        for (sector, touches) in self.touches() {
            let sequences: Vec<_> = touches.iter().map(|index| self.pending[*index].sequence).collect();
            let survived = fate.version(&sequences);
            losses.sectors += 1;
            losses.lost += u64::from(survived < touches.len());
            survivors.push((sector, self.sector_content(sector, &touches, survived, sizes)?));
        }
        Ok((survivors, losses))
    }

    /// For each sector the operations that wrote to it, in order.
    fn touches(&self) -> BTreeMap<u64, Vec<usize>> {
        let mut touches: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, operation) in self.pending.iter().enumerate() {
            let Change::Content { range, .. } = &operation.change else { continue };
            for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
                touches.entry(sector).or_default().push(index);
            }
        }
        touches
    }

    /// The sector after the first `survived` writes to it and the surviving changes of the length.
    fn sector_content(
        &self,
        sector: u64,
        touches: &[usize],
        survived: usize,
        sizes: &[(u64, u64)],
    ) -> io::Result<[u8; SECTOR as usize]> {
        let start = sector * SECTOR;
        let mut content = [0; SECTOR as usize];
        self.read_durable(start, &mut content)?;
        let mut sizes = sizes.iter().peekable();
        for index in touches.iter().take(survived) {
            let operation = &self.pending[*index];
            while let Some((_, len)) = sizes.next_if(|(sequence, _)| *sequence < operation.sequence) {
                shorten(&mut content, start, *len);
            }
            write_into(&mut content, start, &operation.change);
        }
        sizes.for_each(|(_, len)| shorten(&mut content, start, *len));
        Ok(content)
    }
}

fn shorten(content: &mut [u8; SECTOR as usize], start: u64, len: u64) {
    let kept = SECTOR.min(len.saturating_sub(start)) as usize;
    content[kept..].fill(0);
}

fn write_into(content: &mut [u8; SECTOR as usize], start: u64, change: &Change) {
    let Change::Content { range, content: written, .. } = change else { return };
    let (from, to) = (range.start.max(start), range.end.min(start + SECTOR));
    let part = (from - range.start) as usize..(to - range.start) as usize;
    written.copy(part, &mut content[(from - start) as usize..(to - start) as usize]);
}

fn whole_blocks(range: Range<u64>) -> Range<u64> {
    range.start - range.start % BLOCK..range.end.next_multiple_of(BLOCK)
}

/// The end of the last block that a hole frees: the block at the end of the file counts as whole.
fn inner_end(range: &Range<u64>, len: u64) -> u64 {
    if range.end >= len { len.next_multiple_of(BLOCK) } else { range.end - range.end % BLOCK }
}

fn zero_backing(file: &File, range: &Range<u64>, is_hole: bool) -> io::Result<()> {
    let way = if is_hole { FallocateFlags::FALLOC_FL_PUNCH_HOLE } else { FallocateFlags::FALLOC_FL_ZERO_RANGE };
    let flags = way | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, flags, range.start as i64, (range.end - range.start) as i64) {
        Err(Errno::EOPNOTSUPP) => file.write_all_at(&vec![0; (range.end - range.start) as usize], range.start),
        other => Ok(other?),
    }
}

fn data_ranges(file: &File, len: u64) -> io::Result<RangeSet> {
    let mut ranges = RangeSet::default();
    let mut at = 0;
    while at < len {
        at = match lseek64(file, at as i64, Whence::SeekData) {
            Ok(start) => start as u64,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = lseek64(file, at as i64, Whence::SeekHole)? as u64;
        ranges.insert(whole_blocks(at..end));
        at = end;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Long enough for several sectors, short enough that operations meet.
    const SPACE: u64 = 6 * SECTOR;

    #[derive(Clone, Debug)]
    enum Step {
        Write {
            offset: u64,
            len: u64,
        },
        Zero {
            offset: u64,
            len: u64,
            is_hole: bool,
        },
        SetLen(u64),
        Reserve {
            offset: u64,
            len: u64,
        },
        Sync,
        /// One that was submitted so many steps ago.
        LateSync {
            steps: u64,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let offset = prop_oneof![0..SPACE, (0..SPACE / SECTOR).prop_map(|sector| sector * SECTOR)];
        let len = prop_oneof![1..2 * SECTOR, (1..4_u64).prop_map(|sectors| sectors * SECTOR)];
        prop_oneof![
            6 => (offset.clone(), len.clone()).prop_map(|(offset, len)| Step::Write { offset, len }),
            2 => (offset.clone(), len.clone(), any::<bool>()).prop_map(|(offset, len, is_hole)| Step::Zero { offset, len, is_hole }),
            1 => offset.clone().prop_map(Step::SetLen),
            1 => (offset, len).prop_map(|(offset, len)| Step::Reserve { offset, len }),
            2 => Just(Step::Sync),
            2 => (0..6_u64).prop_map(|steps| Step::LateSync { steps }),
        ]
    }

    /// A naive file: its whole content after each step since the last sync, which is what the first one is as of.
    struct Oracle {
        history: Vec<Vec<u8>>,
        first: u64,
    }

    impl Oracle {
        fn now(&self) -> &Vec<u8> {
            self.history.last().expect("never empty")
        }

        fn apply(&mut self, index: usize, step: &Step) {
            let mut now = self.now().clone();
            match step {
                Step::Write { offset, len } => {
                    now.resize(now.len().max((offset + len) as usize), 0);
                    now[*offset as usize..(offset + len) as usize].fill(index as u8 + 1);
                }
                Step::Zero { offset, len, .. } => {
                    let end = now.len().min((offset + len) as usize);
                    now[(*offset as usize).min(end)..end].fill(0);
                }
                Step::SetLen(len) => now.resize(*len as usize, 0),
                Step::Reserve { offset, len } => now.resize(now.len().max((offset + len) as usize), 0),
                Step::Sync => self.forget_before(index as u64),
                Step::LateSync { steps } => self.forget_before((index as u64).saturating_sub(*steps)),
            }
            self.history.push(now);
        }

        /// The state after all steps before this one is durable.
        fn forget_before(&mut self, step: u64) {
            let forgotten = step.saturating_sub(self.first);
            self.history.drain(..forgotten as usize);
            self.first += forgotten;
        }

        /// What the file may be after a cut: a length it had, and in each byte a value it had or a zero (a size can survive
        /// without its data). Bytes that never changed since the sync are as they were.
        fn allows(&self, content: &[u8]) -> bool {
            let length = self.history.iter().any(|state| state.len() == content.len());
            let byte = |(at, value): (usize, &u8)| {
                let had = self.history.iter().map(|state| state.get(at));
                had.clone().any(|had| had == Some(value)) || (*value == 0 && had.clone().any(|had| had.is_none()))
            };
            length && content.iter().enumerate().all(byte)
        }
    }

    fn run(steps: &[Step]) -> (FileData, Oracle) {
        let mut file = FileData::open(tempfile::tempfile().expect("temporary file")).expect("opened");
        let mut oracle = Oracle { history: vec![Vec::new()], first: 0 };
        for (index, step) in steps.iter().enumerate() {
            let sequence = index as u64;
            match step {
                Step::Write { offset, len } => {
                    file.write(sequence, *offset, vec![index as u8 + 1; *len as usize].into())
                }
                Step::Zero { offset, len, is_hole } => file.zero(sequence, *offset..offset + len, *is_hole),
                Step::SetLen(len) => file.set_len(sequence, *len),
                Step::Reserve { offset, len } => file.reserve(sequence, *offset..offset + len, true),
                Step::Sync => file.sync().expect("synced"),
                Step::LateSync { steps } => file.sync_before(sequence.saturating_sub(*steps)).expect("synced"),
            }
            oracle.apply(index, step);
        }
        (file, oracle)
    }

    fn content(file: &FileData) -> Vec<u8> {
        file.read(0, 1 << 20).expect("read")
    }

    fn medium(file: &FileData) -> Vec<u8> {
        let mut content = vec![0; file.backing.metadata().expect("metadata").len() as usize];
        file.backing.read_exact_at(&mut content, 0).expect("read");
        content
    }

    proptest! {
        #[test]
        fn reads_see_every_operation(steps in prop::collection::vec(step(), 0..40)) {
            let (file, oracle) = run(&steps);
            prop_assert_eq!(&content(&file), oracle.now());
            prop_assert_eq!(file.len(), oracle.now().len() as u64);
        }

        #[test]
        fn a_cut_leaves_what_was_synced_and_versions_of_the_rest(
            steps in prop::collection::vec(step(), 0..40), seed in any::<u64>(),
        ) {
            let (mut file, oracle) = run(&steps);
            file.cut(&mut Fate::new(seed, 0, steps.len() as u64)).expect("cut");
            let survived = medium(&file);
            prop_assert!(oracle.allows(&survived), "{survived:?}");
        }

        #[test]
        fn a_synced_file_survives_any_cut_whole(mut steps in prop::collection::vec(step(), 0..40), seed in any::<u64>()) {
            steps.push(Step::Sync);
            let (mut file, oracle) = run(&steps);
            let losses = file.cut(&mut Fate::new(seed, 0, steps.len() as u64)).expect("cut");
            prop_assert_eq!(losses, Losses::default());
            prop_assert_eq!(&medium(&file), oracle.now());
        }

        #[test]
        fn a_whole_sector_is_never_torn(seed in any::<u64>()) {
            let steps: Vec<_> = (0..8).map(|_| Step::Write { offset: 0, len: SPACE }).collect();
            let (mut file, _) = run(&steps);
            file.cut(&mut Fate::new(seed, 0, 8)).expect("cut");
            for sector in medium(&file).chunks(SECTOR as usize) {
                prop_assert!(sector.iter().all(|byte| *byte == sector[0]));
            }
        }
    }

    #[test]
    fn some_cut_loses_and_some_cut_tears() {
        let outcomes: Vec<_> = (0..200)
            .map(|seed| {
                let (mut file, _) =
                    run(&[Step::Write { offset: 0, len: SPACE }, Step::Sync, Step::Write { offset: 0, len: SPACE }]);
                file.cut(&mut Fate::new(seed, 0, 3)).expect("cut").lost
            })
            .collect();
        let sectors = SPACE / SECTOR;
        assert!(outcomes.contains(&0) && outcomes.contains(&sectors));
        assert!(outcomes.iter().any(|lost| (1..sectors).contains(lost)), "a write can be torn");
    }

    #[test]
    fn what_a_failed_sync_gave_up_reads_back_but_is_never_durable() {
        let (mut file, _) =
            run(&[Step::Write { offset: 0, len: SECTOR }, Step::Sync, Step::Write { offset: 0, len: SECTOR }]);
        file.give_up();
        file.write(9, SECTOR, vec![7; SECTOR as usize].into());
        file.sync().expect("synced");
        assert_eq!(content(&file)[..SECTOR as usize], [3; SECTOR as usize]);
        assert_eq!(medium(&file)[..SECTOR as usize], [1; SECTOR as usize]);
        assert_eq!(medium(&file)[SECTOR as usize..], [7; SECTOR as usize]);
    }

    #[test]
    fn space_is_counted_in_blocks_and_given_back_by_holes() {
        let (mut file, _) = run(&[]);
        assert_eq!(file.growth(100..5000), 8192);
        file.write(0, 100, vec![1; 4900].into());
        assert_eq!((file.allocated_bytes(), file.growth(0..8192)), (8192, 0));
        file.zero(1, 0..4096, true);
        assert_eq!(file.allocated_bytes(), 4096);
        assert_eq!((file.seek(0, false), file.seek(0, true), file.seek(4096, true)), (Some(4096), Some(0), Some(5000)));
        file.set_len(2, 0);
        assert_eq!((file.allocated_bytes(), file.seek(0, false)), (0, None));
    }
}
