#!/bin/bash
# Line coverage of the unit tests, by file.
#
#   scripts/coverage.sh             report in build/coverage.txt
#
# Built for the GNU target into a directory of its own: the musl standard library
# comes without the profiler's runtime.
set -euo pipefail
cd "$(dirname "$0")/.."

rustup component add llvm-tools >/dev/null 2>&1 ||
    { echo "coverage: needs rustup's component llvm-tools" >&2; exit 1; }
tools=$(dirname "$(find "$(rustc --print sysroot)" -name llvm-profdata | head -n 1)")
export CARGO_TARGET_DIR=target/coverage RUSTFLAGS="-C instrument-coverage"
export LLVM_PROFILE_FILE=$PWD/target/coverage/profiles/%p-%m.profraw
rm -rf target/coverage/profiles

cargo test --quiet --locked --target x86_64-unknown-linux-gnu --lib
mapfile -t objects < <(cargo test --quiet --locked --target x86_64-unknown-linux-gnu --lib --no-run \
    --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
mkdir -p build
"$tools/llvm-profdata" merge -sparse target/coverage/profiles/*.profraw -o target/coverage/merged.profdata
"$tools/llvm-cov" report -instr-profile target/coverage/merged.profdata "${objects[@]}" \
    --ignore-filename-regex '/(\.cargo|rustc)/' >build/coverage.txt
tail -n 1 build/coverage.txt
