//! The group's space: which volumes it has, the bases that it is composed of, and what the shell is told of both.

use std::collections::BTreeMap;

use crate::event::Output;
use crate::layout::Layout;
use crate::log::Placed;
use crate::node::{Node, Stage};
use crate::planted::{Planted, planted};
use crate::types::{BlockRange, Lsn, VolumeId};
use crate::volume::index::Place;

/// The space of a copy.
#[derive(Debug)]
pub(super) struct Space {
    /// At the end of the log.
    pub layout: Layout,
    /// That of the superblock which is durable, and of the one that is being written.
    saved: Layout,
    saving: (Layout, Lsn),
    /// What was in force before each record above the floor that removes a volume, oldest first: the floor may come to stand between
    /// it and the record that added the volume, and the log may be cut there.
    past: Vec<(Lsn, Layout)>,
    /// Bytes of the base of each volume, also of such as are no part of the group yet.
    pub bases: BTreeMap<VolumeId, u64>,
    /// Room is being made for this.
    pub growing: Option<Layout>,
    /// What the shell was told last: what is served, and what the base is composed of.
    told: (Layout, Layout),
}

impl Space {
    /// That of a superblock as it was found, and as the shell is told first.
    pub fn new(layout: Layout, bases: impl IntoIterator<Item = (VolumeId, u64)>) -> Self {
        let (saved, saving) = (layout.clone(), (layout.clone(), Lsn::ZERO));
        let told = (layout.clone(), layout.clone());
        Self { layout, saved, saving, past: Vec::new(), bases: bases.into_iter().collect(), growing: None, told }
    }

    /// Bytes of a volume's base.
    pub fn base_of(&self, volume: VolumeId) -> u64 {
        self.bases.get(&volume).copied().unwrap_or(0)
    }

    /// Bytes of the base of the whole group: that of a single volume may go on behind it.
    pub fn base_size(&self) -> u64 {
        match self.layout.extents() {
            [only] => self.base_of(only.volume),
            _ => self.layout.size(),
        }
    }

    /// The first volume whose base is too small for this layout: what it needs, what it has.
    pub fn lacks(&self, layout: &Layout) -> Option<(VolumeId, u64, u64)> {
        let needs = |v| (v, layout.volume_size(v).unwrap_or(0), self.base_of(v));
        layout.volumes().into_iter().map(needs).find(|(_, needed, found)| found < needed)
    }

    /// Every volume of this layout has a base that is large enough.
    pub fn has_room(&self, layout: &Layout) -> bool {
        self.lacks(layout).is_none()
    }

    /// There is room for this layout now.
    pub fn take_room(&mut self, layout: &Layout) {
        for volume in layout.volumes() {
            let bytes = self.bases.entry(volume).or_default();
            *bytes = (*bytes).max(layout.volume_size(volume).unwrap_or(0));
        }
    }

    /// A superblock with this layout is being written, for a base that holds the content at `floor`.
    pub fn on_saving(&mut self, layout: &Layout, floor: Lsn) {
        self.saving = (layout.clone(), floor);
    }

    /// It is durable.
    pub fn on_saved(&mut self) {
        let (layout, floor) = &self.saving;
        self.saved = layout.clone();
        self.past.retain(|(lsn, _)| lsn > floor);
    }

    /// The log is read anew from the floor on, after it was cut: what the records that are left say is learnt again.
    pub fn back_to(&mut self, layout: &Layout) {
        self.layout = layout.clone();
        self.past.clear();
    }

    /// A record of the log makes the layout this one; gives the blocks of what it removes.
    fn on_change(&mut self, lsn: Lsn, layout: Layout) -> Vec<BlockRange> {
        let removed = layout.removed_since(&self.layout);
        let before = std::mem::replace(&mut self.layout, layout);
        if !removed.is_empty() {
            self.past.push((lsn, before));
        }
        removed
    }

    /// What the base is composed of: what is in force, and what was removed as long as a superblock, of now or to come, may be opened
    /// with it.
    pub fn base(&self) -> Layout {
        if planted(Planted::BaseGivenUpTooEarly) {
            return self.layout.clone();
        }
        // From the newest on: where one of them has a volume no older one has another.
        let older = self.past.iter().rev().map(|(_, layout)| layout).chain([&self.saved]);
        older.fold(self.layout.clone(), |base, older| base.with_removed_of(older))
    }

    fn is_told(&self) -> bool {
        self.told.0 == self.layout && self.told.1 == self.base()
    }
}

impl Node {
    /// Tells the shell what is served and what the base is composed of, when that changed: not while a log is being read, which may
    /// name again what the superblock does not. A base that is no part of it any more is the shell's to give up.
    pub(super) fn tell_layout(&mut self) {
        if self.space.is_told() || matches!(self.stage, Stage::Recovering(_)) {
            return;
        }
        let (layout, base) = (self.space.layout.clone(), self.space.base());
        let (_, before) = std::mem::replace(&mut self.space.told, (layout.clone(), base.clone()));
        self.space.bases.retain(|volume, _| base.has(*volume) || !before.has(*volume));
        self.out.push(Output::Layout { layout, base });
    }

    /// The log is known: so is what is served, and which bases are left over from what no log names (any more).
    pub(super) fn tell_layout_recovered(&mut self) {
        let (layout, base) = (self.space.layout.clone(), self.space.base());
        self.space.told = (layout.clone(), base.clone());
        self.space.bases.retain(|volume, _| base.has(*volume));
        self.out.push(Output::Layout { layout, base });
    }

    /// What a frame makes of the layout. What it removes reads as zeros from here on, whatever the log below it says.
    pub(super) fn learn_layout(&mut self, placed: &Placed) {
        let Some(change) = &placed.change else { return };
        let (lsn, layout) = (placed.header.last(), change.on(&self.space.layout));
        for range in self.space.on_change(lsn, layout) {
            self.index.insert(range, lsn, Place::Zero);
        }
        self.tell_layout();
    }
}
