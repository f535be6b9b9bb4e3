//! What the admin API asks.

use std::path::PathBuf;
use std::sync::Arc;

use tidemark_core::config::Policy;
use tidemark_core::types::{SiteId, VolumeId};
use tidemark_core::verb::{Assertion, Verb, VerbOk};
use tokio::sync::watch;

use super::arbiter::{Arbiter, no_arbiter, no_witness};
use super::plans::{Removal, may_grow};
use super::volumes::failed;
use super::{Agent, At, GroupCopy, Peer, State, fuse, wall_now};
use crate::catalogue::{Catalogue, CatalogueError};
use crate::control::{
    AgentInfo, Answer, Attachment, BranchCounts, Branches, Disposal, Engine, EngineError, Explained, Foretold,
    FrontendKind, NewPeer, NewVolume, PeerInfo, PeerKey, Planned, PolicyPatch, PoolInfo, Scope, Seen, ShardInfo,
    Switchover, Verified, VerifyProgress, VolumeInfo, VolumeKey,
};
use crate::disk;
use crate::frontend::kernel_nbd;
use crate::witness::Probe;

/// The engine behind the admin API.
#[derive(Clone)]
pub struct AgentEngine(pub Arc<Agent>);

impl Agent {
    pub(super) async fn info(&self, id: VolumeId) -> Result<VolumeInfo, EngineError> {
        let none = || EngineError::NoVolume(id.to_string());
        let (at, closed) = {
            let state = self.state();
            let at = state.volumes.get(&id).and_then(|entry| state.at(entry)).ok_or_else(none)?;
            (at, state.copies.get(&at.copy).and_then(|copy| copy.closed.clone()))
        };
        let status = match closed {
            Some(why) => Err(why),
            None => self.status_of(at.copy, at.shard).await.map(Box::new).map_err(|e| e.to_string()),
        };
        let branches = match &status {
            Ok(status) if status.branches > 0 => self.branch_counts(at.copy).await,
            _ => BranchCounts::default(),
        };
        let state = self.state();
        let entry = state.volumes.get(&id).ok_or_else(none)?;
        let copy = state.copies.get(&at.copy).ok_or_else(none)?;
        let peer_site = status.as_ref().ok().and_then(|s| s.peer).or(copy.peer_site);
        let peer = state.peers.values().find(|p| p.site.is_some() && p.site == peer_site).map(|p| p.name.clone());
        Ok(VolumeInfo {
            id,
            name: entry.name.clone(),
            group: copy.group.unwrap_or_default(),
            group_name: copy.name.clone(),
            group_volumes: state.volumes_of(at.copy).into_iter().map(|entry| entry.name.clone()).collect(),
            size: status.as_ref().ok().and_then(|status| status.layout.volume_size(id)).unwrap_or(0),
            pool: copy.pool.clone(),
            directory: copy.dir.clone(),
            base: disk::files::base_path_of(&copy.dir, id),
            adopted: copy.adopted && id == copy.id,
            shard: copy.shard,
            created: entry.created,
            peer,
            peer_site,
            frontend: entry.frontend,
            attachment: entry.open.as_ref().map(|o| Attachment { place: o.place().clone(), connections: 0 }),
            branches,
            status,
        })
    }

    async fn do_resize(&self, at: At, size: u64) -> Result<(), EngineError> {
        let _turn = self.changing(at.copy).await?;
        // Before the base grows, which nothing takes back.
        let grown = may_grow(at.volume, &self.status_of(at.copy, at.shard).await?, size)?;
        self.make_room(at, grown).await?;
        self.verb_on(at.copy, at.shard, Verb::Resize { volume: at.volume, size }).await?;
        self.resize_frontend(at.volume, size).await
    }

    async fn resize_frontend(&self, id: VolumeId, size: u64) -> Result<(), EngineError> {
        let Some(open) = self.open_frontend(id) else { return Ok(()) };
        tokio::task::spawn_blocking(move || open.resize(size)).await.map_err(failed)?.map_err(failed)
    }

    async fn do_release(&self, at: At) -> Result<PathBuf, EngineError> {
        self.may_release(at)?;
        self.detach_volume(at.volume, false).await?;
        self.verb_on(at.copy, at.shard, Verb::Release).await?;
        self.close_volume(at.copy, at.shard).await?;
        self.until_free(at.copy).await;
        let copy = at.copy;
        self.unlist(copy, move |catalogue| catalogue.release_volume(copy)).await
    }

