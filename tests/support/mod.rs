//! What every test of the real binary stands on: directories of its own, a clean
//! environment, deadlines, and nothing left on the host.
//!
//! | item | for |
//! |---|---|
//! | [`Banger`] | the binary with state, cache, runtime and home directories of its own |
//! | [`running::Running`] | a command under way: its output as it comes, signals, its end |
//! | [`running::Ran`] | how a command ended and what it wrote |
//! | [`terminal::Terminal`] | a command on a terminal of its own |
//! | [`events`] | waiting for a file or a state, without sleeping |
//! | [`census::Census`] | what exists on this host, to compare before and after |
//! | [`fail_point::FailPoint`] | interrupts the daemon at a named place |
//! | [`disk::SmallDisk`] | a disk to fill |
//! | [`namespace::Namespace`] | a network of a test's own |
//! | [`network`] | the bridge and tables go with the last daemon that used them |
//! | [`output`] | commands whose output cannot be written |
//! | [`frame::Envelope`] | frames written byte by byte |
//! | [`inside::Inside`] | tests of this very binary, run again inside a guest |
//! | [`image::add`] | an image of a test's own |
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
pub mod disk;
pub mod events;
pub mod fail_point;
pub mod frame;
pub mod image;
pub mod inside;
pub mod namespace;
pub mod network;
pub mod output;
pub mod running;
pub mod seed;
pub mod terminal;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use disk::SmallDisk;
use fail_point::FailPoint;
use running::{Ran, Running};
use serde_json::Value;

/// Long enough for a guest under emulation on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Long enough for a command that builds an image from a slow mirror first.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(600);

/// Says that a test was not run, and why; scripts/test.sh counts these lines.
pub fn skip(name: &str, reason: &str) {
    println!("skipped: {name}: {reason}");
}

/// The command that runs a script in a VM.
pub fn in_shell<'a>(vm: &'a str, script: &'a str) -> [&'a str; 7] {
    ["vm", "exec", vm, "--", "sh", "-c", script]
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
    state: PathBuf,
    cache: PathBuf,
    program: PathBuf,
    network: network::Use,
    /// More variables for every command.
    variables: Vec<(&'static str, PathBuf)>,
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

    /// The program with fail-points, and what interrupts it. The state is on `disk`, the
    /// images and kernels in it are links to elsewhere. `None` without such a program.
    pub fn with_fail_point(images: &[&str], disk: &SmallDisk) -> Option<(Banger, FailPoint)> {
        let program = fail_point::program()?;
        let seed = seed::prepare(images);
        let mut banger = Banger::at(room(), seed::shared_cache());
        let contents = banger.room.path().join("contents");
        seed::link_tree(&seed, &contents);
        for folder in ["images", "kernels"] {
            let link = disk.path().join(folder);
            std::os::unix::fs::symlink(contents.join(folder), link).expect("a fresh disk");
        }
        std::fs::copy(contents.join("store.redb"), disk.path().join("store.redb"))
            .expect("a fresh disk takes a file");
        let point = FailPoint::at(banger.home().join("fail-point"));
        let variable = ("BANGER_FAIL_POINT", point.file().to_owned());
        banger.variables.push(variable);
        banger.program = program;
        banger.state = disk.path().to_owned();
        Some((banger, point))
    }

    /// An empty state in this folder.
    pub fn with_state(folder: &Path) -> Banger {
        let mut banger = Banger::new();
        banger.state = folder.to_owned();
        banger
    }

    /// Gives every command from now on one more variable.
    pub fn set(&mut self, name: &'static str, value: impl Into<PathBuf>) {
        self.variables.push((name, value.into()));
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
            state: room.path().join("state"),
            room,
            cache,
            program: binary(),
            network: network::Use::begin(),
            variables: Vec::new(),
        }
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.state.clone()
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
        let mut command = self.command_of(&self.program);
        command.args(arguments);
        command
    }

    /// Another program, with the environment that a command of the binary has.
    pub fn command_of<P: AsRef<OsStr>>(&self, program: P) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
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
        let mut variables = vec![
            ("PATH", PathBuf::from(path)),
            ("HOME", self.home()),
            ("LANG", PathBuf::from("C.UTF-8")),
            ("TERM", PathBuf::from("dumb")),
            ("BANGER_STATE_DIR", self.state()),
            ("BANGER_CACHE_DIR", self.cache.clone()),
            ("BANGER_RUNTIME_DIR", self.runtime.clone()),
            ("BANGER_CONFIG", self.config()),
        ];
        variables.extend(self.variables.iter().cloned());
        variables
    }

    /// Runs to the end, with no input.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Ran {
        self.run_with_input(arguments, Vec::new())
    }

    /// Runs to the end, with this input.
    pub fn run_with_input<A: AsRef<OsStr>>(&self, arguments: &[A], input: Vec<u8>) -> Ran {
        Running::spawn(self.command(arguments), input).finish(COMMAND_DEADLINE)
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

    /// Runs a command with `--json` and reads what it printed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The phase of a VM: `running`, `stopped` …
    #[track_caller]
    pub fn phase(&self, vm: &str) -> String {
        let view = self.json(&["vm", "show", vm]);
        view["phase"].as_str().expect("a VM has a phase").to_owned()
    }

    /// Makes and starts a VM of debian-minimal with this name.
    #[track_caller]
    pub fn boot(&self, vm: &str) {
        self.ok(&["vm", "run", "-d", "--name", vm, "--image", "debian-minimal"]);
    }

    /// Runs a command in a VM; it must succeed. Its standard output, trimmed.
    #[track_caller]
    pub fn exec(&self, vm: &str, command: &[&str]) -> String {
        self.ok(&[&["vm", "exec", vm, "--"], command].concat())
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
        events::kill_and_wait(pid);
    }
}

impl Banger {
    /// Ends all that works for these directories: its VMs, its daemon, what is left. A
    /// daemon is started for it where a test has killed the last one above its VMs.
    pub fn end(&self) {
        let run_directories = std::fs::read_dir(self.runtime.join("vms"));
        let has_vms = run_directories.is_ok_and(|mut vms| vms.next().is_some());
        if has_vms || self.daemon().is_some() {
            let names = self.run(&["vm", "list", "--quiet"]).text();
            let names: Vec<&str> = names.split_whitespace().collect();
            if !names.is_empty() {
                self.run(&[&["vm", "delete"], names.as_slice()].concat());
            }
            self.run(&["daemon", "stop"]);
        }
        for pid in self.processes() {
            events::kill_and_wait(pid);
        }
    }
}

impl Drop for Banger {
    fn drop(&mut self) {
        self.end();
        self.network.leave(self);
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
