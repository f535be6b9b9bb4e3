//! The catalogue: which volumes and peers this agent knows.
//!
//! The truth is in small files beside what they describe: `<volume directory>/volume.toml`, `<state_dir>/peers/<name>.toml`
//! and `<name>.crt`. The index (RocksDB) holds copies. It is read at start and brought in line with the files; it may be
//! deleted, damaged, of another version or old, and everything comes back. What it alone remembers is that a volume or a peer
//! *should* be there: one whose pool is not mounted, or whose file is damaged, keeps its name and is not made a second time.
//!
//! Invariants: a change is in its file, durably, before it is in the index, and in the index before it is visible here; names
//! and ids are unique; one agent at a time has a state directory open. A failure of the index alone fails nothing: it is
//! logged and counted, and the next start mends it.

mod bases;
mod finding;
mod index;
mod record;
#[cfg(feature = "rocksdb")]
mod rocks;
mod scan;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tidemark_core::types::{SiteId, VolumeId};

pub use bases::Bases;
pub use finding::Finding;
pub use index::Rebuilt;
pub use record::{CopyRecord, PeerRecord, RecordError, VolumeRecord};
pub use scan::VOLUME_FILE;
pub use volumes::Joined;

use crate::config::{Name, PoolConfig};
use crate::crashsafe;
use crate::disk;
use crate::telemetry::CatalogueMetrics;
use index::{Index, IndexError, MemoryIndex};
use scan::{Scan, peer_file};

/// Directory in a pool for what deleted volumes left.
const TRASH: &str = ".trash";

/// A copy of a group, with its volumes, as the catalogue knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyEntry {
    /// What its file says; where that cannot be read, what the index remembers of it, or its identity as a name.
    pub record: CopyRecord,
    /// Its pool.
    pub pool: Name,
    /// Its directory.
    pub dir: PathBuf,
    /// Why it must be left alone: it is not there, or not as it should be.
    pub fault: Option<String>,
}

/// Why the catalogue did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// Another agent uses the state directory.
    #[error("{}: another agent uses this state directory", dir.display())]
    InUse {
        /// The state directory.
        dir: PathBuf,
    },
    /// A file cannot be written or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// A volume's files cannot be changed.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The name belongs to another volume.
    #[error("there is a volume {0} here already")]
    NameTaken(Name),
    /// There are as many volumes as there may be.
    #[error("there are {limit} volumes here, and no more are allowed")]
    TooMany {
        /// The limit.
        limit: u32,
    },
    /// The volume is known already.
    #[error("volume {0} is known already")]
    Known(VolumeId),
    /// No such volume, or one that must be left alone.
    #[error("volume {0} is not known")]
    NoVolume(VolumeId),
    /// A record cannot be put into text.
    #[error("record: {0}")]
    Record(#[from] RecordError),
}

/// What is known. Its methods sync files: call them where blocking is allowed.
pub struct Catalogue {
    index: Box<dyn Index>,
    /// Copies, by what their logs are named after.
    volumes: BTreeMap<VolumeId, CopyEntry>,
    /// Volumes being made: their names and those of groups being made with them.
    reserved: BTreeMap<VolumeId, Vec<Name>>,
    peers: BTreeMap<Name, PeerRecord>,
    peers_dir: PathBuf,
    findings: Vec<Finding>,
    metrics: CatalogueMetrics,
    _lock: Flock<File>,
}

/// A volume in the index: its record and where it lies.
#[derive(Serialize, Deserialize)]
struct Indexed {
    pool: String,
    dir: PathBuf,
    record: String,
}

