//! The oracle: what a promotion of this copy would be now. [`Node::promote`] begins with the very same judgement; nothing here
//! changes anything.

use crate::config::Mode;
use crate::format::superblock::CopyFlag;
use crate::group::arbitrated::Unfit;
use crate::node::plan::{changing, closed, opening};
use crate::node::verbs::DEADLINE_MS;
use crate::node::{Node, Stage};
use crate::plan::{Loss, Plan, Promotable};
use crate::ship::Hello;
use crate::status::{Role, SuspendReason};
use crate::types::{Epoch, Nanos, SiteId};
use crate::verb::{PromotionClass, VerbError};

/// A primary is heard twice a second while it is connected: a bound in bytes alone says something for so long.
const HEARD_MS: u64 = 1_000;

/// How a copy would become Primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// It is.
    Serves,
    /// It was Primary before and settles its history; `forces` with a K of its own, by a person's word.
    Resume { forces: bool },
    /// A newer K names the other site, which a person knows to be gone: back to this history, above that epoch.
    GoBack { above: Epoch },
    /// The peer was demoted and hands over; `both` stay in S.
    HandOver { to_stay: SiteId, both: bool },
    /// By a person's word, without the other site.
    Alone,
    /// By the witness, once the lease of the primary is over.
    TakeOver,
    /// There is no other site.
    Local,
}

/// What a promotion would be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Judgement {
    pub way: Way,
    pub loss: Loss,
    /// What the witness was seen to hold against it. It is asked again; what it says then counts.
    pub doubt: Option<Unfit>,
}

impl Judgement {
    fn lossless(way: Way) -> Self {
        Self { way, loss: Loss::NOTHING, doubt: None }
    }
}

impl Node {
    /// What a promotion of this copy would be now, and what stands against it. Changes nothing.
    pub fn promotable(&self, now: Nanos) -> Promotable {
        let mut blockers = Vec::new();
        let (judged, needs_word) = match self.judge_if_open(now, false) {
            Ok(judged) => match judged.doubt {
                None => (Ok(judged), false),
                Some(doubt) => {
                    blockers.push(VerbError::Unfit(doubt));
                    (self.judge_if_open(now, true), true)
                }
            },
            Err(why) => {
                blockers.push(why);
                (self.judge_if_open(now, true), true)
            }
        };
        match judged {
            Ok(judged) => {
                blockers.extend(Bounds::NONE.accept(&judged.loss).err());
                let waits_ms = self.promotion_waits_ms(now, judged.way, needs_word);
                Promotable { loss: Some(judged.loss), needs_word, waits_ms, blockers }
            }
            Err(why) => {
                if !blockers.contains(&why) {
                    blockers.push(why);
                }
                Promotable { loss: None, needs_word: false, waits_ms: 0, blockers }
            }
        }
    }

    fn judge_if_open(&self, now: Nanos, by_word: bool) -> Result<Judgement, VerbError> {
        match self.stage {
            Stage::Closed => Err(closed()),
            _ if self.is_recovering() => Err(opening()),
            _ => self.judge_promotion(now, by_word),
        }
    }

    fn promotion_waits_ms(&self, now: Nanos, way: Way, by_word: bool) -> u64 {
        let asks = by_word && way != Way::Serves && self.word_would_wait(now);
        self.deadline_ms(way) + if asks { super::arbitration::WORD_MS } else { 0 }
    }

    /// How long a promotion waits at most to be carried out.
    pub(super) fn deadline_ms(&self, way: Way) -> u64 {
        match way {
            Way::Serves => 0,
            Way::TakeOver => DEADLINE_MS + self.arbiter.wait_ms(),
            _ => DEADLINE_MS,
        }
    }

