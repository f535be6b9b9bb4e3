//! Volumes of this agent: found at start, made, opened on a shard, closed, deleted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_core::event::Event;
use tidemark_core::node::{CreateKind, CreateParams, Node, OpenParams};
use tidemark_core::status::Status;
use tidemark_core::types::{GenId, GroupId, Nonce, Secret, SiteId, VolumeId, WallMs};
use tidemark_core::verb::{Verb, VerbError, VerbOk};
use tokio::sync::oneshot;

use super::record::{self, VOLUME_FILE, VolumeRecord};
use super::{Agent, Entry, wall_now};
use crate::config::{Name, PoolConfig};
use crate::control::{EngineError, FrontendKind, NewVolume, Origin};
use crate::disk::{FileOptions, NewBase, NewFiles, VolumeFiles, files};
use crate::peer::control::NewReplica;
use crate::shard::OpenVolume;

/// Bytes of a log slot of a new volume.
pub const SLOT_BYTES: u64 = 32 << 20;

/// A volume about to be made.
pub(super) struct Making {
    pub name: Name,
    pub id: VolumeId,
    pub group: GroupId,
    pub pool: PoolConfig,
    pub base: NewBase,
    pub base_path: Option<PathBuf>,
    pub frontend: FrontendKind,
    pub params: CreateParams,
}

fn random<const N: usize>() -> Result<[u8; N], EngineError> {
    let mut out = [0; N];
    getrandom::fill(&mut out).map_err(|e| EngineError::Failed(format!("no random numbers: {e}")))?;
    Ok(out)
}

pub(super) fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::Failed(error.to_string())
}

fn frontend_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::Auto => "auto",
        FrontendKind::Nbd => "nbd",
        FrontendKind::Fuse => "fuse",
    }
}

pub(super) fn frontend_of(name: &str) -> FrontendKind {
    match name {
        "nbd" => FrontendKind::Nbd,
        "fuse" => FrontendKind::Fuse,
        _ => FrontendKind::Auto,
    }
}

