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
# Stripped here and not by cargo: scripts/static.sh looks at the symbols.
[ "$profile" != release ] || export CARGO_PROFILE_RELEASE_STRIP=none
cargo build --quiet --locked --profile "$profile" --bin banger

mkdir -p build/bin
built=$target/x86_64-unknown-linux-musl/$profile/banger
# Written aside and renamed: a daemon that runs the old file keeps it.
strip -o build/bin/banger.new "$built"
if cmp -s build/bin/banger.new build/bin/banger; then
    rm build/bin/banger.new
else
    mv build/bin/banger.new build/bin/banger
fi
for name in bangerd bangerd-root banger-vsock-agent; do
    ln -sfn banger "build/bin/$name"
done
[ "$profile" != release ] || scripts/static.sh build/bin/banger
