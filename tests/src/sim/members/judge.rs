//! What has to hold at every step, beyond what the clients see.

use tidemark_core::config::{Config, Since};
use tidemark_core::ship::{AdoptStep, Message};
use tidemark_core::types::{Epoch, Lsn};

use super::party::{MEMBERS, name, party};
use super::world::World;

/// The change of S that a site was asked for last.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    k: Since,
    is_expand: bool,
}

impl World {
    /// A process has taken facts: what it holds now is compared with what the others do.
    pub(super) fn judge_party(&mut self, p: usize) {
        let (site, leads) = (self.parties[p].site, self.parties[p].leads());
        let Some(node) = &self.parties[p].node else { return };
        let (k, durable) = (node.config(), node.durable());
        let (id, epoch) = (k.id(), k.epoch);
        if self.persisted[p].is_none_or(|(old, _)| old != id) {
            self.persisted[p] = Some((id, durable));
        }
        if leads {
            self.leaders_k[site] = self.leaders_k[site].max(epoch);
        } else if epoch > self.leaders_k[site] {
            self.fail(format!("{} holds K {epoch}, its leader never did", name(p)));
        }
    }

    /// The group opens as one: every member of the site has a K that makes it the primary. A generation begins with each change of
    /// primary; who resumes keeps it.
    pub(super) fn judge_opening(&mut self, p: usize, k: &Config) {
        let site = self.parties[p].site;
        let lacks =
            |q: &usize| self.parties[*q].node.as_ref().is_some_and(|node| node.config().generation != k.generation);
        let behind = (0..MEMBERS).map(|m| party(site, m)).find(lacks);
        if let Some(q) = behind {
            return self.fail(format!("{} opens under K {}, {} has not persisted it", name(p), k.epoch, name(q)));
        }
        self.opened_under[site] = self.opened_under[site].max(k.epoch);
    }

    /// A copy answered although the other site had opened under a newer K. Without a witness a person vouches for that.
    pub(super) fn judge_probe(&mut self, p: usize, against: Epoch) {
        let epoch = self.parties[p].node.as_ref().map(|node| node.config().epoch);
        if epoch.is_some_and(|epoch| epoch < against) {
            self.fail(format!("{} serves although the other site has opened under K {against}", name(p)));
        }
    }

    /// A leader asks for a change of S, or agrees to one.
    pub(super) fn judge_letter(&mut self, from: usize, message: &Message) {
        let site = self.parties[from].site;
        match message {
            Message::Expand { config, .. } => self.asked[1 - site] = Some(Asked { k: config.id(), is_expand: true }),
            Message::Adopt { config, step: AdoptStep::Release | AdoptStep::Handover, .. } => {
                self.asked[1 - site] = Some(Asked { k: config.id(), is_expand: false });
            }
            Message::ConfigAnswer { epoch, nonce, result: Ok(()) } => {
                let k = Since { epoch: *epoch, nonce: *nonce };
                if let Some(asked) = self.asked[site].filter(|asked| asked.k == k) {
                    self.judge_agreement(site, asked);
                }
            }
            _ => {}
        }
    }

    /// Every member of the site has persisted what its leader agrees to, and holds what its peer had when that persisted it.
    fn judge_agreement(&mut self, site: usize, asked: Asked) {
        for member in 0..MEMBERS {
            let (p, peer) = (party(site, member), party(1 - site, member));
            let Some(node) = &self.parties[p].node else { continue };
            if node.config().epoch < asked.k.epoch {
                return self.fail(format!(
                    "{}'s leader agrees to K {}, which it has not persisted",
                    name(p),
                    asked.k.epoch
                ));
            }
            let tail: Option<Lsn> = self.persisted[peer].filter(|(k, _)| *k == asked.k).map(|(_, tail)| tail);
            let durable = node.durable();
            if let Some(tail) = tail.filter(|tail| asked.is_expand && durable < *tail) {
                return self.fail(format!("{} joins S with {durable} durable, without the tail {tail}", name(p)));
            }
        }
    }

    /// Everything is as it should be after a while without trouble.
    pub(super) fn is_settled(&self) -> Result<usize, String> {
        let mut nodes = Vec::new();
        for party in &self.parties {
            nodes.push(party.node.as_ref().ok_or("a process is down")?);
        }
        let k = nodes[0].config();
        if let Some(other) = nodes.iter().find(|node| node.config().id() != k.id()) {
            return Err(format!("one K is {}, another {}", k.epoch, other.config().epoch));
        }
        let site = match k.primary {
            Some(site) => usize::from(site.0[0]) - 1,
            None => return Err(format!("K {} has no primary", k.epoch)),
        };
        if k.sites.len() != 2 {
            return Err(format!("S of K {} is one site", k.epoch));
        }
        for member in 0..MEMBERS {
            let (p, follower) = (party(site, member), party(1 - site, member));
            if self.parties[p].serves.is_none() {
                return Err(format!("{} does not serve: {:?}", name(p), self.parties[p].role));
            }
            let end = nodes[p].appended();
            if nodes[follower].appended() != end || nodes[follower].durable() != end.lsn {
                return Err(format!("{} has not caught up", name(follower)));
            }
        }
        match self.clients.iter().all(|client| client.is_done()) {
            true => Ok(site),
            false => Err("a client waits".into()),
        }
    }
}
