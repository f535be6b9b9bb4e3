//! Volumes of this agent: found at start, made, opened on a shard, closed, deleted.

use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tidemark_core::event::Event;
use tidemark_core::format::superblock::{self, Superblock};
use tidemark_core::node::{CreateKind, CreateParams, Node, OpenParams};
use tidemark_core::status::Status;
use tidemark_core::types::{SiteId, VolumeId};
use tidemark_core::verb::{Verb, VerbError, VerbOk};
use tokio::sync::oneshot;

use super::empty_base::EmptyBase;
use super::{Agent, Entry, GroupCopy, refused, wall_now};
use crate::catalogue::{Catalogue, CopyEntry, CopyRecord, Joined, VOLUME_FILE, VolumeRecord};
use crate::config::{Name, PoolConfig};
use crate::control::{EngineError, FrontendKind};
use crate::disk::{FileOptions, NewBase, NewFiles, NewLog, VolumeFiles, files};
use crate::lock::lock;
use crate::peer::control::NewReplica;
use crate::shard::{OpenVolume, Volume};

/// Bytes of a log slot of a new volume.
pub const SLOT_BYTES: u64 = 32 << 20;

/// Longer than a stream to the peer is tried to be opened.
const LETTING_GO: Duration = Duration::from_secs(10);

/// A copy about to be made.
pub(super) struct Making {
    pub record: CopyRecord,
    pub pool: PoolConfig,
    pub base: NewBase,
    /// What has to be so before, where the base of an empty volume was named.
    pub empty: Option<EmptyBase>,
    pub params: CreateParams,
}

/// The record of a volume that is made now.
pub(super) fn new_record(id: VolumeId, name: Name, frontend: FrontendKind) -> VolumeRecord {
    VolumeRecord { id, name, created: wall_now(), frontend, attached: None, pending: false }
}

