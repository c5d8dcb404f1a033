//! `banger vm exec` and `banger vm shell`.

use argh::{ArgsInfo, FromArgs};
use std::os::fd::{AsFd, OwnedFd};

use super::context::Context;
use super::session::{self, Ends, OwnFailure};
use super::signals;
use super::terminal::{self, Allocate, RawMode};
use super::values::{EnvPair, GuestDirectory, environment};
use crate::failure::Failure;
use crate::proto::agent::Exec;
use crate::sys::closed_output;

macro_rules! session_command {
    ($(#[$attribute:meta])* $type:ident) => {
        #[derive(Debug, FromArgs, ArgsInfo)]
        $(#[$attribute])*
        pub struct $type {
            /// set a variable, or pass on your own with `--env KEY`; may be repeated
            #[argh(option, short = 'e', arg_name = "key=value")]
            pub env: Vec<EnvPair>,
            /// directory to run in; otherwise that of the sandbox, which is the repository if it has one
            #[argh(option, short = 'w', arg_name = "directory")]
            pub workdir: Option<GuestDirectory>,
            /// pass standard input on, which is done in any case: `-it` means what `-t` means
            #[argh(switch, short = 'i')]
            pub interactive: bool,
            /// allocate a terminal in any case
            #[argh(switch, short = 't')]
            pub tty: bool,
            /// allocate no terminal
            #[argh(switch, short = 'T')]
            pub no_tty: bool,
            /// name or id of the sandbox, or the beginning of its id
            #[argh(positional)]
            pub name: String,
        }

        impl $type {
            /// Runs `argv`, or a shell where it is empty.
            fn carry_out(self, context: &Context, argv: Vec<String>) -> Result<u8, OwnFailure> {
                let allocate = allocation(self.tty, self.no_tty)
                    .and_then(|allocate| context.layout().map(|_| allocate))
                    .map_err(OwnFailure::unasked)?;
                let exec = Exec {
                    argv,
                    env: guest_environment(&self.env),
                    // Without one the agent uses that of the VM.
                    workdir: self.workdir.map(|GuestDirectory(directory)| directory),
                    terminal: allocate.decide(),
                };
                // No daemon runs yet: a configuration that keeps one from starting is wrong
                // here as it is everywhere.
                let stream = context.dial(&self.name).map_err(OwnFailure::unasked)?;
                attach(stream, exec)
            }
        }
    };
}

session_command! {
    /// Run a command in a running sandbox. Its arguments, input, output and exit status are passed through as they are.
    #[argh(
        subcommand,
        name = "exec",
        note = "A terminal is allocated when standard input and output are both one. Without a terminal Ctrl-C is sent to the command; a second one within a second ends this client. With a terminal Ctrl-C belongs to the guest; typed three times or more over a second in which the guest says nothing, it ends this client with 130. SIGTERM and SIGHUP are sent to the command, too; this client ends five seconds later at the latest, with 143 or 129, and at once the second time. The exit status is that of the command; 2 means that this command line is wrong, 125 that the sandbox could not be reached.",
        example = "banger vm exec dev -- make test",
        example = "banger vm exec dev -- sh -c 'exit 42'; echo $?",
        example = "tar c src | banger vm exec dev -- tar x -C /tmp",
        example = "banger vm exec dev --env CI=1 --workdir /tmp -- env"
    )]
    VmExec
}

session_command! {
    /// Open a shell in a running sandbox.
    #[argh(
        subcommand,
        name = "shell",
        note = "Ctrl-C belongs to the guest. If the guest says nothing any more, three of them over more than a second end this client with 130.",
        example = "banger vm shell dev",
        example = "banger vm shell dev --workdir /etc"
    )]
    VmShell
}

/// What `-t` and `-T` mean together.
///
/// # Errors
/// Both are given.
pub fn allocation(tty: bool, no_tty: bool) -> Result<Allocate, Failure> {
    match (tty, no_tty) {
        (false, false) => Ok(Allocate::WhenBothAre),
        (true, false) => Ok(Allocate::Always),
        (false, true) => Ok(Allocate::Never),
        (true, true) => Err(Failure::usage("`--tty` and `--no-tty` exclude each other")
            .hint("Leave both out: a terminal is allocated where it makes sense.")),
    }
}

impl VmExec {
    /// Carries it out.
    pub fn run(self, context: &Context, argv: Option<Vec<String>>) -> Result<u8, OwnFailure> {
        let argv = argv.ok_or_else(|| {
            let wrong = Failure::usage("`banger vm exec` needs a command").hint(format!(
                "`banger vm exec {} -- COMMAND`, or `banger vm shell {}`.",
                self.name, self.name
            ));
            OwnFailure::unasked(wrong)
        })?;
        self.carry_out(context, argv)
    }
}

impl VmShell {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, OwnFailure> {
        self.carry_out(context, Vec::new())
    }
}

/// The variables for the guest: those asked for.
pub fn guest_environment(pairs: &[EnvPair]) -> Vec<(String, String)> {
    environment(pairs, |key| std::env::var(key).ok())
}

/// Runs a command over a dialed connection with our own three descriptors.
///
/// # Errors
/// As `session::run`.
pub fn attach(stream: OwnedFd, mut exec: Exec) -> Result<u8, OwnFailure> {
    let failed = |error: std::io::Error| Failure::failed("prepare the session").because(error);
    // Caught before raw mode is entered, so that no signal leaves a raw terminal.
    let signals = signals::catch().map_err(failed)?;
    if let Some(terminal) = &mut exec.terminal {
        // Measured anew: a change before the signals were caught would be missed.
        if let Some((columns, rows)) = terminal::size() {
            (terminal.columns, terminal.rows) = (columns, rows);
        }
        if let Ok(colours) = std::env::var("COLORTERM") {
            exec.env.insert(0, ("COLORTERM".to_owned(), colours));
        }
    }
    let ends = Ends {
        stream,
        input: Some(duplicate(std::io::stdin().as_fd()).map_err(failed)?),
        output: standard_output().map_err(failed)?,
        error_output: duplicate(std::io::stderr().as_fd()).map_err(failed)?,
        signals,
    };
    let raw = exec.terminal.as_ref().and_then(|_| RawMode::enter());
    let outcome = session::run(ends, exec);
    drop(raw);
    outcome
}

/// One that cannot be written to where ours was closed: what the command says is then an
/// error, and a command that says nothing succeeds.
fn standard_output() -> std::io::Result<OwnedFd> {
    match closed_output::was_closed() {
        true => std::fs::File::open("/dev/null").map(OwnedFd::from),
        false => duplicate(std::io::stdout().as_fd()),
    }
}

fn duplicate(descriptor: std::os::fd::BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    descriptor.try_clone_to_owned()
}
