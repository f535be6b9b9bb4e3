//! Volumes made on request. The same request again finds what was made, also while it is being made; another one of that name
//! is told what differs.

use std::sync::{Arc, Weak};

use tidemark_core::config::Policy;
use tidemark_core::layout::Layout;
use tidemark_core::node::{CreateKind, CreateParams};
use tidemark_core::site::Membership;
use tidemark_core::status::Status;
use tidemark_core::types::{GenId, GroupId, Nonce, Secret, SiteId, VolumeId};
use tokio::sync::OwnedMutexGuard;

use super::empty_base::EmptyBase;
use super::volumes::{Making, failed, new_record, random, slot_bytes};
use super::{Agent, Peer};
use crate::catalogue::CopyRecord;
use crate::config::Name;
use crate::control::{EngineError, NewVolume, Origin, VolumeInfo};
use crate::disk::{self, NewBase};

impl Agent {
    pub(super) async fn do_create(self: &Arc<Self>, new: NewVolume) -> Result<VolumeInfo, EngineError> {
        let peer = new.peer.as_ref().map(|key| self.find_peer(key)).transpose()?;
        let peer = peer.as_ref().map(Peer::known_site).transpose()?;
        let _turn = self.creation_turn(new.group.as_ref().unwrap_or(&new.name)).await;
        let copy = {
            let state = self.state();
            let copy = state.copies.values().find(|copy| new.group.as_ref() == Some(&copy.name));
            copy.map(|copy| copy.id)
        };
        if let Some(copy) = copy {
            self.has_members(copy, &new)?;
            self.settle_left(copy, &new.name).await?;
        }
        let here = self.state().volumes.values().find(|v| v.name == new.name && !v.pending).map(|v| v.id);
        let Some(id) = here else {
            let id = match copy {
                Some(copy) => self.add_volume(copy, new, peer).await?,
                None => self.make_first(new, peer).await?,
            };
            return self.info(id).await;
        };
        let info = self.info(id).await?;
        match differences(&info, &new, peer, self.config.defaults.policy()) {
            same if same.is_empty() => Ok(info),
            differing => {
                let text = format!("there is a volume {} here already: {}", new.name, differing.join(", "));
                Err(EngineError::Exists(text))
            }
        }
    }

