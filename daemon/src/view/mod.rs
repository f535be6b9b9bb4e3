//! What a copy held at one position, read from its files while nobody changes them: the base, the frames of the log from the floor on,
//! and where it is one the frames of a sealed suffix.
//!
//! The copy's core says which files these are, and when they are no longer ([`View::end`]): that is known before the first of them is
//! written to, so a read that ends later than that fails, whatever it read. Blocks of frames are compared with their checksums.
//!
//! A view only reads, and never on the thread of a shard.

mod target;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tidemark_core::event::{FileRef, ReplyData, Request, RequestError};
use tidemark_core::format::branch::BranchHead;
use tidemark_core::format::frame::{FIXED_BYTES, FrameHeader, MAX_HEADER_BYTES};
use tidemark_core::format::{FormatError, crc32};
use tidemark_core::node::Held;
use tidemark_core::types::{BLOCK, BlockRange, Boundary, ByteRange, Secret, VolumeId};
use tidemark_core::view::{Found, Picture, ViewError};
use tokio::sync::Semaphore;

use crate::disk::files::{base_path_of, path_in};

pub use target::ViewTarget;

/// Reads of one view under way at a time.
const READS_AT_ONCE: usize = 8;
const BLOCK_BYTES: u64 = BLOCK as u64;

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A head or a frame is not what was written.
    #[error("{} at byte {at}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in it.
        at: u64,
        /// What is wrong.
        source: FormatError,
    },
    /// A frame does not fit in.
    #[error("{} at byte {at}: {source}", path.display())]
    Frame {
        /// The file.
        path: PathBuf,
        /// Where in it.
        at: u64,
        /// What is wrong.
        source: ViewError,
    },
    /// It is not what it is taken for.
    #[error("{}: {what}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

/// An open view.
#[derive(Debug)]
pub struct View {
    picture: Picture,
    sources: Vec<File>,
    bases: Vec<(VolumeId, File)>,
    ended: Arc<AtomicBool>,
    reads: Semaphore,
}

/// A file that frames are taken from.
struct Source {
    path: PathBuf,
    file: File,
}

impl Source {
    fn open(path: PathBuf) -> Result<Self, OpenError> {
        match File::open(&path) {
            Ok(file) => {
                // The copy writes past the page cache: what that remembers of a device may be older. A hint where nothing is cached.
                let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
                Ok(Self { path, file })
            }
            Err(source) => Err(OpenError::File { path, source }),
        }
    }

    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, OpenError> {
        let mut bytes = vec![0; len];
        let read = self.file.read_exact_at(&mut bytes, at);
        read.map_err(|source| OpenError::File { path: self.path.clone(), source })?;
        Ok(bytes)
    }

    /// The header of the frame at byte `at`, of which no more than `room` bytes are there.
    fn header(&self, at: u64, room: u64, secret: &Secret) -> Result<FrameHeader, OpenError> {
        let len = room.min(MAX_HEADER_BYTES as u64) as usize;
        if len < FIXED_BYTES {
            return Err(self.not("it ends inside a frame"));
        }
        let header = FrameHeader::decode(&self.read(at, len)?, secret);
        let header = header.map_err(|source| OpenError::Format { path: self.path.clone(), at, source })?;
        if header.total_bytes() as u64 > room {
            return Err(self.not("it ends inside a frame"));
        }
        Ok(header)
    }

    /// The payload of the frame at byte `at`, compared with its checksums.
    fn payload(&self, at: u64, header: &FrameHeader) -> Result<Bytes, OpenError> {
        let payload = self.read(at + header.padded_bytes() as u64, header.payload_bytes())?;
        if !header.matches([payload.as_slice()]) {
            return Err(self.not("a block does not match its checksum"));
        }
        Ok(payload.into())
    }

    fn not(&self, what: &'static str) -> OpenError {
        OpenError::Other { path: self.path.clone(), what }
    }
}

