//! The catalogue: which volumes and peers this agent knows.
//!
//! The truth is in small files beside what they describe: `<volume directory>/volume.toml`, `<state_dir>/peers/<name>.toml`.
//! The index (RocksDB) holds copies. It is read at start and brought in line with the files; it may be deleted, damaged or
//! old, and everything comes back. What it alone remembers is that a volume *should* be there whose pool is not mounted.
//!
//! Invariants: a change is in its file, durably, before it is in the index, and in the index before it is visible here; names
//! and ids are unique; one agent at a time has a state directory open.

mod bases;
mod index;
mod record;
#[cfg(feature = "rocksdb")]
mod rocks;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tidemark_core::types::VolumeId;

pub use bases::Bases;
pub use index::IndexError;
pub use record::{PeerRecord, RecordError, VolumeRecord};

use crate::config::{Name, PoolConfig};
use crate::crashsafe;
use index::Index;
use scan::{Scan, VOLUME_FILE, peer_file};

/// Directory in a pool for what deleted volumes left.
const TRASH: &str = ".trash";

/// A volume as the catalogue knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// What its file says.
    pub record: VolumeRecord,
    /// Its pool.
    pub pool: Name,
    /// Its directory.
    pub dir: PathBuf,
    /// Its directory is there. False: remembered by the index only, most likely the pool is not mounted.
    pub present: bool,
}

impl VolumeEntry {
    /// The base image as a path that can be opened.
    pub fn base(&self) -> PathBuf {
        self.record.base_in(&self.dir)
    }
}

