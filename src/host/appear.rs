//! Waits for a socket that another process makes, and for its end, without polling.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use rustix::io::Errno;

use super::process::{Process, ready};

/// An inotify instance on one folder.
///
/// To close one, the kernel waits for a grace period of its readers (`synchronize_srcu` of
/// fsnotify), 5 to 20 ms: a thread of its own does that, while the VM goes on.
#[derive(Debug)]
struct Watch(Option<OwnedFd>);

impl Watch {
    fn on_folder_of(path: &Path, wanted: inotify::WatchFlags) -> io::Result<Watch> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let watch = inotify::init(flags)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        inotify::add_watch(&watch, folder, wanted)?;
        Ok(Watch(Some(watch)))
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("taken by `drop` alone").as_fd()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let watch = self.0.take();
        let close = std::thread::Builder::new().name("close".to_owned());
        // Without a thread the descriptor is closed here: the closure is dropped.
        let _ = close.spawn(move || drop(watch));
    }
}

/// How a wait for a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appearance {
    /// It is there, and somebody listens on it.
    Listening,
    /// The process that was to make it has ended.
    MakerEnded,
    /// The time was up.
    Late,
}

/// Waits until a process listens on the Unix socket at `path`, in an existing folder. It
/// bound it by `name`, which may be shorter.
///
/// inotify(7) tells of the file when it is bound, a system call before listen(2); for
/// that instant the kernel's table of sockets is looked at again and again.
pub fn wait_for_socket(
    path: &Path,
    name: &Path,
    maker: &Process,
    limit: Duration,
) -> io::Result<Appearance> {
    let deadline = Instant::now() + limit;
    let wanted = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    let watch = Watch::on_folder_of(path, wanted)?;
    while !path.exists() {
        let left = deadline.saturating_duration_since(Instant::now());
        match ready(&[watch.as_fd(), maker.pidfd()], left)? {
            None => return Ok(Appearance::Late),
            Some(0) => drain(&watch)?,
            Some(_) => return Ok(Appearance::MakerEnded),
        }
    }
    while !is_listening(name)? {
        if !maker.is_alive() {
            return Ok(Appearance::MakerEnded);
        }
        if Instant::now() > deadline {
            return Ok(Appearance::Late);
        }
        std::thread::yield_now();
    }
    Ok(Appearance::Listening)
}

/// Watches over a socket's name: readable when something happened in its folder.
#[derive(Debug)]
pub struct Name {
    path: PathBuf,
    watch: Watch,
}

impl Name {
    /// Of a socket, which need not be there any more; its folder must.
    pub fn watch(path: PathBuf) -> io::Result<Name> {
        let wanted = inotify::WatchFlags::DELETE
            | inotify::WatchFlags::MOVED_FROM
            | inotify::WatchFlags::DELETE_SELF
            | inotify::WatchFlags::MOVE_SELF;
        let watch = Watch::on_folder_of(&path, wanted)?;
        Ok(Name { path, watch })
    }

    /// Whether nobody reaches the socket by it any more.
    pub fn is_gone(&self) -> io::Result<bool> {
        drain(&self.watch)?;
        Ok(!self.path.exists())
    }
}

impl AsFd for Name {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

fn drain(watch: impl AsFd) -> io::Result<()> {
    let mut buffer = [const { MaybeUninit::<u8>::uninit() }; 4096];
    let mut reader = inotify::Reader::new(watch, &mut buffer);
    loop {
        match reader.next() {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the table of this thread's network namespace has a listening socket of this
/// path: its fourth column holds the flags, 0x10000 (`__SO_ACCEPTCON`, linux/net.h) among
/// them; the path is the last.
fn is_listening(path: &Path) -> io::Result<bool> {
    let table = fs::read("/proc/thread-self/net/unix")?;
    let mut lines = table.split(|byte| *byte == b'\n');
    Ok(lines.any(|line| {
        let mut columns = line
            .split(|byte| *byte == b' ')
            .filter(|word| !word.is_empty());
        let flags = columns
            .nth(3)
            .and_then(|word| std::str::from_utf8(word).ok());
        let flags = flags.and_then(|word| u32::from_str_radix(word, 16).ok());
        let tail = [b" ", path.as_os_str().as_bytes()].concat();
        flags.is_some_and(|flags| flags & 0x10000 != 0) && line.ends_with(&tail)
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command, Stdio};

    use rustix::process::Pid;

    use super::*;

    fn waiting() -> Child {
        Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn a_socket_bound_later_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let mut child = waiting();
        let maker = Process::pin(Pid::from_child(&child)).unwrap();
        let seen = std::thread::scope(|scope| {
            let wait =
                scope.spawn(|| wait_for_socket(&path, &path, &maker, Duration::from_secs(20)));
            let _listener = UnixListener::bind(&path).unwrap();
            wait.join().unwrap().unwrap()
        });
        assert_eq!(seen, Appearance::Listening);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_maker_that_ends_ends_the_wait() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = waiting();
        let maker = Process::pin(Pid::from_child(&child)).unwrap();
        child.kill().unwrap();
        let path = folder.path().join("s");
        let seen = wait_for_socket(&path, &path, &maker, Duration::from_secs(20));
        assert_eq!(seen.unwrap(), Appearance::MakerEnded);
        child.wait().unwrap();
    }

    #[test]
    fn nothing_within_the_limit_is_late() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = waiting();
        let maker = Process::pin(Pid::from_child(&child)).unwrap();
        let path = folder.path().join("s");
        let seen = wait_for_socket(&path, &path, &maker, Duration::from_millis(20));
        assert_eq!(seen.unwrap(), Appearance::Late);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
