//! Volumes of this agent: found at start, made, opened on a shard, closed, deleted.

use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tidemark_core::event::Event;
use tidemark_core::format::superblock::{self, Superblock};
use tidemark_core::layout::Layout;
use tidemark_core::node::{CreateKind, CreateParams, Node, OpenParams};
use tidemark_core::status::Status;
use tidemark_core::types::{SiteId, VolumeId};
use tidemark_core::verb::{Verb, VerbError, VerbOk};
use tokio::sync::oneshot;

use super::empty_base::EmptyBase;
use super::{Agent, Entry, refused, wall_now};
use crate::catalogue::{Catalogue, VOLUME_FILE, VolumeEntry, VolumeRecord};
use crate::config::{Name, PoolConfig};
use crate::control::{EngineError, FrontendKind};
use crate::disk::{FileOptions, NewBase, NewFiles, NewLog, VolumeFiles, files};
use crate::lock::lock;
use crate::peer::control::NewReplica;
use crate::shard::OpenVolume;

/// Bytes of a log slot of a new volume.
pub const SLOT_BYTES: u64 = 32 << 20;

/// Longer than a stream to the peer is tried to be opened.
const LETTING_GO: Duration = Duration::from_secs(10);

/// A volume about to be made.
pub(super) struct Making {
    pub name: Name,
    pub id: VolumeId,
    pub pool: PoolConfig,
    pub base: NewBase,
    /// What has to be so before, where the base of an empty volume was named.
    pub empty: Option<EmptyBase>,
    pub frontend: FrontendKind,
    pub params: CreateParams,
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], EngineError> {
    let mut out = [0; N];
    getrandom::fill(&mut out).map_err(|e| EngineError::Failed(format!("no random numbers: {e}")))?;
    Ok(out)
}

pub(super) fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::Failed(error.to_string())
}

impl Agent {
    /// Opens every volume that the catalogue knows. One that cannot be opened stays known, with the reason.
    pub async fn open_all(self: &Arc<Self>) {
        self.end_stale_devices().await;
        let known: Vec<VolumeEntry> = lock(&self.catalogue).volumes().cloned().collect();
        for entry in known {
            self.open_known(entry).await;
        }
    }

    async fn open_known(self: &Arc<Self>, known: VolumeEntry) {
        let (id, attached) = (known.record.id, known.record.attached);
        self.know(&known);
        if known.fault.is_some() {
            return;
        }
        if let Err(error) = self.open_volume(id).await {
            tracing::error!(%id, %error, "the volume cannot be opened");
            self.set_closed(id, Some(error.to_string()));
            return;
        }
        if let Some(kind) = attached {
            self.reattach(id, kind);
        }
    }

    fn know(&self, known: &VolumeEntry) {
        let mut state = self.state();
        let shard = state.volumes.len() % self.shards.len();
        let entry = Entry {
            name: known.record.name.clone(),
            id: known.record.id,
            group: None,
            pool: known.pool.clone(),
            dir: known.dir.clone(),
            adopted: false,
            created: known.record.created,
            frontend: known.record.frontend,
            shard: shard as u16,
            peer_site: None,
            closed: known.fault.clone(),
            open: None,
            attaching: Arc::default(),
            changing: Arc::default(),
        };
        state.volumes.insert(entry.id, entry);
    }

    /// Lets nobody mount the base of an open volume by what its file system is called.
    fn hide_base(&self, dir: &Path, name: &Name) {
        let base = files::base_path(dir);
        if let Err(error) = self.bases.add(&base, name) {
            tracing::warn!(volume = %name, base = %base.display(), %error, "the base is not hidden from mounting by UUID");
        }
    }

    /// Ends [`hide_base`](Self::hide_base).
    pub(super) fn unhide_base(&self, id: VolumeId) {
        let Some(dir) = self.state().volumes.get(&id).map(|entry| entry.dir.clone()) else { return };
        let base = files::base_path(&dir);
        if let Err(error) = self.bases.remove(&base) {
            tracing::warn!(%id, base = %base.display(), %error, "the base stays hidden from mounting by UUID");
        }
    }

