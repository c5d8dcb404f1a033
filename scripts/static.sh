#!/bin/bash
# Asserts that a binary is one static, stripped, position independent file under 12 MB.
#
#   scripts/static.sh [BINARY]      default build/bin/banger
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:-build/bin/banger}
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
size=$(stat -c %s "$binary")
[ "$size" -lt "$limit" ] || refuse "$size bytes, over the limit of $limit"
