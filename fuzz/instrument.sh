#!/bin/sh
# cargo's RUSTC_WORKSPACE_WRAPPER: compiles our crates with libFuzzer's coverage. Only workspace
# members go through a workspace wrapper, so the crates of others are shared with every other build.
# Build scripts are members too, but are linked without libFuzzer. Cargo does not notice a change of
# these flags: what was built with the old ones must be removed by hand.
rustc=$1
shift
case " $* " in
*" --crate-name ledgermq_"*)
  exec "$rustc" "$@" \
    -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares
  ;;
esac
exec "$rustc" "$@"
