//! Taps: network interfaces whose frames a process reads and writes.
//!
//! Numbers and layouts from `linux/if_tun.h` and `linux/if.h`; see
//! Documentation/networking/tuntap.rst of the kernel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use linux_raw_sys::ioctl::{TUNSETGROUP, TUNSETIFF, TUNSETOWNER, TUNSETPERSIST};
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{IntegerSetter, Updater, ioctl};

/// Longest interface name, without the closing NUL (`IFNAMSIZ` is 16).
pub const NAME_LIMIT: usize = 15;

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// What stands before each frame that is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameHeader {
    /// Nothing.
    None,
    /// `struct virtio_net_hdr`, so that offloads cross (what VMMs ask for).
    Virtio,
}

/// The head of `struct ifreq` as TUNSETIFF reads it: the name, then the flags.
#[repr(C)]
struct TapRequest {
    name: [u8; NAME_LIMIT + 1],
    flags: u16,
    rest: [u8; 22],
}

// `sizeof(struct ifreq)` on every 64-bit Linux; linux-raw-sys has it larger, because its
// `sockaddr` is the storage of any address.
const _: () = assert!(size_of::<TapRequest>() == 40);

/// Opens the tap of this name, and makes it if there is none (CAP_NET_ADMIN). It
/// vanishes with the descriptor unless [`set_persistent`] was called on it once.
///
/// # Errors
/// `EBUSY`: another process has it open. `EINVAL`: an interface of another kind has
/// the name, or the name is no interface name.
pub fn open(name: &str, header: FrameHeader) -> io::Result<OwnedFd> {
    let mut request = TapRequest {
        name: [0; NAME_LIMIT + 1],
        flags: IFF_TAP | IFF_NO_PI,
        rest: [0; 22],
    };
    if header == FrameHeader::Virtio {
        request.flags |= IFF_VNET_HDR;
    }
    if name.is_empty() || name.len() > NAME_LIMIT {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let tap = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`; TapRequest has its size
    // (asserted above) and is valid for any bytes the kernel puts there.
    let set_interface = unsafe { Updater::<{ TUNSETIFF }, TapRequest>::new(&mut request) };
    // SAFETY: the opcode and its argument belong together, see above.
    unsafe { ioctl(&tap, set_interface) }?;
    Ok(tap)
}

/// Lets the tap outlive its descriptors.
pub fn set_persistent(tap: impl AsFd) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes an integer and no pointer.
    let persist = unsafe { IntegerSetter::<{ TUNSETPERSIST }>::new_usize(1) };
    // SAFETY: the opcode and its argument belong together, see above.
    unsafe { ioctl(tap, persist) }?;
    Ok(())
}

/// Lets this user open the tap without CAP_NET_ADMIN.
pub fn set_owner(tap: impl AsFd, uid: u32) -> io::Result<()> {
    // SAFETY: TUNSETOWNER takes an integer and no pointer.
    let owner = unsafe { IntegerSetter::<{ TUNSETOWNER }>::new_usize(uid as usize) };
    // SAFETY: the opcode and its argument belong together, see above.
    unsafe { ioctl(tap, owner) }?;
    Ok(())
}

/// Lets the members of this group open the tap without CAP_NET_ADMIN.
pub fn set_group(tap: impl AsFd, gid: u32) -> io::Result<()> {
    // SAFETY: TUNSETGROUP takes an integer and no pointer.
    let group = unsafe { IntegerSetter::<{ TUNSETGROUP }>::new_usize(gid as usize) };
    // SAFETY: the opcode and its argument belong together, see above.
    unsafe { ioctl(tap, group) }?;
    Ok(())
}
