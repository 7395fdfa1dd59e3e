//! A wall clock that is wrong, for a process that does not know: preloaded (`LD_PRELOAD`), it adds
//! to `CLOCK_REALTIME` what a shared file says, from one call to the next. Monotonic time is left
//! alone, as a step of the clock leaves it alone.
//!
//! The file named by `LEDGERMQ_CLOCK_FILE`, 32 bytes, little endian, mapped and read at each call:
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 8 | `LMQCLOCK` |
//! | 8 | 8 | offset in nanoseconds, signed |
//! | 16 | 8 | rate in parts per million, signed: how much faster it runs than the real one |
//! | 24 | 8 | the real time in nanoseconds at which the rate began |
//!
//! told = real + offset + (real − begin) × rate / 1,000,000. Whoever changes the rate writes the
//! begin first, with the rate at 0.
//!
//! Without the file, or with one that is not ours, the clock is right.

use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

const MAGIC: i64 = i64::from_le_bytes(*b"LMQCLOCK");
const FILE_VARIABLE: &CStr = c"LEDGERMQ_CLOCK_FILE";
const NANOS: i128 = 1_000_000_000;

#[repr(C)]
struct Skew {
    magic: AtomicI64,
    offset_ns: AtomicI64,
    rate_ppm: AtomicI64,
    begin_ns: AtomicI64,
}

static RIGHT: Skew = Skew {
    magic: AtomicI64::new(MAGIC),
    offset_ns: AtomicI64::new(0),
    rate_ppm: AtomicI64::new(0),
    begin_ns: AtomicI64::new(0),
};

type ClockGettime = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> c_int;

static NEXT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static SKEW: AtomicPtr<Skew> = AtomicPtr::new(std::ptr::null_mut());

/// # Safety
///
/// As `clock_gettime(2)`: `to` points to a `timespec`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, to: *mut libc::timespec) -> c_int {
    // SAFETY: the next function of this name is libc's, and the arguments are the caller's.
    let answer = unsafe { next()(clock, to) };
    if answer != 0 || !matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE) {
        return answer;
    }
    // SAFETY: libc has just filled it.
    let told = unsafe { &mut *to };
    let real = i128::from(told.tv_sec) * NANOS + i128::from(told.tv_nsec);
    let skew = skew();
    let since = real - i128::from(skew.begin_ns.load(Ordering::Relaxed));
    let drift = since * i128::from(skew.rate_ppm.load(Ordering::Acquire)) / 1_000_000;
    let wrong = (real + i128::from(skew.offset_ns.load(Ordering::Relaxed)) + drift).max(0);
    told.tv_sec = (wrong / NANOS) as libc::time_t;
    told.tv_nsec = (wrong % NANOS) as libc::c_long;
    answer
}

fn next() -> ClockGettime {
    let mut found = NEXT.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: the name is a C string.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"clock_gettime".as_ptr()) };
        if found.is_null() {
            // SAFETY: there is no clock to answer from.
            unsafe { libc::abort() };
        }
        NEXT.store(found, Ordering::Relaxed);
    }
    // SAFETY: it is the address of libc's function, which has this type.
    unsafe { std::mem::transmute::<*mut c_void, ClockGettime>(found) }
}

fn skew() -> &'static Skew {
    let mut found = SKEW.load(Ordering::Acquire);
    if found.is_null() {
        found = map().unwrap_or(std::ptr::from_ref(&RIGHT).cast_mut());
        SKEW.store(found, Ordering::Release);
    }
    // SAFETY: either the static or a mapping that is never taken away, both aligned and only read
    // through atomics.
    unsafe { &*found }
}

/// Two threads may both map it; both mappings stay and say the same.
fn map() -> Option<*mut Skew> {
    let size = std::mem::size_of::<Skew>();
    // SAFETY: the name is a C string; the answer is not kept beyond the call to open.
    let file = unsafe {
        let path = libc::getenv(FILE_VARIABLE.as_ptr());
        if path.is_null() {
            return None;
        }
        libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC)
    };
    if file < 0 {
        return None;
    }
    // SAFETY: a new mapping; the size of the file is checked before a byte of it is read.
    unsafe {
        let mut about: libc::stat = std::mem::zeroed();
        let fits = libc::fstat(file, &mut about) == 0 && about.st_size >= size as libc::off_t;
        let mapped = if fits {
            libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, libc::MAP_SHARED, file, 0)
        } else {
            libc::MAP_FAILED
        };
        libc::close(file);
        if mapped == libc::MAP_FAILED {
            return None;
        }
        let skew = mapped.cast::<Skew>();
        ((*skew).magic.load(Ordering::Relaxed) == MAGIC).then_some(skew)
    }
}
