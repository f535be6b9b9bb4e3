//! What the admin API asks.

use std::path::PathBuf;
use std::sync::Arc;

use tidemark_core::config::Policy;
use tidemark_core::format::branch::{BranchClass as Class, BranchHead};
use tidemark_core::status::{LinkState, Role, Status};
use tidemark_core::types::{SiteId, VolumeId};
use tidemark_core::verb::{Verb, VerbError, VerbOk};
use tokio::sync::watch;

use super::arbiter::{Arbiter, no_arbiter, no_witness};
use super::volumes::failed;
use super::{Agent, Peer, fuse, wall_now};
use crate::catalogue::{Catalogue, CatalogueError};
use crate::control::state::role;
use crate::control::{
    AgentInfo, Answer, Attachment, BranchClass, BranchInfo, Disposal, Engine, EngineError, FrontendKind, NewPeer,
    NewVolume, PeerInfo, PeerKey, PolicyPatch, PoolInfo, ShardInfo, Verified, VerifyProgress, VolumeInfo, VolumeKey,
};
use crate::disk;
use crate::frontend::kernel_nbd;
use crate::witness::Probe;

/// The engine behind the admin API.
#[derive(Clone)]
pub struct AgentEngine(pub Arc<Agent>);

impl Agent {
    fn find(&self, key: &VolumeKey) -> Result<(VolumeId, u16), EngineError> {
        let state = self.state();
        let found = state.volumes.values().find(|v| match key {
            VolumeKey::Name(name) => v.name == *name,
            VolumeKey::Id(id) => v.id == *id,
        });
        found.map(|v| (v.id, v.shard)).ok_or_else(|| EngineError::NoVolume(key.to_string()))
    }

    pub(super) async fn info(&self, id: VolumeId) -> Result<VolumeInfo, EngineError> {
        let (shard, closed) = {
            let state = self.state();
            let entry = state.volumes.get(&id).ok_or_else(|| EngineError::NoVolume(id.to_string()))?;
            (entry.shard, entry.closed.clone())
        };
        let status = match closed {
            Some(why) => Err(why),
            None => self.status_of(id, shard).await.map(Box::new).map_err(|e| e.to_string()),
        };
        let state = self.state();
        let entry = state.volumes.get(&id).ok_or_else(|| EngineError::NoVolume(id.to_string()))?;
        let peer_site = status.as_ref().ok().and_then(|s| s.peer).or(entry.peer_site);
        let peer = state.peers.values().find(|p| p.site.is_some() && p.site == peer_site).map(|p| p.name.clone());
        Ok(VolumeInfo {
            id,
            name: entry.name.clone(),
            group: entry.group.unwrap_or_default(),
            size: status.as_ref().map_or(0, |s| s.size),
            pool: entry.pool.clone(),
            directory: entry.dir.clone(),
            base: disk::files::base_path(&entry.dir),
            adopted: entry.adopted,
            shard: entry.shard,
            created: entry.created,
            peer,
            peer_site,
            frontend: entry.frontend,
            attachment: entry.open.as_ref().map(|o| Attachment { place: o.place().clone(), connections: 0 }),
            status,
        })
    }

    async fn do_resize(&self, id: VolumeId, shard: u16, size: u64) -> Result<(), EngineError> {
        // Before the base grows, which nothing takes back.
        may_grow(&self.status_of(id, shard).await?, size)?;
        let asked = self.shard(shard).ask(move |shard, answer| {
            let grown = shard.volume(id).map(|v| v.files().grow_base(size).map_err(|e| e.to_string()));
            let _ = answer.send(grown); // the asker went away
        });
        let grown = asked.await.map_err(|_| EngineError::Stopping)?;
        grown.ok_or_else(|| EngineError::NoVolume(id.to_string()))?.map_err(EngineError::Failed)?;
        self.verb_on(id, shard, Verb::Resize { volume: id, size }).await?;
        self.resize_frontend(id, size).await
    }

    async fn resize_frontend(&self, id: VolumeId, size: u64) -> Result<(), EngineError> {
        let Some(open) = self.open_frontend(id) else { return Ok(()) };
        tokio::task::spawn_blocking(move || open.resize(size)).await.map_err(failed)?.map_err(failed)
    }

    async fn do_release(&self, id: VolumeId, shard: u16) -> Result<PathBuf, EngineError> {
        self.detach_volume(id, false).await?;
        self.verb_on(id, shard, Verb::Release).await?;
        self.close_volume(id, shard).await?;
        self.until_free(id).await;
        self.unlist(id, move |catalogue| catalogue.release_volume(id)).await
    }

