#!/bin/bash
# Sets the machine up and runs every test; the last line is `N passed, N failed, N skipped`.
#
#   scripts/test.sh [--yes] [--only FLOOR]... [-- FILTER...]
#
# --yes          do not ask before sudo
# --only FLOOR   lint, unit, blackbox, host or e2e; several may be given
# FILTER         names of tests, as cargo test takes them
#
# A test whose host lacks something prints `skipped: NAME: REASON`, is listed at the
# end and is not counted as passed. A lint counts as one test. Logs: build/test/.
# host and e2e are the files and folders of tests/ named after them, and with host those
# that run VMMs or build images; the rest is blackbox.
set -euo pipefail
cd "$(dirname "$0")/.."

FLOORS=(lint unit blackbox host e2e)
LOGS=build/test
passed=0 failed=0 skipped=0

usage() {
    printf 'test: %s\n  Usage: scripts/test.sh [--yes] [--only lint|unit|blackbox|host|e2e]... [-- FILTER...]\n' "$1" >&2
    exit 2
}

setup=(--tests) only=() filter=()
while [ $# -gt 0 ]; do
    case "$1" in
        --yes) setup+=(--yes) ;;
        --only)
            [[ " ${FLOORS[*]} " == *" ${2-} "* && -n ${2-} ]] || usage "unknown floor ${2-}"
            only+=("$2")
            shift
            ;;
        --)
            shift
            filter=("$@")
            break
            ;;
        *) usage "unknown argument $1" ;;
    esac
    shift
done

wanted() { [ ${#only[@]} = 0 ] || [[ " ${only[*]} " == *" $1 "* ]]; }

# Adds up what `test result:` and `skipped:` lines of a log say, and shows what failed.
# usage: count NAME LOG STATUS
count() {
    local p f s
    read -r p f < <(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$2")
    s=$(grep -c '^skipped: ' "$2" || true)
    # No result line: it did not compile, was killed or hung.
    [ "$3" = 0 ] || [ "$f" -gt 0 ] || f=1
    passed=$((passed + p - s)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%-9s %4d passed, %d failed, %d skipped, %d s\n' "$1" $((p - s)) "$f" "$s" $((SECONDS - started))
    if [ "$3" != 0 ]; then
        # What failed and why first: a daemon's log below it can be long.
        grep -E -A 4 "^thread '.*panicked at " "$2" || true
        awk '/^(successes:|running )/ { mute = 1 } /^(failures:|error|test result: F)/ { mute = 0 }
            !mute && NF && !/^test .* ok$/' "$2" | tail -n 150
        echo "(all of it: $2)"
    fi
}

# usage: floor NAME SECONDS cargo-arguments... -- harness-arguments...
floor() {
    local name=$1 limit=$2 status=0 log=$LOGS/$1.log
    shift 2
    started=$SECONDS
    timeout --kill-after=30 "$limit" cargo test --quiet --locked --no-fail-fast "$@" \
        --show-output --format=pretty "${filter[@]}" >"$log" 2>&1 || status=$?
    [ $status != 124 ] || echo "killed after $limit s" >>"$log"
    count "$name" "$log" $status
}

lint() {
    local name=$1 status=0 log=$LOGS/lint-$1.log
    shift
    started=$SECONDS
    if [ "$(type -t "$1")" = "" ]; then
        echo "skipped: lint $name: $1 is not installed" >"$log"
        echo "test result: ok. 1 passed; 0 failed" >>"$log"
    elif "$@" >"$log" 2>&1; then
        echo "test result: ok. 1 passed; 0 failed" >>"$log"
    else
        status=1
    fi
    count "$name" "$log" $status
}

# The integration tests of a floor, as cargo arguments.
tests_of() {
    local file name
    for file in tests/*.rs tests/*/main.rs; do
        name=${file#tests/} name=${name%.rs} name=${name%/main}
        case "$1:$name" in
            host:host_* | host:vmm | host:images | e2e:e2e_*) printf -- '--test\n%s\n' "$name" ;;
            *:host_* | *:vmm | *:images | *:e2e_*) ;;
            blackbox:*) printf -- '--test\n%s\n' "$name" ;;
        esac
    done
}

scripts/setup.sh "${setup[@]}"
command -v cargo >/dev/null || PATH="$PATH:$HOME/.cargo/bin"
mkdir -p "$LOGS"
rm -f "$LOGS"/*.log
shopt -s nullglob

if wanted lint; then
    lint fmt cargo fmt --check
    lint clippy cargo clippy --quiet --locked --all-targets -- -D warnings
    lint shell shellcheck scripts/*.sh .ci/run
fi

if wanted unit; then
    floor unit 900 --lib --bins -- --test-threads="$(nproc)"
fi

# The floors below run the optimised binary: the one that users have.
if wanted blackbox || wanted host || wanted e2e; then
    scripts/build.sh "${BANGER_TEST_PROFILE:-release}"
    BANGER_BIN=$PWD/build/bin/banger
    export BANGER_BIN
fi
if wanted e2e; then
    scripts/build.sh --fail-points
    export BANGER_FAIL_POINTS_BIN=$PWD/build/fail-points/banger
fi
for name in blackbox host e2e; do
    mapfile -t files < <(tests_of "$name")
    if wanted "$name" && [ ${#files[@]} -gt 0 ]; then
        case "$name" in
            blackbox) floor "$name" 600 "${files[@]}" -- --test-threads="$(nproc)" ;;
            # They share this machine's bridge, tables and processors.
            host) floor "$name" 1800 "${files[@]}" -- --test-threads=1 ;;
            e2e) floor "$name" 3600 "${files[@]}" -- --test-threads=1 ;;
        esac
    fi
done

grep -h '^skipped: ' "$LOGS"/*.log | sort -u || true
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
