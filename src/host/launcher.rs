//! The role `launch`: what happens between the fork of bangerd and the program that it
//! wants started. Joins the control group, opens what the program is given, gives every
//! right away, becomes the program.
//!
//! ```text
//!  group, session, own descriptors closed      still as bangerd
//!  files opened, from descriptor 4 on          the program never sees their folders
//!  the jail made                               only for Firecracker's jailer
//!  no new privileges, no capabilities          for good: the bounding set is emptied;
//!                                              the jailer has the few of its work
//!  groups, gid, uid                            the VM's own; the jailer does that
//!  exec
//! ```

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Gid, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::failure::Failure;
use crate::sys::descriptors::close_all_but;
use crate::sys::tun::{self, FrameHeader};

use super::jail::{self, Jail};
use super::launch::{CONTROL_DESCRIPTOR, FIRST_FILE, Inherited};

/// Plays the role. Returns only if something fails; what it says then goes to the log.
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
#[derive(Debug, Default, PartialEq, Eq)]
struct Orders {
    parent: Option<i32>,
    group: Option<PathBuf>,
    directory: Option<PathBuf>,
    control: bool,
    files: Vec<Inherited>,
    jail: Option<Jail>,
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Vec<u32>,
    command: Vec<OsString>,
}

impl Orders {
    fn read(arguments: Vec<OsString>) -> Result<Orders, Failure> {
        let mut orders = Orders::default();
        let mut words = arguments.into_iter();
        while let Some(word) = words.next() {
            match word.to_str() {
                Some("--control") => orders.control = true,
                Some("--") => orders.command = words.by_ref().collect(),
                Some(name) => orders.take(name, words.next())?,
                None => return Err(unread(&word)),
            }
        }
        match orders.command.is_empty() {
            true => Err(Failure::usage("launch nothing: no program after --")),
            false => Ok(orders),
        }
    }

    fn take(&mut self, name: &str, value: Option<OsString>) -> Result<(), Failure> {
        let value = value.ok_or_else(|| unread(&OsString::from(name)))?;
        let number = || {
            let parsed = value.to_str().and_then(|text| text.parse::<u32>().ok());
            parsed.ok_or_else(|| unread(&value))
        };
        if let Some(file) = Inherited::from_words(name, &value) {
            self.files.push(file);
            return Ok(());
        }
        if Jail::take(&mut self.jail, name, &value).map_err(|_| unread(&value))? {
            return Ok(());
        }
        match name {
            "--parent" => self.parent = Some(number()?.cast_signed()),
            "--uid" => self.uid = Some(number()?),
            "--gid" => self.gid = Some(number()?),
            "--group" => self.groups.push(number()?),
            "--cgroup" => self.group = Some(value.into()),
            "--directory" => self.directory = Some(value.into()),
            _ => return Err(unread(&OsString::from(name))),
        }
        Ok(())
    }

    fn carry_out(self) -> Failure {
        match self.prepare() {
            Ok(program) => {
                let error = self.execute(program.as_ref());
                Failure::failed(format!("execute {}", self.command[0].display())).because(error)
            }
            Err(failure) => failure,
        }
    }

    /// Everything but the exec.
    fn prepare(&self) -> Result<Option<Found>, Failure> {
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
        step("close what is not inherited", close_all_but(&[]))?;
        step("hand over the control socket", self.hand_over_control())?;
        for (index, file) in self.files.iter().enumerate() {
            step(&format!("open {file}"), place(file, index))?;
        }
        if let Some(directory) = &self.directory {
            let what = format!("enter {}", directory.display());
            step(&what, std::env::set_current_dir(directory))?;
        }
        if let Some(jail) = &self.jail {
            step("make the jail", jail.make(self.gid))?;
        }
        // What a VM's user makes, root without capabilities reaches by the VM's group.
        let others = match self.gid {
            Some(_) => Mode::RWXO,
            None => Mode::RWXG | Mode::RWXO,
        };
        rustix::process::umask(others);
        let program = self.find_program();
        let forget = rustix::process::set_parent_process_death_signal(None);
        step("outlive the daemon", forget.map_err(Into::into))?;
        step("give privileges away", self.give_privileges_away())?;
        Ok(program)
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
        // Held where nothing is handed over, so that files begin at the same number.
        let copy = match self.control {
            true => rustix::io::dup(rustix::stdio::stdin())?,
            false => File::open("/dev/null")?.into(),
        };
        // The lowest free number, since everything above 2 has just been closed.
        if copy.as_raw_fd() != CONTROL_DESCRIPTOR {
            return Err(io::Error::other("the descriptor's number is taken"));
        }
        if !self.control {
            // It closes itself then.
            let _held_until_exec = copy.into_raw_fd();
            return Ok(());
        }
        let _handed_over = copy.into_raw_fd();
        let nothing = File::open("/dev/null")?;
        Ok(rustix::stdio::dup2_stdin(&nothing)?)
    }

    /// Every right that this process and its program could use or regain.
    fn give_privileges_away(&self) -> io::Result<()> {
        rustix::thread::set_no_new_privs(true)?;
        let kept = self.kept();
        bound_by(kept)?;
        if self.jail.is_some() {
            // The jailer becomes the VM's user.
            rustix::thread::set_thread_groups(&[])?;
            return hold(kept);
        }
        if let Some(gid) = self.gid {
            let groups: Vec<Gid> = self.groups.iter().map(|id| Gid::from_raw(*id)).collect();
            rustix::thread::set_thread_groups(&groups)?;
            let gid = Gid::from_raw(gid);
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        }
        if let Some(uid) = self.uid {
            let uid = Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        }
        hold(kept)
    }

