#!/bin/bash
# Keeps many VMs busy for a while and looks for what is left, wrong or growing:
# 100 VM records, up to 24 guests of 128 MiB at once, through create, start, exec, stop,
# kill, restart and delete in random order. Root, for taps; in directories, a bridge and a
# network of its own. Ends with 1 if anything leaked, was in a wrong state or grew.
#
#   scripts/soak.sh [MINUTES] [WORKERS] [RECORDS] [SEED]      default 10 24 100 and a new seed
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=${1:-10} workers=${2:-24} records=${3:-100} seed=${4:-$((RANDOM * 32768 + RANDOM))}
image=debian-minimal
banger=${BANGER_BIN:-$PWD/build/bin/banger}
[ -x "$banger" ] || scripts/build.sh
room=$(mktemp -d /tmp/banger-soak.XXXXXX)
export BANGER_STATE_DIR=${BANGER_STATE_DIR:-$room/state} BANGER_RUNTIME_DIR=$room/run
export BANGER_CONFIG=$room/config.toml
bridge=bsoak0
printf '[network]\nbridge = "%s"\nsubnet = "10.213.0.0/24"\n' "$bridge" >"$BANGER_CONFIG"

finish() {
    touch "$room/stop"
    wait || true
    "$banger" vm list --quiet 2>/dev/null | xargs -r "$banger" vm delete >/dev/null 2>&1 || true
    "$banger" daemon stop >/dev/null 2>&1 || true
    "$banger" role bangerd-root remove-network --config "$BANGER_CONFIG" >/dev/null 2>&1 || true
    rm -rf "$room"
}
trap finish EXIT

# What of these VMs exists on this host, one object per line; their ids are in $room/ids.
census() {
    ip -o link | grep -oFf "$room/ids" | sed 's/^/tap /' || true
    nft list table bridge "banger_$bridge" 2>/dev/null | grep -oFf "$room/ids" | sed 's/^/rule /' || true
    find /sys/fs/cgroup -maxdepth 4 -type d -path '*banger/*' -printf '%f\n' 2>/dev/null |
        grep -xFf "$room/ids" | sed 's/^/cgroup /' || true
    grep -F "$room" /proc/mounts || true
    losetup --list --noheadings --output BACK-FILE 2>/dev/null | grep -F "$room" || true
    processes
    find "$BANGER_STATE_DIR/vms" "$BANGER_RUNTIME_DIR/vms" -mindepth 1 2>/dev/null || true
}

# Who works in $room or names it: VMMs and their back ends name their files shortly, from
# where they work. The daemon is the only one who may be there at the end.
processes() {
    local folder daemon
    daemon=$("$banger" daemon status --json | field pid)
    for folder in /proc/[0-9]*; do
        [ "$folder" != "/proc/$daemon" ] || continue
        if [[ $(readlink "$folder/cwd" 2>/dev/null) == "$room"* ]] || grep -qsF "$room" "$folder/cmdline"; then
            tr '\0' ' ' 2>/dev/null <"$folder/cmdline" | sed 's/^/process /;s/$/\n/' || true
        fi
    done
}

wrong() {
    echo "$1" >>"$room/wrong"
}

# usage: field NAME; of the JSON on standard input, the first such field
field() {
    sed -n "s/^ *\"$1\": \"\?\([^\",]*\)\"\?,\?\$/\1/p" | head -n 1
}

state() {
    "$banger" vm show "$1" --json 2>/dev/null | field phase
}

# usage: expect NAME PHASE WHAT; counts the operation and compares what the daemon says
expect() {
    local seen
    seen=$(state "$1")
    echo "$3" >>"$room/done"
    [ "$seen" = "$2" ] || wrong "$1: after $3 it is '$seen' and not '$2'"
}

# usage: act NAME WANTED-PHASE WORD COMMAND...
act() {
    local name=$1 phase=$2 word=$3
    shift 3
    "$banger" "$@" >"$room/out.$name" 2>&1 ||
        wrong "$name: $word: status $?: $(tail -n 3 "$room/out.$name" | tr '\n' ' ')"
    expect "$name" "$phase" "$word"
    if [ "$word" = create ]; then "$banger" vm show "$name" --json | field id >>"$room/ids"; fi
}

look_inside() {
    local said
    said=$("$banger" vm exec "$1" -- cat /proc/sys/kernel/hostname 2>&1) || wrong "$1: exec: $said"
    [ "$said" = "$1" ] || wrong "$1: exec answered '$said'"
    echo exec >>"$room/done"
}

