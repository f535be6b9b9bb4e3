//! What the verbs of this agent would do: the checks with which each of them begins, and the plan of the copy.

use tidemark_core::config::Policy;
use tidemark_core::layout::Layout;
use tidemark_core::plan::Plan;
use tidemark_core::status::Status;
use tidemark_core::types::VolumeId;
use tidemark_core::verb::{Verb, VerbError};

use super::arbiter::Arbiter;
use super::groups::may_change;
use super::{Agent, At, Peer};
use crate::control::{
    Disposal, EngineError, Explained, Foretold, PeerKey, Planned, PolicyPatch, Scope, explained_verbs,
};

/// What a deletion removes.
pub(super) enum Removal {
    /// One of several volumes, out of its group.
    OfVolume,
    /// This site's copy of the group.
    OfCopy {
        /// It is open, and is closed first.
        is_open: bool,
    },
}

impl Agent {
    /// What `verb` would do, by the checks of its own.
    pub(super) async fn plan_of(&self, at: At, verb: Planned) -> Foretold {
        match verb {
            Planned::Copy(verb) => self.plan_verb(at, verb).await,
            Planned::Switchover(switchover) => self.plan_switchover(at, &switchover).await,
            Planned::Policy(patch) => self.plan_policy(at, patch).await,
            Planned::Peer(peer) => {
                let peer = peer.map(|key| self.find_peer(&key)).transpose()?;
                let site = peer.as_ref().map(Peer::known_site).transpose()?;
                self.plan_on(at, Verb::SetPeer(site)).await
            }
            Planned::Resize { size } => {
                may_grow(at.volume, &self.status_of(at.copy, at.shard).await?, size)?;
                self.plan_on(at, Verb::Resize { volume: at.volume, size }).await
            }
            Planned::Release => {
                self.may_release(at)?;
                let mut plan = self.plan_on(at, Verb::Release).await?;
                if self.is_attached(at.volume) {
                    plan.steps.insert(0, "the device is detached, which is refused while it is in use".into());
                }
                Ok(plan)
            }
            Planned::DropBranch { number, acknowledged } => self.plan_drop(at, number, acknowledged).await,
            Planned::Delete { scope, disposal, force } => self.plan_deletion(at, scope, disposal, force).await,
        }
    }

    /// The plan of the copy.
    pub(super) async fn plan_on(&self, at: At, verb: Verb) -> Foretold {
        let asked = self.shard(at.shard).ask::<Result<Plan, VerbError>>(move |shard, answer| {
            let closed = || Err(VerbError::Interrupted("the volume is not open".into()));
            let _ = answer.send(shard.volume(at.copy).map_or_else(closed, |copy| copy.plan(&verb))); // the asker went away
        });
        Ok(asked.await.map_err(|_| EngineError::Stopping)??)
    }

    async fn plan_verb(&self, at: At, verb: Verb) -> Foretold {
        self.may_begin(at.copy, &verb)?;
        self.plan_on(at, verb).await
    }

    /// What this agent has against a verb of the copy.
    pub(super) fn may_begin(&self, copy: VolumeId, verb: &Verb) -> Result<(), EngineError> {
        let stops = matches!(verb, Verb::Demote { force: false } | Verb::Switchover { force: false, .. });
        if stops && self.has_attached(copy) {
            let text =
                "a volume of the group is attached: detach it first (`switchover --detach` does), or use --force"
                    .into();
            return Err(EngineError::Refused { reason: "in-use", text });
        }
        if matches!(verb, Verb::Reseed) {
            self.refuse_while_viewed(copy)?;
        }
        Ok(())
    }

    /// Whether a volume can be given back.
    pub(super) fn may_release(&self, at: At) -> Result<(), EngineError> {
        self.refuse_of_several(at.copy, "release gives back the base of a volume that is alone in its group")
    }

    fn is_attached(&self, volume: VolumeId) -> bool {
        self.state().volumes.get(&volume).is_some_and(|entry| entry.open.is_some())
    }

    /// Whether a volume of the copy is attached.
    pub(super) fn has_attached(&self, copy: VolumeId) -> bool {
        self.state().volumes_of(copy).iter().any(|entry| entry.open.is_some())
    }

