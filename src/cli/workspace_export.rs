//! `banger vm workspace export`: what the guest changed, as a patch.
//!
//! git runs in the guest, on an index of its own inside the guest's `.git`, so that
//! commits and uncommitted changes are both in the patch and the real index stays as
//! it is. Out come bytes; this host never runs git in a tree that a guest wrote.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use argh::{ArgsInfo, FromArgs};

use super::context::Context;
use super::render;
use super::send_workspace::REPOSITORY;
use super::session::{self, Ends, OwnFailure};
use super::signals;
use super::words::size;
use crate::failure::Failure;
use crate::proto::agent::Exec;
use crate::workspace::BASE_REF;

/// The script that makes the patch, for `sh -c SCRIPT sh DIRECTORY BASE-REF`.
const SCRIPT: &str = include_str!("export.sh");

/// Print what a sandbox changed in its repository as a patch: its commits, its uncommitted changes and its new files.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "export",
    note = "Apply it with `git apply --3way` on the commit the sandbox started from. The sandbox's own index and branches are left as they are.",
    example = "banger vm workspace export dev | git apply --3way",
    example = "banger vm workspace export dev -o dev.patch"
)]
pub struct WorkspaceExport {
    /// write to a file instead of standard output
    #[argh(option, short = 'o', arg_name = "file")]
    pub output: Option<PathBuf>,
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
        let exec = Exec {
            argv: ["sh", "-c", SCRIPT, "sh", &directory, BASE_REF]
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
        render::say("`banger vm workspace export NAME | git apply --3way` applies it");
    }
    Ok(0)
}

fn to_file(context: &Context, name: &str, exec: Exec, path: &Path) -> Result<u8, OwnFailure> {
    let failed = |error: std::io::Error| {
        Failure::failed(format!("write patch {}", path.display())).because(error)
    };
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", std::process::id()));
    let aside = PathBuf::from(aside);
    let written = (|| {
        let mut file = File::create_new(&aside).map_err(failed)?;
        let status = run(context, name, exec, file.try_clone().map_err(failed)?)?;
        checked(status)?;
        file.flush()
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        std::fs::rename(&aside, path).map_err(failed)?;
        Ok::<u64, OwnFailure>(length)
    })();
    match written {
        Ok(0) => render::say("nothing changed: the patch is empty"),
        Ok(length) => render::say(&format!("{}: {}", path.display(), size(length))),
        Err(failure) => {
            drop(std::fs::remove_file(&aside));
            return Err(failure);
        }
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

/// git's own words have gone to standard error already.
fn checked(status: u8) -> Result<(), Failure> {
    match status {
        0 => Ok(()),
        127 => Err(Failure::failed("make a patch in the guest: it has no git")
            .hint("Install git in the guest, or use an image that has it.")),
        status => Err(Failure::failed(format!(
            "make a patch in the guest: git ended with {status}"
        ))
        .hint("`--workdir` names another directory of the guest.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let output = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(folder)
            .arg(BASE_REF)
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
}
