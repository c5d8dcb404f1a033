#!/bin/bash
# Runs the simulation alone, optimised: short stories exhaustively, long ones by seed.
#
#   scripts/sim.sh [--seed N | --runs N] [--depth N] [FILTER...]
#
# --seed N   tells the story of this seed and no other; a failure prints its seed
# --runs N   tells so many stories (default 5000; an ordinary test run tells 560)
# --depth N  interrupts the longest of the short stories so often (default 2)
# FILTER     names of tests, as cargo test takes them (default: all of the simulation)
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    printf 'sim: %s\n  Usage: scripts/sim.sh [--seed N | --runs N] [--depth N] [FILTER...]\n' "$1" >&2
    exit 2
}

export BANGER_SIM_RUNS=5000
filter=()
while [ $# -gt 0 ]; do
    case "$1" in
        --seed | --runs | --depth)
            [[ ${2-} =~ ^[0-9]+$ ]] || usage "$1 wants a number"
            declare -x "BANGER_SIM_$(tr a-z- A-Z_ <<<"${1#--}")=$2"
            shift
            ;;
        -*) usage "unknown argument $1" ;;
        *) filter+=("$1") ;;
    esac
    shift
done
if [ -n "${BANGER_SIM_SEED-}" ]; then
    filter=(sim::swarm::seeded)
fi

command -v cargo >/dev/null || PATH="$PATH:$HOME/.cargo/bin"
exec cargo test --quiet --locked --profile fast --lib -- \
    --test-threads="$(nproc)" "${filter[@]:-sim::}"
