//! Which network namespace we are in.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

/// asm-generic/socket.h
const SOL_SOCKET: c_int = 1;
/// asm-generic/socket.h, Linux 5.14
const SO_NETNS_COOKIE: c_int = 71;

unsafe extern "C" {
    fn getsockopt(
        socket: RawFd,
        level: c_int,
        name: c_int,
        value: *mut c_void,
        length: *mut u32,
    ) -> c_int;
}

/// A number of the calling thread's network namespace that no other has until the next
/// boot, unlike that of its file in /proc/PID/ns; `None` before Linux 5.14.
pub fn cookie() -> io::Result<Option<u64>> {
    let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length = u32::try_from(size_of::<u64>()).expect("it is 8");
    // SAFETY: both pointers are to variables that outlive the call, and the length is
    // that of the first one.
    let outcome = unsafe {
        getsockopt(
            any.as_raw_fd(),
            SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if outcome == 0 {
        return Ok(Some(cookie));
    }
    match io::Error::last_os_error() {
        error if Errno::from_io_error(&error) == Some(Errno::NOPROTOOPT) => Ok(None),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asked_twice_it_is_the_same_namespace() {
        assert_eq!(cookie().unwrap(), cookie().unwrap());
    }
}
