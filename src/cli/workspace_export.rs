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
        stream: context.dial(name)?.stream,
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
