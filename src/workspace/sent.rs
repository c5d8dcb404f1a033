//! The record of what is sent, and the index that the guest starts with.
//!
//! The record is a tree of the very files, uncommitted changes and all, under
//! [`SENT_REF`]: the way back is a patch against it, so that it holds what the guest
//! changed and nothing else. The files are taken as they lie there. Of what turns files
//! into what git stores, only the attributes in the repository go along into the guest;
//! so neither the user's configuration nor a filter of it (Git LFS) has a say here, and
//! `cli/export.sh` leaves the guest's out in the same way.
//!
//! The index matches HEAD, so that `git status` in the guest shows changes as such,
//! except that it knows the same files as the index at home: one added there is added
//! in the guest too, or the guest's commits would lack it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::inspect::Workspace;
use super::{SENT_REF, git};
use crate::failure::Failure;

/// Writes both into the `.git` that is staged in `folder`.
///
/// # Errors
/// A file cannot be read, the objects of HEAD are damaged, or the disk is full.
pub fn record(workspace: &Workspace, folder: &Path) -> Result<(), Failure> {
    let index = |name: &'static str| Index {
        root: &workspace.root,
        folder,
        name,
    };
    // Beside `.git`, so that it is not sent.
    let sent = index("sent");
    let tree = fill(workspace, &sent)?;
    git::run(folder, &["update-ref", SENT_REF, &tree])?;
    start(workspace, &index(".git/index"), &sent)
}

/// An index of the staged repository with the files at home as its working tree.
struct Index<'a> {
    root: &'a Path,
    folder: &'a Path,
    name: &'static str,
}

impl Index<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = git::command(self.root);
        command
            .env("GIT_DIR", self.folder.join(".git"))
            .env("GIT_WORK_TREE", self.root)
            .env("GIT_INDEX_FILE", self.folder.join(self.name))
            // No configuration and no attributes but the repository's own.
            .env("HOME", self.folder)
            .env_remove("XDG_CONFIG_HOME")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_ATTR_NOSYSTEM", "1");
        for setting in [
            "core.fileMode=true",
            "core.symlinks=true",
            "core.autocrlf=false",
            "core.safecrlf=false",
        ] {
            command.args(["-c", setting]);
        }
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<Vec<u8>, Failure> {
        git::finish(self.command(arguments), &self.attempt())
    }

    /// `update-index` with this on its standard input. By way of a file, so that
    /// neither side waits for the other.
    fn update(&self, options: &[&str], input: &[u8]) -> Result<(), Failure> {
        let path = self.folder.join("input");
        let written = std::fs::write(&path, input).and_then(|()| File::open(&path));
        let input = written
            .map_err(|error| Failure::failed(format!("write {}", path.display())).because(error))?;
        let mut command = self.command(&["update-index", "-z"]);
        command.args(options).stdin(Stdio::from(input));
        git::finish(command, &self.attempt()).map(drop)
    }

    fn attempt(&self) -> String {
        format!("read the files of {}", self.root.display())
    }

    fn paths(&self) -> Result<BTreeSet<PathBuf>, Failure> {
        let output = self.run(&["ls-files", "-z"])?;
        let names = output.split(|byte| *byte == 0);
        let names = names.filter(|name| !name.is_empty());
        Ok(names
            .map(|name| PathBuf::from(OsString::from_vec(name.to_vec())))
            .collect())
    }

    /// Starts with what HEAD has: how a file's line ends are stored may depend on how
    /// they were.
    fn start_with_head(&self, workspace: &Workspace) -> Result<(), Failure> {
        match &workspace.head {
            Some(_) => self.run(&["read-tree", "HEAD"]),
            None => self.run(&["read-tree", "--empty"]),
        }
        .map(drop)
    }
}

/// Makes the index of what is sent; gives its tree.
fn fill(workspace: &Workspace, index: &Index<'_>) -> Result<String, Failure> {
    index.start_with_head(workspace)?;
    let files: BTreeSet<_> = workspace.files.iter().cloned().collect();
    let gone = index.paths()?;
    index.update(
        &["--force-remove", "--stdin"],
        &lines(gone.difference(&files)),
    )?;
    let mut modules = Vec::new();
    for module in workspace.submodules.iter().filter(|module| module.present) {
        modules.extend(format!("160000 {} 0\t", module.commit).into_bytes());
        modules.extend(lines([&module.path]));
    }
    index.update(&["--index-info"], &modules)?;
    // A file that has gone meanwhile is not packed either.
    let options = ["--add", "--remove", "--replace", "--stdin"];
    let read = index.update(&options, &lines(&files));
    read.map_err(|failure| {
        failure
            .hint("All that go along must be readable: `banger vm run --dry-run PATH` lists them.")
    })?;
    let tree = index.run(&["write-tree"])?;
    git::line(&tree).ok_or_else(|| Failure::failed(index.attempt()).because("git gave no tree"))
}

/// Makes the index that the guest gets.
fn start(workspace: &Workspace, index: &Index<'_>, sent: &Index<'_>) -> Result<(), Failure> {
    index.start_with_head(workspace)?;
    let head = index.paths()?;
    let dropped = head.difference(&workspace.tracked);
    index.update(&["--force-remove", "--stdin"], &lines(dropped))?;
    let mut added = Vec::new();
    for entry in sent
        .run(&["ls-files", "-z", "--stage"])?
        .split(|byte| *byte == 0)
    {
        let name = entry.splitn(2, |byte| *byte == b'\t').nth(1);
        let path = name.map(|name| PathBuf::from(OsString::from_vec(name.to_vec())));
        if path.is_some_and(|path| workspace.tracked.contains(&path) && !head.contains(&path)) {
            added.extend(entry);
            added.push(0);
        }
    }
    index.update(&["--index-info"], &added)?;
    let known = index.paths()?;
    let skipped = workspace
        .skipped
        .iter()
        .filter(|path| known.contains(*path));
    index.update(&["--skip-worktree", "--stdin"], &lines(skipped))
}

/// Paths as git reads them with `-z`.
fn lines<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Vec<u8> {
    let mut lines = Vec::new();
    for path in paths {
        lines.extend(path.as_os_str().as_bytes());
        lines.push(0);
    }
    lines
}
