//! Process 1 where the image has no systemd: keeps the agent running, runs the
//! image's entry point, reaps orphans, and switches off when asked by a signal.
//!
//! The agent is a process of its own, so that a fault in it ends sessions and not
//! the guest.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use async_signal::{Signal, Signals};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, WaitStatus, setrlimit, wait};
use rustix::system::{RebootCommand, reboot};
use smol::stream::StreamExt;

use super::command::{self, Launch};
use super::init::{AGENT_BINARY, mount_at};
use super::power::{self, Off};
use super::record::{self, Journal};
use super::{OUR_RUN, console, during};
use crate::failure::Failure;
use crate::proto::guest::BootRecord;
use crate::sys::session::{ControllingTerminal, lead_session};

/// An agent that lives shorter than this has not worked.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// So many short lives in a row, and the guest is given up.
const SHORT_LIVES: u32 = 3;
/// Open files, as systemd gives them: the hard limit is there to be raised to.
const OPEN_FILES: Rlimit = Rlimit {
    current: Some(1024),
    maximum: Some(524_288),
};

/// Stays process 1. Comes back only with the reason why the guest cannot go on.
pub fn stay(mut record: BootRecord, token: &str, off: Off) -> Result<Infallible, Failure> {
    let mut journal = Journal {
        phases: std::mem::take(&mut record.phases),
        warnings: std::mem::take(&mut record.warnings),
    };
    finish_folders(&mut journal);
    journal.tolerate(setrlimit(Resource::Nofile, OPEN_FILES).map_err(during("set limits")));
    record.phases = journal.phases;
    record.warnings = journal.warnings;
    record::leave(Path::new(OUR_RUN), &record, token)?;
    let agent = start_agent()?;
    let entrypoint = start_entrypoint(&record);
    obey_signals(off)?;
    Keeper {
        agent,
        born: Instant::now(),
        short_lives: 0,
        entrypoint,
    }
    .keep()
}

struct Keeper {
    agent: Pid,
    born: Instant,
    short_lives: u32,
    entrypoint: HashSet<Pid>,
}

impl Keeper {
    /// Reaps whatever ends. Process 1 has a child at all times: the agent.
    fn keep(mut self) -> Result<Infallible, Failure> {
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) if pid == self.agent => self.bring_back(status)?,
                Ok(Some((pid, status))) => self.note_entrypoint(pid, status),
                Ok(None) | Err(Errno::INTR) => {}
                Err(error) => return Err(during("wait for processes")(error)),
            }
        }
    }

    fn bring_back(&mut self, status: WaitStatus) -> Result<(), Failure> {
        let lived = self.born.elapsed();
        self.short_lives = match lived < SHORT_LIFE {
            true => self.short_lives + 1,
            false => 0,
        };
        let end = format!("the agent ended by itself ({})", words(status));
        if self.short_lives >= SHORT_LIVES {
            return Err(Failure::failed("keep the agent running").because(end));
        }
        console::say(&format!("{end}; starting it again"));
        self.agent = start_agent()?;
        self.born = Instant::now();
        Ok(())
    }

    fn note_entrypoint(&mut self, pid: Pid, status: WaitStatus) {
        if self.entrypoint.remove(&pid) {
            console::say(&format!(
                "the image's entry point ended ({})",
                words(status)
            ));
        }
    }
}

fn words(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}

fn start_agent() -> Result<Pid, Failure> {
    let mut command = Command::new(AGENT_BINARY);
    command
        .arg0("banger-vsock-agent")
        .env_clear()
        .stdin(Stdio::null());
    let child = command.spawn().map_err(during("start the agent"))?;
    Ok(pid_of(child.id()))
}

/// The entry point's output goes to the console. One that cannot be started is said
/// there: the guest is still of use.
fn start_entrypoint(record: &BootRecord) -> HashSet<Pid> {
    if record.entrypoint.is_empty() {
        return HashSet::new();
    }
    match launch_entrypoint(record) {
        Ok(pid) => HashSet::from([pid]),
        Err(what) => {
            console::say(&what);
            HashSet::new()
        }
    }
}

fn launch_entrypoint(record: &BootRecord) -> Result<Pid, String> {
    let environment = command::environment(&[&record.env], None);
    let Launch { program, arg0 } =
        command::find(&record.entrypoint, &environment).map_err(|failure| failure.what)?;
    let directory = record.workdir.as_deref().unwrap_or("/");
    let mut command = Command::new(program);
    command
        .arg0(arg0)
        .args(&record.entrypoint[1..])
        .env_clear()
        .envs(environment)
        .current_dir(directory)
        .stdin(Stdio::null());
    lead_session(&mut command, ControllingTerminal::None);
    let started = command.spawn();
    let child = started.map_err(|error| format!("start the image's entry point: {error}"))?;
    Ok(pid_of(child.id()))
}

fn pid_of(id: u32) -> Pid {
    Pid::from_raw(id as i32).expect("a child has a process id")
}

/// SIGTERM, what `poweroff`, `halt` and `reboot` of small inits send, and the keyboard's
/// Ctrl-Alt-Del all switch off: the host decides what starts again.
fn obey_signals(off: Off) -> Result<(), Failure> {
    let attempt = "listen for signals";
    reboot(RebootCommand::CadOff).map_err(during(attempt))?;
    let wanted = [Signal::Term, Signal::Int, Signal::Usr1, Signal::Usr2];
    let mut signals = Signals::new(wanted).map_err(during(attempt))?;
    thread::spawn(move || {
        if let Some(Ok(_)) = smol::block_on(signals.next()) {
            console::say(&power::switch_off(off).to_string());
        }
    });
    Ok(())
}

/// What systemd would mount and link, as far as ordinary programs expect it.
fn finish_folders(journal: &mut Journal) {
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC;
    let nodev = MountFlags::NOSUID | MountFlags::NODEV;
    let mounts = [
        (
            "devpts",
            "/dev/pts",
            plain,
            Some(c"gid=5,mode=620,ptmxmode=666"),
        ),
        ("tmpfs", "/dev/shm", nodev, Some(c"mode=1777")),
        ("mqueue", "/dev/mqueue", nodev | plain, None),
        (
            "cgroup2",
            "/sys/fs/cgroup",
            nodev | plain,
            Some(c"nsdelegate"),
        ),
    ];
    for (kind, target, flags, options) in mounts {
        journal.tolerate(mount_at(kind, target, flags, options));
    }
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (target, link) in links {
        journal.tolerate(symlink(target, link).map_err(during(format!("make {link}"))));
    }
    journal.tolerate(temporary_folder(Path::new("/tmp")));
}

fn temporary_folder(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let attempt = || during::<std::io::Error>(format!("make {}", path.display()));
    fs::create_dir(path).map_err(attempt())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o1777)).map_err(attempt())
}
