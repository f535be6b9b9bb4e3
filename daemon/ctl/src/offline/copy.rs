//! The directory of a copy: its small files, decoded, and the list of the large ones.

use std::fs::{self, File, TryLockError};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use tidemark_core::config::Config;
use tidemark_core::event::Slot;
use tidemark_core::format::superblock::{self, Superblock};
use tidemark_core::format::{FormatError, config, twin::TwinKind};

use super::OfflineError;

/// The most bytes of a small file: a footer of several TiB with changes all over.
pub(super) const MAX_SMALL_FILE: u64 = 256 << 20;

/// A file with a number in its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Numbered {
    /// The number.
    pub number: u32,
    /// Where.
    pub path: PathBuf,
    /// Bytes.
    pub len: u64,
}

/// A copy. Holds a shared lock on the directory, so that no agent opens it meanwhile.
#[derive(Debug)]
pub struct VolumeCopy {
    /// The directory.
    pub dir: PathBuf,
    /// The superblock in force.
    pub superblock: Superblock,
    /// The other version of the superblock is damaged.
    pub superblock_torn: bool,
    /// K, or why it cannot be read.
    pub config: Result<Config, String>,
    /// The other version of K is damaged.
    pub config_torn: bool,
    /// Slots of the log.
    pub slots: Vec<Numbered>,
    /// Footers: what runs of the log changed.
    pub footers: Vec<Numbered>,
    /// Sealed branches.
    pub branches: Vec<Numbered>,
    /// How many were dropped.
    pub dropped: usize,
    _lock: File,
}

impl VolumeCopy {
    /// Reads `dir`.
    ///
    /// # Errors
    /// [`OfflineError`] when it is no copy, an agent has it, or its superblock cannot be used.
    pub fn open(dir: &Path) -> Result<Self, OfflineError> {
        let lock = lock(dir)?;
        let path = dir.join("superblock");
        if !path.exists() {
            return Err(OfflineError::NoCopy { path: dir.to_owned() });
        }
        check_log(dir)?;
        let unusable = |source| OfflineError::Superblock { path: path.clone(), source };
        let file = read_small(&path)?;
        let twin = superblock::FILE.decode(&file).map_err(unusable)?;
        let superblock = Superblock::decode(twin.content).map_err(unusable)?;
        let (config, config_torn) = read_config(&dir.join("config"));
        Ok(Self {
            dir: dir.to_owned(),
            superblock,
            superblock_torn: twin.other_damaged,
            config,
            config_torn,
            slots: numbered(&dir.join("log"), "slot-", ".seg")?,
            footers: numbered(&dir.join("log"), "footer-", "")?,
            branches: numbered(&dir.join("branch"), "branch-", "")?,
            dropped: numbered(&dir.join("branch"), "dropped-", "")?.len(),
            _lock: lock,
        })
    }

    /// The slots as recovery wants them.
    pub fn slot_lengths(&self) -> Vec<(Slot, u64)> {
        self.slots.iter().map(|slot| (Slot(slot.number), slot.len)).collect()
    }
}

/// A log that lies elsewhere is the copy's own: both ends of the link say the same. Nothing else would be worth a look.
fn check_log(dir: &Path) -> Result<(), OfflineError> {
    let wanted = dir.join("log-identity");
    if !wanted.exists() {
        return Ok(());
    }
    let log = dir.join("log");
    let identity = fs::read(log.join("identity")).ok();
    match identity.is_some() && identity == fs::read(&wanted).ok() {
        true => Ok(()),
        false => Err(OfflineError::NoLog { path: fs::read_link(&log).unwrap_or(log) }),
    }
}

fn lock(dir: &Path) -> Result<File, OfflineError> {
    let handle = match File::open(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(OfflineError::NoCopy { path: dir.to_owned() });
        }
        other => other.map_err(OfflineError::file(dir))?,
    };
    match handle.try_lock_shared() {
        Ok(()) => Ok(handle),
        Err(TryLockError::WouldBlock) => Err(OfflineError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OfflineError::File { path: dir.to_owned(), source }),
    }
}

fn read_config(path: &Path) -> (Result<Config, String>, bool) {
    let file = match read_small(path) {
        Ok(file) => file,
        Err(error) => return (Err(error.to_string()), false),
    };
    match decode_twin(&config::FILE, &file) {
        Ok((config, torn)) => (Ok(config), torn),
        Err(error) => (Err(error.to_string()), false),
    }
}

fn decode_twin(kind: &TwinKind, file: &[u8]) -> Result<(Config, bool), FormatError> {
    let twin = kind.decode(file)?;
    Ok((config::decode_file(twin.content)?, twin.other_damaged))
}

/// Reads a file of at most [`MAX_SMALL_FILE`] bytes; what lies beyond is left out and fails its checksum.
pub(super) fn read_small(path: &Path) -> Result<Vec<u8>, OfflineError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(OfflineError::file(path))?;
    file.take(MAX_SMALL_FILE).read_to_end(&mut bytes).map_err(OfflineError::file(path))?;
    Ok(bytes)
}

/// The files `<prefix>NUMBER<suffix>` of a directory by number; a directory that is not there has none.
fn numbered(dir: &Path, prefix: &str, suffix: &str) -> Result<Vec<Numbered>, OfflineError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(OfflineError::file(dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(OfflineError::file(dir))?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_suffix(suffix));
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        if let Some(number) = digits.and_then(|digits| digits.parse().ok()) {
            let len = entry.metadata().map_err(OfflineError::file(&entry.path()))?.len();
            found.push(Numbered { number, path: entry.path(), len });
        }
    }
    found.sort_by_key(|file| file.number);
    Ok(found)
}
