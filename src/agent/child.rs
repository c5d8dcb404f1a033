//! A running command: its process group, its pipes or terminal, its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child as Process, Command, ExitStatus, Stdio};

use rustix::io::{ioctl_fionbio, ioctl_fionread};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::termios::tcgetpgrp;

use super::command::{Environment, Launch, explain};
use super::terminal::{self, Pty};
use crate::proto::agent::{AgentFailure, AgentFailureKind, Exit, Terminal};
use crate::proto::frame::Kind;
use crate::sys::session::{ControllingTerminal, lead_session};

/// Most bytes that are read from a terminal after its command has ended: what its
/// buffers can hold, so a child that writes on cannot hold up the end.
const TERMINAL_REST: u64 = 128 * 1024;

/// A command that was started.
#[derive(Debug)]
pub struct Child {
    process: Process,
    group: Pid,
    /// Readable once the command has ended.
    pub pidfd: OwnedFd,
    /// Takes the command's input; `None` when closed.
    pub input: Option<OwnedFd>,
    /// What the command writes.
    pub outputs: Vec<Output>,
    terminal: Option<OwnedFd>,
}

/// One stream of a command's output.
#[derive(Debug)]
pub struct Output {
    /// Our end, non-blocking.
    pub fd: OwnedFd,
    /// The frame that its bytes go out in.
    pub kind: Kind,
}

/// Starts a command.
///
/// # Errors
/// It cannot be executed, or there is nothing left to run it with.
pub fn start(
    launch: &Launch,
    arguments: &[String],
    environment: &Environment,
    directory: &Path,
    wanted: Option<&Terminal>,
) -> Result<Child, AgentFailure> {
    let mut command = Command::new(&launch.program);
    command
        .arg0(&launch.arg0)
        .args(arguments)
        .env_clear()
        .envs(environment)
        .current_dir(directory);
    let terminal = match wanted {
        None => {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            lead_session(&mut command, ControllingTerminal::None);
            None
        }
        Some(wanted) => Some(on_terminal(&mut command, wanted).map_err(|error| other(&error))?),
    };
    let process = command
        .spawn()
        .map_err(|error| explain(&launch.program, &error))?;
    // Closes our copies of the terminal's other end: only the command's are left.
    drop(command);
    Child::new(process, terminal).map_err(|error| other(&error))
}

fn on_terminal(command: &mut Command, wanted: &Terminal) -> io::Result<OwnedFd> {
    let Pty { master, slave } = terminal::open(wanted.columns, wanted.rows)?;
    command
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave);
    lead_session(command, ControllingTerminal::StandardInput);
    Ok(master)
}

fn other(error: &io::Error) -> AgentFailure {
    AgentFailure {
        kind: AgentFailureKind::Other,
        what: format!("start the command: {error}"),
    }
}

/// Our ends of a command.
struct Ends {
    pidfd: OwnedFd,
    input: Option<OwnedFd>,
    outputs: Vec<Output>,
}

impl Ends {
    fn open(process: &mut Process, pid: Pid, terminal: Option<&OwnedFd>) -> io::Result<Ends> {
        let (input, outputs) = match terminal {
            Some(master) => (
                Some(master.try_clone()?),
                vec![Output {
                    fd: master.try_clone()?,
                    kind: Kind::Output,
                }],
            ),
            None => piped(process),
        };
        for fd in input.iter().chain(outputs.iter().map(|output| &output.fd)) {
            ioctl_fionbio(fd, true)?;
        }
        Ok(Ends {
            pidfd: pidfd_open(pid, PidfdFlags::empty())?,
            input,
            outputs,
        })
    }
}

impl Child {
    /// Takes charge of a command that leads a session of its own. If that fails the command
    /// is ended: nobody would get what it writes, or learn of its end.
    fn new(mut process: Process, terminal: Option<OwnedFd>) -> io::Result<Child> {
        let group = Pid::from_raw(process.id() as i32).expect("a child has a process id");
        match Ends::open(&mut process, group, terminal.as_ref()) {
            Ok(ends) => Ok(Child {
                pidfd: ends.pidfd,
                process,
                group,
                input: ends.input,
                outputs: ends.outputs,
                terminal,
            }),
            Err(error) => {
                let _nobody_is_left = kill_process_group(group, Signal::KILL);
                process.wait()?;
                Err(error)
            }
        }
    }

