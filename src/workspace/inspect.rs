//! What a path is: its repository, HEAD, branch, and the files that would go along.
//!
//! Everything that can be refused is refused here, before anything is made. Only
//! asks git and the file system; changes nothing.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::git;
use crate::failure::Failure;

/// What becomes of files that git does not know and does not ignore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untracked {
    /// They go along.
    Include,
    /// They stay.
    Leave,
}

/// A repository that can go along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    /// The top of its working tree, absolute.
    pub root: PathBuf,
    /// The commit that HEAD means; `None` without any commit.
    pub head: Option<String>,
    /// The branch that HEAD is on; `None` when detached.
    pub branch: Option<String>,
    /// The URL of `origin`, without a password.
    pub origin: Option<String>,
    /// Files and links that go along, relative to the root, sorted.
    pub files: Vec<PathBuf>,
    /// All that the index knows, whether its file exists or not.
    pub tracked: BTreeSet<PathBuf>,
    /// Those of them that git is told not to look for (sparse checkout, skip-worktree).
    pub skipped: Vec<PathBuf>,
    /// Untracked files that stay.
    pub untracked_left: usize,
    /// Ignored files and folders that stay.
    pub ignored_left: usize,
    /// Submodules: their content stays.
    pub submodules: Vec<Submodule>,
    /// Repositories inside this one that are no submodules, which stay.
    pub nested: Vec<PathBuf>,
}

/// A repository that the index holds a commit of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submodule {
    /// Its directory, relative to the root.
    pub path: PathBuf,
    /// The commit.
    pub commit: String,
    /// Whether the directory exists, with or without content.
    pub present: bool,
}

impl Workspace {
    /// What stays behind, in sentences for people.
    pub fn left_out(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let files = |count: usize| match count {
            1 => "1 untracked file".to_owned(),
            _ => format!("{count} untracked files"),
        };
        if self.untracked_left > 0 {
            let files = files(self.untracked_left);
            lines.push(format!(
                "{files} left out (--include-untracked takes them along)"
            ));
        }
        match self.ignored_left {
            0 => {}
            1 => lines.push("1 ignored file or folder left out".to_owned()),
            count => lines.push(format!("{count} ignored files or folders left out")),
        }
        let names = |paths: &mut dyn Iterator<Item = &PathBuf>| {
            let names: Vec<_> = paths.map(|path| path.display().to_string()).collect();
            names.join(", ")
        };
        if !self.submodules.is_empty() {
            let names = names(&mut self.submodules.iter().map(|submodule| &submodule.path));
            lines.push(format!("submodules left out: {names}"));
        }
        if !self.nested.is_empty() {
            let names = names(&mut self.nested.iter());
            lines.push(format!(
                "repositories inside this one left out, name each by itself to take it: {names}"
            ));
        }
        lines
    }
}

/// Looks at the repository that holds `path`.
///
/// # Errors
/// There is no such path, it is in no repository, or in a bare one.
pub fn inspect(path: &Path, untracked: Untracked) -> Result<Workspace, Failure> {
    let root = root_of(path)?;
    let head = head_of(&root)?;
    let branch = git::try_run(&root, &["symbolic-ref", "--quiet", "--short", "HEAD"])?;
    let origin = git::try_run(&root, &["config", "--get", "remote.origin.url"])?;
    let Index {
        mut files,
        tracked,
        skipped,
        submodules,
    } = index_of(&root)?;
    let others = list(&root, &["ls-files", "-z", "--others", "--exclude-standard"])?;
    // A name that ends with a slash is a repository inside this one: not a file.
    let is_file = |path: &PathBuf| !path.as_os_str().as_bytes().ends_with(b"/");
    let (others, nested): (Vec<_>, Vec<_>) = others.into_iter().partition(is_file);
    let untracked_left = match untracked {
        Untracked::Leave => others.len(),
        Untracked::Include => {
            files.extend(others);
            0
        }
    };
    keep_present(&root, &mut files)?;
    Ok(Workspace {
        head,
        branch: git::line(&branch.stdout).filter(|_| branch.status.success()),
        origin: git::line(&origin.stdout).map(|url| without_password(&url)),
        files,
        tracked,
        skipped,
        untracked_left,
        ignored_left: ignored(&root)?,
        submodules,
        nested,
        root,
    })
}

