//! A command under way, and how it ended.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::events::wait_readable;

/// What a stream has brought so far.
#[derive(Default)]
struct Stream {
    seen: Mutex<Seen>,
    grown: Condvar,
}

#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    ended: bool,
}

impl Seen {
    fn holds(&self, text: &str) -> bool {
        let mut parts = self.bytes.windows(text.len());
        parts.any(|part| part == text.as_bytes())
    }
}

impl Stream {
    fn read(self: &Arc<Stream>, mut from: impl Read + Send + 'static) {
        let stream = Arc::clone(self);
        thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            loop {
                let length = from.read(&mut buffer).unwrap_or(0);
                let mut seen = stream.seen.lock().expect("no reader panics");
                seen.bytes.extend_from_slice(&buffer[..length]);
                seen.ended = length == 0;
                stream.grown.notify_all();
                if seen.ended {
                    return;
                }
            }
        });
    }

    /// Waits until what was seen is as wished, or the deadline.
    fn wait(&self, deadline: Duration, wished: impl Fn(&Seen) -> bool) -> bool {
        let seen = self.seen.lock().expect("no reader panics");
        let waited = self
            .grown
            .wait_timeout_while(seen, deadline, |seen| !wished(seen));
        wished(&waited.expect("no reader panics").0)
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.seen.lock().expect("no reader panics").bytes)
    }
}

/// A command under way; its output is read as it comes.
pub struct Running {
    child: Child,
    started: Instant,
    feeder: Option<JoinHandle<()>>,
    /// Held open where no input was given at the start.
    stdin: Option<ChildStdin>,
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
}

impl Running {
    /// Starts a command and feeds it this input.
    pub fn spawn(mut command: Command, input: Vec<u8>) -> Running {
        if !input.is_empty() {
            command.stdin(Stdio::piped());
        }
        let mut running = Running::begin(command);
        running.feeder = running.stdin.take().map(|mut stdin| {
            // The command may end before it has read all: that is for the test to judge.
            thread::spawn(move || stdin.write_all(&input).unwrap_or_default())
        });
        running
    }

    /// Starts a command whose input stays open; see [`Running::type_in`].
    pub fn with_open_input(mut command: Command) -> Running {
        command.stdin(Stdio::piped());
        Running::begin(command)
    }

    fn begin(mut command: Command) -> Running {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().expect("the binary under test starts");
        let (stdout, stderr) = (Arc::<Stream>::default(), Arc::<Stream>::default());
        stdout.read(child.stdout.take().expect("piped above"));
        stderr.read(child.stderr.take().expect("piped above"));
        Running {
            stdin: child.stdin.take(),
            feeder: None,
            child,
            started,
            stdout,
            stderr,
        }
    }

    /// Writes to the open input.
    pub fn type_in(&mut self, text: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().expect("the input was left open");
        stdin.write_all(text.as_ref()).expect("the command reads");
    }

    /// Closes the open input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Waits until standard output holds at least so many bytes, and takes none.
    #[track_caller]
    pub fn wait_for_bytes(&self, count: usize) {
        let holds = |seen: &Seen| seen.bytes.len() >= count || seen.ended;
        let in_time = self.stdout.wait(super::DEADLINE, holds);
        assert!(in_time, "less than {count} bytes in time");
    }

    /// Waits until standard output holds this text, and takes what there is.
    #[track_caller]
    pub fn wait_for_output(&self, text: &str) -> String {
        let out = self.output_up_to(text, super::DEADLINE);
        let error = self.stderr.take();
        let error = String::from_utf8_lossy(&error);
        assert!(out.contains(text), "no {text:?} in: {out}\nstderr: {error}");
        out
    }

    /// Waits until standard error holds this text, and takes nothing.
    #[track_caller]
    pub fn wait_for_message(&self, text: &str) {
        self.stderr
            .wait(super::DEADLINE, |seen| seen.holds(text) || seen.ended);
        let seen = self.stderr.seen.lock().expect("no reader panics");
        assert!(seen.holds(text), "no {text:?} on standard error");
    }

    /// Takes what is on standard output once it holds this text, has ended, or the
    /// deadline has passed.
    pub fn output_up_to(&self, text: &str, deadline: Duration) -> String {
        self.stdout
            .wait(deadline, |seen| seen.holds(text) || seen.ended);
        String::from_utf8_lossy(&self.stdout.take()).into_owned()
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn raw_pid(&self) -> Pid {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        pid.expect("a child has an id")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.raw_pid(), signal)
            .expect("a child of ours can be signalled");
    }

    /// Whether a signal was sent to the process and not taken by it yet (ShdPnd of
    /// proc_pid_status(5)).
    pub fn is_pending(&self, signal: Signal) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("a child that was not reaped has a status");
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
        let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let mask = pending.expect("the kernel says what is pending");
        mask & (1 << (signal.as_raw() - 1)) != 0
    }

    /// Waits for the end; kills it and fails the test when the deadline passes.
    #[track_caller]
    pub fn finish(mut self, deadline: Duration) -> Ran {
        drop(self.stdin.take());
        let process = pidfd_open(self.raw_pid(), PidfdFlags::empty())
            .expect("a child that was not reaped has a pidfd");
        let ended = wait_readable(&process, deadline);
        if !ended {
            self.child.kill().expect("a child of ours can be killed");
        }
        let status = self.child.wait().expect("a child of ours can be reaped");
        let took = self.started.elapsed();
        if let Some(feeder) = self.feeder.take() {
            feeder.join().expect("the feeder does not panic");
        }
        // A daemon that inherited our pipes would keep them open for ever.
        let whole = [&self.stdout, &self.stderr]
            .map(|stream| stream.wait(Duration::from_secs(20), |seen| seen.ended));
        let ran = Ran {
            status,
            took,
            stdout: self.stdout.take(),
            stderr: self.stderr.take(),
        };
        assert_eq!(
            whole, [true; 2],
            "something it left keeps its output open: {ran:?}"
        );
        assert!(ended, "not done after {deadline:?}: {ran:?}");
        ran
    }
}

/// How a command ended and what it wrote.
pub struct Ran {
    /// Its exit status.
    pub status: ExitStatus,
    /// From its start to its end.
    pub took: Duration,
    /// Everything on standard output.
    pub stdout: Vec<u8>,
    /// Everything on standard error.
    pub stderr: Vec<u8>,
}

impl Ran {
    /// The exit code, or 128+n for death by signal, as shells say it.
    pub fn code(&self) -> Option<i32> {
        self.status
            .code()
            .or_else(|| self.status.signal().map(|n| 128 + n))
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl fmt::Debug for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.stdout.len().min(2000);
        let start = String::from_utf8_lossy(&self.stdout[..end]);
        write!(
            f,
            "{} after {:?}\nstdout: {start}\nstderr: {}",
            self.status,
            self.took,
            self.error()
        )
    }
}
