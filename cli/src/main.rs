use std::process::ExitCode;

/// A message passes some dozens of small allocations in the HTTP/2 and protobuf libraries; the C
/// library's allocator took a fifth of a loaded broker's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ledgermq::run(std::env::args_os())
}
