//! Groups of several volumes: one joins, one leaves, and what a copy's core says about its volumes becomes known.
//!
//! The core knows identities and sizes, the catalogue names and frontends. A volume that joins is in the catalogues of both sites,
//! as one that is pending, before the core hears of it; a volume that has left stays in them until its base is given up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_core::config::Policy;
use tidemark_core::layout::Layout;
use tidemark_core::status::{CopyState, LinkState, Role, Status};
use tidemark_core::types::{SiteId, VolumeId};
use tidemark_core::verb::{Verb, VerbError};
use tokio::sync::OwnedMutexGuard;

use super::empty_base::EmptyBase;
use super::peers::address_of;
use super::volumes::{entry_of, failed, new_record, random};
use super::{Agent, At};
use crate::catalogue::{Joined, VolumeRecord};
use crate::config::Name;
use crate::control::state::role;
use crate::control::{EngineError, FrontendKind, NewVolume, Origin};
use crate::disk::{NewBase, files};
use crate::peer::control::{CallError, JoiningVolume, add_volume};

/// How long the stream to a peer that is heard is waited for, and how often it is looked for.
const LINKING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// How long what waits for the log may take to go through it, before what an attempt to add a volume left is removed.
const SETTLING: Duration = Duration::from_secs(30);

impl Agent {
    /// Adds a volume to a group that is primary here.
    pub(super) async fn add_volume(
        self: &Arc<Self>,
        copy: VolumeId,
        new: NewVolume,
        peer: Option<SiteId>,
    ) -> Result<VolumeId, EngineError> {
        let agent = self.clone();
        // Goes on to its end when nobody waits for it any more: no half of it stays.
        let added = self.runtime.spawn(async move {
            let _turn = agent.changing(copy).await?;
            agent.do_add(copy, new, peer).await
        });
        added.await.map_err(failed)?
    }

    /// The right to change a copy's policy or volumes, one at a time.
    pub(super) async fn changing(&self, copy: VolumeId) -> Result<OwnedMutexGuard<()>, EngineError> {
        let turn = self.state().copies.get(&copy).map(|copy| copy.changing.clone());
        Ok(turn.ok_or_else(|| EngineError::NoVolume(copy.to_string()))?.lock_owned().await)
    }

    async fn do_add(&self, copy: VolumeId, new: NewVolume, peer: Option<SiteId>) -> Result<VolumeId, EngineError> {
        let (group, shard, dir, pool) = {
            let state = self.state();
            let known = state.copies.get(&copy).ok_or_else(|| EngineError::NoVolume(copy.to_string()))?;
            (known.name.clone(), known.shard, known.dir.clone(), known.pool.clone())
        };
        let (size, base) = match &new.origin {
            Origin::Empty { size, base } => (*size, base.clone()),
            Origin::Adopt { .. } => return Err(adopts_nothing(&group)),
        };
        let status = self.status_once_linked(copy, shard).await?;
        may_change(&status)?;
        let differing = other_terms(&new, peer, &pool, &status);
        if !differing.is_empty() {
            return Err(EngineError::Exists(format!("the volumes of group {group} share: {}", differing.join(", "))));
        }
        // Never that of an attempt before: its base may be open, and its record may still come.
        let id = VolumeId(random()?);
        let layout = status
            .layout
            .added(id, size)
            .map_err(|error| EngineError::Invalid { field: "size", text: error.to_string() })?;
        self.list_joining(copy, id, &new).await?;
        let at = At { volume: id, copy, shard };
        let made = self.join(at, &new.name, &dir, base, &layout, &status).await;
        match &made {
            Err(error) if !may_come(error) => {
                if let Err(error) = self.abandon(at).await {
                    tracing::warn!(%id, %error, "what was made for a volume that did not join stays");
                }
            }
            _ => self.take_layout(copy).await,
        }
        made.map(|()| id)
    }

    /// What an attempt before left of a volume of this name that was to join `copy`: from here on it is in the group, or gone.
    pub(super) async fn settle_left(self: &Arc<Self>, copy: VolumeId, name: &Name) -> Result<(), EngineError> {
        if self.left_over(copy, name).is_none() {
            return Ok(());
        }
        let (agent, name) = (self.clone(), name.clone());
        // As in `add_volume`.
        let settled = self.runtime.spawn(async move {
            let _turn = agent.changing(copy).await?;
            match agent.left_over(copy, &name) {
                Some(left) => agent.do_settle(left, &name).await,
                None => Ok(()),
            }
        });
        settled.await.map_err(failed)?
    }