impl Catalogue {
    /// Opens the catalogue of `state_dir` and brings its index in line with what `pools` and the peer files hold. What was
    /// found is logged, counted in `metrics` and kept as [`findings`](Self::findings).
    ///
    /// # Errors
    /// [`CatalogueError::InUse`] when another agent has it open, [`CatalogueError::Io`] when `state_dir` cannot be used.
    /// Neither damaged files nor a damaged index are an error.
    pub fn open(state_dir: &Path, pools: &[PoolConfig], metrics: CatalogueMetrics) -> Result<Self, CatalogueError> {
        crashsafe::create_dir(state_dir).map_err(io_at(state_dir))?;
        let lock = lock(state_dir)?;
        let peers_dir = state_dir.join("peers");
        let opened = index::open(&state_dir.join("catalogue"));
        let Scan { volumes, peers, findings } = Scan::of(pools, &peers_dir);
        let reserved = BTreeMap::new();
        let mut catalogue =
            Self { index: opened.index, volumes, reserved, peers, peers_dir, findings, metrics, _lock: lock };
        catalogue.note_rebuilt(opened.rebuilt);
        catalogue.remember(&opened.content);
        catalogue.reconcile(&opened.content)?;
        catalogue.metrics.found(&catalogue.findings);
        catalogue.findings.iter().for_each(tell);
        Ok(catalogue)
    }

    /// Closes the index for a stop: RocksDB has threads of its own, which must have ended when the process does. What changes
    /// later is in the files alone.
    pub fn close(&mut self) {
        self.index = Box::new(MemoryIndex::default());
    }

    /// What a person should know about the last opening.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Every copy, by id.
    pub fn copies(&self) -> impl Iterator<Item = &CopyEntry> {
        self.volumes.values()
    }

    /// Moves a volume's directory, whole, to the trash of its pool and forgets it. Returns where it is now; none: it was not
    /// there. `now_ms`, milliseconds since 1970, makes the name unique and tells people when it was.
    ///
    /// # Errors
    /// When the directory cannot be moved; the volume stays known.
    pub fn trash_volume(&mut self, id: VolumeId, now_ms: u64) -> Result<Option<PathBuf>, CatalogueError> {
        let entry = self.volumes.get(&id).ok_or(CatalogueError::NoVolume(id))?;
        let trash = entry.dir.with_file_name(TRASH);
        let target = trash.join(format!("{}-{id}-{now_ms}", entry.record.name));
        let there = entry.dir.exists();
        if there {
            crashsafe::create_dir(&trash).map_err(io_at(&trash))?;
            crashsafe::rename(&entry.dir, &target).map_err(io_at(&entry.dir))?;
        }
        self.forget(id);
        Ok(there.then_some(target))
    }

    /// Removes a volume's directory, an image of its own included, and forgets it. An adopted base stays.
    ///
    /// # Errors
    /// When the directory cannot be removed, or somebody serves it; the volume stays known.
    pub fn purge_volume(&mut self, id: VolumeId) -> Result<(), CatalogueError> {
        let entry = self.volumes.get(&id).ok_or(CatalogueError::NoVolume(id))?;
        if entry.dir.exists() {
            disk::files::remove_volume(&entry.dir)?;
        }
        self.forget(id);
        Ok(())
    }

    /// Removes a volume's directory but keeps its base, and forgets it. Returns where the base is: an adopted one where it
    /// always was, an image as `<pool>/<name>.released.img`.
    ///
    /// # Errors
    /// As of [`purge_volume`](Self::purge_volume).
    pub fn release_volume(&mut self, id: VolumeId) -> Result<PathBuf, CatalogueError> {
        let entry = self.volumes.get(&id).ok_or(CatalogueError::NoVolume(id))?;
        let beside = |name: String| entry.dir.with_file_name(name);
        // A volume of this name may have been released before; its image is somebody's data.
        let kept = Some(beside(format!("{}.released.img", entry.record.name))).filter(|path| !path.exists());
        let kept = kept.unwrap_or_else(|| beside(format!("{}-{id}.released.img", entry.record.name)));
        let base = disk::files::release_volume(&entry.dir, &kept)?;
        self.forget(id);
        Ok(base)
    }

    fn forget(&mut self, id: VolumeId) {
        self.take(&volume_key(id));
        self.volumes.remove(&id);
    }

    /// Every peer made known by a verb, and what was learnt of others, by name.
    pub fn peers(&self) -> impl Iterator<Item = &PeerRecord> {
        self.peers.values()
    }

