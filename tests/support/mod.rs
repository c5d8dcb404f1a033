//! What every test of the real binary stands on: directories of its own, a clean
//! environment, deadlines, and nothing left on the host.
//!
//! | item | for |
//! |---|---|
//! | [`Banger`] | the binary with state, cache, runtime and home directories of its own |
//! | [`Ran`] | how a command ended and what it wrote |
//! | [`census::Census`] | what exists on this host, to compare before and after |
//! | [`skip`] | a test whose host lacks something says so by name |
//!
//! `BANGER_BIN` names the binary to test (the optimised one, under scripts/test.sh);
//! without it cargo's own build is used. `BANGER_TEST_CACHE` is where images are kept
//! between runs (default: banger-test in the user's cache directory).

// Each test file includes this module whole and uses its own part of it.
#![allow(dead_code)]
// A test's own output: what was skipped, and the daemon's log of a failed test.
#![allow(clippy::print_stdout)]

pub mod census;
pub mod seed;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Long enough for a guest under emulation on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// Says that a test was not run, and why; scripts/test.sh counts these lines.
pub fn skip(name: &str, reason: &str) {
    println!("skipped: {name}: {reason}");
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("BANGER_BIN")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_banger")))
}

/// The binary with directories of its own. Dropping it deletes its VMs, ends its
/// daemon and every process that belongs to it, and removes the directories.
pub struct Banger {
    /// Short, because sockets live in it.
    runtime: PathBuf,
    /// State, home and configuration; beside the seed, so that files can be linked.
    room: tempfile::TempDir,
    cache: PathBuf,
}

impl Banger {
    /// Empty directories, and a cache of its own.
    pub fn new() -> Banger {
        let room = room();
        let cache = room.path().join("cache");
        Banger::at(room, cache)
    }

    /// A state that holds these images and their kernel, and the shared cache.
    ///
    /// They are pulled or built once per machine; see [`seed`].
    pub fn with_images(images: &[&str]) -> Banger {
        let seed = seed::prepare(images);
        let banger = Banger::at(room(), seed::shared_cache());
        seed::link_tree(&seed, &banger.state());
        banger
    }

    fn at(room: tempfile::TempDir, cache: PathBuf) -> Banger {
        // Only the name is wanted: the program makes the folder, with its own mode.
        let runtime = tempfile::Builder::new().prefix("bt-").tempdir_in("/tmp");
        let runtime = runtime.expect("/tmp takes a folder").keep();
        for folder in ["state", "home"] {
            std::fs::create_dir_all(room.path().join(folder))
                .expect("a fresh folder takes another");
        }
        Banger {
            runtime,
            room,
            cache,
        }
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.room.path().join("state")
    }

    /// The runtime directory.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// The user's home directory; a good place for files of a test.
    pub fn home(&self) -> PathBuf {
        self.room.path().join("home")
    }

    /// The configuration file, which does not exist unless the test writes it.
    pub fn config(&self) -> PathBuf {
        self.room.path().join("config.toml")
    }

    /// A command of the binary with these arguments and nothing of our environment.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).env_clear();
        command.current_dir(self.home()).stdin(Stdio::null());
        for (name, value) in self.environment() {
            command.env(name, value);
        }
        command
    }

    /// The whole environment of a command.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let path = format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            {
                let outer = std::env::var("PATH").unwrap_or_default();
                format!("{}:{outer}", seed::tools().display())
            }
        );
        vec![
            ("PATH", PathBuf::from(path)),
            ("HOME", self.home()),
            ("LANG", PathBuf::from("C.UTF-8")),
            ("TERM", PathBuf::from("dumb")),
            ("BANGER_STATE_DIR", self.state()),
            ("BANGER_CACHE_DIR", self.cache.clone()),
            ("BANGER_RUNTIME_DIR", self.runtime.clone()),
            ("BANGER_CONFIG", self.config()),
        ]
    }

    /// Runs to the end, with no input.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Ran {
        self.run_with_input(arguments, Vec::new())
    }

    /// Runs to the end, with this input.
    pub fn run_with_input<A: AsRef<OsStr>>(&self, arguments: &[A], input: Vec<u8>) -> Ran {
        Running::spawn(self.command(arguments), input).finish(DEADLINE)
    }

    /// Starts without waiting.
    pub fn start<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Running {
        Running::spawn(self.command(arguments), Vec::new())
    }

    /// Runs to the end and must succeed; what it wrote to standard output, trimmed.
    #[track_caller]
    pub fn ok<A: AsRef<OsStr>>(&self, arguments: &[A]) -> String {
        let ran = self.run(arguments);
        let words: Vec<_> = arguments
            .iter()
            .map(|a| a.as_ref().to_string_lossy())
            .collect();
        assert_eq!(ran.code(), Some(0), "banger {}: {ran:?}", words.join(" "));
        ran.text().trim_end().to_owned()
    }

    /// Ids of the processes that work for these directories: their environment or
    /// their arguments name the state or the runtime directory.
    pub fn processes(&self) -> Vec<u32> {
        let marks = [self.state(), self.runtime.clone()];
        census::processes_that_mention(&marks)
    }

    /// The daemon's process, if one runs.
    pub fn daemon(&self) -> Option<u32> {
        let runs_as_daemon = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            let first = words.next().unwrap_or_default();
            first.ends_with(b"bangerd")
                || (words.next(), words.next()) == (Some(b"role"), Some(b"bangerd"))
        };
        self.processes().into_iter().find(runs_as_daemon)
    }

    /// Kills the daemon as a crash would, and waits until it is gone.
    pub fn kill_daemon(&self) {
        let pid = self.daemon().expect("a daemon runs");
        kill_and_wait(pid);
    }
}

