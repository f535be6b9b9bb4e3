//! Groups that lie on several agents of this site: the stream between each member and its leader, and how a member is made.
//!
//! The lists of members are in the superblock of each copy; where their nodes are found is in the configuration. A member is made
//! once: that its leader has met it is kept beside the leader's copy, and from then on no empty copy takes its place.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidemark_core::site::Membership;
use tidemark_core::types::{GroupId, NodeId, VolumeId};

use super::volumes::superblock_of;
use super::{Agent, GroupCopy};
use crate::config::Name;
use crate::control::EngineError;
use crate::crashsafe;
use crate::peer::control::CallError;
use crate::peer::site::{
    Joined, SiteAnswer, SiteHandler, SiteHello, SiteRefusal, SiteStream, connect_site, join_group,
};
use crate::peer::{Backoff, PeerAddress};

/// The longest pause between two attempts to reach the leader: its sub-leases are short.
const LAST_PAUSE: Duration = Duration::from_secs(1);

impl Agent {
    /// Keeps a member's stream to its leader, for as long as the copy is here. Nothing to do for one that leads or is alone.
    pub(super) fn keep_led(self: &Arc<Self>, id: VolumeId) {
        let members = self.state().copies.get(&id).and_then(|copy| copy.members.clone());
        let Some(members) = members.filter(|members| members.me != Membership::LEADER) else { return };
        let agent = Arc::downgrade(self);
        self.runtime.spawn(async move {
            let mut backoff = Backoff::default();
            while let Some(agent) = agent.upgrade() {
                let Some(pause) = agent.follow_once(id, &members, &mut backoff).await else { return };
                drop(agent);
                tokio::time::sleep(pause).await;
            }
        });
    }

    /// One stream to the leader, from its beginning to its end; gives the pause before the next, `None` when the copy is gone.
    async fn follow_once(&self, id: VolumeId, members: &Membership, backoff: &mut Backoff) -> Option<Duration> {
        let (shard, group) = {
            let state = self.state();
            let copy = state.copies.get(&id).filter(|_| !state.stopping)?;
            match (&copy.closed, copy.group) {
                (None, Some(group)) => (copy.shard, group),
                _ => return None,
            }
        };
        let leader = members.leader();
        let Some(address) = self.address_in_site(leader) else {
            tracing::warn!(%id, %leader, "the node that leads a group is not among [[site.nodes]]");
            return Some(self.pause(backoff));
        };
        let hello = SiteHello { group, members: members.clone() };
        match connect_site(&address, leader, &self.transport, &hello).await {
            Ok(stream) => {
                backoff.reset();
                self.serve_site(id, shard, Membership::LEADER, stream).await;
            }
            Err(error) => tracing::debug!(%id, %leader, %error, "no stream to the leader of the group"),
        }
        Some(self.pause(backoff).min(LAST_PAUSE))
    }

    /// Hands a stream to its copy and waits for its end.
    async fn serve_site(&self, id: VolumeId, shard: u16, member: usize, stream: SiteStream) {
        let ended = self.shard(shard).ask(move |shard, answer| {
            if let Some(volume) = shard.volume(id) {
                crate::here::spawn(async move {
                    volume.serve_site(member, stream).await;
                    let _ = answer.send(()); // nobody waits: fine
                });
            }
        });
        let _ = ended.await; // however it ended, it did
    }

    /// Where another node of this site is.
    fn address_in_site(&self, node: NodeId) -> Option<PeerAddress> {
        let found = self.config.site.nodes.iter().find(|known| known.id == node)?;
        let (host, port) = found.address.as_str().rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(PeerAddress { host, port: port.parse().ok()?, site: Some(self.site) })
    }

    /// Which member of a group with these lists is on this node.
    ///
    /// # Errors
    /// What is wrong with the lists.
    pub(super) fn membership(&self, nodes: &[NodeId], peers: &[NodeId]) -> Result<Membership, EngineError> {
        let invalid = |text: String| EngineError::Invalid { field: "members", text };
        let me = nodes.iter().position(|node| *node == self.node);
        let me = me.ok_or_else(|| invalid(format!("do not name this node, {}", self.node)))?;
        let members = Membership { me, nodes: nodes.to_vec(), peers: peers.to_vec() };
        if let Some(why) = members.fault() {
            return Err(invalid(why.to_owned()));
        }
        let unknown = nodes.iter().find(|node| **node != self.node && self.address_in_site(**node).is_none());
        match unknown {
            Some(node) => {
                Err(invalid(format!("name node {node}, which is not among [[site.nodes]] of the configuration")))
            }
            None => Ok(members),
        }
    }