    /// The plan of a promotion with these bounds.
    pub(super) fn plan_promotion(&self, now: Nanos, by_word: bool, bounds: &Bounds) -> Result<Plan, VerbError> {
        let judged = self.judge_promotion(now, by_word)?;
        bounds.accept(&judged.loss)?;
        let mut plan = Plan::of(self.steps_of(judged.way));
        plan.loss = Some(judged.loss);
        plan.steps.extend(judged.doubt.map(|why| format!("is refused unless the witness changed its mind: {why}")));
        let what = match judged.way {
            Way::Serves => return Ok(plan),
            Way::TakeOver if self.k.primary.is_none() => "the witness",
            Way::TakeOver => "the end of the other site's lease, and the witness",
            Way::HandOver { .. } => "the peer, which hands over",
            _ => "the log, and where S has a peer for that, to be settled",
        };
        Ok(plan.waiting(what, self.deadline_ms(judged.way)))
    }

    fn steps_of(&self, way: Way) -> Vec<String> {
        let end = self.log.end().position.lsn;
        let serves = format!("this copy becomes primary and serves from lsn {end} on");
        match way {
            Way::Serves => vec!["nothing: this copy is the primary".into()],
            Way::Resume { forces: false } | Way::Local => vec![serves],
            Way::Resume { forces: true } | Way::Alone | Way::GoBack { .. } => vec![
                "the assertion is recorded for good".into(),
                "this site alone is S at a new epoch: flushes wait for no other site until one joins".into(),
                serves,
                "what the other site has beyond that is sealed in a rescue branch when it returns".into(),
            ],
            Way::HandOver { both, .. } => {
                let who =
                    if both { "both sites are in S" } else { "this site alone is S until the peer has caught up" };
                vec![format!("the peer hands over: {who}"), serves]
            }
            Way::TakeOver => vec![
                match self.k.primary {
                    Some(_) => {
                        "the witness makes this site the primary, once the lease of the other one is over".into()
                    }
                    None => "the witness makes this site the primary: no site is".into(),
                },
                "this site alone is S until the other one has caught up".into(),
                serves,
            ],
        }
    }

    /// The judgement, for a copy that is open: by a person's word, or without one. Of the members of a group the worst one decides.
    pub(super) fn judge_promotion(&self, now: Nanos, by_word: bool) -> Result<Judgement, VerbError> {
        let judged = self.judge_own(now, by_word)?;
        match judged.way {
            Way::Serves => Ok(judged),
            _ => self.judge_members(&judged.loss).map(|()| judged),
        }
    }

    fn judge_own(&self, now: Nanos, by_word: bool) -> Result<Judgement, VerbError> {
        if self.role == Role::Primary {
            return Ok(Judgement::lossless(Way::Serves));
        }
        self.may_be_promoted(by_word)?;
        if let Some(epoch) = self.replaced_by(now) {
            return self.judge_going_back(by_word, epoch);
        }
        if self.k.primary == Some(self.site) {
            return match self.role {
                Role::Fenced(epoch) => self.judge_going_back(by_word, epoch),
                _ => self.judge_resuming(now, by_word),
            };
        }
        let hello = self.link.as_ref().and_then(|l| l.hello.as_deref());
        match (hello, self.superblock.peer) {
            (Some(h), _) if h.is_primary => Err(VerbError::PeerIsPrimary { site: h.site, epoch: h.config.epoch }),
            (Some(h), _) if self.agrees_on_nobody(h) => match self.judge_handover(h) {
                Err(_) if by_word => Ok(Judgement { way: Way::Alone, loss: self.loss(now), doubt: None }),
                judged => judged,
            },
            (_, Some(_)) if by_word => Ok(Judgement { way: Way::Alone, loss: self.loss(now), doubt: None }),
            (_, Some(peer)) => self.judge_takeover(now, peer),
            (_, None) => Ok(Judgement::lossless(Way::Local)),
        }
    }

    /// Both copies hold the same K, and it names nobody. One that failed agrees on nothing.
    fn agrees_on_nobody(&self, hello: &Hello) -> bool {
        self.k.primary.is_none() && hello.config.id() == self.k.id() && !hello.is_suspect
    }

