//! Waits until a disk can be opened, told by the kernel's own events.
//!
//! Not by the node's appearance in /dev: the kernel makes the node first and the disk
//! behind it a moment later (ENXIO meanwhile); its event comes after both.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::during;
use crate::failure::Failure;

/// How long a disk may take to appear. Under emulation on a loaded host it has been
/// seen to take over a second.
const LIMIT: Duration = Duration::from_secs(20);
/// Events that are taken before it is looked again.
const EVENTS: usize = 256;
/// The group of the kernel's own events; udev's are another.
const KERNEL_EVENTS: u32 = 1;

/// The path of a disk once it can be opened.
///
/// # Errors
/// It did not appear within 20 s.
pub fn wait_for(name: &str) -> Result<PathBuf, Failure> {
    let path = Path::new("/dev").join(name);
    let is_there = || File::open(&path).is_ok();
    if !is_there() {
        let attempt = || during::<io::Error>(format!("wait for {}", path.display()));
        let events = events().map_err(attempt())?;
        until(is_there, &events, LIMIT).map_err(|error| {
            let why = "it did not appear; is the disk attached and its driver loaded?";
            match error.kind() {
                io::ErrorKind::TimedOut => attempt()(io::Error::new(error.kind(), why)),
                _ => attempt()(error),
            }
        })?;
    }
    Ok(path)
}

/// Waits until something about a disk is so, told by the kernel's events.
///
/// # Errors
/// It was not so within 20 s.
pub fn wait_until(attempt: &str, is_so: impl Fn() -> bool) -> Result<(), Failure> {
    let events = events().map_err(during(attempt))?;
    until(is_so, &events, LIMIT).map_err(during(attempt))
}

fn events() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(KOBJECT_UEVENT);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
    Ok(socket)
}

/// Looks again at each event, and first: what came before the events were listened to
/// is seen too.
fn until(is_there: impl Fn() -> bool, events: &OwnedFd, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    while !is_there() {
        let left = deadline.saturating_duration_since(Instant::now());
        // Not left to poll(2) alone: with an event always waiting it never runs out.
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec::try_from(left).expect("twenty seconds fit a timespec");
        match poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => drain(events),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What an event says does not matter, nor that some were lost (ENOBUFS).
fn drain(events: &OwnedFd) {
    let mut event = [0; 4096];
    for _ in 0..EVENTS {
        if recv(events, &mut event[..], RecvFlags::empty()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_disk_that_appears_later_is_noticed_by_an_event() {
        let (kernel, events) = UnixDatagram::pair().unwrap();
        events.set_nonblocking(true).unwrap();
        let there = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let is_there = || there.load(Ordering::SeqCst);
            let waiter = scope.spawn(move || until(is_there, &events.into(), LIMIT));
            kernel.send(b"add@/devices/other").unwrap();
            there.store(true, Ordering::SeqCst);
            kernel.send(b"add@/devices/vda").unwrap();
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_disk_that_never_appears_is_given_up_though_events_never_end() {
        // Always readable, and never empty.
        let endless = File::open("/dev/null").unwrap().into();
        let error = until(|| false, &endless, Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_disk_that_never_appears_is_given_up() {
        let limit = Duration::from_millis(5);
        let error = until(|| false, &events().unwrap(), limit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