impl View {
    /// The view that `held` is made of, of the copy in `dir`; with the sealed suffix of that number, which begins where it ends.
    /// `ended` is set when the copy's core says so. Blocks.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(dir: &Path, held: &Held, branch: Option<u32>, ended: Arc<AtomicBool>) -> Result<Self, OpenError> {
        let mut picture = Picture::of_base(held.floor, held.layout.clone());
        let mut sources = log(dir, held, &mut picture)?;
        if let Some(number) = branch {
            let source = Source::open(path_in(dir, FileRef::Branch(number)))?;
            suffix(&source, held, &mut picture, sources.len() as u32)?;
            sources.push(source.file);
        }
        let bases = held.layout.volumes().into_iter().map(|volume| {
            let Source { file, .. } = Source::open(base_path_of(dir, volume))?;
            Ok((volume, file))
        });
        let bases = bases.collect::<Result<_, OpenError>>()?;
        Ok(Self { picture, sources, bases, ended, reads: Semaphore::new(READS_AT_ONCE) })
    }

    /// Bytes of a volume; none: it did not have it.
    pub fn size_of(&self, volume: VolumeId) -> Option<u64> {
        self.picture.layout().volume_size(volume)
    }

    /// Its last record.
    pub fn end(&self) -> Boundary {
        self.picture.end()
    }

    /// What it is made of may change, or has changed: nothing more can be read.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// The answer to a request of one of its volumes.
    async fn answer(self: Arc<Self>, volume: VolumeId, request: Request) -> Result<ReplyData, RequestError> {
        let range = match request {
            Request::Read { range } => range,
            Request::Flush => return Ok(Vec::new()),
            Request::Write { .. } | Request::Zero { .. } => return Err(RequestError::Invalid),
        };
        let view = Arc::clone(&self);
        let _turn = self.reads.acquire().await.map_err(|_| RequestError::NotServing)?;
        let read = tokio::task::spawn_blocking(move || view.read(volume, range));
        read.await.map_err(|_| RequestError::Io)?
    }

    /// Reads a range of a volume. Blocks.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] outside the volume, [`RequestError::NotServing`] when the view has ended, [`RequestError::Io`].
    pub fn read(&self, volume: VolumeId, range: ByteRange) -> Result<ReplyData, RequestError> {
        let pieces = self.picture.layout().pieces(volume, range).ok_or(RequestError::Invalid)?;
        let read: io::Result<ReplyData> = pieces.into_iter().map(|piece| self.read_piece(piece)).collect();
        // What was read before the end was there before any of it changed; what is read across it may be anything.
        if self.has_ended() {
            return Err(RequestError::NotServing);
        }
        read.map_err(|error| {
            tracing::warn!(%volume, offset = range.offset, len = range.len, %error, "a view cannot be read");
            RequestError::Io
        })
    }

    fn read_piece(&self, piece: ByteRange) -> io::Result<Bytes> {
        let (first, end) = (piece.offset / BLOCK_BYTES, piece.end().div_ceil(BLOCK_BYTES));
        let mut bytes = vec![0; ((end - first) * BLOCK_BYTES) as usize];
        for run in self.picture.runs(BlockRange::new(first, (end - first) as u32)) {
            let at = (run.range.offset - first * BLOCK_BYTES) as usize;
            self.fill(&run.found, &mut bytes[at..at + run.range.len as usize])?;
        }
        let skip = (piece.offset - first * BLOCK_BYTES) as usize;
        Ok(Bytes::from(bytes).slice(skip..skip + piece.len as usize))
    }

    fn fill(&self, found: &Found, bytes: &mut [u8]) -> io::Result<()> {
        match found {
            Found::Zeros => Ok(()),
            Found::Base(volume, offset) => {
                let base = self.bases.iter().find(|(of, _)| of == volume).map(|(_, file)| file);
                base.ok_or(io::ErrorKind::NotFound)?.read_exact_at(bytes, *offset)
            }
            Found::Source(number, block, crcs) => {
                self.sources[*number as usize].read_exact_at(bytes, u64::from(*block) * BLOCK_BYTES)?;
                let mut blocks = bytes.chunks_exact(BLOCK).enumerate();
                match blocks.all(|(i, block)| crc32(block) == crcs.at(i as u32)) {
                    true => Ok(()),
                    false => Err(io::Error::new(io::ErrorKind::InvalidData, "a block does not match its checksum")),
                }
            }
        }
    }
}

/// Adds the frames of the log; gives the files that they lie in.
fn log(dir: &Path, held: &Held, picture: &mut Picture) -> Result<Vec<File>, OpenError> {
    let mut sources = Vec::new();
    for run in held.frames.chunk_by(|(slot, _), (next, _)| slot == next) {
        let source = Source::open(path_in(dir, FileRef::Log(run[0].0)))?;
        for (_, frame) in run {
            let at = u64::from(frame.block) * BLOCK_BYTES;
            let header = source.header(at, u64::from(frame.blocks) * BLOCK_BYTES, &held.secret)?;
            if header.boundary() != frame.boundary() {
                return Err(source.not("a frame is another one than the log has"));
            }
            add(picture, &source, at, &header, sources.len() as u32)?;
        }
        sources.push(source.file);
    }
    match picture.end() == held.end {
        true => Ok(sources),
        false => Err(OpenError::Other { path: dir.to_owned(), what: "its log does not lead from the floor to there" }),
    }
}

/// Adds the frames of a sealed suffix, each compared with its checksums.
fn suffix(source: &Source, held: &Held, picture: &mut Picture, number: u32) -> Result<(), OpenError> {
    let head = BranchHead::decode(&source.read(0, BLOCK)?);
    let head = head.map_err(|error| OpenError::Format { path: source.path.clone(), at: 0, source: error })?;
    if head.volume != held.volume || head.from != held.end {
        return Err(source.not("it is the suffix of another history"));
    }
    let (mut at, stop) = (BLOCK_BYTES, BLOCK_BYTES.saturating_add(head.bytes));
    while at < stop {
        let header = source.header(at, stop - at, &held.secret)?;
        source.payload(at, &header)?;
        add(picture, source, at, &header, number)?;
        at += header.total_bytes() as u64;
    }
    if picture.end() == head.tail { Ok(()) } else { Err(source.not("it does not reach to its end")) }
}

fn add(picture: &mut Picture, source: &Source, at: u64, frame: &FrameHeader, number: u32) -> Result<(), OpenError> {
    let payload = match Picture::needs_payload(frame) {
        true => vec![source.payload(at, frame)?],
        false => Vec::new(),
    };
    let block = (at + frame.padded_bytes() as u64) / BLOCK_BYTES;
    let added = picture.add(frame, &payload, number, block as u32);
    added.map_err(|error| OpenError::Frame { path: source.path.clone(), at, source: error })
}