/// A volume of `copy` as its record says.
pub(super) fn entry_of(copy: VolumeId, record: &VolumeRecord) -> Entry {
    Entry {
        name: record.name.clone(),
        id: record.id,
        copy,
        created: record.created,
        frontend: record.frontend,
        pending: record.pending,
        leaving: false,
        open: None,
        attaching: Arc::default(),
    }
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
        let known: Vec<CopyEntry> = lock(&self.catalogue).copies().cloned().collect();
        for entry in known {
            self.open_known(entry).await;
        }
    }

    async fn open_known(self: &Arc<Self>, known: CopyEntry) {
        let id = known.record.id;
        self.know(&known);
        if known.fault.is_some() {
            return;
        }
        if let Err(error) = self.open_volume(id).await {
            tracing::error!(%id, %error, "the volume cannot be opened");
            self.set_closed(id, Some(error.to_string()));
            return;
        }
        for volume in known.record.volumes {
            if let Some(kind) = volume.attached {
                self.reattach(volume.id, kind);
            }
        }
    }

    fn know(&self, known: &CopyEntry) {
        let mut state = self.state();
        let shard = state.copies.len() % self.shards.len();
        let copy = GroupCopy {
            name: known.record.name.clone(),
            id: known.record.id,
            group: None,
            pool: known.pool.clone(),
            dir: known.dir.clone(),
            adopted: false,
            shard: shard as u16,
            peer_site: None,
            members: None,
            closed: known.fault.clone(),
            changing: Arc::default(),
            viewing: Arc::default(),
        };
        state.volumes.extend(known.record.volumes.iter().map(|volume| (volume.id, entry_of(copy.id, volume))));
        state.copies.insert(copy.id, copy);
    }

    /// Lets nobody mount a base of an open copy by what its file system is called.
    pub(super) fn hide_base(&self, dir: &Path, volume: VolumeId, name: &Name) {
        let base = files::base_path_of(dir, volume);
        if let Err(error) = self.bases.add(&base, name) {
            tracing::warn!(volume = %name, base = %base.display(), %error, "the base is not hidden from mounting by UUID");
        }
    }

    /// Ends [`hide_base`](Self::hide_base) for a volume.
    pub(super) fn unhide_base(&self, dir: &Path, volume: VolumeId) {
        let base = files::base_path_of(dir, volume);
        if !base.exists() {
            return;
        }
        if let Err(error) = self.bases.remove(&base) {
            tracing::warn!(%volume, base = %base.display(), %error, "the base stays hidden from mounting by UUID");
        }
    }

    pub(super) fn set_closed(&self, id: VolumeId, why: Option<String>) {
        if let Some(copy) = self.state().copies.get_mut(&id) {
            copy.closed = why;
        }
    }

    /// Opens a known copy on its shard and keeps it connected to its peer.
    pub(super) async fn open_volume(self: &Arc<Self>, id: VolumeId) -> Result<(), EngineError> {
        let (dir, shard, name) = {
            let mut state = self.state();
            let copy = state.copies.get_mut(&id).ok_or_else(|| EngineError::NoVolume(id.to_string()))?;
            copy.viewing = Arc::default();
            (copy.dir.clone(), copy.shard, copy.name.clone())
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
                footers: files.footers().map_err(failed)?,
                bases: files.bases(),
                tail_bytes: tidemark_core::node::TAIL_BYTES,
                lease,
            };
            Ok((files, params))
        });
        let (files, params) = opened.await.map_err(failed)??;
        let facts = superblock_of(&params.superblock);
        for (volume, _) in files.bases() {
            self.hide_base(files.dir(), volume, &name);
        }
        let disk = self.disk.clone();
        let witness = self.arbiter.as_ref().map(|arbiter| (arbiter.witness.clone(), self.runtime.clone()));
        let agent = Arc::downgrade(self);
        let answer = self.shard(shard).ask(move |shard, answer| {
            let result = Node::open(shard.now(), params).map(|node| {
                let (layouts, events) = (layouts(agent.clone(), id), events(agent, id, name));
                let volume = shard.open(OpenVolume { id, node, files, events, layouts, disk, witness });
                volume.status().peer
            });
            let _ = answer.send(result); // the asker went away: the volume is open all the same
        });
        let peer = answer.await.map_err(failed)?.map_err(failed)?;
        if let Some(copy) = self.state().copies.get_mut(&id) {
            (copy.closed, copy.peer_site) = (None, peer);
            if let Some(superblock) = facts {
                (copy.group, copy.adopted) = (Some(superblock.group), superblock.adopted);
                copy.members = superblock.members;
            }
        }
        self.take_layout(id).await;
        self.keep_connected(id);
        self.keep_led(id);
        Ok(())
    }

    /// The status of an open copy.
    pub(super) async fn status_of(&self, id: VolumeId, shard: u16) -> Result<Status, EngineError> {
        self.on_copy(id, shard, |copy| copy.status()).await
    }

    /// What `f` gives, called on the shard of an open copy.
    pub(super) async fn on_copy<T: Send + 'static>(
        &self,
        id: VolumeId,
        shard: u16,
        f: impl FnOnce(&Volume) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let asked = self.shard(shard).ask(move |shard, answer| {
            let _ = answer.send(shard.volume(id).map(|copy| f(&copy))); // the asker went away
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
        let known = self.state().copies.get(&new.volume).map(|copy| (copy.group, copy.members.clone()));
        if let Some((group, members)) = known {
            // Of one that was never open the group is not known; its identity is.
            return match group.is_none_or(|group| group == new.group && members == new.members) {
                true => Ok(()),
                false => Err(EngineError::Exists("another volume of this identity is here".into())),
            };
        }
        let wrong = |what: &str| EngineError::Failed(format!("impossible {what}"));
        if let Some(members) = &new.members {
            self.membership(&members.nodes, &members.peers)?;
            if members.own() != self.node {
                return Err(wrong("number of a member: it is on another node"));
            }
        }
        let is_slot = (64 << 10..=1 << 30).contains(&new.slot_bytes) && new.slot_bytes.is_multiple_of(4096);
        if !is_slot {
            return Err(wrong("size of a slot"));
        }
        let group = Name::parse(&new.name).map_err(|_| wrong("group name"))?;
        let mut volumes = Vec::new();
        for volume in new.layout.volumes() {
            let named = new.names.iter().find(|(id, _)| *id == volume).map(|(_, name)| name.clone());
            let name = Name::parse(&named.unwrap_or_else(|| volume.to_string())).map_err(|_| wrong("volume name"))?;
            volumes.push(new_record(volume, name, FrontendKind::Auto));
        }
        let record = CopyRecord { id: new.volume, name: group, created: wall_now(), volumes };
        let base = NewBase::Images { own: new.volume, layout: new.layout.clone() };
        let params = CreateParams {
            volume: new.volume,
            group: new.group,
            site: self.site,
            node: self.node,
            secret: new.secret,
            layout: new.layout,
            slot_bytes: new.slot_bytes,
            policy: new.policy,
            peer: Some(peer),
            kind: CreateKind::Replica { config: new.config },
            adopted: false,
            members: new.members,
        };
        self.make(Making { record, pool: self.pool(None)?, base, empty: None, params }).await
    }

    /// Makes a volume and opens it. Goes on to its end when nobody waits for it any more: what is on disk is known.
    pub(super) async fn make(self: &Arc<Self>, making: Making) -> Result<(), EngineError> {
        if self.state().stopping {
            return Err(EngineError::Stopping);
        }
        let (agent, id, limit) = (Arc::clone(self), making.record.id, self.config.limits.volumes);
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
        self.close_views(id).await;
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
        let Some(dir) = self.state().copies.get(&id).map(|copy| copy.dir.clone()) else { return };
        let until = Instant::now() + LETTING_GO;
        while !files::is_free(&dir) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Closes everything in order, the catalogue last; for a stop of the agent, after [`Agent::release_devices`].
    pub async fn close_all(&self) {
        let volumes: Vec<VolumeId> = self.state().volumes.keys().copied().collect();
        for volume in volumes {
            self.close_frontend(volume).await;
        }
        let all: Vec<(VolumeId, u16)> = self.state().copies.values().map(|copy| (copy.id, copy.shard)).collect();
        for (id, shard) in &all {
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

/// Makes a copy's files, its record among them, and makes it known. A crash leaves all of it or nothing.
fn make_files(catalogue: &Mutex<Catalogue>, making: Making, limit: u32) -> Result<CopyEntry, EngineError> {
    let Making { record, pool, base, empty, params } = making;
    let names: Vec<Name> = record.volumes.iter().map(|volume| volume.name.clone()).collect();
    lock(catalogue).reserve(record.id, &names, Joined::New(&record.name), limit).map_err(refused)?;
    let prepared = match empty.map(|empty| empty.prepare()).transpose() {
        Ok(prepared) => prepared.flatten(),
        Err(error) => {
            lock(catalogue).unreserve(record.id);
            return Err(error);
        }
    };
    let dir = pool.path.join(record.id.to_string());
    let made = write_files(&pool, &dir, &base, &record, &params);
    let mut catalogue = lock(catalogue);
    if let Err(error) = made {
        catalogue.unreserve(record.id);
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
    record: &CopyRecord,
    params: &CreateParams,
) -> Result<(), EngineError> {
    // The record is part of the copy from its first moment: one without it could neither be opened nor made again.
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

/// Other volumes of a copy become known.
fn layouts(agent: Weak<Agent>, id: VolumeId) -> crate::shard::LayoutEvents {
    Box::new(move || look_at_volumes(&agent, id))
}

fn look_at_volumes(agent: &Weak<Agent>, id: VolumeId) {
    if let Some(agent) = agent.upgrade() {
        let runtime = agent.runtime.clone();
        runtime.spawn(async move { agent.take_layout(id).await });
    }
}

/// A change of state of a core becomes a line in the log; one that ends its serving also closes what is open.
fn events(agent: Weak<Agent>, id: VolumeId, name: Name) -> crate::shard::VolumeEvents {
    Box::new(move |event| match event {
        Event::Recovered { records, cut_bytes } => {
            tracing::info!(volume = %name, %id, records, cut_bytes, "log recovered");
            look_at_volumes(&agent, id);
        }
        Event::Role { from, to, serves } => {
            tracing::info!(volume = %name, %id, from, to, "role changed");
            if let (false, Some(agent)) = (*serves, agent.upgrade()) {
                let runtime = agent.runtime.clone();
                runtime.spawn(async move { agent.close_fenced(id).await });
            }
        }
        Event::Link { state } => {
            tracing::info!(volume = %name, %id, state, "link changed");
            look_at_volumes(&agent, id);
        }
        Event::Alarm { code, detail } => tracing::error!(volume = %name, %id, code, detail, "alarm"),
    })
}
