//! `banger vm workspace export`: what the guest changed, as a patch.
//!
//! git runs in the guest, on an index of its own inside the guest's `.git`, so that
//! commits and uncommitted changes are both in the patch and the real index stays as
//! it is. It compares with what arrived, so that the uncommitted changes of home, which
//! are there already, are not in it. Out come bytes; this host never runs git in a tree that a guest wrote.

use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use argh::{ArgsInfo, FromArgs};

use super::context::Context;
use super::output_file;
use super::render;
use super::send_workspace::REPOSITORY;
use super::session::{self, Ends, OwnFailure};
use super::signals;
use super::words::size;
use crate::failure::Failure;
use crate::proto::agent::Exec;
use crate::workspace::{BASE_REF, SENT_REF};

/// The script that makes the patch, for `sh -c SCRIPT sh DIRECTORY SENT-REF BASE-REF`, where an
/// empty SENT-REF is as good as none: a sandbox of an older banger has none either.
const SCRIPT: &str = include_str!("export.sh");

/// Print what a sandbox changed in its repository as a patch: its commits, its uncommitted changes and its new files.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "export",
    note = "The patch is against the files as they were sent, uncommitted changes included: apply it where they came from with `git apply`. With --from-commit it is against the commit the sandbox started from, for a clean clone, and holds the uncommitted changes that were sent too. `git apply --3way` merges into files that have changed since; it wants them committed. The sandbox's own index and branches are left as they are.",
    example = "banger vm workspace export dev | git apply",
    example = "banger vm workspace export --from-commit dev | git apply --3way",
    example = "banger vm workspace export dev -o dev.patch"
)]
pub struct WorkspaceExport {
    /// write to a file instead of standard output: a regular file is replaced whole, anything else written into
    #[argh(option, short = 'o', arg_name = "file")]
    pub output: Option<PathBuf>,
    /// compare with the commit the sandbox started from, not with the files it was sent
    #[argh(switch)]
    pub from_commit: bool,
    /// directory of the repository in the guest
    #[argh(option, short = 'w', arg_name = "directory")]
    pub workdir: Option<super::values::GuestDirectory>,
    /// name or id of the sandbox, or the beginning of its id
    #[argh(positional)]
    pub name: String,
}

impl WorkspaceExport {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, OwnFailure> {
        let directory = match &self.workdir {
            Some(directory) => directory.0.clone(),
            None => REPOSITORY.to_owned(),
        };
        let sent = match self.from_commit {
            true => "",
            false => SENT_REF,
        };
        let exec = Exec {
            argv: ["sh", "-c", SCRIPT, "sh", &directory, sent, BASE_REF]
                .map(str::to_owned)
                .to_vec(),
            env: Vec::new(),
            workdir: Some("/".to_owned()),
            terminal: None,
        };
        match &self.output {
            None => to_stdout(context, &self.name, exec),
            Some(path) => to_file(context, &self.name, exec, path),
        }
    }
}

fn to_stdout(context: &Context, name: &str, exec: Exec) -> Result<u8, OwnFailure> {
    let failed = |error: std::io::Error| Failure::failed("prepare the session").because(error);
    let output = std::os::fd::AsFd::as_fd(&std::io::stdout())
        .try_clone_to_owned()
        .map_err(failed)?;
    let status = run(context, name, exec, File::from(output))?;
    checked(status)?;
    if std::io::stdout().is_terminal() {
        render::say("`banger vm workspace export NAME | git apply` applies it");
    }
    Ok(0)
}

fn to_file(context: &Context, name: &str, exec: Exec, path: &Path) -> Result<u8, OwnFailure> {
    let written = output_file::write(path, "patch", |file| {
        let status = run(context, name, exec, file)?;
        Ok(checked(status)?)
    })?;
    match written {
        Some(0) => render::say("nothing changed: the patch is empty"),
        Some(length) => render::say(&format!("{}: {}", path.display(), size(length))),
        None => {}
    }
    Ok(0)
}

fn run(context: &Context, name: &str, exec: Exec, output: File) -> Result<u8, OwnFailure> {
    let failed = |error: std::io::Error| Failure::failed("prepare the session").because(error);
    let ends = Ends {
        stream: context.dial(name)?,
        input: None,
        output: output.into(),
        error_output: std::os::fd::AsFd::as_fd(&std::io::stderr())
            .try_clone_to_owned()
            .map_err(failed)?,
        signals: signals::catch().map_err(failed)?,
    };
    session::run(ends, exec)
}

