//! A pseudo terminal that a command under test believes to be its user's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::events::wait_readable;
use super::{Banger, DEADLINE};

/// A command on a terminal of its own.
pub struct Terminal {
    master: File,
    child: Child,
    screen: Arc<(Mutex<String>, Condvar)>,
}

impl Terminal {
    /// Starts `banger` with these arguments on a terminal of this size.
    pub fn start(banger: &Banger, arguments: &[&str], columns: u16, rows: u16) -> Terminal {
        Terminal::start_with(banger, arguments, columns, rows, &[])
    }

    /// The same with more variables in its environment.
    pub fn start_with(
        banger: &Banger,
        arguments: &[&str],
        columns: u16,
        rows: u16,
        variables: &[(&str, &str)],
    ) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("the host has pseudo terminals");
        grantpt(&master).expect("a terminal of ours can be granted");
        unlockpt(&master).expect("a terminal of ours can be unlocked");
        let name = ptsname(&master, Vec::new()).expect("a terminal has a name");
        let slave = rustix::fs::open(
            name,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY,
            rustix::fs::Mode::empty(),
        );
        let slave: OwnedFd = slave.expect("a terminal of ours can be opened");
        resize(&master, columns, rows);
        // setsid --ctty makes it the controlling terminal, as a login does.
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg("--wait")
            .arg(super::binary())
            .args(arguments);
        command
            .env_clear()
            .envs(banger.environment())
            .env("TERM", "xterm-256color")
            .envs(variables.iter().copied());
        let copy = || Stdio::from(slave.try_clone().expect("a descriptor can be copied"));
        command
            .current_dir(banger.home())
            .stdin(copy())
            .stdout(copy())
            .stderr(copy());
        let child = command.spawn().expect("setsid is installed");
        drop(slave);
        let master = File::from(master);
        let screen = Arc::default();
        read(
            master.try_clone().expect("a descriptor can be copied"),
            Arc::clone(&screen),
        );
        Terminal {
            master,
            child,
            screen,
        }
    }

    /// Types; `\x03` is Ctrl-C.
    pub fn type_in(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("a terminal takes input");
    }

    /// Gives the window another size.
    pub fn resize(&self, columns: u16, rows: u16) {
        resize(&self.master, columns, rows);
    }

    /// Waits until the screen has shown this text since the last such wait.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let (screen, grown) = &*self.screen;
        let seen = screen.lock().expect("no reader panics");
        let waited = grown.wait_timeout_while(seen, DEADLINE, |seen| !seen.contains(text));
        let (mut seen, late) = waited.expect("no reader panics");
        assert!(!late.timed_out(), "no {text:?} on the screen: {seen:?}");
        let end = seen.find(text).map_or(0, |at| at + text.len());
        seen.drain(..end);
    }

    /// Waits for the end; the exit code.
    #[track_caller]
    pub fn finish(mut self) -> Option<i32> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let process = pidfd_open(pid.expect("a child has an id"), PidfdFlags::empty());
        let process = process.expect("a child that was not reaped has a pidfd");
        let ended = wait_readable(&process, DEADLINE);
        let screen = self.screen.0.lock().expect("no reader panics");
        assert!(ended, "still running; on the screen: {screen:?}");
        self.child
            .wait()
            .expect("a child of ours can be reaped")
            .code()
    }
}

fn resize(master: &impl std::os::fd::AsFd, columns: u16, rows: u16) {
    let size = Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(master, size).expect("a terminal takes a size");
}

/// Gathers what the terminal shows until its other side is closed (EIO).
fn read(mut master: File, screen: Arc<(Mutex<String>, Condvar)>) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = master.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            screen.0.lock().expect("no waiter panics").push_str(&text);
            screen.1.notify_all();
        }
    });
}
