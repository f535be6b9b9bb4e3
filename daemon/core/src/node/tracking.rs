//! What changed since a peer was last known to be in step, kept by the primary beyond the reach of its log.
//!
//! The floor takes in what the log holds, and segments below it are reused, and not found at the next opening. So before the floor passes
//! what the peer has confirmed, a *footer* says which blocks that changed, and is durable before the superblock says where the floor is.
//! What changed after a place is then: the blocks of the footers from there to the floor, and those of the index above the floor.
//!
//! Nothing is kept, and nothing costs anything, while the peer has confirmed all that is below the floor.
//!
//! Invariant: a set names every block that a record above its beginning and at or below the floor changed, in this history, or there is
//! none. The beginning is named with its chain, and so are the places at which the peer may turn out to be: where one of them is what
//! the peer's log ends with, the peer's history up to there is this one.

use bytes::Bytes;

use crate::blocks::BlockSet;
use crate::event::{DiskOp, FileRef};
use crate::format::footer::{self, Footer};
use crate::format::superblock::Sample;
use crate::node::Node;
use crate::outbox::Route;
use crate::planted::{Planted, planted};
use crate::ship::Hello;
use crate::ship::sender::Source;
use crate::types::{Boundary, Lsn, Nanos, Nonce, VolumeId};

/// A peer that comes and goes within a difference takes it up so often; then the whole copy is sent.
const MAX_OFFERS: usize = 64;

/// What changed between two places in the log.
#[derive(Debug)]
struct Tracked {
    from: Boundary,
    upto: Boundary,
    /// Where the peer may turn out to be: from what it has confirmed on, ascending.
    tails: Vec<Boundary>,
    /// For what the peer had confirmed when they were noted, and whether a footer names them.
    noted: (Lsn, bool),
    blocks: BlockSet,
    /// The footer that is written next.
    next: u32,
}

/// A difference that was begun in this opening and may have to be taken up.
#[derive(Debug)]
struct Offer {
    from: Boundary,
    resyncs: Vec<Nonce>,
}

/// An advance of the floor that waits for its footer.
#[derive(Debug)]
struct Waiting {
    to: Boundary,
    samples: Vec<Sample>,
    /// Its own footer, while the one with all that came before it is being written.
    footer: Option<Footer>,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    tracked: Option<Tracked>,
    offer: Option<Offer>,
    waiting: Option<Waiting>,
}

impl Tracking {
    /// As the files say of a copy whose floor stands there; what does not lead to just there says nothing.
    pub fn found(volume: VolumeId, floor: Boundary, files: Vec<(u32, Bytes)>) -> Self {
        let read = |(number, bytes): (u32, Bytes)| Footer::decode(&bytes).ok().map(|footer| (number, footer));
        let footers: Vec<_> = files.into_iter().filter_map(read).filter(|(_, f)| f.volume == volume).collect();
        Self { tracked: chained(floor, footers), ..Self::default() }
    }

    /// Something is known of what changed.
    pub fn may_know(&self) -> bool {
        self.tracked.is_some()
    }

    /// Gives what changed since `from`, of which the log holds `from_log`; a difference of this name begins.
    pub fn offer(&mut self, resync: Nonce, from: Boundary, from_log: BlockSet) -> BlockSet {
        let mut resyncs = self.offer.take().filter(|offer| offer.from == from).map_or(Vec::new(), |o| o.resyncs);
        resyncs.push(resync);
        self.offer = Some(Offer { from, resyncs });
        let mut changed = self.tracked.as_ref().map_or_else(BlockSet::default, |tracked| tracked.blocks.clone());
        changed.add(&from_log);
        changed
    }

    /// No difference is under way that could be taken up.
    pub fn take_back(&mut self) {
        self.offer = None;
    }

