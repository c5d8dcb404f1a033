//! Starts a daemon where none listens.
//!
//! ```text
//!  lock start.lock -> listens now? -> spawn bangerd, detached -> its line on the pipe
//!        |                 | yes                                  "ready"  or a failure
//!        +-- another command starts it: wait for the lock, then connect
//! ```
//!
//! The daemon says on an inherited pipe (`BANGER_READY_FD`) that it listens: one line,
//! `ready`, or a failure as the wire writes it. Nothing is polled. The pipe ends when
//! the daemon dies, which is an answer too.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::daemon_commands::ends_within;
use super::{client, render};
use crate::failure::{Failure, FailureKind};
use crate::host::layout::Layout;
use crate::host::layout::refused::Directory;
use crate::proto::reply::{READY_LINE, READY_VARIABLE, WireFailure};
use crate::sys::session::{ControllingTerminal, lead_session};

/// How long a daemon that could not begin may take to end.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Connects to the daemon, which is started if none listens.
///
/// # Errors
/// It cannot be started; the causes are its own.
pub fn connect_or_start(layout: &Layout) -> Result<UnixStream, Failure> {
    let socket = layout.daemon_socket();
    if let Some(stream) = client::connect(&socket)? {
        return Ok(stream);
    }
    prepare_directories(layout)?;
    let _lock = start_lock(layout)?;
    // Whoever held the lock before us has started one.
    if let Some(stream) = client::connect(&socket)? {
        return Ok(stream);
    }
    let log = layout.daemon_log();
    start(layout, &log)?;
    render::say(&format!("started bangerd (log: {})", log.display()));
    client::connect(&socket)?.ok_or_else(|| {
        Failure::new(
            FailureKind::Unreachable,
            "connect to the bangerd just started",
        )
        .hint(format!("Its log is {}.", log.display()))
    })
}

fn unreachable(what: String, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Unreachable, what).because(error)
}

fn prepare_directories(layout: &Layout) -> Result<(), Failure> {
    for (directory, path) in layout.directories() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| {
            let what = format!("make {} {}", directory.name(), path.display());
            unreachable(what, &error).hint(directory.way_out(path, &error))
        })?;
    }
    check_owner(&layout.runtime)
}

/// The runtime directory may lie in /tmp, where others could have made it first.
fn check_owner(folder: &Path) -> Result<(), Failure> {
    let what = || format!("use runtime directory {}", folder.display());
    let found = std::fs::symlink_metadata(folder).map_err(|error| unreachable(what(), &error))?;
    let own = rustix::process::geteuid().as_raw();
    let problem = if !found.is_dir() {
        "it is a link or a file"
    } else if found.uid() != own {
        "it belongs to another user"
    } else if found.mode() & 0o022 != 0 {
        "others may write to it"
    } else {
        return Ok(());
    };
    Err(Failure::new(FailureKind::Denied, what())
        .because(problem)
        .hint("Set BANGER_RUNTIME_DIR to a directory of your own."))
}

fn start_lock(layout: &Layout) -> Result<OwnedFd, Failure> {
    let path = layout.start_lock();
    let what = || format!("lock {}", path.display());
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| {
            let way_out = Directory::Runtime.way_out(&path, &error);
            unreachable(what(), &error).hint(way_out)
        })?;
    loop {
        match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(file.into()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(unreachable(what(), &error)),
        }
    }
}

fn start(layout: &Layout, log: &Path) -> Result<(), Failure> {
    let what = "start bangerd";
    let failed = |error: io::Error| unreachable(what.to_owned(), &error);
    let mut log_file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(log)
        .map_err(|error| no_log(log, error))?;
    let log_start = log_file.seek(SeekFrom::End(0)).map_err(failed)?;
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let mut daemon = spawn(&log_file, &writer).map_err(failed)?;
    drop(writer);
    let mut line = String::new();
    let read = BufReader::new(File::from(reader))
        .take(1 << 20)
        .read_line(&mut line);
    read.map_err(failed)?;
    let said = line.trim_end();
    if said == READY_LINE {
        return Ok(());
    }
    // It is on its way out. Its last line is in the log then, and neither the next command
    // nor whoever lists the processes meets it.
    reap(&mut daemon);
    let failure = match said {
        "" => died(&mut log_file, log_start, log),
        text => match serde_json::from_str::<WireFailure>(text) {
            Ok(wire) => wire.into(),
            Err(_) => unreachable(what.to_owned(), &text),
        },
    };
    Err(with_places(failure, log, layout))
}

