use std::process::ExitCode;

fn main() -> ExitCode {
    ledgermq::run(std::env::args_os())
}
