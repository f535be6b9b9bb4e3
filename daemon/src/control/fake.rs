//! An engine in memory, for the tests of what stands in front of one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use tidemark_core::config::{Config, Mode, Policy};
use tidemark_core::layout::Layout;
use tidemark_core::plan::{Loss, Plan, Promotable};
use tidemark_core::status::{CopyState, Counters, LinkState, Role, Status};
use tidemark_core::types::{
    BlockRange, BootId, Epoch, GenId, GroupId, Incarnation, Lsn, NodeId, Nonce, Position, SiteId, VolumeId, WallMs,
};
use tidemark_core::verb::{Assertion, PromotionClass, Verb, VerbError, VerbOk};
use tokio::sync::{Notify, watch};

use super::branches::{BranchClass, BranchInfo, Branches, Seen};
use super::engine::*;
use super::plan::{Explained, Foretold, Planned};
use super::policy::PolicyPatch;
use crate::config::{HostPort, Name};
use crate::witness::Probe;

pub(crate) const SITE: SiteId = SiteId([0xa; 16]);
pub(crate) const PEER: SiteId = SiteId([0xb; 16]);

/// Volumes and peers in memory. Everything succeeds that the real thing would allow.
#[derive(Clone, Default)]
pub(crate) struct FakeEngine {
    state: Arc<Mutex<State>>,
    /// `drain` waits for it: a verb that takes long.
    pub drained: Arc<Notify>,
}

#[derive(Default)]
struct State {
    volumes: BTreeMap<Name, VolumeInfo>,
    peers: BTreeMap<Name, PeerInfo>,
    drains: u32,
}

pub(crate) fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn done<T: Send + 'static>(result: Result<T, EngineError>) -> Answer<T> {
    Box::pin(async move { result })
}

pub(crate) fn status(volume: VolumeId, size: u64, policy: Policy, peer: Option<SiteId>) -> Status {
    let config = Config {
        epoch: Epoch { major: 1, minor: 2 },
        nonce: Nonce([3; 16]),
        proposer: NodeId([1; 16]),
        since: Default::default(),
        base: Default::default(),
        primary: Some(SITE),
        leader: NodeId([1; 16]),
        lease_gen: 0,
        member_rev: 0,
        sites: vec![SITE],
        mode: policy.mode,
        generation: GenId([4; 16]),
        forced: false,
        hands_over: false,
    };
    Status {
        volume,
        site: SITE,
        peer,
        role: Role::Primary,
        copy: CopyState::Current,
        link: if peer.is_some() { LinkState::Disconnected } else { LinkState::NoPeer },
        config,
        policy,
        size,
        layout: Layout::one(volume, size),
        base_layout: Layout::one(volume, size),
        floor: Lsn(10),
        committed: Lsn(20),
        durable: Lsn(30),
        appended: Position { generation: GenId([4; 16]), incarnation: Incarnation(1), lsn: Lsn(40) },
        peer_durable: Lsn(15),
        backlog_bytes: 4096,
        rpo_ms: 1500,
        log_bytes: 1 << 20,
        log_limit_bytes: policy.log_bytes,
        index_ranges: 7,
        requests: 2,
        protected: false,
        not_protected_because: "there is no peer".to_owned(),
        forced_history: vec![],
        paused: Default::default(),
        log_full_in_ms: None,
        branches: 1,
        promotable: Promotable { loss: Some(Loss::NOTHING), needs_word: false, waits_ms: 0, blockers: Vec::new() },
        members: None,
        oldest_disk_op_ms: 3,
        counters: Counters { writes: 5, refusals: 1, ..Counters::default() },
    }
}

