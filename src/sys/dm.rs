//! Device-mapper: block devices that the kernel puts together from a table.
//!
//! Numbers and layouts from `linux/dm-ioctl.h`; see
//! Documentation/admin-guide/device-mapper of the kernel. One call is one buffer: a
//! header, then data in the form of the call; answers come in the same buffer
//! ([`buffer`]). What a table means is the caller's.

mod buffer;

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;

use linux_raw_sys::ioctl as raw;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

use buffer::{
    Answer, DM_BUFFER_FULL_FLAG, DM_DEFERRED_REMOVE, DM_READONLY_FLAG, DM_STATUS_TABLE_FLAG,
    Request, malformed, read_names, read_targets, read_u32,
};

/// Longest name, without the closing NUL (`DM_NAME_LEN` is 128).
pub const NAME_LIMIT: usize = 127;

/// Tells udev's rules to leave a device alone: what lies on it is a guest's, and nothing
/// of the host has to look into it (`DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG`,
/// `_DISK_RULES_`, `_OTHER_RULES_` of libdevmapper.h, in the upper half of `event_nr`).
const LEAVE_ALONE: u32 = (0x0002 | 0x0004 | 0x0008) << 16;

/// One line of a table, in sectors of 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub length: u64,
    /// The target's name: `linear`, `snapshot`.
    pub kind: String,
    /// Its parameters, or in a status what it says.
    pub text: String,
}

/// What a device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its device number, as stat(2) has it.
    pub number: u64,
    /// Its unique name beside the name.
    pub uuid: String,
    /// How often it is open, by programs and by devices above it.
    pub users: u32,
    /// Whether it carries out reads and writes.
    pub state: State,
    /// Whether it goes when its last user closes it.
    pub is_leaving: bool,
}

/// How far a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has a table and carries it out, and no other waits.
    Live,
    /// It has none yet, is suspended, or a second table waits.
    Unfinished,
}

/// What becomes of a device that is in use when it is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfBusy {
    /// The removal is refused with `EBUSY`.
    Refuse,
    /// It goes when its last user closes it.
    Later,
}

/// How a removal went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The device is gone.
    Now,
    /// It goes when its last user closes it.
    Later,
}

/// Whether a table can be written through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It cannot.
    ReadOnly,
    /// It can.
    ReadWrite,
}

/// Room for a call and its answer, bytes: nearly all fit the first, the list of a host
/// with ten thousand devices the last.
const ROOMS: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];

/// An open /dev/mapper/control.
#[derive(Debug)]
pub struct Control(OwnedFd);

impl Control {
    /// Over an open control node.
    pub fn over(file: OwnedFd) -> Control {
        Control(file)
    }

    /// The kernel's version of this interface.
    pub fn version(&self) -> io::Result<[u32; 3]> {
        Ok(self
            .call(raw::DM_VERSION, Request::default())?
            .header
            .version)
    }

    /// The version of a kind of target; its module is loaded for it (Linux 5.8).
    ///
    /// # Errors
    /// `EINVAL`, `ENXIO`: there is no such kind.
    pub fn target_version(&self, kind: &str) -> io::Result<[u32; 3]> {
        let request = Request {
            name: kind,
            ..Request::default()
        };
        let answer = self.call(raw::DM_GET_TARGET_VERSION, request)?;
        // `struct dm_target_versions`: next, version[3], name.
        let word = |at: usize| read_u32(answer.data(), at).ok_or_else(malformed);
        Ok([word(4)?, word(8)?, word(12)?])
    }

    /// Makes a device without a table.
    ///
    /// # Errors
    /// `EBUSY`: name or uuid is taken.
    pub fn create(&self, name: &str, uuid: &str) -> io::Result<()> {
        let request = Request {
            name,
            uuid,
            ..Request::default()
        };
        self.call(raw::DM_DEV_CREATE, request).map(drop)
    }

    /// Gives a device a table, which takes effect with [`Control::resume`].
    ///
    /// # Errors
    /// What the targets think of it; the kernel's log says more.
    pub fn load(&self, name: &str, table: &[Target], access: Access) -> io::Result<()> {
        let request = Request {
            name,
            flags: match access {
                Access::ReadOnly => DM_READONLY_FLAG,
                Access::ReadWrite => 0,
            },
            table,
            ..Request::default()
        };
        self.call(raw::DM_TABLE_LOAD, request).map(drop)
    }

