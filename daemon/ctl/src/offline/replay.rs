//! Runs the core's recovery over the files of a copy: the shell performs the reads that the machine asks for and nothing else.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use tidemark_core::event::{DiskDone, DiskError, DiskOp, DiskResult, FileRef, Output, Slot};
use tidemark_core::format::record::Kind;
use tidemark_core::format::superblock::CopyFlag;
use tidemark_core::log::Placed;
use tidemark_core::log::recovery::{Recovered, Recovery, Start, Step};
use tidemark_core::outbox::Outbox;
use tidemark_core::types::{Lsn, Nanos};

use super::OfflineError;
use super::copy::VolumeCopy;

/// No clock runs here.
const NOW: Nanos = Nanos(0);

/// What the log holds above the floor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Contents {
    /// Frames.
    pub frames: u64,
    /// Records by kind.
    pub records: BTreeMap<&'static str, u64>,
    /// Bytes of payload.
    pub payload_bytes: u64,
}

impl Contents {
    fn add(&mut self, placed: &Placed) {
        self.frames += 1;
        self.payload_bytes += placed.header.payload_bytes() as u64;
        for record in &placed.header.records {
            *self.records.entry(kind_name(record.kind)).or_default() += 1;
        }
    }
}

/// The log as an agent would find it.
#[derive(Debug)]
pub struct Replay {
    /// Recovery's verdict.
    pub recovered: Recovered,
    /// What lies above the floor.
    pub contents: Contents,
}

impl Replay {
    /// Reads the whole log of `copy`; `each` sees every frame above the floor, in order.
    ///
    /// # Errors
    /// [`OfflineError::File`] when a slot cannot be read.
    pub fn run(copy: &VolumeCopy, mut each: impl FnMut(&Placed)) -> Result<Self, OfflineError> {
        let mut slots = Slots::open(copy)?;
        let mut out = Outbox::default();
        let mut contents = Contents::default();
        let (mut recovery, mut step) = Recovery::begin(NOW, start(copy), copy.slot_lengths(), &mut out);
        loop {
            let (frames, done) = match step.take() {
                Some(Step::Done(frames, recovered)) => (frames, Some(recovered)),
                Some(Step::More(frames)) => (frames, None),
                Some(Step::Failed(_)) => return Err(slots.failure(copy)),
                None => (Vec::new(), None),
            };
            for frame in &frames {
                contents.add(frame);
                each(frame);
            }
            if let Some(recovered) = done {
                return Ok(Self { recovered: *recovered, contents });
            }
            let Some(Output::Disk(_, op)) = out.pop() else { return Err(slots.failure(copy)) };
            step = recovery.on_read(NOW, slots.perform(&op), &mut out);
        }
    }
}

fn start(copy: &VolumeCopy) -> Start {
    let superblock = &copy.superblock;
    let discard = is_seeding(superblock.flag);
    Start {
        volume: superblock.volume,
        site: superblock.site,
        writes: copy.config.as_ref().ok().and_then(|k| k.written_by(superblock.site)),
        secret: superblock.secret.clone(),
        slot_bytes: superblock.slot_bytes,
        floor: superblock.floor,
        durable: if discard { Lsn::ZERO } else { superblock.durable },
        discard,
        cut: superblock.cut,
    }
}

/// The log of a copy that receives its first content means nothing yet.
pub fn is_seeding(flag: CopyFlag) -> bool {
    matches!(flag, CopyFlag::Seeding(_))
}

struct Slots {
    files: BTreeMap<Slot, File>,
    failed: Option<(Slot, std::io::Error)>,
}

impl Slots {
    fn open(copy: &VolumeCopy) -> Result<Self, OfflineError> {
        let open = |slot: &super::copy::Numbered| {
            let file = File::open(&slot.path).map_err(OfflineError::file(&slot.path))?;
            Ok((Slot(slot.number), file))
        };
        Ok(Self { files: copy.slots.iter().map(open).collect::<Result<_, _>>()?, failed: None })
    }

    fn perform(&mut self, op: &DiskOp) -> DiskResult {
        let DiskOp::Read { file: FileRef::Log(slot), offset, len } = op else { return Err(DiskError::Io) };
        let Some(file) = self.files.get(slot) else { return Err(DiskError::Missing) };
        let mut bytes = vec![0; *len as usize];
        match file.read_exact_at(&mut bytes, *offset) {
            Ok(()) => Ok(DiskDone::Read(bytes.into())),
            Err(error) => {
                self.failed = Some((*slot, error));
                Err(DiskError::Io)
            }
        }
    }

    fn failure(&mut self, copy: &VolumeCopy) -> OfflineError {
        let (path, source) = match self.failed.take() {
            Some((slot, source)) => (copy.dir.join(format!("log/slot-{:06}.seg", slot.0)), source),
            None => (copy.dir.join("log"), std::io::Error::other("recovery ended without a result")),
        };
        OfflineError::File { path, source }
    }
}

/// The kind of a record as a word.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Write => "write",
        Kind::Discard => "discard",
        Kind::Zero => "zero",
        Kind::Mark => "mark",
        Kind::MarkCommit => "markCommit",
        Kind::Fork => "fork",
        Kind::Config => "config",
        Kind::Meta => "meta",
        Kind::Resize => "resize",
        Kind::Layout => "layout",
        Kind::Unknown(_) => "unknown",
    }
}
