//! Switchover, as far as it is this agent's: the site that is meant, and what is attached here.

use tidemark_core::types::SiteId;
use tidemark_core::verb::{Verb, VerbOk};

use super::{Agent, At};
use crate::control::{EngineError, Foretold, PeerKey, Switchover};

impl Agent {
    pub(super) async fn do_switchover(&self, at: At, switchover: &Switchover) -> Result<VerbOk, EngineError> {
        let verb = self.verb_of(switchover)?;
        if self.detaches(at, switchover, &verb)? {
            // Nothing is detached for what is refused anyway.
            self.plan_on(at, verb.clone()).await?;
            let volumes: Vec<_> = self.state().volumes_of(at.copy).into_iter().map(|entry| entry.id).collect();
            for volume in volumes {
                self.detach_volume(volume, false).await?;
            }
        }
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
}
