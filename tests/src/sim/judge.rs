//! What a witnessed pair promises on top of the model of the workload: one site serves at a time, who takes over has everything, what
//! parts is sealed.

use std::collections::BTreeMap;

use tidemark_core::config::{Config, Mode};
use tidemark_core::status::{CopyState, Role, Status, SuspendReason};
use tidemark_core::types::Lsn;

use crate::sim::copy::Copy;
use crate::sim::faults::Fault;
use crate::sim::model::LineId;
use crate::sim::world::{World, name, note};

/// What a site has.
#[derive(Clone, Copy, Debug)]
struct Kept {
    durable: Lsn,
    branches: u32,
    /// A suffix was sealed and not cut off yet.
    sealed: bool,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Judge {
    /// When each line first acknowledged a change.
    first_change: BTreeMap<LineId, u64>,
    /// Where the volume was served last.
    served_at: Option<usize>,
    /// Durable tail and sealed suffixes of each site as last seen.
    kept: [Option<Kept>; 2],
    /// The process of each site whose log is recovered.
    recovered: [u32; 2],
    /// The last role of each site was a frozen primary.
    frozen: [bool; 2],
}

impl Judge {
    /// A site's copy is made anew.
    pub fn forget(&mut self, site: usize) {
        self.kept[site] = None;
    }
}

impl<C: Copy> World<C> {
    /// K as a site has it, or had it when it was seen last.
    pub(super) fn k_at(&self, site: usize) -> Option<Config> {
        let s = &self.sites[site];
        let running = s.node.as_ref().map(|node| node.terms().0.clone());
        running.or_else(|| s.status.as_ref().map(|status| status.config.clone()))
    }

    /// The witness accepted a K of `site`.
    pub(super) fn judge_accepted(&mut self, site: usize, before: Option<Config>, after: Option<Config>) {
        let Some(new) = after else { return };
        if let Some(old) = &before
            && new.epoch.major <= old.epoch.major
        {
            return self.fail(format!("the witness held {} and accepts {} of {}", old.epoch, new.epoch, name(site)));
        }
        // Joint changes are not at the witness.
        let known = [before.clone(), self.k_at(0), self.k_at(1)];
        let star = known.into_iter().flatten().filter(|k| k.epoch < new.epoch).max_by_key(|k| k.epoch);
        let Some(star) = star else { return };
        let me = self.sites[site].id;
        match (star.primary == new.primary, star.sites.len().cmp(&new.sites.len())) {
            (false, _) => {
                self.fired.hit(Fault::Takeover);
                if !star.has(me) || star.mode != Mode::Sync || new.primary != Some(me) {
                    let k = crate::sim::world::k(&star);
                    self.fail(format!("{} takes over although {k} is in force", name(site)));
                }
            }
            (true, std::cmp::Ordering::Greater) => self.fired.hit(Fault::Shrink),
            (true, _) if before.is_none() => self.fired.hit(Fault::Armed),
            (true, _) => self.fired.hit(Fault::Resume),
        }
    }

    /// A line was opened: where its site was not the last one to serve, it has everything that the other one promised.
    pub(super) fn judge_opened(&mut self, site: usize, line: LineId) {
        let Some(arb) = &mut self.arbitration else { return };
        let before = arb.judge.served_at.replace(site);
        if before == Some(1 - site) && arb.dead != Some(1 - site) {
            self.model.claim(line, 1 - site);
        }
    }

    /// A request of `line` that was issued at `since` succeeded at `site`: nothing newer was served elsewhere before.
    pub(super) fn judge_served(&mut self, site: usize, line: LineId, since: u64, changes: bool) {
        let (now, model) = (self.now, &self.model);
        let Some(arb) = &mut self.arbitration else { return };
        let judge = &mut arb.judge;
        let mut newer = judge.first_change.range(line + 1..);
        let replaced = newer.find(|(l, at)| model.site_of(**l) != Some(site) && **at < since);
        if let Some((other, at)) = replaced {
            let what = format!(
                "{} served in line {line} what was asked at {:.3} ms, although line {other} had served a change at the other \
                 site at {:.3} ms",
                name(site),
                since as f64 / 1e6,
                *at as f64 / 1e6
            );
            return self.fail(what);
        }
        if changes {
            judge.first_change.entry(line).or_insert(now);
        }
    }

    /// A site has read its log.
    pub(super) fn note_recovered(&mut self, site: usize) {
        let instance = self.sites[site].instance;
        if let Some(arb) = &mut self.arbitration {
            arb.judge.recovered[site] = instance;
        }
    }

    /// What is durable at a site stays, or is sealed.
    pub(super) fn judge_kept(&mut self, site: usize) {
        let s = &self.sites[site];
        let (Some(status), Some(arb)) = (&s.status, &mut self.arbitration) else { return };
        note_freezing(&mut arb.judge.frozen[site], status, &mut self.fired);
        if matches!(status.copy, CopyState::Seeding { .. }) {
            return arb.judge.forget(site);
        }
        if arb.judge.recovered[site] != s.instance || matches!(status.copy, CopyState::Failed { .. }) {
            return;
        }
        let (end, branches) = (status.appended.lsn, status.branches);
        let now = Kept { durable: status.durable, branches, sealed: false };
        let before = arb.judge.kept[site].unwrap_or(now);
        let sealed = before.sealed || branches > before.branches;
        let is_cut = end < before.durable;
        arb.judge.kept[site] = Some(Kept { sealed: sealed && !is_cut, ..now });
        if branches > before.branches {
            note!(self, [54, site], "{} has sealed a suffix", name(site));
            self.fired.hit(Fault::Sealed);
        }
        if is_cut && !sealed {
            let durable = before.durable;
            self.fail(format!("{} had {durable} durable and now ends at {end}, and sealed nothing", name(site)));
        }
    }
}

fn note_freezing(was: &mut bool, status: &Status, fired: &mut crate::sim::faults::Fired) {
    let is = status.role == Role::Suspended(SuspendReason::LeaseLost);
    match (*was, is) {
        (false, true) => fired.hit(Fault::Freeze),
        (true, false) if status.role == Role::Primary => fired.hit(Fault::Thaw),
        _ => {}
    }
    *was = is;
}
