//! Runs a program of the host: found by name, watched, and gone when we are.
//!
//! Each runs in a process group of its own, which is killed on cancel, and when the
//! program itself has ended. Nothing gets time to clean up behind itself: all of it works
//! in folders and namespaces of ours that go as a whole. It never decides what a
//! program's output means.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::job::Job;
use crate::failure::{Failure, FailureKind};
use crate::host::program;

/// What programs may know of our environment: how to reach the archive, nothing else.
const PASSED_ON: [&str; 8] = [
    "HOME",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];
/// A program that is silent for this long hangs.
const SILENCE: Timespec = Timespec {
    tv_sec: 900,
    tv_nsec: 0,
};
/// Lines of a program's errors that go into a failure.
const LINES_KEPT: usize = 12;

/// What a program that succeeded wrote.
#[derive(Debug, Default)]
pub struct Output {
    /// Its standard output, unless that was sent elsewhere.
    pub stdout: Vec<u8>,
}

/// The path of a program, or a refusal that names the package holding it.
///
/// # Errors
/// The program is not on this host.
pub fn find(name: &str, package: &str) -> Result<PathBuf, Failure> {
    program::find(name).ok_or_else(|| {
        Failure::failed(format!("run {name}: it is not installed"))
            .hint(format!("Run `sudo apt-get install {package}`."))
    })
}

/// A command with a clean environment that ends when this process does.
///
/// # Errors
/// The program, or setpriv (which arms the signal), is not on this host.
pub fn command(name: &str, package: &str) -> Result<Command, Failure> {
    let program = find(name, package)?;
    let mut command = Command::new(find("setpriv", "util-linux")?);
    // The parent-death signal is the only thing that ends a child of a killed daemon.
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.env_clear().env("LC_ALL", "C.UTF-8");
    // An ordinary user of Debian has no `sbin` in PATH, and depmod lives in one.
    command.env("PATH", program::search_path());
    for name in PASSED_ON {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::null());
    Ok(command)
}

/// Runs a command to its end; `line` sees each line of its standard error.
///
/// Standard output is collected, unless `stdout` takes it.
///
/// # Errors
/// Cancelled; silent for too long; ended with another status than 0 (the last lines of
/// its standard error are the causes).
pub fn run(
    job: &Job,
    what: &str,
    mut command: Command,
    stdout: Option<Stdio>,
    line: &mut dyn FnMut(&str),
) -> Result<Output, Failure> {
    job.check(what)?;
    command.process_group(0).stderr(Stdio::piped());
    command.stdout(stdout.unwrap_or_else(Stdio::piped));
    let name = Path::new(command.get_program()).to_owned();
    let mut child = command.spawn().map_err(|error| {
        Failure::failed(what)
            .because(format!("start {}", name.display()))
            .because(error)
    })?;
    let mut heard = Heard::default();
    let followed = follow(job, &child_streams(&mut child), &child, &mut heard, line);
    let status = end(&mut child);
    followed.map_err(|end| end.failure(what))?;
    let status = status.map_err(|error| Failure::failed(what).because(error))?;
    match status.success() {
        true => Ok(Output {
            stdout: heard.stdout,
        }),
        false => Err(heard.failure(what, status)),
    }
}

/// Why a program was not followed to its end.
enum Cut {
    Cancelled,
    Silent,
    Broken(std::io::Error),
}

impl Cut {
    fn failure(self, what: &str) -> Failure {
        match self {
            Cut::Cancelled => Failure::new(FailureKind::Cancelled, what).because("cancelled"),
            Cut::Silent => Failure::failed(what)
                .because(format!("no sign of life for {} s", SILENCE.tv_sec))
                .hint("Check the connection to the package mirror, then try again."),
            Cut::Broken(error) => Failure::failed(what).because(error),
        }
    }
}

type Streams = (
    Option<std::process::ChildStdout>,
    Option<std::process::ChildStderr>,
);

fn child_streams(child: &mut Child) -> Streams {
    (child.stdout.take(), child.stderr.take())
}

/// What a program has said so far.
#[derive(Default)]
struct Heard {
    stdout: Vec<u8>,
    partial: Vec<u8>,
    last: VecDeque<String>,
}

impl Heard {
    fn errors(&mut self, bytes: &[u8], line: &mut dyn FnMut(&str)) {
        self.partial.extend_from_slice(bytes);
        // Progress bars end with a carriage return: a line of their own.
        while let Some(end) = self.partial.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            let whole: Vec<u8> = self.partial.drain(..=end).collect();
            let text = String::from_utf8_lossy(&whole).trim().to_owned();
            if text.is_empty() {
                continue;
            }
            line(&text);
            if self.last.len() == LINES_KEPT {
                self.last.pop_front();
            }
            self.last.push_back(text);
        }
    }

    fn failure(self, what: &str, status: ExitStatus) -> Failure {
        let failure = Failure::failed(what).because(status);
        self.last
            .into_iter()
            .fold(failure, |failure, line| failure.because(line))
    }
}