# One worker owns some names and runs at most one of them at a time.
worker() {
    local names=("$@") name running='' die
    declare -A phase=()
    while [ ! -e "$room/stop" ]; do
        name=${names[RANDOM % ${#names[@]}]} die=$((RANDOM % 6))
        if [ -n "$running" ] && [ $die -lt 4 ]; then name=$running; fi
        case "${phase[$name]:-gone}:$die" in
            gone:*)
                act "$name" stopped create vm create --no-start --name "$name" --image $image --memory 128M
                phase[$name]=stopped
                ;;
            stopped:0)
                "$banger" vm delete "$name" >/dev/null 2>&1 || wrong "$name: delete: status $?"
                [ -z "$(state "$name")" ] || wrong "$name: deleted and still there"
                echo delete >>"$room/done"
                phase[$name]=gone
                ;;
            stopped:1) act "$name" stopped reset vm reset "$name" ;;
            stopped:*)
                if [ -n "$running" ]; then
                    act "$running" stopped stop vm stop "$running"
                    phase[$running]=stopped
                fi
                act "$name" running start vm start "$name"
                phase[$name]=running running=$name
                ;;
            running:0) act "$name" stopped stop vm stop "$name"; phase[$name]=stopped running='' ;;
            running:1) act "$name" stopped kill vm kill "$name"; phase[$name]=stopped running='' ;;
            running:2) act "$name" running restart vm restart "$name" ;;
            running:5)
                "$banger" vm delete "$name" >/dev/null 2>&1 || wrong "$name: delete: status $?"
                echo delete >>"$room/done"
                phase[$name]=gone running=''
                ;;
            running:*) look_inside "$name" ;;
        esac
    done
}

# usage: sample; the daemon's own memory in KiB, without pages of its program that were
# merely looked at, and its open files
sample() {
    local pid
    pid=$("$banger" daemon status --json | field pid)
    printf '%d %d\n' "$(awk '/^RssAnon/ { print $2 }' "/proc/$pid/status")" "$(find "/proc/$pid/fd" -mindepth 1 | wc -l)"
}

echo "soak: $minutes min, $workers workers, $records records, seed $seed, in $room"
"$banger" image pull $image >/dev/null 2>&1
: >"$room/wrong"
: >"$room/done"
# A line that is no id, so that the first census has something to look for.
echo no-vm >"$room/ids"
census >"$room/before"
RANDOM=$((seed % 32768))
# What the daemon keeps for good, it keeps from the first guest on.
"$banger" vm run --rm --name soak-warm --image $image --memory 128M -- true >/dev/null 2>&1
sleep 2
rest=$(sample)
for ((i = 0; i < workers; i++)); do
    names=()
    for ((n = i; n < records; n += workers)); do names+=("soak-$n"); done
    (RANDOM=$(((seed + i) % 32768)) && worker "${names[@]}") &
done
for ((i = 0; i < minutes * 2; i++)); do
    sleep 30
    running=$("$banger" vm list --json | grep -c '"phase": "running"' || true)
    printf '%4d s: %3d VMs run, %5d operations, %d wrong; daemon KiB and files: %s\n' \
        $(((i + 1) * 30)) "$running" "$(wc -l <"$room/done")" "$(wc -l <"$room/wrong")" "$(sample)"
done
touch "$room/stop"
wait
"$banger" vm list --quiet | xargs -r "$banger" vm delete >/dev/null 2>&1 || wrong "the last delete: status $?"
# Threads of the pool and what they hold end after half a second without work.
sleep 2
end=$(sample)
census >"$room/after"
read -r memory_before files_before <<<"$rest"
read -r memory_after files_after <<<"$end"
echo "operations: $(sort "$room/done" | uniq -c | awk '{ printf "%s %s  ", $2, $1 }')"
echo "daemon at rest: $memory_before KiB and $files_before files before, $memory_after KiB and $files_after files after"
status=0
[ ! -s "$room/wrong" ] || { echo "wrong:"; cat "$room/wrong"; status=1; }
diff "$room/before" "$room/after" >"$room/leaks" || { echo "left over (>) or lost (<):"; cat "$room/leaks"; status=1; }
[ "$files_after" -le $((files_before + 4)) ] || { echo "open files grew"; status=1; }
[ "$memory_after" -le $((memory_before + 1024)) ] || { echo "memory grew"; status=1; }
if [ $status = 0 ]; then echo "soak: nothing left, nothing wrong, nothing grew (seed $seed)"; fi
[ $status = 0 ]