    fn is_offered(&self, resync: Nonce, from: Boundary) -> bool {
        planted(Planted::DifferenceOfAnotherOpening)
            || self.offer.as_ref().is_some_and(|offer| {
                offer.from == from && offer.resyncs.contains(&resync) && offer.resyncs.len() < MAX_OFFERS
            })
    }
}

/// The set that a chain of footers makes which ends at the floor.
fn chained(floor: Boundary, mut footers: Vec<(u32, Footer)>) -> Option<Tracked> {
    let first = footers.iter().position(|(number, _)| *number == footer::FIRST)?;
    let Footer { start: from, end: mut upto, mut tails, mut blocks, .. } = footers.swap_remove(first).1;
    let mut next = footer::FIRST + 1;
    while upto != floor {
        let follows = |(_, f): &(u32, Footer)| f.start == upto && f.end.position.lsn <= floor.position.lsn;
        let Some(at) = footers.iter().position(follows) else {
            (upto, next) = (planted(Planted::FooterNotAwaited).then_some(floor)?, footer::LAST + 1);
            break;
        };
        let (number, footer) = footers.swap_remove(at);
        blocks.add(&footer.blocks);
        (upto, next) = (footer.end, number + 1);
        if !footer.tails.is_empty() {
            tails = footer.tails;
        }
    }
    let noted = (tails.first().map_or(Lsn::ZERO, |tail| tail.position.lsn), true);
    Some(Tracked { from, upto, tails, noted, blocks, next })
}

impl Node {
    /// Up to where the peer is known to hold this history; none: it is nowhere in it, or nobody asks.
    fn peer_reached(&self) -> Option<Lsn> {
        if self.k.primary != Some(self.site) || self.superblock.peer.is_none() {
            return None;
        }
        if let Some(offer) = &self.tracking.offer {
            // What it acknowledges within a difference is nothing before that has ended.
            return Some(offer.from.position.lsn);
        }
        let acked = self.superblock.remembered?.position;
        (self.history.position(acked.lsn) == Some(acked)).then_some(acked.lsn)
    }

    /// Where the floor stops first, for what is kept beyond that to be no more than the peer lacks. One that follows is ahead of that
    /// a moment later: the floor does not creep behind it.
    pub(super) fn floor_stop(&self, limit: Lsn) -> Option<Lsn> {
        let floor = self.floor.at().position.lsn;
        let at = self.peer_reached().filter(|at| *at > floor && *at < limit)?;
        let follows = self.link.as_ref().is_some_and(|l| l.sender.source != Source::Probe);
        let is_most = limit.since(at) <= at.since(floor);
        (self.tracking.tracked.is_none() && (!follows || is_most)).then_some(at)
    }

    /// The base holds all up to `to`: what that changed is kept where the peer is not known to have it, and then the superblock is saved.
    pub(super) fn track(&mut self, now: Nanos, to: Boundary, samples: Vec<Sample>) {
        let Some(peer) = self.peer_reached().filter(|at| *at < to.position.lsn) else {
            self.tracking.tracked = None;
            return self.save_floor(now, to, samples);
        };
        let start = self.floor.at();
        if self.tracking.tracked.as_ref().is_none_or(|tracked| tracked.upto != start) {
            self.tracking.tracked = self.begin_tracking(start, peer);
        }
        self.note_tails();
        let mut blocks = BlockSet::default();
        self.floor.changed().for_each(|(lba, count)| blocks.insert(lba, lba + count));
        let volume = self.superblock.volume;
        let Some(tracked) = &mut self.tracking.tracked else { return self.save_floor(now, to, samples) };
        let tails = if std::mem::replace(&mut tracked.noted.1, true) { Vec::new() } else { tracked.tails.clone() };
        let mut footer = Footer { volume, start, end: to, tails, blocks };
        let mut waiting = Waiting { to, samples, footer: None };
        if tracked.next > footer::LAST {
            // All that there is becomes one, and this is the first that follows it.
            let (from, tails, blocks) = (tracked.from, tracked.tails.clone(), tracked.blocks.clone());
            let all = Footer { volume, start: from, end: start, tails, blocks };
            waiting.footer = Some(std::mem::replace(&mut footer, all));
            tracked.next = footer::FIRST;
        } else {
            tracked.add(&footer);
        }
        self.tracking.waiting = Some(waiting);
        self.write_footer(now, &footer);
    }