/// Reads both streams until the program has ended.
fn follow(
    job: &Job,
    streams: &Streams,
    child: &Child,
    heard: &mut Heard,
    line: &mut dyn FnMut(&str),
) -> Result<(), Cut> {
    let broken = |error: rustix::io::Errno| Cut::Broken(error.into());
    let pid = Pid::from_child(child);
    let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(broken)?;
    let (mut out, mut err) = (streams.0.as_ref(), streams.1.as_ref());
    loop {
        let mut polled = vec![
            PollFd::new(job.cancel, PollFlags::IN),
            PollFd::new(&ended, PollFlags::IN),
        ];
        polled.extend(err.map(|stream| PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)));
        polled.extend(out.map(|stream| PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)));
        match poll(&mut polled, Some(&SILENCE)) {
            Ok(0) => return Err(Cut::Silent),
            Ok(_) => (),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(broken(error)),
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            return Err(Cut::Cancelled);
        }
        let mut streams_ready = ready[2..].iter();
        let mut any = false;
        if err.is_some() && *streams_ready.next().expect("polled above") {
            any = true;
            err = take(err, |bytes| heard.errors(bytes, line));
        }
        if out.is_some() && *streams_ready.next().expect("polled above") {
            any = true;
            out = take(out, |bytes| heard.stdout.extend_from_slice(bytes));
        }
        // A grandchild may keep the pipes open: the end of the program itself counts,
        // once there is nothing left to read.
        if ready[1] && !any {
            return Ok(());
        }
    }
}

/// Reads what is there; `None` at the end of the stream.
fn take<S: AsFd>(stream: Option<&S>, mut consume: impl FnMut(&[u8])) -> Option<&S> {
    let mut buffer = [0; 65536];
    let stream = stream?;
    match rustix::io::read(stream, &mut buffer) {
        Ok(0) | Err(_) => None,
        Ok(count) => {
            consume(&buffer[..count]);
            Some(stream)
        }
    }
}

/// Kills what is left of the program and its children, and waits for it.
fn end(child: &mut Child) -> std::io::Result<ExitStatus> {
    // Before it is waited for, its id, which is the group's, cannot be anyone else's.
    let _gone = kill_process_group(Pid::from_child(child), Signal::KILL);
    child.wait()
}

/// Adds `-o name=value` arguments.
pub fn options<'a, V: AsRef<OsStr> + 'a>(
    command: &mut Command,
    options: impl IntoIterator<Item = (&'a str, V)>,
) {
    for (name, value) in options {
        let mut argument = std::ffi::OsString::from(name);
        argument.push("=");
        argument.push(value);
        command.arg("-o").arg(argument);
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::with_job;
    use super::*;

    fn shell(job: &Job, script: &str) -> Result<Output, Failure> {
        let mut command = command("sh", "dash").unwrap();
        command.args(["-c", script]);
        run(job, "run a script", command, None, &mut |_| ())
    }

    #[test]
    fn output_is_collected_whole() {
        with_job(|job| {
            let output = shell(job, "head -c 300000 /dev/zero; echo noise >&2").unwrap();
            assert_eq!(output.stdout.len(), 300_000);
        });
    }

    #[test]
    fn a_failure_carries_the_status_and_the_last_lines() {
        with_job(|job| {
            let failure = shell(job, "echo first >&2; echo E: no such thing >&2; exit 3");
            let text = failure.unwrap_err().to_string();
            assert!(text.contains("exit status: 3"), "{text}");
            assert!(text.ends_with("first: E: no such thing"), "{text}");
        });
    }

    #[test]
    fn a_background_child_that_keeps_the_pipes_does_not_keep_us() {
        with_job(|job| {
            let output = shell(job, "sleep 1000 & echo done").unwrap();
            assert_eq!(output.stdout, b"done\n");
        });
    }

    #[test]
    fn a_cancelled_program_is_gone_with_its_children() {
        with_job(|job| {
            let mut command = command("sh", "dash").unwrap();
            command.args(["-c", "sleep 1000 & echo $! >&2; wait"]);
            let mut sleeper = None;
            let failure = run(job, "sleep", command, None, &mut |line| {
                let pid = Pid::from_raw(line.parse().unwrap()).unwrap();
                sleeper = Some(pidfd_open(pid, PidfdFlags::empty()).unwrap());
                job.cancel.set();
            });
            assert_eq!(failure.unwrap_err().kind, FailureKind::Cancelled);
            let sleeper = sleeper.unwrap();
            let mut polled = [PollFd::new(&sleeper, PollFlags::IN)];
            assert_eq!(poll(&mut polled, Some(&SILENCE)), Ok(1));
        });
    }

    #[test]
    fn a_missing_program_is_refused_with_its_package() {
        let failure = find("no-such-program", "some-package").unwrap_err();
        assert!(failure.hint.unwrap().contains("some-package"));
    }
}
