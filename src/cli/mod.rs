//! The command line: what the user types, what the user sees.
//!
//! ```text
//!  argv ─> args (argh) ─> one file per command ─> client ──────> bangerd
//!    └ help                      │                  └ start        (request, progress, reply)
//!                                └─> session ─────────────────> agent in the guest
//!                                                                  (over a descriptor of bangerd's)
//! ```
//!
//! Owns nothing and decides nothing about VMs: it checks what can be checked here,
//! asks the daemon, and prints through [`render`] alone. Every failure is a
//! [`Failure`], shown once, here.
//!
//! Reading order: [`argv`], [`args`], [`help`], [`values`], [`context`], [`client`],
//! [`start`], [`render`], [`harmless`], [`table`], [`progress`], [`session`], then the commands.

pub mod args;
pub mod argv;
pub mod client;
pub mod config_commands;
pub mod context;
pub mod daemon_commands;
pub mod doctor;
pub mod doctor_command;
pub mod exec;
pub mod harmless;
pub mod help;
pub mod image;
pub mod kernel;
pub mod lifecycle;
pub mod list;
pub mod logs;
pub mod new_vm;
pub mod output_file;
pub mod pending;
pub mod progress;
pub mod prune;
pub mod render;
pub mod repair;
pub mod resolve;
pub mod run;
#[cfg(test)]
mod samples;
pub mod send_workspace;
pub mod session;
pub mod set;
pub mod show;
pub mod signals;
pub mod start;
pub mod store_commands;
pub mod table;
pub mod terminal;
pub mod values;
pub mod version;
pub mod words;
pub mod workspace_export;

use std::ffi::OsString;
use std::process::ExitCode;

use argh::FromArgs;

use args::{
    Banger, Command, ConfigCommand, DaemonCommand, ImageCommand, KernelCommand, StoreCommand,
    VmCommand, WorkspaceCommand,
};
use argv::Typed;
use context::{Context, Look};
use session::OwnFailure;

use crate::failure::Failure;

/// Plays the command line with the words after the program's name. `look` finds out what
/// this machine offers where no daemon can be asked.
pub fn main(words: Vec<OsString>, look: Look) -> ExitCode {
    let tree = args::tree();
    let typed = match argv::read(words, &tree) {
        Ok(typed) => typed,
        Err(failure) => return failed(failure),
    };
    match typed {
        Typed::Help(path) => {
            render::out(&help::help(&tree, &path));
            ExitCode::SUCCESS
        }
        Typed::Version => {
            render::line(&version::one_line());
            ExitCode::SUCCESS
        }
        Typed::Command { words, guest } => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match Banger::from_args(&["banger"], &words) {
                Ok(banger) => dispatch(banger.command, guest, &Context { look }),
                Err(exit) => failed(wrong_value(&exit.output, &words)),
            }
        }
    }
}

fn failed(failure: Failure) -> ExitCode {
    let status = failure.kind.exit_status();
    render::failure(&failure);
    ExitCode::from(status)
}

/// What argh says of a value, in our words: everything else was refused before.
fn wrong_value(output: &str, words: &[&str]) -> Failure {
    let output = output.trim();
    let said = [
        "Error parsing option '",
        "Error parsing positional argument '",
    ]
    .iter()
    .find_map(|start| output.strip_prefix(start));
    let name = said.and_then(|rest| rest.split_once("' with value '"));
    let what = match name {
        // The value may hold any text, but what follows it is known to begin so.
        Some((name, rest)) => {
            let why = rest.split_once("': ").map_or(rest, |(_, why)| why);
            format!(
                "{}: {why}",
                if name.starts_with('-') {
                    name.to_owned()
                } else {
                    name.to_uppercase()
                }
            )
        }
        None => output.to_owned(),
    };
    let path = words
        .iter()
        .take_while(|word| !word.starts_with('-'))
        .take(2);
    let path = path.copied().collect::<Vec<_>>().join(" ");
    Failure::usage(what).hint(format!("`banger {path} --help` shows what it takes."))
}

