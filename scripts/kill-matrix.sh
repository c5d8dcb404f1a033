#!/bin/bash
# Interrupts every operation at every boundary between its steps with every fault, and
# prints what came of it; see docs/crash-recovery.md. Needs root. Ends with 1 if a cell fails.
#
#   scripts/kill-matrix.sh [--few] [--fault WORD] [--place PLACE] [--write] [OPERATION]...
#
# --few          each fault once per operation: minutes; without it every cell: most of an hour
# --fault WORD   only the columns with that in their name, such as EBUSY or gone
# --place PLACE  only the rows with that name, such as ready.ensure.after
# --write        put the table into docs/crash-recovery.md
# OPERATION      create start run adjust stop reset delete remove pull build (default: all)
#
# Operations on VMs run in a network of their own, so that nothing else on this machine is
# touched; pulls and builds need the machine's.
set -euo pipefail
cd "$(dirname "$0")/.."

OPERATIONS=(create start run adjust stop reset delete remove pull build)
OUT=build/kill-matrix
DOCUMENT=docs/crash-recovery.md
which=all write=no wanted=()

while [ $# -gt 0 ]; do
    case "$1" in
        --few) which=few ;;
        --write) write=yes ;;
        --fault)
            export BANGER_KILL_MATRIX_FAULT=${2-}
            shift
            ;;
        --place)
            export BANGER_KILL_MATRIX_PLACE=${2-}
            shift
            ;;
        *)
            [[ " ${OPERATIONS[*]} " == *" $1 "* ]] || {
                printf 'kill-matrix: unknown operation %s\n' "$1" >&2
                exit 2
            }
            wanted+=("$1")
            ;;
    esac
    shift
done
[ ${#wanted[@]} -gt 0 ] || wanted=("${OPERATIONS[@]}")

scripts/build.sh --fail-points
mkdir -p "$OUT"
export BANGER_FAIL_POINTS_BIN=$PWD/build/fail-points/banger
export BANGER_BIN=${BANGER_BIN:-$BANGER_FAIL_POINTS_BIN}
export BANGER_KILL_MATRIX=$which BANGER_KILL_MATRIX_OUT=$PWD/$OUT

# usage: play TEST-NAME-PART [PREFIX...]
play() {
    local name=$1
    shift
    "$@" cargo test --quiet --locked --test e2e_kill_matrix -- \
        --test-threads=1 --nocapture "$name"
}

apart=(unshare --net --mount -- sh -c "ip link set lo up; exec \"\$@\"" sh)
play what_the_cells_boot
status=0
for operation in "${wanted[@]}"; do
    case "$operation" in
        pull)
            rm -f "$OUT/kernel-pull.md"
            play pull_that_is || status=1
            ;;
        build)
            rm -f "$OUT/image-pull.md"
            play build_that_is || status=1
            ;;
        run)
            rm -f "$OUT/run.md"
            play running_vm_that_loses "${apart[@]}" || status=1
            ;;
        remove)
            rm -f "$OUT/delete-running.md"
            play removal_of "${apart[@]}" || status=1
            ;;
        *)
            rm -f "$OUT/$operation.md"
            play "${operation}_that_is" "${apart[@]}" || status=1
            ;;
    esac
done

# The tables of all operations that were ever played, in their order.
tables() {
    local file
    for file in create start run adjust stop reset delete delete-running kernel-pull image-pull; do
        [ -f "$OUT/$file.md" ] || continue
        cat "$OUT/$file.md"
        echo
    done
}

tables
if [ $write = yes ]; then
    {
        sed '/^<!-- kill matrix -->$/q' "$DOCUMENT"
        printf '\nPlayed on %s with %s.\n\n' "$(date +%F)" "$(build/fail-points/banger --version)"
        tables
        sed -n '/^<!-- end of the kill matrix -->$/,$p' "$DOCUMENT"
    } >"$DOCUMENT.new"
    mv "$DOCUMENT.new" "$DOCUMENT"
fi
exit $status