impl Agent {
    /// Opens every volume that the pools hold. A volume that cannot be opened stays known, with the reason.
    pub async fn open_all(self: &Arc<Self>) {
        for pool in self.config.pools.clone() {
            let found = match files::volumes_in(&pool.path) {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(pool = %pool.name, %error, "the pool cannot be read");
                    continue;
                }
            };
            for (id, dir) in found {
                self.open_found(&pool, id, &dir).await;
            }
        }
    }

    async fn open_found(self: &Arc<Self>, pool: &PoolConfig, id: VolumeId, dir: &Path) {
        let (name, record) = match named_record(dir) {
            Ok(found) => found,
            Err(why) => return self.know_unrecorded(pool, id, dir, why),
        };
        let entry = self.entry(name, id, pool, dir, &record);
        self.state().volumes.insert(id, entry);
        if let Err(error) = self.open_volume(id).await {
            tracing::error!(%id, %error, "the volume cannot be opened");
            self.set_closed(id, Some(error.to_string()));
            return;
        }
        if let Some(kind) = record.attached {
            self.reattach(id, frontend_of(&kind));
        }
    }

    /// A volume whose record is damaged is known by its id, and left alone.
    fn know_unrecorded(&self, pool: &PoolConfig, id: VolumeId, dir: &Path, why: String) {
        tracing::error!(%id, error = why, "the volume is left alone");
        let Ok(name) = Name::parse(&id.to_string()) else { return };
        let mut entry = self.entry(name, id, pool, dir, &VolumeRecord::unknown(id));
        entry.closed = Some(why);
        self.state().volumes.insert(id, entry);
    }

    fn entry(&self, name: Name, id: VolumeId, pool: &PoolConfig, dir: &Path, record: &VolumeRecord) -> Entry {
        let shard = self.state().volumes.len() % self.shards.len();
        Entry {
            name,
            id,
            group: GroupId::parse(&record.group).unwrap_or_default(),
            pool: pool.name.clone(),
            dir: dir.to_owned(),
            base: record.base.clone(),
            adopted: record.adopted,
            created: WallMs(record.created_ms),
            frontend: frontend_of(&record.frontend),
            shard: shard as u16,
            peer_site: None,
            closed: None,
            open: None,
        }
    }

    fn set_closed(&self, id: VolumeId, why: Option<String>) {
        if let Some(entry) = self.state().volumes.get_mut(&id) {
            entry.closed = why;
        }
    }

    /// Opens a known volume on its shard and keeps it connected to its peer.
    pub(super) async fn open_volume(self: &Arc<Self>, id: VolumeId) -> Result<(), EngineError> {
        let (dir, shard, name) = {
            let state = self.state();
            let entry = state.volumes.get(&id).ok_or_else(|| EngineError::NoVolume(id.to_string()))?;
            (entry.dir.clone(), entry.shard, entry.name.clone())
        };
        let (site, node, boot) = (self.site, self.node, self.boot);
        let seed = random()?;
        let opened = tokio::task::spawn_blocking(move || -> Result<_, EngineError> {
            let files = VolumeFiles::open(&dir, FileOptions::default()).map_err(failed)?;
            let params = OpenParams {
                volume: id,
                site,
                node,
                boot,
                rng_seed: seed,
                wall: wall_now(),
                superblock: files.superblock().map_err(failed)?,
                config: files.config().map_err(failed)?,
                slots: files.slots().map_err(failed)?,
                base_size: files.base_size(),
                tail_bytes: tidemark_core::node::TAIL_BYTES,
            };
            Ok((files, params))
        });
        let (files, params) = opened.await.map_err(failed)??;
        let disk = self.disk.clone();
        let answer = self.shard(shard).ask(move |shard, answer| {
            let result = Node::open(shard.now(), params).map(|node| {
                let events = events(id, name);
                let volume = shard.open(OpenVolume { id, node, files, events, disk });
                volume.status().peer
            });
            let _ = answer.send(result); // the asker went away: the volume is open all the same
        });
        let peer = answer.await.map_err(failed)?.map_err(failed)?;
        if let Some(entry) = self.state().volumes.get_mut(&id) {
            (entry.closed, entry.peer_site) = (None, peer);
        }
        self.keep_connected(id);
        Ok(())
    }

    /// The status of an open volume.
    pub(super) async fn status_of(&self, id: VolumeId, shard: u16) -> Result<Status, EngineError> {
        let asked = self.shard(shard).ask(move |shard, answer| {
            let _ = answer.send(shard.volume(id).map(|v| v.status())); // the asker went away
        });
        asked.await.map_err(|_| EngineError::Stopping)?.ok_or_else(|| EngineError::NoVolume(id.to_string()))
    }

    /// A verb on the core.
    pub(super) async fn verb_on(&self, id: VolumeId, shard: u16, verb: Verb) -> Result<VerbOk, EngineError> {
        let asked = self.shard(shard).ask::<Result<VerbOk, VerbError>>(move |shard, answer| match shard.volume(id) {
            Some(volume) => volume.verb(verb, answer),
            None => {
                let error = VerbError::Interrupted("the volume is not open".into());
                let _ = answer.send(Err(error)); // the asker went away
            }
        });
        Ok(asked.await.map_err(|_| EngineError::Stopping)??)
    }

    fn pool(&self, name: Option<&Name>) -> Result<PoolConfig, EngineError> {
        let pools = &self.config.pools;
        match name {
            Some(name) => {
                pools.iter().find(|p| p.name == *name).cloned().ok_or_else(|| EngineError::NoPool(name.to_string()))
            }
            None => pools.first().cloned().ok_or_else(|| EngineError::NoPool("(none configured)".into())),
        }
    }

    pub(super) fn name_is_free(&self, name: &Name) -> Result<(), EngineError> {
        let state = self.state();
        if state.stopping {
            return Err(EngineError::Stopping);
        }
        match state.volumes.values().any(|v| v.name == *name) {
            true => Err(EngineError::Exists(format!("there is a volume {name} here already"))),
            false => Ok(()),
        }
    }

    /// A new volume, Primary here.
    pub(super) async fn make_primary(
        self: &Arc<Self>,
        new: NewVolume,
        peer: Option<SiteId>,
    ) -> Result<VolumeId, EngineError> {
        self.name_is_free(&new.name)?;
        let id = VolumeId(random()?);
        let group = GroupId(random()?);
        let (base, base_path, size, adopted) = base_of(&new.origin)?;
        let policy = new.policy.applied_to(self.config.defaults.policy());
        let kind = CreateKind::Primary { generation: GenId(random()?), nonce: Nonce(random()?) };
        let params = CreateParams {
            volume: id,
            group,
            site: self.site,
            node: self.node,
            secret: Secret(random()?),
            size,
            slot_bytes: slot_bytes(policy.log_bytes),
            policy,
            peer,
            kind,
            adopted,
        };
        let frontend = new.policy.frontend.unwrap_or_default();
        let pool = self.pool(new.pool.as_ref())?;
        self.make(Making { name: new.name, id, group, pool, base, base_path, frontend, params }).await?;
        Ok(id)
    }

    /// The copy of a peer's volume.
    pub(super) async fn make_replica(self: &Arc<Self>, peer: SiteId, new: NewReplica) -> Result<(), EngineError> {
        let known = self.state().volumes.get(&new.volume).map(|v| v.group);
        if let Some(group) = known {
            return match group == new.group {
                true => Ok(()),
                false => Err(EngineError::Exists("another volume of this identity is here".into())),
            };
        }
        let name = Name::parse(&new.name).map_err(|_| EngineError::Failed("impossible volume name".into()))?;
        self.name_is_free(&name)?;
        if new.size == 0
            || !new.size.is_multiple_of(512)
            || !new.slot_bytes.is_multiple_of(4096)
            || new.slot_bytes < 65536
        {
            return Err(EngineError::Failed("impossible size".into()));
        }
        let params = CreateParams {
            volume: new.volume,
            group: new.group,
            site: self.site,
            node: self.node,
            secret: new.secret,
            size: new.size,
            slot_bytes: new.slot_bytes,
            policy: new.policy,
            peer: Some(peer),
            kind: CreateKind::Replica { config: new.config },
            adopted: false,
        };
        let base = NewBase::Image { size: new.size };
        let (id, group, pool) = (new.volume, new.group, self.pool(None)?);
        let frontend = FrontendKind::Auto;
        self.make(Making { name, id, group, pool, base, base_path: None, frontend, params }).await
    }

    async fn make(self: &Arc<Self>, making: Making) -> Result<(), EngineError> {
        let Making { name, id, group, pool, base, base_path, frontend, params } = making;
        let dir = pool.path.join(id.to_string());
        let record = VolumeRecord {
            name: name.to_string(),
            id: id.to_string(),
            group: group.to_string(),
            base: base_path,
            adopted: params.adopted,
            created_ms: wall_now().0,
            frontend: frontend_name(frontend).into(),
            attached: None,
        };
        let new = Node::create(&params);
        let text = record::text_of(&record).map_err(failed)?;
        let target = dir.clone();
        let task = tokio::task::spawn_blocking(move || -> Result<(), EngineError> {
            // The record is part of the volume from its first moment: a volume without one could neither be opened nor made
            // again.
            let others = vec![(VOLUME_FILE, text.into())];
            let new = NewFiles { superblock: new.superblock, config: new.config, others };
            VolumeFiles::create(&target, &base, &new, FileOptions::default()).map(drop).map_err(failed)
        });
        task.await.map_err(failed)??;
        let entry = self.entry(name, id, &pool, &dir, &record);
        self.state().volumes.insert(id, entry);
        self.open_volume(id).await
    }

    /// Closes a volume: everything written is durable, its files are free. The entry stays.
    pub(super) async fn close_volume(&self, id: VolumeId, shard: u16) -> Result<(), EngineError> {
        let (gone, is_gone) = oneshot::channel();
        let known = self.shard(shard).ask(move |shard, answer| {
            let volume = shard.volume(id);
            if let Some(volume) = &volume {
                volume.on_gone(gone);
                volume.verb(Verb::Close, oneshot::channel().0);
            }
            let _ = answer.send(volume.is_some()); // the asker went away
        });
        if known.await.map_err(|_| EngineError::Stopping)? {
            let _ = is_gone.await; // an error says the same: it is gone
        }
        Ok(())
    }

    /// Closes everything in order; for a stop of the agent.
    pub async fn close_all(&self) {
        self.state().stopping = true;
        let all: Vec<(VolumeId, u16)> = self.state().volumes.values().map(|v| (v.id, v.shard)).collect();
        for (id, shard) in &all {
            self.close_frontend(*id).await;
            let closed = tokio::time::timeout(self.config.limits.stop_timeout, self.close_volume(*id, *shard)).await;
            if closed.is_err() {
                tracing::warn!(%id, "the volume did not close in time; it recovers at the next start");
            }
        }
    }

    /// Remembers whether the frontend is to be open.
    pub(super) fn remember_attached(&self, id: VolumeId, kind: Option<FrontendKind>) {
        let Some(dir) = self.state().volumes.get(&id).map(|v| v.dir.clone()) else { return };
        let path = dir.join(VOLUME_FILE);
        let written = record::read::<VolumeRecord>(&path).and_then(|mut record| {
            record.attached = kind.map(|k| frontend_name(k).into());
            record::write(&path, &record)
        });
        if let Err(error) = written {
            tracing::warn!(%id, %error, "volume.toml cannot be updated");
        }
    }
}

