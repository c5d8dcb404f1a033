#!/bin/bash
# Builds the program into build/bin: one static file and its three other names.
#
#   scripts/build.sh [PROFILE]      release (default) or fast
#   scripts/build.sh --fail-points  into build/fail-points: the same for tests that
#                                   interrupt the daemon; never to be shipped
#
# Only the release build is held to the size limit: the others are not optimised for it.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${1:-release} folder=build/bin features=()
if [ "$profile" = --fail-points ]; then
    profile=fast folder=build/fail-points features=(--features fail-points)
fi
target=${CARGO_TARGET_DIR:-target}
command -v cargo >/dev/null || PATH="$PATH:$HOME/.cargo/bin"
# Stripped here and not by cargo: scripts/static.sh looks at the symbols.
[ "$profile" != release ] || export CARGO_PROFILE_RELEASE_STRIP=none
cargo build --quiet --locked --profile "$profile" "${features[@]}" --bin banger

mkdir -p "$folder"
built=$target/x86_64-unknown-linux-musl/$profile/banger
# Written aside and renamed: a daemon that runs the old file keeps it.
strip -o "$folder/banger.new" "$built"
if cmp -s "$folder/banger.new" "$folder/banger"; then
    rm "$folder/banger.new"
else
    mv "$folder/banger.new" "$folder/banger"
fi
for name in bangerd bangerd-root banger-vsock-agent; do
    ln -sfn banger "$folder/$name"
done
[ "$profile" != release ] || scripts/static.sh "$folder/banger"
