#!/bin/bash
# Measures start, exec, delete and the idle daemon of the release binary; see
# docs/benchmarks.md. Takes two minutes; a busy machine spoils it.
#
#   scripts/bench.sh
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh "$@"
scripts/build.sh
command -v cargo >/dev/null || PATH="$PATH:$HOME/.cargo/bin"
BANGER_BIN=$PWD/build/bin/banger cargo bench --quiet --locked --profile fast --bench speed
