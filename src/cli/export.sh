set -eu
[ -d "$1" ] || exit 66
cd "$1"
command -v git >/dev/null || exit 127
unset GIT_DIR GIT_INDEX_FILE GIT_WORK_TREE
cd "$(git rev-parse --show-toplevel)"
folder=$(git rev-parse --absolute-git-dir)
index=$folder/banger-export.$$
trap 'rm -f "$index" "$index.lock" "$index.skipped"' EXIT
if [ -n "$2" ] && base=$(git rev-parse --verify --quiet "$2^{tree}"); then
    # What arrived was recorded from the files as they lay there, by no configuration and
    # no filter (workspace/sent.rs). The same is done here, or files would differ that
    # nobody touched. What follows is options of git, one after the other.
    export GIT_ATTR_NOSYSTEM=1
    set -- core.attributesFile=/dev/null core.fileMode=true core.symlinks=true \
        core.autocrlf=false core.safecrlf=false
    filters=$(git config --name-only --get-regexp '^filter\..*\.(clean|process|required)$' || :)
    IFS='
'
    for key in $filters; do
        case $key in
        *.required) set -- "$@" "$key=false" ;;
        *) set -- "$@" "$key=" ;;
        esac
    done
    unset IFS
else
    base=$(git rev-parse --verify --quiet "$3^{tree}" ||
        git rev-parse --verify --quiet "HEAD^{tree}" ||
        git hash-object -t tree /dev/null)
    set --
fi
set -- "$@" core.fsmonitor=false core.sparseCheckout=false
for setting; do
    set -- "$@" -c "$setting"
    shift
done
# Names that are special are quoted by git, and read so again: one a line.
git ls-files -t | sed -n 's/^S //p' | LC_ALL=C sort >"$index.skipped"
ignored=$(git ls-files --cached --ignored --exclude-standard | LC_ALL=C sort |
    LC_ALL=C comm -23 - "$index.skipped")
# An index of its own, without times: every file is read. With the times of the guest's
# index, what changed within its second without a change of size would be hidden, and what
# git had stored through a filter would be taken for the file.
export GIT_INDEX_FILE="$index"
git "$@" read-tree "$base"
# Files that the guest told git not to look for are not deleted ones.
git ls-files --deleted | LC_ALL=C sort | LC_ALL=C comm -12 - "$index.skipped" |
    git update-index --skip-worktree --stdin
git "$@" add --all
# What is ignored and tracked all the same.
if [ -n "$ignored" ]; then
    printf '%s\n' "$ignored" | git "$@" update-index --add --remove --replace --stdin
fi
git "$@" -c diff.noprefix=false -c diff.mnemonicPrefix=false \
    diff --cached --binary --full-index --no-color --no-ext-diff --no-textconv \
    --no-renames --src-prefix=a/ --dst-prefix=b/ "$base"
