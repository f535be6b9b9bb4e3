//! Peers: who they are, how they are reached, the streams to their copies.
//!
//! The side with the lower site id dials, the other accepts. A primary whose peer has no copy yet asks it to make one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_core::site::Membership;
use tidemark_core::status::{LinkState, Role};
use tidemark_core::types::{NodeId, SiteId, VolumeId};

use super::volumes::superblock_of;
use super::{Agent, GroupCopy, Peer};
use crate::catalogue::{Catalogue, PeerRecord};
use crate::config::{Name, PeerConfig, SiteNode, TlsFiles};
use crate::control::{EngineError, NewPeer, PeerHealth, PeerInfo, PeerKey};
use crate::disk::VolumeFiles;
use crate::here;
use crate::lock::lock;
use crate::peer::control::{
    CallError, ControlAnswer, ControlHandler, JoiningVolume, NewReplica, create_replica, locate,
};
use crate::peer::{
    Backoff, Heartbeats, OwnFiles, PeerAddress, PeerIdentity, PeerStream, PeerTrust, StreamAcceptor, StreamEnd, Tls,
};

/// How often a stream that stands, or a copy that is to be made, is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// The longest that adding a peer waits for its first answer.
const ACQUAINTANCE: Duration = Duration::from_secs(2);

/// Loads the TLS material of the configuration with the static peers.
///
/// # Errors
/// What is wrong with a file.
pub fn load_tls(
    identity: PeerIdentity,
    files: &TlsFiles,
    peers: &[PeerConfig],
    mates: &[SiteNode],
) -> Result<Arc<Tls>, crate::peer::TlsError> {
    let own = OwnFiles { cert: files.cert.clone(), key: files.key.clone() };
    let trust =
        peers.iter().map(|p| PeerTrust { site: p.site_id, ca: vec![p.ca.clone().unwrap_or_else(|| files.ca.clone())] });
    let tls = Tls::load(identity, own, Vec::new())?;
    let mates: BTreeSet<NodeId> = mates.iter().map(|node| node.id).collect();
    tls.accept(trust.chain(trust_in_site(identity.site, &mates, files)).collect(), mates)?;
    Ok(tls)
}

/// The authority of the own site, where it has other nodes.
fn trust_in_site(site: SiteId, mates: &BTreeSet<NodeId>, files: &TlsFiles) -> Option<PeerTrust> {
    (!mates.is_empty()).then(|| PeerTrust { site: Some(site), ca: vec![files.ca.clone()] })
}

impl Agent {
    /// Peers added by a verb and those of the configuration file, which has the last word about a name. Where it says no site
    /// the one that was learnt counts.
    pub(super) fn load_peers(self: &Arc<Self>) {
        let catalogue = lock(&self.catalogue);
        let (learnt, added): (Vec<_>, Vec<_>) = catalogue.peers().partition(|record| record.of_config);
        let mut peers: Vec<Peer> = added.into_iter().map(|record| known_peer(&catalogue, record)).collect();
        let site_of = |name: &Name| learnt.iter().find(|record| record.name == *name).and_then(|record| record.site);
        peers.extend(self.config.peers.iter().map(|config| {
            let peer = peer_of(config);
            Peer { site: peer.site.or_else(|| site_of(&peer.name)), ..peer }
        }));
        drop(catalogue);
        let mut state = self.state();
        for peer in peers {
            state.peers.insert(peer.name.clone(), peer);
        }
        let peers: Vec<Peer> = state.peers.values().cloned().collect();
        drop(state);
        self.trust_peers();
        for peer in &peers {
            self.begin_beating(peer);
        }
    }

    fn end_beating(&self, peer: &Peer) {
        if let Some(task) = self.state().beating.remove(&peer.name) {
            task.abort();
        }
        if let Some(site) = peer.site {
            self.heartbeats.board.forget(site);
        }
    }

    /// Tells the TLS material whom to trust now.
    pub(super) fn trust_peers(&self) {
        let (Some(tls), Some(listener)) = (&self.tls, &self.config.peer) else { return };
        let crate::config::Security::Mutual(files) = &listener.security else { return };
        let state = self.state();
        let trust = state
            .peers
            .values()
            .map(|p| PeerTrust { site: p.site, ca: vec![p.ca.clone().unwrap_or_else(|| files.ca.clone())] });
        let mates: BTreeSet<NodeId> = self.config.site.nodes.iter().map(|node| node.id).collect();
        let trust: Vec<PeerTrust> = trust.chain(trust_in_site(self.site, &mates, files)).collect();
        drop(state);
        if let Err(error) = tls.set_peers(trust) {
            tracing::error!(%error, "the peers' authorities cannot be used; the former ones stay");
        }
    }