    async fn do_settle(&self, left: At, name: &Name) -> Result<(), EngineError> {
        let status = self.status_once_linked(left.copy, left.shard).await?;
        if !status.layout.has(left.volume) {
            may_change(&status)?;
            // Its record may still wait for room in the log: not after everything that waits has gone through it.
            let drained = self.verb_on(left.copy, left.shard, Verb::Drain);
            match tokio::time::timeout(SETTLING, drained).await {
                Ok(drained) => drop(drained?),
                Err(_) => return Err(stays(name, "its record may still wait for room in the log")),
            }
        }
        self.abandon(left).await.map_err(|error| stays(name, &error.to_string()))
    }

    fn left_over(&self, copy: VolumeId, name: &Name) -> Option<At> {
        let state = self.state();
        let left = state.volumes.values().find(|entry| entry.copy == copy && entry.pending && entry.name == *name);
        left.and_then(|entry| state.at(entry))
    }

    /// The status of a copy, once the stream to its peer is up: right after the group was made that takes a moment. Waits only for a
    /// peer that is heard.
    async fn status_once_linked(&self, copy: VolumeId, shard: u16) -> Result<Status, EngineError> {
        let until = Instant::now() + LINKING;
        loop {
            let status = self.status_of(copy, shard).await?;
            let is_heard = |site| self.heartbeats.board.health(site).is_alive(Instant::now());
            let comes_up = matches!(status.link, LinkState::Disconnected | LinkState::Handshaking);
            if !comes_up || !status.peer.is_some_and(is_heard) || Instant::now() >= until {
                return Ok(status);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A volume about to join is known, as one that is pending.
    async fn list_joining(&self, copy: VolumeId, id: VolumeId, new: &NewVolume) -> Result<(), EngineError> {
        let frontend = new.policy.frontend.unwrap_or_default();
        let record = VolumeRecord { pending: true, ..new_record(id, new.name.clone(), frontend) };
        self.list(copy, record).await
    }

    async fn list(&self, copy: VolumeId, record: VolumeRecord) -> Result<(), EngineError> {
        let (entry, limit) = (entry_of(copy, &record), self.config.limits.volumes);
        self.keep(move |catalogue| {
            catalogue.reserve(record.id, std::slice::from_ref(&record.name), Joined::Known(copy), limit)?;
            catalogue.enlist_volume(copy, record)
        })
        .await?;
        self.state().volumes.insert(entry.id, entry);
        Ok(())
    }

    /// Both agents know the name, then both have a base, then the group has the volume.
    async fn join(
        &self,
        at: At,
        name: &Name,
        dir: &Path,
        base: Option<PathBuf>,
        layout: &Layout,
        status: &Status,
    ) -> Result<(), EngineError> {
        let size = layout.volume_size(at.volume).unwrap_or(0);
        if let Some(site) = status.peer {
            self.announce(site, JoiningVolume { copy: at.copy, volume: at.volume, name: name.to_string() }).await?;
        }
        let (dir, volume) = (dir.to_owned(), at.volume);
        let laid = tokio::task::spawn_blocking(move || lay_ready(&dir, volume, base, size)).await;
        laid.map_err(failed)??;
        self.make_room(at, layout.clone()).await?;
        self.verb_on(at.copy, at.shard, Verb::AddVolume { volume, size }).await.map(drop)
    }

    /// Has the bases here hold `layout`.
    pub(super) async fn make_room(&self, at: At, layout: Layout) -> Result<(), EngineError> {
        self.on_copy(at.copy, at.shard, move |copy| copy.files().make_room(&layout)).await?.map_err(failed)
    }

    /// Tells the peer's agent the name of a volume that is about to join.
    async fn announce(&self, site: SiteId, joining: JoiningVolume) -> Result<(), EngineError> {
        let address = self.state().peers.values().find(|peer| peer.site == Some(site)).and_then(address_of);
        let address = address.ok_or_else(|| unreachable_peer(site, "its address is not known here"))?;
        add_volume(&address, &self.transport, &joining).await.map_err(|error| match error {
            CallError::Connect(_) => unreachable_peer(site, &error.to_string()),
            CallError::Refused(text) => {
                EngineError::Refused { reason: "peer-refused", text: format!("the peer: {text}") }
            }
            CallError::NotFound => unreachable_peer(site, "it has no copy of the group yet"),
        })
    }

    /// A volume that did not join is forgotten, unless it did after all.
    ///
    /// # Errors
    /// When nobody knows yet whether it did, or something of it cannot be removed.
    async fn abandon(&self, at: At) -> Result<(), EngineError> {
        let status = self.status_of(at.copy, at.shard).await?;
        if status.layout.has(at.volume) {
            self.take_layout(at.copy).await;
            return Ok(());
        }
        if !matches!(status.copy, CopyState::Current | CopyState::CatchingUp | CopyState::Stale) {
            return Err(EngineError::Failed("this copy may not know all volumes of its group".into()));
        }
        self.forget_volume(at).await
    }

    /// The peer is about to add a volume to a group of which it is the primary.
    pub(super) async fn expect_volume(&self, site: Option<SiteId>, joining: JoiningVolume) -> Result<(), EngineError> {
        let JoiningVolume { copy, volume, name } = joining;
        let name = Name::parse(&name).map_err(|_| EngineError::Failed("impossible volume name".into()))?;
        let (peer_site, known) = {
            let state = self.state();
            let open = state.copies.get(&copy).filter(|copy| copy.closed.is_none());
            let here = open.ok_or_else(|| EngineError::NoVolume(copy.to_string()))?;
            let known = state.volumes.get(&volume).map(|entry| (entry.copy, entry.name.clone()));
            (here.peer_site, known)
        };
        if peer_site.is_none() || site.is_some_and(|site| Some(site) != peer_site) {
            return Err(EngineError::Failed("only the peer of the group may add volumes to it".into()));
        }
        match known {
            Some((of, named)) if of == copy && named == name => return Ok(()),
            Some(_) => return Err(EngineError::Exists("another volume of this identity is here".into())),
            None => {}
        }
        // What an attempt before this one left: the primary has seen to it that its record does not come any more.
        if let Some(left) = self.left_over(copy, &name) {
            self.abandon(left).await.map_err(|error| stays(&name, &error.to_string()))?;
        }
        self.list(copy, VolumeRecord { pending: true, ..new_record(volume, name, FrontendKind::Auto) }).await
    }

    /// What the core says of a copy's volumes becomes known: one that joined is there, one that left goes with its base as soon as
    /// nothing needs that any more.
    pub(super) async fn take_layout(&self, copy: VolumeId) {
        let Some(shard) = self.state().copies.get(&copy).filter(|copy| copy.closed.is_none()).map(|copy| copy.shard)
        else {
            return;
        };
        let Ok(status) = self.status_of(copy, shard).await else { return };
        for volume in status.layout.volumes() {
            if let Err(error) = self.see(At { volume, copy, shard }).await {
                tracing::warn!(%volume, %error, "a volume of the group is not remembered");
            }
        }
        // Before the log is read nobody knows which volumes there are.
        if status.copy != CopyState::Current {
            return;
        }
        let gone: Vec<(VolumeId, bool)> = {
            let state = self.state();
            let left = state.volumes.values().filter(|entry| entry.copy == copy && !entry.pending);
            let left = left.filter(|entry| !status.layout.has(entry.id));
            left.map(|entry| (entry.id, entry.leaving)).collect()
        };
        for (volume, leaving) in gone {
            if !leaving {
                self.see_leaving(volume).await;
            }
            if !status.base_layout.has(volume) {
                self.forget_unless_needed(At { volume, copy, shard }).await;
            }
        }
    }

    /// A failure is found again at the next look.
    async fn forget_unless_needed(&self, at: At) {
        if let Err(error) = self.forget_volume(at).await {
            tracing::warn!(id = %at.volume, %error, "a removed volume stays");
        }
    }

    /// A volume has left its group: it is closed, and its name is free.
    async fn see_leaving(&self, volume: VolumeId) {
        let _ = self.detach_volume(volume, true).await; // is logged where it matters: nothing is served
        let Ok(name) = Name::parse(&volume.to_string()) else { return };
        let renamed = name.clone();
        if let Err(error) = self.keep(move |catalogue| catalogue.rename_volume(volume, renamed)).await {
            tracing::warn!(%volume, %error, "the name of a volume that left its group is not free");
        }
        if let Some(entry) = self.state().volumes.get_mut(&volume) {
            (entry.name, entry.leaving) = (name, true);
        }
    }

    /// A volume is in its group.
    async fn see(&self, at: At) -> Result<(), EngineError> {
        let known = self.state().volumes.get_mut(&at.volume).map(|entry| {
            entry.leaving = false; // a removal that was cut from the log
            (entry.pending, entry.name.clone())
        });
        let (dir, name) = match known {
            Some((false, _)) => return Ok(()),
            Some((true, name)) => {
                let volume = at.volume;
                self.keep(move |catalogue| catalogue.settle_volume(volume)).await?;
                (self.dir_of(at.copy), name)
            }
            None => {
                // Nobody told its name: it goes by its identity.
                let name = Name::parse(&at.volume.to_string()).map_err(failed)?;
                self.list(at.copy, new_record(at.volume, name.clone(), FrontendKind::Auto)).await?;
                (self.dir_of(at.copy), name)
            }
        };
        if let Some(entry) = self.state().volumes.get_mut(&at.volume) {
            entry.pending = false;
        }
        if let Some(dir) = dir {
            self.hide_base(&dir, at.volume, &name);
        }
        Ok(())
    }

    pub(super) fn dir_of(&self, copy: VolumeId) -> Option<PathBuf> {
        self.state().copies.get(&copy).map(|copy| copy.dir.clone())
    }

    /// Removes a volume's base, which nothing is composed of any more, and what is known of it.
    ///
    /// # Errors
    /// When its base is still needed, or something of it cannot be removed.
    async fn forget_volume(&self, at: At) -> Result<(), EngineError> {
        if let Some(dir) = self.dir_of(at.copy) {
            self.unhide_base(&dir, at.volume);
        }
        let removed = self.on_copy(at.copy, at.shard, move |copy| copy.files().remove_base(at.volume)).await?;
        match removed.map_err(failed)? {
            true => self.keep(move |catalogue| catalogue.drop_volume(at.copy, at.volume)).await?,
            false => return Err(EngineError::Failed("its base is still part of the group's".into())),
        }
        self.state().volumes.remove(&at.volume);
        Ok(())
    }

    /// Removes one of several volumes from its group, at both sites.
    pub(super) async fn remove_volume(&self, at: At, force: bool) -> Result<(), EngineError> {
        let _turn = self.changing(at.copy).await?;
        let status = self.status_of(at.copy, at.shard).await?;
        if status.role != Role::Primary {
            let role = role(&status.role).text;
            let hint = "one of several volumes is removed at the primary of its group; `tidemark group delete` removes this site's copy";
            return Err(VerbError::Role { role, hint: hint.into() }.into());
        }
        self.detach_volume(at.volume, force).await?;
        self.verb_on(at.copy, at.shard, Verb::RemoveVolume { volume: at.volume }).await?;
        // What it held is nobody's: the sooner its base is free the better, and later is as good.
        let _ = self.verb_on(at.copy, at.shard, Verb::Drain).await;
        self.take_layout(at.copy).await;
        Ok(())
    }
}

/// Makes the base of a volume that is about to join.
fn lay_ready(dir: &Path, volume: VolumeId, base: Option<PathBuf>, size: u64) -> Result<(), EngineError> {
    let Some(path) = base else {
        return files::lay_ready(dir, volume, &NewBase::Image { size }).map_err(failed);
    };
    let made = EmptyBase { path: path.clone(), size }.prepare()?;
    let laid = files::lay_ready(dir, volume, &NewBase::Adopt { path }).map_err(failed);
    if let (Err(_), Some(file)) = (&laid, made) {
        file.remove();
    }
    laid
}

/// Whether the volumes of a group in this state can be changed; the core has the last word.
pub(super) fn may_change(status: &Status) -> Result<(), EngineError> {
    if status.role != Role::Primary {
        let (role, hint) = (role(&status.role).text, "a volume is added or resized at its primary".into());
        return Err(VerbError::Role { role, hint }.into());
    }
    match (status.peer, &status.link) {
        (Some(site), LinkState::Disconnected | LinkState::Refused(_)) => {
            Err(unreachable_peer(site, "both copies grow, and it cannot be asked"))
        }
        _ => Ok(()),
    }
}

fn unreachable_peer(site: SiteId, why: &str) -> EngineError {
    let text = format!("site {site} is needed: {why}; try again when it is connected");
    EngineError::Refused { reason: "peer-unreachable", text }
}

/// Whether a volume may join although its addition ended with this: its record may wait in the log.
fn may_come(error: &EngineError) -> bool {
    matches!(error, EngineError::Verb(VerbError::Interrupted(_)) | EngineError::Stopping)
}

/// What an attempt before left is in the way of the next one.
fn stays(name: &Name, why: &str) -> EngineError {
    let text = format!("an attempt before to add volume {name} is not settled: {why}; try again later");
    EngineError::Refused { reason: "left-over", text }
}

fn adopts_nothing(group: &Name) -> EngineError {
    let text = format!(
        "group {group} is there already, and what a device holds cannot join it: only a new group can begin with an adopted volume; a \
         new, empty volume can join (`tidemark volume create --group {group}`)"
    );
    EngineError::Refused { reason: "group-exists", text }
}

/// What the volumes of a group have in common, and a request wants otherwise.
fn other_terms(new: &NewVolume, peer: Option<SiteId>, pool: &Name, status: &Status) -> Vec<String> {
    let mut out = Vec::new();
    if peer.is_some() && peer != status.peer {
        let site = status.peer.map_or_else(|| "no peer".to_owned(), |site| format!("the peer {site}"));
        out.push(site);
    }
    if new.pool.as_ref().is_some_and(|wanted| wanted != pool) {
        out.push(format!("the pool {pool}"));
    }
    let policy: Policy = status.policy;
    if new.policy.mode.is_some_and(|mode| mode != policy.mode) {
        out.push(format!("the mode {:?}", policy.mode).to_lowercase());
    }
    let own = new.policy.frontend.unwrap_or_default();
    out.extend(new.policy.differing(&policy, own).map(|field| format!("the {field}")));
    out
}