    /// The peer is there, was demoted, and nothing is asked of the witness that could outdo what both agree on.
    pub(super) fn may_be_handed_over(&self) -> bool {
        let hello = self.link.as_ref().and_then(|l| l.hello.as_deref());
        hello.is_some_and(|hello| self.agrees_on_nobody(hello)) && !self.arbiter.is_deciding()
    }

    /// Without a word: the witness may say that the primary has stopped.
    fn judge_takeover(&self, now: Nanos, peer: SiteId) -> Result<Judgement, VerbError> {
        if !self.is_arbitrated() {
            return Err(VerbError::PeerUnproven { site: peer });
        }
        if self.k.mode != Mode::Sync {
            return Err(VerbError::Unfit(Unfit::NotSync));
        }
        if !self.k.has(self.site) {
            return Err(VerbError::Unfit(Unfit::LeftOut));
        }
        let left_out = (self.is_left_out(now) == Some(true)).then_some(Unfit::LeftOut);
        Ok(Judgement { doubt: self.arbiter.unfit().or(left_out), ..Judgement::lossless(Way::TakeOver) })
    }

    /// This copy was Primary before: it may open when its peer confirms, or by a human's word.
    fn judge_resuming(&self, now: Nanos, by_word: bool) -> Result<Judgement, VerbError> {
        let unknown = self.diverged.is_some() || (by_word && self.may_be_replaced(now));
        let loss = if unknown { Loss::UNKNOWN } else { Loss::NOTHING };
        let forces = match (self.role, by_word, self.superblock.peer) {
            (Role::Suspended(SuspendReason::Restart), false, Some(site)) => {
                return Err(VerbError::PeerUnproven { site });
            }
            (Role::Suspended(SuspendReason::LeaseLost), false, _) => {
                let hint = "it serves again when the witness or the other site answers; where that site is known to be \
                            stopped, use --assert-peer-fenced --reason TEXT";
                return Err(VerbError::Role { role: self.role_name().into(), hint: hint.into() });
            }
            (Role::Suspended(_), true, Some(_)) => true,
            _ => false,
        };
        Ok(Judgement { way: Way::Resume { forces }, loss, doubt: None })
    }

    /// A newer K was seen to name the other site. Only a human who knows that site to be gone goes back to this history; what
    /// was written there is not here.
    fn judge_going_back(&self, by_word: bool, epoch: Epoch) -> Result<Judgement, VerbError> {
        let linked = self.link.as_ref().is_some_and(|l| l.hello.is_some());
        match self.superblock.peer {
            Some(_) if by_word && !linked => {
                let way = Way::GoBack { above: epoch.max(self.k.epoch) };
                Ok(Judgement { way, loss: Loss::UNKNOWN, doubt: None })
            }
            site => Err(VerbError::PeerIsPrimary { site: site.unwrap_or(self.site), epoch }),
        }
    }

    /// The peer is there and demoted, and has nothing that this copy lacks: it hands over. When it lacks something itself it
    /// agrees to leave S by that.
    fn judge_handover(&self, hello: &Hello) -> Result<Judgement, VerbError> {
        let end = self.log.end();
        if self.log.durable() != end.position.lsn || !self.holds_all_of(hello) {
            let (state, hint) = ("not equal to its peer".into(), "demote again, or promote the other site".into());
            return Err(VerbError::CopyState { state, hint });
        }
        let both = self.k.sites.len() > 1 && hello.tail == end && !hello.needs_seed && !hello.is_suspect;
        Ok(Judgement::lossless(Way::HandOver { to_stay: hello.site, both }))
    }

