//! Starts a process that must outlive us: the VMM, or its vsock back end.
//!
//! ```text
//!  bangerd --fork, exec--> banger role launch --exec--> qemu, firecracker, ...
//!                          own session, own group,
//!                          nothing open but what is given
//! ```
//!
//! The launcher ([`super::launcher`]) closes the gap between fork and bookkeeping: the
//! process is inside the VM's control group *before* it is the VMM. It is born there
//! ([`crate::sys::birth`]), or on kernels before 5.7 goes there first; it never creates the
//! group, so a launcher that outlives a killed bangerd finds its group removed and ends.
//! Where there is no group it dies with the thread that started it until just before the
//! exec, and from fork to exec its command line holds the words that the VMM is found by.
//!
//! It also takes the process's rights: what the program needs of the owner's files comes
//! as open descriptors, so that it can be a user who reaches none of them.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, iter};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::plan::step::Fault;
use crate::sys::birth::{self, Program};

use super::fault::fault;
use super::identity::Identity;
use super::jail::Jail;
use super::process::Process;

/// The descriptor under which the program finds [`Launch::control`].
pub const CONTROL_DESCRIPTOR: RawFd = 3;
/// The descriptor under which the program finds the first of [`Launch::files`]; the
/// others follow.
pub const FIRST_FILE: RawFd = 4;

/// A log longer than this starts anew with the next process.
const LOG_LIMIT: u64 = 256 * 1024;
/// Most of a log that is quoted in an error, in bytes and in lines.
const TAIL_BYTES: u64 = 4096;
const TAIL_LINES: usize = 4;

/// What the launched program finds in its environment.
const ENVIRONMENT: [(&str, &str); 2] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("LC_ALL", "C"),
];

/// What the launcher is called by.
const OWN_NAME: &str = "banger";

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
    /// Who it runs as; `None` is who we are. Capabilities it has none in either case.
    pub identity: Option<Identity>,
    /// Its working directory; `None` is ours.
    pub directory: Option<&'a Path>,
    /// What it is given open, in the order of the numbers.
    pub files: Vec<Inherited>,
    /// The jail that it is started in. It is the jailer then: root still, with the
    /// capabilities that its work takes, and becomes `identity` by itself.
    pub jail: Option<Jail>,
    /// Takes its standard error.
    pub errors: Errors<'a>,
    /// Its standard output, such as a pipe; as its standard error if `None`.
    pub output: Option<OwnedFd>,
    /// Its standard input; /dev/null if `None`.
    pub input: Option<OwnedFd>,
    /// A descriptor that it inherits as [`CONTROL_DESCRIPTOR`]; then it has no other
    /// input than /dev/null.
    pub control: Option<OwnedFd>,
}

/// Where a program's standard error goes.
#[derive(Debug)]
pub enum Errors<'a> {
    /// To the end of this file: for what says little.
    File(&'a Path),
    /// Into a descriptor, for what may say much; whoever reads it writes to `log`.
    Kept {
        /// Takes the bytes.
        into: OwnedFd,
        /// Where they come to rest.
        log: &'a Path,
    },
}

/// What the launcher opens for the program before it gives its rights away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inherited {
    /// A file to read.
    Read(PathBuf),
    /// A file to read and write.
    ReadWrite(PathBuf),
    /// The same, made if it is not there.
    Log(PathBuf),
    /// A tap by its name.
    Tap(String),
    /// A Unix socket to listen on, made here.
    Listener(PathBuf),
}

impl Inherited {
    /// As the launcher is told.
    fn words(&self) -> [&OsStr; 2] {
        match self {
            Inherited::Read(path) => ["--read".as_ref(), path.as_os_str()],
            Inherited::ReadWrite(path) => ["--write".as_ref(), path.as_os_str()],
            Inherited::Log(path) => ["--log".as_ref(), path.as_os_str()],
            Inherited::Tap(name) => ["--tap".as_ref(), name.as_ref()],
            Inherited::Listener(path) => ["--listen".as_ref(), path.as_os_str()],
        }
    }

    /// Whether there is a file to open; a tap is looked for when it is opened.
    pub fn check(&self) -> io::Result<()> {
        match self {
            Inherited::Read(path) | Inherited::ReadWrite(path) => fs::metadata(path).map(drop),
            Inherited::Log(_) | Inherited::Tap(_) | Inherited::Listener(_) => Ok(()),
        }
    }

    /// As the launcher reads it; `None` if the word is another one.
    pub(super) fn from_words(name: &str, value: &OsStr) -> Option<Inherited> {
        Some(match name {
            "--read" => Inherited::Read(value.into()),
            "--write" => Inherited::ReadWrite(value.into()),
            "--log" => Inherited::Log(value.into()),
            "--tap" => Inherited::Tap(value.to_str()?.to_owned()),
            "--listen" => Inherited::Listener(value.into()),
            _ => return None,
        })
    }
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.words()[1].display())
    }
}

/// A started process.
#[derive(Debug)]
pub struct Launched {
    /// The process, pinned; to be reaped one day: see [`super::process::Children`].
    pub process: Process,
    /// The program that it becomes.
    pub program: PathBuf,
    log: LogPart,
}

/// The part of a log that a process wrote.
#[derive(Debug, Clone)]
pub struct LogPart {
    path: PathBuf,
    start: u64,
}

