//! Repositories for the tests of this room and of what uses it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::depth::Depth;
use super::git;
use super::inspect::{Untracked, inspect};
use super::pack::{stage, write};

/// A repository that is removed when dropped.
pub struct Repository {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

#[allow(
    clippy::new_without_default,
    reason = "a fresh one is made, none is meant"
)]
impl Repository {
    /// An empty one on branch main, with an identity.
    pub fn new() -> Repository {
        Repository::below("repository")
    }

    /// The same, in a folder of this name.
    pub fn below(name: &str) -> Repository {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        git::run(&path, &["init", "--quiet", "--initial-branch=main"]).unwrap();
        git::run(&path, &["config", "user.name", "Ada"]).unwrap();
        git::run(&path, &["config", "user.email", "ada@example.org"]).unwrap();
        Repository {
            _folder: folder,
            path,
        }
    }

    /// One with a submodule and with a file that sparse checkout leaves out.
    pub fn with_all_that_stays() -> Repository {
        let inner = Repository::new();
        inner.write("file", "x");
        inner.commit("inner");
        let repository = Repository::new();
        let module = inner.path().to_str().unwrap();
        let add = ["submodule", "--quiet", "add", module, "module"];
        let allowed = [&["-c", "protocol.file.allow=always"][..], &add].concat();
        git::run(repository.path(), &allowed).unwrap();
        repository.write("sparse/file", "x");
        repository.write("file", "x");
        repository.commit("one");
        let sparse = ["sparse-checkout", "set", "--no-cone", "/*", "!/sparse"];
        git::run(repository.path(), &sparse).unwrap();
        assert!(!repository.path().join("sparse").exists());
        repository
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file, its folders too.
    pub fn write(&self, file: &str, content: &str) {
        let path = self.path.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Commits everything.
    pub fn commit(&self, message: &str) {
        git::run(&self.path, &["add", "--all"]).unwrap();
        git::run(&self.path, &["commit", "--quiet", "--message", message]).unwrap();
    }
}

/// What git prints in a repository.
pub fn git(folder: &Path, arguments: &[&str]) -> String {
    String::from_utf8(git::run(folder, arguments).unwrap()).unwrap()
}

/// Packs a repository and unpacks it elsewhere with the system's tar.
pub fn round_trip(repository: &Repository, untracked: Untracked) -> tempfile::TempDir {
    round_trip_of(repository.path(), untracked, Depth::DEFAULT)
}

/// The same, with as much history.
pub fn round_trip_of(path: &Path, untracked: Untracked, depth: Depth) -> tempfile::TempDir {
    let workspace = inspect(path, untracked).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let staged = stage(&workspace, depth, cache.path()).unwrap();
    let mut bytes = Vec::new();
    write(&workspace, &staged, &mut bytes).unwrap();
    drop(staged);
    let left = std::fs::read_dir(cache.path().join("staging")).unwrap();
    assert_eq!(left.count(), 0);
    let target = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar")
        .args(["-x", "--no-same-owner", "-C"])
        .arg(target.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    tar.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(tar.wait().unwrap().success());
    target
}
