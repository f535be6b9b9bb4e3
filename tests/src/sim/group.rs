//! Groups of several volumes: some seeds have one, and its volumes are added, grown and removed at bad moments.
//!
//! The world goes on to address the group's space as one volume: that what is found is a prefix of it is the order across all
//! volumes. What is the shell's here: the base of each volume, made full of garbage and given up when the copy says so, and that
//! nothing is kept of what belongs to no volume.

use std::collections::BTreeMap;

use tidemark_core::layout::Layout;
use tidemark_core::types::{BLOCK, VolumeId};
use tidemark_core::verb::Verb;

use crate::sim::copy::Copy;
use crate::sim::faults::Fault;
use crate::sim::operator::{Purpose, Step};
use crate::sim::pattern::Value;
use crate::sim::rng::Rng;
use crate::sim::world::{World, name, note};

/// Groups have draws of their own: without them a seed is what it was.
const STREAM: u64 = 0x6772_6f75_7073_2e32;
/// So many percent of the seeds.
const SHARE: u32 = 20;
/// What a new base holds.
const GARBAGE: u8 = 0xa5;

/// A seed's group.
#[derive(Debug)]
pub struct Group {
    rng: Rng,
    /// What it begins as.
    pub begins: Layout,
    /// It is to be removed when everything that was asked of it before this request is answered.
    leaving: Option<(VolumeId, u64)>,
}

/// What a site's shell knows of its group.
#[derive(Debug)]
pub struct Bases {
    /// What is served.
    pub layout: Layout,
    /// What the base is composed of.
    composed: Layout,
    /// Bytes of each volume's base.
    bytes: BTreeMap<VolumeId, u64>,
    /// The copy was opened, and its log is not known yet.
    opens: bool,
    /// Bytes of each extent, by where it begins, that the bases were made for.
    made: BTreeMap<(u64, VolumeId), u64>,
}

impl Bases {
    /// Those of a new copy.
    pub fn of(layout: &Layout) -> Self {
        let mut bases = Self {
            layout: layout.clone(),
            composed: layout.clone(),
            bytes: BTreeMap::new(),
            opens: false,
            made: BTreeMap::new(),
        };
        bases.make_room(layout);
        bases.made = layout.extents().iter().map(|e| ((e.start, e.volume), e.len)).collect();
        bases
    }

    /// Bases are made and grown for these volumes.
    pub fn make_room(&mut self, layout: &Layout) {
        for volume in layout.volumes() {
            let size = layout.volume_size(volume).unwrap_or(0);
            let bytes = self.bytes.entry(volume).or_default();
            *bytes = (*bytes).max(size);
        }
    }

    /// What a copy is opened with.
    pub fn list(&self) -> Vec<(VolumeId, u64)> {
        self.bytes.iter().map(|(volume, bytes)| (*volume, *bytes)).collect()
    }
}

impl Group {
    /// Draws a seed's group, and what becomes of it (`always`: of each seed). `size` is that of the volume there would be without it.
    pub fn draw(seed: u64, size: u64, plan: &mut Vec<(u64, Step)>, requests: u64, always: bool) -> Option<Box<Self>> {
        let mut rng = Rng::new(seed ^ STREAM);
        if !rng.percent(SHARE) && !always {
            return None;
        }
        let first = VolumeId(rng.id());
        let mut left = size / BLOCK as u64;
        let mut runs = Vec::new();
        for volume in [first, VolumeId(rng.id()), VolumeId(rng.id())].into_iter().take(rng.between(2, 3) as usize) {
            let blocks = rng.log_between(2, (left / 2).max(2));
            left -= blocks.min(left);
            runs.push((volume, blocks * BLOCK as u64 - 512 * if rng.percent(60) { rng.below(8) } else { 0 }));
        }
        for _ in 0..rng.between(2, 6) {
            plan.push((rng.below(requests), Step::Regroup));
        }
        // Of what changed right before a site is lost the other one may know nothing.
        let lost = plan.iter().filter(|(_, step)| matches!(step, Step::Failover { .. })).map(|(at, _)| *at);
        for at in lost.collect::<Vec<_>>() {
            for _ in 0..rng.below(3) {
                plan.push((at.saturating_sub(rng.between(1, 4)), Step::Regroup));
            }
        }
        plan.sort_by_key(|(at, _)| *at);
        let begins = Layout::new(runs).ok()?;
        Some(Box::new(Self { rng, begins, leaving: None }))
    }
}

impl<C: Copy> World<C> {
    /// What is served at a site, where it has a group.
    pub(super) fn layout_at(&self, site: usize) -> Option<&Layout> {
        self.sites[site].bases.as_ref().map(|bases| &bases.layout)
    }

    /// The sectors that a request may ask for in the place of these: inside one extent, and none that is about to go.
    pub(super) fn inside_a_volume(&self, site: usize, first: u64, sectors: u64) -> (u64, u64) {
        let (Some(layout), Some(group)) = (self.layout_at(site), &self.group) else { return (first, sectors) };
        let leaving = group.leaving.map(|(volume, _)| volume);
        let stays = |at: &tidemark_core::layout::Located| Some(at.volume) != leaving;
        if let Some(at) = layout.locate(first * 512).filter(stays) {
            return (first, sectors.min(at.left / 512));
        }
        let mut others = layout.extents().iter().filter(|e| !e.is_hole() && Some(e.volume) != leaving);
        let next = others.clone().find(|e| e.start >= first * 512).or_else(|| others.next());
        next.map_or((first, sectors), |e| (e.start / 512, sectors.min(e.len / 512)))
    }