impl Launch<'_> {
    /// Starts the launcher; it may still end without becoming the program.
    pub fn start(self) -> Result<Launched, Fault> {
        let attempt = format!("start {}", self.program.display());
        let opened = match &self.errors {
            Errors::File(path) => open_log(path).map(|(file, start)| (file.into(), start, *path)),
            Errors::Kept { into, log } => into.try_clone().map(|into| (into, length(log), *log)),
        };
        let (errors, start, log) = opened.map_err(|error| fault(&attempt, error))?;
        let process = self.spawn(errors).map_err(|error| fault(attempt, error))?;
        Ok(Launched {
            process,
            program: self.program.to_owned(),
            log: LogPart {
                path: log.to_owned(),
                start,
            },
        })
    }

    fn spawn(&self, errors: OwnedFd) -> io::Result<Process> {
        let streams = self.streams(errors)?;
        if let Some(group) = &self.group {
            match self.spawn_inside(group, &streams) {
                Err(error) if is_unknown(&error) => {}
                born => return born,
            }
        }
        let mut command = Command::new(self.own_program);
        command
            .arg0(OWN_NAME)
            .args(self.orders(self.group.as_deref()));
        command.env_clear().envs(ENVIRONMENT);
        let [input, output, errors] = streams;
        let child = command.stdin(input).stdout(output).stderr(errors).spawn()?;
        Ok(Process::pin(Pid::from_child(&child))?)
    }

    fn spawn_inside(&self, group: &Path, streams: &[OwnedFd; 3]) -> io::Result<Process> {
        let group = File::open(group).map_err(|error| {
            let what = format!("open control group {}: {error}", group.display());
            io::Error::new(error.kind(), what)
        })?;
        let path = CString::new(self.own_program.as_os_str().as_bytes())?;
        let words = iter::once(OWN_NAME.into()).chain(self.orders(None));
        let words = words.map(|word| CString::new(word.into_vec()));
        let words = words.collect::<Result<Vec<CString>, _>>()?;
        let settings = ENVIRONMENT.map(|(name, value)| CString::new(format!("{name}={value}")));
        let settings = settings.into_iter().collect::<Result<Vec<CString>, _>>()?;
        let (pid, pidfd) = birth::spawn_into(
            group.as_fd(),
            &Program {
                path: &path,
                arguments: &words.iter().map(CString::as_c_str).collect::<Vec<_>>(),
                environment: &settings.iter().map(CString::as_c_str).collect::<Vec<_>>(),
                streams: streams.each_ref().map(AsFd::as_fd),
            },
        )?;
        Ok(Process::born(pid, pidfd))
    }

    /// Standard input, output and error. The first is the one way to hand a descriptor
    /// over that no other child, forked by another thread meanwhile, inherits as well.
    fn streams(&self, errors: OwnedFd) -> io::Result<[OwnedFd; 3]> {
        let input = match self.control.as_ref().or(self.input.as_ref()) {
            Some(given) => given.try_clone()?,
            None => File::open("/dev/null")?.into(),
        };
        let output = self.output.as_ref().unwrap_or(&errors).try_clone()?;
        Ok([input, output, errors])
    }

    /// The launcher's words; `join` is the group that it has to go to.
    fn orders(&self, join: Option<&Path>) -> Vec<OsString> {
        let mut words: Vec<OsString> = ["role", "launch", "--parent"].map(Into::into).into();
        words.push(std::process::id().to_string().into());
        if let Some(group) = join {
            words.extend(["--cgroup".into(), group.into()]);
        }
        self.order_surroundings(&mut words);
        if self.control.is_some() {
            words.push("--control".into());
        }
        words.extend(["--".into(), self.program.into()]);
        words.extend(self.arguments.iter().cloned());
        words
    }

    fn order_surroundings(&self, words: &mut Vec<OsString>) {
        if let Some(directory) = self.directory {
            words.extend(["--directory".into(), directory.into()]);
        }
        for file in &self.files {
            words.extend(file.words().map(Into::into));
        }
        if let Some(jail) = &self.jail {
            words.extend(jail.words());
        }
        if let Some(identity) = &self.identity {
            words.extend(["--uid".into(), identity.uid.to_string().into()]);
            words.extend(["--gid".into(), identity.gid.to_string().into()]);
            for group in &identity.groups {
                words.extend(["--group".into(), group.to_string().into()]);
            }
        }
    }
}

/// Whether the kernel, or whoever filters its calls, knows no birth in a group.
fn is_unknown(error: &io::Error) -> bool {
    let unknown = [
        Errno::NOSYS,
        Errno::INVAL,
        Errno::OPNOTSUPP,
        Errno::PERM,
        Errno::ACCESS,
    ];
    Errno::from_io_error(error).is_some_and(|errno| unknown.contains(&errno))
}

impl Launched {
    /// Its part of the log.
    pub fn log(&self) -> LogPart {
        self.log.clone()
    }

    /// The last lines that the process wrote to its log, for an error message.
    pub fn last_words(&self) -> String {
        self.log.last_words()
    }
}

impl LogPart {
    /// Its last lines, for an error message.
    pub fn last_words(&self) -> String {
        tail(&self.path, self.start).unwrap_or_else(|error| error.to_string())
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

/// Of a file that need not exist.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

fn tail(log: &Path, start: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let end = file.metadata()?.len();
    // It may have been cut short since.
    let start = if start <= end { start } else { 0 };
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
    use std::io::Write;

    use super::*;

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