    async fn plan_policy(&self, at: At, patch: PolicyPatch) -> Foretold {
        let mut plan = match patch.changes_policy() {
            true => {
                let policy: Policy = patch.applied_to(self.status_of(at.copy, at.shard).await?.policy);
                self.may_arbitrate(&patch, &policy)?;
                self.plan_on(at, Verb::SetPolicy(policy)).await?
            }
            false => Plan::of::<String>([]),
        };
        if patch.frontend.is_some() {
            plan.steps.push("the frontend is recorded at this site, for the next attach".into());
        }
        if plan.steps.is_empty() {
            plan.steps.push("nothing: no field is named".into());
        }
        Ok(plan)
    }

    async fn plan_deletion(&self, at: At, scope: Scope, disposal: Disposal, force: bool) -> Foretold {
        let is_open = match self.may_delete(at, scope, disposal, force).await? {
            Removal::OfVolume => {
                let mut plan = self.plan_on(at, Verb::RemoveVolume { volume: at.volume }).await?;
                if self.is_attached(at.volume) {
                    plan.steps.insert(0, "the device is detached: what waits on it fails".into());
                }
                return Ok(plan);
            }
            Removal::OfCopy { is_open } => is_open,
        };
        let mut plan = Plan::of::<String>([]);
        if self.has_attached(at.copy) {
            plan.steps.push("the device is detached: what waits on it fails".into());
        }
        if is_open {
            plan.steps.push("the copy is closed".into());
        }
        plan.steps.push(match disposal {
            Disposal::Trash => "its files go to the pool's trash; an adopted base stays where it is".into(),
            Disposal::Purge => "its files are removed for good; an adopted base stays where it is".into(),
        });
        Ok(plan)
    }

    /// Whether a volume, or this site's copy of a group, may be removed, and which of the two that is.
    pub(super) async fn may_delete(
        &self,
        at: At,
        scope: Scope,
        disposal: Disposal,
        force: bool,
    ) -> Result<Removal, EngineError> {
        let (volumes, is_open) = {
            let state = self.state();
            let copy = state.copies.get(&at.copy).ok_or_else(|| EngineError::NoVolume(at.volume.to_string()))?;
            (state.volumes_of(at.copy).len(), copy.closed.is_none())
        };
        let of_several = scope == Scope::Volume && volumes > 1;
        let attached = if of_several { self.is_attached(at.volume) } else { self.has_attached(at.copy) };
        if attached && !force {
            let text = "the volume is attached: detach it first, or use force".into();
            return Err(EngineError::Refused { reason: "in-use", text });
        }
        if of_several {
            return match disposal {
                Disposal::Purge => Ok(Removal::OfVolume),
                Disposal::Trash => Err(no_trash_for_one()),
            };
        }
        if is_open && !force {
            leaves_no_peer_behind(&self.status_of(at.copy, at.shard).await?)?;
        }
        Ok(Removal::OfCopy { is_open })
    }

    /// What forgetting a site would do.
    pub(super) fn plan_peer_removal(&self, key: &PeerKey) -> Foretold {
        let peer = self.removable_peer(key)?;
        Ok(Plan::of([format!("site {} is forgotten here; its certificate is trusted no more", peer.name)]))
    }

    /// Why a volume, and its group with it, is as it is.
    pub(super) async fn explained(&self, at: At) -> Result<Explained, EngineError> {
        let info = self.info(at.volume).await?;
        let scope = if info.group_volumes.len() > 1 { Scope::Group } else { Scope::Volume };
        let mut verbs = Vec::new();
        for (name, verb) in explained_verbs(scope, info.peer_site) {
            verbs.push((name, self.plan_of(at, verb).await));
        }
        Ok(Explained { info, witness: self.arbiter.as_ref().map(Arbiter::info), verbs })
    }
}

/// The layout of a group once one of its volumes has `size` bytes, if it can be grown to that; the core has the last word.
pub(super) fn may_grow(volume: VolumeId, status: &Status, size: u64) -> Result<Layout, EngineError> {
    let present = status.layout.volume_size(volume).unwrap_or(0);
    if size < present {
        let text = format!("is {size}: a volume never shrinks, and this one has {present} bytes");
        return Err(EngineError::Invalid { field: "size", text });
    }
    may_change(status)?;
    let grown = status.layout.grown(volume, size);
    grown.map_err(|error| EngineError::Invalid { field: "size", text: error.to_string() })
}

fn no_trash_for_one() -> EngineError {
    let text = "what one of several volumes last held is in the log of its group, and no file of its own would hold it: it is removed for good (--purge)";
    EngineError::Refused { reason: "group-of-several", text: text.into() }
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
