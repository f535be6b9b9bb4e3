//! A disk that hangs: while the gate is closed requests are put aside, not refused, and go on in their order when it opens.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A request that waits; dropping it fails it.
pub type Held = Box<dyn FnOnce() + Send>;

/// Lets requests through, or holds them.
#[derive(Default)]
pub struct Gate(Mutex<State>);

#[derive(Default)]
struct State {
    is_closed: bool,
    held: Vec<Held>,
}

impl Gate {
    /// Runs the request now, or when the gate opens.
    pub fn pass(&self, request: Held) {
        let mut state = self.state();
        if state.is_closed {
            state.held.push(request);
        } else {
            drop(state);
            request();
        }
    }

    /// Holds every request from now on.
    pub fn close(&self) {
        self.state().is_closed = true;
    }

    /// Lets all held requests go on, and those to come.
    pub fn open(&self) {
        let held = {
            let mut state = self.state();
            state.is_closed = false;
            std::mem::take(&mut state.held)
        };
        held.into_iter().for_each(|request| request());
    }

    /// Fails the held requests; the gate stays as it is.
    pub fn drop_held(&self) {
        let held = std::mem::take(&mut self.state().held);
        drop(held);
    }

    /// How many requests wait.
    pub fn held(&self) -> u64 {
        self.state().held.len() as u64
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        formatter.debug_struct("Gate").field("is_closed", &state.is_closed).field("held", &state.held.len()).finish()
    }
}
