//! Views of what this copy held at one position: the base as it is at the floor, and the frames of the log from there on. As long as
//! somebody holds one the floor stands still, so that the base and these frames remain what they are.
//!
//! A view never holds up what the copy is for. It ends, and its holder is told before the next operation of the disk, where the log
//! needs its room, is drained or taken apart.
//!
//! A sealed suffix can be opened as long as the base was never written beyond the point where it begins. The floor therefore stays
//! there ([`Superblock::branch_at`](crate::format::superblock::Superblock::branch_at)) until the log runs short, or is drained.

use crate::event::{HoldId, Output, Slot};
use crate::floor::RELAXED_PERCENT;
use crate::format::superblock::CopyFlag;
use crate::layout::Layout;
use crate::log::segments::FrameRef;
use crate::node::meta::AfterSuperblock;
use crate::node::{Node, Stage, plan};
use crate::types::{Boundary, Lsn, Nanos, Secret, VolumeId};
use crate::verb::VerbError;

/// A log that is this full, in percent, needs the room that views hold.
const VIEWS_END_PERCENT: u64 = 90;
/// Views of one copy at a time, those that wait to begin among them.
pub const MAX_VIEWS: usize = 8;

/// What a view is made of.
#[derive(Clone, Debug)]
pub struct Held {
    /// What frames and branches of this copy are keyed with.
    pub secret: Secret,
    /// The volume that names the log.
    pub volume: VolumeId,
    /// The base holds exactly this ...
    pub floor: Boundary,
    /// ... of these volumes, and is composed of them.
    pub layout: Layout,
    /// The view ends here.
    pub end: Boundary,
    /// The frames from the floor to there, in order, and where they lie.
    pub frames: Vec<(Slot, FrameRef)>,
}

/// Who holds a view, or waits for one.
#[derive(Debug)]
pub(super) struct Hold {
    id: HoldId,
    /// Where a suffix begins that is to be seen from there on; none: all that this copy has.
    at: Option<Boundary>,
    /// The view's last record, once there is one.
    end: Option<Lsn>,
}

impl Node {
    pub(super) fn on_hold(&mut self, id: HoldId, at: Option<Boundary>) {
        let judged = self.judge_view(at);
        let limit = || VerbError::Invalid(format!("no more than {MAX_VIEWS} views of one copy are open at a time"));
        match judged.and_then(|_| if self.holds.len() < MAX_VIEWS { Ok(()) } else { Err(limit()) }) {
            Ok(()) => self.holds.push(Hold { id, at, end: None }),
            Err(why) => self.out.push(Output::Held(id, Err(why))),
        }
    }

    /// Nobody needs this view any more.
    pub(super) fn on_let_go(&mut self, id: HoldId) {
        self.holds.retain(|hold| hold.id != id);
    }

    /// Where a view would end: of the suffix that begins at `at`, else of all that this copy has durable. It shows the suffix only
    /// with what the copy held there.
    ///
    /// # Errors
    /// Why there is none.
    pub fn judge_view(&self, at: Option<Boundary>) -> Result<Boundary, VerbError> {
        if matches!(self.stage, Stage::Closed | Stage::Closing(_)) {
            return Err(plan::closed());
        }
        if self.is_recovering() {
            return Err(plan::opening());
        }
        let state = |state: &str, hint: &str| Err(VerbError::CopyState { state: state.into(), hint: hint.into() });
        match self.flag() {
            CopyFlag::Complete | CopyFlag::Diverged => {}
            CopyFlag::Seeding(_) => return state("being seeded", "what its base holds now is of no one moment"),
            CopyFlag::Suspect => return state("suspect", "what its base holds is not known"),
            CopyFlag::Failed => return state("failed", "its disk cannot be relied on"),
            CopyFlag::Released => return state("released", "its base is to be used directly"),
        }
        if self.damage.is_some() || self.log.appended() < self.superblock.visible_at {
            return state("suspect", "its log lacks what the base was made with");
        }
        let Some(at) = at else {
            let end = self.log.segments.boundary_below(self.log.durable());
            return Ok(end.filter(|end| end.position.lsn > self.floor.at().position.lsn).unwrap_or(self.floor.at()));
        };
        let is_kept = self.branch_at.is_some_and(|kept| kept <= at.position.lsn);
        if !is_kept || self.boundary_at(at.position.lsn) != Some(at) {
            let hint = "what it changed can still be had: `tidemark branch export`";
            return state("beyond the point where the branch begins, so that no image of it can be shown whole", hint);
        }
        Ok(at)
    }