    /// Sends a signal by its number to the command: with a terminal to the group in its
    /// foreground, else to the command's own group. An unknown number is refused.
    ///
    /// # Errors
    /// There is no such signal; that nobody is left to get it is no error.
    pub fn signal(&self, number: u8) -> Result<(), AgentFailure> {
        let signal = Signal::from_named_raw(i32::from(number)).ok_or_else(|| AgentFailure {
            kind: AgentFailureKind::Malformed,
            what: format!("send signal {number}: there is no such signal"),
        })?;
        let foreground = self
            .terminal
            .as_ref()
            .and_then(|master| tcgetpgrp(master).ok());
        let _nobody_is_left = kill_process_group(foreground.unwrap_or(self.group), signal);
        Ok(())
    }

    /// Tells the command that its client is gone, as a lost terminal would; stopped
    /// jobs are continued so that they can hear it.
    pub fn hang_up(&self) {
        let foreground = self
            .terminal
            .as_ref()
            .and_then(|master| tcgetpgrp(master).ok());
        for group in foreground.into_iter().chain([self.group]) {
            for signal in [Signal::HUP, Signal::CONT] {
                let _nobody_is_left = kill_process_group(group, signal);
            }
        }
    }

    /// Sends a signal to the group that the command began in. Its number is not reused
    /// before the command has been waited for.
    pub fn signal_own_group(&self, signal: Signal) {
        let _nobody_is_left = kill_process_group(self.group, signal);
    }

    /// Gives the terminal another size; without one nothing happens.
    pub fn resize(&self, columns: u16, rows: u16) {
        if let Some(master) = &self.terminal {
            let _gone_with_its_command = terminal::resize(master, columns, rows);
        }
    }

    /// The byte that ends input, where the command has a terminal.
    pub fn end_byte(&self) -> Option<u8> {
        self.terminal.as_ref().map(terminal::end_of_input)
    }

    /// Closes everything of ours that the command reads or writes.
    pub fn let_go(&mut self) {
        self.input = None;
        self.outputs.clear();
        self.terminal = None;
    }

    /// Waits for the command's own end.
    ///
    /// # Errors
    /// Somebody else has waited for it: a bug.
    pub fn wait(&mut self) -> io::Result<Exit> {
        self.process.wait().map(exit_of)
    }

    /// How many bytes each output holds at this moment; a terminal's are bounded only.
    pub fn held(&self) -> Vec<u64> {
        let held = |output: &Output| match self.terminal {
            Some(_) => TERMINAL_REST,
            None => ioctl_fionread(output.fd.as_fd()).unwrap_or(0),
        };
        self.outputs.iter().map(held).collect()
    }
}

fn piped(process: &mut Process) -> (Option<OwnedFd>, Vec<Output>) {
    let input = process.stdin.take().map(OwnedFd::from);
    let output = process.stdout.take().map(OwnedFd::from);
    let error_output = process.stderr.take().map(OwnedFd::from);
    let outputs = [(output, Kind::Output), (error_output, Kind::ErrorOutput)];
    let outputs = outputs
        .into_iter()
        .filter_map(|(fd, kind)| fd.map(|fd| Output { fd, kind }));
    (input, outputs.collect())
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code as u8),
        (None, Some(signal)) => Exit::Signal(signal as u8),
        (None, None) => unreachable!("wait without WUNTRACED tells of ends only"),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::process::test_kill_process;

    use super::*;

    #[test]
    fn a_command_that_cannot_be_taken_charge_of_does_not_run_on() {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null());
        lead_session(&mut command, ControllingTerminal::None);
        let process = command.spawn().unwrap();
        let pid = Pid::from_raw(process.id() as i32).unwrap();
        // No terminal: nothing can be done with what only stands for a path.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let terminal = open("/dev/null", flags, Mode::empty()).unwrap();
        assert!(Child::new(process, Some(terminal)).is_err());
        assert_eq!(test_kill_process(pid), Err(rustix::io::Errno::SRCH));
    }
}
