//! The two sockets of the guests' resolver, bound by whoever has the privilege: bangerd
//! as root, or the root helper on its behalf.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use rustix::net::sockopt::{set_ip_freebind, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// The UDP socket and the listening TCP socket at this address.
///
/// # Errors
/// Not permitted (ports below 1024 need CAP_NET_BIND_SERVICE), or taken.
pub fn sockets(address: SocketAddrV4) -> io::Result<(OwnedFd, OwnedFd)> {
    let udp = bound(SocketType::DGRAM, address)?;
    let tcp = bound(SocketType::STREAM, address)?;
    listen(&tcp, BACKLOG)?;
    Ok((udp, tcp))
}

/// IP_FREEBIND (ip(7)) lets us have the address before the bridge has it.
fn bound(kind: SocketType, address: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
    set_ip_freebind(&socket, true)?;
    if kind == SocketType::STREAM {
        // Connections of a daemon that just died must not keep the port from us.
        set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}