    /// Takes a closed volume's files away by `removal` and forgets it. One whose files stay is known with the reason.
    async fn unlist<T: Send + 'static>(
        &self,
        id: VolumeId,
        removal: impl FnOnce(&mut Catalogue) -> Result<T, CatalogueError> + Send + 'static,
    ) -> Result<T, EngineError> {
        self.unhide_base(id);
        let removed = self.keep(removal).await;
        match &removed {
            Ok(_) => drop(self.state().volumes.remove(&id)),
            Err(error) => self.set_closed(id, Some(error.to_string())),
        }
        removed
    }

    async fn do_delete(
        &self,
        id: VolumeId,
        shard: u16,
        disposal: Disposal,
        force: bool,
    ) -> Result<Option<PathBuf>, EngineError> {
        let (attached, closed) = {
            let state = self.state();
            let entry = state.volumes.get(&id).ok_or_else(|| EngineError::NoVolume(id.to_string()))?;
            (entry.open.is_some(), entry.closed.is_some())
        };
        if attached && !force {
            let text = "the volume is attached: detach it first, or use force".into();
            return Err(EngineError::Refused { reason: "in-use", text });
        }
        if !closed && !force {
            leaves_no_peer_behind(&self.status_of(id, shard).await?)?;
        }
        self.detach_volume(id, force).await?;
        if !closed {
            self.close_volume(id, shard).await?;
            self.until_free(id).await;
        }
        let now_ms = wall_now().0;
        match disposal {
            Disposal::Purge => self.unlist(id, move |catalogue| catalogue.purge_volume(id)).await.map(|()| None),
            Disposal::Trash => self.unlist(id, move |catalogue| catalogue.trash_volume(id, now_ms)).await,
        }
    }

    async fn do_policy(&self, id: VolumeId, shard: u16, patch: PolicyPatch) -> Result<(), EngineError> {
        if patch.changes_policy() {
            // The core takes a policy as a whole: what was read must still be so when it is changed.
            let turn = self.state().volumes.get(&id).map(|entry| entry.changing.clone());
            let _turn = turn.ok_or_else(|| EngineError::NoVolume(id.to_string()))?.lock_owned().await;
            let policy: Policy = patch.applied_to(self.status_of(id, shard).await?.policy);
            self.may_arbitrate(&patch, &policy)?;
            self.verb_on(id, shard, Verb::SetPolicy(policy)).await?;
        }
        match patch.frontend {
            Some(kind) => self.set_frontend(id, kind).await,
            None => Ok(()),
        }
    }

    /// What an attach takes that names no frontend. It is this site's matter: a copy of any role has it, and one that is attached
    /// stays so as it is.
    async fn set_frontend(&self, id: VolumeId, kind: FrontendKind) -> Result<(), EngineError> {
        self.keep(move |catalogue| catalogue.set_frontend(id, kind)).await?;
        if let Some(entry) = self.state().volumes.get_mut(&id) {
            entry.frontend = kind;
        }
        Ok(())
    }

    async fn do_set_peer(&self, id: VolumeId, shard: u16, site: Option<SiteId>) -> Result<(), EngineError> {
        self.verb_on(id, shard, Verb::SetPeer(site)).await?;
        if let Some(entry) = self.state().volumes.get_mut(&id) {
            entry.peer_site = site;
        }
        Ok(())
    }

    async fn do_verify(
        &self,
        id: VolumeId,
        shard: u16,
        progress: watch::Sender<VerifyProgress>,
    ) -> Result<Verified, EngineError> {
        let verb = self.verb_on(id, shard, Verb::Verify);
        tokio::pin!(verb);
        loop {
            tokio::select! {
                done = &mut verb => return match done? {
                    VerbOk::Verified { blocks, lsn, differing } => Ok(Verified { blocks, lsn, differing }),
                    _ => Err(EngineError::Failed("an answer of another kind".into())),
                },
                () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {
                    let asked = self.shard(shard).ask(move |shard, answer| {
                        let _ = answer.send(shard.volume(id).and_then(|v| v.verify_status())); // the asker went away
                    });
                    if let Ok(Some((done, total))) = asked.await {
                        progress.send_replace(VerifyProgress { done, total });
                    }
                }
            }
        }
    }

    fn branches_of(&self, id: VolumeId) -> Result<Vec<BranchInfo>, EngineError> {
        let dir = self.state().volumes.get(&id).map(|v| v.dir.join("branch"));
        let dir = dir.ok_or_else(|| EngineError::NoVolume(id.to_string()))?;
        let mut out = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(failed)?.flatten() {
            let path = entry.path();
            let bytes = std::fs::read(&path).map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            if let Ok(head) = BranchHead::decode(&bytes) {
                out.push(BranchInfo {
                    number,
                    class: match head.class {
                        Class::Unacked => BranchClass::Unacked,
                        Class::Acked => BranchClass::Acked,
                        Class::Unknown => BranchClass::Unknown,
                    },
                    fork: head.from.position,
                    end: head.tail.position,
                    bytes: head.bytes,
                    sealed: head.sealed_at,
                    path,
                });
            }
        }
        out.sort_by_key(|b| b.number);
        Ok(out)
    }

    fn pools(&self) -> Vec<PoolInfo> {
        let state = self.state();
        let info = |pool: &crate::config::PoolConfig| {
            let space = nix::sys::statvfs::statvfs(&pool.path).ok();
            let bytes = |blocks: u64| space.as_ref().map_or(0, |s| blocks * s.fragment_size());
            PoolInfo {
                name: pool.name.clone(),
                path: pool.path.clone(),
                log_path: pool.log_path.clone(),
                total_bytes: bytes(space.as_ref().map_or(0, |s| s.blocks())),
                free_bytes: bytes(space.as_ref().map_or(0, |s| s.blocks_available())),
                volumes: state.volumes.values().filter(|v| v.pool == pool.name).count() as u32,
            }
        };
        self.config.pools.iter().map(info).collect()
    }

    fn agent_info(&self) -> AgentInfo {
        let address = |i: usize| {
            let host = self.config.peer.as_ref()?.listen.ip();
            Some(std::net::SocketAddr::new(host, *self.data_ports.get(i)?))
        };
        let count = |i: u16| self.state().volumes.values().filter(|v| v.shard == i).count() as u32;
        let shards = self.shards.iter().enumerate().map(|(i, s)| ShardInfo {
            index: s.index(),
            volumes: count(s.index()),
            data_address: address(i),
        });
        AgentInfo {
            site: self.site,
            site_name: self.config.site.name.clone(),
            node: self.node,
            node_name: self.config.node.name.clone(),
            boot: self.boot,
            started: self.started,
            shards: shards.collect(),
            pools: self.pools(),
            peers: self.peer_infos(),
            frontends: vec![
                (FrontendKind::Nbd, Ok(())),
                (FrontendKind::NbdDevice, kernel_nbd::works()),
                (FrontendKind::Fuse, fuse::works()),
            ],
            witness: self.arbiter.as_ref().map(Arbiter::info),
        }
    }
}

