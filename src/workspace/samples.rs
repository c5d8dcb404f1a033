//! Repositories for the tests of this room.

use std::path::{Path, PathBuf};

use super::git;

/// A repository that is removed when dropped.
pub struct Repository {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

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