    /// Begins views that wait.
    pub(super) fn pump_views(&mut self) {
        let quiet = matches!(self.stage, Stage::Running) && self.floor.is_idle() && self.sealing.is_none();
        if !quiet || self.holds.iter().all(|hold| hold.end.is_some()) {
            return;
        }
        for mut hold in std::mem::take(&mut self.holds) {
            if hold.end.is_none() {
                let held = self.judge_view(hold.at).map(|end| Box::new(self.held(end)));
                hold.end = held.as_ref().ok().map(|held| held.end.position.lsn);
                self.out.push(Output::Held(hold.id, held));
            }
            if hold.end.is_some() {
                self.holds.push(hold);
            }
        }
    }

    fn held(&self, end: Boundary) -> Held {
        let (floor, layout) = (self.floor.at(), self.superblock.layout.clone());
        let (secret, volume) = (self.superblock.secret.clone(), self.superblock.volume);
        let frames = self.log.segments.live().flat_map(|s| s.frames.iter().map(|frame| (s.slot, *frame)));
        let lsns = floor.position.lsn.next()..=end.position.lsn;
        let frames = frames.filter(|(_, frame)| lsns.contains(&frame.last)).collect();
        Held { secret, volume, floor, layout, end, frames }
    }

    /// Ends every view of what lies beyond `upto`: that is taken apart next. What waits to begin is refused.
    pub(super) fn end_views_beyond(&mut self, upto: Lsn, why: &str) {
        let ended: Vec<Hold> = self.holds.extract_if(.., |hold| hold.end.is_none_or(|end| end > upto)).collect();
        self.tell_ended(ended, why);
    }

    /// Ends every view.
    pub(super) fn end_views(&mut self, why: &str) {
        let ended = std::mem::take(&mut self.holds);
        self.tell_ended(ended, why);
    }

    fn tell_ended(&mut self, ended: Vec<Hold>, why: &str) {
        if ended.iter().any(|hold| hold.end.is_some()) {
            self.alarm("view_ended", why);
        }
        for hold in ended {
            self.out.push(match hold.end {
                Some(_) => Output::HoldEnded(hold.id),
                None => Output::Held(hold.id, Err(VerbError::Interrupted(why.into()))),
            });
        }
    }

    // ---- what the floor has to leave --------------------------------------------------------------------------------------

    /// True while views keep the floor from moving `to` somewhere, or from where a branch holds it. They end where a drain waits or
    /// there is little room left.
    pub(super) fn views_hold_floor(&mut self, fill: u64, to: Option<Boundary>) -> bool {
        if self.holds.is_empty() {
            return false;
        }
        if self.draining.is_none() && fill < VIEWS_END_PERCENT {
            return true;
        }
        if to.is_some() || self.branches_stand_in_the_way() {
            self.end_views("the log needed the room that an open view held, or was drained");
        }
        false
    }

    /// A suffix was sealed that begins here.
    pub(super) fn keep_branch_at(&mut self, at: Lsn) {
        let kept = self.branch_at.map_or(at, |kept| kept.min(at));
        (self.branch_at, self.superblock.branch_at) = (Some(kept), Some(kept));
    }

    /// The suffixes that are left begin here or later: the floor may come up to there.
    pub(super) fn on_keep_branches(&mut self, now: Nanos, sealed: u32, first: Option<Lsn>) {
        let raises = self.branch_at.is_some_and(|kept| first.is_none_or(|first| first > kept));
        if raises && sealed == self.superblock.branches && self.sealing.is_none() {
            self.superblock.branch_at = first;
            self.after_superblock(now, AfterSuperblock::BranchAt(self.superblock.branch_at));
        }
    }

    /// The floor cannot move: where only sealed suffixes keep it although it has to, they are given up. That is durable before it
    /// moves; what they changed stays in their files.
    pub(super) fn give_branches_up(&mut self, now: Nanos, fill: u64) {
        let must_move = self.draining.is_some() || fill >= RELAXED_PERCENT;
        if !must_move || self.superblock.branch_at.is_none() || !self.branches_stand_in_the_way() {
            return;
        }
        self.superblock.branch_at = None;
        let why = "the log needed its room, or was drained: sealed branches can be exported, and no longer be opened";
        self.alarm("branch_not_openable", why);
        self.after_superblock(now, AfterSuperblock::BranchAt(self.superblock.branch_at));
    }

    fn branches_stand_in_the_way(&self) -> bool {
        let limit = self.floor_limit_without_branches();
        self.branch_at.is_some() && self.floor.reachable(&self.log.segments, limit).is_some()
    }

    /// What the superblock says of them is durable.
    pub(super) fn on_branch_at_saved(&mut self, branch_at: Option<Lsn>) {
        self.branch_at = branch_at;
        self.pump_again = true;
    }
}
