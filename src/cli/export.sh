set -eu
cd "$1"
command -v git >/dev/null || exit 127
unset GIT_DIR GIT_INDEX_FILE GIT_WORK_TREE
cd "$(git rev-parse --show-toplevel)"
folder=$(git rev-parse --absolute-git-dir)
base=$(git rev-parse --verify --quiet "$2^{tree}" ||
    git rev-parse --verify --quiet "HEAD^{tree}" ||
    git hash-object -t tree /dev/null)
index=$folder/banger-export.$$
trap 'rm -f "$index" "$index.lock"' EXIT
# Its time too: git looks into files as young as their index; a younger copy would hide
# what changed without a change of size within the same second.
if [ -f "$folder/index" ]; then cp -p "$folder/index" "$index"; fi
GIT_INDEX_FILE=$index
export GIT_INDEX_FILE
git -c core.fsmonitor=false add --all
git -c core.fsmonitor=false -c diff.noprefix=false -c diff.mnemonicPrefix=false \
    diff --cached --binary --full-index --no-color --no-ext-diff --no-textconv \
    --no-renames --src-prefix=a/ --dst-prefix=b/ "$base"