/// Waits for the end of a daemon that could not begin, as long as that may take. Late or not,
/// what it said is what the user is told.
fn reap(daemon: &mut Child) {
    let pid = i32::try_from(daemon.id()).ok().and_then(Pid::from_raw);
    let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(process) = process {
        let _ = ends_within(&process, END_LIMIT);
    }
    let _ = daemon.try_wait();
}

/// A failure that has no hint of its own says where to look.
fn with_places(failure: Failure, log: &Path, layout: &Layout) -> Failure {
    let (log, state) = (log.display(), layout.state.display());
    match failure.hint {
        Some(_) => failure,
        None => failure.hint(format!("The log is {log}; state is in {state}.")),
    }
}

/// The log is the first thing that is written: that its disk takes nothing is seen here.
fn no_log(log: &Path, error: io::Error) -> Failure {
    let what = format!("start bangerd: write its log {}", log.display());
    let way_out = Directory::State.way_out(log.parent().unwrap_or(log), &error);
    Failure::new(FailureKind::Storage, what)
        .because(error)
        .hint(way_out)
}

fn spawn(log: &File, ready: &OwnedFd) -> io::Result<Child> {
    // Named by its path where it still has one, so that `ps` shows it.
    let program = std::env::current_exe()
        .ok()
        .filter(|path| path.is_file())
        .unwrap_or_else(|| "/proc/self/exe".into());
    let mut command = Command::new(program);
    command
        .arg0("bangerd")
        .env(READY_VARIABLE, ready.as_raw_fd().to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?);
    // The child is to inherit exactly this one.
    rustix::io::fcntl_setfd(ready, FdFlags::empty())?;
    // Neither Ctrl-C nor a hang-up of our terminal is for the daemon.
    lead_session(&mut command, ControllingTerminal::None);
    let spawned = command.spawn();
    rustix::io::fcntl_setfd(ready, FdFlags::CLOEXEC)?;
    spawned
}

/// The daemon ended without a word on the pipe: what it wrote to its log since then.
fn died(log: &mut File, from: u64, path: &Path) -> Failure {
    let mut failure = Failure::new(FailureKind::Unreachable, "start bangerd: it ended at once");
    if let Ok(text) = written_since(log, from, path) {
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        for line in lines.iter().rev().take(3).rev() {
            failure = failure.because(line);
        }
    }
    failure.hint(format!("See {}.", path.display()))
}

/// What came into a log; a daemon that finds it full sets it aside and begins it anew.
fn written_since(log: &mut File, from: u64, path: &Path) -> io::Result<Vec<u8>> {
    const MOST: u64 = 64 * 1024;
    let mut text = Vec::new();
    log.seek(SeekFrom::Start(from))?;
    log.take(MOST).read_to_end(&mut text)?;
    let (ours, named) = (log.metadata()?, std::fs::metadata(path)?);
    if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) {
        File::open(path)?.take(MOST).read_to_end(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_daemon_that_began_its_log_anew_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bangerd.log");
        std::fs::write(&path, "earlier\nset aside\n").unwrap();
        let mut log = File::open(&path).unwrap();
        std::fs::rename(&path, folder.path().join("bangerd.log.1")).unwrap();
        std::fs::write(&path, "begun\n").unwrap();
        let text = written_since(&mut log, 8, &path).unwrap();
        assert_eq!(text, b"set aside\nbegun\n");
    }

    #[test]
    fn a_runtime_directory_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(check_owner(folder.path()), Ok(()));
        let open = PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(folder.path(), open).unwrap();
        let failure = check_owner(folder.path()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Denied);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(check_owner(&link).unwrap_err().to_string().contains("link"));
    }
}
