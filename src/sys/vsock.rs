//! AF_VSOCK sockets: dialling the host, listening in a guest.
//!
//! rustix knows the family but no address type, and the `sockaddr_vm` of
//! linux-raw-sys is 128 bytes because its padding is computed from the storage type;
//! the kernel's is 16 (`include/uapi/linux/vm_sockets.h`).

use std::os::fd::OwnedFd;

use rustix::io::Result;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, acceptfrom_with};

/// The host's context id, seen from a guest.
pub const HOST_CID: u32 = 2;
/// Any context id: to listen for whoever dials.
const ANY_CID: u32 = u32::MAX;

/// `struct sockaddr_vm`.
#[repr(C)]
struct VsockAddress {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

const _: () = assert!(size_of::<VsockAddress>() == 16);

impl VsockAddress {
    fn new(cid: u32, port: u32) -> VsockAddress {
        VsockAddress {
            family: AddressFamily::VSOCK.as_raw(),
            reserved: 0,
            port,
            cid,
            flags: 0,
            zero: [0; 3],
        }
    }
}

// SAFETY: the pointer is to a live `sockaddr_vm` whose size is the length that is
// passed with it, and it is not kept beyond the closure.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<T>(
        &self,
        call: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> T,
    ) -> T {
        let length = size_of::<VsockAddress>() as SocketAddrLen;
        call(std::ptr::from_ref(self).cast(), length)
    }
}

/// Connects to a port of the host. The kernel's own limit of 2 s applies.
///
/// # Errors
/// `ECONNRESET` where nobody listens, `ENODEV` without a vsock device.
pub fn dial_host(port: u32) -> Result<OwnedFd> {
    let socket = stream_socket()?;
    rustix::net::connect(&socket, &VsockAddress::new(HOST_CID, port))?;
    Ok(socket)
}

/// Listens on a port for connections from anywhere.
///
/// # Errors
/// `EADDRINUSE`, or vsock is missing in this kernel.
pub fn listen(port: u32, backlog: i32) -> Result<OwnedFd> {
    let socket = stream_socket()?;
    rustix::net::bind(&socket, &VsockAddress::new(ANY_CID, port))?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Takes a connection, with the context id of whoever dialled: the kernel's word, not the
/// peer's. `None` where it is no vsock connection.
///
/// # Errors
/// As `accept4(2)`.
pub fn accept(listener: &OwnedFd) -> Result<(OwnedFd, Option<u32>)> {
    let (socket, peer) = acceptfrom_with(listener, SocketFlags::CLOEXEC)?;
    Ok((socket, peer.as_ref().and_then(context_of)))
}

fn context_of(peer: &SocketAddrAny) -> Option<u32> {
    let is_ours = peer.address_family() == AddressFamily::VSOCK
        && peer.addr_len() as usize >= size_of::<VsockAddress>();
    if !is_ours {
        return None;
    }
    let address = peer.as_ptr().cast::<VsockAddress>();
    // SAFETY: the address has at least the length of a `sockaddr_vm`, as just seen, any
    // bytes are one, and it lives as long as `peer`; its storage may be aligned less.
    let address = unsafe { address.read_unaligned() };
    Some(address.cid)
}

fn stream_socket() -> Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::SocketAddrV4;

    /// As the kernel would give it.
    fn any(address: &impl SocketAddrArg) -> SocketAddrAny {
        address.as_any()
    }

    #[test]
    fn peer_is_told_by_its_context_and_another_family_has_none() {
        let host = any(&VsockAddress::new(HOST_CID, 9999));
        assert_eq!(context_of(&host), Some(HOST_CID));
        let inner = any(&VsockAddress::new(1, 9999));
        assert_eq!(context_of(&inner), Some(1));
        let other = any(&SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 2));
        assert_eq!(context_of(&other), None);
    }

    #[test]
    fn the_address_has_the_kernels_layout() {
        let address = VsockAddress::new(2, 1023);
        assert_eq!(address.family, 40);
        assert_eq!(std::mem::offset_of!(VsockAddress, port), 4);
        assert_eq!(std::mem::offset_of!(VsockAddress, cid), 8);
    }
}
