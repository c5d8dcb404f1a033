#!/bin/bash
# From a fresh checkout to a first command in a first VM.
#
#   scripts/quickstart.sh [--yes]
#
# --yes   do not ask before sudo
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh "$@"
[ -e build/bin/banger ] || echo "Building banger (two minutes the first time)" >&2
scripts/build.sh
echo "host:  $(uname -a)"
guest=$(build/bin/banger vm run --rm -- uname -a)
echo "guest: $guest"
cat >&2 <<'END'

Next: build/bin/banger vm run              a shell in a new VM
      build/bin/banger vm run . -- make    a command on this repository, in a VM
      build/bin/banger --help
END
