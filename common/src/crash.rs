//! A broken invariant ends the process: Raft is the recovery, and a process that goes on after a
//! panic in one task serves from state nobody vouches for.
//!
//! The one exception is work on files that hold derived state, in a library that panics over damaged
//! ones: it runs [`guarded`], and its panic is an error like any other.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// From now on a panic outside [`guarded`] reports itself and aborts.
pub fn end_process_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if !GUARDED.get() {
            std::process::abort();
        }
    }));
}

/// Runs `work` on this thread; a panic in it is returned instead of ending the process.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guarded_panic_is_returned_and_the_guard_ends_with_it() {
        let panic = guarded(|| -> u32 { panic!("damaged") }).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"damaged"));
        assert!(!GUARDED.get());
        assert_eq!(guarded(|| 7).unwrap(), 7);
    }
}