    fn begin_tracking(&self, from: Boundary, peer: Lsn) -> Option<Tracked> {
        let (tails, blocks, noted) = (Vec::new(), BlockSet::default(), (Lsn::ZERO, true));
        let begins = peer >= from.position.lsn;
        begins.then_some(Tracked { from, upto: from, tails, noted, blocks, next: footer::FIRST })
    }

    fn write_footer(&mut self, now: Nanos, footer: &Footer) {
        let Some(tracked) = &mut self.tracking.tracked else { return };
        let file = FileRef::Footer(tracked.next);
        tracked.next += 1;
        if planted(Planted::FooterNotAwaited) {
            self.out.disk(now, Route::Ignore, DiskOp::Replace { file, data: vec![footer.encode()] });
            return self.on_footer_written(now, true);
        }
        self.out.disk(now, Route::Footer, DiskOp::Replace { file, data: vec![footer.encode()] });
    }

    /// A footer is durable, or could not be written: then nothing is known of what changed, and the peer is sent the whole.
    pub(super) fn on_footer_written(&mut self, now: Nanos, ok: bool) {
        let Some(mut waiting) = self.tracking.waiting.take() else { return };
        if !ok {
            self.tracking.tracked = None;
            self.tracking.take_back();
            waiting.footer = None;
        }
        match (waiting.footer.take(), &mut self.tracking.tracked) {
            (Some(footer), Some(tracked)) => {
                tracked.add(&footer);
                self.tracking.waiting = Some(waiting);
                self.write_footer(now, &footer);
            }
            _ => self.save_floor(now, waiting.to, waiting.samples),
        }
    }

    /// Notes where the peer may turn out to be: at what it has confirmed, or at something later that was on its way to it.
    pub(super) fn note_tails(&mut self) {
        let Some(peer) = self.peer_reached().filter(|_| self.tracking.offer.is_none()) else { return };
        let is_news = |t: &&Tracked| t.noted.0 != peer && peer >= t.from.position.lsn;
        let Some(tracked) = self.tracking.tracked.as_ref().filter(is_news) else { return };
        let at = self.boundary_at(peer);
        if at.is_none() && !tracked.tails.is_empty() {
            return;
        }
        let segments = self.log.segments.live().filter(|s| s.end().position.lsn > peer);
        let later = segments.flat_map(|s| &s.frames).filter(|f| f.last > peer).map(|f| f.boundary());
        let tails = at.into_iter().chain(later).take(footer::MAX_TAILS).collect();
        if let Some(tracked) = &mut self.tracking.tracked {
            (tracked.tails, tracked.noted) = (tails, (peer, false));
        }
    }

    /// From where a difference brings the peer up to date.
    pub(super) fn difference_for(&self, hello: &Hello) -> Option<Boundary> {
        let offered = hello.difference?;
        let tracked = self.tracking.tracked.as_ref()?;
        let begun = hello.needs_seed && self.tracking.is_offered(offered.resync, offered.from);
        let is_known = !hello.needs_seed && offered.from == hello.tail && tracked.tails.contains(&offered.from);
        let reaches = tracked.from.position.lsn <= offered.from.position.lsn;
        let is_whole = reaches && (tracked.upto == self.floor.at() || self.floor.is_saving());
        let fits = self.space.layout.extends(&hello.layout);
        ((begun || is_known) && is_whole && fits).then_some(offered.from)
    }
}

impl Tracked {
    /// What follows what is known.
    fn add(&mut self, footer: &Footer) {
        self.blocks.add(&footer.blocks);
        self.upto = footer.end;
    }
}
