#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ledgermq_fuzz::run("peer_message", bytes));