/// Something that a person should know about what was found at start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// The index was damaged and is new.
    #[error("the index was damaged and was rebuilt: {why}")]
    IndexRebuilt {
        /// What was wrong with it.
        why: String,
    },
    /// The index did not know a volume, or knew something else of it.
    #[error("volume {name} in {} was not in the index as it is on disk; the disk counts", dir.display())]
    Reindexed {
        /// The volume.
        name: Name,
        /// Its directory.
        dir: PathBuf,
    },
    /// A volume that should be there is not.
    #[error("volume {name} is missing: {} is not there; is the pool mounted?", dir.display())]
    Missing {
        /// The volume.
        name: Name,
        /// Where it was.
        dir: PathBuf,
    },
    /// A volume directory without a name: its creation did not end.
    #[error("{} has no {VOLUME_FILE}: a creation that did not end, or a damaged volume; it is not served", dir.display())]
    Unnamed {
        /// The directory.
        dir: PathBuf,
    },
    /// Two volumes want one name; the older has it.
    #[error("{} is not served: its name {name} belongs to the older volume in {}", dir.display(), by.display())]
    NameTaken {
        /// The name.
        name: Name,
        /// The directory that is not served.
        dir: PathBuf,
        /// The directory that is.
        by: PathBuf,
    },
    /// One volume lies in two pools.
    #[error("{} is not served: the same volume lies in {}", dir.display(), first.display())]
    Twice {
        /// The directory that is not served.
        dir: PathBuf,
        /// The directory that is.
        first: PathBuf,
    },
    /// A file or directory cannot be used.
    #[error("{} is not used: {why}", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        why: String,
    },
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
    /// The index failed.
    #[error("catalogue index {0}")]
    Index(#[from] IndexError),
    /// The name belongs to another volume.
    #[error("there is a volume {0} already")]
    NameTaken(Name),
    /// The volume is known already.
    #[error("volume {0} is known already")]
    Known(VolumeId),
    /// No such volume.
    #[error("volume {0} is not known")]
    NoVolume(VolumeId),
    /// No such peer.
    #[error("peer {0} is not known")]
    NoPeer(Name),
    /// A record cannot be put into text.
    #[error("record: {0}")]
    Record(#[from] RecordError),
}

/// What is known. Its methods sync files: call them where blocking is allowed.
pub struct Catalogue {
    index: Box<dyn Index>,
    volumes: BTreeMap<VolumeId, VolumeEntry>,
    peers: BTreeMap<Name, PeerRecord>,
    peers_dir: PathBuf,
    findings: Vec<Finding>,
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
    /// Opens the catalogue of `state_dir` and brings its index in line with what `pools` and the peer files hold.
    ///
    /// # Errors
    /// When another agent has it open, or neither the old index nor a new one can be used. Damaged files are no error but
    /// [`findings`](Self::findings).
    pub fn open(state_dir: &Path, pools: &[PoolConfig]) -> Result<Self, CatalogueError> {
        crashsafe::create_dir(state_dir).map_err(io_at(state_dir))?;
        let lock = lock(state_dir)?;
        let peers_dir = state_dir.join("peers");
        let opened = index::open(&state_dir.join("catalogue"))?;
        let Scan { volumes, peers, findings } = Scan::of(pools, &peers_dir);
        let mut catalogue = Self { index: opened.index, volumes, peers, peers_dir, findings, _lock: lock };
        if let Some(why) = opened.rebuilt {
            catalogue.findings.insert(0, Finding::IndexRebuilt { why });
        }
        catalogue.reconcile(&opened.content)?;
        Ok(catalogue)
    }

    /// What a person should know about the last opening.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Every volume, by id.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeEntry> {
        self.volumes.values()
    }

    /// One volume.
    pub fn volume(&self, id: VolumeId) -> Option<&VolumeEntry> {
        self.volumes.get(&id)
    }

    /// The volume of that name.
    pub fn volume_named(&self, name: &Name) -> Option<&VolumeEntry> {
        self.volumes.values().find(|entry| entry.record.name == *name)
    }

    /// Makes a volume known whose directory exists.
    pub fn add_volume(&mut self, pool: &Name, dir: &Path, record: VolumeRecord) -> Result<(), CatalogueError> {
        if self.volumes.contains_key(&record.id) {
            return Err(CatalogueError::Known(record.id));
        }
        if self.volume_named(&record.name).is_some() {
            return Err(CatalogueError::NameTaken(record.name));
        }
        self.write_volume(VolumeEntry { record, pool: pool.clone(), dir: dir.to_owned(), present: true })
    }

    /// Changes what is kept of a volume; id and name stay.
    pub fn change_volume(
        &mut self,
        id: VolumeId,
        change: impl FnOnce(&mut VolumeRecord),
    ) -> Result<(), CatalogueError> {
        let old = self.volumes.get(&id).ok_or(CatalogueError::NoVolume(id))?;
        let mut entry = old.clone();
        change(&mut entry.record);
        assert!(entry.record.id == id && entry.record.name == old.record.name, "a change never renames a volume");
        self.write_volume(entry)
    }

    /// Forgets a volume whose directory was removed or moved away before; what is left there would come back at the next
    /// start.
    pub fn forget_volume(&mut self, id: VolumeId) -> Result<(), CatalogueError> {
        if self.volumes.contains_key(&id) {
            self.index.remove(&volume_key(id))?;
            self.volumes.remove(&id);
        }
        Ok(())
    }

    /// Moves a volume's directory, whole, to the trash of its pool and forgets it. Returns where it is now. `now_ms` makes the
    /// name unique and tells people when it was.
    pub fn trash_volume(&mut self, id: VolumeId, now_ms: u64) -> Result<PathBuf, CatalogueError> {
        let entry = self.volumes.get(&id).ok_or(CatalogueError::NoVolume(id))?;
        let pool = entry.dir.parent().ok_or(CatalogueError::NoVolume(id))?.to_owned();
        let trash = pool.join(TRASH);
        let target = trash.join(format!("{}-{id}-{now_ms}", entry.record.name));
        crashsafe::create_dir(&trash).map_err(io_at(&trash))?;
        std::fs::rename(&entry.dir, &target).map_err(io_at(&entry.dir))?;
        crashsafe::sync_dir(&trash).and_then(|()| crashsafe::sync_dir(&pool)).map_err(io_at(&trash))?;
        self.forget_volume(id)?;
        Ok(target)
    }

    /// Every peer made known by a verb, by name.
    pub fn peers(&self) -> impl Iterator<Item = &PeerRecord> {
        self.peers.values()
    }

    /// The authority of a peer that has its own, PEM.
    pub fn peer_ca(&self, name: &Name) -> PathBuf {
        self.peers_dir.join(format!("{name}.crt"))
    }

    /// Makes a peer known, or replaces what was known of it. `ca_pem` is its own authority.
    pub fn put_peer(&mut self, peer: PeerRecord, ca_pem: Option<&str>) -> Result<(), CatalogueError> {
        let peer = PeerRecord { own_ca: ca_pem.is_some(), ..peer };
        crashsafe::create_dir(&self.peers_dir).map_err(io_at(&self.peers_dir))?;
        let ca = self.peer_ca(&peer.name);
        if let Some(pem) = ca_pem {
            crashsafe::replace(&ca, &[pem]).map_err(io_at(&ca))?;
        }
        self.write_peer(peer)
    }

    /// Keeps the site that answered as a peer; its authority stays as it is.
    pub fn learn_site(&mut self, name: &Name, site: tidemark_core::types::SiteId) -> Result<(), CatalogueError> {
        let old = self.peers.get(name).ok_or_else(|| CatalogueError::NoPeer(name.clone()))?;
        self.write_peer(PeerRecord { site: Some(site), ..old.clone() })
    }

    /// Forgets a peer.
    pub fn remove_peer(&mut self, name: &Name) -> Result<(), CatalogueError> {
        let file = self.peers_dir.join(peer_file(name));
        crashsafe::remove(&file).map_err(io_at(&file))?;
        let ca = self.peer_ca(name);
        crashsafe::remove(&ca).map_err(io_at(&ca))?;
        self.index.remove(&peer_key(name))?;
        self.peers.remove(name);
        Ok(())
    }

    fn write_volume(&mut self, entry: VolumeEntry) -> Result<(), CatalogueError> {
        let file = entry.dir.join(VOLUME_FILE);
        crashsafe::replace(&file, &[entry.record.to_text()?]).map_err(io_at(&file))?;
        self.index.put(&volume_key(entry.record.id), &indexed(&entry)?)?;
        self.volumes.insert(entry.record.id, entry);
        Ok(())
    }

    fn write_peer(&mut self, peer: PeerRecord) -> Result<(), CatalogueError> {
        let (file, text) = (self.peers_dir.join(peer_file(&peer.name)), peer.to_text()?);
        crashsafe::replace(&file, &[&text]).map_err(io_at(&file))?;
        self.index.put(&peer_key(&peer.name), &text)?;
        self.peers.insert(peer.name.clone(), peer);
        Ok(())
    }

    /// Makes the index say what the files say, and remembers the volumes that only the index knows.
    fn reconcile(&mut self, content: &BTreeMap<String, String>) -> Result<(), CatalogueError> {
        let mut wanted = BTreeMap::new();
        for entry in self.volumes.values() {
            wanted.insert(volume_key(entry.record.id), indexed(entry)?);
        }
        for peer in self.peers.values() {
            wanted.insert(peer_key(&peer.name), peer.to_text()?);
        }
        let absent: Vec<VolumeEntry> = content.values().filter_map(|text| self.absent(text)).collect();
        for entry in absent {
            wanted.insert(volume_key(entry.record.id), indexed(&entry)?);
            self.findings.push(Finding::Missing { name: entry.record.name.clone(), dir: entry.dir.clone() });
            self.volumes.insert(entry.record.id, entry);
        }
        for key in content.keys().filter(|key| !wanted.contains_key(*key)) {
            self.index.remove(key)?;
        }
        let fresh = content.is_empty();
        for (key, text) in wanted.iter().filter(|(key, text)| content.get(*key) != Some(*text)) {
            self.index.put(key, text)?;
            let volume = key.strip_prefix(VOLUME_PREFIX).and_then(VolumeId::parse);
            if let Some(entry) = volume.and_then(|id| self.volumes.get(&id)).filter(|_| !fresh) {
                let (name, dir) = (entry.record.name.clone(), entry.dir.clone());
                self.findings.push(Finding::Reindexed { name, dir });
            }
        }
        Ok(())
    }

    /// The volume that the index text `text` is about, when its directory is gone and neither its id nor its name is known.
    fn absent(&self, text: &str) -> Option<VolumeEntry> {
        let indexed: Indexed = toml::from_str(text).ok()?;
        let record = VolumeRecord::parse(&indexed.record).ok()?;
        let known = self.volumes.contains_key(&record.id) || self.volume_named(&record.name).is_some();
        let there = indexed.dir.exists();
        (!known && !there).then_some(())?;
        Some(VolumeEntry { record, pool: Name::parse(&indexed.pool).ok()?, dir: indexed.dir, present: false })
    }
}

const VOLUME_PREFIX: &str = "volume/";

fn volume_key(id: VolumeId) -> String {
    format!("{VOLUME_PREFIX}{id}")
}

fn peer_key(name: &Name) -> String {
    format!("peer/{name}")
}

fn indexed(entry: &VolumeEntry) -> Result<String, CatalogueError> {
    let record = entry.record.to_text()?;
    let indexed = Indexed { pool: entry.pool.to_string(), dir: entry.dir.clone(), record };
    toml::to_string(&indexed).map_err(|error| IndexError { path: entry.dir.clone(), why: error.to_string() }.into())
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
