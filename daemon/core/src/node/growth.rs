//! The volumes of a group change: room at the peer first, then a record in the log.

use crate::event::{DiskOp, VerbId};
use crate::format::record::{Descriptor, Kind};
use crate::layout::{Layout, LayoutError};
use crate::log::Record;
use crate::node::Node;
use crate::node::verbs::{DEADLINE_MS, Pending};
use crate::outbox::Route;
use crate::ship::{FEATURE_LAYOUT, Message};
use crate::status::Role;
use crate::types::{BLOCK, Nanos, SECTOR, VolumeId};
use crate::verb::VerbError;

impl Node {
    pub(super) fn resize(&mut self, now: Nanos, id: VerbId, volume: VolumeId, size: u64) -> Result<(), VerbError> {
        let wanted = self.judge_growth(volume, size)?;
        self.space.take_room(&wanted);
        self.make_layout(now, id, wanted)
    }

    /// The layout with one volume of another size.
    pub(super) fn judge_growth(&self, volume: VolumeId, size: u64) -> Result<Layout, VerbError> {
        self.need_primary("a volume is resized at its primary")?;
        let present = self.space.layout.volume_size(volume).ok_or(LayoutError::Unknown(volume)).map_err(impossible)?;
        if !size.is_multiple_of(SECTOR as u64) || size < present {
            return Err(VerbError::Invalid("a volume can only grow, to a multiple of 512 bytes".into()));
        }
        self.need_no_change()?;
        if !present.is_multiple_of(BLOCK as u64) && self.space.base_of(volume) > present && size > present {
            let why = "the volume ends inside a block of 4096 bytes that its device goes on behind: it cannot grow";
            return Err(VerbError::Invalid(why.into()));
        }
        self.space.layout.grown(volume, size).map_err(impossible)
    }

    pub(super) fn add_volume(&mut self, now: Nanos, id: VerbId, volume: VolumeId, size: u64) -> Result<(), VerbError> {
        let Some(wanted) = self.judge_addition(volume, size)? else {
            self.finish_verb(now, id);
            return Ok(());
        };
        self.space.take_room(&wanted);
        self.make_layout(now, id, wanted)
    }

    /// The layout with one volume more; `None`: it is there.
    pub(super) fn judge_addition(&self, volume: VolumeId, size: u64) -> Result<Option<Layout>, VerbError> {
        self.need_primary("a volume is added to a group at its primary")?;
        match self.space.layout.volume_size(volume) {
            Some(present) if present == size => return Ok(None),
            Some(_) => return Err(impossible(LayoutError::Exists(volume))),
            None => {}
        }
        self.need_no_change()?;
        if self.space.base().has(volume) {
            let (state, hint) = ("being removed".into(), "wait until its base has left the group".into());
            return Err(VerbError::CopyState { state, hint });
        }
        self.space.layout.added(volume, size).map_err(impossible).map(Some)
    }

    /// Needs no room, so nobody is asked.
    pub(super) fn remove_volume(&mut self, now: Nanos, id: VerbId, volume: VolumeId) -> Result<(), VerbError> {
        match self.judge_removal(volume)? {
            Some(wanted) => self.log_layout(now, id, wanted),
            None => self.finish_verb(now, id),
        }
        Ok(())
    }

    /// The layout with one volume less; `None`: it is not there.
    pub(super) fn judge_removal(&self, volume: VolumeId) -> Result<Option<Layout>, VerbError> {
        self.need_primary("a volume is removed from its group at its primary")?;
        if !self.space.layout.has(volume) {
            return Ok(None);
        }
        self.need_no_change()?;
        let wanted = self.space.layout.without(volume).map_err(impossible)?;
        self.need_peer_that_knows(&wanted)?;
        Ok(Some(wanted))
    }

    /// Both copies can come to have this layout; true when it is another one.
    pub(super) fn judge_layout(&self, wanted: &Layout) -> Result<bool, VerbError> {
        if *wanted == self.space.layout {
            return Ok(false);
        }
        self.need_peer_that_knows(wanted)?;
        let linked = self.link.as_ref().is_some_and(|l| l.hello.is_some());
        match self.superblock.peer {
            Some(site) if !linked => Err(VerbError::PeerUnproven { site }),
            _ => Ok(true),
        }
    }

    fn need_no_change(&self) -> Result<(), VerbError> {
        if self.verbs.iter().any(|v| matches!(v.kind, Pending::Grow { .. } | Pending::Resized { .. })) {
            let (state, hint) = ("being resized".into(), "wait until that is done".into());
            return Err(VerbError::CopyState { state, hint });
        }
        Ok(())
    }