impl Drop for Banger {
    fn drop(&mut self) {
        if self.daemon().is_some() {
            let names = self.run(&["vm", "list", "--quiet"]).text();
            let names: Vec<&str> = names.split_whitespace().collect();
            if !names.is_empty() {
                self.run(&[&["vm", "delete"], names.as_slice()].concat());
            }
            self.run(&["daemon", "stop"]);
        }
        for pid in self.processes() {
            kill_and_wait(pid);
        }
        if thread::panicking() {
            let log = std::fs::read_to_string(self.state().join("bangerd.log"));
            println!("bangerd.log:\n{}", log.unwrap_or_default());
        }
        std::fs::remove_dir_all(&self.runtime).ok();
    }
}

fn room() -> tempfile::TempDir {
    let folder = seed::cache_root().join("rooms");
    std::fs::create_dir_all(&folder).expect("the test cache takes a folder");
    tempfile::Builder::new()
        .prefix("r")
        .tempdir_in(folder)
        .expect("the test cache takes a folder")
}

/// Kills a process by its id and waits for its end.
pub fn kill_and_wait(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
        pidfd_send_signal(&process, Signal::KILL).ok();
        wait_readable(&process, DEADLINE);
    }
}

/// Waits until a descriptor is readable: a pidfd is when its process has ended.
fn wait_readable(descriptor: &impl std::os::fd::AsFd, deadline: Duration) -> bool {
    let deadline = Timespec::try_from(deadline).expect("a deadline of minutes fits");
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    poll(&mut polled, Some(&deadline)).expect("poll takes one descriptor") > 0
}

/// A command under way; its output is read as it comes.
pub struct Running {
    child: Child,
    input: Option<JoinHandle<()>>,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

impl Running {
    /// Starts a command and feeds it this input.
    pub fn spawn(mut command: Command, input: Vec<u8>) -> Running {
        if !input.is_empty() {
            command.stdin(Stdio::piped());
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary under test starts");
        let stdin = child.stdin.take();
        let input = stdin.map(|mut stdin| {
            // The command may end before it has read all: that is for the test to judge.
            thread::spawn(move || stdin.write_all(&input).unwrap_or_default())
        });
        let stdout = read_all(child.stdout.take().expect("piped above"));
        let stderr = read_all(child.stderr.take().expect("piped above"));
        Running {
            child,
            input,
            stdout,
            stderr,
        }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        rustix::process::kill_process(pid.expect("a child has an id"), signal)
            .expect("a child of ours can be signalled");
    }

    /// Waits for the end; kills it and fails the test when the deadline passes.
    #[track_caller]
    pub fn finish(mut self, deadline: Duration) -> Ran {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let process = pidfd_open(pid.expect("a child has an id"), PidfdFlags::empty())
            .expect("a child that was not reaped has a pidfd");
        let ended = wait_readable(&process, deadline);
        if !ended {
            self.child.kill().expect("a child of ours can be killed");
        }
        let status = self.child.wait().expect("a child of ours can be reaped");
        if let Some(input) = self.input {
            input.join().expect("the input's thread does not panic");
        }
        let ran = Ran {
            status,
            stdout: self.stdout.join().expect("the reader does not panic"),
            stderr: self.stderr.join().expect("the reader does not panic"),
        };
        assert!(ended, "not done after {deadline:?}: {ran:?}");
        ran
    }
}

fn read_all(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    })
}

/// How a command ended and what it wrote.
pub struct Ran {
    /// Its exit status.
    pub status: ExitStatus,
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

impl std::fmt::Debug for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = self.stdout.len().min(2000);
        let start = String::from_utf8_lossy(&self.stdout[..end]);
        write!(
            f,
            "{}\nstdout: {start}\nstderr: {}",
            self.status,
            self.error()
        )
    }
}
