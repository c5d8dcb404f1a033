//! Loop devices: files as block devices.
//!
//! Numbers and layouts from `linux/loop.h`; see loop(4), and `drivers/block/loop.c` for
//! what the manual leaves out.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use linux_raw_sys::loop_device as raw;
use rustix::ioctl::{Getter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl};

/// Longest tag: `LO_NAME_SIZE` without the closing NUL.
pub const TAG_LIMIT: usize = 63;

const _: () = assert!(size_of::<raw::loop_info64>() == 232);
const _: () = assert!(size_of::<raw::loop_config>() == 304);

const READ_ONLY: u32 = raw::LO_FLAGS_READ_ONLY as u32;
const AUTOCLEAR: u32 = raw::LO_FLAGS_AUTOCLEAR as u32;
const DIRECT_IO: u32 = raw::LO_FLAGS_DIRECT_IO as u32;

/// Who may write to a loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writable {
    /// Nobody.
    No,
    /// Whoever opens it so.
    Yes,
}

/// What a bound loop device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The name that whoever bound it gave it, up to its NUL.
    pub tag: Vec<u8>,
    /// Device and inode of the file behind it, as stat(2) gives them.
    pub backing: (u64, u64),
    /// Whether it can be written to.
    pub writable: Writable,
    /// Whether it detaches when its last user closes it.
    pub is_detaching: bool,
    /// Whether it bypasses the host's page cache.
    pub is_direct: bool,
}

/// A free loop device's number, from /dev/loop-control; another process may bind it
/// before we do.
///
/// # Errors
/// All numbers are taken.
pub fn free_number(control: impl AsFd) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument; see `GetFree`.
    Ok(unsafe { ioctl(control, GetFree) }?)
}

/// `LOOP_CTL_GET_FREE`, whose answer is the call's own result.
struct GetFree;

// SAFETY: the opcode reads and writes no memory of ours, so a null pointer is right.
unsafe impl Ioctl for GetFree {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        raw::LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| rustix::io::Errno::RANGE)
    }
}

/// Binds a file to a free device in one step (`LOOP_CONFIGURE`, Linux 5.8). Direct I/O is
/// asked for; the kernel falls back where the file's system cannot.
///
/// # Errors
/// `EBUSY`: the device is bound already.
pub fn configure(
    device: impl AsFd,
    backing: impl AsFd,
    tag: &str,
    writable: Writable,
) -> io::Result<()> {
    if tag.len() > TAG_LIMIT {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let config = config(backing.as_fd(), tag, writable);
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, whose size is asserted above.
    let request = unsafe { Setter::<{ raw::LOOP_CONFIGURE }, raw::loop_config>::new(config) };
    // SAFETY: the opcode and its argument belong together; `backing` lives until after it.
    unsafe { ioctl(device, request) }?;
    Ok(())
}

fn config(backing: BorrowedFd<'_>, tag: &str, writable: Writable) -> raw::loop_config {
    let mut name = [0; TAG_LIMIT + 1];
    name[..tag.len()].copy_from_slice(tag.as_bytes());
    let flags = match writable {
        Writable::No => DIRECT_IO | READ_ONLY,
        Writable::Yes => DIRECT_IO,
    };
    raw::loop_config {
        fd: backing.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: raw::loop_info64 {
            lo_device: 0,
            lo_inode: 0,
            lo_rdevice: 0,
            lo_offset: 0,
            lo_sizelimit: 0,
            lo_number: 0,
            lo_encrypt_type: raw::LO_CRYPT_NONE,
            lo_encrypt_key_size: 0,
            lo_flags: flags,
            lo_file_name: name,
            lo_crypt_name: [0; 64],
            lo_encrypt_key: [0; 32],
            lo_init: [0; 2],
        },
        __reserved: [0; 8],
    }
}

/// What a device is bound to.
///
/// # Errors
/// `ENXIO`: to nothing.
pub fn status(device: impl AsFd) -> io::Result<Status> {
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`, whose size is asserted
    // above, and any bytes make a valid one.
    let request = unsafe { Getter::<{ raw::LOOP_GET_STATUS64 }, raw::loop_info64>::new() };
    // SAFETY: the opcode and its argument belong together, see above.
    let info = unsafe { ioctl(device, request) }?;
    let has = |flag: u32| info.lo_flags & flag != 0;
    let end = info.lo_file_name.iter().position(|byte| *byte == 0);
    Ok(Status {
        tag: info.lo_file_name[..end.unwrap_or(TAG_LIMIT)].to_vec(),
        backing: (info.lo_device, info.lo_inode),
        writable: match has(READ_ONLY) {
            true => Writable::No,
            false => Writable::Yes,
        },
        is_detaching: has(AUTOCLEAR),
        is_direct: has(DIRECT_IO),
    })
}

/// Lets go of the file: at once, or when the last user of the device closes it; success
/// says nothing about which.
///
/// # Errors
/// `ENXIO`: it is bound to nothing.
pub fn clear(device: impl AsFd) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument.
    let request = unsafe { NoArg::<{ raw::LOOP_CLR_FD }>::new() };
    // SAFETY: it touches no memory of ours.
    unsafe { ioctl(device, request) }?;
    Ok(())
}

/// Lets the device follow a change of its file's length, also while it is in use.
///
/// # Errors
/// `ENXIO`: it is bound to nothing.
pub fn follow_length(device: impl AsFd) -> io::Result<()> {
    // SAFETY: LOOP_SET_CAPACITY takes no argument.
    let request = unsafe { NoArg::<{ raw::LOOP_SET_CAPACITY }>::new() };
    // SAFETY: it touches no memory of ours.
    unsafe { ioctl(device, request) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_loop_device_refuses() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let refused = [
            free_number(&null).map(drop),
            configure(&null, &null, "x", Writable::No),
            status(&null).map(drop),
            clear(&null),
            follow_length(&null),
        ];
        for result in refused {
            let error = result.unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(rustix::io::Errno::NOTTY.raw_os_error())
            );
        }
    }

    #[test]
    fn a_tag_that_would_be_cut_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = configure(&null, &null, &"x".repeat(64), Writable::No).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
