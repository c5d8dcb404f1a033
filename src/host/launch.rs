//! Starts a process that must outlive us: the VMM, or its vsock back end.
//!
//! ```text
//!  bangerd --fork, exec--> banger role launch --exec--> qemu, firecracker, ...
//!                          own session, own group,
//!                          nothing open but what is given
//! ```
//!
//! The launcher closes the gap between fork and bookkeeping: the process is inside the
//! VM's control group *before* it is the VMM. It never creates the group, so a launcher
//! that outlives a killed bangerd finds its group removed and ends. Where there is no
//! group it dies with the thread that started it until just before the exec, and from
//! fork to exec its command line holds the words that the VMM is found by.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::process::{Pid, Signal};

use crate::failure::Failure;
use crate::plan::step::Fault;
use crate::sys::descriptors::close_all_but;

use super::fault::fault;
use super::process::Process;

/// The descriptor under which the program finds [`Launch::control`].
pub const CONTROL_DESCRIPTOR: RawFd = 3;

/// A log longer than this starts anew with the next process.
const LOG_LIMIT: u64 = 256 * 1024;
/// Most of a log that is quoted in an error, in bytes and in lines.
const TAIL_BYTES: u64 = 4096;
const TAIL_LINES: usize = 4;

/// What the launched program finds in its environment.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process to start.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Our own program, which plays the launcher.
    pub own_program: &'a Path,
    /// The program to become.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The control group to join.
    pub group: Option<PathBuf>,
    /// Takes its standard error, appended.
    pub log: &'a Path,
    /// Its standard output, such as a pipe; the log if `None`.
    pub output: Option<OwnedFd>,
    /// Its standard input; /dev/null if `None`.
    pub input: Option<OwnedFd>,
    /// A descriptor that it inherits as [`CONTROL_DESCRIPTOR`]; then it has no other
    /// input than /dev/null.
    pub control: Option<OwnedFd>,
}

/// A started process.
#[derive(Debug)]
pub struct Launched {
    /// The process, pinned.
    pub process: Process,
    /// To be reaped one day: see [`super::process::Children`].
    pub child: Child,
    /// The program that it becomes.
    pub program: PathBuf,
    log: PathBuf,
    log_start: u64,
}

impl Launch<'_> {
    /// Starts the launcher; it may still end without becoming the program.
    pub fn start(self) -> Result<Launched, Fault> {
        let attempt = format!("start {}", self.program.display());
        let (log, log_start) = open_log(self.log)
            .map_err(|error| fault(format!("open {}", self.log.display()), error))?;
        self.spawn(&log)
            .and_then(|child| {
                let process = Process::pin(Pid::from_child(&child))?;
                Ok(Launched {
                    process,
                    child,
                    program: self.program.to_owned(),
                    log: self.log.to_owned(),
                    log_start,
                })
            })
            .map_err(|error| fault(attempt, error))
    }

    fn spawn(&self, log: &File) -> io::Result<Child> {
        let mut command = Command::new(self.own_program);
        command.arg0("banger").args(["role", "launch", "--parent"]);
        command.arg(std::process::id().to_string());
        if let Some(group) = &self.group {
            command.arg("--cgroup").arg(group);
        }
        // Standard input is the one way to hand a descriptor over that no other child,
        // forked by another thread meanwhile, inherits as well.
        match (&self.control, &self.input) {
            (Some(control), _) => command.arg("--control").stdin(control.try_clone()?),
            (None, Some(input)) => command.stdin(input.try_clone()?),
            (None, None) => command.stdin(Stdio::null()),
        };
        command.arg("--").arg(self.program).args(&self.arguments);
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C");
        match &self.output {
            Some(output) => command.stdout(output.try_clone()?),
            None => command.stdout(log.try_clone()?),
        };
        command.stderr(log.try_clone()?).spawn()
    }
}

impl Launched {
    /// The last lines that the process wrote to its log, for an error message.
    pub fn last_words(&self) -> String {
        tail(&self.log, self.log_start).unwrap_or_else(|error| error.to_string())
    }
}

/// The role `launch`: joins, cleans up, becomes the program. Returns only if that fails;
/// what it says then goes to the log.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let failure = match Orders::read(arguments) {
        Ok(orders) => orders.carry_out(),
        Err(failure) => failure,
    };
    // There is nobody left to tell if this fails too.
    let _ = writeln!(io::stderr(), "launch: {failure}");
    ExitCode::from(failure.kind.exit_status())
}

/// The launcher's own arguments.
#[derive(Debug, PartialEq, Eq)]
struct Orders {
    parent: Option<i32>,
    group: Option<PathBuf>,
    control: bool,
    command: Vec<OsString>,
}

