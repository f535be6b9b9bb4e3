//! Switchover, as far as it is this agent's: the site that is meant, and what is attached here. What is detached for it is attached
//! again where this site serves on; and nothing is attached while it, or a demotion, is under way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_core::types::{SiteId, VolumeId};
use tidemark_core::verb::{Verb, VerbOk};
use tokio::sync::OwnedMutexGuard;

use super::{Agent, At};
use crate::control::{EngineError, Foretold, FrontendKind, PeerKey, Switchover};

/// How long an attach that is under way is waited for.
const ATTACH_PATIENCE: Duration = Duration::from_secs(5);
/// How long it is tried to attach again what was detached, and how often.
const BACK_PATIENCE: Duration = Duration::from_secs(300);
const BACK_PAUSE: Duration = Duration::from_millis(500);

/// A volume that was detached, and its frontend.
type Detached = (VolumeId, FrontendKind);

impl Agent {
    pub(super) async fn do_switchover(
        self: &Arc<Self>,
        at: At,
        switchover: &Switchover,
    ) -> Result<VerbOk, EngineError> {
        let verb = self.verb_of(switchover)?;
        let turns = self.keep_detached(at, switchover.detach || !switchover.force).await?;
        let detached = match self.detaches(at, switchover, &verb)? {
            true => {
                // Nothing is detached for what is refused anyway.
                self.plan_on(at, verb.clone()).await?;
                self.detach_all(at).await
            }
            false => Ok(Vec::new()),
        };
        let (detached, ended) = match detached {
            Ok(detached) => (detached, self.verb_on(at.copy, at.shard, verb).await),
            Err((detached, error)) => (detached, Err(error)),
        };
        drop(turns);
        if ended.is_err() {
            self.attach_again(at, detached).await;
        }
        ended
    }

    /// A demotion, or any other verb that needs no more.
    pub(super) async fn do_verb(&self, at: At, verb: Verb) -> Result<VerbOk, EngineError> {
        let _turns = self.keep_detached(at, matches!(verb, Verb::Demote { force: false })).await?;
        self.may_begin(at.copy, &verb)?;
        self.verb_on(at.copy, at.shard, verb).await
    }

    pub(super) async fn plan_switchover(&self, at: At, switchover: &Switchover) -> Foretold {
        let verb = self.verb_of(switchover)?;
        let detaches = self.detaches(at, switchover, &verb)?;
        let mut plan = self.plan_on(at, verb).await?;
        if detaches {
            plan.steps.insert(0, "what is attached is detached, which is refused while it is in use".into());
        }
        Ok(plan)
    }

    fn verb_of(&self, switchover: &Switchover) -> Result<Verb, EngineError> {
        Ok(Verb::Switchover { to: self.site_of(&switchover.to)?, force: switchover.force })
    }

    /// Whether something is to be detached first.
    fn detaches(&self, at: At, switchover: &Switchover, verb: &Verb) -> Result<bool, EngineError> {
        let stays = matches!(verb, Verb::Switchover { to, .. } if *to == self.site);
        match switchover.detach {
            _ if stays => Ok(false),
            true => Ok(self.has_attached(at.copy)),
            false => self.may_begin(at.copy, verb).map(|()| false),
        }
    }

    /// The site of this name or id: this one, or a known peer.
    fn site_of(&self, key: &PeerKey) -> Result<SiteId, EngineError> {
        match key {
            PeerKey::Name(name) if *name == self.config.site.name => Ok(self.site),
            PeerKey::Site(site) if *site == self.site => Ok(self.site),
            _ => self.find_peer(key)?.known_site(),
        }
    }

    // ---- what is attached ---------------------------------------------------------------------------------------------

    fn volumes_at(&self, at: At) -> Vec<VolumeId> {
        self.state().volumes_of(at.copy).into_iter().map(|entry| entry.id).collect()
    }

    /// As long as this is held nothing of the group is attached. Empty when that is not `wanted`.
    async fn keep_detached(&self, at: At, wanted: bool) -> Result<Vec<OwnedMutexGuard<()>>, EngineError> {
        let mut turns = Vec::new();
        for volume in self.volumes_at(at).into_iter().filter(|_| wanted) {
            let busy = |_| EngineError::Refused {
                reason: "in-use",
                text: "a volume of the group is being attached: ask again when that has ended".into(),
            };
            turns.extend(tokio::time::timeout(ATTACH_PATIENCE, self.turn(volume)).await.map_err(busy)?);
        }
        Ok(turns)
    }

    /// Detaches everything. With the error comes what was detached before it.
    async fn detach_all(&self, at: At) -> Result<Vec<Detached>, (Vec<Detached>, EngineError)> {
        let mut detached = Vec::new();
        for volume in self.volumes_at(at) {
            let kind = self.open_frontend(volume).and_then(|_| self.attachment_wanted(volume));
            if let Err(error) = self.detach_volume(volume, false).await {
                return Err((detached, error));
            }
            detached.extend(kind.map(|kind| (volume, kind)));
        }
        Ok(detached)
    }

    /// Nothing came of it: what was attached is so again, at once where this site serves, else as soon as it does. Where the other site
    /// became the primary it is left.
    async fn attach_again(self: &Arc<Self>, at: At, detached: Vec<Detached>) {
        for (volume, kind) in detached {
            if self.attach_volume(volume, kind).await.is_err() {
                let agent = self.clone();
                self.runtime.spawn(async move { agent.attach_when_it_serves(at, volume, kind).await });
            }
        }
    }

    async fn attach_when_it_serves(self: Arc<Self>, at: At, volume: VolumeId, kind: FrontendKind) {
        let began = Instant::now();
        while began.elapsed() < BACK_PATIENCE {
            tokio::time::sleep(BACK_PAUSE).await;
            let Ok(status) = self.status_of(at.copy, at.shard).await else { return };
            if status.config.primary.is_some_and(|primary| primary != self.site) {
                return;
            }
            match self.attach_volume(volume, kind).await {
                Ok(_) | Err(EngineError::NoVolume(_) | EngineError::Stopping) => return,
                Err(error) => tracing::debug!(%volume, %error, "not attached again yet"),
            }
        }
        tracing::warn!(%volume, "what was detached for a switchover that failed is not attached again");
    }
}