    /// The capabilities that the program starts with.
    fn kept(&self) -> CapabilitySet {
        let needed = jail::NEEDED.iter().filter(|_| self.jail.is_some());
        needed.map(|(one, _)| *one).collect()
    }

    fn find_program(&self) -> Option<Found> {
        let program = fs::canonicalize(&self.command[0]).ok()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Some(Found {
            folder: rustix::fs::open(program.parent()?, flags, Mode::empty()).ok()?,
            name: program.file_name()?.to_owned(),
        })
    }

    /// By its path, or where the way there is closed to the VM's user (root's home, say)
    /// by its folder, which was opened before.
    fn execute(&self, found: Option<&Found>) -> io::Error {
        let execute = |path: &Path| {
            Command::new(path)
                .arg0(&self.command[0])
                .args(&self.command[1..])
                .exec()
        };
        let error = execute(Path::new(&self.command[0]));
        match found {
            Some(found) if error.kind() == io::ErrorKind::PermissionDenied => {
                let number = found.folder.as_raw_fd().to_string();
                execute(&Path::new("/proc/self/fd").join(number).join(&found.name))
            }
            _ => error,
        }
    }
}

/// A program's folder, open, and its name there.
struct Found {
    folder: OwnedFd,
    name: OsString,
}

/// Opens a file under the number that its place in the list gives it: the lowest free one,
/// since everything above has been closed.
fn place(file: &Inherited, index: usize) -> io::Result<()> {
    let opened = open(file)?;
    let wanted = FIRST_FILE + RawFd::try_from(index).map_err(io::Error::other)?;
    if opened.as_raw_fd() != wanted {
        return Err(io::Error::other("the descriptor's number is taken"));
    }
    rustix::io::fcntl_setfd(&opened, rustix::io::FdFlags::empty())?;
    let _handed_over = opened.into_raw_fd();
    Ok(())
}

fn open(file: &Inherited) -> io::Result<OwnedFd> {
    let mut options = fs::OpenOptions::new();
    options.read(true);
    match file {
        Inherited::Read(path) => options.open(path).map(OwnedFd::from),
        Inherited::ReadWrite(path) => options.write(true).open(path).map(OwnedFd::from),
        Inherited::Log(path) => {
            options.write(true).create(true).mode(0o600);
            options.open(path).map(OwnedFd::from)
        }
        Inherited::Tap(name) => open_tap(name),
        Inherited::Listener(path) => UnixListener::bind(path).map(OwnedFd::from),
    }
}

/// Opening a tap that is not there would make one, of no bridge and under no rule. Asked
/// of a socket, because what /sys shows may be another network namespace's.
fn open_tap(name: &str) -> io::Result<OwnedFd> {
    // Closed before the tap is opened: the tap's number is a promise.
    let index = name_to_index(socket(AddressFamily::UNIX, SocketType::DGRAM, None)?, name);
    match index {
        Ok(_) => tun::open(name, FrameHeader::Virtio),
        Err(Errno::NODEV) => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "there is no such tap",
        )),
        Err(error) => Err(error.into()),
    }
}

/// Holds these capabilities and no others. A program that root executes keeps them, no
/// new privileges or not (`cap_bprm_creds_from_file`, Linux 6.18).
fn hold(these: CapabilitySet) -> io::Result<()> {
    let sets = CapabilitySets {
        effective: these,
        permitted: these,
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Nothing to do for a user without CAP_SETPCAP: with no new privileges there is nothing
/// that the set could bound.
fn bound_by(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The kernel has no more of them.
            Err(Errno::INVAL) => return Ok(()),
            Err(Errno::PERM) if !rustix::process::geteuid().is_root() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn unread(word: &OsString) -> Failure {
    Failure::usage(format!("read the launcher's word {word:?}"))
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
            "--directory",
            "/r",
            "--control",
            "--read",
            "/k",
            "--tap",
            "bgr-1",
            "--uid",
            "9",
            "--gid",
            "8",
            "--group",
            "5",
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
                directory: Some(PathBuf::from("/r")),
                control: true,
                files: vec![
                    Inherited::Read("/k".into()),
                    Inherited::Tap("bgr-1".to_owned())
                ],
                jail: None,
                uid: Some(9),
                gid: Some(8),
                groups: vec![5],
                command: ["/bin/x", "--", "--cgroup"].map(OsString::from).to_vec(),
            }
        );
    }

    #[test]
    fn unknown_words_bad_numbers_and_no_program_are_refused() {
        assert!(read(&["--what", "1", "--", "x"]).is_err());
        assert!(read(&["--uid", "root", "--", "x"]).is_err());
        assert!(read(&["--uid", "-1", "--", "x"]).is_err());
        assert!(read(&["--parent", "7"]).is_err());
        assert!(read(&["--gid"]).is_err());
        assert!(read(&["--"]).is_err());
    }

    #[test]
    fn a_tap_that_is_not_there_is_not_made() {
        let error = open(&Inherited::Tap("bgr-nowhere".to_owned())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
