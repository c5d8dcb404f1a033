#!/bin/bash
# Asserts that a binary is one static, stripped, position independent file under 12 MB,
# without the fail-points of tests, and by the file that it was stripped from, that it asks
# no name service of the C library: those load libraries of the host where they can. Users
# and hosts are looked up by us.
#
#   scripts/static.sh [BINARY [UNSTRIPPED]]     default build/bin/banger, and cargo's file
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:-build/bin/banger}
unstripped=${2:-${CARGO_TARGET_DIR:-target}/x86_64-unknown-linux-musl/release/banger}
limit=12000000

refuse() {
    printf 'static: %s: %s\n' "$binary" "$1" >&2
    exit 1
}

[ -f "$binary" ] || refuse "no such file; run scripts/build.sh"
# readelf comes with the linker; file(1) and ldd(1) say the same in words.
readelf -h "$binary" | grep -q 'Type: *DYN' || refuse "not position independent"
! readelf -l "$binary" | grep -q INTERP || refuse "wants a dynamic loader"
! readelf -d "$binary" | grep -q NEEDED || refuse "wants shared libraries"
! readelf -S "$binary" | grep -q '\.symtab' || refuse "not stripped"
! grep -q BANGER_FAIL_POINT "$binary" || refuse "has fail-points: built with the feature fail-points"
size=$(stat -c %s "$binary")
[ "$size" -lt "$limit" ] || refuse "$size bytes, over the limit of $limit"

[ -f "$unstripped" ] || refuse "its symbols are not at $unstripped; run scripts/build.sh"
symbols=$(nm "$unstripped" 2>/dev/null)
grep -q ' T main$' <<<"$symbols" || refuse "$unstripped has no symbols to look at"
if found=$(grep -Eo ' (getaddrinfo|getnameinfo|gethostby[a-z_0-9]*|getpw[a-z_]*|getgr[a-z_]*|getservby[a-z_]*)$' <<<"$symbols"); then
    refuse "asks the C library's name services:$(tr -d '\n' <<<"$found")"
fi