/// The commit that HEAD means; `None` when its branch does not exist yet. Whatever else
/// keeps it from meaning one is damage, which must not pass for an empty repository.
fn head_of(root: &Path) -> Result<Option<String>, Failure> {
    let asked = ["rev-parse", "--verify", "--quiet", "HEAD^{commit}"];
    let head = git::try_run(root, &asked)?;
    if head.status.success() {
        return Ok(git::line(&head.stdout));
    }
    let branch = git::try_run(root, &["symbolic-ref", "--quiet", "HEAD"])?;
    if let Some(branch) = git::line(&branch.stdout).filter(|_| branch.status.success())
        && !exists(root, &branch)?
    {
        return Ok(None);
    }
    let what = format!("take {} along: its HEAD is damaged", root.display());
    let said = git::try_run(root, &["log", "--max-count=1", "--format=%H"])?;
    let failure = git::because(Failure::failed(what), &said.stderr);
    Err(failure.hint(format!(
        "`git -C {} fsck` tells what is missing.",
        root.display()
    )))
}

/// Whether a reference exists, readable or not. `rev-parse` does not tell one with a
/// broken content from none; its file does.
fn exists(root: &Path, reference: &str) -> Result<bool, Failure> {
    let read = git::try_run(root, &["rev-parse", "--verify", "--quiet", reference])?;
    let file = git::run(root, &["rev-parse", "--git-path", reference])?;
    let file = root.join(path_of(file.strip_suffix(b"\n").unwrap_or(&file)));
    Ok(read.status.success() || std::fs::symlink_metadata(file).is_ok_and(|found| !found.is_dir()))
}

fn ignored(root: &Path) -> Result<usize, Failure> {
    let arguments = [
        "ls-files",
        "-z",
        "--others",
        "--ignored",
        "--exclude-standard",
        "--directory",
    ];
    Ok(list(root, &arguments)?.len())
}

fn root_of(path: &Path) -> Result<PathBuf, Failure> {
    let refused = |why: &str| Failure::failed(format!("take {} along: {why}", path.display()));
    let real = std::fs::canonicalize(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => refused("there is no such directory")
            .hint("Name an existing git repository, or leave PATH out. A command goes after `--`."),
        _ => refused("it cannot be reached").because(error),
    })?;
    if !real.is_dir() {
        return Err(refused("it is no directory").hint("Name the directory of a git repository."));
    }
    let asked = ["rev-parse", "--is-bare-repository", "--is-inside-work-tree"];
    let output = git::try_run(&real, &asked)?;
    if !output.status.success() {
        return Err(match leave_to_read(&output.stderr) {
            Some(command) => refused("the repository belongs to another user")
                .because("git reads such only where it is told to")
                .hint(format!("`{command}` allows it.")),
            None => {
                git::because(refused("it is not a git repository"), &output.stderr).hint(format!(
                    "Make it one with `git -C {} init`, or leave PATH out.",
                    path.display()
                ))
            }
        });
    }
    match output.stdout.as_slice() {
        b"false\ntrue\n" => {}
        b"true\nfalse\n" => {
            return Err(refused("it is a bare repository, without files")
                .hint("Name a clone of it: `git clone` makes one."));
        }
        _ => {
            return Err(refused("it is inside a .git directory")
                .hint("Name the directory that holds the files."));
        }
    }
    let mut root = git::run(&real, &["rev-parse", "--show-toplevel"])?;
    root.pop();
    Ok(PathBuf::from(OsString::from_vec(root)))
}

/// The command by which git itself says that another user's repository can be allowed.
fn leave_to_read(stderr: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(stderr);
    let mut lines = text.lines().map(str::trim);
    let command = lines.find(|line| line.starts_with("git config --global --add safe.directory "));
    command.map(str::to_owned)
}