/// Whether a volume in this state can be grown to `size` bytes; the core has the last word.
fn may_grow(status: &Status, size: u64) -> Result<(), EngineError> {
    if status.role != Role::Primary {
        let (role, hint) = (role(&status.role).text, "a volume is resized at its primary".into());
        return Err(VerbError::Role { role, hint }.into());
    }
    if size < status.size {
        let text = format!("is {size}: a volume never shrinks, and this one has {} bytes", status.size);
        return Err(EngineError::Invalid { field: "size", text });
    }
    match (status.peer, &status.link) {
        (Some(site), LinkState::Disconnected | LinkState::Refused(_)) => Err(EngineError::Refused {
            reason: "peer-unreachable",
            text: format!("both copies grow, and site {site} cannot be asked: try again when it is connected"),
        }),
        _ => Ok(()),
    }
}

/// Whether this copy can go without leaving its peer a volume that nobody serves.
fn leaves_no_peer_behind(status: &Status) -> Result<(), EngineError> {
    match status.peer {
        Some(site) if status.config.primary == Some(status.site) => Err(EngineError::Refused {
            reason: "peer-left-behind",
            text: format!(
                "this is the primary and site {site} has a copy that would have none: demote it here and promote it there, or forget the peer (mode async, then no peer site), or use force"
            ),
        }),
        _ => Ok(()),
    }
}

/// Runs an async block with the agent and the volume's place.
macro_rules! on_volume {
    ($self:ident, $key:ident, |$agent:ident, $id:ident, $shard:ident| $body:expr) => {{
        let $agent = $self.0.clone();
        Box::pin(async move {
            let ($id, $shard) = $agent.find(&$key)?;
            let _ = $shard;
            $body
        })
    }};
}

