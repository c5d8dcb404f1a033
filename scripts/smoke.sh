#!/bin/bash
# Tries the built program as a user would, in directories of its own: a VM, a command,
# a status, a file that survives stop and start, and nothing left behind.
#
#   scripts/smoke.sh [IMAGE]        default debian-minimal
set -euo pipefail
cd "$(dirname "$0")/.."

image=${1:-debian-minimal}
banger=$PWD/build/bin/banger
[ -x "$banger" ] || scripts/build.sh
room=$(mktemp -d /tmp/banger-smoke.XXXXXX)
export BANGER_STATE_DIR=$room/state BANGER_RUNTIME_DIR=$room/run
export BANGER_CONFIG=$room/config.toml
# A bridge of its own goes with it; that of another daemon stays as it is.
printf '[network]\nbridge = "bsmoke%s"\nsubnet = "172.29.0.0/24"\n' $$ >"$BANGER_CONFIG"

finish() {
    "$banger" vm delete smoke >/dev/null 2>&1 || true
    "$banger" daemon stop >/dev/null 2>&1 || true
    "$banger" role bangerd-root remove-network --config "$BANGER_CONFIG" >/dev/null 2>&1 || true
    rm -rf "$room"
}
trap finish EXIT

# usage: expect WANTED COMMAND... ; compares standard output
expect() {
    local wanted=$1 seen
    shift
    seen=$("$@") || { echo "smoke: status $? from: $*" >&2; exit 1; }
    [ "$seen" = "$wanted" ] || { echo "smoke: $*: wanted '$wanted', saw '$seen'" >&2; exit 1; }
    echo "ok: $*"
}

expect hello "$banger" vm run --rm --image "$image" -- echo hello
status=0
"$banger" vm run --rm --image "$image" -- sh -c 'exit 42' || status=$?
[ "$status" = 42 ] || { echo "smoke: exit 42 came back as $status" >&2; exit 1; }
echo "ok: status 42 comes back"
"$banger" vm run -d --name smoke --image "$image"
expect "" "$banger" vm exec smoke -- sh -c 'echo kept > /root/file'
"$banger" vm stop smoke
"$banger" vm start smoke
expect kept "$banger" vm exec smoke -- cat /root/file
"$banger" vm delete smoke
expect "" "$banger" vm list --quiet