/// The script's status where there is no such directory: `EX_NOINPUT` of sysexits.h, which
/// git does not use.
const NO_DIRECTORY: u8 = 66;

/// git's own words have gone to standard error already.
fn checked(status: u8) -> Result<(), Failure> {
    match status {
        0 => Ok(()),
        127 => Err(Failure::failed("make a patch in the guest: it has no git")
            .hint("Install git in the guest, or use an image that has it.")),
        NO_DIRECTORY => Err(Failure::failed(
            "make a patch in the guest: it has no repository there, nor the directory",
        )
        .hint("`banger vm run PATH` takes a repository along; `--workdir` names another directory of the guest.")),
        status => Err(Failure::failed(format!(
            "make a patch in the guest: git ended with {status}"
        ))
        .hint("`--workdir` names another directory of the guest.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::inspect::Untracked;
    use crate::workspace::{Repository, round_trip};
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    fn git(folder: &Path, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .arg("-C")
            .arg(folder)
            .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn repository() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        git(folder.path(), &["init", "--quiet", "--initial-branch=main"]);
        for file in ["committed", "changed", "deleted"] {
            std::fs::write(folder.path().join(file), "one\n").unwrap();
        }
        git(folder.path(), &["add", "--all"]);
        git(folder.path(), &["commit", "--quiet", "--message=base"]);
        folder
    }

    fn export(folder: &Path) -> Vec<u8> {
        export_against(folder, SENT_REF)
    }

    fn export_against(folder: &Path, sent: &str) -> Vec<u8> {
        let output = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(folder)
            .args([sent, BASE_REF])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    fn apply(folder: &Path, patch: &[u8]) {
        let mut git = Command::new("git")
            .arg("-C")
            .arg(folder)
            .arg("apply")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        git.stdin.take().unwrap().write_all(patch).unwrap();
        assert!(git.wait().unwrap().success());
    }

    #[test]
    fn commits_changes_and_new_files_are_all_in_the_patch() {
        let (guest, home) = (repository(), repository());
        let path = guest.path();
        git(path, &["update-ref", BASE_REF, "HEAD"]);
        std::fs::write(path.join("committed"), "two\n").unwrap();
        git(path, &["commit", "--quiet", "--all", "--message=two"]);
        std::fs::write(path.join("changed"), "two\n").unwrap();
        std::fs::write(path.join("binary"), [0, 255, 1, 13]).unwrap();
        std::fs::remove_file(path.join("deleted")).unwrap();
        let before = git(path, &["status", "--porcelain"]);
        let patch = export(path);
        assert_eq!(git(path, &["status", "--porcelain"]), before);
        let left: Vec<_> = std::fs::read_dir(path.join(".git"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("export"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        apply(home.path(), &patch);
        let read = |file: &str| std::fs::read(home.path().join(file));
        assert_eq!(read("committed").unwrap(), b"two\n");
        assert_eq!(read("changed").unwrap(), b"two\n");
        assert_eq!(read("binary").unwrap(), [0, 255, 1, 13]);
        assert!(read("deleted").is_err());
    }

    #[test]
    fn guest_without_a_repository_is_told_as_such() {
        let mut script = Command::new("sh");
        script.args(["-c", SCRIPT, "sh", "/no/such", SENT_REF, BASE_REF]);
        let output = script.output().unwrap();
        assert_eq!(output.stderr, b"");
        let status = output.status.code().unwrap() as u8;
        let failure = checked(status).unwrap_err();
        assert!(failure.what.contains("no repository"), "{failure}");
    }

    #[test]
    fn nothing_changed_is_an_empty_patch() {
        let guest = repository();
        git(guest.path(), &["update-ref", BASE_REF, "HEAD"]);
        assert!(export(guest.path()).is_empty());
    }

    #[test]
    fn a_repository_of_the_guests_own_is_compared_with_its_head() {
        let guest = repository();
        std::fs::write(guest.path().join("changed"), "two\n").unwrap();
        let patch = String::from_utf8(export(guest.path())).unwrap();
        assert!(
            patch.contains("b/changed") && !patch.contains("b/committed"),
            "{patch}"
        );
    }

    #[test]
    fn a_change_within_the_second_of_the_index_is_in_the_patch() {
        let guest = repository();
        let path = guest.path();
        git(path, &["config", "core.trustctime", "false"]);
        // A year's first second: file, index and change all have it.
        let second = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_767_225_600);
        let stamp = |file: &str| {
            let file = File::options().append(true).open(path.join(file));
            file.unwrap().set_modified(second).unwrap();
        };
        stamp("changed");
        git(path, &["update-index", "--refresh"]);
        stamp(".git/index");
        std::fs::write(path.join("changed"), "two\n").unwrap();
        stamp("changed");
        let patch = String::from_utf8(export(path)).unwrap();
        assert!(patch.contains("b/changed"), "{patch}");
    }

    #[test]
    fn a_repository_without_commits_gives_all_its_files() {
        let guest = tempfile::tempdir().unwrap();
        git(guest.path(), &["init", "--quiet"]);
        std::fs::write(guest.path().join("new"), "x\n").unwrap();
        let patch = String::from_utf8(export(guest.path())).unwrap();
        assert!(patch.contains("+++ b/new"), "{patch}");
    }

    /// What an untouched guest exports, and one in which `file` was written.
    fn untouched_and_touched(home: &Repository, untracked: Untracked) -> (String, String) {
        let guest = round_trip(home, untracked);
        let text = |patch| String::from_utf8(patch).unwrap();
        let untouched = text(export(guest.path()));
        std::fs::write(guest.path().join("file"), "guest\n").unwrap();
        (untouched, text(export(guest.path())))
    }

    fn names(patch: &str) -> Vec<&str> {
        let lines = patch.lines();
        lines
            .filter(|line| line.starts_with("diff --git "))
            .collect()
    }

    const FILE_ONLY: [&str; 1] = ["diff --git a/file b/file"];

    #[test]
    fn what_was_changed_at_home_is_not_in_the_patch() {
        let home = Repository::new();
        for file in ["file", "changed", "deleted", "moved", ".gitignore"] {
            home.write(file, "*.forced\n");
        }
        home.commit("one");
        home.write("changed", "two\n");
        home.write("untracked", "x\n");
        home.write("a.forced", "x\n");
        git(home.path(), &["add", "--force", "a.forced"]);
        std::fs::remove_file(home.path().join("deleted")).unwrap();
        git(home.path(), &["mv", "moved", "to"]);
        for untracked in [Untracked::Leave, Untracked::Include] {
            let (untouched, touched) = untouched_and_touched(&home, untracked);
            assert_eq!(untouched, "");
            assert_eq!(names(&touched), FILE_ONLY);
        }
    }

    #[test]
    fn a_commit_of_what_was_sent_and_an_edit_export_the_edit_that_home_takes() {
        let home = Repository::new();
        home.write("file", "1\n2\n3\n4\n5\n6\n7\n8\n");
        home.commit("one");
        home.write("file", "home\n2\n3\n4\n5\n6\n7\n8\n");
        let guest = round_trip(&home, Untracked::Leave);
        git(guest.path(), &["commit", "--quiet", "-am", "two"]);
        std::fs::write(guest.path().join("file"), "home\n2\n3\n4\n5\n6\n7\nguest\n").unwrap();
        let patch = export(guest.path());
        apply(home.path(), &patch);
        let merged = std::fs::read_to_string(home.path().join("file")).unwrap();
        assert_eq!(merged, "home\n2\n3\n4\n5\n6\n7\nguest\n");
        let patch = String::from_utf8(export_against(guest.path(), "")).unwrap();
        assert!(
            patch.contains("+home") && patch.contains("+guest"),
            "{patch}"
        );
    }

    #[test]
    fn files_and_submodules_that_stayed_are_not_deleted() {
        let home = Repository::with_all_that_stays();
        let (untouched, touched) = untouched_and_touched(&home, Untracked::Leave);
        assert_eq!(untouched, "");
        assert_eq!(names(&touched), FILE_ONLY);
        let guest = round_trip(&home, Untracked::Leave);
        assert_eq!(export_against(guest.path(), ""), b"");
    }

    #[test]
    fn files_that_git_is_told_not_to_look_for_count_as_they_are() {
        let home = Repository::new();
        home.write("file", "one\n");
        home.write("local", "one\n");
        home.commit("one");
        git(home.path(), &["update-index", "--skip-worktree", "local"]);
        home.write("local", "home\n");
        let (untouched, touched) = untouched_and_touched(&home, Untracked::Leave);
        assert_eq!(untouched, "");
        assert_eq!(names(&touched), FILE_ONLY);
        let guest = round_trip(&home, Untracked::Leave);
        assert_eq!(git(guest.path(), &["status", "--porcelain"]), "");
        std::fs::write(guest.path().join("local"), "guest\n").unwrap();
        let patch = String::from_utf8(export(guest.path())).unwrap();
        assert!(patch.contains("-home\n+guest\n"), "{patch}");
        // One that the guest itself took out of its working tree.
        git(guest.path(), &["update-index", "--skip-worktree", "file"]);
        std::fs::remove_file(guest.path().join("file")).unwrap();
        let patch = String::from_utf8(export(guest.path())).unwrap();
        assert!(!patch.contains("b/file"), "{patch}");
    }

    #[test]
    fn line_ends_of_home_are_no_change_and_a_change_goes_home() {
        let home = Repository::new();
        git(home.path(), &["config", "core.autocrlf", "true"]);
        home.write(".gitattributes", "attributed text eol=crlf\n");
        for file in ["file", "attributed"] {
            home.write(file, "one\r\ntwo\r\n");
        }
        home.commit("one");
        // Committed with the line ends that its attributes forbid.
        home.write("late", "one\r\n");
        git(home.path(), &["-c", "core.autocrlf=false", "add", "late"]);
        git(home.path(), &["commit", "--quiet", "-m", "two"]);
        home.write(
            ".gitattributes",
            "attributed text eol=crlf\nlate text=auto\n",
        );
        let guest = round_trip(&home, Untracked::Leave);
        assert_eq!(export(guest.path()), b"");
        for file in ["file", "attributed", "late"] {
            std::fs::write(guest.path().join(file), "one\r\ntwo\r\nguest\r\n").unwrap();
        }
        apply(home.path(), &export(guest.path()));
        for file in ["file", "attributed", "late"] {
            let text = std::fs::read_to_string(home.path().join(file)).unwrap();
            assert_eq!(text, "one\r\ntwo\r\nguest\r\n", "{file}");
        }
    }

    #[test]
    fn filters_of_home_and_of_the_guest_have_no_say() {
        let home = Repository::new();
        let pointer = |folder: &Path, word: &str| {
            git(
                folder,
                &["config", "filter.big.clean", &format!("echo {word}")],
            );
            git(folder, &["config", "filter.big.required", "true"]);
        };
        pointer(home.path(), "home");
        home.write(".gitattributes", "big filter=big\n");
        home.write("big", "content\n");
        home.write("file", "x\n");
        home.commit("one");
        let stored = git(home.path(), &["show", "HEAD:big"]);
        assert_eq!(stored, "home\n");
        let (untouched, touched) = untouched_and_touched(&home, Untracked::Leave);
        assert_eq!(untouched, "");
        assert_eq!(names(&touched), FILE_ONLY);
        let guest = round_trip(&home, Untracked::Leave);
        pointer(guest.path(), "guest");
        git(guest.path(), &["add", "big"]);
        assert_eq!(export(guest.path()), b"");
    }

    #[test]
    fn modes_that_home_does_not_track_are_no_change_but_the_guests_are() {
        let home = Repository::new();
        git(home.path(), &["config", "core.fileMode", "false"]);
        home.write("file", "x\n");
        home.write("plain", "x\n");
        home.commit("one");
        let make_executable = |folder: &Path, name: &str| {
            std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o755)).unwrap();
        };
        make_executable(home.path(), "file");
        let guest = round_trip(&home, Untracked::Leave);
        assert_eq!(export(guest.path()), b"");
        make_executable(guest.path(), "plain");
        let patch = String::from_utf8(export(guest.path())).unwrap();
        assert_eq!(names(&patch), ["diff --git a/plain b/plain"]);
    }

    #[test]
    fn a_file_that_is_ignored_and_added_in_the_guest_is_in_the_patch() {
        let home = Repository::new();
        home.write(".gitignore", "*.log\n");
        home.commit("one");
        let guest = round_trip(&home, Untracked::Leave);
        for file in ["a \"b\u{e4}.log", "other.log"] {
            std::fs::write(guest.path().join(file), "x\n").unwrap();
        }
        git(guest.path(), &["add", "--force", "--", "a \"b\u{e4}.log"]);
        let patch = String::from_utf8(export(guest.path())).unwrap();
        assert_eq!(names(&patch).len(), 1, "{patch}");
        assert!(!patch.contains("other.log"), "{patch}");
    }

    #[test]
    fn a_sandbox_of_an_older_banger_is_compared_with_its_commit() {
        let home = Repository::new();
        home.write("file", "one\n");
        home.commit("one");
        home.write("file", "two\n");
        let guest = round_trip(&home, Untracked::Leave);
        git(guest.path(), &["update-ref", "-d", SENT_REF]);
        let patch = String::from_utf8(export(guest.path())).unwrap();
        assert_eq!(names(&patch), FILE_ONLY);
    }
}