    /// Takes a closed copy's files away by `removal` and forgets it. One whose files stay is known with the reason.
    async fn unlist<T: Send + 'static>(
        &self,
        id: VolumeId,
        removal: impl FnOnce(&mut Catalogue) -> Result<T, CatalogueError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let volumes: Vec<VolumeId> = {
            let state = self.state();
            state.volumes.values().filter(|entry| entry.copy == id).map(|entry| entry.id).collect()
        };
        if let Some(dir) = self.dir_of(id) {
            volumes.iter().for_each(|volume| self.unhide_base(&dir, *volume));
        }
        let removed = self.keep(removal).await;
        match &removed {
            Ok(_) => {
                let mut state = self.state();
                state.copies.remove(&id);
                volumes.iter().for_each(|volume| drop(state.volumes.remove(volume)));
            }
            Err(error) => self.set_closed(id, Some(error.to_string())),
        }
        removed
    }

    async fn do_delete(
        &self,
        at: At,
        scope: Scope,
        disposal: Disposal,
        force: bool,
    ) -> Result<Option<PathBuf>, EngineError> {
        let is_open = match self.may_delete(at, scope, disposal, force).await? {
            Removal::OfVolume => return self.remove_volume(at, force).await.map(|()| None),
            Removal::OfCopy { is_open } => is_open,
        };
        let id = at.copy;
        let volumes: Vec<VolumeId> = self.state().volumes_of(id).into_iter().map(|entry| entry.id).collect();
        for volume in volumes {
            self.detach_volume(volume, force).await?;
        }
        if is_open {
            self.close_volume(id, at.shard).await?;
            self.until_free(id).await;
        }
        let now_ms = wall_now().0;
        match disposal {
            Disposal::Purge => self.unlist(id, move |catalogue| catalogue.purge_volume(id)).await.map(|()| None),
            Disposal::Trash => self.unlist(id, move |catalogue| catalogue.trash_volume(id, now_ms)).await,
        }
    }

    async fn do_policy(&self, at: At, patch: PolicyPatch) -> Result<(), EngineError> {
        if patch.changes_policy() {
            // The core takes a policy as a whole: what was read must still be so when it is changed.
            let _turn = self.changing(at.copy).await?;
            let policy: Policy = patch.applied_to(self.status_of(at.copy, at.shard).await?.policy);
            self.may_arbitrate(&patch, &policy)?;
            self.verb_on(at.copy, at.shard, Verb::SetPolicy(policy)).await?;
        }
        match patch.frontend {
            Some(kind) => self.set_frontend(at.volume, kind).await,
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
        if let Some(copy) = self.state().copies.get_mut(&id) {
            copy.peer_site = site;
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
                    let found = self.on_copy(id, shard, |copy| copy.verify_status()).await;
                    if let Ok(Some((done, total))) = found {
                        progress.send_replace(VerifyProgress { done, total });
                    }
                }
            }
        }
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
                volumes: volumes_where(&state, |copy| copy.pool == pool.name),
            }
        };
        self.config.pools.iter().map(info).collect()
    }

    fn agent_info(&self) -> AgentInfo {
        let address = |i: usize| {
            let host = self.config.peer.as_ref()?.listen.ip();
            Some(std::net::SocketAddr::new(host, *self.data_ports.get(i)?))
        };
        let count = |i: u16| volumes_where(&self.state(), |copy| copy.shard == i);
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

fn volumes_where(state: &State, is_one: impl Fn(&GroupCopy) -> bool) -> u32 {
    state.copies.values().filter(|copy| is_one(copy)).map(|copy| state.volumes_of(copy.id).len()).sum::<usize>() as u32
}

/// Runs an async block with the agent and the place of a volume, or (`group`) of the group that it names or is part of.
macro_rules! on_volume {
    ($self:ident, $key:ident, |$agent:ident, $at:ident| $body:expr) => { on_volume!(@ find, $self, $key, $agent, $at, $body) };
    (@ $find:ident, $self:ident, $key:ident, $agent:ident, $at:ident, $body:expr) => {{
        let $agent = $self.0.clone();
        Box::pin(async move {
            let $at = $agent.$find(&$key)?;
            $body
        })
    }};
}
macro_rules! on_group {
    ($self:ident, $key:ident, |$agent:ident, $at:ident| $body:expr) => {
        on_volume!(@ find_group, $self, $key, $agent, $at, $body)
    };
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
            let mut ids: Vec<_> = {
                let state = agent.state();
                let all = state.copies.keys().flat_map(|copy| state.volumes_of(*copy));
                all.map(|v| (v.name.clone(), v.id)).collect()
            };
            ids.sort();
            let mut out = Vec::with_capacity(ids.len());
            for (_, id) in ids {
                match agent.info(id).await {
                    Err(EngineError::NoVolume(_)) => {} // it left meanwhile
                    info => out.push(info?),
                }
            }
            Ok(out)
        })
    }

    fn volume(&self, volume: VolumeKey) -> Answer<VolumeInfo> {
        on_group!(self, volume, |agent, at| agent.info(at.volume).await)
    }

    fn attach(&self, volume: VolumeKey, frontend: FrontendKind) -> Answer<Attachment> {
        on_volume!(self, volume, |agent, at| agent.attach_volume(at.volume, frontend).await)
    }

    fn detach(&self, volume: VolumeKey, force: bool) -> Answer<()> {
        on_volume!(self, volume, |agent, at| agent.detach_volume(at.volume, force).await)
    }

    fn resize(&self, volume: VolumeKey, size: u64) -> Answer<()> {
        on_volume!(self, volume, |agent, at| agent.do_resize(at, size).await)
    }

    fn release(&self, volume: VolumeKey) -> Answer<PathBuf> {
        on_volume!(self, volume, |agent, at| agent.do_release(at).await)
    }

    fn delete(&self, volume: VolumeKey, scope: Scope, disposal: Disposal, force: bool) -> Answer<Option<PathBuf>> {
        match scope {
            Scope::Volume => {
                on_volume!(self, volume, |agent, at| agent.do_delete(at, scope, disposal, force).await)
            }
            Scope::Group => on_group!(self, volume, |agent, at| agent.do_delete(at, scope, disposal, force).await),
        }
    }

    fn change_policy(&self, volume: VolumeKey, patch: PolicyPatch) -> Answer<()> {
        on_group!(self, volume, |agent, at| {
            // Of the fields this one is the volume's, not the group's.
            let at = if patch.frontend.is_some() { agent.find(&volume)? } else { at };
            agent.do_policy(at, patch).await
        })
    }

    fn set_peer(&self, volume: VolumeKey, peer: Option<PeerKey>) -> Answer<()> {
        on_group!(self, volume, |agent, at| {
            let peer = peer.map(|key| agent.find_peer(&key)).transpose()?;
            let site = peer.as_ref().map(Peer::known_site).transpose()?;
            agent.do_set_peer(at.copy, at.shard, site).await
        })
    }

    fn verb(&self, volume: VolumeKey, verb: Verb) -> Answer<VerbOk> {
        on_group!(self, volume, |agent, at| agent.do_verb(at, verb).await)
    }

    fn switchover(&self, volume: VolumeKey, switchover: Switchover) -> Answer<VerbOk> {
        on_group!(self, volume, |agent, at| agent.do_switchover(at, &switchover).await)
    }

    fn verify(&self, volume: VolumeKey, progress: watch::Sender<VerifyProgress>) -> Answer<Verified> {
        on_group!(self, volume, |agent, at| agent.do_verify(at.copy, at.shard, progress).await)
    }

    fn plan(&self, volume: VolumeKey, verb: Planned) -> Answer<Foretold> {
        let agent = self.0.clone();
        Box::pin(async move {
            let at = if verb.is_of_volume() { agent.find(&volume) } else { agent.find_group(&volume) }?;
            Ok(agent.plan_of(at, verb).await)
        })
    }

    fn plan_removal(&self, peer: PeerKey) -> Answer<Foretold> {
        let agent = self.0.clone();
        Box::pin(async move {
            agent.find_peer(&peer)?;
            Ok(agent.plan_peer_removal(&peer))
        })
    }

    fn explain(&self, volume: VolumeKey) -> Answer<Explained> {
        on_group!(self, volume, |agent, at| agent.explained(at).await)
    }

    fn branches(&self, volume: VolumeKey) -> Answer<Branches> {
        on_group!(self, volume, |agent, at| agent.branches_of(at).await)
    }

    fn open_view(&self, volume: VolumeKey, seen: Seen, frontend: FrontendKind) -> Answer<Attachment> {
        on_volume!(self, volume, |agent, at| agent.open_view(at, seen, frontend).await)
    }

    fn close_view(&self, volume: VolumeKey, seen: Seen, force: bool) -> Answer<()> {
        on_volume!(self, volume, |agent, at| agent.close_view(at.volume, seen, force).await)
    }

    fn drop_branch(&self, volume: VolumeKey, number: u32, word: Assertion, acknowledged: bool) -> Answer<()> {
        on_group!(self, volume, |agent, at| agent.drop_branch(at, number, word, acknowledged).await)
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