/// The record in a volume's directory, with its name.
fn named_record(dir: &Path) -> Result<(Name, VolumeRecord), String> {
    let record: VolumeRecord =
        record::read(&dir.join(VOLUME_FILE)).map_err(|error| format!("{VOLUME_FILE} cannot be read: {error}"))?;
    let name = Name::parse(&record.name).map_err(|error| format!("{VOLUME_FILE} holds an impossible name: {error}"))?;
    Ok((name, record))
}

/// The slot size of a new volume: 32 MiB, smaller for a small log, so that it has at least sixteen.
fn slot_bytes(log_bytes: u64) -> u64 {
    let mut slot = SLOT_BYTES;
    while slot > (1 << 20) && log_bytes / slot < 16 {
        slot /= 2;
    }
    slot
}

fn base_of(origin: &Origin) -> Result<(NewBase, Option<PathBuf>, u64, bool), EngineError> {
    match origin {
        Origin::Empty { size, base: None } => Ok((NewBase::Image { size: *size }, None, *size, false)),
        Origin::Empty { size, base: Some(path) } => {
            if !path.exists() {
                let file = std::fs::File::create_new(path).map_err(failed)?;
                file.set_len(*size).and_then(|()| file.sync_all()).map_err(failed)?;
            }
            Ok((NewBase::Adopt { path: path.clone() }, Some(path.clone()), *size, false))
        }
        Origin::Adopt { path } => {
            let info = crate::disk::probe_base(path).map_err(failed)?;
            let size = info.size / 512 * 512;
            Ok((NewBase::Adopt { path: path.clone() }, Some(path.clone()), size, true))
        }
    }
}

/// A change of state of a core becomes a line in the log.
fn events(id: VolumeId, name: Name) -> crate::shard::VolumeEvents {
    Box::new(move |event| match event {
        Event::Recovered { records, cut_bytes } => {
            tracing::info!(volume = %name, %id, records, cut_bytes, "log recovered");
        }
        Event::Role { from, to } => tracing::info!(volume = %name, %id, from, to, "role changed"),
        Event::Link { state } => tracing::info!(volume = %name, %id, state, "link changed"),
        Event::Alarm { code, detail } => tracing::error!(volume = %name, %id, code, detail, "alarm"),
    })
}
