#!/bin/bash
# Builds the program into build/bin: one static file and its three other names.
#
#   scripts/build.sh [PROFILE]      release (default) or fast
#
# Only the release build is held to the size limit: the other is not optimised for it.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${1:-release}
target=${CARGO_TARGET_DIR:-target}
command -v cargo >/dev/null || PATH="$PATH:$HOME/.cargo/bin"
cargo build --quiet --locked --profile "$profile" --bin banger

mkdir -p build/bin
built=$target/x86_64-unknown-linux-musl/$profile/banger
# Written aside and renamed: a daemon that runs the old file keeps it.
if ! cmp -s "$built" build/bin/banger; then
    cp "$built" build/bin/banger.new
    mv build/bin/banger.new build/bin/banger
fi
for name in bangerd bangerd-root banger-vsock-agent; do
    ln -sfn banger "build/bin/$name"
done
[ "$profile" != release ] || scripts/static.sh build/bin/banger
