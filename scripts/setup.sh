#!/bin/bash
# Installs what building and running banger needs and this machine lacks:
# Debian packages, the musl target of Rust and the vsock back end for QEMU.
# Quiet and quick where nothing is missing; asks before sudo when not root.
#
#   scripts/setup.sh [--yes] [--tests]
#
# --yes     do not ask before sudo
# --tests   also what only the tests use
set -euo pipefail

# Package, and why it is needed: the line that is printed when it is missing.
PACKAGES=(
    "qemu-system-x86      runs guests where KVM is missing or unfit"
    "mmdebstrap           builds images from Debian packages"
    "e2fsprogs            makes and checks ext4 disks"
    "nftables             gives guests NAT and keeps them apart"
    "kmod                 resolves the kernel modules of a guest"
    "uidmap               builds images without root"
    "git                  brings your repository into a guest"
    "ca-certificates      verifies downloads"
    "xz-utils             unpacks kernel packages"
    "gcc                  links the program and compiles its only C part"
    "libc6-dev            goes with gcc"
)
TEST_PACKAGES=(
    "cpio                 unpacks the initial file systems that we pack"
    "iproute2             plays other machines in the host's tests"
    "shellcheck           checks these scripts"
    "xfsprogs             makes a file system whose files share blocks"
    "btrfs-progs          makes another"
)
VSOCK_TOOL=vhost-device-vsock
VSOCK_VERSION=0.3.0

say() { printf '%s\n' "$*" >&2; }

# Prints the text after the first word and ends with status 1.
refuse() {
    say "setup: $1"
    say "  $2"
    exit 1
}

# Runs a command quietly; shows its last lines when it fails.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# One dpkg-query for all of them: asking eleven times would be felt on every run.
missing_packages() {
    local names=() present line name
    for line in "${PACKAGES[@]}"; do names+=("${line%% *}"); done
    present=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "${names[@]}" 2>/dev/null || true)
    for name in "${names[@]}"; do
        grep -qx "$name installed" <<<"$present" || printf '%s\n' "$name"
    done
}

become_root() {
    [ "$(id -u)" = 0 ] && return
    command -v sudo >/dev/null ||
        refuse "install packages: not root, and there is no sudo" "As root: apt-get install $*"
    [ "$ASK" = yes ] || return 0
    [ -t 0 ] || refuse "install packages: not root, and nobody to ask" \
        "Run scripts/setup.sh --yes, or: sudo apt-get install $*"
    local answer
    read -r -p "Install these with sudo apt-get? [Y/n] " answer
    case "$answer" in
        "" | y | Y | yes) ;;
        *) refuse "install packages: declined" "Yourself: sudo apt-get install $*" ;;
    esac
}

apt() {
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    quietly "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y \
        -o DPkg::Lock::Timeout=300 "$@"
}

setup_packages() {
    command -v dpkg-query >/dev/null || refuse "install packages: this is not Debian or Ubuntu" \
        "Install by hand what scripts/setup.sh lists, then run cargo build --release."
    local missing line
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -gt 0 ] || return 0
    say "Installing Debian packages:"
    for line in "${PACKAGES[@]}"; do
        case " ${missing[*]} " in *" ${line%% *} "*) say "  $line" ;; esac
    done
    become_root "${missing[*]}"
    # Package lists may be absent or stale; fetching them is slow, so only then.
    apt install --no-install-recommends "${missing[@]}" 2>/dev/null || {
        apt update && apt install --no-install-recommends "${missing[@]}"
    } || refuse "install packages: apt-get failed" "Try: apt-get update && apt-get install ${missing[*]}"
}

setup_rust() {
    command -v cargo >/dev/null || PATH="$PATH:$HOME/.cargo/bin"
    command -v cargo >/dev/null || refuse "build banger: there is no cargo" \
        "Install Rust with rustup (https://rustup.rs), then run this again."
    local sysroot target=x86_64-unknown-linux-musl
    sysroot=$(rustc --print sysroot)
    [ ! -d "$sysroot/lib/rustlib/$target/lib" ] || return 0
    command -v rustup >/dev/null || refuse "add the Rust target $target: there is no rustup" \
        "Install Rust with rustup (https://rustup.rs), or your distribution's package of that target."
    say "Adding the Rust target $target: banger is one static file"
    quietly rustup target add "$target"
}

# Where the program looks for it too, in this order: PATH, cargo's and the system's
# directory, then our own.
tools_directory() {
    printf '%s/tools' "${BANGER_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/banger}"
}

setup_vsock_tool() {
    local tools
    tools=$(tools_directory)
    command -v "$VSOCK_TOOL" >/dev/null && return
    for place in "$HOME/.cargo/bin" /usr/local/lib/banger "$tools/bin"; do
        [ ! -x "$place/$VSOCK_TOOL" ] || return 0
    done
    say "Building $VSOCK_TOOL $VSOCK_VERSION into $tools/bin: carries streams between host and QEMU guests"
    # Away from here, or our own cargo configuration would apply to it.
    (cd / && quietly env -u CARGO_TARGET_DIR cargo install "$VSOCK_TOOL" \
        --version "$VSOCK_VERSION" --locked --root "$tools" --quiet) ||
        refuse "build $VSOCK_TOOL: cargo failed" "Try: cargo install $VSOCK_TOOL --version $VSOCK_VERSION --locked"
}

ASK=yes
for argument in "$@"; do
    case "$argument" in
        --yes) ASK=no ;;
        --tests) PACKAGES+=("${TEST_PACKAGES[@]}") ;;
        *) refuse "unknown argument $argument" "Usage: scripts/setup.sh [--yes] [--tests]" ;;
    esac
done
setup_packages
setup_rust
setup_vsock_tool