    /// The right to make a volume in the group of this name, one at a time.
    async fn creation_turn(&self, name: &Name) -> OwnedMutexGuard<()> {
        let turn = {
            let mut state = self.state();
            state.creating.retain(|_, turn| turn.strong_count() > 0);
            let turn = state.creating.get(name).and_then(Weak::upgrade).unwrap_or_default();
            state.creating.insert(name.clone(), Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }

    /// The members of a copy that is here are those that the request names, when it names any.
    fn has_members(&self, copy: VolumeId, new: &NewVolume) -> Result<(), EngineError> {
        let Some(wanted) = &new.members else { return Ok(()) };
        let state = self.state();
        let known = state.copies.get(&copy).and_then(|copy| copy.members.as_ref());
        match known.is_some_and(|known| known.nodes == wanted.here && known.peers == wanted.peers) {
            true => Ok(()),
            false => Err(EngineError::Exists("the group is here, and its members are others".to_owned())),
        }
    }

    /// The first volume that this node has of a group: the group is made with it, unless another node of this site leads it.
    async fn make_first(self: &Arc<Self>, new: NewVolume, peer: Option<SiteId>) -> Result<VolumeId, EngineError> {
        let Some(nodes) = &new.members else { return self.make_primary(new, peer, None).await };
        let members = self.membership(&nodes.here, &nodes.peers)?;
        if peer.is_some() == members.peers.is_empty() {
            let text = "are named for a group that has a peer, and only for such a one".to_owned();
            return Err(EngineError::Invalid { field: "peerMembers", text });
        }
        match members.me {
            Membership::LEADER => self.make_primary(new, peer, Some(members)).await,
            _ => self.make_member(new, peer, members).await,
        }
    }

    /// A new member of a group that another node of this site leads.
    async fn make_member(
        self: &Arc<Self>,
        new: NewVolume,
        peer: Option<SiteId>,
        members: Membership,
    ) -> Result<VolumeId, EngineError> {
        let name = new.group.clone().unwrap_or_else(|| new.name.clone());
        let joined = self.join_led(&name, &members).await?;
        let differs =
            |text: String| EngineError::Exists(format!("group {name} is led by node {}: {text}", members.leader()));
        if peer != joined.peer {
            return Err(differs("it has another peer".to_owned()));
        }
        let policy = joined.policy;
        let own = new.policy.frontend.unwrap_or_default();
        let mode = new.policy.mode.filter(|mode| *mode != policy.mode).map(|_| "mode");
        let wanted: Vec<&str> = new.policy.differing(&policy, own).chain(mode).collect();
        if !wanted.is_empty() {
            return Err(differs(format!("its {} is another", wanted.join(", its "))));
        }
        let id = VolumeId(random()?);
        let (base, size, adopted) = base_of(&new.origin)?;
        let params = CreateParams {
            volume: id,
            group: joined.group,
            site: self.site,
            node: self.node,
            secret: joined.secret,
            layout: Layout::one(id, size),
            slot_bytes: slot_bytes(policy.log_bytes),
            policy,
            peer,
            kind: CreateKind::Member { config: joined.config },
            adopted,
            members: Some(members),
        };
        self.make_here(new, base, params).await?;
        Ok(id)
    }

    /// A new volume in a group of its own, Primary here.
    async fn make_primary(
        self: &Arc<Self>,
        new: NewVolume,
        peer: Option<SiteId>,
        members: Option<Membership>,
    ) -> Result<VolumeId, EngineError> {
        let id = VolumeId(random()?);
        let group = GroupId(random()?);
        let (base, size, adopted) = base_of(&new.origin)?;
        let policy = new.policy.applied_to(self.config.defaults.policy());
        self.may_arbitrate(&new.policy, &policy)?;
        let kind = CreateKind::Primary { generation: GenId(random()?), nonce: Nonce(random()?) };
        let params = CreateParams {
            volume: id,
            group,
            site: self.site,
            node: self.node,
            secret: Secret(random()?),
            layout: Layout::one(id, size),
            slot_bytes: slot_bytes(policy.log_bytes),
            policy,
            peer,
            kind,
            adopted,
            members,
        };
        self.make_here(new, base, params).await?;
        Ok(id)
    }

    async fn make_here(
        self: &Arc<Self>,
        new: NewVolume,
        base: NewBase,
        params: CreateParams,
    ) -> Result<(), EngineError> {
        let empty = match new.origin {
            Origin::Empty { size, base: Some(path) } => Some(EmptyBase { path, size }),
            _ => None,
        };
        let frontend = new.policy.frontend.unwrap_or_default();
        let pool = self.pool(new.pool.as_ref())?;
        let group = new.group.unwrap_or_else(|| new.name.clone());
        let record = CopyRecord::of_one(group, new_record(params.volume, new.name, frontend));
        self.make(Making { record, pool, base, empty, params }).await
    }
}

/// The base of a new volume, its size in bytes, and whether it held data before.
fn base_of(origin: &Origin) -> Result<(NewBase, u64, bool), EngineError> {
    match origin {
        Origin::Empty { size, base: None } => Ok((NewBase::Image { size: *size }, *size, false)),
        Origin::Empty { size, base: Some(path) } => Ok((NewBase::Adopt { path: path.clone() }, *size, false)),
        Origin::Adopt { path } => {
            let info = disk::probe_base(path).map_err(failed)?;
            let size = info.size / 512 * 512;
            Ok((NewBase::Adopt { path: path.clone() }, size, true))
        }
    }
}

/// In what the volume that is here differs from the one that is asked for; `peer` is the site that the request names, `defaults`
/// what a silent request gets. Of the policy count the mode and what the request names.
fn differences(here: &VolumeInfo, new: &NewVolume, peer: Option<SiteId>, defaults: Policy) -> Vec<String> {
    let status: &Status = match &here.status {
        Ok(status) => status,
        Err(why) => return vec![format!("it cannot be opened: {why}")],
    };
    let mut out = Vec::new();
    if let Some(other) = status.config.primary.filter(|primary| *primary != status.site) {
        out.push(format!("site {other} is its primary"));
    }
    if new.group.as_ref().unwrap_or(&here.group_name) != &here.group_name {
        out.push(format!("its group is {}", here.group_name));
    }
    let own_image = here.base.parent() == Some(here.directory.as_path());
    let base = here.base.display();
    match &new.origin {
        Origin::Empty { size, .. } if *size != here.size => out.push(format!("its size is {} bytes", here.size)),
        _ => {}
    }
    match &new.origin {
        Origin::Empty { .. } if here.adopted => out.push(format!("it was adopted from {base}")),
        Origin::Adopt { .. } if !here.adopted => out.push("it was made empty".to_owned()),
        Origin::Empty { base: None, .. } if own_image => {}
        Origin::Empty { base: Some(path), .. } | Origin::Adopt { path } if *path == here.base => {}
        _ => out.push(format!("its base is {base}")),
    }
    // What joins a group takes over what it does not name.
    let joins = new.group.is_some();
    if status.peer != peer && !(joins && peer.is_none()) {
        let peer = status.peer.map_or_else(|| "it has no peer".to_owned(), |site| format!("its peer is site {site}"));
        out.push(peer);
    }
    if new.pool.as_ref().is_some_and(|pool| *pool != here.pool) {
        out.push(format!("its pool is {}", here.pool));
    }
    let mode = new.policy.mode.or((!joins).then_some(defaults.mode));
    if mode.is_some_and(|mode| mode != status.policy.mode) {
        out.push(format!("its mode is {:?}", status.policy.mode).to_lowercase());
    }
    out.extend(new.policy.differing(&status.policy, here.frontend).map(|field| format!("its {field} is another")));
    out
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tidemark_core::config::Mode;

    use super::*;
    use crate::control::{FrontendKind, PolicyPatch, fake};

    const PEER: SiteId = SiteId([2; 16]);

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn here() -> VolumeInfo {
        let policy = Policy { mode: Mode::Sync, ..Policy::default() };
        let mut status = fake::status(VolumeId([1; 16]), 1 << 20, policy, Some(PEER));
        status.config.primary = Some(status.site);
        VolumeInfo {
            id: VolumeId([1; 16]),
            name: name("pg"),
            group: GroupId([2; 16]),
            group_name: name("pg"),
            group_volumes: vec![name("pg")],
            size: 1 << 20,
            pool: name("main"),
            directory: PathBuf::from("/pool/id"),
            base: PathBuf::from("/pool/id/base.img"),
            adopted: false,
            shard: 0,
            created: tidemark_core::types::WallMs(0),
            peer: None,
            peer_site: Some(PEER),
            frontend: FrontendKind::Auto,
            attachment: None,
            branches: Default::default(),
            status: Ok(Box::new(status)),
        }
    }

    fn request() -> NewVolume {
        NewVolume {
            name: name("pg"),
            group: None,
            origin: Origin::Empty { size: 1 << 20, base: None },
            policy: PolicyPatch { mode: Some(Mode::Sync), ..PolicyPatch::default() },
            peer: None,
            pool: None,
            members: None,
        }
    }

    fn told(here: &VolumeInfo, new: &NewVolume, peer: Option<SiteId>) -> String {
        differences(here, new, peer, Policy::default()).join(", ")
    }

    #[test]
    fn the_same_request_finds_the_same_volume() {
        assert_eq!(told(&here(), &request(), Some(PEER)), "");
        let named = NewVolume { pool: Some(name("main")), ..request() };
        assert_eq!(told(&here(), &named, Some(PEER)), "");
        let device = PathBuf::from("/dev/sdb");
        let volume = VolumeInfo { base: device.clone(), ..here() };
        let based = NewVolume { origin: Origin::Empty { size: 1 << 20, base: Some(device.clone()) }, ..request() };
        assert_eq!(told(&volume, &based, Some(PEER)), "");
        let adopted = NewVolume { origin: Origin::Adopt { path: device }, ..request() };
        assert_eq!(told(&VolumeInfo { adopted: true, ..volume }, &adopted, Some(PEER)), "");
    }

    #[test]
    fn another_shape_is_told_by_what_differs() {
        let device = PathBuf::from("/dev/sdb");
        let size = Origin::Empty { size: 4096, base: None };
        let based = Origin::Empty { size: 1 << 20, base: Some(device.clone()) };
        let retention = PolicyPatch { retention_ms: Some(7), ..request().policy };
        let table = [
            (NewVolume { origin: size, ..request() }, "its size is 1048576 bytes"),
            (NewVolume { origin: based, ..request() }, "its base is /pool/id/base.img"),
            (NewVolume { origin: Origin::Adopt { path: device }, ..request() }, "it was made empty"),
            (NewVolume { policy: PolicyPatch::default(), ..request() }, "its mode is sync"),
            (NewVolume { policy: retention, ..request() }, "its retention is another"),
            (NewVolume { pool: Some(name("fast")), ..request() }, "its pool is main"),
            (NewVolume { group: Some(name("other")), ..request() }, "its group is pg"),
        ];
        for (new, wanted) in table {
            assert_eq!(told(&here(), &new, Some(PEER)), wanted);
        }
        assert_eq!(told(&here(), &request(), None), format!("its peer is site {PEER}"));
        let adopted = VolumeInfo { adopted: true, ..here() };
        assert_eq!(told(&adopted, &request(), Some(PEER)), "it was adopted from /pool/id/base.img");
        let mut fenced = here();
        fenced.status.as_mut().unwrap().config.primary = Some(PEER);
        assert_eq!(told(&fenced, &request(), Some(PEER)), format!("site {PEER} is its primary"));
        let closed = VolumeInfo { status: Err("is the pool mounted?".to_owned()), ..here() };
        assert_eq!(told(&closed, &request(), Some(PEER)), "it cannot be opened: is the pool mounted?");
    }
}
