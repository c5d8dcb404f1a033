//! What a path is: its repository, HEAD, branch, and the files that would go along.
//!
//! Everything that can be refused is refused here, before anything is made. Only
//! asks git and the file system; changes nothing.

use std::collections::HashMap;
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
    /// Untracked files that stay.
    pub untracked_left: usize,
    /// Ignored files and folders that stay.
    pub ignored_left: usize,
    /// Submodules, which stay.
    pub submodules: Vec<PathBuf>,
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
        if !self.submodules.is_empty() {
            let names = self
                .submodules
                .iter()
                .map(|path| path.display().to_string());
            let names = names.collect::<Vec<_>>().join(", ");
            lines.push(format!("submodules left out: {names}"));
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
    let head = git::try_run(
        &root,
        &["rev-parse", "--verify", "--quiet", "HEAD^{commit}"],
    )?;
    let branch = git::try_run(&root, &["symbolic-ref", "--quiet", "--short", "HEAD"])?;
    let origin = git::try_run(&root, &["config", "--get", "remote.origin.url"])?;
    let (mut files, submodules) = tracked(&root)?;
    let others = list(&root, &["ls-files", "-z", "--others", "--exclude-standard"])?;
    let ignored = [
        "ls-files",
        "-z",
        "--others",
        "--ignored",
        "--exclude-standard",
        "--directory",
    ];
    let ignored_left = list(&root, &ignored)?.len();
    let untracked_left = match untracked {
        Untracked::Leave => others.len(),
        // A name that ends with a slash is a repository inside this one: not a file.
        Untracked::Include => {
            let is_file = |path: &PathBuf| !path.as_os_str().as_bytes().ends_with(b"/");
            let (take, leave): (Vec<_>, Vec<_>) = others.into_iter().partition(is_file);
            files.extend(take);
            leave.len()
        }
    };
    keep_present(&root, &mut files)?;
    Ok(Workspace {
        root,
        head: git::line(&head.stdout).filter(|_| head.status.success()),
        branch: git::line(&branch.stdout).filter(|_| branch.status.success()),
        origin: git::line(&origin.stdout).map(|url| without_password(&url)),
        files,
        untracked_left,
        ignored_left,
        submodules,
    })
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
        let failure = refused("it is not a git repository");
        let failure = git::words(&output.stderr)
            .into_iter()
            .fold(failure, |failure, word| failure.because(word));
        return Err(failure.hint(format!(
            "Make it one with `git -C {} init`, or leave PATH out.",
            path.display()
        )));
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

/// Tracked files, and submodules: mode 160000 of `ls-files --stage`.
fn tracked(root: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), Failure> {
    let output = git::run(root, &["ls-files", "-z", "--stage"])?;
    let (mut files, mut submodules) = (Vec::new(), Vec::new());
    for entry in output.split(|byte| *byte == 0) {
        let Some(tab) = entry.iter().position(|byte| *byte == b'\t') else {
            continue;
        };
        let path = path_of(&entry[tab + 1..]);
        match entry.starts_with(b"160000 ") {
            true => submodules.push(path),
            false => files.push(path),
        }
    }
    Ok((files, submodules))
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
/// general; `None` when either is unset or there is no git.
pub fn identity(root: Option<&Path>) -> Option<(String, String)> {
    let root = root.unwrap_or(Path::new("/"));
    let get = |key: &str| {
        let output = git::try_run(root, &["config", "--get", key]).ok()?;
        git::line(&output.stdout)
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
}
