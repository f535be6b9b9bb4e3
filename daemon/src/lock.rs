//! Locks whose holders leave what they guard whole at every step: one that panicked has broken nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What `mutex` guards.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