impl Engine for AgentEngine {
    fn agent(&self) -> Answer<AgentInfo> {
        let agent = self.0.clone();
        Box::pin(async move { Ok(agent.agent_info()) })
    }

    fn create_volume(&self, volume: NewVolume) -> Answer<VolumeInfo> {
        let agent = self.0.clone();
        Box::pin(async move { agent.do_create(volume).await })
    }

    fn volumes(&self) -> Answer<Vec<VolumeInfo>> {
        let agent = self.0.clone();
        Box::pin(async move {
            let mut ids: Vec<_> = agent.state().volumes.values().map(|v| (v.name.clone(), v.id)).collect();
            ids.sort();
            let mut out = Vec::with_capacity(ids.len());
            for (_, id) in ids {
                out.push(agent.info(id).await?);
            }
            Ok(out)
        })
    }

    fn volume(&self, volume: VolumeKey) -> Answer<VolumeInfo> {
        on_volume!(self, volume, |agent, id, shard| agent.info(id).await)
    }

    fn attach(&self, volume: VolumeKey, frontend: FrontendKind) -> Answer<Attachment> {
        on_volume!(self, volume, |agent, id, shard| agent.attach_volume(id, frontend).await)
    }

    fn detach(&self, volume: VolumeKey, force: bool) -> Answer<()> {
        on_volume!(self, volume, |agent, id, shard| agent.detach_volume(id, force).await)
    }

    fn resize(&self, volume: VolumeKey, size: u64) -> Answer<()> {
        on_volume!(self, volume, |agent, id, shard| agent.do_resize(id, shard, size).await)
    }

    fn release(&self, volume: VolumeKey) -> Answer<PathBuf> {
        on_volume!(self, volume, |agent, id, shard| agent.do_release(id, shard).await)
    }

    fn delete(&self, volume: VolumeKey, disposal: Disposal, force: bool) -> Answer<Option<PathBuf>> {
        on_volume!(self, volume, |agent, id, shard| agent.do_delete(id, shard, disposal, force).await)
    }

    fn change_policy(&self, volume: VolumeKey, patch: PolicyPatch) -> Answer<()> {
        on_volume!(self, volume, |agent, id, shard| agent.do_policy(id, shard, patch).await)
    }

    fn set_peer(&self, volume: VolumeKey, peer: Option<PeerKey>) -> Answer<()> {
        on_volume!(self, volume, |agent, id, shard| {
            let peer = peer.map(|key| agent.find_peer(&key)).transpose()?;
            let site = peer.as_ref().map(Peer::known_site).transpose()?;
            agent.do_set_peer(id, shard, site).await
        })
    }

    fn verb(&self, volume: VolumeKey, verb: Verb) -> Answer<VerbOk> {
        on_volume!(self, volume, |agent, id, shard| {
            let attached = agent.state().volumes.get(&id).is_some_and(|v| v.open.is_some());
            if matches!(verb, Verb::Demote { force: false }) && attached {
                let text = "the volume is attached: detach it first, or use force".into();
                return Err(EngineError::Refused { reason: "in-use", text });
            }
            agent.verb_on(id, shard, verb).await
        })
    }

    fn verify(&self, volume: VolumeKey, progress: watch::Sender<VerifyProgress>) -> Answer<Verified> {
        on_volume!(self, volume, |agent, id, shard| agent.do_verify(id, shard, progress).await)
    }

    fn branches(&self, volume: VolumeKey) -> Answer<Vec<BranchInfo>> {
        on_volume!(self, volume, |agent, id, shard| agent.branches_of(id))
    }

    fn add_peer(&self, peer: NewPeer) -> Answer<PeerInfo> {
        let agent = self.0.clone();
        Box::pin(async move { agent.peer_added(peer).await })
    }

    fn remove_peer(&self, peer: PeerKey) -> Answer<()> {
        let agent = self.0.clone();
        Box::pin(async move { agent.peer_removed(&peer).await })
    }

    fn peers(&self) -> Answer<Vec<PeerInfo>> {
        let agent = self.0.clone();
        Box::pin(async move { Ok(agent.peer_infos()) })
    }

    fn check_witness(&self) -> Answer<Probe> {
        let agent = self.0.clone();
        Box::pin(async move {
            let arbiter = agent.arbiter.clone().ok_or_else(no_arbiter)?;
            arbiter.witness.probe(agent.node).await.map_err(|error| no_witness(&error))
        })
    }
}