    /// The authority of a peer that has its own, PEM.
    pub fn peer_ca(&self, peer: &PeerRecord) -> Option<PathBuf> {
        peer.own_ca.then(|| self.ca_file(&peer.name))
    }

    fn ca_file(&self, name: &Name) -> PathBuf {
        self.peers_dir.join(format!("{name}.crt"))
    }

    /// Makes a peer known, or replaces what was known of it. `ca_pem` is its own authority.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn put_peer(&mut self, peer: PeerRecord, ca_pem: Option<&str>) -> Result<PeerRecord, CatalogueError> {
        let peer = PeerRecord { own_ca: ca_pem.is_some(), ..peer };
        crashsafe::create_dir(&self.peers_dir).map_err(io_at(&self.peers_dir))?;
        let (file, ca) = (self.peers_dir.join(peer_file(&peer.name)), self.ca_file(&peer.name));
        // The authority comes before the record that names it and goes after it.
        if let Some(pem) = ca_pem {
            crashsafe::replace(&ca, &[pem]).map_err(io_at(&ca))?;
        }
        self.write_peer(&file, &peer)?;
        if ca_pem.is_none() {
            crashsafe::remove(&ca).map_err(io_at(&ca))?;
        }
        Ok(peer)
    }

    /// Keeps that `peer` turned out to be `site`; its authority stays as it is.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn learn_site(&mut self, peer: PeerRecord, site: SiteId) -> Result<(), CatalogueError> {
        crashsafe::create_dir(&self.peers_dir).map_err(io_at(&self.peers_dir))?;
        let file = self.peers_dir.join(peer_file(&peer.name));
        let own_ca = self.peers.get(&peer.name).is_some_and(|known| known.own_ca);
        self.write_peer(&file, &PeerRecord { site: Some(site), own_ca, ..peer })
    }

    fn write_peer(&mut self, file: &Path, peer: &PeerRecord) -> Result<(), CatalogueError> {
        let text = peer.to_text()?;
        crashsafe::replace(file, &[&text]).map_err(io_at(file))?;
        self.put(&peer_key(&peer.name), &text);
        self.peers.insert(peer.name.clone(), peer.clone());
        Ok(())
    }

    /// Forgets a peer. Not known: success.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove_peer(&mut self, name: &Name) -> Result<(), CatalogueError> {
        for file in [self.peers_dir.join(peer_file(name)), self.ca_file(name)] {
            crashsafe::remove(&file).map_err(io_at(&file))?;
        }
        self.take(&peer_key(name));
        self.peers.remove(name);
        Ok(())
    }

    fn put(&mut self, key: &str, text: &str) {
        let result = self.index.put(key, text);
        self.note(key, result);
    }

    fn take(&mut self, key: &str) {
        let result = self.index.remove(key);
        self.note(key, result);
    }

    /// The files are the truth: an index that fails is old until the next start, and that is all.
    fn note(&self, key: &str, result: Result<(), IndexError>) {
        if let Err(error) = result {
            self.metrics.write_failed();
            tracing::error!(key, %error, "the index of the catalogue cannot be written; the next start mends it");
        }
    }

    /// At the very first start nothing is there, which is as it should be.
    fn note_rebuilt(&mut self, rebuilt: Option<Rebuilt>) {
        let is_first = self.volumes.is_empty() && self.peers.is_empty();
        if let Some(why) = rebuilt.filter(|why| !(is_first && *why == Rebuilt::Missing)) {
            self.metrics.rebuilt(&why);
            self.findings.insert(0, Finding::IndexRebuilt(why));
        }
    }

    /// Takes from the index what the files cannot say: which volumes should be there, the names of those whose record is
    /// damaged, and which peers should be known.
    fn remember(&mut self, content: &BTreeMap<String, String>) {
        let mut names: BTreeSet<Name> = self.volumes.values().flat_map(|entry| entry.record.names().cloned()).collect();
        for mut entry in content.iter().filter_map(|(key, text)| indexed_volume(key, text)) {
            let id = entry.record.id;
            if self.volumes.get(&id).is_some_and(|known| known.fault.is_none()) {
                continue;
            }
            if entry.record.names().any(|name| names.contains(name)) {
                entry.record = CopyRecord { created: entry.record.created, ..CopyRecord::unknown(id) };
            }
            names.extend(entry.record.names().cloned());
            match self.volumes.get_mut(&id) {
                Some(known) => known.record = entry.record,
                None => self.miss(entry),
            }
        }
        for name in content.keys().filter_map(|key| Name::parse(key.strip_prefix(PEER_PREFIX)?).ok()) {
            if !self.peers.contains_key(&name) {
                self.findings.push(Finding::PeerLost { name });
            }
        }
    }

    fn miss(&mut self, mut entry: CopyEntry) {
        let missing = Finding::Missing { name: entry.record.name.clone(), dir: entry.dir.clone() };
        entry.fault = Some(missing.to_string());
        self.findings.push(missing);
        self.volumes.insert(entry.record.id, entry);
    }

    /// Makes the index say what the files say; what it remembers of what cannot be read stays as it is.
    fn reconcile(&mut self, content: &BTreeMap<String, String>) -> Result<(), CatalogueError> {
        let mut wanted = BTreeMap::new();
        for entry in self.volumes.values().filter(|entry| entry.fault.is_none()) {
            wanted.insert(volume_key(entry.record.id), indexed(entry)?);
        }
        for peer in self.peers.values() {
            wanted.insert(peer_key(&peer.name), peer.to_text()?);
        }
        for (key, _) in content.iter().filter(|(key, text)| !wanted.contains_key(*key) && !remembers(key, text)) {
            self.take(key);
        }
        let is_new = content.is_empty();
        for (key, text) in wanted.iter().filter(|(key, text)| content.get(*key) != Some(*text)) {
            self.put(key, text);
            let id = key.strip_prefix(VOLUME_PREFIX).and_then(VolumeId::parse);
            if let Some(entry) = id.and_then(|id| self.volumes.get(&id)).filter(|_| !is_new) {
                let (name, dir) = (entry.record.name.clone(), entry.dir.clone());
                self.findings.push(Finding::Reindexed { name, dir });
            }
        }
        Ok(())
    }
}

