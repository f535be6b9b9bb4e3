//! Who a peer is: said by whoever made it known, else learnt at the first contact and kept for good.
//!
//! What is learnt is the site in the certificate of the first agent that answers at the peer's address, for which the peer's
//! authority must vouch; on insecure connections it is what that agent says. Only a peer that this agent dialled is learnt: who
//! calls by itself proves nothing about an address. From then on every other site is refused there, as if it had been said.

use std::sync::{Arc, Weak};

use tidemark_core::types::SiteId;

use super::peers::address_of;
use super::{Agent, Peer};
use crate::catalogue::PeerRecord;
use crate::config::Name;
use crate::control::EngineError;
use crate::peer::{Backoff, Heartbeats, PeerAddress, Transport, first_contact, keep_beating};

impl Peer {
    /// Its site, to name it in a volume.
    pub(super) fn known_site(&self) -> Result<SiteId, EngineError> {
        let why = || match &self.fault {
            Some(why) => format!(": {why}"),
            None => String::new(),
        };
        let text = || {
            let name = &self.name;
            format!("the site id of peer {name} is learnt at the first contact, and there was none yet{}", why())
        };
        self.site.ok_or_else(|| EngineError::Refused { reason: "peer-unreachable", text: text() })
    }
}

impl Agent {
    /// Beats with a peer on the control runtime, as soon as its site is known; whatever beat with that peer before ends.
    pub(super) fn begin_beating(self: &Arc<Self>, peer: &Peer) {
        let Some(address) = address_of(peer) else { return };
        let (heartbeats, transport) = (self.heartbeats.clone(), self.transport.clone());
        let (agent, name) = (Arc::downgrade(self), peer.name.clone());
        let task = self.runtime.spawn(async move {
            let site = match address.site {
                Some(site) => Some(site),
                None => meet(agent, &name, &address, (&heartbeats, &transport)).await,
            };
            keep_beating(heartbeats, PeerAddress { site, ..address }, transport).await;
        });
        if let Some(former) = self.state().beating.insert(peer.name.clone(), task.abort_handle()) {
            former.abort();
        }
    }

    /// Keeps that peer `name` is `site`.
    async fn learn(&self, name: &Name, site: SiteId) -> Result<(), String> {
        let record = self.claim(name, site)?;
        let kept = self.keep(move |catalogue| catalogue.learn_site(record, site)).await;
        let mut state = self.state();
        if let Some(peer) = state.peers.get_mut(name) {
            peer.fault = kept.as_ref().err().map(ToString::to_string);
            peer.site = peer.site.filter(|_| kept.is_ok());
        }
        drop(state);
        kept.map_err(|error| error.to_string())?;
        self.trust_peers();
        tracing::info!(peer = %name, %site, "the site of the peer is learnt, and kept");
        Ok(())
    }

    /// Gives peer `name` its site, unless that is somebody else's.
    fn claim(&self, name: &Name, site: SiteId) -> Result<PeerRecord, String> {
        let mut state = self.state();
        if let Some(why) = self.belongs_to_another(state.peers.values(), name, site) {
            return Err(why);
        }
        let peer = state.peers.get_mut(name).ok_or("it is no peer any more")?;
        peer.site = Some(site);
        let (name, address, of_config) = (peer.name.clone(), peer.address.clone(), peer.from_config);
        Ok(PeerRecord { name, site: None, address, own_ca: false, of_config })
    }

    /// Why peer `name` cannot be `site`.
    pub(super) fn belongs_to_another<'p>(
        &self,
        mut peers: impl Iterator<Item = &'p Peer>,
        name: &Name,
        site: SiteId,
    ) -> Option<String> {
        if site == self.site {
            return Some("it is this site itself".to_owned());
        }
        let other = peers.find(|peer| peer.name != *name && peer.site == Some(site))?;
        Some(format!("site {site} is peer {} already", other.name))
    }
}

/// Tries until the peer has said who it is; none: the agent stops.
async fn meet(
    agent: Weak<Agent>,
    name: &Name,
    address: &PeerAddress,
    (heartbeats, transport): (&Heartbeats, &Transport),
) -> Option<SiteId> {
    let mut backoff = Backoff::default();
    loop {
        let met = first_contact(heartbeats, address, transport).await;
        let agent = agent.upgrade()?;
        let learnt = match met {
            Ok(identity) => agent.learn(name, identity.site).await.map(|()| identity.site),
            Err(error) => Err(error.to_string()),
        };
        let why = match learnt {
            Ok(site) => return Some(site),
            Err(why) => why,
        };
        let pause = agent.pause(&mut backoff);
        if let Some(peer) = agent.state().peers.get_mut(name) {
            // A peer that stays away for the same reason is told once.
            if peer.fault.as_ref() != Some(&why) {
                tracing::info!(peer = %name, %why, "the site of the peer is not known yet");
            }
            peer.fault = Some(why);
        }
        drop(agent);
        tokio::time::sleep(pause).await;
    }
}