fn list(root: &Path, arguments: &[&str]) -> Result<Vec<PathBuf>, Failure> {
    let output = git::run(root, arguments)?;
    let names = output
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    Ok(names.map(path_of).collect())
}

fn path_of(name: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(name.to_vec()))
}

/// What `ls-files` tells of the index.
#[derive(Default)]
struct Index {
    files: Vec<PathBuf>,
    tracked: BTreeSet<PathBuf>,
    skipped: Vec<PathBuf>,
    submodules: Vec<Submodule>,
}

/// Lines of `ls-files -t --stage`: tag, mode, object, stage, tab, path. Tag S is
/// skip-worktree, mode 160000 a submodule.
fn index_of(root: &Path) -> Result<Index, Failure> {
    let output = git::run(root, &["ls-files", "-z", "-t", "--stage"])?;
    let mut index = Index::default();
    for entry in output.split(|byte| *byte == 0) {
        let Some(tab) = entry.iter().position(|byte| *byte == b'\t') else {
            continue;
        };
        let path = path_of(&entry[tab + 1..]);
        let words = String::from_utf8_lossy(&entry[..tab]);
        let words: Vec<_> = words.split(' ').collect();
        index.tracked.insert(path.clone());
        if words.first() == Some(&"S") {
            index.skipped.push(path.clone());
        }
        match words.as_slice() {
            [_, "160000", commit, ..] => index.submodules.push(Submodule {
                present: is_folder(root, &path),
                commit: (*commit).to_owned(),
                path,
            }),
            _ => index.files.push(path),
        }
    }
    // A conflict lists a path once for each side.
    index.submodules.dedup_by(|a, b| a.path == b.path);
    Ok(index)
}

/// Whether this is a directory of the repository's own, no link on the way to it.
fn is_folder(root: &Path, path: &Path) -> bool {
    let mut folders = path.ancestors().filter(|f| !f.as_os_str().is_empty());
    folders.all(|folder| {
        std::fs::symlink_metadata(root.join(folder)).is_ok_and(|found| found.is_dir())
    })
}

/// Keeps what exists as a file or a link: what was deleted is absent in the guest too.
fn keep_present(root: &Path, files: &mut Vec<PathBuf>) -> Result<(), Failure> {
    // A conflict lists a path once for each side.
    files.sort();
    files.dedup();
    let mut folders = HashMap::new();
    let mut failure = None;
    files.retain(|file| match is_present(root, file, &mut folders) {
        Ok(present) => present,
        Err(error) => {
            failure =
                Some(Failure::failed(format!("read {}", root.join(file).display())).because(error));
            false
        }
    });
    failure.map_or(Ok(()), Err)
}