    pub(super) async fn peer_added(self: &Arc<Self>, new: NewPeer) -> Result<PeerInfo, EngineError> {
        if let Some(site) = new.site {
            let wrong = self.belongs_to_another(self.state().peers.values(), &new.name, site);
            wrong.map_or(Ok(()), |text| Err(EngineError::Invalid { field: "siteId", text }))?;
        }
        if self.config.peers.iter().any(|peer| peer.name == new.name) {
            return Err(EngineError::Exists(format!("peer {} is named by the configuration file", new.name)));
        }
        let (known, count) = {
            let state = self.state();
            (state.peers.get(&new.name).cloned(), state.peers.len())
        };
        let limit = self.config.limits.peers;
        if known.is_none() && count >= limit as usize {
            return Err(EngineError::Limit { what: "peers", limit: limit.into() });
        }
        // What was said or learnt before is kept.
        let site = new.site.or(known.and_then(|peer| peer.site));
        let (name, address, own_ca) = (new.name.clone(), new.address, new.ca_pem.is_some());
        let record = PeerRecord { name, site, address, own_ca, of_config: false };
        let put = move |catalogue: &mut Catalogue| {
            let record = catalogue.put_peer(record, new.ca_pem.as_deref())?;
            Ok(known_peer(catalogue, &record))
        };
        let peer = self.keep(put).await?;
        self.state().peers.insert(peer.name.clone(), peer.clone());
        self.trust_peers();
        self.begin_beating(&peer);
        self.acquainted(&peer.name).await;
        self.peer_infos()
            .into_iter()
            .find(|p| p.name == new.name)
            .ok_or_else(|| EngineError::NoPeer(new.name.to_string()))
    }