impl FakeEngine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many drains ran to their end.
    pub fn drains(&self) -> u32 {
        self.state().drains
    }

    /// Changes a volume's status behind the API's back.
    pub fn change(&self, volume: &str, change: impl FnOnce(&mut VolumeInfo)) {
        change(self.state().volumes.get_mut(&name(volume)).unwrap());
    }

    fn with<T: Send + 'static>(
        &self,
        key: &VolumeKey,
        act: impl FnOnce(&mut VolumeInfo) -> Result<T, EngineError>,
    ) -> Answer<T> {
        let mut state = self.state();
        let found = state.volumes.values_mut().find(|volume| match key {
            VolumeKey::Name(name) => volume.name == *name,
            VolumeKey::Id(id) => volume.id == *id,
        });
        done(found.ok_or_else(|| EngineError::NoVolume(key.to_string())).and_then(act))
    }

    fn peer_of(state: &State, key: &PeerKey) -> Result<PeerInfo, EngineError> {
        let found = state.peers.values().find(|peer| match key {
            PeerKey::Name(name) => peer.name == *name,
            PeerKey::Site(site) => peer.site == Some(*site),
        });
        found.cloned().ok_or_else(|| EngineError::NoPeer(key.to_string()))
    }

    fn create(&self, new: NewVolume) -> Result<VolumeInfo, EngineError> {
        let mut state = self.state();
        let peer = new.peer.as_ref().map(|key| Self::peer_of(&state, key)).transpose()?;
        let (size, base, adopted) = match new.origin {
            Origin::Empty { size, base } => (size, base.unwrap_or_else(|| PathBuf::from("/pool/base.img")), false),
            Origin::Adopt { path } => (1 << 20, path, true),
        };
        if let Some(there) = state.volumes.get(&new.name) {
            let same = there.size == size && there.base == base;
            let taken = EngineError::Exists(format!("there is another volume {}", new.name));
            return if same { Ok(there.clone()) } else { Err(taken) };
        }
        let id = VolumeId([state.volumes.len() as u8 + 1; 16]);
        let site = peer.as_ref().and_then(|peer| peer.site);
        let volume = VolumeInfo {
            id,
            name: new.name.clone(),
            group: GroupId([9; 16]),
            group_name: new.group.clone().unwrap_or_else(|| new.name.clone()),
            group_volumes: vec![new.name.clone()],
            size,
            pool: new.pool.unwrap_or_else(|| name("main")),
            directory: PathBuf::from("/pool").join(id.to_string()),
            base,
            adopted,
            shard: 0,
            created: WallMs(1000),
            peer: peer.map(|peer| peer.name),
            peer_site: site,
            frontend: new.policy.frontend.unwrap_or_default(),
            attachment: None,
            branches: Default::default(),
            status: Ok(Box::new(status(id, size, new.policy.applied_to(Policy::default()), site))),
        };
        state.volumes.insert(new.name, volume.clone());
        Ok(volume)
    }
}

fn promote(status: &mut Status, asserted: Option<Assertion>) -> Result<VerbOk, EngineError> {
    match (asserted, status.peer) {
        (None, Some(site)) => Err(VerbError::PeerUnproven { site }.into()),
        (asserted, _) => {
            status.forced_history.extend(asserted);
            Ok(VerbOk::Promoted { class: PromotionClass::Lossy, fork: Lsn(30), lost_bytes: 4096, lost_ms: 5 })
        }
    }
}

impl Engine for FakeEngine {
    fn agent(&self) -> Answer<AgentInfo> {
        let state = self.state();
        done(Ok(AgentInfo {
            site: SITE,
            site_name: name("a"),
            node: NodeId([1; 16]),
            node_name: name("n1"),
            boot: BootId([2; 16]),
            started: WallMs(500),
            shards: vec![ShardInfo { index: 0, volumes: state.volumes.len() as u32, data_address: None }],
            pools: vec![PoolInfo {
                name: name("main"),
                path: "/pool".into(),
                log_path: None,
                total_bytes: 100,
                free_bytes: 50,
                volumes: state.volumes.len() as u32,
            }],
            peers: state.peers.values().cloned().collect(),
            frontends: vec![(FrontendKind::Nbd, Ok(())), (FrontendKind::Fuse, Err("/dev/fuse is missing".to_owned()))],
            witness: None,
        }))
    }

    fn create_volume(&self, volume: NewVolume) -> Answer<VolumeInfo> {
        done(self.create(volume))
    }

    fn volumes(&self) -> Answer<Vec<VolumeInfo>> {
        done(Ok(self.state().volumes.values().cloned().collect()))
    }

    fn volume(&self, volume: VolumeKey) -> Answer<VolumeInfo> {
        self.with(&volume, |volume| Ok(volume.clone()))
    }

    fn attach(&self, volume: VolumeKey, frontend: FrontendKind) -> Answer<Attachment> {
        self.with(&volume, |volume| {
            if frontend == FrontendKind::Fuse {
                let text = "frontend fuse does not work here: /dev/fuse is missing".to_owned();
                return Err(EngineError::Refused { reason: "frontend-unavailable", text });
            }
            let uri = format!("nbd+unix:///{}?socket=/run/tidemark/nbd/{}.sock", volume.name, volume.name);
            let attachment = Attachment { place: Place::Nbd { uri, tcp_uri: None }, connections: 0 };
            Ok(volume.attachment.insert(attachment).clone())
        })
    }