fn is_present(
    root: &Path,
    file: &Path,
    folders: &mut HashMap<PathBuf, bool>,
) -> std::io::Result<bool> {
    // A folder that has become a link leads out of the repository; git counts the
    // files in it as deleted, and so do we.
    let parent = file.parent().unwrap_or(Path::new(""));
    for folder in parent.ancestors().filter(|f| !f.as_os_str().is_empty()) {
        let real = match folders.get(folder) {
            Some(real) => *real,
            None => {
                let found = std::fs::symlink_metadata(root.join(folder));
                let real = found.is_ok_and(|found| found.is_dir());
                folders.insert(folder.to_owned(), real);
                real
            }
        };
        if !real {
            return Ok(false);
        }
    }
    match std::fs::symlink_metadata(root.join(file)) {
        Ok(found) => Ok(found.is_file() || found.is_symlink()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// An `https://user:secret@host/…` loses what stands before the `@`: a guest must not
/// get a password along with a URL.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match (scheme, host.rsplit_once('@')) {
        ("http" | "https", Some((_, host))) => format!("{scheme}://{host}{path}"),
        (_, Some((user, host))) if user.contains(':') => {
            let user = user.split(':').next().unwrap_or(user);
            format!("{scheme}://{user}@{host}{path}")
        }
        _ => url.to_owned(),
    }
}

/// Name and address that the user's commits carry, in the repository at `root` or in
/// general; `None` when either is unset or there is no git. Asked in one process: it is
/// on the way of every `vm run`.
pub fn identity(root: Option<&Path>) -> Option<(String, String)> {
    let root = root.unwrap_or(Path::new("/"));
    let wanted = ["config", "-z", "--get-regexp", r"^user\.(name|email)$"];
    let output = git::try_run(root, &wanted).ok()?;
    let entries = String::from_utf8_lossy(&output.stdout);
    // The last of several has the last word, as for git itself.
    let get = |key: &str| {
        let mut values = entries.split('\0').rev().filter_map(|entry| {
            let (name, value) = entry.split_once('\n')?;
            (name == key).then(|| value.trim_end())
        });
        let value = values.next()?;
        (!value.is_empty()).then(|| value.to_owned())
    };
    Some((get("user.name")?, get("user.email")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::samples::Repository;

    fn refusal(path: &Path) -> Failure {
        inspect(path, Untracked::Leave).unwrap_err()
    }

    #[test]
    fn what_is_no_repository_is_refused_with_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refusal(folder.path()).what.contains("not a git repository"));
        let missing = refusal(&folder.path().join("x"));
        assert!(missing.what.contains("no such directory") && missing.hint.is_some());
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(
            refusal(&folder.path().join("file"))
                .what
                .contains("no directory")
        );
    }

    #[test]
    fn bare_repositories_and_their_insides_are_refused() {
        let repository = Repository::new();
        assert!(
            refusal(&repository.path().join(".git"))
                .what
                .contains(".git directory")
        );
        let bare = tempfile::tempdir().unwrap();
        git::run(bare.path(), &["init", "--bare", "--quiet"]).unwrap();
        assert!(refusal(bare.path()).what.contains("bare"));
    }

    #[test]
    fn a_path_below_the_root_means_the_whole_repository() {
        let repository = Repository::new();
        repository.write("src/main.rs", "x");
        repository.commit("one");
        let workspace = inspect(&repository.path().join("src"), Untracked::Leave).unwrap();
        assert_eq!(workspace.root, repository.path().canonicalize().unwrap());
        assert_eq!(workspace.branch.as_deref(), Some("main"));
        assert_eq!(workspace.head.unwrap().len(), 40);
        assert_eq!(workspace.files, [Path::new("src/main.rs")]);
    }

    #[test]
    fn only_tracked_files_that_exist_go_along() {
        let repository = Repository::new();
        for file in ["kept", "gone", "folder/in", ".gitignore"] {
            repository.write(file, "*.ignored\n");
        }
        repository.commit("one");
        std::fs::remove_file(repository.path().join("gone")).unwrap();
        repository.write("new", "x");
        repository.write("a.ignored", "x");
        let workspace = inspect(repository.path(), Untracked::Leave).unwrap();
        let names = [".gitignore", "folder/in", "kept"].map(PathBuf::from);
        assert_eq!(workspace.files, names);
        assert_eq!((workspace.untracked_left, workspace.ignored_left), (1, 1));
        assert_eq!(workspace.left_out().len(), 2);
        let all = inspect(repository.path(), Untracked::Include).unwrap();
        assert!(all.files.contains(&PathBuf::from("new")));
        assert!(!all.files.contains(&PathBuf::from("a.ignored")));
        assert_eq!(all.untracked_left, 0);
    }

    #[test]
    fn a_folder_replaced_by_a_link_leads_nowhere() {
        let repository = Repository::new();
        repository.write("folder/secret", "x");
        repository.commit("one");
        std::fs::remove_dir_all(repository.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("/etc", repository.path().join("folder")).unwrap();
        let workspace = inspect(repository.path(), Untracked::Leave).unwrap();
        assert_eq!(workspace.files, Vec::<PathBuf>::new());
    }

    #[test]
    fn an_empty_repository_has_a_branch_and_no_head() {
        let repository = Repository::new();
        let workspace = inspect(repository.path(), Untracked::Leave).unwrap();
        assert_eq!(
            (workspace.head, workspace.branch),
            (None, Some("main".to_owned()))
        );
    }

    #[test]
    fn a_damaged_head_is_refused_with_the_words_of_git() {
        let repository = Repository::new();
        repository.write("file", "x");
        repository.commit("one");
        let missing = "1".repeat(40);
        for content in ["", "garbage", &missing] {
            let main = repository.path().join(".git/refs/heads/main");
            std::fs::write(main, content).unwrap();
            let failure = refusal(repository.path());
            assert!(failure.what.contains("HEAD is damaged"), "{failure:?}");
            assert!(!failure.causes.is_empty(), "{failure:?}");
        }
    }

    #[test]
    fn repositories_inside_are_told_from_untracked_files() {
        let repository = Repository::new();
        let inner = repository.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        git::run(&inner, &["init", "--quiet"]).unwrap();
        repository.write("inner/file", "x");
        for untracked in [Untracked::Leave, Untracked::Include] {
            let workspace = inspect(repository.path(), untracked).unwrap();
            assert_eq!(workspace.untracked_left, 0);
            assert_eq!(workspace.files, Vec::<PathBuf>::new());
            let said = workspace.left_out().join("\n");
            assert!(said.contains("inner/"), "{said}");
            assert!(!said.contains("--include-untracked"), "{said}");
        }
    }

    #[test]
    fn another_users_repository_is_called_so_and_may_be_allowed() {
        let repository = Repository::new();
        let git_folder = repository.path().join(".git");
        let nobody = |path: &Path| std::os::unix::fs::chown(path, Some(65534), None);
        if nobody(repository.path())
            .and_then(|()| nobody(&git_folder))
            .is_err()
        {
            eprintln!("skipped: only root gives a file away");
            return;
        }
        let failure = refusal(repository.path());
        assert!(failure.what.contains("another user"), "{failure:?}");
        let hint = failure.hint.unwrap();
        assert!(
            hint.contains("git config --global --add safe.directory"),
            "{hint}"
        );
    }

    #[test]
    fn names_with_odd_bytes_are_kept() {
        let repository = Repository::new();
        let name = OsString::from_vec(b"a\n\xff \"b".to_vec());
        std::fs::write(repository.path().join(&name), "x").unwrap();
        repository.commit("one");
        let workspace = inspect(repository.path(), Untracked::Leave).unwrap();
        assert_eq!(workspace.files, [PathBuf::from(name)]);
    }

    #[test]
    fn passwords_in_urls_stay_at_home() {
        let cases = [
            ("https://me:token@host/x.git", "https://host/x.git"),
            ("https://token@host/x@y", "https://host/x@y"),
            ("ssh://git@host/x", "ssh://git@host/x"),
            ("ssh://git:pw@host/x", "ssh://git@host/x"),
            ("git@host:x.git", "git@host:x.git"),
            ("/srv/x@y", "/srv/x@y"),
        ];
        for (url, clean) in cases {
            assert_eq!(without_password(url), clean);
        }
    }

    #[test]
    fn an_identity_is_what_git_would_commit_with() {
        let repository = Repository::new();
        let identity = || super::identity(Some(repository.path()));
        let ada = |address: &str| Some(("Ada".to_owned(), address.to_owned()));
        assert_eq!(identity(), ada("ada@example.org"));
        let add = ["config", "--add", "user.email", "ada@new.example.org"];
        git::run(repository.path(), &add).unwrap();
        assert_eq!(
            identity(),
            ada("ada@new.example.org"),
            "the last one counts"
        );
        git::run(
            repository.path(),
            &["config", "--replace-all", "user.email", ""],
        )
        .unwrap();
        assert_eq!(identity(), None, "an empty one is none");
    }
}
