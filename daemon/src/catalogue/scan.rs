//! The truth on disk: which volume directories the pools hold, and which peers were made known.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use tidemark_core::types::VolumeId;

use super::record::{PeerRecord, VolumeRecord};
use super::{Finding, VolumeEntry};
use crate::config::{Name, PoolConfig};
use crate::crashsafe;

/// In a volume's directory.
pub(super) const VOLUME_FILE: &str = "volume.toml";
const PEER_SUFFIX: &str = ".toml";

/// Volumes and peers by identity and name, and what was wrong.
#[derive(Default)]
pub(super) struct Scan {
    pub volumes: BTreeMap<VolumeId, VolumeEntry>,
    pub peers: BTreeMap<Name, PeerRecord>,
    pub findings: Vec<Finding>,
}

impl Scan {
    /// Reads every pool and every peer file. A part that cannot be read is a finding, not an error: the rest must serve.
    pub fn of(pools: &[PoolConfig], peers: &Path) -> Self {
        let mut scan = Self::default();
        for pool in pools {
            let listed = volume_dirs(&pool.path);
            match listed {
                Ok(dirs) => dirs.into_iter().for_each(|(id, dir)| scan.volume(pool, id, dir)),
                Err(error) => scan.unreadable(&pool.path, &error),
            }
        }
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
        let file = dir.join(VOLUME_FILE);
        let record = match crashsafe::read(&file) {
            Ok(None) => return self.findings.push(Finding::Unnamed { dir }),
            Ok(Some(text)) => VolumeRecord::parse(&text).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match record {
            Ok(record) if record.id == id => {
                self.place(VolumeEntry { record, pool: pool.name.clone(), dir, present: true })
            }
            Ok(record) => self.unreadable(&file, &format!("names volume {} in the directory of another", record.id)),
            Err(why) => self.unreadable(&file, &why),
        }
    }

    /// Names and ids are unique: the older volume keeps a name, the first pool keeps an id.
    fn place(&mut self, entry: VolumeEntry) {
        if let Some(first) = self.volumes.get(&entry.record.id) {
            let taken = Finding::Twice { dir: entry.dir, first: first.dir.clone() };
            return self.findings.push(taken);
        }
        let rival = self.volumes.values().find(|other| other.record.name == entry.record.name);
        let Some(rival) = rival.map(|other| other.record.id) else {
            self.volumes.insert(entry.record.id, entry);
            return;
        };
        let age = |entry: &VolumeEntry| (entry.record.created, entry.record.id);
        let newer_is_new = age(&entry) > age(&self.volumes[&rival]);
        let (older, newer) = match newer_is_new {
            true => (self.volumes[&rival].dir.clone(), entry),
            false => {
                let older = entry.dir.clone();
                self.volumes.insert(entry.record.id, entry);
                let Some(newer) = self.volumes.remove(&rival) else { return };
                (older, newer)
            }
        };
        self.findings.push(Finding::NameTaken { name: newer.record.name, dir: newer.dir, by: older });
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

/// The name of a peer's file.
pub(super) fn peer_file(name: &Name) -> String {
    format!("{name}{PEER_SUFFIX}")
}

fn volume_dirs(pool: &Path) -> io::Result<Vec<(VolumeId, PathBuf)>> {
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir(pool)? {
        let path = entry?.path();
        let id = path.file_name().and_then(|name| VolumeId::parse(name.to_str()?));
        if let Some(id) = id.filter(|_| path.is_dir()) {
            dirs.push((id, path));
        }
    }
    dirs.sort();
    Ok(dirs)
}

fn peer_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let is_peer = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.ends_with(PEER_SUFFIX) && !name.starts_with('.'))
    };
    let mut files = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(is_peer);
    files.sort();
    Ok(files)
}