    fn detach(&self, volume: VolumeKey, force: bool) -> Answer<()> {
        self.with(&volume, |volume| match &volume.attachment {
            Some(open) if open.connections > 0 && !force => Err(EngineError::Refused {
                reason: "in-use",
                text: format!("{} clients are connected", open.connections),
            }),
            _ => {
                volume.attachment = None;
                Ok(())
            }
        })
    }

    fn resize(&self, volume: VolumeKey, size: u64) -> Answer<()> {
        self.with(&volume, |volume| {
            if size < volume.size {
                return Err(VerbError::Invalid("a volume never shrinks".to_owned()).into());
            }
            volume.size = size;
            Ok(())
        })
    }

    fn release(&self, volume: VolumeKey) -> Answer<PathBuf> {
        self.with(&volume, |volume| Ok(volume.base.clone()))
    }

    fn delete(&self, volume: VolumeKey, _: Scope, disposal: Disposal, _force: bool) -> Answer<Option<PathBuf>> {
        let VolumeKey::Name(name) = volume else { return done(Err(EngineError::NoVolume("by id".to_owned()))) };
        let trash = (disposal == Disposal::Trash).then(|| PathBuf::from("/pool/.trash").join(name.as_str()));
        self.state().volumes.remove(&name);
        done(Ok(trash))
    }

    fn change_policy(&self, volume: VolumeKey, patch: PolicyPatch) -> Answer<()> {
        self.with(&volume, |volume| {
            let Ok(status) = &mut volume.status else { return Err(EngineError::Failed("not open".to_owned())) };
            if patch.mode.is_some_and(|mode| mode != Mode::Async) && status.peer.is_none() {
                return Err(VerbError::NoPeer(Mode::Sync).into());
            }
            status.policy = patch.applied_to(status.policy);
            volume.frontend = patch.frontend.unwrap_or(volume.frontend);
            Ok(())
        })
    }

    fn set_peer(&self, volume: VolumeKey, peer: Option<PeerKey>) -> Answer<()> {
        let peer = peer.map(|key| Self::peer_of(&self.state(), &key)).transpose();
        self.with(&volume, |volume| {
            let peer = peer?;
            volume.peer_site = peer.as_ref().and_then(|peer| peer.site);
            volume.peer = peer.map(|peer| peer.name);
            Ok(())
        })
    }

    fn verb(&self, volume: VolumeKey, verb: Verb) -> Answer<VerbOk> {
        if verb == Verb::Drain {
            let (fake, drained) = (self.clone(), self.drained.clone());
            let volume = self.volume(volume);
            return Box::pin(async move {
                let status = volume.await?.status.map_err(EngineError::Failed)?;
                drained.notified().await;
                fake.state().drains += 1;
                Ok(VerbOk::Done(status))
            });
        }
        self.with(&volume, |volume| {
            let status = volume.status.as_mut().map_err(|why| EngineError::Failed(why.clone()))?;
            match verb {
                Verb::Promote { assert_peer_fenced, .. } => promote(status, assert_peer_fenced),
                Verb::Demote { .. } => {
                    status.role = Role::Secondary;
                    Ok(VerbOk::Done(status.clone()))
                }
                Verb::Pause(parts) => {
                    (status.paused, status.log_full_in_ms) = (parts, Some(90_000));
                    Ok(VerbOk::Done(status.clone()))
                }
                Verb::DropPeer(assertion) => {
                    status.forced_history.push(assertion);
                    Ok(VerbOk::Done(status.clone()))
                }
                _ => Ok(VerbOk::Done(status.clone())),
            }
        })
    }

    fn switchover(&self, volume: VolumeKey, switchover: Switchover) -> Answer<VerbOk> {
        self.with(&volume, |volume| {
            let status = volume.status.as_mut().map_err(|why| EngineError::Failed(why.clone()))?;
            if switchover.to != PeerKey::Site(PEER) {
                let (why, hint) = ("it is not connected".into(), "restore the link".into());
                return Err(VerbError::PeerUnfit { site: SITE, why, hint }.into());
            }
            (status.role, status.config.primary) = (Role::Secondary, Some(PEER));
            Ok(VerbOk::SwitchedOver { site: PEER, pause_ms: 321 })
        })
    }