    /// Lets a device carry out the table that was loaded last.
    pub fn resume(&self, name: &str) -> io::Result<()> {
        let request = Request {
            name,
            event_nr: LEAVE_ALONE,
            ..Request::default()
        };
        self.call(raw::DM_DEV_SUSPEND, request).map(drop)
    }

    /// Tells the first target of a device something, in words of that target.
    ///
    /// # Errors
    /// `EINVAL`: it does not take messages, or not this one.
    pub fn message(&self, name: &str, message: &str) -> io::Result<()> {
        let request = Request {
            name,
            message,
            ..Request::default()
        };
        self.call(raw::DM_TARGET_MSG, request).map(drop)
    }

    /// The device of this name; `None` where there is none.
    pub fn find(&self, name: &str) -> io::Result<Option<Device>> {
        let request = Request {
            name,
            ..Request::default()
        };
        match self.call(raw::DM_DEV_STATUS, request) {
            Ok(answer) => Ok(Some(answer.device())),
            Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The table that a device carries out.
    ///
    /// # Errors
    /// `ENXIO`: there is no such device.
    pub fn table(&self, name: &str) -> io::Result<Vec<Target>> {
        self.targets(name, DM_STATUS_TABLE_FLAG)
    }

    /// What the targets of a device say.
    ///
    /// # Errors
    /// As for [`Control::table`].
    pub fn status(&self, name: &str) -> io::Result<Vec<Target>> {
        self.targets(name, 0)
    }

    fn targets(&self, name: &str, flags: u32) -> io::Result<Vec<Target>> {
        let request = Request {
            name,
            flags,
            ..Request::default()
        };
        let answer = self.call(raw::DM_TABLE_STATUS, request)?;
        read_targets(answer.data(), answer.header.target_count).ok_or_else(malformed)
    }

    /// Removes a device.
    ///
    /// # Errors
    /// `ENXIO`: there is none. `EBUSY`: see [`IfBusy`].
    pub fn remove(&self, name: &str, if_busy: IfBusy) -> io::Result<Removed> {
        let request = Request {
            name,
            flags: match if_busy {
                IfBusy::Refuse => 0,
                IfBusy::Later => DM_DEFERRED_REMOVE,
            },
            event_nr: LEAVE_ALONE,
            ..Request::default()
        };
        let answer = self.call(raw::DM_DEV_REMOVE, request)?;
        // The kernel takes the flag back where the device could go at once.
        Ok(match answer.header.flags & DM_DEFERRED_REMOVE {
            0 => Removed::Now,
            _ => Removed::Later,
        })
    }

    /// The name of every device.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let answer = self.call(raw::DM_LIST_DEVICES, Request::default())?;
        read_names(answer.data()).ok_or_else(malformed)
    }

    fn call(&self, opcode: Opcode, request: Request<'_>) -> io::Result<Answer> {
        for room in ROOMS {
            let mut buffer = request.encode(room)?;
            let call = Call {
                opcode,
                buffer: &mut buffer,
            };
            // SAFETY: every opcode here takes a `struct dm_ioctl` with data after it; see
            // `Call`.
            unsafe { ioctl(&self.0, call) }?;
            let answer = Answer::decode(buffer);
            // Only questions can have answers that are too long: asked again, with room.
            if answer.header.flags & DM_BUFFER_FULL_FLAG == 0 {
                return Ok(answer);
            }
        }
        Err(Errno::NOBUFS.into())
    }
}

/// A call's buffer. The kernel copies it in and out, so it needs no alignment.
struct Call<'a> {
    opcode: Opcode,
    buffer: &'a mut [u8],
}

// SAFETY: `buffer` begins with a header whose `data_size` is the buffer's own length
// (`Request::encode`), which is all that the kernel reads and writes.
unsafe impl Ioctl for Call<'_> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.buffer.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_control_node_refuses() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = Control::over(null.into()).version().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::NOTTY.raw_os_error()));
    }
}
