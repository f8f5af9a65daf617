use std::sync::{Mutex, MutexGuard, PoisonError};

static ALONE: Mutex<()> = Mutex::new(());

/// Keeps tests apart that differentiate on threads of their own from those that do so in a task of rayon's pool, as programs do: a
/// task that waits for its turn may hold the thread that the pass under way waits for.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