    /// A peer that knows only groups of one volume would take this for its volume.
    fn need_peer_that_knows(&self, wanted: &Layout) -> Result<(), VerbError> {
        let hello = self.link.as_ref().and_then(|l| l.hello.as_ref());
        let is_old = hello.is_some_and(|h| h.features & FEATURE_LAYOUT == 0);
        match is_old && !self.is_plain(wanted) {
            true => Err(VerbError::Invalid("the peer's version knows no groups of several volumes: update it".into())),
            false => Ok(()),
        }
    }

    /// What a version without groups can say and read.
    fn is_plain(&self, layout: &Layout) -> bool {
        layout.is_one(self.superblock.volume)
    }

    fn make_layout(&mut self, now: Nanos, id: VerbId, wanted: Layout) -> Result<(), VerbError> {
        if !self.judge_layout(&wanted)? {
            self.finish_verb(now, id);
            return Ok(());
        }
        match self.superblock.peer {
            Some(_) => {
                let (size, layout) = (wanted.size(), self.said(&wanted));
                self.wait(now, id, DEADLINE_MS, Pending::Grow { wanted });
                self.send(Message::Grow { size, layout });
            }
            None => self.log_layout(now, id, wanted),
        }
        Ok(())
    }

    /// A layout as it is said to a peer: of one volume, its size says all.
    fn said(&self, layout: &Layout) -> Option<Layout> {
        (!self.is_plain(layout)).then(|| layout.clone())
    }

    fn log_layout(&mut self, now: Nanos, id: VerbId, wanted: Layout) {
        let size = wanted.size();
        let record = match self.is_plain(&wanted) {
            true => {
                let descriptor = Descriptor { kind: Kind::Resize, flags: 0, blocks: 0, lba: size };
                Record::new(descriptor, Default::default())
            }
            false => Record::layout(&wanted),
        };
        let changed = self.log.push(record);
        // What a device holds behind the volume is not the volume's, and no other site has it.
        let (first, end) = (self.space.layout.blocks(), wanted.blocks());
        let lsn = self.push_zero_blocks(Kind::Zero, first, end).unwrap_or(changed);
        self.log.want_durable(lsn);
        self.wait(now, id, DEADLINE_MS, Pending::Resized { lsn, wanted });
    }

    pub(super) fn on_grow(&mut self, now: Nanos, size: u64, layout: Option<Layout>) {
        let present = &self.space.layout;
        let wanted = layout.or_else(|| match present.extents() {
            [only] if size > 0 && size.is_multiple_of(SECTOR as u64) => Some(Layout::one(only.volume, size)),
            _ => None,
        });
        match wanted.filter(|wanted| !self.leads() && (self.needs_seed() || wanted.extends(present))) {
            Some(wanted) => self.make_room(now, wanted),
            None => self.answer_grow(None),
        }
    }

    /// Has bases made and grown for a layout.
    pub(super) fn make_room(&mut self, now: Nanos, wanted: Layout) {
        self.space.growing = Some(wanted.clone());
        self.out.disk(now, Route::Grow, DiskOp::Grow { layout: wanted });
    }

    pub(super) fn on_grown(&mut self, now: Nanos, ok: bool) {
        let grown = self.space.growing.take().filter(|_| ok);
        if let Some(layout) = &grown {
            self.space.take_room(layout);
        }
        self.answer_grow(grown);
        match ok {
            true => self.pump_receiver(now),
            false => self.peer_needs_room(),
        }
    }

    fn answer_grow(&mut self, grown: Option<Layout>) {
        let layout = grown.and_then(|layout| self.said(&layout));
        let size = layout.as_ref().map_or(self.space.base_size(), Layout::size);
        self.send(Message::GrowAnswer { size, layout });
    }

    pub(super) fn on_grow_answer(&mut self, now: Nanos, size: u64, layout: Option<Layout>) {
        let (grows, rest) = std::mem::take(&mut self.verbs)
            .into_iter()
            .partition::<Vec<_>, _>(|v| matches!(v.kind, Pending::Grow { .. }));
        self.verbs = rest;
        for verb in grows {
            let Pending::Grow { wanted } = verb.kind else { continue };
            let is_plain = self.is_plain(&wanted);
            let has_room = if is_plain { wanted.size() <= size } else { layout.as_ref() == Some(&wanted) };
            if has_room && self.role == Role::Primary {
                self.log_layout(now, verb.id, wanted);
                continue;
            }
            let why = match is_plain {
                true => format!("the peer's base image can only hold {size} bytes"),
                false => "the peer has no room for the base images of these volumes".into(),
            };
            self.end_verb(verb.id, Err(VerbError::Invalid(why)));
        }
    }
}

fn impossible(why: LayoutError) -> VerbError {
    VerbError::Invalid(why.to_string())
}