const VOLUME_PREFIX: &str = "volume/";
const PEER_PREFIX: &str = "peer/";

fn volume_key(id: VolumeId) -> String {
    format!("{VOLUME_PREFIX}{id}")
}

fn peer_key(name: &Name) -> String {
    format!("{PEER_PREFIX}{name}")
}

fn indexed(entry: &CopyEntry) -> Result<String, RecordError> {
    let record = entry.record.to_text()?;
    record::text(&Indexed { pool: entry.pool.to_string(), dir: entry.dir.clone(), record })
}

/// The volume that an entry of the index is about.
fn indexed_volume(key: &str, text: &str) -> Option<CopyEntry> {
    let id = VolumeId::parse(key.strip_prefix(VOLUME_PREFIX)?)?;
    let indexed: Indexed = toml::from_str(text).ok()?;
    let record = CopyRecord::parse(&indexed.record).ok().filter(|record| record.id == id)?;
    Some(CopyEntry { record, pool: Name::parse(&indexed.pool).ok()?, dir: indexed.dir, fault: None })
}

/// Whether an entry of the index that no file stands behind is worth keeping.
fn remembers(key: &str, text: &str) -> bool {
    indexed_volume(key, text).is_some() || (key.starts_with(PEER_PREFIX) && PeerRecord::parse(text).is_ok())
}

fn tell(finding: &Finding) {
    match finding.is_harmless() {
        true => tracing::info!("catalogue: {finding}"),
        false => tracing::error!("catalogue: {finding}"),
    }
}

fn lock(state_dir: &Path) -> Result<Flock<File>, CatalogueError> {
    let path = state_dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io_at(&path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => CatalogueError::InUse { dir: state_dir.to_owned() },
        errno => CatalogueError::Io { path, source: errno.into() },
    })
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> CatalogueError + use<> {
    let path = path.to_owned();
    move |source| CatalogueError::Io { path, source }
}