fn dispatch(command: Command, guest: Option<Vec<String>>, context: &Context) -> ExitCode {
    let outcome = match command {
        Command::Vm(vm) => return dispatch_vm(vm.command, guest, context),
        Command::Image(image) => match image.command {
            ImageCommand::List(command) => command.run(context),
            ImageCommand::Show(command) => command.run(context),
            ImageCommand::Pull(command) => command.run(context),
            ImageCommand::Delete(command) => command.run(context),
        },
        Command::Kernel(kernel) => match kernel.command {
            KernelCommand::List(command) => command.run(context),
            KernelCommand::Show(command) => command.run(context),
            KernelCommand::Pull(command) => command.run(context),
            KernelCommand::Delete(command) => command.run(context),
        },
        Command::Config(config) => match config.command {
            ConfigCommand::Show(command) => command.run(context),
            ConfigCommand::Get(command) => command.run(context),
            ConfigCommand::Set(command) => command.run(context),
            ConfigCommand::Unset(command) => command.run(context),
        },
        Command::Doctor(command) => command.run(context),
        Command::Daemon(daemon) => match daemon.command {
            DaemonCommand::Status(command) => command.run(context),
            DaemonCommand::Stop(command) => command.run(context),
        },
        Command::Store(store) => match store.command {
            StoreCommand::Check(command) => command.run(context),
            StoreCommand::Export(command) => command.run(context),
        },
        Command::Version(command) => command.run(),
    };
    ended(outcome)
}

fn dispatch_vm(command: VmCommand, guest: Option<Vec<String>>, context: &Context) -> ExitCode {
    match command {
        VmCommand::Run(command) => passed_through(command.run(context, guest)),
        VmCommand::Exec(command) => passed_through(command.run(context, guest)),
        VmCommand::Shell(command) => passed_through(command.run(context)),
        VmCommand::Workspace(workspace) => match workspace.command {
            WorkspaceCommand::Export(command) => {
                ended(command.run(context).map_err(|own| own.failure))
            }
        },
        VmCommand::Create(command) => ended(command.run(context)),
        VmCommand::List(command) => ended(command.run(context)),
        VmCommand::Show(command) => ended(command.run(context)),
        VmCommand::Logs(command) => ended(command.run(context)),
        VmCommand::Start(command) => ended(command.run(context)),
        VmCommand::Stop(command) => ended(command.run(context)),
        VmCommand::Restart(command) => ended(command.run(context)),
        VmCommand::Kill(command) => ended(command.run(context)),
        VmCommand::Delete(command) => ended(command.run(context)),
        VmCommand::Reset(command) => ended(command.run(context)),
        VmCommand::Set(command) => ended(command.run(context)),
        VmCommand::Prune(command) => ended(command.run(context)),
    }
}

fn ended(outcome: Result<u8, Failure>) -> ExitCode {
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(failure) => failed(failure),
    }
}

/// A guest command's status is ours; a failure of our own has one that no other tool uses.
fn passed_through(outcome: Result<u8, OwnFailure>) -> ExitCode {
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(own) => {
            render::failure(&own.failure);
            ExitCode::from(own.status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_told_in_our_own_words() {
        let words = ["vm", "run", "--vcpu", "0"];
        let output = Banger::from_args(&["banger"], &words).unwrap_err().output;
        let failure = wrong_value(&output, &words);
        assert_eq!(
            failure.what,
            "--vcpu: 0 virtual processors: 1 to 32 are possible"
        );
        assert_eq!(
            failure.hint.unwrap(),
            "`banger vm run --help` shows what it takes."
        );
        let words = ["image", "show", "a/b"];
        let output = Banger::from_args(&["banger"], &words).unwrap_err().output;
        assert!(
            wrong_value(&output, &words)
                .what
                .starts_with("NAME: image name \"a/b\" holds")
        );
    }
}
