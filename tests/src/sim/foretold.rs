//! What a copy foretells of a verb is what comes of it: before each verb the copy is asked for its plan, and the answer, and what the
//! model finds missing after a promotion, are compared with that.

use std::collections::{BTreeMap, VecDeque};

use tidemark_core::event::{Input, VerbId};
use tidemark_core::plan::{Loss, Plan};
use tidemark_core::ship::Message;
use tidemark_core::types::Nanos;
use tidemark_core::verb::{PromotionClass, Verb, VerbError, VerbOk};

use crate::sim::copy::Copy;
use crate::sim::faults::Fault;
use crate::sim::model::{LineId, Seq};
use crate::sim::world::{World, name};

/// As many of the primary's last words are remembered: more than can come within the grain of a loss' milliseconds.
const WORDS: usize = 64;

/// What a copy said before a verb began.
#[derive(Debug)]
struct Foretold {
    plan: Result<Plan, VerbError>,
    class: &'static str,
    /// What the model knew when the primary sent what this copy heard last.
    heard: Option<Seq>,
    at: u64,
}

/// What was foretold at one site.
#[derive(Debug, Default)]
pub struct Foretelling {
    verbs: BTreeMap<VerbId, Foretold>,
    /// When a word of the primary was taken in, and what the model knew when it was sent.
    words: VecDeque<(Nanos, Seq)>,
}

impl Foretelling {
    /// A process ended: it will not answer.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// `node` is about to be told `input`, which was sent when the model knew `sent`.
    pub fn before<C: Copy>(&mut self, now: u64, local: Nanos, node: &C, input: &Input, sent: Seq) {
        match input {
            Input::PeerMessage(_, Message::Committed { .. }) => {
                self.words.push_back((local, sent));
                if self.words.len() > WORDS {
                    self.words.pop_front();
                }
            }
            Input::Verb(id, verb) => {
                let plan = node.plan(local, verb);
                let class = node.status(local).promotable.class();
                let is_promotion = matches!(verb, Verb::Promote { .. });
                let loss = plan.as_ref().ok().and_then(|plan| plan.loss).filter(|_| is_promotion);
                let heard = loss.and_then(|loss| self.heard(local, &loss));
                self.verbs.insert(*id, Foretold { plan, class, heard, at: now });
            }
            _ => {}
        }
    }

    /// The oldest word that a loss which counts from the last one may count from.
    fn heard(&self, local: Nanos, loss: &Loss) -> Option<Seq> {
        let since = |at: Nanos| local.since(at) / 1_000_000;
        self.words.iter().filter(|(at, _)| since(*at) <= loss.ms).map(|(_, sent)| *sent).min()
    }
}

impl<C: Copy> World<C> {
    /// A verb ended: as it was foretold.
    pub(super) fn judge_foretold(&mut self, site: usize, id: VerbId, result: &Result<VerbOk, VerbError>) {
        let Some(foretold) = self.sites[site].foretelling.verbs.remove(&id) else { return };
        let why = match (&foretold.plan, result) {
            (Err(plan), Err(error)) if plan == error => {
                self.fired.hit(Fault::ForetoldRefusal);
                None
            }
            (Err(plan), _) => Some(format!("was foretold to be refused ({plan})")),
            (Ok(_), Err(VerbError::Interrupted(_))) => None,
            // The plan waits for the witness, which may have said no in the very moment.
            (Ok(plan), Err(VerbError::Unfit(_))) if !plan.waits.is_empty() => None,
            // It was to be judged later, and that was in the same moment.
            (Ok(plan), Err(_)) if plan.waits.iter().any(|wait| wait.what == Plan::RECOVERY) => None,
            // What is judged at once was judged by the plan; a peer or a witness that was asked may refuse later.
            (Ok(plan), Err(_)) => (foretold.at == self.now).then(|| format!("was foretold to go on ({plan:?})")),
            (Ok(plan), Ok(ok)) => self.judge_loss(site, plan, ok, &foretold),
        };
        if let Some(why) = why {
            self.fail(format!("{} verb {} {why}, and ended with {result:?}", name(site), id.0));
        }
    }

    fn judge_loss(&mut self, site: usize, plan: &Plan, ok: &VerbOk, foretold: &Foretold) -> Option<String> {
        let (Some(loss), VerbOk::Promoted { class, lost_bytes, lost_ms, .. }) = (plan.loss, ok) else { return None };
        let found = Loss { class: *class, bytes: *lost_bytes, ms: *lost_ms };
        if found != loss {
            return Some(format!("was foretold to lose {loss:?}"));
        }
        if foretold.class == "impossible" {
            return Some("was foretold to be impossible".into());
        }
        self.fired.hit(match class {
            PromotionClass::Lossless => Fault::ForetoldLossless,
            PromotionClass::Lossy => Fault::ForetoldLossy,
            PromotionClass::Unproven => Fault::ForetoldUnproven,
        });
        let opened = self.sites[site].opened.map(|(_, line)| line);
        if let (PromotionClass::Lossy, Some(line), Some(heard)) = (class, opened, foretold.heard) {
            self.bound_loss(line, 1 - site, heard, loss.bytes);
        }
        None
    }

    /// `line` was opened with the word that of what `site` had written when it was last heard no more than `bytes` are missing.
    fn bound_loss(&mut self, line: LineId, site: usize, heard: Seq, bytes: u64) {
        if !self.sites.iter().any(|s| s.tainted) {
            self.model.bound(line, site, heard, bytes);
        }
    }
}