    fn may_be_promoted(&self, by_word: bool) -> Result<(), VerbError> {
        let refuse = |state: &str, hint: &str| Err(VerbError::CopyState { state: state.into(), hint: hint.into() });
        if self.failed {
            return refuse("failed", "open the copy again, or promote the other site");
        }
        if self.reseed_wanted && !by_word {
            return refuse(
                "given up",
                "it was to be seeded anew: promote the other site, or take that back by --assert-peer-fenced",
            );
        }
        if let Some(why) = self.diverged.as_ref().filter(|_| !by_word) {
            return refuse(
                &format!("diverged ({why})"),
                "the other site holds the newer history: see `tidemark reseed`, or, where that site is gone for good, \
                 --assert-peer-fenced with --allow-unproven",
            );
        }
        match self.flag() {
            CopyFlag::Seeding(_) => return refuse("being seeded", "wait until its first content is complete"),
            CopyFlag::Suspect => return refuse("suspect", "promote the other site, or restore the base image"),
            CopyFlag::Failed => return refuse("failed", "replace the disk and reseed"),
            CopyFlag::Released => return refuse("released", "adopt the base image as a new volume"),
            CopyFlag::Diverged | CopyFlag::Complete => {}
        }
        if self.log.end().position.lsn < self.superblock.visible_at.max(self.required) {
            return refuse("incomplete", "durable records are missing here; they can only come from the other site");
        }
        // Who asks for the takeover that is under way waits for it.
        let joins = !by_word && self.is_arbitrated() && self.k.primary != Some(self.site);
        // To a peer that was demoted nothing is disputed.
        let deciding = self.arbiter.is_deciding() && !by_word && !joins && self.k.primary.is_some();
        let pending = self.promotion_pending() && !(joins && self.takes_over_by_verb());
        if self.is_persisting_k() || self.sealing.is_some() || pending || deciding {
            return Err(changing());
        }
        Ok(())
    }

    /// The witness names another primary, and nothing else stands against a promotion: this site is fenced.
    pub(super) fn replaced_by_now(&self, now: Nanos, by_word: bool) -> Option<Epoch> {
        let asks = self.role != Role::Primary && self.may_be_promoted(by_word).is_ok();
        self.replaced_by(now).filter(|_| asks)
    }

    /// What opening this copy now would leave behind, as far as it can be known.
    fn loss(&self, now: Nanos) -> Loss {
        let end = self.log.end().position.lsn;
        if self.diverged.is_some() {
            return Loss::UNKNOWN; // all of the newer history
        }
        let counted = self.k.has(self.site) && self.k.mode == Mode::Sync;
        match (self.is_left_out(now), self.primary_heard_at) {
            (Some(false), _) if counted => Loss::NOTHING,
            // The primary may have gone on alone, and nobody can tell.
            (None, _) => Loss::UNKNOWN,
            (Some(_), Some(at)) => Loss {
                class: PromotionClass::Lossy,
                bytes: if self.primary_appended_seen > end { self.primary_backlog_seen } else { 0 },
                ms: now.since(at) / 1_000_000,
            },
            (Some(_), None) => Loss::UNKNOWN,
        }
    }
}

/// What the operator accepts to lose.
pub(super) struct Bounds {
    pub max_loss_bytes: Option<u64>,
    pub max_loss_seconds: Option<u64>,
    pub allow_unproven: bool,
}

impl Bounds {
    /// Nothing.
    pub const NONE: Self = Self { max_loss_bytes: None, max_loss_seconds: None, allow_unproven: false };

    pub fn accept(&self, loss: &Loss) -> Result<(), VerbError> {
        match loss.class {
            PromotionClass::Lossless => Ok(()),
            _ if self.allow_unproven => Ok(()),
            PromotionClass::Unproven => Err(VerbError::Unproven),
            PromotionClass::Lossy => {
                // Of what the primary wrote since it was heard only the time is known.
                let is_fresh = loss.ms <= HEARD_MS || self.max_loss_seconds.is_some();
                let by_bytes = self.max_loss_bytes.map(|max| loss.bytes <= max && is_fresh);
                let by_time = self.max_loss_seconds.map(|max| loss.ms <= max.saturating_mul(1000));
                match (by_bytes, by_time) {
                    (Some(false), _) | (_, Some(false)) | (None, None) => {
                        Err(VerbError::LossTooLarge { bytes: loss.bytes, ms: loss.ms })
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}
