//! What a process finds out once and keeps.

use std::sync::OnceLock;

/// What `cell` holds, made by `make` where it holds nothing yet. Unlike `get_or_init` nobody waits for another
/// thread's making: in a process forked meanwhile that thread does not exist, and the wait would never end.
/// Several threads may make it at once; what is there first stays.
#[inline]
pub fn known<T>(cell: &OnceLock<T>, make: impl FnOnce() -> T) -> &T {
    if cell.get().is_none() {
        let made = make();
        let _ = cell.set(made);
    }
    cell.get().expect("set above")
}