    /// Waits for a moment until a peer's site is learnt, or is seen not to be: most are there, and are named next.
    async fn acquainted(&self, name: &Name) {
        let until = Instant::now() + ACQUAINTANCE;
        let is_open = |peer: &Peer| peer.site.is_none() && peer.fault.is_none();
        while self.state().peers.get(name).is_some_and(is_open) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn peer_removed(&self, key: &PeerKey) -> Result<(), EngineError> {
        let peer = self.removable_peer(key)?;
        let name = peer.name.clone();
        self.keep(move |catalogue| catalogue.remove_peer(&name)).await?;
        self.state().peers.remove(&peer.name);
        self.end_beating(&peer);
        self.trust_peers();
        Ok(())
    }

    /// A peer that nothing names.
    pub(super) fn removable_peer(&self, key: &PeerKey) -> Result<Peer, EngineError> {
        let peer = self.find_peer(key)?;
        let used = self.state().copies.values().any(|copy| peer.site.is_some() && copy.peer_site == peer.site);
        if used || peer.from_config {
            let text = format!("peer {} is named by a volume or by the configuration file", peer.name);
            return Err(EngineError::Refused { reason: "in-use", text });
        }
        Ok(peer)
    }

    pub(super) fn find_peer(&self, key: &PeerKey) -> Result<Peer, EngineError> {
        let state = self.state();
        let found = state.peers.values().find(|p| match key {
            PeerKey::Name(name) => p.name == *name,
            PeerKey::Site(site) => p.site == Some(*site),
        });
        found.cloned().ok_or_else(|| EngineError::NoPeer(key.to_string()))
    }

    pub(super) fn peer_infos(&self) -> Vec<PeerInfo> {
        let state = self.state();
        let volumes = |site: Option<SiteId>| {
            let names_it = |copy: &&GroupCopy| site.is_some() && copy.peer_site == site;
            state.copies.values().filter(names_it).map(|copy| state.volumes_of(copy.id).len()).sum::<usize>() as u32
        };
        let now = Instant::now();
        let info = |p: &Peer| {
            let beats = p.site.map(|site| self.heartbeats.board.health(site)).unwrap_or_default();
            let heard = beats.heard.max(p.heard);
            PeerInfo {
                name: p.name.clone(),
                site: p.site,
                address: p.address.clone(),
                from_config: p.from_config,
                health: health_of(p, &beats, now),
                rtt_us: beats.rtt.map(|rtt| rtt.as_micros() as u64),
                last_heard_ms: heard.map(|at| now.saturating_duration_since(at).as_millis() as u64),
                version: None,
                volumes: volumes(p.site),
            }
        };
        state.peers.values().map(info).collect()
    }

    fn address_of(&self, site: SiteId) -> Option<PeerAddress> {
        let state = self.state();
        state.peers.values().find(|p| p.site == Some(site)).and_then(address_of)
    }

    fn note_contact(&self, site: SiteId, fault: Option<String>) {
        if let Some(peer) = self.state().peers.values_mut().find(|p| p.site == Some(site)) {
            if fault.is_none() {
                peer.heard = Some(std::time::Instant::now());
            }
            peer.fault = fault;
        }
    }

    /// Keeps a volume's stream to its peer, for as long as the volume is here.
    pub(super) fn keep_connected(self: &Arc<Self>, id: VolumeId) {
        let agent = self.clone();
        self.runtime.spawn(async move {
            let mut backoff = Backoff::default();
            while let Some(pause) = agent.connect_once(id, &mut backoff).await {
                tokio::time::sleep(pause).await;
            }
        });
    }

    /// One look at a volume's stream; gives the pause until the next, `None` when the volume is gone.
    async fn connect_once(self: &Arc<Self>, id: VolumeId, backoff: &mut Backoff) -> Option<Duration> {
        let (shard, peer) = {
            let state = self.state();
            let entry = state.copies.get(&id).filter(|copy| copy.closed.is_none() && !state.stopping)?;
            (entry.shard, entry.peer_site)
        };
        let Some(site) = peer else { return Some(LOOK) };
        let Ok(status) = self.status_of(id, shard).await else { return None };
        if status.link != LinkState::Disconnected && !matches!(status.link, LinkState::Refused(_)) {
            backoff.reset();
            self.note_contact(site, None);
            return Some(LOOK);
        }
        let Some(address) = self.address_of(site) else {
            return Some(Duration::from_secs(2));
        };
        match self.connect(id, shard, site, &address, status.role == Role::Primary).await {
            Ok(()) => {
                self.note_contact(site, None);
                Some(self.pause(backoff))
            }
            Err(error) => {
                tracing::debug!(%id, %site, %error, "no stream to the peer");
                self.note_contact(site, Some(error.to_string()));
                Some(self.pause(backoff))
            }
        }
    }

    pub(super) fn pause(&self, backoff: &mut Backoff) -> Duration {
        let mut random = [0; 4];
        let _ = getrandom::fill(&mut random); // without it there is no jitter, which only costs politeness
        backoff.next_delay(u32::from_le_bytes(random)).min(Duration::from_secs(5))
    }

    async fn connect(
        self: &Arc<Self>,
        id: VolumeId,
        shard: u16,
        site: SiteId,
        address: &PeerAddress,
        primary: bool,
    ) -> Result<(), CallError> {
        let port = match locate(address, &self.transport, id).await {
            Err(CallError::NotFound) if primary => {
                self.ask_replica(id, shard, address).await?;
                locate(address, &self.transport, id).await?
            }
            other => other?,
        };
        if self.site < site {
            self.dial(id, shard, site, address.clone(), port);
        }
        Ok(())
    }

    async fn ask_replica(&self, id: VolumeId, shard: u16, address: &PeerAddress) -> Result<(), CallError> {
        let (name, names) = {
            let state = self.state();
            let volumes = state.volumes.values().filter(|entry| entry.copy == id);
            let names = volumes.map(|entry| (entry.id, entry.name.to_string())).collect();
            (state.copies.get(&id).map(|copy| copy.name.to_string()), names)
        };
        let replica = self.on_copy(id, shard, |copy| replica_of(copy.files(), &copy.status())).await;
        let gone = || CallError::Refused("the volume is not open".into());
        let replica = replica.ok().flatten().ok_or_else(gone)?;
        let replica = NewReplica { name: name.unwrap_or_default(), names, ..replica };
        create_replica(address, &self.transport, &replica).await
    }

    /// Opens the stream on the volume's shard, so that no frame crosses a thread.
    fn dial(&self, id: VolumeId, shard: u16, site: SiteId, address: PeerAddress, port: u16) {
        let transport = self.transport.clone();
        self.shard(shard).send(move |shard| {
            let Some(volume) = shard.volume(id) else { return };
            here::spawn(async move {
                let connect = crate::peer::connect_stream(&address, port, &transport);
                if let Err(error) = volume.dial(site, connect).await {
                    tracing::info!(%id, %error, "the stream to the peer did not open");
                }
            });
        });
    }
}

/// Where a peer's control listener is.
pub(super) fn address_of(peer: &Peer) -> Option<PeerAddress> {
    let (host, port) = peer.address.as_str().rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some(PeerAddress { host, port: port.parse().ok()?, site: peer.site })
}

/// The heartbeat says whether a peer lives; a volume's failed contact says why one that lives is of no use.
fn health_of(peer: &Peer, beats: &crate::peer::PeerHealth, now: Instant) -> PeerHealth {
    match (beats.is_alive(now), &beats.fault, &peer.fault) {
        (_, Some(why), _) | (_, None, Some(why)) => PeerHealth::Down(why.clone()),
        (true, None, None) => PeerHealth::Up,
        (false, None, None) if beats.heard.is_some() => PeerHealth::Down("silent".to_owned()),
        (false, None, None) => PeerHealth::Unknown,
    }
}

fn known_peer(catalogue: &Catalogue, record: &PeerRecord) -> Peer {
    Peer {
        name: record.name.clone(),
        site: record.site,
        address: record.address.clone(),
        ca: catalogue.peer_ca(record),
        from_config: false,
        fault: None,
        heard: None,
    }
}

fn peer_of(config: &PeerConfig) -> Peer {
    Peer {
        name: config.name.clone(),
        site: config.site_id,
        address: config.address.clone(),
        ca: config.ca.clone(),
        from_config: true,
        fault: None,
        heard: None,
    }
}

/// What a peer needs to make a copy of this volume.
fn replica_of(files: &VolumeFiles, status: &tidemark_core::status::Status) -> Option<NewReplica> {
    let sb = superblock_of(&files.superblock().ok()?)?;
    Some(NewReplica {
        volume: sb.volume,
        group: sb.group,
        name: String::new(),
        names: Vec::new(),
        secret: sb.secret,
        layout: status.layout.clone(),
        slot_bytes: sb.slot_bytes,
        config: status.config.clone(),
        policy: status.policy,
        members: sb.members.as_ref().map(Membership::peer),
    })
}

/// Takes the streams that peers open on a shard's data listener.
pub struct AcceptStreams {
    /// The agent.
    pub agent: Arc<Agent>,
}

impl StreamAcceptor for AcceptStreams {
    fn accept(&self, id: VolumeId, stream: PeerStream) {
        let known = {
            let state = self.agent.state();
            state.copies.get(&id).filter(|copy| copy.closed.is_none()).map(|copy| (copy.shard, copy.peer_site))
        };
        let Some((shard, Some(peer))) = known else { return stream.refuse(&StreamEnd::NoVolume) };
        if stream.identity.is_some_and(|identity| identity.site != peer) {
            return stream.refuse(&StreamEnd::NoVolume);
        }
        self.agent.note_contact(peer, None);
        // On the shard's own listener this is the same thread; a peer that asked the wrong port costs a hop, once.
        self.agent.shard(shard).send(move |shard| match shard.volume(id) {
            Some(volume) => drop(here::spawn(volume.serve_peer(stream, peer))),
            None => stream.refuse(&StreamEnd::NoVolume),
        });
    }
}

/// Answers the short calls of peers.
pub struct HandleControl {
    /// The agent.
    pub agent: Arc<Agent>,
}

impl ControlHandler for HandleControl {
    fn locate(&self, volume: VolumeId) -> Option<u16> {
        let shard = self.agent.state().copies.get(&volume).filter(|copy| copy.closed.is_none())?.shard;
        self.agent.data_ports.get(usize::from(shard) % self.agent.data_ports.len().max(1)).copied()
    }

    fn heartbeats(&self) -> Option<Heartbeats> {
        Some(self.agent.heartbeats.clone())
    }

    fn create_replica(&self, site: Option<SiteId>, replica: NewReplica) -> ControlAnswer<u16> {
        let agent = self.agent.clone();
        let id = replica.volume;
        Box::pin(async move {
            let primary = replica.config.primary.ok_or("the configuration names no primary")?;
            if site.is_some_and(|site| site != primary) {
                return Err("only the primary site may ask for a copy".into());
            }
            if agent.find_peer(&PeerKey::Site(primary)).is_err() {
                return Err(format!("site {primary} is not a known peer here: `tidemark peer add` it first"));
            }
            agent.make_replica(primary, replica).await.map_err(|e| e.to_string())?;
            HandleControl { agent }.locate(id).ok_or_else(|| "the copy did not open".to_owned())
        })
    }

    fn add_volume(&self, site: Option<SiteId>, joining: JoiningVolume) -> ControlAnswer<()> {
        let agent = self.agent.clone();
        Box::pin(async move { agent.expect_volume(site, joining).await.map_err(|error| error.to_string()) })
    }
}