    pub(super) fn set_closed(&self, id: VolumeId, why: Option<String>) {
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
        let lease = self.arbiter.as_ref().map(|arbiter| arbiter.lease.terms());
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
                bases: vec![(id, files.base_size())],
                tail_bytes: tidemark_core::node::TAIL_BYTES,
                lease,
            };
            Ok((files, params))
        });
        let (files, params) = opened.await.map_err(failed)??;
        let facts = superblock_of(&params.superblock);
        self.hide_base(files.dir(), &name);
        let disk = self.disk.clone();
        let witness = self.arbiter.as_ref().map(|arbiter| (arbiter.witness.clone(), self.runtime.clone()));
        let agent = Arc::downgrade(self);
        let answer = self.shard(shard).ask(move |shard, answer| {
            let result = Node::open(shard.now(), params).map(|node| {
                let events = events(agent, id, name);
                let volume = shard.open(OpenVolume { id, node, files, events, disk, witness });
                volume.status().peer
            });
            let _ = answer.send(result); // the asker went away: the volume is open all the same
        });
        let peer = answer.await.map_err(failed)?.map_err(failed)?;
        if let Some(entry) = self.state().volumes.get_mut(&id) {
            (entry.closed, entry.peer_site) = (None, peer);
            if let Some(superblock) = facts {
                (entry.group, entry.adopted) = (Some(superblock.group), superblock.adopted);
            }
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

    pub(super) fn pool(&self, name: Option<&Name>) -> Result<PoolConfig, EngineError> {
        let pools = &self.config.pools;
        match name {
            Some(name) => {
                pools.iter().find(|p| p.name == *name).cloned().ok_or_else(|| EngineError::NoPool(name.to_string()))
            }
            None => pools.first().cloned().ok_or_else(|| EngineError::NoPool("(none configured)".into())),
        }
    }

    /// The copy of a peer's volume.
    pub(super) async fn make_replica(self: &Arc<Self>, peer: SiteId, new: NewReplica) -> Result<(), EngineError> {
        let known = self.state().volumes.get(&new.volume).map(|v| v.group);
        if let Some(group) = known {
            // Of one that was never open the group is not known; its identity is.
            return match group.is_none_or(|group| group == new.group) {
                true => Ok(()),
                false => Err(EngineError::Exists("another volume of this identity is here".into())),
            };
        }
        let name = Name::parse(&new.name).map_err(|_| EngineError::Failed("impossible volume name".into()))?;
        let is_slot = (64 << 10..=1 << 30).contains(&new.slot_bytes) && new.slot_bytes.is_multiple_of(4096);
        if new.size == 0 || new.size > i64::MAX as u64 || !new.size.is_multiple_of(512) || !is_slot {
            return Err(EngineError::Failed("impossible size".into()));
        }
        let params = CreateParams {
            volume: new.volume,
            group: new.group,
            site: self.site,
            node: self.node,
            secret: new.secret,
            layout: Layout::one(new.volume, new.size),
            slot_bytes: new.slot_bytes,
            policy: new.policy,
            peer: Some(peer),
            kind: CreateKind::Replica { config: new.config },
            adopted: false,
        };
        let base = NewBase::Image { size: new.size };
        let (id, pool) = (new.volume, self.pool(None)?);
        let frontend = FrontendKind::Auto;
        self.make(Making { name, id, pool, base, empty: None, frontend, params }).await
    }

    /// Makes a volume and opens it. Goes on to its end when nobody waits for it any more: what is on disk is known.
    pub(super) async fn make(self: &Arc<Self>, making: Making) -> Result<(), EngineError> {
        if self.state().stopping {
            return Err(EngineError::Stopping);
        }
        let (agent, id, limit) = (Arc::clone(self), making.id, self.config.limits.volumes);
        let made = self.runtime.spawn(async move {
            let catalogue = Arc::clone(&agent.catalogue);
            let made = tokio::task::spawn_blocking(move || make_files(&catalogue, making, limit)).await;
            agent.know(&made.map_err(failed)??);
            let opened = agent.open_volume(id).await;
            opened.inspect_err(|error| agent.set_closed(id, Some(error.to_string())))
        });
        made.await.map_err(failed)?
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

    /// Waits until the last hand has let go of a closed volume's files: a stream to the peer that ends, or is being opened. One that
    /// takes longer shows as a refusal of what comes next.
    pub(super) async fn until_free(&self, id: VolumeId) {
        let Some(dir) = self.state().volumes.get(&id).map(|entry| entry.dir.clone()) else { return };
        let until = Instant::now() + LETTING_GO;
        while !files::is_free(&dir) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Closes everything in order, the catalogue last; for a stop of the agent, after [`Agent::release_devices`].
    pub async fn close_all(&self) {
        let all: Vec<(VolumeId, u16)> = self.state().volumes.values().map(|v| (v.id, v.shard)).collect();
        for (id, shard) in &all {
            self.close_frontend(*id).await;
            let closed = tokio::time::timeout(self.config.limits.stop_timeout, self.close_volume(*id, *shard)).await;
            if closed.is_err() {
                tracing::warn!(%id, "the volume did not close in time; it recovers at the next start");
            }
        }
        lock(&self.catalogue).close();
    }

    /// Remembers whether the frontend is to be open.
    pub(super) async fn remember_attached(&self, id: VolumeId, kind: Option<FrontendKind>) {
        if let Err(error) = self.keep(move |catalogue| catalogue.set_attached(id, kind)).await {
            tracing::warn!(%id, %error, "what is attached is not remembered");
        }
    }
}

/// Makes a volume's files, its record among them, and makes it known. A crash leaves all of it or nothing.
fn make_files(catalogue: &Mutex<Catalogue>, making: Making, limit: u32) -> Result<VolumeEntry, EngineError> {
    let Making { name, id, pool, base, empty, frontend, params } = making;
    lock(catalogue).reserve(id, &name, limit).map_err(refused)?;
    let prepared = match empty.map(|empty| empty.prepare()).transpose() {
        Ok(prepared) => prepared.flatten(),
        Err(error) => {
            lock(catalogue).unreserve(id);
            return Err(error);
        }
    };
    let record = VolumeRecord { id, name, created: wall_now(), frontend, attached: None };
    let dir = pool.path.join(id.to_string());
    let made = write_files(&pool, &dir, &base, &record, &params);
    let mut catalogue = lock(catalogue);
    if let Err(error) = made {
        catalogue.unreserve(id);
        if let Some(file) = prepared {
            file.remove();
        }
        return Err(error);
    }
    catalogue.enlist(&pool.name, &dir, record).map_err(refused)
}

fn write_files(
    pool: &PoolConfig,
    dir: &Path,
    base: &NewBase,
    record: &VolumeRecord,
    params: &CreateParams,
) -> Result<(), EngineError> {
    // The record is part of the volume from its first moment: a volume without one could neither be opened nor made again.
    let others = vec![(VOLUME_FILE, record.to_text().map_err(failed)?.into())];
    let log = pool.log_path.as_deref().map(|logs| new_log(logs, record.id)).transpose()?;
    let new = Node::create(params);
    let new = NewFiles { superblock: new.superblock, config: new.config, others, log };
    VolumeFiles::create(dir, base, &new, FileOptions::default()).map(drop).map_err(failed)
}

/// A log that is not beside its volume. Its name is new each time: what a copy of this volume left there before, or another agent
/// has, is nobody's business here.
fn new_log(logs: &Path, id: VolumeId) -> Result<NewLog, EngineError> {
    let token = u64::from_le_bytes(random()?);
    let name = format!("{id}-{token:016x}");
    Ok(NewLog { path: logs.join(&name), identity: format!("tidemark log {name}\n") })
}

/// The newest superblock in the file's content; none: damaged.
pub(super) fn superblock_of(file: &[u8]) -> Option<Superblock> {
    Superblock::decode(superblock::FILE.decode(file).ok()?.content).ok()
}

/// The slot size of a new volume: 32 MiB, smaller for a small log, so that it has at least sixteen.
pub(super) fn slot_bytes(log_bytes: u64) -> u64 {
    let mut slot = SLOT_BYTES;
    while slot > (1 << 20) && log_bytes / slot < 16 {
        slot /= 2;
    }
    slot
}

/// A change of state of a core becomes a line in the log; one that ends its serving also closes what is open.
fn events(agent: Weak<Agent>, id: VolumeId, name: Name) -> crate::shard::VolumeEvents {
    Box::new(move |event| match event {
        Event::Recovered { records, cut_bytes } => {
            tracing::info!(volume = %name, %id, records, cut_bytes, "log recovered");
        }
        Event::Role { from, to, serves } => {
            tracing::info!(volume = %name, %id, from, to, "role changed");
            if let (false, Some(agent)) = (*serves, agent.upgrade()) {
                let runtime = agent.runtime.clone();
                runtime.spawn(async move { agent.close_fenced(id).await });
            }
        }
        Event::Link { state } => tracing::info!(volume = %name, %id, state, "link changed"),
        Event::Alarm { code, detail } => tracing::error!(volume = %name, %id, code, detail, "alarm"),
    })
}
