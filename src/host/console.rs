//! Keeps what a guest writes to its serial console and what its VMM has to say, and keeps
//! both small: a guest may make either write as much as it likes, and this machine's disk
//! is not its own.
//!
//! ```text
//!  VMM ------ standard output --> pipe --------+
//!  VMM ------ standard error ---+              +--> banger role console-log --> console.log
//!  vsock back end -- the same --+-> named pipe-+                                vmm.log
//! ```
//!
//! A process of its own, because the VMM outlives the daemon and neither VMM can bound
//! its output. It ends with the VMM: nobody holds the console's other end any more. The
//! other pipe has a name because the back end is started before there is a console.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::sys::descriptors::take_inherited;

use super::launch::{FIRST_FILE, Inherited};
use super::process::Marker;

/// A log that grows beyond this loses its older part.
const LIMIT: u64 = 1 << 20;
/// What is kept then.
const KEPT: u64 = LIMIT / 4;
/// Stands where something was dropped.
const GAP: &[u8] = b"\n[banger: older lines were dropped]\n";

/// The words by which the process is started.
pub fn arguments(console: &Path) -> Vec<OsString> {
    vec!["role".into(), "console-log".into(), console.into()]
}

/// The files that it is given open: it has no way to them.
pub fn files(console: &Path, log: &Path) -> Vec<Inherited> {
    vec![
        Inherited::Log(console.to_owned()),
        Inherited::Log(log.to_owned()),
    ]
}

/// Makes a log where there is none, for its owner alone to read.
pub fn make(path: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.open(path).map(drop)
}

/// The words of its command line that only this log's process has.
pub fn marker(console: &Path) -> Marker {
    Marker::new(arguments(console))
}

/// The end of the named pipe that is read; makes the pipe where there is none.
pub fn pipe_to_read(path: &Path) -> io::Result<OwnedFd> {
    match rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        // For the VM's group, if the folder has one: Firecracker opens it by its path.
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o620))?,
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The end that is written to. It can be read as well, so that a writer is not ended by
/// the want of a reader; and a full pipe loses words instead of stopping who speaks.
pub fn pipe_to_write(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// What waits in a pipe, as text.
pub fn waiting_words(pipe: &OwnedFd) -> String {
    let mut part = [0; 4096];
    let length = rustix::io::read(pipe, &mut part).unwrap_or(0);
    String::from_utf8_lossy(&part[..length]).trim().to_owned()
}

/// The role `console-log`: copies standard input to the console's file, begun anew, and
/// what comes on descriptor 1 to the end of the other, until the first one ends.
pub fn run(_path_for_the_marker: Vec<OsString>) -> ExitCode {
    match keep() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::failed("keep the logs of a VM").because(error);
            // There is nobody left to tell if this fails too.
            let _ = writeln!(io::stderr(), "console-log: {failure}");
            ExitCode::from(failure.kind.exit_status())
        }
    }
}

fn keep() -> io::Result<()> {
    let mut console = Log::begin(take_inherited(FIRST_FILE)?.into())?;
    let mut log = Log::resume(take_inherited(FIRST_FILE + 1)?.into())?;
    let (said, told) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    while console.is_open {
        let ready = wait(&[(said, &console), (told, &log)])?;
        if ready[1] {
            log.take(told)?;
        }
        if ready[0] {
            console.take(said)?;
        }
    }
    // What the VMM said last.
    while log.take(told)? {}
    console.trouble.and(log.trouble)
}

/// Which of the open ones have something to say.
fn wait(sources: &[(BorrowedFd<'_>, &Log); 2]) -> io::Result<[bool; 2]> {
    let wanted = |log: &Log| match log.is_open {
        true => PollFlags::IN,
        false => PollFlags::empty(),
    };
    let mut watched = sources.map(|(source, log)| PollFd::from_borrowed_fd(source, wanted(log)));
    match poll(&mut watched, None) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok([false; 2]),
        Err(error) => return Err(error.into()),
    }
    Ok([0, 1].map(|index| sources[index].1.is_open && !watched[index].revents().is_empty()))
}

struct Log {
    file: File,
    length: u64,
    /// Whether more may come.
    is_open: bool,
    /// The first failed write. A full disk loses output and nothing else: a guest must
    /// not stop because its console is not read.
    trouble: io::Result<()>,
}

impl Log {
    fn begin(file: File) -> io::Result<Log> {
        file.set_len(0)?;
        Log::resume(file)
    }

    fn resume(mut file: File) -> io::Result<Log> {
        let length = file.seek(SeekFrom::End(0))?;
        Ok(Log {
            file,
            length,
            is_open: true,
            trouble: Ok(()),
        })
    }

    /// Takes what there is; whether there may be more at once.
    fn take(&mut self, source: impl AsFd) -> io::Result<bool> {
        let mut part = [0; 16 * 1024];
        match rustix::io::read(source, &mut part) {
            Ok(0) => self.is_open = false,
            Ok(length) => {
                let written = self.append(&part[..length]);
                if self.trouble.is_ok() {
                    self.trouble = written;
                }
                return Ok(true);
            }
            Err(Errno::INTR) => return Ok(true),
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(false)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        match self.length > LIMIT {
            true => self.drop_older(),
            false => Ok(()),
        }
    }

    fn drop_older(&mut self) -> io::Result<()> {
        let mut kept = Vec::new();
        self.file.seek(SeekFrom::Start(self.length - KEPT))?;
        (&self.file).take(KEPT).read_to_end(&mut kept)?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(GAP)?;
        self.file.write_all(&kept)?;
        self.length = GAP.len() as u64 + kept.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content of a file that held `before`, after `input` came by a pipe.
    fn kept(open: impl Fn(File) -> io::Result<Log>, before: &str, input: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, before).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut log = open(file).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || File::from(writer).write_all(input).unwrap());
            while log.take(&reader).unwrap() {}
        });
        assert!(!log.is_open && log.trouble.is_ok());
        fs::read(&path).unwrap()
    }

    #[test]
    fn little_output_is_kept_whole_and_an_earlier_run_only_where_it_is_wanted() {
        assert_eq!(kept(Log::begin, "earlier\n", b"one\ntwo\n"), b"one\ntwo\n");
        assert_eq!(kept(Log::begin, "earlier\n", b""), b"");
        assert_eq!(kept(Log::resume, "earlier\n", b"one\n"), b"earlier\none\n");
    }

    #[test]
    fn much_output_keeps_its_end_and_says_that_something_is_missing() {
        let mut input = vec![b'x'; 10 << 20];
        input.extend(b"the last line\n");
        for open in [Log::begin, Log::resume] {
            let kept = kept(open, &"y".repeat(1 << 20), &input);
            assert!(kept.len() as u64 <= LIMIT);
            assert!(kept.starts_with(GAP));
            assert!(kept.ends_with(b"the last line\n"));
        }
    }

    #[test]
    fn a_full_log_pipe_stops_nobody_and_its_words_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let reader = pipe_to_read(&path).unwrap();
        let writer = pipe_to_write(&path).unwrap();
        drop(pipe_to_read(&path).unwrap());
        assert_eq!(waiting_words(&reader), "");
        let part = [b'x'; 4096];
        let full = (0..1000).find_map(|_| rustix::io::write(&writer, &part).err());
        assert_eq!(full, Some(Errno::AGAIN));
        assert_eq!(waiting_words(&reader).len(), part.len());
    }
}