    /// The runs of sectors that belong to a volume.
    pub(super) fn readable(&self, site: usize, sectors: u64) -> Vec<(u64, u64)> {
        match self.layout_at(site) {
            Some(layout) => {
                let of_volumes = layout.extents().iter().filter(|e| !e.is_hole());
                of_volumes.map(|e| (e.start / 512, e.len / 512)).collect()
            }
            None => vec![(0, sectors)],
        }
    }

    /// What is read of a base: nothing of what belongs to no volume.
    pub(super) fn of_volumes(&self, site: usize, mut values: Vec<Value>) -> Vec<Value> {
        if let Some(bases) = &self.sites[site].bases {
            for (sector, value) in values.iter_mut().enumerate() {
                if bases.composed.locate(sector as u64 * 512).is_none() {
                    *value = Value::Zero;
                }
            }
        }
        values
    }

    /// Requests may meet the removal of a volume.
    pub(super) fn is_removing(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.leaving.is_some())
    }

    /// The copy says what is served and what the base is composed of.
    pub(super) fn compose(&mut self, site: usize, layout: Layout, base: Layout) {
        let opens = self.sites[site].composed_in != self.sites[site].instance;
        let s = &mut self.sites[site];
        s.composed_in = s.instance;
        let Some(bases) = &mut s.bases else { return };
        s.disk.grow_base(layout.size().next_multiple_of(BLOCK as u64));
        // At the opening nothing is given up; when the log is known, all that it does not name.
        let recovers = std::mem::replace(&mut bases.opens, opens);
        let known = |volume: &VolumeId| recovers || bases.composed.has(*volume);
        let gone: Vec<VolumeId> = match opens {
            true => Vec::new(),
            false => bases.bytes.keys().copied().filter(|v| known(v) && !base.has(*v)).collect(),
        };
        let missing = base.volumes().into_iter().find(|volume| !bases.bytes.contains_key(volume));
        bases.made.retain(|(_, volume), _| !gone.contains(volume));
        bases.bytes.retain(|volume, _| !gone.contains(volume));
        for extent in base.extents().iter().filter(|e| !e.is_hole()) {
            let made = bases.made.entry((extent.start, extent.volume)).or_default();
            let known = made.next_multiple_of(BLOCK as u64);
            if known < extent.len {
                s.disk.refill_base(extent.start + known, extent.len - known, GARBAGE);
            }
            *made = (*made).max(extent.len);
        }
        if !gone.is_empty() {
            self.fired.hit(Fault::BaseGivenUp);
        }
        s.disk.compose(base.clone());
        (bases.layout, bases.composed) = (layout, base);
        if let Some(volume) = missing {
            self.fail(format!("{}: the base is to be composed of {volume}, whose own was given up", name(site)));
        }
        note!(self, [60, site], "{} is composed of {:?}", name(site), self.sites[site].bases);
    }

    /// A volume is added, grown or removed, as the seed's own draws say.
    pub(super) fn regroup(&mut self) {
        let target = self.client.target;
        let Some(layout) = self.layout_at(target).cloned() else { return };
        let Some(group) = &mut self.group else { return };
        let volumes = layout.volumes();
        let (draw, which, sectors) = (group.rng.below(100), *group.rng.pick(&volumes), group.rng.log_between(1, 600));
        match draw {
            0..=29 => {
                let volume = VolumeId(group.rng.id());
                let (wanted, size) = (layout.added(volume, sectors * 512), sectors * 512);
                self.ask_for_volumes(target, wanted.ok(), Verb::AddVolume { volume, size }, Fault::VolumeAdded);
            }
            30..=69 => {
                let size = layout.volume_size(which).unwrap_or(0) + sectors * 512;
                let verb = Verb::Resize { volume: which, size };
                self.ask_for_volumes(target, layout.grown(which, size).ok(), verb, Fault::VolumeGrown);
            }
            _ if volumes.len() > 1 && group.leaving.is_none() => {
                note!(self, [61], "{which} is to be removed");
                let upto = self.client.last_request();
                if let Some(group) = &mut self.group {
                    group.leaving = Some((which, upto));
                }
            }
            _ => {}
        }
    }

    fn ask_for_volumes(&mut self, site: usize, wanted: Option<Layout>, verb: Verb, fault: Fault) {
        let Some(wanted) = wanted.filter(|wanted| wanted.size() <= self.client.max_bytes) else { return };
        if let Some(bases) = &mut self.sites[site].bases {
            bases.make_room(&wanted);
        }
        self.verb(site, verb, Purpose::Regroup(fault));
    }

    /// Removes the volume that is to go, when nobody waits for an answer of it.
    pub(super) fn remove_when_quiet(&mut self) {
        let target = self.client.target;
        let Some((volume, upto)) = self.group.as_ref().and_then(|group| group.leaving) else { return };
        if self.client.waits_for_one_upto(upto) || self.operator.waits_for(target) {
            return;
        }
        let extents: Vec<(u64, u64)> = match self.layout_at(target) {
            Some(layout) => layout.of(volume).map(|e| (e.start / 512, e.len / 512)).collect(),
            None => return,
        };
        let (Some(line), false) = (self.open_line_at(target), extents.is_empty()) else { return self.stays() };
        if !self.verb(target, Verb::RemoveVolume { volume }, Purpose::Remove) {
            return self.stays();
        }
        let ops = extents.iter().flat_map(|(first, n)| self.model.issue_zero(line, *first, *n, false)).collect();
        self.operator.removing = ops;
    }

    /// The removal has ended in some way.
    pub(super) fn removal_ended(&mut self, done: bool) {
        for op in std::mem::take(&mut self.operator.removing) {
            if done {
                self.model.complete(op, 0);
            }
        }
        if done {
            self.fired.hit(Fault::VolumeRemoved);
        }
        self.stays();
    }

    /// No volume is about to go (any more).
    pub(super) fn stays(&mut self) {
        if let Some(group) = &mut self.group {
            group.leaving = None;
        }
    }
}
