#!/bin/sh
# Makes the image without a registry: builds a static binary with the local toolchain and packs it.
#
#   deploy/pack.sh                      build, then pack as ledgermq:local
#   BINARY=path/to/ledgermq deploy/pack.sh     pack this binary; one that is linked dynamically (a debug
#                                       build) takes the libraries it names along
#   IMAGE=name:tag deploy/pack.sh       under another name
#   BASE_IMAGE=debian:12-slim deploy/pack.sh   on another base than `scratch`
#
# Needs a Rust toolchain, a C compiler and libc.a (Debian: libc6-dev), and a docker daemon.
set -eu
cd "$(dirname "$0")/.."
image=${IMAGE:-ledgermq:local}

if [ -z "${BINARY:-}" ]; then
  target=$(rustc -vV | sed -n 's/^host: //p')
  # Naming the target keeps build scripts and procedural macros dynamic. tokio_unstable is what
  # .cargo/config.toml asks for; RUSTFLAGS replaces that file's flags.
  RUSTFLAGS="--cfg tokio_unstable -C target-feature=+crt-static" \
    ${CARGO:-cargo} build --release --locked --package ledgermq --target "$target"
  BINARY=${CARGO_TARGET_DIR:-target}/$target/release/ledgermq
fi

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
# Line tables are five times the program; they stay with the binary that was built.
strip --strip-debug -o "$context/ledgermq" "$BINARY" 2>/dev/null || cp "$BINARY" "$context/ledgermq"
mkdir "$context/state"
mkdir "$context/libraries"
if [ "${BASE_IMAGE:-scratch}" = scratch ]; then
  # Nothing for a static binary. Each stands where the binary looks for it.
  for library in $(ldd "$context/ledgermq" 2>/dev/null | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p'); do
    mkdir -p "$context/libraries$(dirname "$library")"
    cp -L "$library" "$context/libraries$library"
  done
fi
# The classic builder: it needs no plug-in and pulls nothing for `scratch`.
DOCKER_BUILDKIT=${DOCKER_BUILDKIT:-0} docker build --quiet --file deploy/Dockerfile.prebuilt \
  --build-arg BASE_IMAGE="${BASE_IMAGE:-scratch}" --tag "$image" "$context"
