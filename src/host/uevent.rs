//! Waits for what the kernel does with devices in its own time, by its own messages.
//!
//! A loop device lets go of its file, and a device-mapper device goes away, when its
//! last user closes it: udev that looks at every new device is one for some
//! milliseconds. Each such end is a uevent (Documentation/driver-api/driver-model,
//! `NETLINK_KOBJECT_UEVENT`, whose only group is the kernel's).

use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::netlink::KOBJECT_UEVENT;

use crate::sys::netlink::Netlink;

/// The group of the kernel's own messages; others belong to udev.
const KERNEL: u32 = 1;

/// A subscription to the kernel's messages about devices.
#[derive(Debug)]
pub struct Uevents(Netlink);

impl Uevents {
    /// Subscribes. To be done before whatever is then waited for is set off.
    pub fn subscribe() -> io::Result<Uevents> {
        let socket = Netlink::open(Some(KOBJECT_UEVENT))?;
        socket.join(KERNEL)?;
        Ok(Uevents(socket))
    }

    /// Looks, and looks again after each message, until `is_over` or the time is up;
    /// tells which. The last look is after the last message.
    pub fn wait_until<E>(
        &self,
        limit: Duration,
        mut is_over: impl FnMut() -> Result<bool, E>,
    ) -> Result<bool, E>
    where
        E: From<io::Error>,
    {
        let deadline = Instant::now() + limit;
        loop {
            if is_over()? {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // A time of zero would wait for ever (setsockopt(2), SO_RCVTIMEO).
            if left < Duration::from_millis(1) {
                return Ok(false);
            }
            match self.0.wait(left) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(Errno::TIMEDOUT.raw_os_error()) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_already_is_not_waited_for_and_what_never_is_ends_in_time() {
        let uevents = Uevents::subscribe().unwrap();
        let hour = Duration::from_secs(3600);
        let over: io::Result<bool> = uevents.wait_until(hour, || Ok(true));
        assert!(over.unwrap());
        let mut looks = 0;
        let over: io::Result<bool> = uevents.wait_until(Duration::from_millis(30), || {
            looks += 1;
            Ok(false)
        });
        assert!(!over.unwrap());
        assert!(looks >= 2, "the last look is after the wait");
    }
}
