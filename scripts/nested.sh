#!/bin/bash
# A whole VM on a device-mapper snapshot, in a guest that plays the host: made, used, taken
# over by another daemon, grown, stopped and started, reset, deleted; see docs/disks.md.
# Everything is emulated twice, so each of its three boots takes a minute or more.
#
#   scripts/nested.sh
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || PATH="$PATH:$HOME/.cargo/bin"
if [ -z "${BANGER_BIN-}" ]; then
    scripts/build.sh fast
    export BANGER_BIN=$PWD/build/bin/banger
fi
BANGER_NESTED=all cargo test --quiet --locked --test e2e_nested -- --nocapture