    /// What a member of a group that another agent leads begins with.
    pub(super) async fn join_led(&self, group: &Name, members: &Membership) -> Result<Joined, EngineError> {
        let leader = members.leader();
        let unreachable = |text: String| EngineError::Refused { reason: "leader-unreachable", text };
        let address = self.address_in_site(leader).ok_or_else(|| unreachable(format!("node {leader} is not known")))?;
        let joined = join_group(&address, leader, &self.transport, (group.as_str(), members)).await;
        joined.map_err(|error| match error {
            CallError::NotFound => {
                unreachable(format!("node {leader} has no group {group} yet: it is made there first"))
            }
            CallError::Connect(_) => unreachable(format!("node {leader} leads the group: {error}")),
            CallError::Refused(text) => EngineError::Refused {
                reason: "leader-refused",
                text: format!("node {leader} leads the group: {text}"),
            },
        })
    }

    /// The copy here that leads a group, when `members` are the members that it knows.
    fn led_copy<T>(
        &self,
        node: Option<NodeId>,
        members: &Membership,
        is_it: impl Fn(&GroupCopy) -> bool,
        of: impl Fn(&GroupCopy) -> T,
    ) -> Result<T, SiteRefusal> {
        let refused = |why: &str| Err(SiteRefusal::Refused(why.to_owned()));
        let state = self.state();
        let copy = state.copies.values().find(|copy| is_it(copy)).ok_or(SiteRefusal::NoGroup)?;
        if node.is_some_and(|node| node != members.own()) {
            return refused("the caller is another node than the member that it speaks for");
        }
        match &copy.members {
            _ if copy.closed.is_some() => refused("the copy of the leader is not open"),
            Some(own) if own.me != Membership::LEADER => refused("this node does not lead the group"),
            Some(own) if own.of(members.me) == *members && members.me != own.me => Ok(of(copy)),
            Some(_) => refused("the lists of members differ"),
            None => refused("the group has no other members"),
        }
    }

    /// A member is met: from now on no other copy takes its place. Durable when this returns.
    async fn meet_member(&self, node: Option<NodeId>, hello: &SiteHello) -> Result<(), SiteRefusal> {
        let is_it = |copy: &GroupCopy| copy.group == Some(hello.group);
        let dir = self.led_copy(node, &hello.members, is_it, |copy| copy.dir.clone())?;
        let path = dir.join(met_file(hello.members.me));
        let kept = tokio::task::spawn_blocking(move || keep_met(&path)).await;
        let failed = |error: String| SiteRefusal::Refused(format!("that the member was met cannot be kept: {error}"));
        kept.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    async fn joined(&self, node: Option<NodeId>, group: &str, members: &Membership) -> Result<Joined, SiteRefusal> {
        let is_it = |copy: &GroupCopy| copy.name.as_str() == group;
        let of = |copy: &GroupCopy| (copy.id, copy.shard, copy.dir.clone());
        let (id, shard, dir) = self.led_copy(node, members, is_it, of)?;
        if dir.join(met_file(members.me)).exists() {
            let why = "that member was there before: an empty copy must not take the place of what it held";
            return Err(SiteRefusal::Refused(why.to_owned()));
        }
        let read = self.on_copy(id, shard, |copy| (copy.files().superblock().ok(), copy.status())).await;
        let gone = |_| SiteRefusal::Refused("the copy of the leader is not open".to_owned());
        let (superblock, status) = read.map_err(gone)?;
        let superblock = superblock.as_deref().and_then(superblock_of).ok_or(SiteRefusal::NoGroup)?;
        let (group, secret) = (superblock.group, superblock.secret);
        Ok(Joined { group, secret, config: status.config, policy: status.policy, peer: status.peer })
    }

    fn copy_of_group(&self, group: GroupId) -> Option<(VolumeId, u16)> {
        let state = self.state();
        state.copies.values().find(|copy| copy.group == Some(group)).map(|copy| (copy.id, copy.shard))
    }
}

/// Beside the leader's copy: that member was met.
fn met_file(member: usize) -> String {
    format!("member-{member}")
}

fn keep_met(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    crashsafe::replace(path, &[b"met\n"])
}

/// Answers the other agents of this site.
pub struct HandleSite {
    /// The agent.
    pub agent: Arc<Agent>,
}

impl SiteHandler for HandleSite {
    fn admit<'a>(&'a self, node: Option<NodeId>, hello: &SiteHello) -> SiteAnswer<'a, ()> {
        let hello = hello.clone();
        Box::pin(async move { self.agent.meet_member(node, &hello).await })
    }

    fn accept(&self, hello: SiteHello, stream: SiteStream) {
        let agent = self.agent.clone();
        let Some((id, shard)) = agent.copy_of_group(hello.group) else { return };
        agent.shard(shard).send(move |shard| {
            if let Some(volume) = shard.volume(id) {
                drop(crate::here::spawn(volume.serve_site(hello.members.me, stream)));
            }
        });
    }

    fn join(&self, node: Option<NodeId>, group: String, members: Membership) -> SiteAnswer<'_, Joined> {
        Box::pin(async move { self.agent.joined(node, &group, &members).await })
    }
}
