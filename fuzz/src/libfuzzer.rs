//! All targets under libFuzzer, in one binary: `LEDGERMQ_FUZZ_TARGET` says which.

#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::LazyLock;

use ledgermq_fuzz::Target;

const TARGET_VARIABLE: &str = "LEDGERMQ_FUZZ_TARGET";

/// Far more than any target needs for an input of some kilobytes.
const ALLOCATION_BYTES_MAX: usize = 16 << 20;

/// Ends the process at an allocation by a length that nobody has seen the bytes of. libFuzzer looks
/// at the memory that was touched, which such an allocation need not be.
struct Limited;

fn check(bytes: usize) {
    if bytes > ALLOCATION_BYTES_MAX {
        eprintln!("an allocation of {bytes} bytes");
        std::process::abort();
    }
}

// SAFETY: everything is the system's allocator; a size that is refused does not return.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        check(bytes);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(block, layout, bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var(TARGET_VARIABLE).unwrap_or_default();
    ledgermq_fuzz::target(&name).unwrap_or_else(|| {
        let names: Vec<_> = ledgermq_fuzz::TARGETS.iter().map(|target| target.name).collect();
        panic!("{TARGET_VARIABLE} is none of {}", names.join(", "))
    })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
