//! Switchovers that are struck between the demotion and the promotion: a process dies, or the link breaks, just as one of the
//! messages leaves by which the role changes hands. Nobody helps then: some site has to become the primary by itself. What is drawn
//! for that comes from a stream of its own.

use tidemark_core::ship::Message;
use tidemark_core::status::{CopyState, Status};

use crate::sim::copy::Copy;
use crate::sim::disk::Crash;
use crate::sim::faults::Fault;
use crate::sim::rng::Rng;
use crate::sim::world::World;

/// Separates these draws from all others.
const STREAM: u64 = 0x6861_6e64_6f76_6572;
/// Of a hundred such messages.
const SHARE: u32 = 15;

pub(super) fn stream(seed: u64) -> Rng {
    Rng::new(seed ^ STREAM)
}

fn changes_hands(message: &Message) -> bool {
    match message {
        Message::HandOver { .. } | Message::HandedOver { .. } => true,
        Message::Adopt { config, .. } => config.hands_over,
        _ => false,
    }
}

impl<C: Copy> World<C> {
    /// A message leaves `site`.
    pub(super) fn strike_handing(&mut self, site: usize, message: &Message) {
        if !changes_hands(message) || self.operator.is_ending() || !self.handing.percent(SHARE) {
            return;
        }
        self.fired.hit(Fault::HandingStruck);
        let how = if self.handing.percent(50) { Crash::Power } else { Crash::Kill };
        let [ms, other_ms] = [0; 2].map(|_| self.handing.log_between(5, 4_000));
        match self.handing.below(4) {
            0 => self.lose(site, how, ms),
            1 => self.lose(1 - site, how, ms),
            2 => self.sever(ms),
            _ => {
                self.lose(site, how, ms);
                self.lose(1 - site, how, other_ms);
            }
        }
    }

    /// Nobody is the primary, one site is to become it, and nothing is wrong with either.
    pub(super) fn is_handed_over(&self) -> bool {
        let status = |site: usize| self.sites[site].status.as_deref().filter(|_| self.sites[site].node.is_some());
        let (Some(a), Some(b)) = (status(0), status(1)) else { return false };
        let newest = if a.config.epoch > b.config.epoch { &a.config } else { &b.config };
        let is_well = |s: &Status| matches!(s.copy, CopyState::Current | CopyState::CatchingUp | CopyState::Stale);
        newest.primary.is_none() && newest.hands_over && is_well(a) && is_well(b)
    }
}