impl Orders {
    fn read(arguments: Vec<OsString>) -> Result<Orders, Failure> {
        let mut orders = Orders {
            parent: None,
            group: None,
            control: false,
            command: Vec::new(),
        };
        let mut words = arguments.into_iter();
        while let Some(word) = words.next() {
            match word.to_str() {
                Some("--parent") => {
                    let value = words.next();
                    orders.parent = value.and_then(|value| value.to_str()?.parse().ok());
                }
                Some("--cgroup") => orders.group = words.next().map(PathBuf::from),
                Some("--control") => orders.control = true,
                Some("--") => orders.command = words.by_ref().collect(),
                _ => return Err(Failure::usage(format!("read the launcher's word {word:?}"))),
            }
        }
        match orders.command.is_empty() {
            true => Err(Failure::usage("launch nothing: no program after --")),
            false => Ok(orders),
        }
    }

    fn carry_out(self) -> Failure {
        match self.prepare() {
            Ok(()) => {
                let error = Command::new(&self.command[0])
                    .args(&self.command[1..])
                    .exec();
                Failure::failed(format!("execute {}", self.command[0].display())).because(error)
            }
            Err(failure) => failure,
        }
    }

    fn prepare(&self) -> Result<(), Failure> {
        let step = |what: &str, result: io::Result<()>| {
            result.map_err(|error| Failure::failed(what).because(error))
        };
        step("die with the daemon", self.die_with_parent())?;
        if let Some(group) = &self.group {
            let what = format!("join control group {}", group.display());
            step(&what, fs::write(group.join("cgroup.procs"), "0"))?;
        }
        step(
            "start a session",
            rustix::process::setsid().map(drop).map_err(Into::into),
        )?;
        rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
        step("close what is not inherited", close_all_but(&[]))?;
        step("hand over the control socket", self.hand_over_control())?;
        let forget = rustix::process::set_parent_process_death_signal(None);
        step("outlive the daemon", forget.map_err(Into::into))
    }

    fn die_with_parent(&self) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        match self.parent.is_none() || self.parent == parent {
            true => Ok(()),
            // It died before the signal was set.
            false => Err(io::Error::other("it is gone")),
        }
    }

    fn hand_over_control(&self) -> io::Result<()> {
        if !self.control {
            return Ok(());
        }
        // The lowest free number, since everything above 2 has just been closed.
        let copy = rustix::io::dup(rustix::stdio::stdin())?;
        if copy.into_raw_fd() != CONTROL_DESCRIPTOR {
            return Err(io::Error::other("the descriptor's number is taken"));
        }
        let nothing = File::open("/dev/null")?;
        Ok(rustix::stdio::dup2_stdin(&nothing)?)
    }
}

fn private_file() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.create(true).write(true).mode(0o600);
    options
}

/// The log, open to append, and where this process's part of it begins.
fn open_log(path: &Path) -> io::Result<(File, u64)> {
    let file = private_file().write(false).append(true).open(path)?;
    let length = file.metadata()?.len();
    if length <= LOG_LIMIT {
        return Ok((file, length));
    }
    file.set_len(0)?;
    Ok((file, 0))
}

fn tail(log: &Path, start: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(start.max(end.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Orders, Failure> {
        Orders::read(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn orders_end_at_the_first_double_dash() {
        let orders = read(&[
            "--parent",
            "7",
            "--cgroup",
            "/g/x",
            "--control",
            "--",
            "/bin/x",
            "--",
            "--cgroup",
        ])
        .unwrap();
        assert_eq!(
            orders,
            Orders {
                parent: Some(7),
                group: Some(PathBuf::from("/g/x")),
                control: true,
                command: ["/bin/x", "--", "--cgroup"].map(OsString::from).to_vec(),
            }
        );
    }

    #[test]
    fn unknown_words_and_no_program_are_refused() {
        assert!(read(&["--what", "--", "x"]).is_err());
        assert!(read(&["--parent", "7"]).is_err());
        assert!(read(&["--"]).is_err());
    }

    #[test]
    fn last_words_leave_out_earlier_runs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmm.log");
        fs::write(&path, "old trouble\n").unwrap();
        let (mut file, start) = open_log(&path).unwrap();
        file.write_all(b"one\n\ntwo\n").unwrap();
        assert_eq!(tail(&path, start).unwrap(), "one; two");
    }

    #[test]
    fn a_long_log_starts_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmm.log");
        fs::write(&path, vec![b'x'; 300 * 1024]).unwrap();
        let (_file, start) = open_log(&path).unwrap();
        assert_eq!(start, 0);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
}
