//! Who holds a view of a copy, or waits for one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidemark_core::event::HoldId;
use tidemark_core::node::Held;
use tidemark_core::verb::VerbError;
use tokio::sync::oneshot;

/// The answer to who asked for a view.
pub type HeldAnswer = oneshot::Sender<Result<Box<Held>, VerbError>>;

/// The views of one copy: who waits for each, and what says that it has ended.
#[derive(Default)]
pub(super) struct Holds(BTreeMap<HoldId, (Option<HeldAnswer>, Arc<AtomicBool>)>);

impl Holds {
    pub(super) fn insert(&mut self, id: HoldId, ended: Arc<AtomicBool>, answer: HeldAnswer) {
        self.0.insert(id, (Some(answer), ended));
    }

    /// False when nobody waits for it any more.
    pub(super) fn on_held(&mut self, id: HoldId, held: Result<Box<Held>, VerbError>) -> bool {
        let refused = held.is_err();
        let answer = self.0.get_mut(&id).and_then(|(answer, _)| answer.take());
        let is_awaited = answer.is_some_and(|answer| answer.send(held).is_ok());
        if refused || !is_awaited {
            self.0.remove(&id);
        }
        refused || is_awaited
    }

    /// From here on nothing that is read for it counts.
    pub(super) fn on_ended(&mut self, id: HoldId) {
        if let Some((_, ended)) = self.0.remove(&id) {
            ended.store(true, Ordering::SeqCst);
        }
    }

    pub(super) fn let_go(&mut self, id: HoldId) {
        self.0.remove(&id);
    }

    pub(super) fn end_all(&mut self) {
        for (_, ended) in std::mem::take(&mut self.0).into_values() {
            ended.store(true, Ordering::SeqCst);
        }
    }
}