    fn verify(&self, volume: VolumeKey, progress: watch::Sender<VerifyProgress>) -> Answer<Verified> {
        let (found, drained) = (self.volume(volume), self.drained.clone());
        Box::pin(async move {
            let total = found.await?.size / 4096;
            progress.send_replace(VerifyProgress { done: total / 2, total });
            drained.notified().await;
            Ok(Verified { blocks: total, lsn: Lsn(40), differing: vec![BlockRange::new(3, 2)] })
        })
    }

    fn plan(&self, volume: VolumeKey, verb: Planned) -> Answer<Foretold> {
        self.with(&volume, |volume| {
            Ok(match verb {
                Planned::Copy(Verb::Demote { force: false }) if volume.attachment.is_some() => {
                    Err(EngineError::Refused { reason: "in-use", text: "attached".into() })
                }
                Planned::Copy(Verb::Reseed) => {
                    Err(VerbError::Role { role: "primary".into(), hint: "demote it".into() }.into())
                }
                _ => Ok(Plan { loss: Some(Loss::NOTHING), ..Plan::of(["it is done"]).waiting("the disk", 5) }),
            })
        })
    }

    fn plan_removal(&self, peer: PeerKey) -> Answer<Foretold> {
        done(Self::peer_of(&self.state(), &peer).map(|_| Ok(Plan::of(["it is forgotten"]))))
    }

    fn explain(&self, volume: VolumeKey) -> Answer<Explained> {
        self.with(&volume, |volume| {
            let verbs = vec![("demote", Ok(Plan::of(["it stops"]))), ("release", Err(EngineError::Stopping))];
            Ok(Explained { info: volume.clone(), witness: None, verbs })
        })
    }

    fn branches(&self, volume: VolumeKey) -> Answer<Branches> {
        self.with(&volume, |volume| {
            let branches = vec![BranchInfo {
                number: 1,
                class: BranchClass::Unacked,
                fork: Position::default(),
                end: Position::default(),
                bytes: 100,
                sealed: WallMs(7),
                path: volume.directory.join("branch/branch-0001"),
                closed: Some(EngineError::Stopping),
                attachment: None,
            }];
            Ok(Branches { branches, ..Branches::default() })
        })
    }

    fn open_view(&self, volume: VolumeKey, seen: Seen, _: FrontendKind) -> Answer<Attachment> {
        self.with(&volume, |volume| match seen {
            Seen::Branch(number) if number > 1 => Err(EngineError::NoBranch { number }),
            _ => {
                let uri = format!("nbd+unix:///{}@{seen}", volume.name);
                Ok(Attachment { place: Place::Nbd { uri, tcp_uri: None }, connections: 0 })
            }
        })
    }

    fn close_view(&self, volume: VolumeKey, _: Seen, _: bool) -> Answer<()> {
        self.with(&volume, |_| Ok(()))
    }

    fn drop_branch(&self, volume: VolumeKey, number: u32, _: Assertion, acknowledged: bool) -> Answer<()> {
        self.with(&volume, |_| match acknowledged {
            true => Ok(()),
            false => Err(EngineError::Refused { reason: "unacknowledged", text: format!("branch {number}") }),
        })
    }

    fn add_peer(&self, peer: NewPeer) -> Answer<PeerInfo> {
        let info = PeerInfo {
            name: peer.name.clone(),
            site: peer.site.or(Some(PEER)),
            address: peer.address,
            from_config: false,
            health: PeerHealth::Down("connection refused".to_owned()),
            rtt_us: Some(250),
            last_heard_ms: Some(1200),
            version: None,
            volumes: 0,
        };
        self.state().peers.insert(peer.name, info.clone());
        done(Ok(info))
    }

    fn remove_peer(&self, peer: PeerKey) -> Answer<()> {
        let mut state = self.state();
        let found = Self::peer_of(&state, &peer);
        done(found.map(|peer| drop(state.peers.remove(&peer.name))))
    }

    fn peers(&self) -> Answer<Vec<PeerInfo>> {
        done(Ok(self.state().peers.values().cloned().collect()))
    }

    fn check_witness(&self) -> Answer<Probe> {
        done(Err(EngineError::Refused { reason: "no-witness", text: "there is none".to_owned() }))
    }
}

/// A peer to name in tests.
pub(crate) fn peer_b() -> NewPeer {
    let address = HostPort::parse("b.example:9740").unwrap();
    NewPeer { name: name("b"), site: Some(PEER), address, ca_pem: None }
}
