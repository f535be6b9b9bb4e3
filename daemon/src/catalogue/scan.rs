//! The truth on disk: which volume directories the pools hold, and which peers were made known.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use tidemark_core::types::VolumeId;

use super::record::{CopyRecord, PeerRecord};
use super::{CopyEntry, Finding};
use crate::config::{Name, PoolConfig};
use crate::{crashsafe, disk};

/// Name of the record in a volume's directory.
pub const VOLUME_FILE: &str = "volume.toml";
const PEER_SUFFIX: &str = ".toml";

/// Volumes and peers by identity and name, and what was wrong.
#[derive(Default)]
pub(super) struct Scan {
    pub volumes: BTreeMap<VolumeId, CopyEntry>,
    pub peers: BTreeMap<Name, PeerRecord>,
    pub findings: Vec<Finding>,
}

impl Scan {
    /// Reads every pool and every peer file. A part that cannot be read is a finding, not an error: the rest must serve.
    pub fn of(pools: &[PoolConfig], peers: &Path) -> Self {
        let mut scan = Self::default();
        for pool in pools {
            match disk::files::volumes_in(&pool.path) {
                Ok(dirs) => dirs.into_iter().for_each(|(id, dir)| scan.volume(pool, id, dir)),
                Err(error) => scan.unreadable(&pool.path, &error),
            }
        }
        scan.settle_names();
        match peer_files(peers) {
            Ok(files) => files.iter().for_each(|file| scan.peer(file)),
            Err(error) => scan.unreadable(peers, &error),
        }
        scan
    }

    fn unreadable(&mut self, path: &Path, why: &dyn std::fmt::Display) {
        self.findings.push(Finding::Unreadable { path: path.to_owned(), why: why.to_string() });
    }

    fn volume(&mut self, pool: &PoolConfig, id: VolumeId, dir: PathBuf) {
        if let Some(first) = self.volumes.get_mut(&id) {
            let taken = Finding::Twice { dir, first: first.dir.clone() };
            first.fault = Some(taken.to_string());
            return self.findings.push(taken);
        }
        let file = dir.join(VOLUME_FILE);
        let (record, fault) = match read_record(&file, id) {
            Ok(record) => (record, None),
            Err(why) => {
                self.unreadable(&file, &why);
                (CopyRecord::unknown(id), Some(format!("{VOLUME_FILE} cannot be read: {why}")))
            }
        };
        self.volumes.insert(id, CopyEntry { record, pool: pool.name.clone(), dir, fault });
    }

    /// Names are unique: the oldest copy keeps one that several have, the others go by their identity. A group and its volumes may
    /// share one.
    fn settle_names(&mut self) {
        let mut by_age: Vec<_> = self.volumes.values().map(|entry| (entry.record.created, entry.record.id)).collect();
        by_age.sort();
        let mut owners: BTreeMap<Name, PathBuf> = BTreeMap::new();
        for (_, id) in by_age {
            let Some(entry) = self.volumes.get_mut(&id) else { continue };
            let taken = entry.record.names().find_map(|name| Some((name.clone(), owners.get(name)?.clone())));
            if let Some((name, by)) = taken {
                let taken = Finding::NameTaken { name, dir: entry.dir.clone(), by };
                entry.record = CopyRecord { created: entry.record.created, ..CopyRecord::unknown(id) };
                entry.fault = Some(taken.to_string());
                self.findings.push(taken);
            } else {
                owners.extend(entry.record.names().map(|name| (name.clone(), entry.dir.clone())));
            }
        }
    }

    fn peer(&mut self, file: &Path) {
        let text = match crashsafe::read(file) {
            Ok(Some(text)) => text,
            Ok(None) => return,
            Err(error) => return self.unreadable(file, &error),
        };
        match PeerRecord::parse(&text) {
            Ok(peer) if file.file_name() == Some(peer_file(&peer.name).as_ref()) => {
                self.peers.insert(peer.name.clone(), peer);
            }
            Ok(peer) => self.unreadable(file, &format!("names peer {} in the file of another", peer.name)),
            Err(error) => self.unreadable(file, &error),
        }
    }
}

fn read_record(file: &Path, id: VolumeId) -> Result<CopyRecord, String> {
    let text = crashsafe::read(file).map_err(|error| error.to_string())?.ok_or("it is not there")?;
    let record = CopyRecord::parse(&text).map_err(|error| error.to_string())?;
    match record.id == id {
        true => Ok(record),
        false => Err(format!("it names volume {} in the directory of another", record.id)),
    }
}

/// The name of a peer's file.
pub(super) fn peer_file(name: &Name) -> String {
    format!("{name}{PEER_SUFFIX}")
}

fn peer_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let is_peer = |path: &PathBuf| path.to_str().is_some_and(|path| path.ends_with(PEER_SUFFIX));
    let mut files = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(is_peer);
    files.sort();
    Ok(files)
}
